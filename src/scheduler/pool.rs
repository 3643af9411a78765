//! Threads that own the workers, and the channels to them.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::array::{DType, Values};
use crate::error::{Error, Result, panic_text};
use crate::worker::{CancelToken, FilterKey, Order, SubtaskShape, Worker, WorkerInfo};

/// How long a dropped pool waits for its workers before it leaves a hung one behind.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// A set of workers, each on a thread of its own. Cheap to clone; shared by prepared layers and by threads that
/// run them at the same time.
///
/// Dropping the last clone ends the threads. A worker that hangs is left to its thread after two seconds: it
/// delays the drop, it cannot prevent it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    slots: Vec<Slot>,
    ended: Receiver<()>,
}

struct Slot {
    info: WorkerInfo,
    status: Arc<Status>,
    /// `None` only while the pool is being dropped.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What the rest of the pool may know of a worker while its thread owns it.
#[derive(Default)]
struct Status {
    /// Why it can do no further work.
    lost: OnceLock<String>,
    /// Tasks queued or running.
    load: AtomicUsize,
    /// Filters queued or being installed.
    installing: AtomicUsize,
}

enum Command {
    Install(InstallRequest, Sender<Installed>, usize),
    Remove(FilterKey),
    Execute(Task),
}

/// Coded filters on their way to a worker.
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

/// One subtask on its way to a worker.
pub(crate) struct Task {
    pub(crate) key: FilterKey,
    pub(crate) shape: Arc<SubtaskShape>,
    pub(crate) slabs: Arc<Values>,
    /// Whether a NaN or infinity in a sub-result can only be a fault.
    pub(crate) finite: bool,
    pub(crate) cancel: CancelToken,
    pub(crate) attempt: usize,
    pub(crate) replies: Sender<Reply>,
}

/// What a worker says of one attempt.
pub(crate) struct Reply {
    pub(crate) attempt: usize,
    pub(crate) at: Instant,
    pub(crate) what: ReplyKind,
}

pub(crate) enum ReplyKind {
    SubResult {
        index: usize,
        values: Values,
    },
    /// A sub-result of the wrong size or with a NaN or infinity in it.
    Unusable {
        cause: String,
    },
    Finished,
    Failed(Error),
}

impl Pool {
    /// Starts a thread for each worker. Names that occur twice get their index appended.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for no workers at all; [`Error::WorkerLost`] when the system refuses a thread.
    pub fn new(workers: Vec<Box<dyn Worker>>) -> Result<Self> {
        if workers.is_empty() {
            return Err(Error::invalid("number of workers", 0, "a pool needs at least one worker"));
        }
        let (ended_tx, ended) = bounded(workers.len());
        let mut names = HashSet::new();
        let mut slots = Vec::with_capacity(workers.len());
        for (index, worker) in workers.into_iter().enumerate() {
            let mut info = worker.info();
            if !names.insert(info.name.clone()) {
                info.name = format!("{}-{index}", info.name);
                names.insert(info.name.clone());
            }
            let status = Arc::new(Status::default());
            let (commands, inbox) = unbounded();
            let (own_status, own_name, own_end) = (Arc::clone(&status), info.name.clone(), ended_tx.clone());
            let thread = std::thread::Builder::new()
                .name(format!("fcdcc {}", info.name))
                .spawn(move || {
                    serve(worker, &inbox, &own_status, &own_name);
                    // A full channel cannot be: it has room for every thread. A closed one means nobody waits.
                    let _ = own_end.send(());
                })
                .map_err(|e| Error::WorkerLost {
                    worker: info.name.clone(),
                    cause: format!("no thread could be started for it: {e}"),
                })?;
            slots.push(Slot { info, status, commands: Some(commands), thread: Some(thread) });
        }
        Ok(Self { inner: Arc::new(Inner { slots, ended }) })
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

    /// What the workers say of themselves, in the order of [`Pool::new`].
    #[must_use]
    pub fn workers(&self) -> impl ExactSizeIterator<Item = &WorkerInfo> {
        self.inner.slots.iter().map(|slot| &slot.info)
    }

    /// Why worker `index` can do no further work, if that is so.
    #[must_use]
    pub fn lost(&self, index: usize) -> Option<&str> {
        self.inner.slots.get(index)?.status.lost.get().map(String::as_str)
    }

    /// Checks that every worker computes in `dtype`.
    pub(crate) fn check_dtype(&self, dtype: DType) -> Result<()> {
        match self.inner.slots.iter().find(|slot| dtype == DType::F64 && !slot.info.f64) {
            None => Ok(()),
            Some(slot) => Err(Error::Unavailable {
                what: format!("f64 arithmetic on worker {} ({})", slot.info.name, slot.info.device),
                mend: "use --precision f32, or CPU workers".to_owned(),
            }),
        }
    }

    /// The kind all workers share, or `mixed`.
    pub(crate) fn backend(&self) -> &'static str {
        let mut kinds = self.workers().map(|w| w.kind);
        let first = kinds.next();
        match first {
            Some(kind) if kinds.all(|k| k == kind) => kind.name(),
            _ => "mixed",
        }
    }

