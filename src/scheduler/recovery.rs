//! What gathering asks about a code and its audit: does this set of sub-results decode, and how well?
//!
//! Invariant: nothing here depends on time.

use super::arrivals::Arrivals;
use crate::ids::{SubtaskId, WorkerId};

/// The verdict of a [`Recovery`] on a set that it could decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Decode from the set.
    Accept,
    /// Something is wrong with the set; more results may show what. [`Recovery::error`] is infinite until more arrive.
    Doubt,
    /// Something is wrong with the set, and no further result would help.
    Refuse,
}

/// The properties of a code and its audit that gathering depends on. `arrivals` are the sub-results so far.
pub trait Recovery {
    /// Called for the first arrival of each sub-result, once it is in `arrivals`.
    fn arrived(&mut self, _arrivals: &Arrivals, _subtask: SubtaskId, _index: usize) {}

    /// Lets parts of subtasks count from now on. Called at most once.
    fn count_parts(&mut self, _arrivals: &Arrivals) {}

    /// Predicted relative error of decoding from `arrivals`; infinite while they do not decode.
    fn error(&mut self, arrivals: &Arrivals) -> f64;

    /// [`Recovery::error`] if the subtasks `more` were complete as well.
    fn error_with(&mut self, arrivals: &Arrivals, more: &[SubtaskId]) -> f64;

    /// Whether the complete subtasks together with those of `also` are enough. Monotone: more subtasks never hurt.
    fn suffices_with(&self, arrivals: &Arrivals, also: &dyn Fn(SubtaskId) -> bool) -> bool;

    /// Whether an incomplete subtask would add anything. With copies of parts, a subtask may not.
    fn wants(&self, _arrivals: &Arrivals, _subtask: SubtaskId) -> bool {
        true
    }

    /// Examines the results before they are decoded.
    fn judge(&mut self, _arrivals: &Arrivals) -> Verdict {
        Verdict::Accept
    }

    /// Whether the last verdict was [`Verdict::Doubt`].
    fn in_doubt(&self) -> bool {
        false
    }

    /// Whether one more result is wanted for comparison, although decoding does not need it.
    fn wishes(&self, _arrivals: &Arrivals) -> bool {
        false
    }

    /// After [`Verdict::Accept`]: the sub-results to decode from, as (subtask, index).
    fn used(&self, arrivals: &Arrivals) -> Vec<(SubtaskId, usize)>;

    /// Workers whose results contradict the others.
    fn faulty(&self) -> &[WorkerId] {
        &[]
    }

    /// Number of complete subtasks that decoding needs, spare ones of an audit included.
    fn needed(&self) -> usize;
}
