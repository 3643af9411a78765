//! Fault scenarios of a benchmark. Faults are redrawn for each trial.
//!
//! Invariant: the faults of a trial depend on scenario, number of workers, trial and seed alone, never on the method, so
//! that all methods meet the same faults.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use fcdcc::error::{Error, Result};
use fcdcc::files;
use fcdcc::ids::WorkerId;
use fcdcc::worker::{Delay, Fault, FaultSpec, TaskFault, WorkerSet};

/// A shorter delay would drown in the noise of a machine's clock and scheduler.
const LEAST_DELAY: Duration = Duration::from_millis(20);
/// Delay of a straggler in the default suite, as a multiple of the uncoded latency.
const DELAY_FACTOR: f64 = 5.0;
/// Slowdown factor of the slow workers in the default suite.
const SLOW_FACTOR: f64 = 5.0;

/// The faults of workers in every trial of a scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    /// The faults, which act together; empty: no stragglers.
    pub faults: Vec<TrialFault>,
}

/// A fault that affects workers for the length of a trial.
#[derive(Clone, Debug, PartialEq)]
pub enum TrialFault {
    /// Delay, slowness, crash or silence of some workers; `random:2` selects two workers in every trial.
    Spec(FaultSpec),
    /// Delays recorded elsewhere: `trace=FILE`.
    Trace(Trace),
}

/// Recorded delays: a line for each trial, a column for each worker; `None` is a crash. Lines and columns repeat from the
/// beginning if there are more trials or workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    path: String,
    rows: Arc<Vec<Vec<Option<Duration>>>>,
}

impl Trace {
    /// Reads a trace file.
    ///
    /// # Errors
    /// [`Error::File`] naming file and line; also for more than [`files::TEXT_BYTES`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let text = files::read_text(path.as_ref())?;
        Self::parse(path.as_ref().display().to_string(), &text)
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Reads the text of a trace file; `path` names it in errors.
    ///
    /// # Errors
    /// The errors of [`Trace::load`].
    pub fn parse(path: impl Into<String>, text: &str) -> Result<Self> {
        let path = path.into();
        let bad = |cause: String| Error::File { path: path.clone(), cause, input: true };
        let mut rows = Vec::new();
        for (line, text) in text.lines().enumerate() {
            let data = text.split('#').next().unwrap_or_default();
            let cells = data.split(|c: char| c == ',' || c.is_whitespace()).filter(|cell| !cell.is_empty());
            let row: Vec<Option<Duration>> = cells
                .map(|cell| {
                    let crash = matches!(cell, "inf" | "x");
                    let delay = if crash { None } else { delay(cell) };
                    if delay.is_some() || crash {
                        return Ok(delay);
                    }
                    let help = "write a delay in ms for each worker, `inf` or `x` for a crash";
                    Err(bad(format!("line {}: {cell:?} is no delay: {help}", line + 1)))
                })
                .collect::<Result<_>>()?;
            if !row.is_empty() {
                rows.push(row);
            }
        }
        if rows.is_empty() {
            return Err(bad("has no line with delays: write one line a trial, in ms".to_owned()));
        }
        Ok(Self { rows: Arc::new(rows), path })
    }

    fn at(&self, trial: usize, worker: WorkerId) -> Option<Duration> {
        let row = &self.rows[trial % self.rows.len()];
        row[worker.0 % row.len()]
    }
}

