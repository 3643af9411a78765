//! Fault specifications such as `random:2:delay=exp(200ms)`.
//!
//! Relevant if you want to inject faults. The types are plain data with a text form;
//! [`faulty`](super::faulty()) carries a fault out.
//!
//! Invariant: [`FromStr`] reads the output of [`Display`](fmt::Display) back as the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::error::{Error, Result};

/// A fault and the workers that have it: `WORKERS:KIND`, e.g. `0,3:slow=5x` or `all:delay=300ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    /// The workers.
    pub workers: WorkerSet,
    /// The fault.
    pub fault: Fault,
}

/// A choice among the workers of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerSet {
    /// By index, e.g. `0,3`.
    Indices(Vec<usize>),
    /// This number of workers, drawn without replacement: `random:2`.
    Random(usize),
    /// Every worker: `all`.
    All,
}

/// The delay of a worker before it starts a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// A constant delay: `300ms`.
    Constant(Duration),
    /// Exponentially distributed: `exp(200ms)`.
    Exponential {
        /// The mean.
        mean: Duration,
    },
    /// A constant and an exponential part, the usual model of stragglers: `shifted-exp(50ms,100ms)`.
    ShiftedExponential {
        /// The constant part.
        shift: Duration,
        /// Mean of the exponential part.
        mean: Duration,
    },
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Waits before each task: `delay=...`.
    Delay(Delay),
    /// Takes this multiple of the time, at least 1: `slow=5x`.
    Slow(f64),
    /// Is lost for good at its first task: `crash`.
    Crash,
    /// Never answers: `drop`.
    Drop,
    /// Adds noise of this magnitude, relative to the root mean square of a result: `corrupt=1e-2`.
    Corrupt(f64),
    /// Puts one NaN into every result: `nan`.
    Nan,
    /// Loses its device at its first task; the respawned worker keeps its device: `device-lost`.
    DeviceLost,
}

/// The faults of one worker in one run, as drawn for a comparison of runs.
///
/// [Real](super::TaskFaults) and simulated workers (`scheduler::SimulatedFleet`) apply it in the same order: first
/// a fault that ends the task at once, then the delay, then the work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TaskFault {
    /// Delay before the work of a task; it occupies no core.
    pub delay: Duration,
    /// Multiple of the normal time for every sub-result. Values below 1 and NaN count as 1.
    pub slow: f64,
    /// The task fails at once, as if the process died or its connection broke. The worker is back by the next run.
    pub crash: bool,
    /// Never answers.
    pub silent: bool,
}

impl Default for TaskFault {
    /// No fault.
    fn default() -> Self {
        Self { delay: Duration::ZERO, slow: 1.0, crash: false, silent: false }
    }
}

impl TaskFault {
    /// Multiple of the normal time, at least 1.
    #[must_use]
    pub fn factor(&self) -> f64 {
        self.slow.max(1.0)
    }
}

const WORKERS_MEND: &str =
    "name the workers as indices (`0,3`), `random:COUNT` or `all`, then `:` and the fault, as in `0,3:crash`";
const KINDS_MEND: &str = "the fault is one of delay=300ms, delay=exp(200ms), delay=shifted-exp(50ms,100ms), \
     slow=5x, crash, drop, corrupt=1e-2, nan, device-lost";
const DURATION_MEND: &str = "write durations with their unit: 300ms, 2s, 1m 30s";

impl Delay {
    /// Draws one delay.
    #[must_use]
    pub fn sample(&self, rng: &mut impl Rng) -> Duration {
        match *self {
            Self::Constant(delay) => delay,
            Self::Exponential { mean } => exponential(mean, rng),
            Self::ShiftedExponential { shift, mean } => shift.saturating_add(exponential(mean, rng)),
        }
    }
}

