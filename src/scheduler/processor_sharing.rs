//! Shared cores: the time that a computation takes when others run on the same machine.
//!
//! Processor sharing: all active computations advance at the same rate, at most that of one core. It is therefore enough to
//! record how much each would have been given since the machine was last idle. Times are virtual nanoseconds.
//!
//! Invariant: the work done per unit of time is min(active, cores), up to rounding.

use std::collections::BTreeSet;

use crate::ids::WorkerId;

/// Remaining work below this many nanoseconds counts as done, because of rounding.
const NOTHING: f64 = 0.01;

/// The cores of one machine and the computations on them.
#[derive(Debug)]
pub(super) struct Cores {
    count: f64,
    /// Work in nanoseconds given to each active computation since the machine was last idle, up to time `at`.
    served: f64,
    at: u64,
    /// Active computations: the `served` at which they end (positive, hence ordered as its bits are), and the worker.
    active: BTreeSet<(u64, WorkerId)>,
}

/// Identifies a computation under way.
pub(super) type Ticket = (u64, WorkerId);

impl Cores {
    pub(super) fn new(count: f64) -> Self {
        Self { count, served: 0.0, at: 0, active: BTreeSet::new() }
    }

    /// `worker` begins a computation of `work` nanoseconds; one at a time.
    pub(super) fn begin(&mut self, now: u64, worker: WorkerId, work: f64) -> Ticket {
        self.advance(now);
        if self.active.is_empty() {
            self.served = 0.0;
        }
        let ticket = ((self.served + work).to_bits(), worker);
        self.active.insert(ticket);
        ticket
    }

    /// Cancels a computation; returns the work that was left.
    pub(super) fn end(&mut self, now: u64, ticket: Ticket) -> f64 {
        self.advance(now);
        self.active.remove(&ticket);
        (f64::from_bits(ticket.0) - self.served).max(0.0)
    }

    /// When the next computation ends if nothing changes.
    pub(super) fn next(&self) -> Option<u64> {
        let (finish, _) = self.active.first()?;
        let left = (f64::from_bits(*finish) - self.served - NOTHING).max(0.0);
        Some(self.at.saturating_add(nanos((left / self.rate()).ceil())))
    }

    /// Removes a finished computation; returns its worker.
    pub(super) fn take_done(&mut self, now: u64) -> Option<WorkerId> {
        self.advance(now);
        let (finish, worker) = *self.active.first()?;
        let done = f64::from_bits(finish) <= self.served + NOTHING;
        done.then(|| {
            self.active.pop_first();
            worker
        })
    }

    /// The share of a core that each active computation gets.
    fn rate(&self) -> f64 {
        (self.count / self.active.len() as f64).min(1.0)
    }

    fn advance(&mut self, now: u64) {
        if !self.active.is_empty() {
            self.served += (now - self.at) as f64 * self.rate();
        }
        self.at = now;
    }
}

/// Whole nanoseconds of a time, limited to what the type can hold.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and none is negative"
)]
pub(super) fn nanos(ns: f64) -> u64 {
    ns.round() as u64
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Runs all computations to their end; returns (time, worker) of each.
    fn ends(cores: &mut Cores) -> Vec<(u64, WorkerId)> {
        let mut ends = Vec::new();
        while let Some(at) = cores.next() {
            while let Some(worker) = cores.take_done(at) {
                ends.push((at, worker));
            }
        }
        ends
    }

    #[test]
    fn as_many_as_cores_do_not_disturb_each_other_and_more_share() {
        let mut two = Cores::new(2.0);
        two.begin(0, WorkerId(0), 100.0);
        two.begin(0, WorkerId(1), 60.0);
        assert_eq!(ends(&mut two), [(60, WorkerId(1)), (100, WorkerId(0))]);
        // From 100 on, three computations share two cores until the shortest ends.
        two.begin(100, WorkerId(0), 100.0);
        two.begin(100, WorkerId(1), 100.0);
        two.begin(100, WorkerId(2), 40.0);
        assert_eq!(ends(&mut two), [(160, 2), (220, 0), (220, 1)].map(|(at, worker)| (at, WorkerId(worker))));
        let mut any = Cores::new(f64::INFINITY);
        for worker in 0..1000 {
            any.begin(7, WorkerId(worker), 50.0);
        }
        assert!(ends(&mut any).iter().all(|(at, _)| *at == 57));
    }

    #[test]
    fn work_given_up_leaves_the_core_to_others() {
        let mut one = Cores::new(1.0);
        let first = one.begin(0, WorkerId(0), 100.0);
        one.begin(0, WorkerId(1), 100.0);
        assert_eq!(one.end(50, first), 75.0);
        assert_eq!(ends(&mut one), [(125, WorkerId(1))]);
    }

    #[test]
    fn sharing_conserves_work() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for cores in [0.5, 1.0, 2.0, 3.7] {
            let mut shared = Cores::new(cores);
            let works: Vec<f64> = (0..40).map(|_| rng.random_range(1e3..1e6_f64).round()).collect();
            for (worker, work) in works.iter().enumerate() {
                shared.begin(0, WorkerId(worker), *work);
            }
            let ends = ends(&mut shared);
            let mut order: Vec<f64> = ends.iter().map(|(_, worker)| works[worker.0]).collect();
            assert!(order.is_sorted() && order.len() == works.len(), "the shortest first");
            // All cores are busy until fewer computations than cores are left.
            let crowded = works.len() - usize::try_from(nanos(cores.ceil())).unwrap();
            let at = ends[crowded].0 as f64;
            let left = order.split_off(crowded + 1).iter().map(|work| work - order[crowded]).sum::<f64>();
            let given = works.iter().sum::<f64>() - left;
            assert!((given / (at * cores) - 1.0).abs() < 1e-3, "{cores}: {given} in {at}");
        }
    }
}
