//! Messages about parts of models between runs and the threads of workers.
//!
//! Invariant: every queued run is answered, unless its mailbox is closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mailbox::Mailbox;
use crate::array::Values;
use crate::error::{Error, Result};
use crate::ids::WorkerId;
use crate::worker::{CancelToken, PartKey, PartSignature};

/// The answer to an installation.
pub(crate) struct PartInstalled {
    pub(crate) worker: WorkerId,
    pub(crate) result: Result<PartSignature>,
}

/// One computation of a part by one worker.
pub(crate) struct QueuedPart {
    pub(crate) key: PartKey,
    pub(crate) inputs: Arc<[Values]>,
    pub(crate) signature: Arc<PartSignature>,
    pub(crate) cancel: CancelToken,
    pub(crate) attempt: usize,
    pub(crate) replies: Arc<PartReplies>,
}

/// The reply queue of a run. Closed when the run is over.
pub(crate) type PartReplies = Mailbox<PartReply>;

/// The reply to one attempt.
pub(crate) struct PartReply {
    pub(crate) attempt: usize,
    pub(crate) at: Instant,
    /// Time that the worker was busy with it: without the wait in its queue, or for a core.
    pub(crate) busy: Duration,
    pub(crate) what: PartReplyKind,
}

pub(crate) enum PartReplyKind {
    Outputs {
        values: Vec<Values>,
        /// Whether all elements are finite.
        finite: bool,
    },
    /// Outputs of the wrong number, size or type.
    Unusable(Error),
    Failed(Error),
}

impl QueuedPart {
    pub(super) fn reply(&self, busy: Duration, what: PartReplyKind) {
        // A closed mailbox means that the run is over.
        let _ = self.replies.post(PartReply { attempt: self.attempt, at: Instant::now(), busy, what });
    }

    pub(super) fn fail(&self, error: Error) {
        self.reply(Duration::ZERO, PartReplyKind::Failed(error));
    }

    /// The reply for what a worker returned.
    pub(super) fn inspect(&self, result: Result<Vec<Values>>) -> PartReplyKind {
        let values = match result {
            Ok(values) => values,
            Err(error) => return PartReplyKind::Failed(error),
        };
        if let Err(error) = self.signature.check_outputs(&values) {
            return PartReplyKind::Unusable(error);
        }
        let finite = values.iter().all(|values| values.first_non_finite().is_none());
        PartReplyKind::Outputs { values, finite }
    }
}
