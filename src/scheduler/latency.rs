//! Statistics of subtask latencies, to tell when a subtask is overdue enough to be dispatched a second time.
//!
//! Relevant if you use hedging. A coded layer stops waiting once it can decode, so of its slowest subtasks it is known only
//! that they took *longer* than that. [`Latencies`] records such observations as censored, and estimates quantiles by the
//! product-limit (Kaplan-Meier) method; dropping them would make every layer look faster than it is. [`Expected`] keeps a
//! smoothed latency for each subtask.
//!
//! Invariant: a quantile is a recorded latency, and quantiles do not decrease with q.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::SubtaskId;

/// Number of observations kept: enough for a 95 % quantile, few enough to forget the load of a minute ago.
const KEPT: usize = 128;

/// The minimum number of observations for a quantile.
const ENOUGH: usize = 8;

/// Weight of a new latency in the smoothed one.
const WEIGHT: f64 = 0.25;

/// Rounding error of a survival probability, a product of at most 128 factors.
const ROUNDING: f64 = 1e-12;

#[derive(Clone, Copy, Debug)]
struct Observation {
    time: Duration,
    /// The subtask was still running at this time.
    censored: bool,
}

/// The last 128 latencies of one layer's subtasks.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    ring: VecDeque<Observation>,
}

impl Latencies {
    /// No observations yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a subtask whose results were complete after `time`.
    pub fn observe(&mut self, time: Duration) {
        self.push(Observation { time, censored: false });
    }

    /// Records a subtask that was cancelled after `time`, before its results were complete.
    pub fn censored(&mut self, time: Duration) {
        self.push(Observation { time, censored: true });
    }

    /// The time by which a fraction `q` (0 to 1) of all subtasks would be complete if none were cancelled.
    ///
    /// `None` below eight observations. Where the quantile lies beyond the longest uncensored latency, the result is the
    /// largest observation of either kind, which is a lower bound.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.ring.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<Observation> = self.ring.iter().copied().collect();
        // At equal times, a censored subtask was still at risk when the other one ended.
        sorted.sort_by_key(|o| (o.time, o.censored));
        let mut surviving = 1.0;
        for (index, observation) in sorted.iter().enumerate().filter(|(_, o)| !o.censored) {
            // Handling equal times one by one gives the same as all at once: the product telescopes.
            let at_risk = (sorted.len() - index) as f64;
            surviving *= (at_risk - 1.0) / at_risk;
            if surviving <= 1.0 - q + ROUNDING {
                return Some(observation.time);
            }
        }
        sorted.last().map(|o| o.time)
    }

    fn push(&mut self, observation: Observation) {
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(observation);
    }
}

/// The expected latency of each subtask: an exponentially weighted mean, in which a new latency counts a quarter.
#[derive(Clone, Debug)]
pub struct Expected {
    seconds: Vec<Option<f64>>,
}

impl Expected {
    /// No latencies yet, for `n` subtasks.
    #[must_use]
    pub fn new(n: usize) -> Self {
        Self { seconds: vec![None; n] }
    }

    /// Records that subtask `subtask` took `time`. An index out of range is ignored.
    pub fn observe(&mut self, subtask: SubtaskId, time: Duration) {
        if let Some(expected) = self.seconds.get_mut(subtask.0) {
            let time = time.as_secs_f64();
            *expected = Some(expected.map_or(time, |before| before + WEIGHT * (time - before)));
        }
    }

