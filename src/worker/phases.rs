//! The phases of a task: where the time between its dispatch and its results goes.
//!
//! Relevant if you write a worker that sends tasks elsewhere and want reports to say so; workers that compute where they are
//! called need nothing of this.
//!
//! Invariant: phases do not overlap. At any time a task is in one of them, so their times add up to the time since the
//! dispatch.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::locked;

/// A phase of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It waits: for the worker, for a core, or for a device of another machine that has other work.
    Queue,
    /// Its slabs are on their way to another machine, until that has acknowledged all of them.
    Send,
    /// It is computed.
    Compute,
    /// Nothing is computed for it any more, and results are on their way from another machine.
    Receive,
}

/// How long a task was in each [`Phase`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes {
    /// [`Phase::Queue`].
    pub queue: Duration,
    /// [`Phase::Send`]; zero for workers of this machine.
    pub send: Duration,
    /// [`Phase::Compute`].
    pub compute: Duration,
    /// [`Phase::Receive`]; zero for workers of this machine.
    pub receive: Duration,
}

impl PhaseTimes {
    /// All phases together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.queue + self.send + self.compute + self.receive
    }

    fn of(&mut self, phase: Phase) -> &mut Duration {
        match phase {
            Phase::Queue => &mut self.queue,
            Phase::Send => &mut self.send,
            Phase::Compute => &mut self.compute,
            Phase::Receive => &mut self.receive,
        }
    }
}

/// Measures the phases of one task. It begins in [`Phase::Queue`]; a pool sets [`Phase::Compute`] when it calls the worker,
/// and the worker may set others.
///
/// # Examples
///
/// ```
/// use fcdcc::worker::{Phase, PhaseClock};
///
/// let clock = PhaseClock::default();
/// clock.enter(Phase::Send);
/// clock.enter(Phase::Compute);
/// let times = clock.so_far();
/// assert!(times.receive.is_zero() && times.total() >= times.send);
/// ```
#[derive(Debug)]
pub struct PhaseClock(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The times up to `since`.
    times: PhaseTimes,
    phase: Phase,
    since: Instant,
}

impl State {
    fn so_far(&self, now: Instant) -> PhaseTimes {
        let mut times = self.times;
        *times.of(self.phase) += now.saturating_duration_since(self.since);
        times
    }
}

impl Default for PhaseClock {
    /// A clock that starts now.
    fn default() -> Self {
        Self::started(Instant::now())
    }
}

impl PhaseClock {
    /// A clock that starts at `since`.
    pub(crate) fn started(since: Instant) -> Self {
        Self(Mutex::new(State { times: PhaseTimes::default(), phase: Phase::Queue, since }))
    }

    /// The task is in `phase` from now on.
    pub fn enter(&self, phase: Phase) {
        let mut state = locked(&self.0);
        let now = Instant::now();
        *state = State { times: state.so_far(now), phase, since: now };
    }

    /// Replaces the times up to `until`, once a worker knows them better. The present phase goes on.
    pub fn correct(&self, until: Instant, times: PhaseTimes) {
        let mut state = locked(&self.0);
        *state = State { times, phase: state.phase, since: until };
    }

    /// The times up to now.
    #[must_use]
    pub fn so_far(&self) -> PhaseTimes {
        self.at(Instant::now())
    }

    /// The times up to `now`.
    pub(crate) fn at(&self, now: Instant) -> PhaseTimes {
        locked(&self.0).so_far(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_belongs_to_one_phase() {
        let started = Instant::now();
        let clock = PhaseClock::started(started);
        for phase in [Phase::Send, Phase::Compute, Phase::Receive, Phase::Compute] {
            clock.enter(phase);
        }
        let later = started + Duration::from_secs(5);
        let times = clock.at(later);
        assert_eq!(times.total(), Duration::from_secs(5));
        // All phases but the present one have ended.
        assert!(times.compute > Duration::from_secs(4), "{times:?}");
        assert_eq!(clock.at(later + Duration::from_secs(1)).compute, times.compute + Duration::from_secs(1));
    }

    #[test]
    fn corrected_times_are_the_base_of_what_follows() {
        let clock = PhaseClock::default();
        clock.enter(Phase::Compute);
        let known = PhaseTimes { send: Duration::from_secs(7), ..PhaseTimes::default() };
        let now = Instant::now();
        clock.correct(now, known);
        let later = PhaseTimes { compute: Duration::from_secs(2), ..known };
        assert_eq!(clock.at(now + Duration::from_secs(2)), later, "the present phase goes on");
    }
}