    pub(crate) fn name(&self, worker: usize) -> &str {
        &self.inner.slots[worker].info.name
    }

    /// The living worker with the least to do among those `admitted`.
    pub(crate) fn least_loaded(&self, admitted: impl Fn(usize) -> bool) -> Option<usize> {
        (0..self.len())
            .filter(|w| self.lost(*w).is_none() && admitted(*w))
            .min_by_key(|w| self.inner.slots[*w].status.load.load(Ordering::Relaxed))
    }

    /// Whether the worker still has filters to install from before: others should not wait for it.
    pub(crate) fn is_installing(&self, worker: usize) -> bool {
        self.inner.slots[worker].status.installing.load(Ordering::Relaxed) > 0
    }

    /// Queues filters for a worker; the answer comes on `reply`.
    pub(crate) fn install(&self, worker: usize, request: InstallRequest, reply: &Sender<Installed>) {
        self.inner.slots[worker].status.installing.fetch_add(1, Ordering::Relaxed);
        self.send(worker, Command::Install(request, reply.clone(), worker));
    }

    /// Queues the removal of filters.
    pub(crate) fn remove(&self, worker: usize, key: FilterKey) {
        self.send(worker, Command::Remove(key));
    }

    /// Queues a task. A lost worker answers it with a failure at once.
    pub(crate) fn execute(&self, worker: usize, task: Task) {
        self.inner.slots[worker].status.load.fetch_add(1, Ordering::Relaxed);
        self.send(worker, Command::Execute(task));
    }

    fn send(&self, worker: usize, command: Command) {
        let commands = self.inner.slots[worker].commands.as_ref();
        // The thread outlives every sender, so sending cannot fail while the pool is alive.
        if let Some(commands) = commands {
            let _ = commands.send(command);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.workers().map(|w| &w.name)).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            slot.commands = None;
        }
        let end = Instant::now() + SHUTDOWN_GRACE;
        let all = self.slots.len();
        let ended = (0..all).take_while(|_| self.ended.recv_deadline(end).is_ok()).count();
        for slot in &mut self.slots {
            match slot.thread.take() {
                Some(thread) if ended == all || thread.is_finished() => {
                    // A worker's panic was caught inside its thread; there is nothing left to learn from it.
                    let _ = thread.join();
                }
                _ => tracing::warn!(
                    worker = slot.info.name,
                    "left behind: it did not stop in {SHUTDOWN_GRACE:?}"
                ),
            }
        }
    }
}

