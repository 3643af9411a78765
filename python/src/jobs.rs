//! Work beside the interpreter: interrupts, deadlines and cancelling.
//!
//! Python handles signals on its main thread only, between two instructions. A call from the main thread therefore hands its
//! work to a thread of this module and looks for signals while it waits. Calls from other threads work where they are.
//! Relevant if you wrap a call that takes time.
//!
//! Invariant: [`run`] returns after its work has ended, so the work may borrow from the caller.

use std::any::Any;
use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded, unbounded};
use fcdcc::{Error, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::ThreadPool;

use super::{errors, process};

/// How often a waiting main thread looks for signals.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// Ends runs from any thread: pass it to `run(..., cancel=token)` and call `cancel()`.
#[pyclass(frozen, module = "fcdcc")]
#[derive(Default)]
pub(crate) struct CancelToken(fcdcc::CancelToken);

#[pymethods]
impl CancelToken {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Ends every run that has this token; later runs with it end at once.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.0.cancel());
    }

    /// Whether `cancel` was called.
    #[getter]
    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl CancelToken {
    pub(crate) fn of(token: fcdcc::CancelToken) -> Self {
        Self(token)
    }
}

/// What can end a run before it is complete.
#[derive(Clone, Copy, Default)]
pub(crate) struct Limits<'a> {
    pub(crate) cancel: Option<&'a CancelToken>,
    pub(crate) deadline: Option<f64>,
}

/// The time of `deadline` in seconds.
pub(crate) fn seconds(py: Python<'_>, what: &str, seconds: f64) -> PyResult<Duration> {
    let valid = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero());
    valid.ok_or_else(|| {
        errors::raise(py, Error::invalid(what, seconds, "give seconds above zero, such as 0.5"))
    })
}

/// Runs `work`, which ends with [`Error::Cancelled`] soon after the token it gets is cancelled, with the lock of the
/// interpreter released. `what` names it in the error of a deadline.
///
/// # Errors
/// What Python's signal handlers raise (`KeyboardInterrupt`); `fcdcc.Timeout`, `fcdcc.Cancelled`; the error of `work`.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    limits: Limits<'_>,
    what: &str,
    work: impl FnOnce(&fcdcc::CancelToken) -> Result<T> + Send,
) -> PyResult<T> {
    process::enter(py)?;
    let token = fcdcc::CancelToken::new();
    let hook = limits.cancel.map(|outer| {
        let token = token.clone();
        outer.0.on_cancel(move || token.cancel())
    });
    let deadline = limits.deadline.map(|limit| seconds(py, "deadline (deadline=)", limit)).transpose()?;
    let late = deadline.and_then(|limit| alarm(limit, &token));
    let work = AssertUnwindSafe(|| work(&token));
    let (result, interrupt) = if is_main_thread(py)? {
        beside(py, &token, work)?
    } else {
        (py.detach(|| catch_unwind(work)), None)
    };
    drop(hook);
    if let Some(interrupt) = interrupt {
        return Err(interrupt);
    }
    let was_late = late.is_some_and(|late| late.0.load(Ordering::Acquire));
    match result.map_err(|payload| errors::defect(payload.as_ref()))? {
        Ok(value) => Ok(value),
        Err(Error::Cancelled) if was_late => Err(errors::late(py, what, deadline.unwrap_or_default())),
        Err(error) => Err(errors::raise(py, error)),
    }
}

type Ended<T> = std::result::Result<Result<T>, Box<dyn Any + Send>>;

