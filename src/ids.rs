//! The numbers of workers and of subtasks, as two types: a pair of them cannot be swapped by mistake.
//!
//! A list with one entry for each worker or subtask is indexed with the number itself: `list[worker.0]`.

use std::fmt;

use serde::Serialize;

/// Index of a worker within its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct WorkerId(pub usize);

/// Index of a subtask within its layer, 0..n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SubtaskId(pub usize);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SubtaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<usize> for WorkerId {
    fn from(index: usize) -> Self {
        Self(index)
    }
}

impl From<usize> for SubtaskId {
    fn from(index: usize) -> Self {
        Self(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_shown_and_serialised_as_a_plain_number() {
        let (worker, subtask) = (WorkerId::from(3), SubtaskId::from(12));
        assert_eq!(format!("{worker} {subtask:>4}"), "3   12");
        assert_eq!(serde_json::to_string(&(worker, Some(subtask))).unwrap(), "[3,12]");
    }
}
