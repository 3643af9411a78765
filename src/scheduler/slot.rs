//! State shared by a pool, the thread of a worker and the thread that opens a lost worker again.
//!
//! Invariant: every queued command is answered, by the thread that serves the worker or when it is abandoned.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::health::{Health, HealthOptions, State};
use super::mailbox::Mailbox;
use super::part_task::{PartInstalled, QueuedPart};
use super::speed::Speed;
use crate::array::{Buffers, DType, Pooled, Values};
use crate::coding::{Sketch, Sketcher};
use crate::error::{Error, Result};
use crate::ids::{SubtaskId, WorkerId};
use crate::sync::locked;
use crate::worker::{
    CancelToken, FilterKey, HANG_GRACE, Live, Owner, PartFile, PartKey, PhaseClock, PhaseTimes, Presence,
    SharedSlabs, SubtaskShape, Supervision, Worker, WorkerInfo,
};

/// From this many tasks on, a worker's queue is searched for cancelled ones.
pub(super) const BACKLOG: usize = 16;

/// Options of a pool.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use fcdcc::{CpuWorker, Pool, PoolOptions};
///
/// // Replaces the thread of a worker that hangs for five seconds.
/// let options = PoolOptions { hang_grace: Duration::from_secs(5), ..PoolOptions::default() };
/// let pool = Pool::with_options(CpuWorker::fleet(2), options)?;
/// assert_eq!(pool.len(), 2);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// use std::time::Duration;
///
/// use fcdcc::PoolOptions;
/// use fcdcc::scheduler::HealthOptions;
///
/// // A worker that gave a wrong result gets no work for ten seconds.
/// let health = HealthOptions { backoff: Duration::from_secs(10), ..HealthOptions::default() };
/// let options = PoolOptions { health, ..PoolOptions::default() };
/// assert_eq!(options.health.backoff.as_secs(), 10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolOptions {
    /// Quarantine and probation.
    pub health: HealthOptions,
    /// A worker that is still busy this long after its task was cancelled is abandoned.
    pub hang_grace: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { health: HealthOptions::default(), hang_grace: HANG_GRACE }
    }
}

/// Re-encodes a layer's filters on demand.
pub(crate) trait FilterSource: Send + Sync {
    /// The element type of the filters.
    fn dtype(&self) -> DType;

    /// The coded filters of one subtask, as [`Worker::install`] takes them.
    fn coded_filters(&self, subtask: SubtaskId) -> Values;

    /// The number of an earlier layer with the same coded filters, which workers may share.
    fn same_filters(&self) -> Option<u64> {
        None
    }
}

/// The layers in use, by id.
pub(super) type Sources = Mutex<HashMap<u64, Weak<dyn FilterSource>>>;

/// The layers whose filters a worker could not install.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    pub(super) layers: BTreeSet<u64>,
    pub(super) cause: String,
}

/// State shared by the pool, its threads and the threads that replace lost workers.
pub(super) struct Shared {
    pub(super) options: PoolOptions,
    pub(super) started: Instant,
    pub(super) sources: Sources,
    /// Cancelled when the pool is dropped.
    pub(super) closing: CancelToken,
    /// Counts events that may change an assignment: losses, returns, quarantines.
    pub(super) changes: AtomicU64,
    /// Number of times that a worker returned a wrong result.
    pub(super) caught: AtomicU64,
    /// Layers whose filters each worker could not install, and why not the first time.
    pub(super) refusals: Mutex<BTreeMap<WorkerId, Refusals>>,
    /// Cores of this machine.
    pub(super) cores: usize,
}

