//! One worker over its lives: guarded calls, loss, abandonment when it hangs, and return.
//!
//! Relevant if you own a worker on a thread, as a pool or a process that lends its devices does. The owner supplies what
//! differs (an [`Owner`]): what a loss means to it, which filters a new worker needs, and the queue of its thread.
//!
//! * A call that panics or fails with [`Error::WorkerLost`] ends the worker's life. The worker is dropped on another thread,
//!   since dropping a hung device can block, and opened again on a third one: with [`Backoff`], probed, with its filters.
//! * A call that is still running long after its token was cancelled hangs. Its thread is abandoned with the worker, and
//!   another thread takes over under the next epoch.
//!
//! Invariant: a thread of an abandoned epoch changes nothing that the owner shares. At most one thread opens the worker
//! again. Every counted task is subtracted from the load exactly once.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::backoff::{Backoff, Losses};
use super::{CancelToken, FilterKey, PartFile, PartKey, PartSignature, Probe, Respawn, SubtaskShape, Worker};
use crate::array::{DType, Values};
use crate::error::{Error, Result, panic_text};

/// A worker that is still busy this long after its task was cancelled hangs, unless its owner has other limits.
pub(crate) const HANG_GRACE: Duration = Duration::from_secs(20);

/// What the owners of supervised workers do differently. Shared by the worker's thread, the threads that give it tasks and
/// may abandon it, and the thread that opens it again.
pub(crate) trait Owner: Send + Sync + 'static {
    fn supervision(&self) -> &Supervision;

    /// Records that the worker is lost.
    fn lost(&self, cause: &str);

    /// Gives a new worker the filters it should hold. It was probed in every element type that was used before, or in f32.
    fn equip(&self, _live: &mut Live) -> Result<()> {
        Ok(())
    }

    /// Queues a new worker for the worker's thread, which calls [`Supervised::take_back`].
    fn returned(&self, live: Live);
}

/// A worker that works, and what is known of it.
pub(crate) struct Live {
    pub(crate) worker: Box<dyn Worker>,
    /// The keys of its filters.
    pub(crate) holds: HashSet<FilterKey>,
    /// The keys of its parts of models.
    pub(crate) parts: HashSet<PartKey>,
    /// Element types in which it was probed.
    probed: Vec<DType>,
}

impl Live {
    pub(crate) fn new(worker: Box<dyn Worker>) -> Self {
        Self { worker, holds: HashSet::new(), parts: HashSet::new(), probed: Vec::new() }
    }

    /// Probes the worker in an element type in which it has not passed a probe yet.
    pub(crate) fn qualify(&mut self, dtype: DType, cancel: &CancelToken) -> Result<()> {
        if !self.probed.contains(&dtype) {
            Probe::new(dtype).check(self.worker.as_mut(), cancel)?;
            self.probed.push(dtype);
        }
        Ok(())
    }

    pub(crate) fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        self.worker.install(key, shape, banks)?;
        self.holds.insert(key);
        Ok(())
    }

    pub(crate) fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        self.parts.remove(&key);
        let signature = self.worker.install_part(key, part)?;
        self.parts.insert(key);
        Ok(signature)
    }

    /// Lets the worker use the filters of `same` for `key` too; false where it does not hold them or cannot.
    pub(crate) fn share(&mut self, key: FilterKey, same: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        let shared = self.holds.contains(&same) && self.worker.share(key, same, shape)?;
        if shared {
            self.holds.insert(key);
        }
        Ok(shared)
    }

    /// Lets the worker share the filters of `same` if it holds them and can, otherwise installs those that `encode` makes.
    pub(crate) fn share_or_install(
        &mut self,
        key: FilterKey,
        same: Option<FilterKey>,
        shape: &SubtaskShape,
        encode: impl FnOnce() -> Values,
    ) -> Result<()> {
        match same {
            Some(same) if self.share(key, same, shape)? => Ok(()),
            _ => self.install(key, shape, encode()),
        }
    }
}

/// State of one worker that its owner's threads share.
pub(crate) struct Supervision {
    name: String,
    /// How the worker is opened again; `None` where it cannot be.
    respawn: Option<Respawn>,
    /// Cancelled when the owner ends.
    closing: CancelToken,
    /// Tasks queued or running.
    load: AtomicUsize,
    watch: Mutex<Watch>,
}

struct Watch {
    /// Epoch of the thread that serves the worker; threads of earlier epochs were abandoned.
    epoch: u64,
    running: Option<Running>,
    losses: Losses,
}

/// The present call of the worker.
struct Running {
    cancel: CancelToken,
    tasks: usize,
    /// When the call was first found to be cancelled.
    cancelled: Option<Instant>,
}

