//! The cancellation flag, which threads can sleep on and which can run callbacks.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A flag shared by everything that works for one job; cancelling is final.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use fcdcc::CancelToken;
///
/// let token = CancelToken::new();
/// let other = token.clone();
/// let thread = std::thread::spawn(move || other.sleep(Duration::from_secs(60)));
/// token.cancel();
/// // The sleep ended at once.
/// assert!(thread.join().unwrap());
/// ```
///
/// ```
/// use std::sync::mpsc::channel;
///
/// use fcdcc::CancelToken;
///
/// let (token, (sender, receiver)) = (CancelToken::new(), channel());
/// let hook = token.on_cancel(move || sender.send("stop").unwrap());
/// token.cancel();
/// assert_eq!(receiver.recv(), Ok("stop"));
/// drop(hook);
/// ```
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    hooks: Mutex<Hooks>,
}

#[derive(Default)]
struct Hooks {
    next: u64,
    waiting: Vec<(u64, Box<dyn FnOnce() + Send>)>,
}

/// The registration of a callback by [`CancelToken::on_cancel`]; dropping it removes the callback.
#[must_use = "dropping it takes the call back"]
pub struct CancelHook {
    shared: Arc<Shared>,
    id: u64,
}

impl CancelToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the work of all holders of a clone, and wakes those that sleep on it.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
        // Taking the lock orders the store before any sleeper's next check of the flag.
        let guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wake.notify_all();
        drop(guard);
        let calls = std::mem::take(&mut self.shared.hooks().waiting);
        for (_, call) in calls {
            call();
        }
    }

    /// Calls `call` on the cancelling thread when the token is cancelled, or at once if it is cancelled already. Use it to
    /// wake a thread that waits for something else at the same time; `call` must not block.
    pub fn on_cancel(&self, call: impl FnOnce() + Send + 'static) -> CancelHook {
        let mut hooks = self.shared.hooks();
        let id = hooks.next;
        hooks.next += 1;
        // `cancel` sets the flag before it takes the lock: either the flag is seen here, or the callback is seen there.
        if self.is_cancelled() {
            drop(hooks);
            call();
        } else {
            hooks.waiting.push((id, Box::new(call)));
        }
        CancelHook { shared: Arc::clone(&self.shared), id }
    }

    /// Whether the work should stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }

    /// Sleeps for `duration` or until cancelled; true when cancelled.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> bool {
        let Some(end) = Instant::now().checked_add(duration) else {
            // The end is not representable: only cancelling ends this sleep.
            self.wait();
            return true;
        };
        let mut guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.is_cancelled() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.shared.wake.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sleeps until cancelled. This ends, since every job has a deadline that cancels its token.
    pub fn wait(&self) {
        let mut guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_cancelled() {
            guard = self.shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn hooks(&self) -> MutexGuard<'_, Hooks> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CancelHook {
    fn drop(&mut self) {
        self.shared.hooks().waiting.retain(|(id, _)| *id != self.id);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_called_once_and_not_after_it_was_dropped() {
        let token = CancelToken::new();
        let (sender, calls) = std::sync::mpsc::channel();
        let hook = |n: i32| {
            let sender = sender.clone();
            token.on_cancel(move || sender.send(n).unwrap())
        };
        let (_kept, dropped) = (hook(1), hook(2));
        drop(dropped);
        assert!(calls.try_recv().is_err());
        token.cancel();
        token.cancel();
        let _late = hook(3);
        assert_eq!(calls.try_iter().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn cancelling_wakes_a_sleeper_long_before_its_time() {
        let token = CancelToken::new();
        let sleeper = token.clone();
        let started = Instant::now();
        let thread = std::thread::spawn(move || sleeper.sleep(Duration::from_mins(1)));
        token.cancel();
        assert!(thread.join().unwrap());
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(token.sleep(Duration::MAX));
        token.wait();
    }

    #[test]
    fn an_undisturbed_sleep_lasts_its_time() {
        let token = CancelToken::new();
        let started = Instant::now();
        assert!(!token.sleep(Duration::from_millis(5)));
        assert!(started.elapsed() >= Duration::from_millis(5));
    }
}
