//! What happens to a machine, drawn from a seed by request, machine and time, so that all methods meet the same.
//!
//! Invariant: a draw depends on the seed and on what it is for, never on the order of the calls.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::scenario::mix;
use fcdcc::error::{Error, Result};

/// Times of a law are at most this multiple of its mean or least value, so that one draw cannot outlast a study.
const MOST: f64 = 1000.0;
/// Least mean time between two slow or lost periods of a machine.
const LEAST_GAP_S: f64 = 0.001;

/// A time in a load file, such as `"20ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl Span {
    /// In seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl TryFrom<String> for Span {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        time(&text).map(Self)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        humantime::format_duration(span.0).to_string()
    }
}

fn time(text: &str) -> Result<Duration> {
    humantime::parse_duration(text.trim()).map_err(|_| {
        Error::invalid("time", format!("{text:?}"), "give a number and a unit, such as \"20ms\"")
    })
}

/// A law of times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Law {
    /// Always the same time.
    Constant(Duration),
    /// Exponential with this mean.
    Exponential(Duration),
    /// Pareto: the probability of more than t is (least / t)^shape.
    Pareto {
        /// The least time.
        least: Duration,
        /// The exponent: the smaller, the heavier the tail; above 1 there is a mean.
        shape: f64,
    },
}

impl Law {
    /// The time for a number drawn uniformly from (0, 1), in seconds.
    pub(super) fn at(self, uniform: f64) -> f64 {
        match self {
            Self::Constant(time) => time.as_secs_f64(),
            Self::Exponential(mean) => (-uniform.ln()).min(MOST) * mean.as_secs_f64(),
            Self::Pareto { least, shape } => uniform.powf(-1.0 / shape).min(MOST) * least.as_secs_f64(),
        }
    }

    /// The mean in seconds, without the limit of single times.
    pub(super) fn mean(self) -> f64 {
        match self {
            Self::Constant(time) | Self::Exponential(time) => time.as_secs_f64(),
            Self::Pareto { least, shape } => least.as_secs_f64() * shape / (shape - 1.0),
        }
    }
}

impl FromStr for Law {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let help = "give a time (\"20ms\"), \"exp(MEAN)\" or \"pareto(LEAST, SHAPE)\" with a shape above 1, such as \
                    \"pareto(5ms, 1.5)\"";
        let bad = || Error::invalid("law of times", format!("{text:?}"), help);
        let Some((name, rest)) = text.split_once('(') else {
            return time(text).map(Self::Constant).map_err(|_| bad());
        };
        let inside = rest.strip_suffix(')').ok_or_else(bad)?;
        match name.trim() {
            "exp" => time(inside).map(Self::Exponential).map_err(|_| bad()),
            "pareto" => {
                let (least, shape) = inside.split_once(',').ok_or_else(bad)?;
                let shape: f64 = shape.trim().parse().map_err(|_| bad())?;
                let least = time(least).map_err(|_| bad())?;
                if shape > 1.0 && shape <= 100.0 { Ok(Self::Pareto { least, shape }) } else { Err(bad()) }
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(time) => humantime::format_duration(*time).fmt(f),
            Self::Exponential(mean) => write!(f, "exp({})", humantime::format_duration(*mean)),
            Self::Pareto { least, shape } => {
                write!(f, "pareto({}, {shape})", humantime::format_duration(*least))
            }
        }
    }
}

impl TryFrom<String> for Law {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Law> for String {
    fn from(law: Law) -> Self {
        law.to_string()
    }
}

/// For what a delay is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Each {
    /// Once for a task, whatever its size.
    #[default]
    Task,
    /// Once for each layer of a task: a whole model waits for all of its layers.
    Layer,
}

/// Something that happens to machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MachineFault {
    /// A task begins late, and its machine does nothing else meanwhile.
    Delay {
        /// The probability.
        #[serde(default = "one")]
        chance: f64,
        /// How late.
        time: Law,
        /// For what it is drawn.
        #[serde(default)]
        each: Each,
    },
    /// A machine is slower for a while.
    Slow {
        /// How many times slower.
        factor: f64,
        /// Mean time from the end of such a period to the next; exponential.
        every: Span,
        /// How long it lasts.
        lasting: Law,
        /// Share of the machines that this happens to.
        #[serde(default = "one")]
        machines: f64,
    },
    /// A machine stands still for a while.
    Pause {
        /// Mean time from the end of such a period to the next; exponential.
        every: Span,
        /// How long it lasts.
        lasting: Law,
        /// Share of the machines that this happens to.
        #[serde(default = "one")]
        machines: f64,
    },
    /// Some machines are always slower.
    Uneven {
        /// How many times slower.
        factor: f64,
        /// Share of the machines that are slower.
        machines: f64,
    },
    /// A machine is lost with all its tasks, and comes back with its filters.
    Crash {
        /// Mean time from its return to the next loss; exponential.
        every: Span,
        /// How long it is away.
        lasting: Law,
        /// Time from the loss of a task until the master notices.
        notice: Span,
        /// Share of the machines that this happens to.
        #[serde(default = "one")]
        machines: f64,
    },
}