/// The delay in a cell of a trace, given in milliseconds.
fn delay(cell: &str) -> Option<Duration> {
    let ms: f64 = cell.parse().ok()?;
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

impl Scenario {
    /// A scenario with these faults.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for faults that do not end with their trial or corrupt results.
    pub fn new(faults: Vec<FaultSpec>) -> Result<Self> {
        let faults = faults.into_iter().map(|spec| checked(spec).map(TrialFault::Spec));
        Ok(Self { faults: faults.collect::<Result<_>>()? })
    }

    /// The default suite: no stragglers; 1 to `tolerate` + 1 workers late by `delay` (if `tolerate` is large, some of these
    /// numbers); all workers late by an exponential time of mean `delay` / 2, and by a quarter of `delay` plus such a time;
    /// `tolerate` workers five times slower; `tolerate` workers crashed.
    #[must_use]
    pub fn suite(tolerate: usize, delay: Duration) -> Vec<Self> {
        let random = |count, fault| one(WorkerSet::Random(count), fault);
        let late = |count| random(count, Fault::Delay(Delay::Constant(delay)));
        let (mean, shift) = (delay / 2, delay / 4);
        let mut suite = vec![Self::default()];
        // If many are tolerated: one, half of them, all, one more.
        let mut counts: Vec<usize> = if tolerate <= 4 {
            (1..=tolerate + 1).collect()
        } else {
            vec![1, tolerate / 2, tolerate, tolerate + 1]
        };
        counts.dedup();
        suite.extend(counts.into_iter().map(late));
        suite.push(one(WorkerSet::All, Fault::Delay(Delay::Exponential { mean })));
        suite.push(one(WorkerSet::All, Fault::Delay(Delay::ShiftedExponential { shift, mean })));
        suite.push(random(tolerate.max(1), Fault::Slow(SLOW_FACTOR)));
        suite.push(random(tolerate.max(1), Fault::Crash));
        suite
    }

    /// `stragglers` workers, redrawn in every trial, are late by `delay`.
    #[must_use]
    pub fn late(stragglers: usize, delay: Duration) -> Self {
        one(WorkerSet::Random(stragglers), Fault::Delay(Delay::Constant(delay)))
    }

    /// Checks that every worker named by the faults is among `workers` workers.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with both numbers.
    pub fn check(&self, workers: usize) -> Result<()> {
        self.faults.iter().try_for_each(|fault| match fault {
            TrialFault::Spec(spec) => spec.workers.resolve(workers, 0).map(drop),
            TrialFault::Trace(_) => Ok(()),
        })
    }

    /// The faults of each worker in a trial.
    #[must_use]
    pub fn fates(&self, workers: usize, trial: usize, seed: u64) -> Vec<TaskFault> {
        let mut fates = vec![TaskFault::default(); workers];
        for (index, fault) in self.faults.iter().enumerate() {
            let seed = mix(mix(seed, trial as u64), index as u64);
            match fault {
                TrialFault::Trace(trace) => {
                    for (worker, fate) in (0..).map(WorkerId).zip(&mut fates) {
                        match trace.at(trial, worker) {
                            Some(delay) => fate.delay = fate.delay.saturating_add(delay),
                            None => fate.crash = true,
                        }
                    }
                }
                TrialFault::Spec(spec) => {
                    let mut rng = ChaCha8Rng::seed_from_u64(mix(seed, 1));
                    // `check` has refused whatever cannot be resolved.
                    for worker in spec.workers.resolve(workers, seed).unwrap_or_default() {
                        let fate = &mut fates[worker];
                        match spec.fault {
                            Fault::Delay(law) => {
                                fate.delay = fate.delay.saturating_add(law.sample(&mut rng));
                            }
                            Fault::Slow(factor) => fate.slow *= factor,
                            Fault::Crash => fate.crash = true,
                            Fault::Drop => fate.silent = true,
                            Fault::Corrupt(_) | Fault::Nan | Fault::DeviceLost => {}
                        }
                    }
                }
            }
        }
        fates
    }

    /// A readable name for this number of workers: `2 of 6 workers 100 ms late`.
    #[must_use]
    pub fn name(&self, workers: usize) -> String {
        if self.faults.is_empty() {
            return "nobody late".to_owned();
        }
        let parts: Vec<String> = self.faults.iter().map(|fault| fault.describe(workers)).collect();
        parts.join(", ")
    }

    /// Number of stragglers in a trial, if it is fixed and not all workers.
    #[must_use]
    pub fn stragglers(&self) -> Option<usize> {
        match self.faults.as_slice() {
            [] => Some(0),
            [TrialFault::Spec(FaultSpec { workers, .. })] => match workers {
                WorkerSet::Random(count) => Some(*count),
                WorkerSet::Indices(indices) => {
                    let mut indices = indices.clone();
                    indices.sort_unstable();
                    indices.dedup();
                    Some(indices.len())
                }
                WorkerSet::All => None,
            },
            _ => None,
        }
    }

    /// Delay of the stragglers, if there is one and it is fixed.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        match self.faults.as_slice() {
            [TrialFault::Spec(FaultSpec { fault: Fault::Delay(Delay::Constant(delay)), .. })] => Some(*delay),
            _ => None,
        }
    }
}