fn exponential(mean: Duration, rng: &mut impl Rng) -> Duration {
    // 1 - u lies in (0, 1], so the logarithm is finite.
    let factor = -(1.0 - rng.random::<f64>()).ln();
    Duration::try_from_secs_f64(mean.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

impl WorkerSet {
    /// The indices chosen among `workers` workers, ascending, each once. The same seed draws the same workers.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`], with both numbers, for an index out of range and for more random workers than there
    /// are.
    pub fn resolve(&self, workers: usize, seed: u64) -> Result<Vec<usize>> {
        let mut chosen = match self {
            Self::All => (0..workers).collect(),
            Self::Random(count) if *count > workers => {
                return Err(Error::invalid(
                    "number of random faulty workers",
                    count,
                    format!("there are {workers} workers: choose at most as many"),
                ));
            }
            Self::Random(count) => {
                rand::seq::index::sample(&mut ChaCha8Rng::seed_from_u64(seed), workers, *count).into_vec()
            }
            Self::Indices(indices) => {
                if let Some(index) = indices.iter().find(|index| **index >= workers) {
                    return Err(Error::invalid(
                        "index of a faulty worker",
                        index,
                        format!("there are {workers} workers, counted from 0: name one of those"),
                    ));
                }
                indices.clone()
            }
        };
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }
}

impl FromStr for FaultSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (workers, kind) =
            text.rsplit_once(':').ok_or_else(|| Error::invalid("fault", quoted(text), WORKERS_MEND))?;
        Ok(Self { workers: workers.parse()?, fault: kind.parse()? })
    }
}

impl FromStr for WorkerSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::invalid("workers of a fault", quoted(text), WORKERS_MEND);
        match text.trim() {
            "all" => Ok(Self::All),
            other => match other.strip_prefix("random:") {
                Some(count) => match count.trim().parse() {
                    Ok(count) if count > 0 => Ok(Self::Random(count)),
                    _ => Err(refused()),
                },
                None => other
                    .split(',')
                    .map(|index| index.trim().parse().map_err(|_| refused()))
                    .collect::<Result<_>>()
                    .map(Self::Indices),
            },
        }
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        match text.split_once('=') {
            None => match text {
                "crash" => Ok(Self::Crash),
                "drop" => Ok(Self::Drop),
                "nan" => Ok(Self::Nan),
                "device-lost" => Ok(Self::DeviceLost),
                _ => Err(Error::invalid("fault", quoted(text), KINDS_MEND)),
            },
            Some(("delay", value)) => value.parse().map(Self::Delay),
            Some(("slow", value)) => {
                let factor = number(value.strip_suffix('x').unwrap_or(value));
                factor.filter(|factor| *factor >= 1.0).map(Self::Slow).ok_or_else(|| {
                    Error::invalid("slow", quoted(value), "give a finite factor of at least 1, as in slow=5x")
                })
            }
            Some(("corrupt", value)) => {
                number(value).filter(|size| *size > 0.0).map(Self::Corrupt).ok_or_else(|| {
                    Error::invalid(
                        "corrupt",
                        quoted(value),
                        "give a finite relative error above 0, as in corrupt=1e-2",
                    )
                })
            }
            Some(_) => Err(Error::invalid("fault", quoted(text), KINDS_MEND)),
        }
    }
}

impl FromStr for Delay {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let Some((law, rest)) = text.split_once('(') else {
            return duration(text).map(Self::Constant);
        };
        let arguments: Option<Vec<&str>> = rest.strip_suffix(')').map(|inner| inner.split(',').collect());
        match (law.trim(), arguments.as_deref()) {
            ("exp", Some([mean])) => Ok(Self::Exponential { mean: duration(mean)? }),
            ("shifted-exp", Some([shift, mean])) => {
                Ok(Self::ShiftedExponential { shift: duration(shift)?, mean: duration(mean)? })
            }
            _ => Err(Error::invalid("delay", quoted(text), KINDS_MEND)),
        }
    }
}

fn duration(text: &str) -> Result<Duration> {
    humantime::parse_duration(text.trim())
        .map_err(|cause| Error::invalid("delay", quoted(text), format!("{DURATION_MEND} ({cause})")))
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|value: &f64| value.is_finite())
}

fn quoted(text: &str) -> String {
    format!("`{text}`")
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.workers, self.fault)
    }
}

impl fmt::Display for WorkerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Random(count) => write!(f, "random:{count}"),
            Self::Indices(indices) => {
                for (at, index) in indices.iter().enumerate() {
                    write!(f, "{}{index}", if at == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(delay) => write!(f, "delay={delay}"),
            Self::Slow(factor) => write!(f, "slow={factor}x"),
            Self::Crash => f.write_str("crash"),
            Self::Drop => f.write_str("drop"),
            Self::Corrupt(size) => write!(f, "corrupt={size:e}"),
            Self::Nan => f.write_str("nan"),
            Self::DeviceLost => f.write_str("device-lost"),
        }
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use humantime::format_duration as text;
        match *self {
            Self::Constant(delay) => write!(f, "{}", text(delay)),
            Self::Exponential { mean } => write!(f, "exp({})", text(mean)),
            Self::ShiftedExponential { shift, mean } => {
                write!(f, "shifted-exp({},{})", text(shift), text(mean))
            }
        }
    }
}
