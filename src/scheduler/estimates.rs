//! What is known of a run before it begins.

use std::time::Duration;

/// Estimates made before a run begins.
#[derive(Clone, Debug, Default)]
pub struct RunEstimates {
    /// Predicted error below which nothing is worth waiting for.
    pub comfortable: f64,
    /// Predicted error above which a result would be refused.
    pub max_error: Option<f64>,
    /// Time from which parts of subtasks count, if ever: before it, complete subtasks are likely to come sooner than parts
    /// could be decoded.
    pub parts_at: Option<Duration>,
    /// Time at which missing subtasks are overdue; `None` without latencies of earlier runs.
    pub hedge_at: Option<Duration>,
    /// Time at which each subtask is expected to be complete, where known; may be shorter than n.
    pub expected: Vec<Option<Duration>>,
    /// Predicted time to compute the layer locally.
    pub local: Duration,
    /// Predicted time to compute a spare result locally, for an audit; `None` if only workers compute such results.
    pub spare: Option<Duration>,
}