/// A worker's thread: commands in order until the pool is gone.
fn serve(worker: Box<dyn Worker>, inbox: &Receiver<Command>, status: &Status, name: &str) {
    let mut worker = Some(worker);
    for command in inbox {
        match command {
            Command::Install(request, reply, index) => {
                let key = request.key;
                let result = guarded(&mut worker, status, name, |w| {
                    w.install(request.key, &request.shape, request.banks)
                });
                status.installing.fetch_sub(1, Ordering::Relaxed);
                // The layer may have stopped waiting.
                let _ = reply.send(Installed { key, worker: index, result });
            }
            Command::Remove(key) => {
                // An error means that the worker is lost, and its filters with it.
                let _ = guarded(&mut worker, status, name, |w| {
                    w.remove(key);
                    Ok(())
                });
            }
            Command::Execute(task) => {
                execute(&mut worker, status, name, &task);
                status.load.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

fn execute(worker: &mut Option<Box<dyn Worker>>, status: &Status, name: &str, task: &Task) {
    // A closed channel means that the job is over: its token is cancelled too and the worker stops.
    let reply = |what| {
        let _ = task.replies.send(Reply { attempt: task.attempt, at: Instant::now(), what });
    };
    if task.cancel.is_cancelled() {
        return reply(ReplyKind::Failed(Error::Cancelled));
    }
    let mut unusable = false;
    let result = guarded(worker, status, name, |w| {
        let _span = tracing::debug_span!("execute", worker = name, subtask = task.key.subtask).entered();
        let mut emit = |index, values| match check(&values, task) {
            Ok(()) => reply(ReplyKind::SubResult { index, values }),
            Err(cause) => {
                unusable = true;
                reply(ReplyKind::Unusable { cause });
            }
        };
        w.execute(task.key, &task.slabs, Order::All, &task.cancel, &mut emit)
    });
    match result {
        Ok(()) if unusable => {}
        Ok(()) => reply(ReplyKind::Finished),
        Err(error) => reply(ReplyKind::Failed(error)),
    }
}

/// Sub-results that cannot be part of an exact output are stopped here, on the worker's own thread.
fn check(values: &Values, task: &Task) -> Result<(), String> {
    let expected = task.shape.conv.output_elems();
    if values.len() != expected || values.dtype() != task.slabs.dtype() {
        return Err(format!(
            "returned {} {} elements where {expected} {} were expected",
            values.len(),
            values.dtype(),
            task.slabs.dtype()
        ));
    }
    match values.first_non_finite().filter(|_| task.finite) {
        Some((index, value)) => Err(format!("returned {value} at element {index}")),
        None => Ok(()),
    }
}

/// Calls the worker, turns a panic into its loss, and lets a lost worker go.
fn guarded(
    worker: &mut Option<Box<dyn Worker>>,
    status: &Status,
    name: &str,
    call: impl FnOnce(&mut dyn Worker) -> Result<()>,
) -> Result<()> {
    let Some(alive) = worker.as_mut() else {
        let cause = status.lost.get().cloned().unwrap_or_default();
        return Err(Error::WorkerLost { worker: name.to_owned(), cause });
    };
    let result = catch_unwind(AssertUnwindSafe(|| call(alive.as_mut()))).unwrap_or_else(|panic| {
        let said = panic_text(&*panic);
        Err(Error::WorkerLost { worker: name.to_owned(), cause: format!("it panicked: {said}") })
    });
    if let Err(Error::WorkerLost { cause, .. }) = &result {
        tracing::warn!(worker = name, cause, "lost");
        // The first cause stays; a second loss of the same worker cannot be.
        let _ = status.lost.set(cause.clone());
        let gone = Mutex::new(worker.take());
        // Dropping a hung device can block: that is left to a thread nobody waits for. If there is no thread to
        // be had, the closure and the worker in it are dropped here.
        let _ = std::thread::Builder::new()
            .name(format!("fcdcc reaper {name}"))
            .spawn(move || drop(gone.into_inner().unwrap_or_else(PoisonError::into_inner)));
    }
    result
}
