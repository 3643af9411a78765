//! One device of a worker process: a thread that owns a [`Worker`] and runs the dispatcher's jobs in order.
//!
//! A device that is lost or hangs is opened again in the background (`worker::supervised`). The filters are lost with the
//! device; the dispatcher is notified of that, so that masters send them again.
//!
//! Invariant: every job is answered, whatever becomes of the device.

mod parts;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::super::budget::Budget;
use super::super::link::bytes_of;
use super::super::narrow::Copies;
use super::super::wire::{Answer, ContentId, DeviceInfo, Refusal, Spec};
use super::answering::Answering;
use super::cache::Cache;
use super::outbox::Results;
use super::slabs::{HeldSlabs, Slabs};
use super::tasks::Tasks;
use crate::array::{Buffers, DType, Values};
use crate::error::{Error, Result};
use crate::ids::SubtaskId;
use crate::sync::locked;
use crate::worker::{
    Backoff, CancelToken, FilterKey, HANG_GRACE, Live, Order, Owner, PartKey, PartSignature, Phase,
    SubtaskShape, Supervised, Supervision, Task, Worker, WorkerInfo, WorkerKind, abandon_if_hung,
};

pub(super) use parts::{NewPart, PartJob, PartSource};

/// Pauses before a device is opened again that was lost repeatedly or cannot be opened.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

/// Maximum number and size of the slab buffers kept for later tasks.
const MOST_SPARE: usize = 32;
const MOST_SPARE_BYTES: usize = 64 << 20;

/// Maximum number of buffers kept for results in 16 bits.
const MOST_COPIES: usize = 4;

/// A job for a device.
pub(super) enum Job {
    Install(Box<Filters>),
    Share(Box<Sharing>),
    Remove(ContentId),
    Execute(TaskJob),
    InstallPart(Box<NewPart>),
    RemovePart(ContentId),
    RunPart(Box<PartJob>),
    /// Compute a subtask whose answer is known.
    Probe(Sender<Result<(), String>>),
    /// Take a device that was opened again.
    Return(Live),
}

/// Filters to install.
pub(super) struct Filters {
    pub(super) content: ContentId,
    pub(super) spec: Spec,
    pub(super) shape: SubtaskShape,
    /// The elements, already checked; `None` where they are in the cache.
    pub(super) values: Option<Values>,
}

/// Filters that a device holds, to use for a subtask of another shape.
pub(super) struct Sharing {
    /// Their further name.
    pub(super) content: ContentId,
    /// The name under which they are held.
    pub(super) of: ContentId,
    pub(super) shape: SubtaskShape,
}

/// One task.
pub(super) struct TaskJob {
    pub(super) content: ContentId,
    pub(super) order: Option<Vec<usize>>,
    pub(super) slabs: Arc<HeldSlabs>,
    pub(super) cancel: CancelToken,
    pub(super) answering: Answering,
}

/// A message from a device to the dispatcher.
pub(super) enum Told {
    /// The outcome of installing filters. `Missing`: the cache did not have them after all, or they cannot be shared.
    Installed(ContentId, Installed),
    /// The outcome of installing a part of a model.
    PartInstalled(ContentId, PartInstalled),
    /// The device is lost, and its filters and parts with it.
    Lost,
}

pub(super) enum Installed {
    Held,
    Missing,
    Refused(Refusal, String),
}

pub(super) enum PartInstalled {
    Held(PartSignature),
    /// The cache did not have the file of this size after all.
    Missing {
        bytes: u64,
    },
    Refused(Refusal, String),
}

/// State of a device that others can read while the device thread owns the worker.
pub(super) struct Stats {
    info: WorkerInfo,
    supervision: Supervision,
    lost: Mutex<Option<String>>,
    pub(super) filters: AtomicU32,
    pub(super) filter_bytes: AtomicU64,
    done: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    /// Busy time, in microseconds.
    busy_us: AtomicU64,
    last_done: Mutex<Option<Instant>>,
}

