//! Decides whether a worker may be given work.
//!
//! Relevant if you run layers on workers that may fail or return wrong results. [`Health`] is a state machine; its
//! events are probes, wrong results, losses, accepted results and the worker's pace.
//!
//! Invariant: a worker that returned a wrong result gets no work before its backoff is over *and* it has passed a probe,
//! however often it leaves and comes back.

use std::time::Duration;

use serde::Serialize;

use crate::worker::Backoff;

/// Smoothed pace above which a worker becomes a straggler, and below which it no longer is one.
const STRAGGLING: f64 = 2.0;
const KEEPING_UP: f64 = 1.5;

/// The largest value and the weight of a single pace: one hiccup must not make a straggler.
const MAX_PACE: f64 = 4.0;
const PACE_WEIGHT: f64 = 0.2;

/// State of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// New or back, and not yet qualified: by a probe and, after a strike, by accepted results.
    Probation,
    /// Qualified, and about as fast as expected.
    Healthy,
    /// Qualified, but much slower than expected.
    Straggling,
    /// Returned a wrong result: gets no work until its backoff is over and it has passed a probe.
    Quarantined,
    /// Unreachable.
    Lost,
}

impl State {
    /// As it is named in messages.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Probation => "on probation",
            Self::Healthy => "healthy",
            Self::Straggling => "straggling",
            Self::Quarantined => "quarantined",
            Self::Lost => "lost",
        }
    }
}

/// How long a worker is quarantined, and how it earns trust again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthOptions {
    /// Quarantine after the first strike; it doubles with each further one.
    pub backoff: Duration,
    /// The longest quarantine.
    pub max_backoff: Duration,
    /// Accepted results after which one strike is forgiven (at least 1).
    pub forgive_after: u32,
    /// Accepted results after the passed probe until a worker with strikes is healthy.
    pub settle_after: u32,
}

impl Default for HealthOptions {
    /// 1 s backoff, at most 1 min; 32 results to forgive a strike, 8 to settle.
    fn default() -> Self {
        Self {
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_mins(1),
            forgive_after: 32,
            settle_after: 8,
        }
    }
}

impl HealthOptions {
    /// The pauses before a worker gets another chance.
    pub(super) fn pauses(self) -> Backoff {
        Backoff { first: self.backoff, longest: self.max_backoff }
    }
}

/// One worker's state, and the history that decides on the next state. Times count from any fixed start.
#[derive(Clone, Debug)]
pub struct Health {
    options: HealthOptions,
    state: State,
    cause: Option<String>,
    /// Strikes that are not forgiven.
    strikes: u32,
    /// Cause of the last strike.
    struck_for: Option<String>,
    /// Accepted results since the last strike was added or forgiven.
    accepted: u32,
    /// Accepted results until probation ends.
    to_settle: u32,
    /// When a probe is due. Kept while the worker is lost, so that coming back does not end a quarantine.
    due: Option<Duration>,
    /// Smoothed ratio of the time taken to the time expected.
    pace: f64,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// A new worker: on probation, its probe due at once.
    #[must_use]
    pub fn new() -> Self {
        Self::with_options(HealthOptions::default())
    }

