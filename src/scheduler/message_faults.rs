//! Faults of the messages between a master and simulated workers: loss, delay, reordering, and links that carry messages
//! in one direction only.
//!
//! Invariant: the faults depend only on the seed, the partitions, and the order of the messages.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::sim_worker::ns;
use crate::ids::WorkerId;

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Tasks, filters and cancellations.
    ToWorker,
    /// Sub-results and the end of a task.
    ToMaster,
}

/// A time during which no message reaches its destination in one direction of one worker's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The worker.
    pub worker: WorkerId,
    /// The direction in which messages are lost.
    pub direction: Direction,
    /// Virtual time at which it begins.
    pub from: Duration,
    /// Virtual time at which it is over.
    pub until: Duration,
}

/// Faults of all messages of a [`SimulatedFleet`](super::SimulatedFleet).
///
/// A lost task is never answered, and occupies its worker until it is cancelled. Cancellations are repeated until they
/// arrive. Sub-results that are delayed arrive in another order than they were sent, also after the end of their task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessageFaults {
    /// Seed of all draws.
    pub seed: u64,
    /// Probability that a message is lost, from 0 to 1.
    pub loss: f64,
    /// Each message takes an additional time between zero and this.
    pub delay: Duration,
    /// Links that carry messages in one direction only.
    pub partitions: Vec<Partition>,
}

/// [`MessageFaults`] with the state of their generator.
pub(super) struct MessageFates {
    faults: MessageFaults,
    rng: ChaCha8Rng,
}

impl MessageFates {
    pub(super) fn new(faults: MessageFaults) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(faults.seed), faults }
    }

    /// The additional nanoseconds of a message sent at `now`; `None` if it is lost.
    pub(super) fn draw(&mut self, now: u64, worker: WorkerId, direction: Direction) -> Option<u64> {
        let lost = self.faults.loss > 0.0 && self.rng.random_bool(self.faults.loss.min(1.0));
        let delay =
            if self.faults.delay.is_zero() { 0 } else { self.rng.random_range(0..=ns(self.faults.delay)) };
        let cut = self.cut_until(now, worker, direction).is_some();
        (!lost && !cut).then_some(delay)
    }

    /// When the partition that cuts this link at `now` is over.
    pub(super) fn cut_until(&self, now: u64, worker: WorkerId, direction: Direction) -> Option<u64> {
        let cuts = |p: &&Partition| {
            p.worker == worker && p.direction == direction && (ns(p.from)..ns(p.until)).contains(&now)
        };
        self.faults.partitions.iter().filter(cuts).map(|p| ns(p.until)).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lost_and_delayed_as_often_and_as_long_as_told_and_the_same_way_again() {
        let ms = Duration::from_millis;
        let faults = MessageFaults { seed: 3, loss: 0.25, delay: ms(2), partitions: Vec::new() };
        let draws = || {
            let mut fates = MessageFates::new(faults.clone());
            (0..4000).map(|_| fates.draw(0, WorkerId(0), Direction::ToMaster)).collect::<Vec<_>>()
        };
        let drawn = draws();
        assert_eq!(drawn, draws());
        let lost = drawn.iter().filter(|draw| draw.is_none()).count();
        assert!((900..1100).contains(&lost), "{lost} of 4000");
        let late: Vec<u64> = drawn.into_iter().flatten().collect();
        assert!(late.iter().all(|delay| *delay <= ns(ms(2))));
        let mean = late.iter().sum::<u64>() / late.len() as u64;
        assert!((900_000..1_100_000).contains(&mean), "{mean} ns");
    }

    #[test]
    fn a_partition_cuts_one_direction_of_one_link_for_its_time() {
        let ms = Duration::from_millis;
        let cut =
            |from, until| Partition { worker: WorkerId(1), direction: Direction::ToWorker, from, until };
        let partitions = vec![cut(ms(1), ms(3)), cut(ms(2), ms(5))];
        let mut fates = MessageFates::new(MessageFaults { partitions, ..MessageFaults::default() });
        let at = |at| ns(ms(at));
        for (now, worker, direction, arrives) in [
            (0, 1, Direction::ToWorker, true),
            (1, 1, Direction::ToWorker, false),
            (4, 1, Direction::ToWorker, false),
            (5, 1, Direction::ToWorker, true),
            (2, 1, Direction::ToMaster, true),
            (2, 0, Direction::ToWorker, true),
        ] {
            assert_eq!(
                fates.draw(at(now), WorkerId(worker), direction),
                arrives.then_some(0),
                "{now} {worker}"
            );
        }
        assert_eq!(fates.cut_until(at(2), WorkerId(1), Direction::ToWorker), Some(at(5)));
    }
}