impl TrialFault {
    fn describe(&self, workers: usize) -> String {
        let spec = match self {
            Self::Trace(trace) => return format!("delays as in {}", trace.path),
            Self::Spec(spec) => spec,
        };
        let who = match &spec.workers {
            WorkerSet::All => format!("all {workers} workers"),
            WorkerSet::Random(count) => format!("{count} of {workers} workers"),
            WorkerSet::Indices(indices) => {
                let names: Vec<String> = indices.iter().map(ToString::to_string).collect();
                format!("workers {}", names.join(", "))
            }
        };
        match spec.fault {
            Fault::Delay(Delay::Constant(delay)) => format!("{who} {} late", ms(delay)),
            Fault::Delay(Delay::Exponential { mean }) => {
                format!("{who} late, exponential, mean {}", ms(mean))
            }
            Fault::Delay(Delay::ShiftedExponential { shift, mean }) => {
                format!("{who} late, {} + exponential, mean {}", ms(shift), ms(mean))
            }
            Fault::Slow(factor) => format!("{who} {factor} times slower"),
            Fault::Crash => format!("{who} crash"),
            Fault::Drop => format!("{who} silent"),
            other => format!("{who} {other}"),
        }
    }
}

impl FromStr for Scenario {
    type Err = Error;

    /// `none`, or faults separated by spaces: `random:2:delay=100ms 0:crash`, `trace=delays.txt`. Reads trace files.
    fn from_str(text: &str) -> Result<Self> {
        let fault = |text: &str| match text.strip_prefix("trace=") {
            Some(path) => Trace::load(path).map(TrialFault::Trace),
            None => text.parse().and_then(checked).map(TrialFault::Spec),
        };
        match text.trim() {
            "none" => Ok(Self::default()),
            "" => Err(Error::invalid(
                "scenario",
                "empty",
                "give faults between spaces, as in \"random:2:delay=100ms 0:crash\", or none",
            )),
            faults => Ok(Self { faults: faults.split_whitespace().map(fault).collect::<Result<_>>()? }),
        }
    }
}

impl fmt::Display for TrialFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spec(spec) => spec.fmt(f),
            Self::Trace(trace) => write!(f, "trace={}", trace.path),
        }
    }
}

/// Delay of the stragglers in the default suite if an uncoded run takes `uncoded`: five times as long, at least 20 ms, to
/// two significant digits.
#[must_use]
pub fn straggler_delay(uncoded: Duration) -> Duration {
    let ms = (uncoded.as_secs_f64() * 1e3 * DELAY_FACTOR).max(LEAST_DELAY.as_secs_f64() * 1e3);
    let unit = 10f64.powf(ms.log10().floor() - 1.0);
    Duration::try_from_secs_f64((ms / unit).round() * unit / 1e3).unwrap_or(LEAST_DELAY)
}

fn one(workers: WorkerSet, fault: Fault) -> Scenario {
    Scenario { faults: vec![TrialFault::Spec(FaultSpec { workers, fault })] }
}

fn checked(spec: FaultSpec) -> Result<FaultSpec> {
    match spec.fault {
        Fault::Delay(_) | Fault::Slow(_) | Fault::Crash | Fault::Drop => Ok(spec),
        Fault::Corrupt(_) | Fault::Nan | Fault::DeviceLost => Err(Error::invalid(
            "fault of a benchmark",
            format!("`{spec}`"),
            "only what costs time can be compared: delay, slow, crash, drop or trace=FILE (wrong results and lost \
             devices: fcdcc conv --fault)",
        )),
    }
}

