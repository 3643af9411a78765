//! Statistics of a loaded model: counts and total times, in the fields that clients of the protocol know.
//!
//! Relevant if you want to know what a count means. An *inference* is an item of a request that succeeded, an *execution* a
//! run; their quotient is the mean batch. Quantiles are in the metrics, not here.
//!
//! Invariant: a request is counted once, as a success or a failure, and the number of batch sizes is bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Most batch sizes that are counted one by one.
const MOST_SIZES: usize = 1024;

/// The statistics of a model since it was loaded.
#[derive(Default)]
pub(crate) struct Stats(Mutex<Totals>);

/// A number of events and their total time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Total {
    pub(crate) count: u64,
    /// Nanoseconds.
    pub(crate) ns: u64,
}

/// The times of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Joining the items of its requests.
    pub(crate) input: Duration,
    /// Computing.
    pub(crate) infer: Duration,
    /// Dividing the outputs among its requests.
    pub(crate) output: Duration,
}

/// All counts of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The end of the last run, in milliseconds since 1970.
    pub(crate) last_ms: u64,
    pub(crate) inferences: u64,
    pub(crate) executions: u64,
    /// From the arrival of a request to its answer.
    pub(crate) success: Total,
    pub(crate) fail: Total,
    pub(crate) requests: Phases,
    /// Runs by their number of items, and the phases of each.
    pub(crate) batches: BTreeMap<usize, Phases>,
}

/// The phases of requests, or of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phases {
    pub(crate) queue: Total,
    pub(crate) input: Total,
    pub(crate) infer: Total,
    pub(crate) output: Total,
}

impl Total {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.ns = self.ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Phases {
    fn add(&mut self, times: Times) {
        self.input.add(times.input);
        self.infer.add(times.infer);
        self.output.add(times.output);
    }
}

impl Stats {
    fn locked(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a run that succeeded; `requests` has the items and the time in the queue of each of its requests.
    pub(crate) fn ran(&self, requests: &[(usize, Duration)], times: Times) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut totals = self.locked();
        totals.last_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        totals.executions += 1;
        let mut size = 0;
        for (items, queued) in requests {
            size += items;
            totals.requests.queue.add(*queued);
            totals.requests.add(times);
        }
        totals.inferences += size as u64;
        if totals.batches.len() < MOST_SIZES || totals.batches.contains_key(&size) {
            totals.batches.entry(size).or_default().add(times);
        }
    }

    /// Counts a request `time` after its arrival.
    pub(crate) fn answered(&self, success: bool, time: Duration) {
        let mut totals = self.locked();
        if success { totals.success.add(time) } else { totals.fail.add(time) }
    }

    /// The counts now.
    pub(crate) fn totals(&self) -> Totals {
        self.locked().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_requests_are_counted_apart() {
        let stats = Stats::default();
        let ms = Duration::from_millis;
        let times = Times { input: ms(1), infer: ms(20), output: ms(3) };
        stats.ran(&[(1, ms(5)), (2, ms(7))], times);
        stats.ran(&[(3, ms(0))], times);
        stats.answered(true, ms(40));
        stats.answered(false, ms(2));
        let totals = stats.totals();
        assert_eq!((totals.inferences, totals.executions), (6, 2));
        assert_eq!(totals.requests.queue, Total { count: 3, ns: 12_000_000 });
        assert_eq!(totals.requests.infer, Total { count: 3, ns: 60_000_000 });
        assert_eq!((totals.success.ns, totals.fail.ns), (40_000_000, 2_000_000));
        let sizes: Vec<_> = totals.batches.iter().map(|(size, of)| (*size, of.infer.count)).collect();
        assert_eq!(sizes, [(3, 2)]);
        assert!(totals.last_ms > 1_700_000_000_000);
    }

    #[test]
    fn sizes_that_clients_choose_take_bounded_memory() {
        let stats = Stats::default();
        for size in 1..2 * MOST_SIZES {
            stats.ran(&[(size, Duration::ZERO)], Times::default());
        }
        assert_eq!(stats.totals().batches.len(), MOST_SIZES);
        assert_eq!(stats.totals().executions, 2 * MOST_SIZES as u64 - 1);
    }
}