    /// The expected latency of `subtask`; `None` if it was never observed.
    #[must_use]
    pub fn get(&self, subtask: SubtaskId) -> Option<Duration> {
        let seconds = (*self.seconds.get(subtask.0)?)?;
        // The mean lies between observed durations; only rounding at the very end of the range could leave it.
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_censoring_quantiles_are_those_of_the_sample() {
        for n in [8_u64, 9, 50, 100, 128] {
            let mut latencies = Latencies::new();
            for k in 1..=n {
                // All of 1..=n in mixed order, with ties: two of each.
                latencies.observe(ms((k * 37 % n).div_ceil(2)));
            }
            let mut sample: Vec<u64> = (1..=n).map(|k| (k * 37 % n).div_ceil(2)).collect();
            sample.sort_unstable();
            for rank in 1..=n {
                let expected = Some(ms(sample[usize::try_from(rank).unwrap() - 1]));
                assert_eq!(latencies.quantile(rank as f64 / n as f64), expected, "{rank} of {n}");
                // A fraction just above the previous rank gives this rank too.
                assert_eq!(latencies.quantile((rank as f64 - 0.99) / n as f64), expected, "{rank} of {n}");
            }
            assert_eq!(latencies.quantile(0.0), Some(ms(sample[0])));
        }
    }

    #[test]
    fn too_few_observations_are_no_estimate() {
        let mut latencies = Latencies::new();
        for k in 0..7 {
            latencies.observe(ms(k));
            assert_eq!(latencies.quantile(0.5), None);
        }
        latencies.censored(ms(3));
        assert!(latencies.quantile(0.5).is_some());
    }

    #[test]
    fn only_the_last_observations_count() {
        let mut latencies = Latencies::new();
        for time in std::iter::repeat_n(ms(500), 1000).chain(std::iter::repeat_n(ms(2), 128)) {
            latencies.observe(time);
        }
        assert_eq!(latencies.quantile(1.0), Some(ms(2)));
    }

    #[test]
    fn censored_observations_count_as_longer() {
        // The textbook product: (1 - 1/8)(1 - 1/7), then, after two have left, (1 - 1/4).
        let mut latencies = Latencies::new();
        for time in [1, 2, 4] {
            latencies.observe(ms(time));
        }
        for time in [2, 3, 5, 6, 7] {
            latencies.censored(ms(time));
        }
        for (q, time) in [(0.12, 1), (0.13, 2), (0.25, 2), (0.26, 4), (0.4375, 4), (0.44, 7), (1.0, 7)] {
            assert_eq!(latencies.quantile(q), Some(ms(time)), "{q}");
        }
        let mut nothing_ended = Latencies::new();
        for time in 1..=8 {
            nothing_ended.censored(ms(time));
        }
        assert_eq!(nothing_ended.quantile(0.1), Some(ms(8)));
    }

    #[test]
    fn stopping_at_the_fourth_of_six_does_not_make_the_median_look_short() {
        let (mut estimates, mut ended) = (0.0, 0.0);
        for seed in 0..50 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (mut all, mut without) = (Latencies::new(), Latencies::new());
            for _ in 0..22 {
                // Exponential with mean 1 s.
                let mut layer: Vec<f64> = (0..6).map(|_| -(1.0 - rng.random::<f64>()).ln()).collect();
                layer.sort_by(f64::total_cmp);
                for (rank, seconds) in layer.iter().enumerate() {
                    if rank < 4 {
                        all.observe(Duration::from_secs_f64(*seconds));
                        without.observe(Duration::from_secs_f64(*seconds));
                    } else {
                        all.censored(Duration::from_secs_f64(layer[3]));
                    }
                }
            }
            assert_eq!(all.ring.len(), KEPT);
            estimates += all.quantile(0.5).unwrap().as_secs_f64() / 50.0;
            ended += without.quantile(0.5).unwrap().as_secs_f64() / 50.0;
        }
        let median = std::f64::consts::LN_2;
        assert!((estimates / median - 1.0).abs() < 0.15, "{estimates} for {median}");
        // Negative control: uncensored latencies alone.
        assert!(ended / median < 0.75, "{ended} for {median}");
    }

    #[test]
    fn expectations_follow_each_subtask() {
        let mut expected = Expected::new(2);
        assert_eq!(expected.get(SubtaskId(0)), None);
        expected.observe(SubtaskId(0), ms(100));
        assert_eq!(expected.get(SubtaskId(0)), Some(ms(100)));
        expected.observe(SubtaskId(0), ms(200));
        assert_eq!(expected.get(SubtaskId(0)), Some(ms(125)));
        assert_eq!(expected.get(SubtaskId(1)), None);
        for _ in 0..30 {
            expected.observe(SubtaskId(0), ms(400));
        }
        assert!(expected.get(SubtaskId(0)).unwrap() > ms(399));
        expected.observe(SubtaskId(2), ms(1));
        assert_eq!(expected.get(SubtaskId(2)), None, "there is none");
        expected.observe(SubtaskId(1), Duration::MAX);
        assert!(expected.get(SubtaskId(1)).is_some());
    }
}