impl Stats {
    pub(super) fn info(&self) -> DeviceInfo {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceInfo {
            name: self.info.name.clone(),
            gpu: self.info.kind == WorkerKind::Gpu,
            device: self.info.device.clone(),
            f64: self.info.f64,
            adapter: self.info.adapter.clone(),
            lost: locked(&self.lost).clone(),
            load: self.supervision.load() as u32,
            filters: self.filters.load(Ordering::Relaxed),
            filter_bytes: count(&self.filter_bytes),
            done: count(&self.done),
            cancelled: count(&self.cancelled),
            failed: count(&self.failed),
        }
    }

    pub(super) fn busy(&self) -> Duration {
        Duration::from_micros(self.busy_us.load(Ordering::Relaxed))
    }

    /// Whether a task was completed within the last `limit`.
    pub(super) fn worked_within(&self, limit: Duration) -> bool {
        locked(&self.last_done).is_some_and(|last| last.elapsed() < limit)
    }
}

/// The dispatcher's handle of a device.
pub(super) struct Device {
    jobs: Arc<Sender<Job>>,
    queue: Receiver<Job>,
    common: Common,
    owner: Arc<DeviceOwner>,
    pub(super) stats: Arc<Stats>,
}

/// State that the device's thread shares with the thread that opens the device again.
struct DeviceOwner {
    stats: Arc<Stats>,
    /// The device's thread ends when the last sender is gone.
    jobs: Weak<Sender<Job>>,
    tell: Box<dyn Fn(Told) + Send + Sync>,
}

impl Owner for DeviceOwner {
    fn supervision(&self) -> &Supervision {
        &self.stats.supervision
    }

    fn lost(&self, cause: &str) {
        *locked(&self.stats.lost) = Some(cause.to_owned());
        (self.tell)(Told::Lost);
    }

    fn returned(&self, live: Live) {
        if let Some(jobs) = self.jobs.upgrade() {
            // The device held the other end of this sender.
            let _ = jobs.send(Job::Return(live));
        }
    }
}

/// State shared by all devices of a process.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) tasks: Tasks,
    pub(super) results: Results,
    pub(super) slabs: Slabs,
    pub(super) cache: Option<Cache>,
    pub(super) spare: Buffers,
    pub(super) budget: Budget,
}

impl Common {
    /// The state of a process without tasks.
    pub(super) fn new(budget: &Budget, cache: Option<Cache>) -> Self {
        let spare = Buffers::new(MOST_SPARE, MOST_SPARE_BYTES);
        let slabs = Slabs::new(spare.clone());
        let results = Results::new(budget.clone(), slabs.clone());
        Self { tasks: Tasks::default(), results, slabs, cache, spare, budget: budget.clone() }
    }
}

impl Device {
    /// Starts the thread. `tell` is called with every message for the dispatcher.
    pub(super) fn start(
        worker: Box<dyn Worker>,
        common: Common,
        tell: impl Fn(Told) + Send + Sync + 'static,
    ) -> Result<Self> {
        let info = worker.info();
        let closing = CancelToken::new();
        let stats = Arc::new(Stats {
            supervision: Supervision::new(info.name.clone(), worker.respawn(), BACKOFF, closing),
            info,
            lost: Mutex::default(),
            filters: AtomicU32::default(),
            filter_bytes: AtomicU64::default(),
            done: AtomicU64::default(),
            cancelled: AtomicU64::default(),
            failed: AtomicU64::default(),
            busy_us: AtomicU64::default(),
            last_done: Mutex::default(),
        });
        let (jobs, queue) = unbounded();
        let jobs = Arc::new(jobs);
        let (of_stats, to_jobs) = (Arc::clone(&stats), Arc::downgrade(&jobs));
        let owner = Arc::new(DeviceOwner { stats: of_stats, jobs: to_jobs, tell: Box::new(tell) });
        let device = Self { jobs, queue, common, owner: Arc::clone(&owner), stats };
        device.start_thread(Supervised::new(owner, Ok(worker)))?;
        Ok(device)
    }

