//! The sets of memory that the runs of a model use.
//!
//! A run needs a set for itself. Sets are made when they are first needed and kept for later runs; so a model that runs one
//! request at a time has one.
//!
//! Relevant if you want to run a model from many threads.
//!
//! Invariant: there are at most [`MOST_SETS`] sets. A run that finds all of them in use waits for one, until it is
//! cancelled.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::execute::Arrays;
use crate::error::{Error, Result};
use crate::sync::locked;
use crate::worker::CancelToken;

/// Most runs of a model that are in flight at a time: enough to keep the workers busy, and a bound of the memory.
pub(super) const MOST_SETS: usize = 16;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Sets(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    free: Vec<Arrays>,
    /// Sets that exist, free or in use.
    made: usize,
}

/// A set in use. It is free again when it is returned, and forgotten when it is dropped.
pub(super) struct Set<'a> {
    sets: &'a Sets,
    pub(super) arrays: Arrays,
    whole: bool,
}

impl Sets {
    /// A set that no other run uses: one that is free, or a new one that `make` makes, or the next one that becomes free.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once `cancel` is cancelled.
    pub(super) fn take(&self, cancel: &CancelToken, make: impl FnOnce() -> Arrays) -> Result<Set<'_>> {
        let mut state = locked(&self.0.state);
        if state.free.is_empty() && state.made >= MOST_SETS {
            let shared = Arc::clone(&self.0);
            drop(state);
            let _wakes = cancel.on_cancel(move || {
                // Taking the lock orders the call after the check of a run that is about to wait.
                drop(locked(&shared.state));
                shared.freed.notify_all();
            });
            state = locked(&self.0.state);
            while state.free.is_empty() && state.made >= MOST_SETS {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                state = self.0.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let free = state.free.pop();
        state.made += usize::from(free.is_none());
        drop(state);
        // Forgets the set if `make` panics.
        let mut unmade = Unmade { sets: self, made: free.is_none() };
        let arrays = free.unwrap_or_else(make);
        unmade.made = false;
        Ok(Set { sets: self, arrays, whole: false })
    }

    fn forget(&self) {
        locked(&self.0.state).made -= 1;
        self.0.freed.notify_one();
    }
}

struct Unmade<'a> {
    sets: &'a Sets,
    made: bool,
}

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        if self.made {
            self.sets.forget();
        }
    }
}

impl Set<'_> {
    /// Returns the set after a run that left it whole.
    pub(super) fn done(mut self) {
        self.whole = true;
    }
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        if !self.whole {
            return self.sets.forget();
        }
        let arrays = std::mem::take(&mut self.arrays);
        locked(&self.sets.0.state).free.push(arrays);
        self.sets.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn as_many_runs_as_there_are_sets_are_in_flight() {
        let (sets, made, now, most) =
            (Sets::default(), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for run in 0..3 * MOST_SETS {
                let (sets, made, now, most) = (&sets, &made, &now, &most);
                scope.spawn(move || {
                    let make = || {
                        made.fetch_add(1, Ordering::SeqCst);
                        Arrays::default()
                    };
                    let set = sets.take(&CancelToken::new(), make).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(3));
                    now.fetch_sub(1, Ordering::SeqCst);
                    // Some runs fail.
                    if run % 3 > 0 { set.done() } else { drop(set) }
                });
            }
        });
        assert!(most.into_inner() <= MOST_SETS);
        assert!(made.into_inner() >= MOST_SETS);
        let state = locked(&sets.0.state);
        assert!(state.free.len() == state.made && state.made <= MOST_SETS);
    }

    #[test]
    fn one_run_at_a_time_uses_one_set() {
        let sets = Sets::default();
        let mut made = 0;
        for _ in 0..10 {
            let make = || {
                made += 1;
                Arrays::default()
            };
            sets.take(&CancelToken::new(), make).unwrap().done();
        }
        assert_eq!(made, 1);
    }

    #[test]
    fn a_run_that_waits_can_be_cancelled() {
        let sets = Sets::default();
        let held: Vec<_> =
            (0..MOST_SETS).map(|_| sets.take(&CancelToken::new(), Arrays::default).unwrap()).collect();
        let cancel = CancelToken::new();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| sets.take(&cancel, Arrays::default).is_err());
            let end = Instant::now() + Duration::from_millis(20);
            while !waits.is_finished() && Instant::now() < end {
                std::thread::yield_now();
            }
            assert!(!waits.is_finished(), "a run begins without a set");
            cancel.cancel();
            assert!(waits.join().unwrap());
        });
        drop(held);
        sets.take(&CancelToken::new(), Arrays::default).unwrap().done();
    }
}