fn one() -> f64 {
    1.0
}

impl MachineFault {
    /// Checks every number.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, got: f64, help: &str| {
            Err(Error::invalid(format!("`{key}` of a [[fault]] of the load file"), got, help.to_owned()))
        };
        let share = |key: &str, value: f64| {
            if value > 0.0 && value <= 1.0 {
                Ok(())
            } else {
                bad(key, value, "use a number above 0, at most 1")
            }
        };
        let period = |every: Span, lasting: Law| {
            if every.seconds() < LEAST_GAP_S {
                return bad("every", every.seconds(), "use 1ms or more");
            }
            if lasting.mean() > 20.0 * every.seconds() {
                return bad("lasting", lasting.mean(), "use at most 20 times `every`");
            }
            Ok(())
        };
        match *self {
            Self::Delay { chance, .. } => share("chance", chance),
            Self::Slow { factor, every, lasting, machines } => {
                if !(1.0..=1e4).contains(&factor) {
                    return bad("factor", factor, "use 1 to 10000");
                }
                share("machines", machines)?;
                period(every, lasting)
            }
            Self::Uneven { factor, machines } => {
                if !(1.0..=1e4).contains(&factor) {
                    return bad("factor", factor, "use 1 to 10000");
                }
                share("machines", machines)
            }
            Self::Pause { every, lasting, machines } => {
                share("machines", machines)?;
                period(every, lasting)
            }
            Self::Crash { every, lasting, notice, machines } => {
                share("machines", machines)?;
                if notice.seconds() > 3600.0 {
                    return bad("notice", notice.seconds(), "use at most 1h");
                }
                period(every, lasting)
            }
        }
    }
}

/// Where numbers come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws(pub(super) u64);

impl Draws {
    /// A number drawn uniformly from (0, 1) for this purpose.
    pub(super) fn uniform(self, purpose: [u64; 4]) -> f64 {
        let bits = purpose.into_iter().fold(self.0, mix);
        // 52 bits and a half of the last one: neither 0 nor 1.
        ((bits >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// An exponential number with mean 1.
    pub(super) fn exponential(self, purpose: [u64; 4]) -> f64 {
        -self.uniform(purpose).ln()
    }
}

/// Purposes of draws beside those of faults, which count from 0.
pub(super) const ARRIVAL: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laws_have_their_means_and_texts() {
        let draws = Draws(5);
        for (text, mean, tolerance) in
            [("20ms", 0.02, 1e-9), ("exp(10ms)", 0.01, 2e-4), ("pareto(1ms, 3)", 0.0015, 3e-5)]
        {
            let law: Law = text.parse().unwrap();
            assert_eq!(law.to_string(), text);
            let n = 20_000;
            let sum: f64 = (0..n).map(|i| law.at(draws.uniform([0, 0, 0, i]))).sum();
            assert!((sum / n as f64 - mean).abs() < tolerance, "{text}: {}", sum / n as f64);
            assert!((law.mean() - mean).abs() < 1e-9);
        }
        for text in
            ["", "exp", "exp(3)", "pareto(1ms)", "pareto(1ms, 1)", "pareto(1ms, x)", "cauchy(1ms)", "exp(1ms"]
        {
            let error = text.parse::<Law>().unwrap_err().to_string();
            assert!(error.contains("exp(MEAN)") && error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn draws_differ_by_every_part_of_their_purpose() {
        let draws = Draws(1);
        let base = draws.uniform([1, 2, 3, 4]);
        assert_eq!(base, draws.uniform([1, 2, 3, 4]));
        for other in [[0, 2, 3, 4], [1, 0, 3, 4], [1, 2, 0, 4], [1, 2, 3, 0]] {
            assert_ne!(base, draws.uniform(other));
        }
        assert_ne!(base, Draws(2).uniform([1, 2, 3, 4]));
        assert!(draws.exponential([0; 4]).is_finite());
    }
}