/// Runs `work` on another thread, and cancels `token` when a signal handler of Python raises.
fn beside<T: Send>(
    py: Python<'_>,
    token: &fcdcc::CancelToken,
    work: AssertUnwindSafe<impl FnOnce() -> Result<T> + Send>,
) -> PyResult<(Ended<T>, Option<PyErr>)> {
    let (reply, replies) = bounded::<Ended<T>>(1);
    let mut interrupt = None;
    let ended = threads()?.in_place_scope(|scope| {
        scope.spawn(move |_| {
            // The receiver lives until the scope ends.
            let _ = reply.send(catch_unwind(work));
        });
        loop {
            match py.detach(|| replies.recv_timeout(SIGNALS_EVERY)) {
                Ok(ended) => return Some(ended),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(raised) = py.check_signals() {
                        token.cancel();
                        interrupt.get_or_insert(raised);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    });
    let ended =
        ended.ok_or_else(|| PyRuntimeError::new_err("a defect of fcdcc: a run ended without a result"))?;
    // A signal that came during the last wait.
    py.check_signals()?;
    Ok((ended, interrupt))
}

/// The threads that work for the main thread, as many as cores: encoding and decoding run on all of them.
fn threads() -> PyResult<&'static ThreadPool> {
    static THREADS: OnceLock<std::result::Result<ThreadPool, String>> = OnceLock::new();
    let made = THREADS.get_or_init(|| {
        let named = rayon::ThreadPoolBuilder::new().thread_name(|index| format!("fcdcc run {index}"));
        named.build().map_err(|error| error.to_string())
    });
    made.as_ref().map_err(|error| PyRuntimeError::new_err(format!("no threads could be started: {error}")))
}

/// Whether this is the thread on which Python handles signals.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local!(static IS_MAIN: OnceCell<bool> = const { OnceCell::new() });
    if let Some(known) = IS_MAIN.with(|known| known.get().copied()) {
        return Ok(known);
    }
    let threading = py.import("threading")?;
    let main: u64 = threading.call_method0("main_thread")?.getattr("ident")?.extract()?;
    let own: u64 = threading.call_method0("get_ident")?.extract()?;
    Ok(IS_MAIN.with(|known| *known.get_or_init(|| main == own)))
}

/// Whether the time came. Dropping it does no harm: cancelling a token whose run has ended has no effect.
struct Alarm(Arc<AtomicBool>);

/// Tokens to cancel, by the time when.
struct Pending {
    at: Instant,
    order: u64,
    token: fcdcc::CancelToken,
    rang: std::sync::Weak<AtomicBool>,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Cancels `token` after `limit`; `None` for a time that never comes.
fn alarm(limit: Duration, token: &fcdcc::CancelToken) -> Option<Alarm> {
    static ORDER: AtomicU64 = AtomicU64::new(0);
    static CLOCK: LazyLock<Sender<Pending>> = LazyLock::new(|| {
        let (sender, receiver) = unbounded();
        let keep = move || {
            let mut waiting = BinaryHeap::<Reverse<Pending>>::new();
            loop {
                let next =
                    waiting.peek().map(|Reverse(next)| next.at.saturating_duration_since(Instant::now()));
                match receiver.recv_timeout(next.unwrap_or(Duration::from_hours(1))) {
                    Ok(pending) => waiting.push(Reverse(pending)),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                while waiting.peek().is_some_and(|Reverse(next)| next.at <= Instant::now()) {
                    let Some(Reverse(next)) = waiting.pop() else { break };
                    if let Some(rang) = next.rang.upgrade() {
                        rang.store(true, Ordering::Release);
                        next.token.cancel();
                    }
                }
                waiting.retain(|Reverse(next)| next.rang.strong_count() > 0);
            }
        };
        // Without a thread, deadlines of runs are not kept; those of layers still are.
        if let Err(error) = std::thread::Builder::new().name("fcdcc deadlines".to_owned()).spawn(keep) {
            tracing::warn!(%error, "no thread for deadlines");
        }
        sender
    });
    let rang = Arc::new(AtomicBool::new(false));
    let at = Instant::now().checked_add(limit)?;
    let order = ORDER.fetch_add(1, Ordering::Relaxed);
    let pending = Pending { at, order, token: token.clone(), rang: Arc::downgrade(&rang) };
    // The thread ends only with the process.
    let _ = CLOCK.send(pending);
    Some(Alarm(rang))
}

/// What unwinds the stack of work that has no other way to be cancelled than the observer it calls.
struct Stopped;

/// For an observer within [`stoppable`]: ends the work.
pub(crate) fn stop() -> ! {
    resume_unwind(Box::new(Stopped))
}

/// Runs `work`, and turns its end by [`stop`] into [`Error::Cancelled`].
pub(crate) fn stoppable<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        if payload.is::<Stopped>() { Err(Error::Cancelled) } else { resume_unwind(payload) }
    })
}

/// A progress callback of Python, called from the thread that works.
pub(crate) struct Observer {
    callback: Option<Py<PyAny>>,
    raised: std::sync::Mutex<Option<PyErr>>,
}

impl Observer {
    pub(crate) fn new(callback: Option<Py<PyAny>>) -> Self {
        Self { callback, raised: std::sync::Mutex::default() }
    }

    /// Calls `callback(done, total, what)`; cancels `token` if it raises.
    pub(crate) fn report(&self, done: usize, total: usize, what: &str, token: &fcdcc::CancelToken) {
        let Some(callback) = &self.callback else { return };
        let result = Python::try_attach(|py| callback.call1(py, (done, total, what)).map(drop));
        if let Some(Err(error)) = result {
            token.cancel();
            self.raised.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// `result`, or what the callback raised.
    pub(crate) fn finish<T>(self, result: PyResult<T>) -> PyResult<T> {
        match self.raised.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => result,
        }
    }
}
