//! The workers of a process, each on its own thread, with their health and speed.
//!
//! A pool queues filters and tasks for its workers and keeps a [`Health`] and a [`Speed`] for each. A lost worker is
//! respawned in the background where possible; a hung worker is abandoned with its thread.
//!
//! The state that the threads share is in `slot`.
//!
//! Invariant: every task is answered exactly once, at the latest when its worker is abandoned.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use serde::Serialize;

use super::fleet::Fleet;
use super::health::State;
use super::mailbox::Taken;
use super::service;
use super::slot::{
    BACKLOG, Command, FilterSource, InstallRequest, Installed, PoolOptions, QueuedTask, Refusals, Replies,
    Reply, Shared, Slot,
};
use crate::array::{DType, WireFormat};
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::WorkerId;
use crate::planner::Rates;
use crate::sync::locked;
use crate::worker::{CancelToken, FilterKey, LOCAL_HOST, Owner, Supervised, Worker, WorkerInfo, WorkerKind};

/// How long a dropped pool waits for its workers before it leaves hung ones behind.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// Polling interval of [`Pool::wait_idle`].
const IDLE_POLL: Duration = Duration::from_micros(50);

/// A set of workers, each on its own thread. Cheap to clone; prepared layers, and threads that run them at the same
/// time, can share it.
///
/// Dropping the last clone ends the threads. A hung worker delays that by at most two seconds; then its thread is left
/// behind.
///
/// # Examples
///
/// ```
/// assert_eq!(fcdcc::Pool::new(fcdcc::CpuWorker::fleet(3))?.len(), 3);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// # use fcdcc::{CodedConv, CpuWorker, Pool};
/// let pool = Pool::new(CpuWorker::fleet(6))?;
/// let weight = ndarray::ArrayD::<f32>::ones(vec![4, 2, 3, 3]);
/// let layer = CodedConv::builder(&pool, &[1, 2, 16, 16], weight.view()).prepare()?;
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// State and speed of a worker in the pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkerHealth {
    /// Its state.
    pub state: State,
    /// Cause of a quarantine or loss; `None` otherwise.
    pub cause: Option<String>,
    /// Multiply-adds per second, estimated from recent work; `None` before any.
    pub speed: Option<f64>,
    /// Whether its machine does not answer at present. Others compute its subtasks meanwhile.
    pub silent: bool,
}

/// A worker that could not install the filters of some layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FilterRefusals {
    /// The worker's name.
    pub worker: String,
    /// Number of layers.
    pub layers: usize,
    /// Why it could not, the first time.
    pub cause: String,
}

struct Inner {
    slots: Vec<Arc<Slot>>,
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts a thread for each worker. The index is appended to names that occur twice. A worker for which the system
    /// starts no thread is [lost](Pool::lost) from the start, and the others do its work.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for no workers at all.
    pub fn new(workers: Vec<Box<dyn Worker>>) -> Result<Self> {
        Self::with_options(workers, PoolOptions::default())
    }

    /// As [`Pool::new`], with the given options.
    ///
    /// # Errors
    /// Those of [`Pool::new`].
    pub fn with_options(workers: Vec<Box<dyn Worker>>, options: PoolOptions) -> Result<Self> {
        if workers.is_empty() {
            return Err(Error::invalid("number of workers", 0, "a pool needs at least one worker"));
        }
        let shared = Arc::new(Shared {
            options,
            started: Instant::now(),
            sources: Mutex::default(),
            closing: CancelToken::new(),
            changes: AtomicU64::new(0),
            caught: AtomicU64::new(0),
            refusals: Mutex::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        });
        let mut names = HashSet::new();
        let mut slots = Vec::with_capacity(workers.len());
        let mut owned = Vec::with_capacity(workers.len());
        for (index, worker) in workers.into_iter().enumerate() {
            let mut info = worker.info();
            if !names.insert(info.name.clone()) {
                info.name = format!("{}-{index}", info.name);
                names.insert(info.name.clone());
            }
            slots.push(Arc::new(Slot::new(&shared, info, worker.as_ref())));
            owned.push(worker);
        }
        for (slot, worker) in slots.iter().zip(owned) {
            let worker = match worker.unavailable_reason() {
                None => Ok(worker),
                Some(cause) => {
                    slot.lost(&cause);
                    Err(cause)
                }
            };
            service::start(slot, Supervised::new(Arc::clone(slot), worker));
        }
        Ok(Self { inner: Arc::new(Inner { slots, shared }) })
    }

