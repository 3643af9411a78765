//! The flag that ends work early, which can also be slept on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by everything that works for one job; cancelling is final.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cancelled: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl CancelToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the work of everybody who holds a clone, and wakes those who sleep on it.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
        // Taking the lock orders the store before any sleeper's next look at the flag.
        let _guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wake.notify_all();
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
            // A sleep past the end of time: only cancelling ends it.
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

    /// Sleeps until cancelled. Every job has a deadline that cancels its token, so this ends.
    pub fn wait(&self) {
        let mut guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_cancelled() {
            guard = self.shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
