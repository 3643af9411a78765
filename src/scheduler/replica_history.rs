//! How long the workers take for a part of a model, and how long its runs take.
//!
//! Invariant: a worker that was slow once is tried again: its time approaches that of the fastest while others are used.

use std::collections::BTreeMap;
use std::time::Duration;

use super::latency::Latencies;
use crate::ids::WorkerId;

/// Weight of a new time in the smoothed one.
const WEIGHT: f64 = 0.25;
/// Runs without a worker after which its distance from the fastest has halved.
const HALF_LIFE: f64 = 8.0;
/// Observations from which on quantiles are used.
const ENOUGH: usize = 16;
/// With fewer observations a run is overdue after this many times the prediction or the longest run so far.
const OVERDUE: u32 = 4;
/// With more of them it is overdue this much after the quantile: a run that is about to end needs no second worker.
const MARGIN: f64 = 1.1;
/// The least time after which a run is overdue: about what messages between threads take.
const LEAST_OVERDUE: Duration = Duration::from_millis(1);
/// The pause of a worker after a failure, and the longest; it doubles with each further one.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is known of one part of a model. Times of its clock count from any fixed start.
#[derive(Clone, Debug, Default)]
pub struct ReplicaHistory {
    workers: BTreeMap<WorkerId, Record>,
    latencies: Latencies,
    observed: usize,
    longest: Duration,
    /// The caller's prediction.
    predicted: Option<Duration>,
    runs: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Smoothed time for the part, without the wait in the queue.
    seconds: Option<f64>,
    /// Number of runs when it was last updated.
    at: u32,
    /// Failures since the last result.
    failures: u32,
    /// End of the pause after the last failure.
    resumes: Duration,
}

impl ReplicaHistory {
    /// No runs yet. `predicted`: how long a worker should take, if there is a prediction.
    #[must_use]
    pub fn new(predicted: Option<Duration>) -> Self {
        Self { predicted, ..Self::default() }
    }

    /// Counts a run that begins; returns its number, from 0.
    pub fn begin(&mut self) -> u32 {
        let number = self.runs;
        self.runs = self.runs.saturating_add(1);
        number
    }

    /// Records a result: the worker was `busy` for this time, and the result came `latency` after its dispatch.
    pub fn observe(&mut self, worker: WorkerId, busy: Duration, latency: Duration) {
        let runs = self.runs;
        let record = self.workers.entry(worker).or_default();
        let busy = busy.as_secs_f64();
        let seconds = record.seconds.map_or(busy, |before| before + WEIGHT * (busy - before));
        *record = Record { seconds: Some(seconds), at: runs, failures: 0, resumes: Duration::ZERO };
        self.latencies.observe(latency);
        self.observed += 1;
        self.longest = self.longest.max(latency);
    }

    /// Records an attempt that was cancelled after `time`, which `ahead` other tasks of the worker preceded.
    pub fn censored(&mut self, worker: WorkerId, time: Duration, ahead: usize) {
        let runs = self.runs;
        let record = self.workers.entry(worker).or_default();
        let at_least = time.as_secs_f64() / (ahead as f64 + 1.0);
        if record.seconds.is_none_or(|seconds| seconds < at_least) {
            *record = Record { seconds: Some(at_least), at: runs, ..*record };
        }
        self.latencies.censored(time);
        self.observed += 1;
    }

    /// Records a failure at `now`: others come first for a while.
    pub fn failed(&mut self, worker: WorkerId, now: Duration) {
        let record = self.workers.entry(worker).or_default();
        let pause = PAUSE.saturating_mul(1 << record.failures.min(16)).min(LONGEST_PAUSE);
        record.failures = record.failures.saturating_add(1);
        record.resumes = now.saturating_add(pause);
    }

    /// Whether the worker failed of late.
    #[must_use]
    pub fn pauses(&self, worker: WorkerId, now: Duration) -> bool {
        self.workers.get(&worker).is_some_and(|record| record.resumes > now)
    }

    /// Seconds that the worker is expected to take for the part. Workers that have not been measured are typical ones.
    #[must_use]
    pub fn expected(&self, worker: WorkerId) -> f64 {
        let mut known: Vec<f64> = self.workers.values().filter_map(|record| record.seconds).collect();
        known.sort_by(f64::total_cmp);
        let Some(best) = known.first() else {
            return self.predicted.map_or(1.0, |predicted| predicted.as_secs_f64());
        };
        let own = self.workers.get(&worker).and_then(|record| Some((record.seconds?, record.at)));
        match own {
            None => known[known.len() / 2],
            Some((seconds, at)) => {
                let idle = f64::from(self.runs.saturating_sub(at).saturating_sub(1));
                best + (seconds - best) * 0.5_f64.powf(idle / HALF_LIFE)
            }
        }
    }

    /// Time from the dispatch of an attempt after which it is overdue, at this quantile of earlier ones. `None` without any
    /// knowledge.
    #[must_use]
    pub fn overdue_after(&self, quantile: f64) -> Option<Duration> {
        let after = if self.observed >= ENOUGH {
            self.latencies.quantile(quantile)?.mul_f64(MARGIN)
        } else {
            let known = self.predicted.max((self.observed > 0).then_some(self.longest))?;
            known.saturating_mul(OVERDUE)
        };
        Some(after.max(LEAST_OVERDUE))
    }
}
