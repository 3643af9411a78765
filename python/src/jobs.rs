//! Work beside the interpreter: interrupts, deadlines and cancelling.
//!
//! Calls work on the thread that makes them. Python handles signals on its main thread only, between two instructions: while
//! that thread works here, [`wakeup`](super::wakeup) cancels the run when a signal comes, and Python handles it then. Where
//! that is not possible, the main thread hands its work to a thread of this module, and looks for signals while it waits.
//! Relevant if you wrap a call that takes time.
//!
//! Invariant: [`run`] and [`run_once`] return after their work has ended, so the work may borrow from the caller.

use std::any::Any;
use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded, unbounded};
use fcdcc::{Error, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::ThreadPool;

use super::wakeup::Watch;
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
/// interpreter released. `what` names it in the error of a deadline. `work` may be called a second time, if a signal whose
/// handler raised nothing cancelled the first call.
///
/// # Errors
/// What Python's signal handlers raise (`KeyboardInterrupt`); `fcdcc.Timeout`, `fcdcc.Cancelled`; the error of `work`.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    limits: Limits<'_>,
    what: &str,
    work: impl Fn(&fcdcc::CancelToken) -> Result<T> + Send + Sync,
) -> PyResult<T> {
    process::enter(py)?;
    if !is_main_thread(py)? {
        let limited = Limited::new(py, limits, what)?;
        let ended = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&limited.token))));
        return limited.result(py, ended);
    }
    let limited = Limited::new(py, limits, what)?;
    let Some(watch) = Watch::start(py, &limited.token)? else {
        let ended = beside(py, &limited.token, AssertUnwindSafe(|| work(&limited.token)))?;
        return limited.result(py, ended);
    };
    let ended = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&limited.token))));
    let signalled = watch.finish(py)?;
    py.check_signals()?;
    if signalled && matches!(ended, Ok(Err(Error::Cancelled))) && !limited.is_over() {
        // The handler let the program go on.
        return run_once(py, limited.rest(), what, work);
    }
    limited.result(py, ended)
}

/// As [`run`], for work that cannot begin a second time: on the main thread, on another thread from the start.
///
/// # Errors
/// Those of [`run`].
pub(crate) fn run_once<T: Send>(
    py: Python<'_>,
    limits: Limits<'_>,
    what: &str,
    work: impl FnOnce(&fcdcc::CancelToken) -> Result<T> + Send,
) -> PyResult<T> {
    process::enter(py)?;
    let limited = Limited::new(py, limits, what)?;
    let work = AssertUnwindSafe(|| work(&limited.token));
    let ended = if is_main_thread(py)? {
        beside(py, &limited.token, work)?
    } else {
        py.detach(|| catch_unwind(work))
    };
    limited.result(py, ended)
}

/// The limits of a run as it goes on.
struct Limited<'a> {
    what: &'a str,
    limits: Limits<'a>,
    token: fcdcc::CancelToken,
    /// Passes a cancellation of the caller's token on.
    _hook: Option<fcdcc::worker::CancelHook>,
    deadline: Option<Duration>,
    alarm: Option<Alarm>,
    started: Instant,
}

impl<'a> Limited<'a> {
    fn new(py: Python<'_>, limits: Limits<'a>, what: &'a str) -> PyResult<Self> {
        let token = fcdcc::CancelToken::new();
        let hook = limits.cancel.map(|outer| {
            let token = token.clone();
            outer.0.on_cancel(move || token.cancel())
        });
        let deadline = limits.deadline.map(|limit| seconds(py, "deadline (deadline=)", limit)).transpose()?;
        let alarm = deadline.and_then(|limit| alarm(limit, &token));
        Ok(Self { what, limits, token, _hook: hook, deadline, alarm, started: Instant::now() })
    }

    fn was_late(&self) -> bool {
        self.alarm.as_ref().is_some_and(|alarm| alarm.0.load(Ordering::Acquire))
    }

    /// Whether the caller's token or the deadline has ended the run.
    fn is_over(&self) -> bool {
        self.was_late() || self.limits.cancel.is_some_and(|token| token.0.is_cancelled())
    }

    /// The limits for the rest of the time.
    fn rest(&self) -> Limits<'a> {
        let rest = |limit: f64| (limit - self.started.elapsed().as_secs_f64()).max(1e-9);
        Limits { deadline: self.limits.deadline.map(rest), ..self.limits }
    }

    fn result<T>(&self, py: Python<'_>, ended: Ended<T>) -> PyResult<T> {
        match ended.map_err(|payload| errors::defect(payload.as_ref()))? {
            Ok(value) => Ok(value),
            Err(Error::Cancelled) if self.was_late() => {
                Err(errors::late(py, self.what, self.deadline.unwrap_or_default()))
            }
            Err(error) => Err(errors::raise(py, error)),
        }
    }
}

type Ended<T> = std::result::Result<Result<T>, Box<dyn Any + Send>>;

/// Runs `work` on another thread, and cancels `token` when a signal handler of Python raises.
fn beside<T: Send>(
    py: Python<'_>,
    token: &fcdcc::CancelToken,
    work: AssertUnwindSafe<impl FnOnce() -> Result<T> + Send>,
) -> PyResult<Ended<T>> {
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
    if let Some(interrupt) = interrupt {
        return Err(interrupt);
    }
    // A signal that came during the last wait.
    py.check_signals()?;
    ended.ok_or_else(|| PyRuntimeError::new_err("a defect of fcdcc: a run ended without a result"))
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