    fn start_thread(&self, supervised: Supervised<DeviceOwner>) -> Result<()> {
        let name = &self.stats.info.name;
        let (stats, common, queue) = (Arc::clone(&self.stats), self.common.clone(), self.queue.clone());
        let owner = Arc::clone(&self.owner);
        let copies = Copies::new(MOST_COPIES);
        let (held, parts) = (HashMap::new(), HashMap::new());
        let thread = Thread { supervised, owner, stats, held, parts, next_key: 0, common, copies };
        let started =
            std::thread::Builder::new().name(format!("fcdcc {name}")).spawn(move || thread.serve(&queue));
        started.map(drop).map_err(|e| Error::WorkerLost {
            worker: name.clone(),
            cause: format!("no thread could be started for it: {e}"),
        })
    }

    /// The queue of its jobs.
    pub(super) fn jobs(&self) -> Arc<Sender<Job>> {
        Arc::clone(&self.jobs)
    }

    /// Queues a job. A device that still works on a task long after that was cancelled is abandoned with its thread.
    pub(super) fn queue(&self, job: Job) {
        if matches!(job, Job::Execute(_) | Job::RunPart(_)) {
            let supervision = &self.stats.supervision;
            let hung = (supervision.load() > 0).then(|| abandon_if_hung(&self.owner, HANG_GRACE)).flatten();
            if let Some(Err(error)) = hung.map(|supervised| self.start_thread(supervised)) {
                tracing::warn!(%error, "gone for good");
            }
            supervision.count_task();
        }
        // This device holds the other end too.
        let _ = self.jobs.send(job);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stats.supervision.closing().cancel();
    }
}

struct Thread {
    supervised: Supervised<DeviceOwner>,
    owner: Arc<DeviceOwner>,
    stats: Arc<Stats>,
    held: HashMap<ContentId, (FilterKey, DType)>,
    parts: HashMap<ContentId, PartKey>,
    next_key: u64,
    common: Common,
    copies: Copies,
}

