//! The phases of a task on another machine, as its master sees them.
//!
//! The master knows when it began to send, when the task was acknowledged and when each result had arrived; the machine says
//! with each result how long the task had waited and been computed there until then. What is left of the time since the
//! acknowledgement is the time in which results travelled while nothing more was computed.
//!
//! Invariant: the phases never take longer together than the master has waited, whatever the machine says.

use std::time::{Duration, Instant};

use super::wire::Progress;
use crate::worker::{Phase, PhaseClock, PhaseTimes};

/// See the module documentation.
pub(super) struct TaskPhases<'a> {
    clock: Option<&'a PhaseClock>,
    /// When the task was acknowledged, and its times until then.
    accepted: Option<(Instant, PhaseTimes)>,
    /// Time since then in which its results were passed on.
    passing_on: Duration,
}

impl<'a> TaskPhases<'a> {
    pub(super) fn new(clock: Option<&'a PhaseClock>) -> Self {
        Self { clock, accepted: None, passing_on: Duration::ZERO }
    }

    fn enter(&self, phase: Phase) {
        if let Some(clock) = self.clock {
            clock.enter(phase);
        }
    }

    /// The slabs are being sent, perhaps again.
    pub(super) fn sending(&mut self) {
        self.accepted = None;
        self.enter(Phase::Send);
    }

    /// The slabs of other tasks are sent first.
    pub(super) fn waits_for_its_turn(&self) {
        self.enter(Phase::Queue);
    }

    /// The slabs are being sent now.
    pub(super) fn has_its_turn(&self) {
        self.enter(Phase::Send);
    }

    /// The machine has the task with its slabs.
    pub(super) fn accepted(&mut self) {
        let Some(clock) = self.clock else { return };
        clock.enter(Phase::Compute);
        let now = Instant::now();
        self.accepted = Some((now, clock.at(now)));
        self.passing_on = Duration::ZERO;
    }

    /// A result is fetched.
    pub(super) fn fetching(&self) {
        self.enter(Phase::Receive);
    }

    /// A result has arrived, which was complete on the machine with this `progress`.
    pub(super) fn received(&self, progress: &Progress) {
        let (Some(clock), Some((since, before))) = (self.clock, self.accepted) else { return };
        clock.enter(Phase::Compute);
        let now = Instant::now();
        clock.correct(now, divided(before, now.saturating_duration_since(since), self.passing_on, progress));
    }

    /// Passes a result on, which takes long if something between the pool and this worker delays it.
    pub(super) fn pass_on(&mut self, pass_on: impl FnOnce()) {
        let started = Instant::now();
        pass_on();
        self.passing_on += started.elapsed();
    }
}

/// The times of a task that was acknowledged `elapsed` ago, and had these `before`.
fn divided(before: PhaseTimes, elapsed: Duration, passing_on: Duration, progress: &Progress) -> PhaseTimes {
    let there = elapsed.saturating_sub(passing_on);
    let compute = Duration::from_micros(progress.computed_us).min(there);
    let rest = there.saturating_sub(compute);
    let queue = Duration::from_micros(progress.queued_us).min(rest);
    PhaseTimes {
        queue: before.queue + queue,
        send: before.send,
        compute: before.compute + compute + passing_on.min(elapsed),
        receive: before.receive + rest.saturating_sub(queue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_the_machine_does_not_say_is_the_way_back() {
        let before = PhaseTimes { queue: ms(1), send: ms(10), ..PhaseTimes::default() };
        let progress = Progress { at_us: 0, queued_us: 5_000, computed_us: 20_000 };
        let times = divided(before, ms(40), ms(3), &progress);
        let expected = PhaseTimes { queue: ms(6), send: ms(10), compute: ms(23), receive: ms(12) };
        assert_eq!(times, expected);
        assert_eq!(times.total(), before.total() + ms(40));
    }

    #[test]
    fn a_machine_that_exaggerates_does_not_make_the_phases_longer_than_the_wait() {
        for (queued_us, computed_us) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (30_000, 30_000)]
        {
            let progress = Progress { at_us: 0, queued_us, computed_us };
            let times = divided(PhaseTimes::default(), ms(40), ms(50), &progress);
            assert_eq!(times.total(), ms(40), "{times:?}");
        }
    }
}