    /// Number of workers, lost ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.slots.len()
    }

    /// Never true: a pool has at least one worker.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.slots.is_empty()
    }

    /// The workers' own descriptions, in the order of [`Pool::new`]. Names never change; devices and hosts change when
    /// another worker takes the place of a lost one.
    #[must_use]
    pub fn workers(&self) -> impl ExactSizeIterator<Item = Arc<WorkerInfo>> {
        self.inner.slots.iter().map(|slot| slot.info())
    }

    /// State and speed of a worker; `None` if there is no such worker.
    #[must_use]
    pub fn health(&self, worker: WorkerId) -> Option<WorkerHealth> {
        let slot = self.inner.slots.get(worker.0)?;
        let health = locked(&slot.health);
        Some(WorkerHealth {
            state: health.state(),
            cause: health.cause().map(str::to_owned),
            speed: slot.rate(),
            silent: slot.is_silent() == Some(true),
        })
    }

    /// The cause if a worker is lost.
    #[must_use]
    pub fn lost(&self, worker: WorkerId) -> Option<String> {
        let health = self.health(worker)?;
        (health.state == State::Lost).then(|| health.cause.unwrap_or_default())
    }

    /// Records that a worker could not install filters of a layer.
    pub(crate) fn refused(&self, worker: WorkerId, layer: u64, cause: &Error) {
        let mut refusals = locked(&self.inner.shared.refusals);
        let of = refusals
            .entry(worker)
            .or_insert_with(|| Refusals { cause: cause.to_string(), ..Refusals::default() });
        of.layers.insert(layer);
    }

    /// Forgets what was recorded about a layer that no longer exists.
    fn forget_refusals(&self, layer: u64) {
        locked(&self.inner.shared.refusals).retain(|_, of| {
            of.layers.remove(&layer);
            !of.layers.is_empty()
        });
    }

    /// Workers that could not install the filters of layers that are prepared now, for lack of memory for example. Other
    /// workers compute their share of these layers.
    #[must_use]
    pub fn refusals(&self) -> Vec<FilterRefusals> {
        let refusals = locked(&self.inner.shared.refusals);
        let row = |(worker, of): (&WorkerId, &Refusals)| FilterRefusals {
            worker: self.name(*worker).to_owned(),
            layers: of.layers.len(),
            cause: of.cause.clone(),
        };
        refusals.iter().map(row).collect()
    }

    /// Checks that every worker computes in `dtype`.
    pub(crate) fn check_dtype(&self, dtype: DType) -> Result<()> {
        match self.workers().find(|info| dtype == DType::F64 && !info.f64) {
            None => Ok(()),
            Some(info) => Err(Error::Unavailable {
                what: format!("f64 arithmetic on worker {} ({})", info.name, info.device),
                help: Message::from("use ").and(Parameter::ElementType).and(" f32, or CPU workers"),
            }),
        }
    }

    /// Whether any worker stores slabs and filters in 16 bits.
    pub(crate) fn keeps_half(&self) -> bool {
        self.workers().any(|info| info.half)
    }

    /// The coarsest format in which slabs and sub-results travel to and from any worker.
    pub(crate) fn wire(&self) -> WireFormat {
        self.workers().fold(WireFormat::Full, |coarsest, info| coarsest.coarser(info.wire))
    }

    /// The fraction of the workers that are threads of this process and hold their filters in its memory.
    pub(crate) fn share_here(&self) -> f64 {
        let here = self.workers().filter(|info| info.kind == WorkerKind::Cpu && info.host == LOCAL_HOST);
        here.count() as f64 / self.len() as f64
    }

    /// The common kind of all workers, or `mixed`.
    pub(crate) fn backend(&self) -> &'static str {
        let mut kinds = self.workers().map(|w| w.kind);
        let first = kinds.next();
        match first {
            Some(kind) if kinds.all(|k| k == kind) => kind.name(),
            _ => "mixed",
        }
    }

    /// A counter that grows whenever a worker is lost, comes back or is quarantined.
    pub(crate) fn changes(&self) -> u64 {
        self.inner.shared.changes.load(Ordering::Relaxed)
    }

    /// Number of times that a worker returned a wrong result.
    pub(crate) fn caught(&self) -> u64 {
        self.inner.shared.caught.load(Ordering::Relaxed)
    }

    /// Waits, at most for `limit`, until no worker has a queued or running task or filters to install; returns whether
    /// that came true. Stragglers of a finished run may still be computing the sub-result that they had begun.
    #[must_use]
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let busy = |slot: &Arc<Slot>| slot.supervision.load() + slot.installing.load(Ordering::Relaxed) > 0;
        while self.inner.slots.iter().any(busy) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(IDLE_POLL);
        }
        true
    }

    /// `rates`, completed by the cores that this pool's workers share if they are threads of this machine.
    #[must_use]
    pub fn shared(&self, rates: &Rates) -> Rates {
        let here = self.workers().any(|info| info.kind == WorkerKind::Cpu && info.host == LOCAL_HOST);
        Rates { cores: rates.cores.or(here.then_some(self.inner.shared.cores)), ..*rates }
    }

    /// Whether both are handles of one pool.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether the worker still installs earlier filters, so that others should not wait for it.
    pub(crate) fn is_installing(&self, worker: WorkerId) -> bool {
        self.inner.slots[worker.0].installing.load(Ordering::Relaxed) > 0
    }

    /// Registers the source from which respawned workers get a layer's filters.
    pub(crate) fn register(&self, layer: u64, source: Weak<dyn FilterSource>) {
        locked(&self.inner.shared.sources).insert(layer, source);
    }

    /// Undoes [`Pool::register`], and removes the layer's filters from every worker that has them or would get them.
    pub(crate) fn unregister(&self, layer: u64) {
        locked(&self.inner.shared.sources).remove(&layer);
        self.forget_refusals(layer);
        for slot in &self.inner.slots {
            let left: Vec<FilterKey> =
                locked(&slot.wanted).extract_if(|key, _| key.layer == layer).map(|(key, _)| key).collect();
            for key in left {
                slot.send(Command::Remove(key));
            }
        }
    }

    /// Queues filters for a worker; the answer is sent to `reply`.
    pub(crate) fn install(&self, worker: WorkerId, request: InstallRequest, reply: &Sender<Installed>) {
        let slot = &self.inner.slots[worker.0];
        locked(&slot.wanted).insert(request.key, Arc::clone(&request.shape));
        slot.installing.fetch_add(1, Ordering::Relaxed);
        slot.send(Command::Install(request, reply.clone(), worker));
    }

    pub(super) fn slot(&self, worker: WorkerId) -> &Arc<Slot> {
        &self.inner.slots[worker.0]
    }

    /// Whether a worker may be given one more task. One that hangs is replaced, and a long queue cleared of cancelled tasks.
    pub(super) fn admits(&self, slot: &Arc<Slot>) -> bool {
        let load = slot.supervision.load();
        if load > 0 {
            service::replace_if_hung(slot, self.inner.shared.options.hang_grace);
        }
        if load >= BACKLOG && slot.is_usable() {
            slot.forget_cancelled();
        }
        slot.is_usable()
    }

    /// Queues the removal of filters.
    pub(crate) fn remove(&self, worker: WorkerId, key: FilterKey) {
        let slot = &self.inner.slots[worker.0];
        locked(&slot.wanted).remove(&key);
        slot.send(Command::Remove(key));
    }
}