/// State of one worker that the rest of the pool can access while the worker's thread owns it.
pub(super) struct Slot {
    pub(super) shared: Arc<Shared>,
    pub(super) supervision: Supervision,
    /// The worker's own description, under its name in the pool.
    info: Mutex<Arc<WorkerInfo>>,
    pub(super) health: Mutex<Health>,
    /// Whether the worker's health allows tasks.
    usable: AtomicBool,
    /// Whether the worker's machine answers; `None` for a worker that cannot fall silent.
    presence: Mutex<Option<Presence>>,
    pub(super) speed: Mutex<Speed>,
    /// Bits of the current estimate of its speed, 0 while there is none.
    rate: AtomicU64,
    /// Filters and parts of models queued or being installed.
    pub(super) installing: AtomicUsize,
    /// The filters that the worker should hold, also while it is lost.
    pub(super) wanted: Mutex<HashMap<FilterKey, Arc<SubtaskShape>>>,
    /// The parts of models that it should hold, and whether it does.
    pub(super) parts: Mutex<HashMap<PartKey, SlotPart>>,
    /// Command queue of the worker's thread. Closed when the pool is dropped, or where there is no thread.
    pub(super) inbox: Mailbox<Command>,
    /// Replaced when the worker is abandoned.
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

/// A part of a model for one worker.
pub(super) struct SlotPart {
    pub(super) file: PartFile,
    /// Whether the worker has it now.
    pub(super) held: bool,
}

pub(super) enum Command {
    Install(InstallRequest, Sender<Installed>, WorkerId),
    Remove(FilterKey),
    Execute(QueuedTask),
    InstallPart(PartKey, PartFile, Sender<PartInstalled>, WorkerId),
    RemovePart(PartKey),
    RunPart(QueuedPart),
    /// A worker that was opened again.
    Return(Live),
    /// The worker's health changed.
    Wake,
}

/// Coded filters to install on a worker.
pub(crate) struct InstallRequest {
    pub(crate) key: FilterKey,
    pub(crate) shape: Arc<SubtaskShape>,
    pub(crate) banks: Banks,
}

/// The coded filters of an [`InstallRequest`].
pub(crate) enum Banks {
    Coded(Values),
    /// Those of this layer: shared with another layer where the worker can, otherwise encoded on its thread.
    Of(Arc<dyn FilterSource>),
}

impl Banks {
    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::Coded(values) => values.dtype(),
            Self::Of(source) => source.dtype(),
        }
    }
}

/// The key under which a worker may hold the same filters already.
pub(super) fn same_filters(source: &dyn FilterSource, key: FilterKey) -> Option<FilterKey> {
    source.same_filters().map(|layer| FilterKey { layer, ..key })
}

/// The answer to an [`InstallRequest`].
pub(crate) struct Installed {
    pub(crate) key: FilterKey,
    pub(crate) worker: WorkerId,
    pub(crate) result: Result<()>,
}

/// One subtask for a worker to execute.
pub(crate) struct QueuedTask {
    pub(crate) key: FilterKey,
    pub(crate) shape: Arc<SubtaskShape>,
    pub(crate) slabs: Arc<Pooled>,
    /// Identity of the slabs within the run.
    pub(crate) shared: Arc<SharedSlabs>,
    /// The sub-results wanted, one by one in this order; `None`: all, in any order.
    pub(crate) order: Option<Vec<usize>>,
    /// Whether a NaN or infinity in a sub-result can only be a fault.
    pub(crate) finite: bool,
    /// Computes the sketches for an audit.
    pub(crate) sketcher: Option<Arc<Sketcher>>,
    pub(crate) cancel: CancelToken,
    pub(crate) attempt: usize,
    pub(crate) replies: Arc<Replies>,
    /// Where buffers for results come from, and return to.
    pub(crate) buffers: Buffers,
    /// Measures the phases of the attempt from its dispatch on.
    pub(crate) phases: Arc<PhaseClock>,
}

/// The reply queue of a job. Closed when the job is over.
pub(crate) type Replies = Mailbox<Reply>;

/// A reply to one attempt.
pub(crate) struct Reply {
    pub(crate) attempt: usize,
    pub(crate) at: Instant,
    /// The phases of the attempt up to `at`.
    pub(crate) phases: PhaseTimes,
    pub(crate) what: ReplyKind,
}

pub(crate) enum ReplyKind {
    SubResult {
        index: usize,
        values: Pooled,
        sketch: Option<Box<Sketch>>,
    },
    /// A sub-result of the wrong size or with a NaN or infinity in it.
    Unusable {
        cause: String,
    },
    Finished,
    Failed(Error),
}

impl QueuedTask {
    pub(super) fn reply(&self, what: ReplyKind) {
        self.reply_at(Instant::now(), what);
    }

    pub(super) fn reply_at(&self, at: Instant, what: ReplyKind) {
        // A closed mailbox means that the job is over: its token is cancelled too, so the worker stops.
        let _ = self.replies.post(Reply { attempt: self.attempt, at, phases: self.phases.at(at), what });
    }

