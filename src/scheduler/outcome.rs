//! What a run of one layer comes to: its attempts, its results, and how the gathering ended.
//!
//! Invariant: when it is gone, or its buffers are taken, the mailbox is closed: whatever is still posted comes back to its
//! worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::slot::{Replies, ReplyKind};
use crate::array::Values;
use crate::error::Error;

/// What became of one attempt at a subtask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its results went into the output, all or some of them.
    Used,
    /// It was complete, but after decoding had begun.
    Late,
    /// It was not complete when it was no longer needed.
    Cancelled,
    /// The worker was lost or reported a failure.
    Failed,
    /// It returned something that cannot be right.
    Corrupt,
    /// The worker had nothing to do.
    Idle,
}

/// One attempt at a subtask.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) subtask: usize,
    pub(crate) worker: usize,
    pub(crate) outcome: Outcome,
    /// From the run's first dispatch to its own.
    pub(crate) since: Duration,
    /// From its dispatch to its last reply; `None` when there was none.
    pub(crate) latency: Option<Duration>,
    /// Sub-results it delivered.
    pub(crate) arrived: usize,
    /// All it was asked for came.
    pub(crate) complete: bool,
    /// It was made for nothing but a result to compare with.
    pub(crate) spare: bool,
    /// Sub-results it was asked for.
    pub(super) wanted: usize,
    pub(crate) cause: Option<String>,
    pub(super) dispatched: Instant,
    /// No more is expected of it.
    pub(super) ended: bool,
}

impl Attempt {
    /// It ended without an answer to learn from.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed | Outcome::Corrupt)
    }
}

/// How the gathering ended.
#[derive(Debug)]
pub(crate) enum Decision {
    /// The recovery's sub-results are to be decoded.
    Decode,
    /// The layer is to be computed locally.
    Local,
    /// Neither.
    Failed(Error),
}

/// The end of the gathering.
pub(crate) struct RunOutcome<R> {
    pub(crate) end: Decision,
    pub(crate) recovery: R,
    /// Sub-results by subtask, then by index.
    pub(crate) results: Vec<Vec<Option<Values>>>,
    pub(crate) attempts: Vec<Attempt>,
    /// From first dispatch to the decision.
    pub(crate) wait: Duration,
    /// What is left of the deadline.
    pub(crate) left: Duration,
    pub(crate) bytes_up: usize,
    pub(crate) bytes_down: usize,
    pub(crate) redispatched: usize,
    pub(crate) hedged: usize,
    /// Results that came after the decision.
    pub(super) unread: Vec<Values>,
    pub(super) replies: Arc<Replies>,
}

impl<R> Drop for RunOutcome<R> {
    fn drop(&mut self) {
        self.replies.close();
    }
}

impl<R> RunOutcome<R> {
    /// Looks once more at who has answered meanwhile: complete attempts that were not needed become *late*.
    pub(crate) fn settle(&mut self) {
        for reply in self.replies.drain() {
            let attempt = &mut self.attempts[reply.attempt];
            match (reply.what, attempt.outcome) {
                (ReplyKind::Finished, Outcome::Cancelled) => {
                    attempt.outcome = Outcome::Late;
                    attempt.complete = true;
                    attempt.latency = Some(reply.at.saturating_duration_since(attempt.dispatched));
                }
                (ReplyKind::SubResult { values, .. }, _) => self.unread.push(values),
                _ => {}
            }
        }
    }

    /// Books what a worker delivered as wrong.
    pub(crate) fn blame(&mut self, worker: usize, cause: &str) {
        for attempt in self.attempts.iter_mut().filter(|a| a.worker == worker && a.arrived > 0) {
            attempt.outcome = Outcome::Corrupt;
            attempt.cause = Some(cause.to_owned());
        }
    }

    /// The buffers of all results, for the next run.
    pub(crate) fn into_buffers(mut self) -> impl Iterator<Item = Values> {
        // What is posted from here on comes back to its worker.
        self.replies.close();
        self.settle();
        let (results, unread) = (std::mem::take(&mut self.results), std::mem::take(&mut self.unread));
        results.into_iter().flatten().flatten().chain(unread)
    }
}