    /// A new worker with other times and counts.
    #[must_use]
    pub fn with_options(options: HealthOptions) -> Self {
        Self {
            options,
            state: State::Probation,
            cause: None,
            strikes: 0,
            struck_for: None,
            accepted: 0,
            to_settle: 0,
            due: Some(Duration::ZERO),
            pace: 1.0,
        }
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Cause of the loss or quarantine, or of the one before the present probation.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Whether the worker may get real tasks: it is healthy or straggling, or on probation with its probe passed.
    #[must_use]
    pub fn usable(&self) -> bool {
        match self.state {
            State::Healthy | State::Straggling => true,
            State::Probation => self.due.is_none(),
            State::Quarantined | State::Lost => false,
        }
    }

    /// When the next probe is due: after the backoff in quarantine, at once for a worker that is new or back. `None` if
    /// none is needed. Does not change while a probe is under way.
    #[must_use]
    pub fn next_probe(&self) -> Option<Duration> {
        if matches!(self.state, State::Probation | State::Quarantined) { self.due } else { None }
    }

    /// A task with a known answer was answered correctly, or failed for the given cause, which is a strike.
    ///
    /// The answer to a probe that was sent before the worker was quarantined has no effect.
    pub fn probed(&mut self, now: Duration, result: Result<(), String>) {
        let early = self.state == State::Quarantined && self.due.is_some_and(|due| due > now);
        // A second probe that passes during probation must not prolong it.
        let qualified = self.usable();
        if early || self.state == State::Lost {
            return;
        }
        match result {
            Err(cause) => self.strike(now, cause),
            Ok(()) if qualified => {}
            Ok(()) => {
                self.due = None;
                self.state = State::Probation;
                self.to_settle = if self.strikes == 0 { 0 } else { self.options.settle_after };
                self.settle();
            }
        }
    }

    /// The worker returned a result that was shown to be wrong: a strike.
    ///
    /// In quarantine only the cause changes. A quarantined worker gets no tasks, so such a result is from before, and
    /// the four wrong subtasks of one layer are one strike, not four.
    pub fn flagged(&mut self, now: Duration, cause: String) {
        let away = self.state == State::Lost && self.due.is_some_and(|due| due > now);
        if self.state == State::Quarantined || away {
            if self.state == State::Quarantined {
                self.cause = Some(cause.clone());
            }
            self.struck_for = Some(cause);
        } else {
            self.strike(now, cause);
        }
    }

    /// One of the worker's results was used, and nothing was found wrong with it.
    ///
    /// [`HealthOptions::settle_after`] of them end probation; [`HealthOptions::forgive_after`] of them forgive a strike.
    pub fn accepted(&mut self) {
        if !self.usable() {
            return;
        }
        self.accepted = self.accepted.saturating_add(1);
        if self.accepted >= self.options.forgive_after {
            self.accepted = 0;
            self.strikes = self.strikes.saturating_sub(1);
        }
        if self.state == State::Probation {
            self.to_settle = self.to_settle.saturating_sub(1);
            self.settle();
        }
    }

    /// The worker can no longer be reached.
    pub fn lost(&mut self, cause: String) {
        self.state = State::Lost;
        self.cause = Some(cause);
    }

    /// The worker can be reached again: on probation with its probe due at once, or in the rest of its quarantine.
    pub fn rejoined(&mut self, now: Duration) {
        self.pace = 1.0;
        if self.due.is_some_and(|due| due > now) {
            self.state = State::Quarantined;
            self.cause.clone_from(&self.struck_for);
        } else {
            self.state = State::Probation;
            self.due = Some(now);
        }
    }

    /// The worker took `ratio` times as long as expected at the pool's median speed.
    ///
    /// Smoothed over about the last five ratios; above 2 a healthy worker straggles, below 1.5 it is healthy again.
    pub fn paced(&mut self, ratio: f64) {
        if ratio.is_nan() || !self.usable() {
            return;
        }
        self.pace += PACE_WEIGHT * (ratio.clamp(0.0, MAX_PACE) - self.pace);
        match self.state {
            State::Healthy if self.pace > STRAGGLING => self.state = State::Straggling,
            State::Straggling if self.pace < KEEPING_UP => self.state = State::Healthy,
            _ => {}
        }
    }

    fn settle(&mut self) {
        if self.to_settle == 0 {
            self.state = if self.pace > STRAGGLING { State::Straggling } else { State::Healthy };
            self.cause = None;
        }
    }

    fn strike(&mut self, now: Duration, cause: String) {
        // Strikes beyond the longest backoff would only delay forgiveness.
        if self.strikes == 0 || self.backoff() < self.options.max_backoff {
            self.strikes = self.strikes.saturating_add(1);
        }
        self.accepted = 0;
        self.due = Some(now.saturating_add(self.backoff()));
        self.struck_for = Some(cause.clone());
        if self.state != State::Lost {
            self.state = State::Quarantined;
            self.cause = Some(cause);
        }
    }

    /// Length of the quarantine for the present strikes.
    fn backoff(&self) -> Duration {
        self.options.pauses().after(self.strikes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const OPTIONS: HealthOptions =
        HealthOptions { backoff: ms(10), max_backoff: ms(50), forgive_after: 4, settle_after: 2 };

    fn healthy() -> Health {
        let mut health = Health::with_options(OPTIONS);
        health.probed(ms(0), Ok(()));
        assert_eq!((health.state(), health.usable()), (State::Healthy, true));
        health
    }

    fn lie() -> String {
        "wrong by 1".to_owned()
    }

    /// Length of the quarantine after a strike at `now`.
    fn quarantine(health: &mut Health, now: Duration) -> Duration {
        health.flagged(now, lie());
        assert_eq!((health.state(), health.usable()), (State::Quarantined, false));
        health.next_probe().unwrap().saturating_sub(now)
    }

    #[test]
    fn a_new_worker_works_after_its_probe() {
        let mut health = Health::new();
        assert_eq!((health.state(), health.usable(), health.cause()), (State::Probation, false, None));
        assert_eq!(health.next_probe(), Some(ms(0)));
        health.accepted();
        assert!(!health.usable(), "results do not replace the probe");
        health.probed(ms(5), Ok(()));
        assert_eq!((health.state(), health.usable(), health.next_probe()), (State::Healthy, true, None));

        let mut health = Health::new();
        health.probed(ms(5), Err("no answer".to_owned()));
        assert_eq!((health.state(), health.cause()), (State::Quarantined, Some("no answer")));
        assert_eq!(health.next_probe(), Some(ms(1005)));
    }

    #[test]
    fn the_way_back_is_backoff_then_probe_then_results() {
        let mut health = healthy();
        assert_eq!(quarantine(&mut health, ms(100)), ms(10));
        assert_eq!(health.cause(), Some("wrong by 1"));
        health.probed(ms(109), Ok(()));
        assert_eq!(health.state(), State::Quarantined, "a probe from before");
        health.accepted();
        health.probed(ms(110), Ok(()));
        assert_eq!((health.state(), health.usable(), health.next_probe()), (State::Probation, true, None));
        health.accepted();
        health.probed(ms(111), Ok(()));
        assert_eq!(health.state(), State::Probation);
        assert_eq!(health.cause(), Some("wrong by 1"));
        health.accepted();
        assert_eq!((health.state(), health.cause()), (State::Healthy, None));
    }

    #[test]
    fn each_strike_doubles_the_backoff_up_to_the_longest() {
        let mut health = healthy();
        let mut now = ms(0);
        for expected in [10, 20, 40, 50, 50, 50] {
            assert_eq!(quarantine(&mut health, now), ms(expected));
            // More wrong results found later are no further strike.
            health.flagged(now + ms(1), "wrong by 2".to_owned());
            assert_eq!(health.next_probe(), Some(now + ms(expected)));
            assert_eq!(health.cause(), Some("wrong by 2"));
            now += ms(expected);
            health.probed(now, Ok(()));
            assert_eq!((health.state(), health.usable()), (State::Probation, true));
        }
        // A failed probe is a strike as well.
        let mut health = healthy();
        quarantine(&mut health, ms(0));
        health.probed(ms(9), Err("late answer to an early probe".to_owned()));
        assert_eq!(health.next_probe(), Some(ms(10)));
        health.probed(ms(10), Err("still wrong".to_owned()));
        assert_eq!((health.next_probe(), health.cause()), (Some(ms(30)), Some("still wrong")));
    }

    #[test]
    fn backoffs_do_not_overflow() {
        let options = HealthOptions { max_backoff: Duration::MAX, ..OPTIONS };
        let mut health = Health::with_options(options);
        for _ in 0..100 {
            let now = health.next_probe().unwrap();
            health.probed(now, Err(lie()));
        }
        assert_eq!(health.state(), State::Quarantined);
        assert_eq!(health.backoff(), ms(10) * u32::MAX, "doubled as often as a Duration can be multiplied");
    }

    #[test]
    fn good_runs_are_rewarded_one_strike_at_a_time() {
        let mut health = healthy();
        for (now, expected) in [(0, 10), (100, 20), (200, 40)] {
            assert_eq!(quarantine(&mut health, ms(now)), ms(expected));
            health.probed(ms(now + expected), Ok(()));
        }
        for _ in 0..8 {
            health.accepted();
        }
        assert_eq!(quarantine(&mut health, ms(300)), ms(20), "three strikes, two forgiven, one more");
        health.probed(ms(320), Ok(()));
        for _ in 0..3 {
            health.accepted();
        }
        assert_eq!(quarantine(&mut health, ms(400)), ms(40), "three results are one too few");
        health.probed(ms(440), Ok(()));
        for _ in 0..100 {
            health.accepted();
        }
        assert_eq!(quarantine(&mut health, ms(500)), ms(10), "all is forgiven");
    }

    #[test]
    fn lost_workers_come_back_on_probation() {
        let mut health = healthy();
        health.lost("connection closed".to_owned());
        assert_eq!((health.state(), health.usable(), health.next_probe()), (State::Lost, false, None));
        assert_eq!(health.cause(), Some("connection closed"));
        health.probed(ms(10), Ok(()));
        health.paced(9.0);
        health.accepted();
        assert_eq!(health.state(), State::Lost);
        health.rejoined(ms(20));
        assert_eq!((health.state(), health.usable()), (State::Probation, false));
        assert_eq!(health.next_probe(), Some(ms(20)));
        health.probed(ms(21), Ok(()));
        assert_eq!((health.state(), health.cause()), (State::Healthy, None));
    }

    #[test]
    fn leaving_does_not_end_a_quarantine() {
        let mut health = healthy();
        quarantine(&mut health, ms(0));
        health.lost("connection closed".to_owned());
        health.rejoined(ms(5));
        assert_eq!((health.state(), health.next_probe()), (State::Quarantined, Some(ms(10))));
        assert_eq!(health.cause(), Some("wrong by 1"));
        health.lost("connection closed".to_owned());
        health.rejoined(ms(15));
        health.probed(ms(16), Ok(()));
        assert_eq!((health.state(), health.usable()), (State::Probation, true), "its strike is remembered");
        // The wrong result is found only after the worker has left.
        health.lost("connection closed".to_owned());
        health.flagged(ms(20), lie());
        health.flagged(ms(21), lie());
        assert_eq!((health.state(), health.cause()), (State::Lost, Some("connection closed")));
        health.rejoined(ms(22));
        assert_eq!((health.state(), health.next_probe()), (State::Quarantined, Some(ms(40))));
    }

    #[test]
    fn stragglers_are_told_by_more_than_one_slow_result() {
        let mut health = healthy();
        health.paced(1000.0);
        assert_eq!(health.state(), State::Healthy, "one hiccup");
        health.paced(f64::NAN);
        let slow = (0..10).take_while(|_| {
            health.paced(3.0);
            health.state() == State::Healthy
        });
        assert!((1..6).contains(&slow.count()));
        assert!(health.usable());
        for _ in 0..50 {
            health.paced(1.8);
        }
        assert_eq!(health.state(), State::Straggling, "between the bounds it stays what it is");
        for _ in 0..10 {
            health.paced(1.0);
        }
        assert_eq!(health.state(), State::Healthy);
        for _ in 0..50 {
            health.paced(1.8);
        }
        assert_eq!(health.state(), State::Healthy, "between the bounds it stays what it is");
    }

    #[test]
    fn states_have_lowercase_names() {
        assert_eq!(serde_json::to_string(&State::Quarantined).unwrap(), "\"quarantined\"");
    }
}