    /// Checks a sub-result and computes its sketch.
    ///
    /// # Errors
    /// Why it cannot be part of an exact output: its size, its element type, or a NaN or infinity.
    pub(super) fn inspect(&self, values: &Values) -> std::result::Result<Option<Box<Sketch>>, String> {
        let expected = self.shape.conv.output_elems();
        if values.len() != expected || values.dtype() != self.slabs.dtype() {
            return Err(format!(
                "returned {} {} elements where {expected} {} were expected",
                values.len(),
                values.dtype(),
                self.slabs.dtype()
            ));
        }
        if let Some((index, value)) = values.first_non_finite().filter(|_| self.finite) {
            return Err(format!("returned {value} at element {index}"));
        }
        Ok(self.sketcher.as_ref().map(|sketcher| match values {
            Values::F32(values) => Box::new(sketcher.sketch(values)),
            Values::F64(values) => Box::new(sketcher.sketch(values)),
        }))
    }

    pub(super) fn fail(&self, error: Error) {
        self.reply(ReplyKind::Failed(error));
    }
}

impl Slot {
    pub(super) fn new(shared: &Arc<Shared>, info: WorkerInfo, worker: &dyn Worker) -> Self {
        let (health, closing) = (shared.options.health, shared.closing.clone());
        Self {
            shared: Arc::clone(shared),
            supervision: Supervision::new(info.name.clone(), worker.respawn(), health.pauses(), closing),
            info: Mutex::new(Arc::new(info)),
            presence: Mutex::new(worker.presence()),
            health: Mutex::new(Health::with_options(health)),
            usable: AtomicBool::new(true),
            speed: Mutex::default(),
            rate: AtomicU64::new(0),
            installing: AtomicUsize::new(0),
            wanted: Mutex::default(),
            parts: Mutex::default(),
            inbox: Mailbox::new(),
            thread: Mutex::new(None),
        }
    }

    /// The name in its [`WorkerInfo`], made unique.
    pub(super) fn name(&self) -> &str {
        self.supervision.name()
    }

    pub(super) fn info(&self) -> Arc<WorkerInfo> {
        Arc::clone(&locked(&self.info))
    }

    /// Another worker takes the place of this one.
    pub(super) fn succeed(&self, worker: &dyn Worker) {
        let mut own = locked(&self.info);
        *own = Arc::new(WorkerInfo { name: own.name.clone(), ..worker.info() });
        drop(own);
        *locked(&self.presence) = worker.presence();
    }

    /// Whether the worker's machine does not answer at present; `None` for a worker that cannot fall silent.
    pub(super) fn is_silent(&self) -> Option<bool> {
        locked(&self.presence).as_ref().map(Presence::is_silent)
    }

    pub(super) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    pub(super) fn rate(&self) -> Option<f64> {
        Some(f64::from_bits(self.rate.load(Ordering::Relaxed))).filter(|rate| *rate > 0.0)
    }

    /// The measured speed, or without one the `typical` speed, limited by attempts that were cut short.
    pub(super) fn rate_or(&self, typical: f64) -> f64 {
        locked(&self.speed).estimate_or(typical)
    }