impl Supervision {
    pub(crate) fn new(
        name: String,
        respawn: Option<Respawn>,
        backoff: Backoff,
        closing: CancelToken,
    ) -> Self {
        let watch = Watch { epoch: 0, running: None, losses: Losses::new(backoff) };
        Self { name, respawn, closing, load: AtomicUsize::new(0), watch: Mutex::new(watch) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The token that ends attempts to open the worker again.
    pub(crate) fn closing(&self) -> &CancelToken {
        &self.closing
    }

    /// Tasks queued or running.
    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Counts a task that is about to be queued.
    pub(crate) fn count_task(&self) {
        self.load.fetch_add(1, Ordering::Relaxed);
    }

    /// Subtracts tasks that end without a [guarded call](Supervised::guarded).
    pub(crate) fn end_tasks(&self, tasks: usize) {
        self.load.fetch_sub(tasks, Ordering::Relaxed);
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, epoch: u64, cancel: &CancelToken, tasks: usize) {
        let mut watch = self.watch();
        if watch.epoch == epoch {
            watch.running = Some(Running { cancel: cancel.clone(), tasks, cancelled: None });
        }
    }

    /// Ends a call; false if its thread was abandoned meanwhile.
    fn end(&self, epoch: u64) -> bool {
        let mut watch = self.watch();
        let serves = watch.epoch == epoch;
        if serves && let Some(running) = watch.running.take() {
            self.end_tasks(running.tasks);
        }
        serves
    }

    /// Begins the next epoch if the present call was cancelled longer than `grace` ago, and returns that epoch. Calls alone
    /// can be abandoned: a thread that waits for commands is never replaced.
    fn abandon(&self, grace: Duration) -> Option<u64> {
        let mut watch = self.watch();
        let running = watch.running.as_mut().filter(|running| running.cancel.is_cancelled())?;
        if running.cancelled.get_or_insert_with(Instant::now).elapsed() < grace {
            return None;
        }
        self.end_tasks(running.tasks);
        watch.running = None;
        watch.epoch += 1;
        watch.losses.count(Instant::now());
        Some(watch.epoch)
    }
}

/// Abandons a hung worker with its thread, if its present call was cancelled longer than `grace` ago. Returns the lost
/// worker for the thread that takes over.
pub(crate) fn abandon_if_hung<O: Owner>(owner: &Arc<O>, grace: Duration) -> Option<Supervised<O>> {
    let supervision = owner.supervision();
    let epoch = supervision.abandon(grace)?;
    let cause = format!("hung: still busy {grace:?} after its task was cancelled");
    tracing::warn!(worker = supervision.name, cause, "abandoned");
    owner.lost(&cause);
    Some(Supervised { owner: Arc::clone(owner), epoch, live: Err(cause), probed: Vec::new() })
}

/// Drops what may block on another thread; here if no thread can be started.
pub(super) fn drop_elsewhere<T: Send + 'static>(name: &str, gone: T) {
    let reaper = thread::Builder::new().name(format!("fcdcc reaper {name}"));
    if reaper.spawn(move || drop(gone)).is_err() {
        tracing::warn!(worker = name, "no thread to let go of a lost device");
    }
}

/// Turns a panic into the loss of the worker.
fn guard<R>(name: &str, call: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let cause = format!("it panicked: {}", panic_text(&*panic));
        Err(Error::WorkerLost { worker: name.to_owned(), cause })
    })
}

/// A worker as its thread owns it.
pub(crate) struct Supervised<O: Owner> {
    owner: Arc<O>,
    epoch: u64,
    /// The worker, or the cause of its loss.
    live: Result<Live, String>,
    /// Element types in which the worker was probed in any of its lives, successfully or not.
    probed: Vec<DType>,
}

impl<O: Owner> Supervised<O> {
    /// A worker, or the cause why there is none yet.
    pub(crate) fn new(owner: Arc<O>, worker: Result<Box<dyn Worker>, String>) -> Self {
        Self { owner, epoch: 0, live: worker.map(Live::new), probed: Vec::new() }
    }

    /// Whether the thread still serves the worker.
    pub(crate) fn serves(&self) -> bool {
        self.owner.supervision().watch().epoch == self.epoch
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        self.live.as_ref().ok()
    }

    /// Element types in which the worker was probed.
    pub(crate) fn probed(&self) -> &[DType] {
        &self.probed
    }

    /// Calls the worker; afterwards `tasks` tasks are over. A panic is the loss of the worker.
    ///
    /// # Errors
    /// Those of the call; [`Error::WorkerLost`] while there is no worker.
    pub(crate) fn guarded<R>(
        &mut self,
        cancel: &CancelToken,
        tasks: usize,
        call: impl FnOnce(&mut Live) -> Result<R>,
    ) -> Result<R> {
        let supervision = self.owner.supervision();
        let name = supervision.name();
        let live = match &mut self.live {
            Ok(live) => live,
            Err(cause) => {
                supervision.end_tasks(tasks);
                return Err(Error::WorkerLost { worker: name.to_owned(), cause: cause.clone() });
            }
        };
        supervision.begin(self.epoch, cancel, tasks);
        let result = guard(name, || call(live));
        let serves = supervision.end(self.epoch);
        if let (Err(Error::WorkerLost { cause, .. }), true) = (&result, serves) {
            tracing::warn!(worker = name, cause, "lost");
            supervision.watch().losses.count(Instant::now());
            if let Ok(gone) = std::mem::replace(&mut self.live, Err(cause.clone())) {
                drop_elsewhere(name, gone);
            }
            self.owner.lost(cause);
            self.reopen_if_lost();
        }
        result
    }

