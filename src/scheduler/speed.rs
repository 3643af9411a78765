//! Estimates a worker's speed from attempts that ended and from attempts that were cut short.
//!
//! Relevant if your workers differ in speed. Invariant: one outlier does not move an estimate far.

use std::collections::VecDeque;
use std::time::Duration;

use crate::error::{Error, Result};

/// A speed is the median of this many observations: four outliers of nine do not move it far, five make a change.
const OBSERVATIONS: usize = 9;

/// A rolling estimate of one worker's speed in multiply-adds per second: the median of the last nine observations.
#[derive(Clone, Debug, Default)]
pub struct Speed {
    rates: VecDeque<f64>,
    /// Upper bound from attempts cut short; used only before the first observation.
    ceiling: Option<f64>,
}

impl Speed {
    /// A worker without observations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records an attempt of `macs` multiply-adds that ended after `busy` time of work.
    ///
    /// Without work or time nothing is recorded.
    pub fn completed(&mut self, macs: f64, busy: Duration) {
        if macs > 0.0 && !busy.is_zero() {
            self.observe(macs / busy.as_secs_f64());
        }
    }

    /// Records an attempt that was cancelled after `busy` time: `macs_done` multiply-adds were done by then, but not
    /// `macs_of_next` more.
    ///
    /// Both give a bound of the speed. An estimate between the bounds is kept; for one outside, the nearer bound is
    /// recorded as an observation.
    pub fn cut_short(&mut self, macs_done: f64, macs_of_next: f64, busy: Duration) {
        let (least, most) = (macs_done, macs_done + macs_of_next);
        if busy.is_zero() || !(least >= 0.0 && most >= least && most > 0.0) {
            return;
        }
        let (least, most) = (least / busy.as_secs_f64(), most / busy.as_secs_f64());
        match self.estimate() {
            Some(estimate) if estimate < least => self.observe(least),
            Some(estimate) if estimate > most => self.observe(most),
            Some(_) => {}
            None if least > 0.0 => self.observe(least),
            None => self.ceiling = Some(self.ceiling.map_or(most, |known| known.min(most))),
        }
    }

    /// Records an attempt at sub-results of `each` multiply-adds that ended after `busy` time with `done` of them
    /// delivered. A failed attempt is ignored.
    pub(super) fn ended(&mut self, result: &Result<()>, each: f64, done: usize, busy: Duration) {
        let each = each.max(1.0);
        match result {
            Ok(()) => self.completed(each * done as f64, busy),
            Err(Error::Cancelled) => self.cut_short(each * done as f64, each, busy),
            Err(_) => {}
        }
    }

    /// Multiply-adds per second; `None` before the first observation.
    #[must_use]
    pub fn estimate(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.rates.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// The estimate, or without one the `typical` speed, limited by the bound from attempts cut short: a new worker that
    /// never completes anything in time must not count as a typical one.
    #[must_use]
    pub fn estimate_or(&self, typical: f64) -> f64 {
        self.estimate().unwrap_or_else(|| self.ceiling.map_or(typical, |ceiling| typical.min(ceiling)))
    }

    fn observe(&mut self, rate: f64) {
        if self.rates.len() == OBSERVATIONS {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Observations of `rate` until the estimate is within a tenth of it.
    fn observations_until(speed: &mut Speed, rate: f64) -> usize {
        (1..100)
            .find(|_| {
                speed.completed(rate, Duration::from_secs(1));
                (speed.estimate().unwrap() / rate - 1.0).abs() < 0.1
            })
            .unwrap()
    }

    #[test]
    fn a_speed_follows_changes_but_not_outliers() {
        let mut speed = Speed::new();
        assert_eq!(speed.estimate(), None);
        assert_eq!(speed.estimate_or(7.0), 7.0);
        speed.completed(0.0, ms(5));
        speed.completed(5.0, ms(0));
        assert_eq!(speed.estimate(), None, "nothing to learn from");
        speed.completed(5e6, ms(500));
        assert_eq!(speed.estimate(), Some(1e7));
        for rate in [1e9, 1e7, 3e7, 2e7] {
            assert!(observations_until(&mut speed, rate) <= 12);
            for k in 0..20 {
                speed.completed(rate * [0.98, 1.0, 1.02][k % 3], Duration::from_secs(1));
            }
            for outlier in [1e-3, 1e3] {
                speed.completed(outlier * rate, Duration::from_secs(1));
                assert!((speed.estimate().unwrap() / rate - 1.0).abs() < 0.03);
            }
        }
    }

    #[test]
    fn attempts_cut_short_bound_the_speed() {
        let second = Duration::from_secs(1);
        let mut speed = Speed::new();
        observations_until(&mut speed, 10.0);
        speed.cut_short(0.0, 20.0, second);
        speed.cut_short(5.0, 5.0, second);
        speed.cut_short(0.0, 0.0, second);
        speed.cut_short(1.0, 1.0, ms(0));
        assert_eq!(speed.estimate(), Some(10.0), "nothing that contradicts it");
        for _ in 0..9 {
            speed.cut_short(1.0, 1.0, second);
        }
        assert_eq!(speed.estimate(), Some(2.0), "never more than two a second");
        for _ in 0..9 {
            speed.cut_short(6.0, 6.0, second);
        }
        assert_eq!(speed.estimate(), Some(6.0), "it did six a second before it was cut short");

        let mut unproven = Speed::new();
        unproven.cut_short(0.0, 8.0, second);
        unproven.cut_short(0.0, 3.0, second);
        unproven.cut_short(0.0, 8.0, second);
        assert_eq!(unproven.estimate(), None);
        assert_eq!((unproven.estimate_or(100.0), unproven.estimate_or(2.0)), (3.0, 2.0));
        unproven.completed(50.0, second);
        assert_eq!(unproven.estimate_or(100.0), 50.0);
    }
}