impl Thread {
    fn serve(mut self, queue: &Receiver<Job>) {
        self.supervised.reopen_if_lost();
        while self.supervised.serves() {
            let Ok(job) = queue.recv() else { return };
            self.carry_out(job);
        }
    }

    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Install(filters) => {
                let content = filters.content;
                let held = self.install(*filters);
                self.tell_installed(content, held);
            }
            Job::Share(sharing) => {
                let held = self.share(&sharing);
                self.tell_installed(sharing.content, held);
            }
            Job::Remove(content) => {
                if let Some((key, _)) = self.held.remove(&content) {
                    self.supervised.remove(key);
                }
            }
            Job::Execute(task) => self.execute(task),
            Job::InstallPart(part) => self.install_part(*part),
            Job::RemovePart(content) => self.remove_part(content),
            Job::RunPart(job) => self.run_part(*job),
            Job::Probe(answer) => {
                let result = self.supervised.probe(DType::F32, &CancelToken::new());
                // The receiver may have stopped waiting.
                let _ = answer.send(result.map_err(|e| e.to_string()));
            }
            Job::Return(live) => {
                self.held.clear();
                self.parts.clear();
                self.supervised.take_back(live);
                *locked(&self.stats.lost) = None;
            }
        }
    }

    fn tell_installed(&self, content: ContentId, held: Result<bool>) {
        let installed = match held {
            Ok(true) => Installed::Held,
            Ok(false) => Installed::Missing,
            Err(error) => Installed::Refused(refusal(&error), error.to_string()),
        };
        (self.owner.tell)(Told::Installed(content, installed));
    }

    /// Uses filters for a subtask of another shape; false where the worker cannot, or does not hold them.
    fn share(&mut self, sharing: &Sharing) -> Result<bool> {
        let Some((same, dtype)) = self.held.get(&sharing.of).copied() else { return Ok(false) };
        let key = self.new_key();
        let shared = self.supervised.share(key, same, &sharing.shape)?;
        if shared {
            self.held.insert(sharing.content, (key, dtype));
        }
        Ok(shared)
    }

    fn new_key(&mut self) -> FilterKey {
        self.next_key += 1;
        FilterKey { layer: self.next_key, subtask: SubtaskId(0) }
    }

    /// Installs filters; false where the cache did not have them.
    fn install(&mut self, filters: Filters) -> Result<bool> {
        let Filters { content, spec, shape, values } = filters;
        let sent = values.is_some();
        let cached = || -> Option<Values> {
            let cache = self.common.cache.as_ref()?;
            let values = cache.read(content, spec.dtype, shape.filter_elems()).ok()?;
            let right = ContentId::of(&spec, values.as_bytes()) == content;
            if !right {
                cache.remove(content);
            }
            right.then_some(values)
        };
        let values = match values {
            Some(values) => values,
            None => match cached() {
                Some(values) => values,
                None => return Ok(false),
            },
        };
        let key = self.new_key();
        let keep = self.common.cache.as_ref().filter(|_| sent).and_then(|cache| {
            let room = self.common.budget.reserve(values.size_bytes() as u64)?;
            Some((cache.clone(), values.clone(), room))
        });
        self.supervised.install(key, &shape, values)?;
        self.held.insert(content, (key, spec.dtype));
        if let Some((cache, values, room)) = keep {
            cache.keep(content, Box::new(bytes_of(values)), room);
        }
        Ok(true)
    }

    fn execute(&mut self, job: TaskJob) {
        let started = Instant::now();
        let result = self.compute(&job);
        let TaskJob { content, slabs, answering: Answering { key, asker, outbox, .. }, .. } = job;
        // Without other tasks that share them, their memory is free from here on.
        drop(slabs);
        self.common.tasks.end(key);
        let stats = &self.stats;
        stats.busy_us.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        match result {
            Ok(()) => {
                stats.done.fetch_add(1, Ordering::Relaxed);
                *locked(&stats.last_done) = Some(Instant::now());
                outbox.say(&asker.current(), Answer::Done);
            }
            Err(why) => {
                let (why, text) = why.unwrap_or_else(|| self.missing("filters", content));
                let counter = if why == Refusal::Cancelled { &stats.cancelled } else { &stats.failed };
                counter.fetch_add(1, Ordering::Relaxed);
                self.common.results.forget(key.0, key.1);
                outbox.refuse(&asker.current(), why, text);
            }
        }
    }

    /// Computes a task and sends its results; an error without a reason where the filters are not held.
    fn compute(&mut self, job: &TaskJob) -> Result<(), Option<(Refusal, String)>> {
        let Some((filters, dtype)) = self.held.get(&job.content).copied() else {
            self.stats.supervision.end_tasks(1);
            return Err(None);
        };
        let (results, copies) = (self.common.results.clone(), &mut self.copies);
        let mut unkept = None;
        let emit = &mut |index: usize, values: Values| {
            if let Err(cause) = job.answering.send(&results, copies, index, values) {
                unkept = Some(cause);
            }
        };
        let order = job.order.as_deref().map_or(Order::All, Order::Each);
        let ran = self.supervised.guarded(&job.cancel, 1, |live| {
            let slabs = &*job.slabs.values;
            if slabs.dtype() == dtype {
                let task = Task::new(filters, slabs, &job.cancel).with_order(order);
                let phases = &job.answering.phases;
                phases.enter(Phase::Compute);
                live.worker.execute(Task { phases: Some(phases), ..task }, emit)
            } else {
                let help = "send the filters' type";
                Err(Error::mismatch("element type of the slabs", slabs.dtype(), dtype, help))
            }
        });
        match (ran, unkept) {
            (Err(error), _) => Err(Some((refusal(&error), error.to_string()))),
            (Ok(()), Some(cause)) => Err(Some((Refusal::Memory, cause))),
            (Ok(()), None) => Ok(()),
        }
    }

    /// Why filters or a part are not held.
    fn missing(&self, what: &str, content: ContentId) -> (Refusal, String) {
        let lost = locked(&self.stats.lost).clone();
        lost.map_or_else(
            || (Refusal::NotHeld, format!("{what} {content} not held")),
            |cause| (Refusal::DeviceLost, cause),
        )
    }
}

fn refusal(error: &Error) -> Refusal {
    match error {
        Error::WorkerLost { .. } => Refusal::DeviceLost,
        Error::Cancelled => Refusal::Cancelled,
        Error::InvalidParameter { .. } | Error::Mismatch { .. } => Refusal::Malformed,
        _ => Refusal::Failed,
    }
}
