//! State shared by a pool, the thread of a worker and the thread that replaces a lost worker.
//!
//! Invariant: the thread of an abandoned epoch cannot change this state.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::health::{Health, HealthOptions};
use super::mailbox::Mailbox;
use super::speed::Speed;
use crate::array::{Buffers, Pooled, Values};
use crate::coding::{Sketch, Sketcher};
use crate::error::{Error, Result};
use crate::worker::{CancelToken, FilterKey, SubtaskShape, Worker, WorkerInfo};

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
        Self { health: HealthOptions::default(), hang_grace: Duration::from_secs(20) }
    }
}

/// Re-encodes a layer's filters on demand.
pub(crate) trait FilterSource: Send + Sync {
    /// The coded filters of one subtask, as [`Worker::install`] takes them.
    fn coded_filters(&self, subtask: usize) -> Values;
}

/// The layers in use, by id.
pub(super) type Sources = Mutex<HashMap<u64, Weak<dyn FilterSource>>>;

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
    /// Cores of this machine.
    pub(super) cores: usize,
}

/// State of one worker that the rest of the pool can access while the worker's thread owns it.
pub(super) struct Status {
    /// The worker's own description, under its name in the pool.
    info: Mutex<Arc<WorkerInfo>>,
    pub(super) health: Mutex<Health>,
    /// Whether the worker's health allows tasks.
    usable: AtomicBool,
    pub(super) speed: Mutex<Speed>,
    /// Bits of the current estimate of its speed, 0 while there is none.
    rate: AtomicU64,
    /// Tasks queued or running.
    pub(super) load: AtomicUsize,
    /// Filters queued or being installed.
    pub(super) installing: AtomicUsize,
    /// The filters that the worker should hold, also while it is lost.
    pub(super) wanted: Mutex<HashMap<FilterKey, Arc<SubtaskShape>>>,
    /// Command queue of the worker's thread. Closed when the pool is dropped.
    inbox: Mutex<Arc<Mailbox<Command>>>,
    /// The present activity of the worker's thread.
    running: Mutex<Option<Running>>,
    /// Epoch of the thread that serves the worker; threads of earlier epochs have been abandoned.
    epoch: AtomicU64,
    /// Number of recent losses, and the time of the last one.
    losses: Mutex<(u32, Option<Instant>)>,
}

struct Running {
    cancel: CancelToken,
    /// When it was first found to be cancelled.
    cancelled: Option<Instant>,
}

pub(super) enum Command {
    Install(InstallRequest, Sender<Installed>, usize),
    Remove(FilterKey),
    Execute(QueuedTask),
    /// A respawned worker, with the filters it holds.
    Return(Box<dyn Worker>, HashSet<FilterKey>),
    /// The worker's health changed.
    Wake,
}

/// Coded filters to install on a worker.
pub(crate) struct InstallRequest {
    pub(crate) key: FilterKey,
    pub(crate) shape: Arc<SubtaskShape>,
    pub(crate) banks: Values,
}

/// The answer to an [`InstallRequest`].
pub(crate) struct Installed {
    pub(crate) key: FilterKey,
    pub(crate) worker: usize,
    pub(crate) result: Result<()>,
}

/// One subtask for a worker to execute.
pub(crate) struct QueuedTask {
    pub(crate) key: FilterKey,
    pub(crate) shape: Arc<SubtaskShape>,
    pub(crate) slabs: Arc<Pooled>,
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
}

/// The reply queue of a job. Closed when the job is over.
pub(crate) type Replies = Mailbox<Reply>;

/// A reply to one attempt.
pub(crate) struct Reply {
    pub(crate) attempt: usize,
    pub(crate) at: Instant,
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
        let _ = self.replies.post(Reply { attempt: self.attempt, at, what });
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

impl Status {
    pub(super) fn new(options: HealthOptions, info: WorkerInfo) -> Self {
        Self {
            info: Mutex::new(Arc::new(info)),
            health: Mutex::new(Health::with_options(options)),
            usable: AtomicBool::new(true),
            speed: Mutex::default(),
            rate: AtomicU64::new(0),
            load: AtomicUsize::new(0),
            installing: AtomicUsize::new(0),
            wanted: Mutex::default(),
            inbox: Mutex::new(Arc::new(Mailbox::new())),
            running: Mutex::new(None),
            epoch: AtomicU64::new(0),
            losses: Mutex::new((0, None)),
        }
    }

