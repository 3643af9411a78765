//! What earlier runs of a layer tell about the next one.
//!
//! Invariant: it depends on the layer, its code and the runs it was shown alone, so that simulated runs teach what real
//! ones do.

use std::time::Duration;

use super::options::LayerOptions;
use crate::coding::{Code, Rounding};
use crate::scheduler::{Expected, Latencies, RunEstimates, RunOutcome};

/// Inverting k x k parts of subtasks takes this many times k cubed, beside decoding more slowly: what is sooner complete
/// than that needs no parts.
const PARTS_COST: Duration = Duration::from_nanos(10);

/// From when on parts count, without experience, where workers share cores.
const CROWDED_PARTS: Duration = Duration::from_millis(20);

/// A copy of a subtask takes so long to make and to hand out that sooner nothing is overdue.
const LEAST_HEDGE: Duration = Duration::from_millis(1);

/// How often the experience is looked at: a quantile takes some microseconds.
const RUNS_BETWEEN_QUANTILES: u32 = 8;

/// At this condition number a result is good enough not to wait for a better one.
const COMFORTABLE_CONDITION: f64 = 100.0;

/// How long subtasks of a layer took in earlier runs.
pub(super) struct LatencyHistory {
    latencies: Latencies,
    expected: Expected,
    /// When subtasks are overdue, and in how many runs that is to be computed again.
    overdue: Option<Duration>,
    fresh_for: u32,
}

/// The layer that a run is about.
pub(super) struct RunContext<'a> {
    pub(super) options: &'a LayerOptions,
    pub(super) code: &'a Code,
    /// Of the workers' arithmetic.
    pub(super) rounding: Rounding,
    /// Normwise error bound above which a result is not taken.
    pub(super) max_error: Option<f64>,
    /// Whether workers share cores.
    pub(super) crowded: bool,
    /// What computing the layer on this machine is predicted to take.
    pub(super) local: Duration,
}

impl LatencyHistory {
    /// None of `n` subtasks.
    pub(super) fn new(n: usize) -> Self {
        Self { latencies: Latencies::new(), expected: Expected::new(n), overdue: None, fresh_for: 0 }
    }

    /// What earlier runs tell about the one that begins.
    pub(super) fn terms(&mut self, about: &RunContext<'_>) -> RunEstimates {
        let RunContext { options, code, rounding, max_error, crowded, local } = *about;
        if self.fresh_for == 0 {
            let quantile = |q| self.latencies.quantile(q);
            // Where all take about as long, being slower than most is not being overdue.
            let overdue = options.hedge.and_then(quantile).zip(quantile(0.1));
            self.overdue = overdue.map(|(q, fast)| q.max(fast * 3 / 2).max(LEAST_HEDGE));
            self.fresh_for = RUNS_BETWEEN_QUANTILES;
        }
        self.fresh_for -= 1;
        let parts = u32::try_from((code.k_a() * code.k_b()).pow(3)).unwrap_or(u32::MAX);
        let inverse = PARTS_COST * parts;
        // Threads that wait for each other's cores finish one after the other: parts are of use when some are overdue.
        let parts_at = if crowded { inverse.max(self.overdue.unwrap_or(CROWDED_PARTS)) } else { inverse };
        RunEstimates {
            comfortable: rounding.normwise(COMFORTABLE_CONDITION),
            max_error,
            parts_at: Some(parts_at),
            hedge_at: self.overdue,
            expected: (0..code.n()).map(|i| self.expected.get(i)).collect(),
            local,
        }
    }

    /// Books how long the first attempts at its `n` subtasks took.
    pub(super) fn learn<R>(&mut self, n: usize, gathered: &RunOutcome<R>) {
        for attempt in gathered.attempts.iter().take(n) {
            match attempt.latency {
                Some(latency) if attempt.complete => {
                    self.latencies.observe(attempt.since + latency);
                    self.expected.observe(attempt.subtask, attempt.since + latency);
                }
                _ if attempt.failed() => {}
                _ => self.latencies.censored(gathered.wait),
            }
        }
    }
}
