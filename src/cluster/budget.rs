//! The memory budget of a worker process for data that masters send.
//!
//! Invariant: a [`Reservation`] returns its bytes to the budget when it is dropped, on every path.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sync::locked;

/// The least time between two log lines about refusals.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// A limit and the number of bytes in use. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: AtomicU64,
    refused: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

/// Bytes reserved from a budget.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        let (used, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { limit, used, refused, logged: Mutex::default() }) }
    }

    pub(super) fn limit(&self) -> u64 {
        self.shared.limit
    }

    pub(super) fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Reserves `bytes`; `None` if fewer are left.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.shared.limit);
        let taken = self.shared.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.ok().map(|_| Reservation { budget: self.clone(), bytes })
    }

    /// Number of times that memory was refused.
    pub(super) fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Counts and logs that `bytes` could not be reserved, and returns the reason.
    pub(super) fn refuse(&self, bytes: u64) -> String {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        let reason = format!(
            "{bytes} bytes more than fit: {} of {} are taken; raise the worker's memory or divide the layer into more parts",
            self.used(),
            self.limit()
        );
        let mut logged = locked(&self.shared.logged);
        if logged.is_none_or(|last| last.elapsed() >= LOG_PAUSE) {
            *logged = Some(Instant::now());
            tracing::warn!(refusals = self.refused(), "refused: {reason}");
        }
        reason
    }
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.shared.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_is_given_out_and_all_of_it_comes_back() {
        let budget = Budget::new(100);
        let first = budget.reserve(60).expect("60 of 100");
        assert!(budget.reserve(41).is_none() && budget.reserve(u64::MAX).is_none());
        assert_eq!(budget.refused(), 0);
        assert!(budget.refuse(41).contains("60 of 100"));
        assert_eq!(budget.refused(), 1);
        let second = budget.reserve(40).expect("40 of 40");
        assert_eq!(first.bytes() + second.bytes(), budget.used());
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
