//! To how many machines slabs are sent at the same time: to one, or to all.
//!
//! What counts is which sends more bytes a second in all. It is measured while slabs are sent anyway: some megabytes to all
//! machines at the same time, some to one at a time. One at a time is chosen unless it is clearly slower, and both are
//! measured again every minute.
//!
//! Invariant: decisions depend on the times and bytes that are passed in alone.

use std::time::{Duration, Instant};

/// Bytes and time of transfers that make a measurement.
const TRIAL_BYTES: u64 = 8 << 20;
const TRIAL: Duration = Duration::from_millis(100);
/// Share of the rate of all at once that one at a time must reach.
const ENOUGH: f64 = 0.8;
/// How long a decision holds.
const HOLDS: Duration = Duration::from_mins(1);
/// Number of machines from which on a transfer counts as one to several.
const SEVERAL: usize = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// To all machines, which is measured.
    #[default]
    TryAll,
    /// To one machine at a time, which is measured.
    TryOne,
    All,
    One,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Width {
    step: Step,
    /// Of the present measurement: bytes, and the time in which they were sent.
    bytes: u64,
    time: Duration,
    /// Bytes a second to all machines.
    all: f64,
    /// The last observation, and whether bytes since then count.
    last: Option<Instant>,
    counts: bool,
    /// When the decision was made.
    since: Option<Instant>,
}

impl Width {
    /// One that sends to one machine at a time from the beginning.
    #[cfg(test)]
    pub(super) fn narrow() -> Self {
        Self { step: Step::One, since: Some(Instant::now()), ..Self::default() }
    }

    /// The largest number of machines to send to.
    pub(super) fn limit(&self) -> usize {
        match self.step {
            Step::TryAll | Step::All => usize::MAX,
            Step::TryOne | Step::One => 1,
        }
    }

    /// Records that since the last observation slabs were on their way to `busy` machines.
    pub(super) fn observe(&mut self, now: Instant, busy: usize) {
        let elapsed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.counts = match self.step {
            Step::TryAll => busy >= SEVERAL,
            Step::TryOne => busy >= 1,
            Step::All | Step::One => false,
        };
        if self.counts {
            self.time += elapsed;
        }
        if self.bytes >= TRIAL_BYTES && self.time >= TRIAL {
            self.decide(now);
        }
        if self.since.is_some_and(|since| now.saturating_duration_since(since) >= HOLDS) {
            self.begin(Step::TryAll);
        }
    }

    /// Records bytes that have arrived.
    pub(super) fn delivered(&mut self, bytes: usize) {
        if self.counts {
            self.bytes += bytes as u64;
        }
    }

    fn decide(&mut self, now: Instant) {
        let rate = self.bytes as f64 / self.time.as_secs_f64();
        if self.step == Step::TryAll {
            self.all = rate;
            return self.begin(Step::TryOne);
        }
        let one = rate >= ENOUGH * self.all;
        tracing::debug!(
            all = self.all,
            one = rate,
            "bytes a second to all machines at once, and to one at a time"
        );
        self.begin(if one { Step::One } else { Step::All });
        self.since = Some(now);
    }

    fn begin(&mut self, step: Step) {
        (self.step, self.bytes, self.time, self.since, self.counts) = (step, 0, Duration::ZERO, None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends for so long over links of `own` bytes a second each behind one of `common` to at most three machines; returns
    /// the limit at the end.
    fn sends(width: &mut Width, now: &mut Instant, time: Duration, own: usize, common: usize) -> usize {
        let (step, end) = (Duration::from_millis(5), *now + time);
        while *now < end {
            let busy = width.limit().min(3);
            width.observe(*now, busy);
            width.delivered((busy * own).min(common) / 200);
            *now += step;
        }
        width.limit()
    }

    #[test]
    fn one_at_a_time_where_all_share_a_link_and_all_where_they_do_not() {
        for rate in [1_000_000, 10_000_000, 100_000_000, 1_000_000_000] {
            // Long enough for two measurements.
            let time = Duration::from_secs_f64(2.5 * (2.0 * TRIAL_BYTES as f64 / rate as f64).max(0.3));
            let (mut shared, mut now) = (Width::default(), Instant::now());
            assert_eq!(sends(&mut shared, &mut now, time, rate, rate), 1, "{rate}");
            let (mut own, mut now) = (Width::default(), Instant::now());
            assert_eq!(sends(&mut own, &mut now, time, rate, usize::MAX), usize::MAX, "{rate}");
        }
    }

    #[test]
    fn a_change_of_the_links_is_noticed() {
        let (mut width, mut now) = (Width::default(), Instant::now());
        let (fast, slow, soon) = (100_000_000, 30_000_000, Duration::from_secs(5));
        assert_eq!(sends(&mut width, &mut now, soon, fast, fast), 1);
        // Machines whose own links are slower now.
        assert_eq!(sends(&mut width, &mut now, HOLDS + soon, slow, fast), usize::MAX);
        assert_eq!(sends(&mut width, &mut now, HOLDS + soon, fast, fast), 1);
    }

    #[test]
    fn idle_time_and_single_transfers_say_nothing() {
        let (mut width, start) = (Width::default(), Instant::now());
        // Only one machine is ever sent to: all at once is not measured.
        for ms in 0..5000 {
            width.observe(start + Duration::from_millis(ms), 1);
            width.delivered(1 << 20);
        }
        assert_eq!((width.limit(), width.bytes), (usize::MAX, 0));
    }
}