fn ms(time: Duration) -> String {
    // Six decimals of a millisecond are a nanosecond.
    let text = format!("{:.6}", time.as_secs_f64() * 1e3);
    format!("{} ms", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A pseudo-random number from two numbers (the finalizer of SplitMix64).
pub(super) fn mix(seed: u64, salt: u64) -> u64 {
    let mut z = seed.wrapping_add(salt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn scenario(text: &str) -> Scenario {
        text.parse().unwrap()
    }

    #[test]
    fn fates_repeat_with_their_seed_and_differ_between_trials() {
        let s = scenario("random:2:delay=exp(10ms) 0:slow=3x");
        let all = |seed| (0..40).map(|trial| s.fates(6, trial, seed)).collect::<Vec<_>>();
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
        let late = |fates: &[TaskFault]| (0..6).filter(|w| !fates[*w].delay.is_zero()).collect::<Vec<_>>();
        assert!(all(7).iter().all(|fates| late(fates).len() == 2 && fates[0].slow == 3.0));
        let mut sets: Vec<_> = all(7).iter().map(|fates| late(fates)).collect();
        sets.sort_unstable();
        sets.dedup();
        // 15 pairs of six workers; 40 trials meet nearly all of them.
        assert!(sets.len() > 10, "{sets:?}");
    }

    #[test]
    fn delays_follow_their_law() {
        let (trials, workers) = (500, 8);
        let mean = |text: &str| {
            let s = scenario(text);
            let all = (0..trials).flat_map(|trial| s.fates(workers, trial, 3));
            all.map(|fate| fate.delay.as_secs_f64() * 1e3).sum::<f64>() / (trials * workers) as f64
        };
        assert!((mean("all:delay=10ms") - 10.0).abs() < 1e-9);
        // The standard error of a mean of 4000 exponential times is 1.6 % of it.
        assert!((mean("all:delay=exp(10ms)") - 10.0).abs() < 0.8);
        assert!((mean("all:delay=shifted-exp(5ms,10ms)") - 15.0).abs() < 0.8);
        assert!((mean("random:2:delay=8ms") - 2.0).abs() < 1e-9);
        // Negative control: a different mean is detected.
        assert!((mean("all:delay=exp(12ms)") - 10.0).abs() > 0.8);
    }

    #[test]
    fn faults_act_together() {
        let fates = scenario("0:delay=5ms all:delay=1ms 1:slow=2x 1:slow=3x 2:crash 3:drop").fates(4, 9, 1);
        assert_eq!((fates[0].delay, fates[3].delay), (6 * MS, MS));
        assert_eq!((fates[1].slow, fates[2].crash, fates[3].silent), (6.0, true, true));
        assert_eq!(scenario("none").fates(3, 0, 0), vec![TaskFault::default(); 3]);
    }

    #[test]
    fn traces_are_read_and_repeat() {
        let trace = Trace::parse("t.txt", "# ms\n1, 2.5 x\n\n0 inf  # two columns\n").unwrap();
        let s = Scenario { faults: vec![TrialFault::Trace(trace)] };
        let fates = s.fates(4, 0, 5);
        assert_eq!((fates[0].delay, fates[1].delay), (MS, MS * 5 / 2));
        assert!(fates[2].crash && fates[3].delay == MS && !fates[3].crash);
        assert!(s.fates(4, 1, 5)[3].crash && s.fates(4, 2, 6) == fates);
        assert_eq!(
            (s.name(4).as_str(), s.faults[0].to_string().as_str()),
            ("delays as in t.txt", "trace=t.txt")
        );
        for (text, says) in
            [("1\n2 y\n", "line 2"), ("-1", "line 1"), ("nan", "line 1"), ("# nothing\n", "no line")]
        {
            let error = Trace::parse("t.txt", text).unwrap_err().to_string();
            assert!(error.contains("t.txt") && error.contains(says), "{error}");
        }
        assert!("trace=missing.txt".parse::<Scenario>().unwrap_err().to_string().contains("missing.txt"));
    }

    #[test]
    fn faults_that_outlive_a_trial_or_spoil_results_are_refused() {
        for text in ["0:corrupt=1e-2", "all:nan", "0:device-lost", "", "0:sulk"] {
            assert!(text.parse::<Scenario>().is_err(), "{text}");
        }
        let error = "0:nan".parse::<Scenario>().unwrap_err().to_string();
        assert!(error.contains("`0:nan`") && error.contains("fcdcc conv"), "{error}");
        let error = scenario("0,7:crash").check(6).unwrap_err().to_string();
        assert!(error.contains('7') && error.contains('6'), "{error}");
    }

    #[test]
    fn the_suite_has_every_kind_of_trouble() {
        let suite = Scenario::suite(2, 100 * MS);
        let names: Vec<String> = suite.iter().map(|s| s.name(6)).collect();
        assert_eq!(
            names,
            [
                "nobody late",
                "1 of 6 workers 100 ms late",
                "2 of 6 workers 100 ms late",
                "3 of 6 workers 100 ms late",
                "all 6 workers late, exponential, mean 50 ms",
                "all 6 workers late, 25 ms + exponential, mean 50 ms",
                "2 of 6 workers 5 times slower",
                "2 of 6 workers crash",
            ]
        );
        assert!(suite.iter().all(|s| s.check(6).is_ok()));
        assert_eq!((suite[2].stragglers(), suite[2].delay()), (Some(2), Some(100 * MS)));
        assert_eq!((suite[0].stragglers(), suite[4].stragglers(), suite[4].delay()), (Some(0), None, None));
        // The displayed form can be parsed.
        for s in &suite[1..] {
            assert_eq!(scenario(&s.faults[0].to_string()), *s);
        }
    }

    #[test]
    fn the_default_delay_is_five_uncoded_runs() {
        for (uncoded_us, delay_ms) in [(100, 20), (8_230, 41), (31_900, 160), (1_000_000, 5_000)] {
            assert_eq!(straggler_delay(Duration::from_micros(uncoded_us)), delay_ms * MS, "{uncoded_us}");
        }
    }
}
