//! Estimates for the next run of a layer, from the latencies of earlier runs.
//!
//! Invariant: the estimates depend only on the layer, its code and the runs that were recorded. Simulated runs are
//! therefore recorded like real ones.

use std::time::Duration;

use super::options::LayerOptions;
use crate::coding::{Code, Rounding};
use crate::ids::SubtaskId;
use crate::scheduler::{Decision, Expected, Latencies, RunEstimates, RunOutcome};

/// Decoding from parts inverts a matrix of k x k parts. That costs this time times k cubed, and decoding itself is slower
/// too: subtasks that complete sooner make parts useless.
const PARTS_COST: Duration = Duration::from_nanos(10);

/// Time from which parts count where workers share cores and no latencies are known yet.
const CROWDED_PARTS: Duration = Duration::from_millis(20);

/// The least time after which a subtask is overdue: making and dispatching a copy takes about as long.
const LEAST_HEDGE: Duration = Duration::from_millis(1);

/// A run is late if it takes longer than this fraction of the runs of its layer.
const USUAL: f64 = 0.95;

/// Where workers share cores, a run is late after this many times the median time.
const LATE: u32 = 2;

/// Runs between two computations of the quantiles, each of which takes some microseconds.
const RUNS_BETWEEN_QUANTILES: u32 = 8;

/// Condition number up to which a result is good enough not to wait for a better one.
const COMFORTABLE_CONDITION: f64 = 100.0;

/// The latencies of a layer's subtasks in earlier runs.
pub(super) struct LatencyHistory {
    latencies: Latencies,
    /// The times to the decodable set; censored at the second attempt at a subtask.
    runs: Latencies,
    expected: Expected,
    /// The time after which subtasks are overdue, and the runs until it is computed again.
    overdue: Option<Duration>,
    fresh_for: u32,
}

/// The layer and the settings of a run.
pub(super) struct RunContext<'a> {
    pub(super) options: &'a LayerOptions,
    pub(super) code: &'a Code,
    /// Rounding of the workers' arithmetic.
    pub(super) rounding: Rounding,
    /// Normwise error bound above which a result is refused.
    pub(super) max_error: Option<f64>,
    /// Whether workers share cores.
    pub(super) crowded: bool,
    /// Predicted time to compute the layer on this machine.
    pub(super) local: Duration,
}

impl LatencyHistory {
    /// An empty history of `n` subtasks.
    pub(super) fn new(n: usize) -> Self {
        Self {
            latencies: Latencies::new(),
            runs: Latencies::new(),
            expected: Expected::new(n),
            overdue: None,
            fresh_for: 0,
        }
    }

    /// Estimates for the run that begins.
    pub(super) fn terms(&mut self, about: &RunContext<'_>) -> RunEstimates {
        let RunContext { options, code, rounding, max_error, crowded, local } = *about;
        if self.fresh_for == 0 {
            let quantile = |q| self.latencies.quantile(q);
            // Where all latencies are similar, a subtask above the quantile is not yet overdue.
            let overdue = options.policy.hedge.and_then(quantile).zip(quantile(0.1));
            // A run that needs most of its subtasks always waits for some that are slower than the quantile. It is late only if
            // it takes longer than most runs.
            let mut usual = self.runs.quantile(USUAL).unwrap_or_default();
            if crowded {
                // Threads that share cores finish one after the other, in an order that changes.
                usual = usual.max(self.runs.quantile(0.5).unwrap_or_default() * LATE);
            }
            self.overdue = overdue.map(|(q, fast)| q.max(fast * 3 / 2).max(usual).max(LEAST_HEDGE));
            self.fresh_for = RUNS_BETWEEN_QUANTILES;
        }
        self.fresh_for -= 1;
        let parts = u32::try_from((code.k_a() * code.k_b()).pow(3)).unwrap_or(u32::MAX);
        let inverse = PARTS_COST * parts;
        // Threads that share cores finish one after the other: parts are useful only once some of them are overdue.
        let parts_at = if crowded { inverse.max(self.overdue.unwrap_or(CROWDED_PARTS)) } else { inverse };
        RunEstimates {
            comfortable: rounding.normwise(COMFORTABLE_CONDITION),
            max_error,
            parts_at: Some(parts_at),
            hedge_at: self.overdue,
            expected: (0..code.n()).map(|i| self.expected.get(SubtaskId(i))).collect(),
            local,
            spare: options
                .computes_spares(code)
                .then(|| local / u32::try_from(code.recovery_threshold()).unwrap_or(u32::MAX)),
        }
    }

    /// Records the latencies of the first attempts at the `n` subtasks.
    pub(super) fn learn<R>(&mut self, n: usize, gathered: &RunOutcome<R>) {
        if matches!(gathered.end, Decision::Decode) {
            match gathered.attempts.get(n) {
                None => self.runs.observe(gathered.wait),
                // Without the second attempt it would have taken longer than that.
                Some(second) => self.runs.censored(second.since.min(gathered.wait)),
            }
        }
        for attempt in gathered.attempts.iter().take(n) {
            match attempt.latency {
                Some(latency) if attempt.complete => {
                    self.latencies.observe(attempt.since + latency);
                    self.expected.observe(attempt.subtask, attempt.since + latency);
                }
                _ if attempt.failed() => {}
                _ => self.latencies.censored(attempt.under_way(gathered.wait)),
            }
        }
    }
}
