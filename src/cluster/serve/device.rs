//! One device of a worker process: a thread that owns a [`Worker`] and runs the dispatcher's jobs in order.
//!
//! The device thread reopens a lost device in the background. The filters are lost with the device; the dispatcher is
//! notified of that, so that masters send them again.
//!
//! Invariant: every job is answered, whatever becomes of the device.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::super::budget::{Budget, Reservation};
use super::super::link::{Payload, bytes_of};
use super::super::wire::{Answer, ContentId, DeviceInfo, MasterId, Refusal, Spec};
use super::cache::Cache;
use super::outbox::{Outbox, Results};
use super::tasks::{Asker, Tasks};
use crate::array::{Buffers, DType, Values};
use crate::error::{Error, Result, panic_text};
use crate::worker::{
    CancelToken, FilterKey, Order, Probe, Respawn, SubtaskShape, Task, Worker, WorkerInfo, WorkerKind,
};

/// Pause before a lost device is reopened; it doubles with each failure.
const BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A job for a device.
pub(super) enum Job {
    Install(Box<Filters>),
    Remove(ContentId),
    Execute(TaskJob),
    /// Compute a subtask whose answer is known.
    Probe(Sender<Result<(), String>>),
}

/// Filters to install.
pub(super) struct Filters {
    pub(super) content: ContentId,
    pub(super) spec: Spec,
    pub(super) shape: SubtaskShape,
    /// The elements, already checked; `None` where they are in the cache.
    pub(super) values: Option<Values>,
}

/// One task.
pub(super) struct TaskJob {
    pub(super) key: (MasterId, u64),
    pub(super) content: ContentId,
    pub(super) order: Option<Vec<usize>>,
    pub(super) slabs: Values,
    /// Memory of the slabs, released together with them.
    pub(super) reservation: Reservation,
    pub(super) inline_bytes: usize,
    pub(super) cancel: CancelToken,
    pub(super) asker: Asker,
    pub(super) outbox: Outbox,
}

/// A message from a device to the dispatcher.
pub(super) enum Told {
    /// The outcome of installing filters. `Missing`: the cache did not have them after all.
    Installed(ContentId, Installed),
    /// The device is lost, and its filters with it.
    Lost,
}

pub(super) enum Installed {
    Held,
    Missing,
    Refused(Refusal, String),
}

/// State of a device that others can read while the device thread owns the worker.
#[derive(Debug)]
pub(super) struct Stats {
    info: WorkerInfo,
    lost: Mutex<Option<String>>,
    load: AtomicU32,
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
            load: self.load.load(Ordering::Relaxed),
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
    jobs: Sender<Job>,
    pub(super) stats: Arc<Stats>,
}

/// State shared by all devices of a process.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) tasks: Tasks,
    pub(super) results: Results,
    pub(super) cache: Option<Cache>,
    pub(super) spare: Buffers,
    pub(super) budget: Budget,
}

impl Device {
    /// Starts the thread. `tell` is called with every message for the dispatcher.
    pub(super) fn start(
        worker: Box<dyn Worker>,
        common: Common,
        tell: impl Fn(Told) + Send + 'static,
    ) -> Result<Self> {
        let info = worker.info();
        let name = info.name.clone();
        let stats = Arc::new(Stats {
            info,
            lost: Mutex::default(),
            load: AtomicU32::default(),
            filters: AtomicU32::default(),
            filter_bytes: AtomicU64::default(),
            done: AtomicU64::default(),
            cancelled: AtomicU64::default(),
            failed: AtomicU64::default(),
            busy_us: AtomicU64::default(),
            last_done: Mutex::default(),
        });
        let (jobs, queue) = unbounded();
        let thread = Thread {
            respawn: worker.respawn(),
            worker: Some(worker),
            stats: Arc::clone(&stats),
            held: HashMap::new(),
            next_key: 0,
            common,
            tell: Box::new(tell),
        };
        let started =
            std::thread::Builder::new().name(format!("fcdcc {name}")).spawn(move || thread.serve(&queue));
        match started {
            Ok(_) => Ok(Self { jobs, stats }),
            Err(e) => Err(Error::WorkerLost {
                worker: name,
                cause: format!("no thread could be started for it: {e}"),
            }),
        }
    }