    /// Probes the worker.
    ///
    /// # Errors
    /// Those of [`Probe::check`] and of [`Supervised::guarded`].
    pub(crate) fn probe(&mut self, dtype: DType, cancel: &CancelToken) -> Result<()> {
        let result = self.guarded(cancel, 0, |live| Probe::new(dtype).check(live.worker.as_mut(), cancel));
        if self.live.is_ok() && !self.probed.contains(&dtype) {
            self.probed.push(dtype);
        }
        result
    }

    /// Installs filters, unless the worker holds filters of that key already.
    ///
    /// # Errors
    /// Those of [`Worker::install`] and of [`Supervised::guarded`].
    pub(crate) fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        self.share_or_install(key, None, shape, || banks)
    }

    /// As [`Live::share`].
    ///
    /// # Errors
    /// Those of [`Worker::share`] and of [`Supervised::guarded`].
    #[cfg(feature = "cluster")]
    pub(crate) fn share(&mut self, key: FilterKey, same: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        self.guarded(&CancelToken::new(), 0, |live| live.share(key, same, shape))
    }

    /// As [`Live::share_or_install`], unless the worker holds filters of that key already.
    ///
    /// # Errors
    /// Those of [`Worker::install`] and of [`Supervised::guarded`].
    pub(crate) fn share_or_install(
        &mut self,
        key: FilterKey,
        same: Option<FilterKey>,
        shape: &SubtaskShape,
        encode: impl FnOnce() -> Values,
    ) -> Result<()> {
        if self.live().is_some_and(|live| live.holds.contains(&key)) {
            return Ok(());
        }
        self.guarded(&CancelToken::new(), 0, |live| live.share_or_install(key, same, shape, encode))
    }

    /// Removes filters that the worker holds.
    pub(crate) fn remove(&mut self, key: FilterKey) {
        if self.live.as_mut().is_ok_and(|live| live.holds.remove(&key)) {
            // An error means that the worker is lost, and its filters with it.
            let _ = self.guarded(&CancelToken::new(), 0, |live| {
                live.worker.remove(key);
                Ok(())
            });
        }
    }

    /// Installs a part of a model.
    ///
    /// # Errors
    /// Those of [`Worker::install_part`] and of [`Supervised::guarded`].
    pub(crate) fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        self.guarded(&CancelToken::new(), 0, |live| live.install_part(key, part))
    }

    /// Removes a part that the worker holds.
    pub(crate) fn remove_part(&mut self, key: PartKey) {
        if self.live.as_mut().is_ok_and(|live| live.parts.remove(&key)) {
            // An error means that the worker is lost, and its parts with it.
            let _ = self.guarded(&CancelToken::new(), 0, |live| {
                live.worker.remove_part(key);
                Ok(())
            });
        }
    }

    /// A new worker takes the place of the lost one.
    pub(crate) fn take_back(&mut self, live: Live) {
        tracing::info!(worker = self.owner.supervision().name, "back");
        for dtype in &live.probed {
            if !self.probed.contains(dtype) {
                self.probed.push(*dtype);
            }
        }
        self.live = Ok(live);
    }

    /// If the worker is lost, starts a thread that opens it again until that succeeds or the owner ends. Called once by a
    /// thread that begins without a worker.
    pub(crate) fn reopen_if_lost(&self) {
        let supervision = self.owner.supervision();
        let (Err(_), Some(respawn)) = (&self.live, supervision.respawn.clone()) else { return };
        let (owner, probed) = (Arc::clone(&self.owner), self.probed.clone());
        let thread = thread::Builder::new().name(format!("fcdcc revive {}", supervision.name));
        if let Err(error) = thread.spawn(move || reopen(owner.as_ref(), &respawn, &probed)) {
            tracing::warn!(%error, "no thread to bring a worker back");
        }
    }
}

fn reopen<O: Owner>(owner: &O, respawn: &Respawn, probed: &[DType]) {
    let supervision = owner.supervision();
    for failed in 0.. {
        let pause = supervision.watch().losses.pause(failed);
        if supervision.closing.sleep(pause) {
            return;
        }
        match open(owner, respawn, probed) {
            Ok(live) => return owner.returned(live),
            Err(error) => {
                tracing::warn!(worker = supervision.name, %error, attempt = failed, "not back yet");
            }
        }
    }
}

/// Opens the worker once, probes it and gives it its filters. A driver that just lost a device may panic.
fn open<O: Owner>(owner: &O, respawn: &Respawn, probed: &[DType]) -> Result<Live> {
    let Supervision { name, closing, .. } = owner.supervision();
    let mut live = Live::new(guard(name, || respawn(closing))?);
    let ready = guard(name, || {
        let dtypes = if probed.is_empty() { &[DType::F32] } else { probed };
        dtypes.iter().try_for_each(|dtype| live.qualify(*dtype, closing))?;
        owner.equip(&mut live)
    });
    match ready {
        Ok(()) => Ok(live),
        Err(error) => {
            drop_elsewhere(name, live);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests;