impl Fleet for Pool {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, replies: &Replies, until: Instant) -> Taken<Reply> {
        replies.take(Some(until))
    }

    fn execute(&self, worker: WorkerId, task: QueuedTask) {
        let slot = self.slot(worker);
        if !self.admits(slot) {
            return task.fail(slot.refusal());
        }
        slot.supervision.count_task();
        slot.send(Command::Execute(task));
    }

    fn equip(&self, worker: WorkerId, request: InstallRequest) {
        // Commands are served in order. A failed installation shows as a failed task.
        self.install(worker, request, &unbounded().0);
    }

    fn cancel(&self, token: &CancelToken) {
        token.cancel();
    }

    fn flag(&self, worker: WorkerId, cause: &str) {
        let slot = &self.inner.slots[worker.0];
        tracing::warn!(worker = slot.name(), cause, "quarantined");
        self.inner.shared.caught.fetch_add(1, Ordering::Relaxed);
        slot.update(|health, now| health.flagged(now, cause.to_owned()));
        slot.send(Command::Wake);
    }

    fn accept(&self, worker: WorkerId) {
        self.inner.slots[worker.0].update(|health, _| health.accepted());
    }

    fn pace(&self, worker: WorkerId, ratio: f64) {
        locked(&self.inner.slots[worker.0].health).paced(ratio);
    }

    fn size(&self) -> usize {
        self.len()
    }

    fn name(&self, worker: WorkerId) -> &str {
        self.inner.slots[worker.0].name()
    }

    fn domain(&self, worker: WorkerId) -> Vec<String> {
        self.inner.slots[worker.0].info().domain()
    }

    fn is_thread_here(&self, worker: WorkerId) -> bool {
        let info = self.inner.slots[worker.0].info();
        info.kind == WorkerKind::Cpu && info.host == LOCAL_HOST
    }

    fn cores(&self) -> usize {
        self.inner.shared.cores
    }

    fn load(&self, worker: WorkerId) -> usize {
        self.inner.slots[worker.0].supervision.load()
    }

    fn rate(&self, worker: WorkerId) -> Option<f64> {
        self.inner.slots[worker.0].rate()
    }

    fn rate_or(&self, worker: WorkerId, typical: f64) -> f64 {
        self.inner.slots[worker.0].rate_or(typical)
    }

    fn is_usable(&self, worker: WorkerId) -> bool {
        self.inner.slots[worker.0].is_usable()
    }

    fn can_fall_silent(&self, worker: WorkerId) -> bool {
        self.inner.slots[worker.0].is_silent().is_some()
    }

    fn is_silent(&self, worker: WorkerId) -> bool {
        self.inner.slots[worker.0].is_silent() == Some(true)
    }

    fn straggles(&self, worker: WorkerId) -> bool {
        locked(&self.inner.slots[worker.0].health).state() == State::Straggling
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.inner.slots.iter().map(|slot| slot.name())).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.closing.cancel();
        let threads: Vec<_> = self
            .slots
            .iter()
            .map(|slot| {
                slot.inbox.close();
                (locked(&slot.thread).take(), slot)
            })
            .collect();
        let end = Instant::now() + SHUTDOWN_GRACE;
        for (thread, slot) in threads {
            let Some(thread) = thread else { continue };
            // A thread of the pool itself may drop the last clone.
            if thread.thread().id() == std::thread::current().id() {
                continue;
            }
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_micros(200));
            }
            if thread.is_finished() {
                // A worker's panic was caught inside its thread, so there is nothing left to report.
                let _ = thread.join();
            } else {
                tracing::warn!(worker = slot.name(), "left behind: it did not stop in {SHUTDOWN_GRACE:?}");
            }
        }
    }
}
