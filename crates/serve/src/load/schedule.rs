//! When requests arrive: drawn before the load begins, from a seed.
//!
//! Invariant: equal rates, durations and seeds give equal times, on every platform, in rising order.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fcdcc::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How requests arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// Independent of one another, as those of many users: exponentially distributed gaps.
    #[default]
    Poisson,
    /// One after the other, in equal gaps.
    Constant,
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poisson => "poisson",
            Self::Constant => "constant",
        })
    }
}

impl FromStr for Arrivals {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "poisson" => Ok(Self::Poisson),
            "constant" => Ok(Self::Constant),
            other => Err(Error::invalid("kind of arrivals", format!("{other:?}"), "use poisson or constant")),
        }
    }
}

impl Arrivals {
    /// The times of arrival within `duration`, `rate` a second on average.
    pub(super) fn times(self, rate: f64, duration: Duration, seed: u64) -> Vec<Duration> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let end = duration.as_secs_f64();
        let mut times = Vec::new();
        let mut now = 0.0;
        loop {
            now = match self {
                // The logarithm of a number above 0 and up to 1.
                Self::Poisson => now - ((f64::from(rng.next_u32()) + 1.0) / 4_294_967_296.0).ln() / rate,
                Self::Constant => times.len() as f64 / rate,
            };
            if now >= end {
                return times;
            }
            times.push(Duration::from_secs_f64(now));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_equally_far_apart() {
        let times = Arrivals::Constant.times(4.0, Duration::from_secs(1), 1);
        assert_eq!(times, [0, 250, 500, 750].map(Duration::from_millis));
        assert!(Arrivals::Constant.times(1.0, Duration::ZERO, 1).is_empty());
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_spread_of_independent_users() {
        let seconds = Duration::from_secs(100);
        let times = Arrivals::Poisson.times(100.0, seconds, 7);
        // The standard deviation of the number of arrivals is its root, 100.
        assert!((9500..=10_500).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted() && times.last().unwrap() < &seconds);
        // The variance of counts in a second is the mean; for constant arrivals it is 0.
        let variance = |times: &[Duration]| {
            let mut counts = [0.0; 100];
            for time in times {
                counts[usize::try_from(time.as_secs()).unwrap()] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / 100.0;
            counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 100.0
        };
        assert!((60.0..150.0).contains(&variance(&times)), "{}", variance(&times));
        assert!(variance(&Arrivals::Constant.times(100.0, seconds, 7)) < 1.0);
        assert_eq!(times, Arrivals::Poisson.times(100.0, seconds, 7));
        assert_ne!(times, Arrivals::Poisson.times(100.0, seconds, 8));
    }
}
