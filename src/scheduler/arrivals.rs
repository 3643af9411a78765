//! The sub-results of one run that have arrived.
//!
//! Invariant: this is a run's only record of them. Gathering, audits, decoding and reports read it here.

use crate::array::Pooled;
use crate::coding::Sketch;
use crate::ids::{SubtaskId, WorkerId};

/// A usable sub-result and its origin.
#[derive(Debug)]
pub struct Arrival {
    /// The subtask.
    pub subtask: SubtaskId,
    /// The index of the sub-result in its subtask, slab * l_B + bank.
    pub index: usize,
    /// The worker that computed it.
    pub worker: WorkerId,
    /// The attempt that delivered it, in order of dispatch.
    pub attempt: usize,
    /// `[N, O', spatial...]`, row-major.
    pub values: Pooled,
    /// Its sketch, where the run is audited.
    pub sketch: Option<Box<Sketch>>,
}

/// What [`Arrivals::record`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is the first arrival of this sub-result.
    First,
    /// The sub-result had arrived before: this copy was dropped.
    Repeated,
    /// There is no such sub-result: it was dropped.
    Unknown,
}

/// The first arrival of each sub-result of a run.
#[derive(Debug)]
pub struct Arrivals {
    sub_results: usize,
    /// By subtask, then by index.
    slots: Vec<Option<Arrival>>,
    /// Positions in `slots`, in order of arrival.
    order: Vec<usize>,
    /// Number of sub-results of each subtask that arrived.
    counts: Vec<usize>,
    /// Complete subtasks, ascending.
    complete: Vec<SubtaskId>,
}

impl Arrivals {
    /// The record of a run of `n` subtasks with `sub_results` each.
    #[must_use]
    pub fn new(n: usize, sub_results: usize) -> Self {
        Self {
            sub_results,
            slots: (0..n * sub_results).map(|_| None).collect(),
            order: Vec::with_capacity(n * sub_results),
            counts: vec![0; n],
            complete: Vec::with_capacity(n),
        }
    }

    /// Records an arrival. Of several arrivals of one sub-result the first counts.
    pub fn record(&mut self, arrival: Arrival) -> Recorded {
        let (subtask, index) = (arrival.subtask, arrival.index);
        if subtask.0 >= self.counts.len() || index >= self.sub_results {
            return Recorded::Unknown;
        }
        let place = subtask.0 * self.sub_results + index;
        let slot = &mut self.slots[place];
        if slot.is_some() {
            return Recorded::Repeated;
        }
        *slot = Some(arrival);
        self.order.push(place);
        self.counts[subtask.0] += 1;
        if self.is_complete(subtask) {
            let at = self.complete.partition_point(|other| *other < subtask);
            self.complete.insert(at, subtask);
        }
        Recorded::First
    }

    /// Number of subtasks n.
    #[must_use]
    pub fn n(&self) -> usize {
        self.counts.len()
    }

    /// All subtasks of the run, ascending.
    pub fn subtasks(&self) -> impl Iterator<Item = SubtaskId> + use<> {
        (0..self.n()).map(SubtaskId)
    }

    /// The first arrival of a sub-result.
    #[must_use]
    pub fn get(&self, subtask: SubtaskId, index: usize) -> Option<&Arrival> {
        let known = index < self.sub_results;
        self.slots.get(subtask.0 * self.sub_results + index).filter(|_| known)?.as_ref()
    }

    /// [`Arrivals::get`], mutable.
    pub(crate) fn get_mut(&mut self, subtask: SubtaskId, index: usize) -> Option<&mut Arrival> {
        let known = index < self.sub_results;
        self.slots.get_mut(subtask.0 * self.sub_results + index).filter(|_| known)?.as_mut()
    }

    /// The arrivals of a subtask, by index.
    pub fn of(&self, subtask: SubtaskId) -> impl Iterator<Item = &Arrival> {
        (0..self.sub_results).filter_map(move |index| self.get(subtask, index))
    }

    /// All arrivals, in order.
    pub fn in_order(&self) -> impl Iterator<Item = &Arrival> {
        self.order.iter().filter_map(|place| self.slots[*place].as_ref())
    }

    /// Complete subtasks, ascending.
    #[must_use]
    pub fn complete(&self) -> &[SubtaskId] {
        &self.complete
    }

    /// Whether all sub-results of a subtask have arrived.
    #[must_use]
    pub fn is_complete(&self, subtask: SubtaskId) -> bool {
        self.counts.get(subtask.0) == Some(&self.sub_results)
    }

    /// Number of sub-results of a subtask that have not arrived; 0 for an unknown subtask.
    #[must_use]
    pub fn count_missing(&self, subtask: SubtaskId) -> usize {
        self.counts.get(subtask.0).map_or(0, |count| self.sub_results - count)
    }

    /// Sub-results of a subtask that have not arrived, ascending; none for an unknown subtask.
    #[must_use]
    pub fn missing(&self, subtask: SubtaskId) -> Vec<usize> {
        let known = subtask.0 < self.counts.len();
        (0..self.sub_results).filter(|index| known && self.get(subtask, *index).is_none()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Values;

    fn arrival(subtask: usize, index: usize, attempt: usize) -> Arrival {
        Arrival {
            subtask: SubtaskId(subtask),
            index,
            worker: WorkerId(0),
            attempt,
            values: Pooled::unpooled(Values::F32(Vec::new())),
            sketch: None,
        }
    }

    #[test]
    fn the_first_arrival_counts_and_unknown_ones_do_not() {
        let mut arrivals = Arrivals::new(3, 2);
        assert_eq!(arrivals.record(arrival(2, 1, 0)), Recorded::First);
        assert_eq!(arrivals.record(arrival(2, 1, 1)), Recorded::Repeated);
        for (subtask, index) in [(3, 0), (0, 2), (2, 2)] {
            assert_eq!(arrivals.record(arrival(subtask, index, 2)), Recorded::Unknown);
            assert!(arrivals.get(SubtaskId(subtask), index).is_none());
        }
        let missing =
            |subtask| (arrivals.missing(SubtaskId(subtask)), arrivals.count_missing(SubtaskId(subtask)));
        assert_eq!((missing(2), missing(3)), ((vec![0], 1), (vec![], 0)));
        assert!(arrivals.complete().is_empty());
        arrivals.record(arrival(2, 0, 3));
        arrivals.record(arrival(0, 0, 4));
        arrivals.record(arrival(0, 1, 4));
        assert_eq!(arrivals.complete(), [0, 2].map(SubtaskId));
        assert_eq!([2, 1, 3].map(|i| arrivals.is_complete(SubtaskId(i))), [true, false, false]);
        let attempts: Vec<usize> = arrivals.in_order().map(|a| a.attempt).collect();
        assert_eq!(attempts, [0, 3, 4, 4]);
        assert_eq!(arrivals.of(SubtaskId(2)).map(|a| a.index).collect::<Vec<_>>(), [0, 1]);
    }
}