    pub(super) fn info(&self) -> Arc<WorkerInfo> {
        Arc::clone(&locked(&self.info))
    }

    /// Another worker takes the place of this one.
    pub(super) fn succeed(&self, info: WorkerInfo) {
        let mut own = locked(&self.info);
        *own = Arc::new(WorkerInfo { name: own.name.clone(), ..info });
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
    pub(super) fn update(&self, shared: &Shared, change: impl FnOnce(&mut Health, Duration)) {
        let mut health = locked(&self.health);
        change(&mut health, shared.started.elapsed());
        let usable = health.usable();
        if self.usable.swap(usable, Ordering::Relaxed) != usable {
            shared.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records a loss for `cause`. Losses further apart than `max_backoff` do not add up.
    pub(super) fn lose(&self, shared: &Shared, cause: &str) {
        let mut losses = locked(&self.losses);
        let recent = losses.1.is_some_and(|last| last.elapsed() < shared.options.health.max_backoff);
        *losses = (if recent { losses.0 + 1 } else { 1 }, Some(Instant::now()));
        drop(losses);
        self.update(shared, |health, _| health.lost(cause.to_owned()));
    }

    /// Number of recent losses.
    pub(super) fn recent_losses(&self) -> u32 {
        locked(&self.losses).0
    }

    /// The present command queue of the worker's thread.
    pub(super) fn inbox(&self) -> Arc<Mailbox<Command>> {
        Arc::clone(&locked(&self.inbox))
    }

    /// Queues a command; returns it if no thread will take it, because there is none or the pool is being dropped.
    pub(super) fn post(&self, command: Command) -> std::result::Result<(), Command> {
        locked(&self.inbox).post(command)
    }

    /// Subtracts `tasks` from the load. A task may be counted before its worker is abandoned and queued afterwards.
    fn lighten(&self, tasks: usize) {
        let less = |load: usize| Some(load.saturating_sub(tasks));
        // The closure never refuses.
        let _ = self.load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Drops queued tasks that are cancelled, with their slabs.
    pub(super) fn forget_cancelled(&self) {
        let wanted =
            |command: &Command| !matches!(command, Command::Execute(task) if task.cancel.is_cancelled());
        let dropped = locked(&self.inbox).retain(wanted);
        self.lighten(dropped);
    }

    /// Abandons the worker if its task was cancelled longer than `grace` ago and is still running. Its thread then no
    /// longer serves the worker; returns the commands queued for it, and the epoch of the thread that replaces it.
    pub(super) fn abandon_if_hung(&self, grace: Duration) -> Option<(VecDeque<Command>, u64)> {
        let mut running = locked(&self.running);
        let now = running.as_mut().filter(|running| running.cancel.is_cancelled())?;
        if now.cancelled.get_or_insert_with(Instant::now).elapsed() < grace {
            return None;
        }
        *running = None;
        self.load.store(0, Ordering::Relaxed);
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        let mut inbox = locked(&self.inbox);
        let queued = inbox.drain();
        inbox.close();
        *inbox = Arc::new(Mailbox::new());
        Some((queued, epoch))
    }

    /// Updates the estimate of the worker's speed.
    pub(super) fn measure(&self, observe: impl FnOnce(&mut Speed)) {
        let mut speed = locked(&self.speed);
        observe(&mut speed);
        self.rate.store(speed.estimate().unwrap_or(0.0).to_bits(), Ordering::Relaxed);
    }

    /// Whether the thread of `epoch` still serves the worker.
    pub(super) fn serves(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Acquire) == epoch
    }

    /// The thread of `epoch` begins work that `cancel` ends; false when the thread has been abandoned.
    pub(super) fn begin(&self, epoch: u64, cancel: &CancelToken) -> bool {
        let mut running = locked(&self.running);
        let serves = self.serves(epoch);
        if serves {
            *running = Some(Running { cancel: cancel.clone(), cancelled: None });
        }
        serves
    }

    /// The thread of `epoch` has ended its work of `tasks` tasks; false when the thread has been abandoned meanwhile.
    pub(super) fn end(&self, epoch: u64, tasks: usize) -> bool {
        let mut running = locked(&self.running);
        let serves = self.serves(epoch);
        if serves {
            *running = None;
            self.lighten(tasks);
        }
        serves
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
