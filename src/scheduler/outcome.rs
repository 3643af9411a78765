//! The outcome of one layer run: its attempts, its results, and its decision.
//!
//! Invariant: once the outcome is dropped, the mailbox is closed, and nothing more is posted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::arrivals::Arrivals;
use super::slot::{Replies, ReplyKind};
use crate::error::Error;
use crate::ids::{SubtaskId, WorkerId};
use crate::worker::{PhaseClock, PhaseTimes};

/// Outcome of one attempt at a subtask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All or some of its results were used for the output.
    Used,
    /// It completed after decoding had begun.
    Late,
    /// It had not completed when it was no longer needed.
    Cancelled,
    /// The worker was lost or reported a failure.
    Failed,
    /// It returned a result that cannot be right.
    Corrupt,
    /// The worker had nothing to do.
    Idle,
}

/// One attempt at a subtask.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) subtask: SubtaskId,
    pub(crate) worker: WorkerId,
    pub(crate) outcome: Outcome,
    /// Time from the run's first dispatch to that of this attempt.
    pub(crate) since: Duration,
    /// Time from the attempt's dispatch to its last reply; `None` without a reply.
    pub(crate) latency: Option<Duration>,
    /// Its phases up to the last reply, or without one up to the decision.
    pub(crate) phases: PhaseTimes,
    pub(super) clock: Arc<PhaseClock>,
    /// Number of sub-results delivered.
    pub(crate) arrived: usize,
    /// All requested sub-results arrived.
    pub(crate) complete: bool,
    /// It was made only for a result to compare with.
    pub(crate) spare: bool,
    /// Number of sub-results requested.
    pub(super) wanted: usize,
    pub(crate) cause: Option<String>,
    pub(super) dispatched: Instant,
    /// No more replies are expected.
    pub(crate) ended: bool,
}

impl Attempt {
    /// Records the time of a reply, and the phases up to it.
    pub(super) fn replied(&mut self, at: Instant, phases: PhaseTimes) {
        self.latency = Some(at.saturating_duration_since(self.dispatched));
        self.phases = phases;
    }

    /// Records the phases of an attempt without a reply up to the decision, which was taken at `now`.
    pub(super) fn decided(&mut self, now: Instant) {
        if self.latency.is_none() {
            self.phases = self.clock.at(now);
        }
    }

    /// How long it has been under way, from the run's first dispatch, if it was cancelled or the run ended after `wait`.
    pub(crate) fn under_way(&self, wait: Duration) -> Duration {
        self.latency.filter(|_| self.ended).map_or(wait, |latency| self.since + latency)
    }

    /// Whether it ended without a usable latency.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed | Outcome::Corrupt)
    }
}

/// The decision that ended the gathering.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Decode from the recovery's sub-results.
    Decode,
    /// Compute the layer locally.
    Local,
    /// Neither is possible.
    Failed(Error),
}

/// What a run sent, received and repeated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes of coded slabs sent to workers.
    pub(crate) bytes_up: usize,
    /// Bytes of sub-results received before the decision.
    pub(crate) bytes_down: usize,
    /// Subtasks that were redispatched because decoding needed them.
    pub(crate) redispatched: usize,
    /// Subtasks of which an idle worker got a copy.
    pub(crate) hedged: usize,
}

impl Traffic {
    /// Whether any subtask was given to a second worker.
    pub(crate) fn repeated(&self) -> bool {
        self.redispatched + self.hedged > 0
    }
}

/// The outcome of the gathering.
pub(crate) struct RunOutcome<R> {
    pub(crate) end: Decision,
    pub(crate) recovery: R,
    pub(crate) arrivals: Arrivals,
    pub(crate) attempts: Vec<Attempt>,
    /// Time from the first dispatch to the decision.
    pub(crate) wait: Duration,
    /// The rest of the deadline after the decision.
    pub(crate) left: Duration,
    pub(crate) traffic: Traffic,
    pub(super) replies: Arc<Replies>,
}

impl<R> Drop for RunOutcome<R> {
    fn drop(&mut self) {
        self.replies.close();
    }
}

impl<R> RunOutcome<R> {
    /// Absorbs the replies that have arrived since the decision: complete attempts that were not needed become *late*.
    pub(crate) fn settle(&mut self) {
        for reply in self.replies.drain() {
            let attempt = &mut self.attempts[reply.attempt];
            if matches!((reply.what, attempt.outcome), (ReplyKind::Finished, Outcome::Cancelled)) {
                attempt.outcome = Outcome::Late;
                attempt.complete = true;
                attempt.replied(reply.at, reply.phases);
            }
        }
    }

    /// Marks a worker's attempts as corrupt.
    pub(crate) fn blame(&mut self, worker: WorkerId, cause: &str) {
        for attempt in self.attempts.iter_mut().filter(|a| a.worker == worker && a.arrived > 0) {
            attempt.outcome = Outcome::Corrupt;
            attempt.cause = Some(cause.to_owned());
        }
    }
}