    /// The queue of its jobs.
    pub(super) fn jobs(&self) -> Sender<Job> {
        self.jobs.clone()
    }

    /// Queues a job.
    pub(super) fn queue(&self, job: Job) {
        if matches!(job, Job::Execute(_)) {
            self.stats.load.fetch_add(1, Ordering::Relaxed);
        }
        // The thread ends only when this sender is gone.
        let _ = self.jobs.send(job);
    }
}

struct Thread {
    respawn: Option<Respawn>,
    /// `None` while it is lost.
    worker: Option<Box<dyn Worker>>,
    stats: Arc<Stats>,
    held: HashMap<ContentId, (FilterKey, DType)>,
    next_key: u64,
    common: Common,
    tell: Box<dyn Fn(Told) + Send>,
}

impl Thread {
    fn serve(mut self, queue: &Receiver<Job>) {
        let (mut pause, mut lost_at) = (BACKOFF, Instant::now());
        loop {
            let job = if self.worker.is_some() || self.respawn.is_none() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(pause.saturating_sub(lost_at.elapsed()))
            };
            let alive = self.worker.is_some();
            match job {
                Ok(job) => self.carry_out(job),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if self.reopen() {
                        pause = BACKOFF;
                    } else {
                        (pause, lost_at) = ((pause * 2).min(MAX_BACKOFF), Instant::now());
                    }
                }
            }
            if alive && self.worker.is_none() {
                lost_at = Instant::now();
            }
        }
    }

    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Install(filters) => {
                let content = filters.content;
                let installed = match self.install(*filters) {
                    Ok(true) => Installed::Held,
                    Ok(false) => Installed::Missing,
                    Err(error) => Installed::Refused(refusal(&error), error.to_string()),
                };
                (self.tell)(Told::Installed(content, installed));
            }
            Job::Remove(content) => {
                if let Some((key, _)) = self.held.remove(&content) {
                    // An error means that the device is lost, and its filters with it.
                    let _ = self.guarded(|worker| {
                        worker.remove(key);
                        Ok(())
                    });
                }
            }
            Job::Execute(task) => self.execute(task),
            Job::Probe(answer) => {
                let result = self.guarded(|worker| Probe::new(DType::F32).check(worker, &CancelToken::new()));
                // The receiver may have stopped waiting.
                let _ = answer.send(result.map_err(|e| e.to_string()));
            }
        }
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
        let key = FilterKey { layer: self.next_key, subtask: 0 };
        self.next_key += 1;
        let keep = self.common.cache.as_ref().filter(|_| sent).and_then(|cache| {
            let room = self.common.budget.reserve(values.size_bytes() as u64)?;
            Some((cache.clone(), values.clone(), room))
        });
        self.guarded(|worker| worker.install(key, &shape, values))?;
        self.held.insert(content, (key, spec.dtype));
        if let Some((cache, values, room)) = keep {
            cache.keep(content, values, room);
        }
        Ok(true)
    }

    fn execute(&mut self, job: TaskJob) {
        let started = Instant::now();
        let TaskJob { key, content, order, slabs, reservation, inline_bytes, cancel, asker, outbox } = job;
        let slabs = self.common.spare.adopt(slabs);
        let result = match self.held.get(&content).copied() {
            None => Err(None),
            Some((filters, dtype)) => {
                let results = self.common.results.clone();
                let mut unkept = None;
                let emit = &mut |index: usize, values: Values| {
                    let bytes = bytes_of(values);
                    // The cast is safe: `Spec::subtask` bounds the number of sub-results.
                    let index = index as u32;
                    if bytes.len() <= inline_bytes {
                        let payload = Payload::from(bytes);
                        let crc = payload.crc();
                        outbox.send(&asker.current(), Answer::Part { index, crc }, payload);
                    } else {
                        let size = bytes.len() as u64;
                        match results.keep((key.0, key.1, index), bytes) {
                            Ok(()) => outbox.say(&asker.current(), Answer::Ready { index, bytes: size }),
                            Err(cause) => unkept = Some(cause),
                        }
                    }
                };
                let order = order.as_deref().map_or(Order::All, Order::Each);
                let ran = self.guarded(|worker| {
                    if slabs.dtype() == dtype {
                        worker.execute(Task::new(filters, &slabs, &cancel).with_order(order), emit)
                    } else {
                        Err(Error::mismatch(
                            "element type of the slabs",
                            slabs.dtype(),
                            dtype,
                            "send the filters' type",
                        ))
                    }
                });
                match (ran, unkept) {
                    (Err(error), _) => Err(Some((refusal(&error), error.to_string()))),
                    (Ok(()), Some(cause)) => Err(Some((Refusal::Memory, cause))),
                    (Ok(()), None) => Ok(()),
                }
            }
        };
        drop(reservation);
        self.common.tasks.end(key);
        let stats = &self.stats;
        stats.busy_us.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        stats.load.fetch_sub(1, Ordering::Relaxed);
        match result {
            Ok(()) => {
                stats.done.fetch_add(1, Ordering::Relaxed);
                *locked(&stats.last_done) = Some(Instant::now());
                outbox.say(&asker.current(), Answer::Done);
            }
            Err(why) => {
                let (why, text) = why.unwrap_or_else(|| {
                    let lost = locked(&stats.lost).clone();
                    lost.map_or_else(
                        || (Refusal::NotHeld, format!("filters {content} are not held")),
                        |cause| (Refusal::DeviceLost, cause),
                    )
                });
                let counter = if why == Refusal::Cancelled { &stats.cancelled } else { &stats.failed };
                counter.fetch_add(1, Ordering::Relaxed);
                self.common.results.forget(key.0, key.1);
                outbox.refuse(&asker.current(), why, text);
            }
        }
    }

    /// Calls the worker, treats a panic as its loss, and drops a lost worker.
    fn guarded(&mut self, call: impl FnOnce(&mut dyn Worker) -> Result<()>) -> Result<()> {
        let name = self.stats.info.name.clone();
        let Some(worker) = self.worker.as_mut() else {
            let cause = locked(&self.stats.lost).clone().unwrap_or_default();
            return Err(Error::WorkerLost { worker: name, cause });
        };
        let result = catch_unwind(AssertUnwindSafe(|| call(worker.as_mut()))).unwrap_or_else(|panic| {
            Err(Error::WorkerLost {
                worker: name.clone(),
                cause: format!("it panicked: {}", panic_text(&*panic)),
            })
        });
        if let Err(Error::WorkerLost { cause, .. }) = &result {
            tracing::warn!(device = name, cause, "lost");
            *locked(&self.stats.lost) = Some(cause.clone());
            self.held.clear();
            self.let_go();
            (self.tell)(Told::Lost);
        }
        result
    }

    /// Drops the worker on a separate thread, since dropping a hung device can block.
    fn let_go(&mut self) {
        if let Some(gone) = self.worker.take() {
            let gone = Mutex::new(gone);
            let reaper = std::thread::Builder::new().name("fcdcc reaper".to_owned());
            // Where no thread can be started it is dropped here.
            let _ = reaper.spawn(move || drop(gone));
        }
    }

    fn reopen(&mut self) -> bool {
        let Some(respawn) = self.respawn.clone() else { return false };
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let mut worker = respawn(&CancelToken::new())?;
            Probe::new(DType::F32).check(worker.as_mut(), &CancelToken::new())?;
            Ok::<_, Error>(worker)
        }));
        match opened {
            Ok(Ok(worker)) => {
                tracing::info!(device = self.stats.info.name, "back");
                self.worker = Some(worker);
                *locked(&self.stats.lost) = None;
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(device = self.stats.info.name, %error, "not back yet");
                false
            }
            Err(panic) => {
                tracing::warn!(device = self.stats.info.name, cause = panic_text(&*panic), "not back yet");
                false
            }
        }
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
