//! Which worker holds which subtask's coded filters: the rules of placement, on real and simulated workers alike.
//!
//! Invariant: every pair in `held` was told to a worker, and only pairs taken out of it are removed there.

use std::collections::{HashSet, VecDeque};

use crate::ids::{SubtaskId, WorkerId};

/// Runs between two checks of whether the assignment still fits the workers' speeds.
const RUNS_BETWEEN: u32 = 8;

/// The assignment of a layer's subtasks, and the filters on each worker.
pub(super) struct Holdings {
    /// The worker that each subtask is dispatched to.
    assignment: Vec<WorkerId>,
    /// All filters that were sent.
    held: HashSet<(WorkerId, SubtaskId)>,
    /// Copies on workers beside the assigned ones, oldest first.
    copies: VecDeque<(WorkerId, SubtaskId)>,
    /// Runs since the last check of the assignment.
    runs: u32,
    /// The fleet's number of changes at that check.
    seen: u64,
}

/// What a worker that takes over a subtask needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TakeOver {
    /// It holds the filters, or they are on their way.
    Held,
    /// It must be sent the filters. A copy must be removed to make room.
    Send {
        /// The oldest copy, where there would be more copies than subtasks.
        evicted: Option<(WorkerId, SubtaskId)>,
    },
}

impl Holdings {
    /// The holdings under an assignment, before any filters are sent. `changes` is the fleet's number of changes so far.
    pub(super) fn new(assignment: Vec<WorkerId>, changes: u64) -> Self {
        Self { assignment, held: HashSet::new(), copies: VecDeque::new(), runs: 0, seen: changes }
    }

    /// The worker of each subtask.
    pub(super) fn assignment(&self) -> &[WorkerId] {
        &self.assignment
    }

    /// The subtasks with their workers, in order.
    pub(super) fn homes(&self) -> impl Iterator<Item = (SubtaskId, WorkerId)> {
        (0..).map(SubtaskId).zip(self.assignment.iter().copied())
    }

    /// Records filters that are sent to a worker; false if they were before.
    pub(super) fn send(&mut self, worker: WorkerId, subtask: SubtaskId) -> bool {
        self.held.insert((worker, subtask))
    }

    /// Records that filters did not arrive, or are removed.
    pub(super) fn remove(&mut self, worker: WorkerId, subtask: SubtaskId) {
        self.held.remove(&(worker, subtask));
    }

    /// Whether a worker holds the filters of a subtask, or they are on their way to it.
    pub(super) fn holds(&self, subtask: SubtaskId, worker: WorkerId) -> bool {
        self.held.contains(&(worker, subtask))
    }

    /// Records that a worker takes over a subtask for one run.
    pub(super) fn take_over(&mut self, subtask: SubtaskId, worker: WorkerId) -> TakeOver {
        if !self.send(worker, subtask) {
            return TakeOver::Held;
        }
        self.copies.push_back((worker, subtask));
        let full = self.copies.len() > self.assignment.len();
        let evicted = if full { self.copies.pop_front() } else { None };
        if let Some(old) = evicted {
            self.held.remove(&old);
        }
        TakeOver::Send { evicted }
    }

    /// Begins to move a subtask to another worker; true if that must be sent the filters.
    pub(super) fn begin_move(&mut self, subtask: SubtaskId, worker: WorkerId) -> bool {
        self.copies.retain(|copy| *copy != (worker, subtask));
        self.send(worker, subtask)
    }

    /// Ends a move to a worker that has its filters; returns the worker from which they are to be removed.
    pub(super) fn end_move(&mut self, subtask: SubtaskId, worker: WorkerId) -> WorkerId {
        let old = std::mem::replace(&mut self.assignment[subtask.0], worker);
        self.held.remove(&(old, subtask));
        old
    }

    /// Counts a run.
    pub(super) fn count_run(&mut self) {
        self.runs += 1;
    }

    /// Whether the assignment is to be checked: after every eighth run, and after changes in the fleet.
    pub(super) fn check_due(&mut self, changes: u64) -> bool {
        let due = self.runs >= RUNS_BETWEEN || self.seen != changes;
        if due {
            (self.runs, self.seen) = (0, changes);
        }
        due
    }

    /// Takes out all filters that are held.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (WorkerId, SubtaskId)> {
        self.held.drain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_copy_makes_room_and_a_moved_subtask_is_no_copy() {
        let (i, w) = (SubtaskId, WorkerId);
        let send = |evicted| TakeOver::Send { evicted };
        let mut holdings = Holdings::new(vec![w(0), w(1)], 0);
        assert!(holdings.send(w(0), i(0)) && holdings.send(w(1), i(1)) && !holdings.send(w(1), i(1)));
        assert_eq!(holdings.take_over(i(0), w(0)), TakeOver::Held);
        assert_eq!(holdings.take_over(i(0), w(2)), send(None));
        assert_eq!(holdings.take_over(i(0), w(2)), TakeOver::Held);
        assert_eq!(holdings.take_over(i(1), w(2)), send(None));
        assert_eq!(holdings.take_over(i(1), w(3)), send(Some((w(2), i(0)))));
        assert!(!holdings.holds(i(0), w(2)) && holdings.holds(i(1), w(2)) && holdings.holds(i(1), w(3)));
        // The copy of subtask 1 on worker 2 becomes its home, and can no longer be evicted.
        assert!(!holdings.begin_move(i(1), w(2)));
        assert_eq!(holdings.end_move(i(1), w(2)), w(1));
        assert_eq!(holdings.assignment(), [w(0), w(2)]);
        assert!(!holdings.holds(i(1), w(1)));
        assert_eq!(holdings.take_over(i(0), w(4)), send(None));
        assert_eq!(holdings.take_over(i(0), w(5)), send(Some((w(3), i(1)))));
        let mut held: Vec<_> = holdings.drain().collect();
        held.sort_unstable();
        assert_eq!(held, [(w(0), i(0)), (w(2), i(1)), (w(4), i(0)), (w(5), i(0))]);
    }

    #[test]
    fn the_assignment_is_checked_every_eighth_run_and_after_changes() {
        let mut holdings = Holdings::new(vec![WorkerId(0)], 7);
        for run in 1..=16 {
            holdings.count_run();
            assert_eq!(holdings.check_due(7), run % 8 == 0, "run {run}");
        }
        assert!(holdings.check_due(8));
        assert!(!holdings.check_due(8));
    }
}