    /// Changes the health, with the pool's present time.
    pub(super) fn update(&self, change: impl FnOnce(&mut Health, Duration)) {
        let mut health = locked(&self.health);
        change(&mut health, self.shared.started.elapsed());
        let usable = health.usable();
        if self.usable.swap(usable, Ordering::Relaxed) != usable {
            self.shared.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The error with which the worker's tasks are refused.
    pub(super) fn refusal(&self) -> Error {
        let health = locked(&self.health);
        let cause = health.cause().unwrap_or("it has not been qualified yet").to_owned();
        let worker = self.name().to_owned();
        match health.state() {
            State::Lost => Error::WorkerLost { worker, cause },
            state => Error::WorkerFailed { worker, cause: format!("{}: {cause}", state.text()) },
        }
    }

    /// Queues a command. It is declined if no thread will take it, because there is none or the pool is being dropped.
    pub(super) fn send(&self, command: Command) {
        if let Err(command) = self.inbox.post(command) {
            self.decline(command);
        }
    }

    /// Answers all queued commands.
    pub(super) fn decline_all(&self) {
        self.inbox.drain().into_iter().for_each(|command| self.decline(command));
    }

    fn decline(&self, command: Command) {
        match command {
            Command::Execute(task) => {
                self.supervision.end_tasks(1);
                task.fail(self.refusal());
            }
            Command::Install(request, reply, worker) => {
                self.installing.fetch_sub(1, Ordering::Relaxed);
                // The layer may have stopped waiting.
                let _ = reply.send(Installed { key: request.key, worker, result: Err(self.refusal()) });
            }
            Command::RunPart(part) => {
                self.supervision.end_tasks(1);
                part.fail(self.refusal());
            }
            Command::InstallPart(_, _, reply, worker) => {
                self.installing.fetch_sub(1, Ordering::Relaxed);
                // The receiver may have stopped waiting.
                let _ = reply.send(PartInstalled { worker, result: Err(self.refusal()) });
            }
            Command::Remove(_) | Command::RemovePart(_) | Command::Return(_) | Command::Wake => {}
        }
    }

    /// Drops queued tasks that are cancelled, with their slabs or inputs.
    pub(super) fn forget_cancelled(&self) {
        let wanted = |command: &Command| match command {
            Command::Execute(task) => !task.cancel.is_cancelled(),
            Command::RunPart(part) => !part.cancel.is_cancelled(),
            _ => true,
        };
        self.supervision.end_tasks(self.inbox.retain(wanted));
    }

    /// The filters that the worker should hold beside those it `holds`, with the layers that encode them.
    pub(super) fn missing(
        &self,
        holds: &HashSet<FilterKey>,
    ) -> Vec<(FilterKey, Arc<SubtaskShape>, Arc<dyn FilterSource>)> {
        let wanted = locked(&self.wanted).clone();
        let sources = locked(&self.shared.sources);
        let missing = wanted.into_iter().filter(|(key, _)| !holds.contains(key));
        let of_layers = missing.filter_map(|(key, shape)| {
            let source = sources.get(&key.layer).and_then(Weak::upgrade)?;
            Some((key, shape, source))
        });
        let mut missing: Vec<_> = of_layers.collect();
        // Layers that share the filters of an earlier one come after it.
        missing.sort_unstable_by_key(|(key, ..)| (key.layer, key.subtask));
        missing
    }

    /// Gives a worker the parts that it should hold beside those it holds. It is no longer asked for those that it refuses.
    pub(super) fn equip_parts(&self, live: &mut Live) -> Result<()> {
        let wanted: Vec<_> =
            locked(&self.parts).iter().map(|(key, part)| (*key, part.file.clone())).collect();
        for (key, file) in wanted {
            if live.parts.contains(&key) {
                continue;
            }
            let result = live.install_part(key, &file);
            self.part_installed(key, result.as_ref());
            match result {
                Err(error @ Error::WorkerLost { .. }) => return Err(error),
                Err(error) => tracing::warn!(worker = self.name(), %error, "part not installed"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Records how the installation of a part ended: one that was refused is not wanted any more.
    pub(super) fn part_installed<T>(&self, key: PartKey, result: Result<T, &Error>) {
        let mut parts = locked(&self.parts);
        match result {
            Ok(_) => {
                if let Some(part) = parts.get_mut(&key) {
                    part.held = true;
                }
            }
            Err(Error::WorkerLost { .. }) => {}
            Err(_) => {
                parts.remove(&key);
            }
        }
    }

    /// Updates the estimate of the worker's speed.
    pub(super) fn measure(&self, observe: impl FnOnce(&mut Speed)) {
        let mut speed = locked(&self.speed);
        observe(&mut speed);
        self.rate.store(speed.estimate().unwrap_or(0.0).to_bits(), Ordering::Relaxed);
    }
}

impl Owner for Slot {
    fn supervision(&self) -> &Supervision {
        &self.supervision
    }

    fn lost(&self, cause: &str) {
        locked(&self.parts).values_mut().for_each(|part| part.held = false);
        self.update(|health, _| health.lost(cause.to_owned()));
    }

    fn equip(&self, live: &mut Live) -> Result<()> {
        for (key, shape, source) in self.missing(&live.holds) {
            live.qualify(source.dtype(), self.supervision.closing())?;
            let same = same_filters(source.as_ref(), key);
            match live.share_or_install(key, same, &shape, || source.coded_filters(key.subtask)) {
                Err(error @ Error::WorkerLost { .. }) => return Err(error),
                // It cannot hold these filters, but can still work.
                Err(error) => tracing::warn!(worker = self.name(), %error, "filters not installed"),
                Ok(()) => {}
            }
        }
        self.equip_parts(live)
    }

    fn returned(&self, live: Live) {
        // Dropped if the pool is being dropped.
        self.send(Command::Return(live));
    }
}
