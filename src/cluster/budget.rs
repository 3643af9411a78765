//! The memory budget of a worker process for data that masters send.
//!
//! Invariant: a [`Reservation`] returns its bytes to the budget when it is dropped, on every path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A limit and the number of bytes in use. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: AtomicU64,
}

/// Bytes reserved from a budget.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self { shared: Arc::new(Shared { limit, used: AtomicU64::new(0) }) }
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

    /// The reason why `bytes` cannot be reserved.
    pub(super) fn refusal(&self, bytes: u64) -> String {
        format!(
            "{bytes} bytes more than fit: {} of {} are taken; raise the worker's memory or divide the layer into more parts",
            self.used(),
            self.limit()
        )
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
        assert!(budget.refusal(41).contains("60 of 100"));
        let second = budget.reserve(40).expect("40 of 40");
        assert_eq!(first.bytes() + second.bytes(), budget.used());
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
