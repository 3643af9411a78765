//! Which worker holds which subtask's coded filters: the rules of placement, on real and simulated workers alike.
//!
//! Invariant: every pair in `held` was told to a worker, and only pairs taken out of it are removed there.

use std::collections::{HashSet, VecDeque};

/// Runs between two checks of whether the assignment still fits the workers' speeds.
const RUNS_BETWEEN: u32 = 8;

/// The assignment of a layer's subtasks, and the filters on each worker.
pub(super) struct Holdings {
    /// The worker that each subtask is dispatched to.
    assignment: Vec<usize>,
    /// (worker, subtask) of all filters that were sent.
    held: HashSet<(usize, usize)>,
    /// Copies on workers beside the assigned ones, oldest first.
    copies: VecDeque<(usize, usize)>,
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
    /// It must be sent the filters. A copy, as (worker, subtask), must be removed to make room.
    Send {
        /// The oldest copy, where there would be more copies than subtasks.
        evicted: Option<(usize, usize)>,
    },
}

impl Holdings {
    /// The holdings under an assignment, before any filters are sent. `changes` is the fleet's number of changes so far.
    pub(super) fn new(assignment: Vec<usize>, changes: u64) -> Self {
        Self { assignment, held: HashSet::new(), copies: VecDeque::new(), runs: 0, seen: changes }
    }

    /// The worker of each subtask.
    pub(super) fn assignment(&self) -> &[usize] {
        &self.assignment
    }

    /// Records filters that are sent to a worker; false if they were before.
    pub(super) fn send(&mut self, worker: usize, subtask: usize) -> bool {
        self.held.insert((worker, subtask))
    }

    /// Records that filters did not arrive, or are removed.
    pub(super) fn remove(&mut self, worker: usize, subtask: usize) {
        self.held.remove(&(worker, subtask));
    }

    /// Whether a worker holds the filters of a subtask, or they are on their way to it.
    pub(super) fn holds(&self, subtask: usize, worker: usize) -> bool {
        self.held.contains(&(worker, subtask))
    }

    /// Records that a worker takes over a subtask for one run.
    pub(super) fn take_over(&mut self, subtask: usize, worker: usize) -> TakeOver {
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
    pub(super) fn begin_move(&mut self, subtask: usize, worker: usize) -> bool {
        self.copies.retain(|copy| *copy != (worker, subtask));
        self.send(worker, subtask)
    }

    /// Ends a move to a worker that has its filters; returns the worker from which they are to be removed.
    pub(super) fn end_move(&mut self, subtask: usize, worker: usize) -> usize {
        let old = std::mem::replace(&mut self.assignment[subtask], worker);
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

    /// Takes out all filters that are held, as (worker, subtask).
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (usize, usize)> {
        self.held.drain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_copy_makes_room_and_a_moved_subtask_is_no_copy() {
        let mut holdings = Holdings::new(vec![0, 1], 0);
        assert!(holdings.send(0, 0) && holdings.send(1, 1) && !holdings.send(1, 1));
        assert_eq!(holdings.take_over(0, 0), TakeOver::Held);
        assert_eq!(holdings.take_over(0, 2), TakeOver::Send { evicted: None });
        assert_eq!(holdings.take_over(0, 2), TakeOver::Held);
        assert_eq!(holdings.take_over(1, 2), TakeOver::Send { evicted: None });
        assert_eq!(holdings.take_over(1, 3), TakeOver::Send { evicted: Some((2, 0)) });
        assert!(!holdings.holds(0, 2) && holdings.holds(1, 2) && holdings.holds(1, 3));
        // The copy of subtask 1 on worker 2 becomes its home, and can no longer be evicted.
        assert!(!holdings.begin_move(1, 2));
        assert_eq!(holdings.end_move(1, 2), 1);
        assert_eq!(holdings.assignment(), [0, 2]);
        assert!(!holdings.holds(1, 1));
        assert_eq!(holdings.take_over(0, 4), TakeOver::Send { evicted: None });
        assert_eq!(holdings.take_over(0, 5), TakeOver::Send { evicted: Some((3, 1)) });
        let mut held: Vec<_> = holdings.drain().collect();
        held.sort_unstable();
        assert_eq!(held, [(0, 0), (2, 1), (4, 0), (5, 0)]);
    }

    #[test]
    fn the_assignment_is_checked_every_eighth_run_and_after_changes() {
        let mut holdings = Holdings::new(vec![0], 7);
        for run in 1..=16 {
            holdings.count_run();
            assert_eq!(holdings.check_due(7), run % 8 == 0, "run {run}");
        }
        assert!(holdings.check_due(8));
        assert!(!holdings.check_due(8));
    }
}
