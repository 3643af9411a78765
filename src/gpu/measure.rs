//! Selects the fastest of several candidates for a layer on a device: each is verified, then measured.
//!
//! Similar layers share a class ([`class`]); a class is measured on one of its layers, reduced in size if the device is
//! slow ([`trial_shape`]). Each candidate computes it once and is compared with the result of the CPU. Candidates that
//! are correct and not far slower than the fastest are timed in turns ([`measure`]); the fastest is chosen
//! ([`choose`]). This module uses no device and no file: see [`tuner`](super::tuner) and
//! [`tuning_cache`](super::tuning_cache).
//!
//! Invariant: only a candidate with a correct result has a time, and only one with a time is ever chosen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::conv::{AXES, ConvParams, ConvShape};

/// The source of a worker's choice of kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TuneMode {
    /// Built-in: the candidate expected to be fastest.
    #[default]
    Off,
    /// An earlier measurement on such an adapter; otherwise built-in.
    CacheOnly,
    /// An earlier measurement; otherwise measured when the first layer of a class is installed, and saved.
    Measure,
    /// Measured once per process regardless of earlier measurements, and saved.
    Remeasure,
}

/// The outcome of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The result was correct; median seconds of a trial.
    Seconds(f64),
    /// The candidate does not compile, is wrong, or takes too long: the reason. Never tried again.
    Failed(String),
    /// The time budget ended before the candidate was measured.
    Unmeasured,
}

/// The verdicts of a class, by candidate name.
pub(super) type Verdicts = BTreeMap<String, Verdict>;

/// The cause of a failed trial.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    /// The candidate does not compile, or its result is wrong.
    Candidate(String),
    /// The device was lost during the trial; no further candidate can be tried.
    Device(String),
}

/// Runs trials of candidates, which are given by their index in a list.
pub(super) trait Bench {
    /// Prepares a candidate, computes the trial and verifies the result. Returns the seconds of the trial.
    fn verify(&mut self, candidate: usize) -> Result<f64, Trouble>;
    /// Runs one more trial of a verified candidate. Returns its seconds.
    fn time(&mut self, candidate: usize) -> Result<f64, Trouble>;
    /// Seconds since the bench was created.
    fn spent(&self) -> f64;
}

/// Number of times of a candidate that the median is taken of.
const ROUNDS: usize = 5;
/// Candidates that take this multiple of the fastest time in the first trial are not timed further.
const BEHIND: f64 = 2.0;
/// Ratios below this are noise; the earlier candidate, which is expected to be faster, is then preferred.
const NOISE: f64 = 1.03;

/// Verifies and times the candidates `names`, most promising first, for about `budget` seconds. Candidates that failed
/// in `before` are not tried again.
pub(super) fn measure(names: &[String], before: &Verdicts, bench: &mut dyn Bench, budget: f64) -> Verdicts {
    let failed = |(name, verdict): (&String, &Verdict)| {
        matches!(verdict, Verdict::Failed(_)).then(|| (name.clone(), verdict.clone()))
    };
    let mut trials = Trials { names, verdicts: before.iter().filter_map(failed).collect(), gone: false };
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for at in 0..names.len() {
        // After the budget is spent, one correct candidate suffices.
        if !trials.may_go_on(at) || (bench.spent() > budget && times.iter().any(|t| !t.is_empty())) {
            continue;
        }
        times[at].extend(trials.noted(at, bench.verify(at)));
    }
    let first = |times: &[f64]| times.first().copied().unwrap_or(f64::INFINITY);
    let fastest = times.iter().map(|t| first(t)).fold(f64::INFINITY, f64::min);
    let contenders: Vec<usize> =
        (0..names.len()).filter(|at| first(&times[*at]) <= BEHIND * fastest && fastest.is_finite()).collect();
    let rounds = if contenders.len() < 2 { 0 } else { ROUNDS };
    for (round, at) in (0..rounds).flat_map(|round| contenders.iter().map(move |at| (round, *at))) {
        if bench.spent() > budget {
            break;
        }
        if trials.may_go_on(at)
            && let Some(seconds) = trials.noted(at, bench.time(at))
        {
            if round == 0 {
                // The first trial ran with cold caches.
                times[at].clear();
            }
            times[at].push(seconds);
        }
    }
    let mut verdicts = trials.verdicts;
    for (name, times) in names.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2);
        let verdict = median.map_or(Verdict::Unmeasured, |median| Verdict::Seconds(*median));
        verdicts.entry(name.clone()).or_insert(verdict);
    }
    verdicts
}

/// The trials so far and the failed candidates.
struct Trials<'a> {
    names: &'a [String],
    verdicts: Verdicts,
    /// Whether the device was lost.
    gone: bool,
}

impl Trials<'_> {
    fn may_go_on(&self, at: usize) -> bool {
        !self.gone && !self.verdicts.contains_key(&self.names[at])
    }

    /// The seconds of a trial. After a failure the candidate is marked as failed and not tried again.
    fn noted(&mut self, at: usize, trial: Result<f64, Trouble>) -> Option<f64> {
        let (gone, cause) = match trial {
            Ok(seconds) => return Some(seconds),
            Err(Trouble::Candidate(cause)) => (false, cause),
            Err(Trouble::Device(cause)) => (true, cause),
        };
        tracing::warn!(candidate = %self.names[at], %cause, "a GPU kernel is left out");
        self.gone |= gone;
        self.verdicts.insert(self.names[at].clone(), Verdict::Failed(cause));
        None
    }
}

/// The candidate to use: the fastest, or an earlier one that is equally fast up to noise; `None` if none was timed.
pub(super) fn choose(names: &[String], verdicts: &Verdicts) -> Option<usize> {
    let time = |name: &String| match verdicts.get(name) {
        Some(Verdict::Seconds(seconds)) if seconds.is_finite() && *seconds >= 0.0 => Some(*seconds),
        _ => None,
    };
    let fastest = names.iter().filter_map(time).min_by(f64::total_cmp)?;
    names.iter().position(|name| time(name).is_some_and(|t| t <= fastest * NOISE))
}

/// The candidate expected to be fastest among those that have not failed; `None` if all have.
pub(super) fn expected(names: &[String], verdicts: &Verdicts) -> Option<usize> {
    names.iter().position(|name| !matches!(verdicts.get(name), Some(Verdict::Failed(_))))
}

/// The exponent of the nearest power of two; a kernel performs alike on sizes that share it.
fn octave(size: usize) -> u32 {
    let size = size.max(1) as u128;
    (2 * size * size).ilog2() / 2
}

/// The class of a layer: its exact window and groups, and the octaves of its channels and pixels.
pub(super) fn class(shape: &ConvShape) -> String {
    let axes = |a: [usize; AXES]| format!("{}x{}x{}", a[0], a[1], a[2]);
    let columns = shape.batch * shape.output.iter().product::<usize>();
    format!(
        "k{} s{} d{} g{} c{} o{} p{}",
        axes(shape.kernel),
        axes(shape.stride),
        axes(shape.dilation),
        octave(shape.groups),
        octave(shape.in_channels / shape.groups),
        octave(shape.out_channels / shape.groups),
        octave(columns)
    )
}

/// `shape` with batch, depth and height reduced until it takes at most about `macs` multiply-adds.
pub(super) fn trial_shape(shape: &ConvShape, macs: u64) -> ConvShape {
    let (mut batch, mut output) = (shape.batch, shape.output);
    let limit = usize::try_from(macs).unwrap_or(usize::MAX).max(1);
    // The factor by which the shape is too large.
    let over = |batch: usize, output: [usize; AXES]| {
        let columns = batch * output.iter().product::<usize>();
        shape.weight_elems().saturating_mul(columns).div_ceil(limit)
    };
    batch = (batch / over(batch, output).max(1)).max(1);
    for axis in 0..AXES {
        output[axis] = (output[axis] / over(batch, output).max(1)).max(1);
    }
    if (batch, output) == (shape.batch, shape.output) {
        return shape.clone();
    }
    let window = |a: usize| shape.dilation[a] * (shape.kernel[a] - 1) + 1;
    let input: Vec<usize> = (0..AXES).map(|a| (output[a] - 1) * shape.stride[a] + window(a)).collect();
    let weight = [&[shape.out_channels, shape.in_channels / shape.groups], shape.kernel.as_slice()].concat();
    let params = ConvParams::default().stride(shape.stride).dilation(shape.dilation).groups(shape.groups);
    ConvShape::new(&[&[batch, shape.in_channels], input.as_slice()].concat(), &weight, &params)
        .unwrap_or_else(|_| shape.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of a trial: seconds or an error. The device is lost if the error begins with "gone".
    type Scripted = Result<f64, &'static str>;

    /// The outcomes of successive trials, starting with the verification; the last one repeats.
    struct Script {
        trials: Vec<Vec<Scripted>>,
        done: Vec<usize>,
        clock: f64,
    }

    impl Script {
        fn new(trials: &[&[Scripted]]) -> Self {
            Self {
                trials: trials.iter().map(|t| t.to_vec()).collect(),
                done: vec![0; trials.len()],
                clock: 0.0,
            }
        }
    }

    impl Bench for Script {
        fn verify(&mut self, candidate: usize) -> Result<f64, Trouble> {
            self.time(candidate)
        }
        fn time(&mut self, candidate: usize) -> Result<f64, Trouble> {
            let trials = &self.trials[candidate];
            let at = self.done[candidate].min(trials.len() - 1);
            self.done[candidate] += 1;
            if let Ok(seconds) = trials[at] {
                self.clock += seconds;
            }
            trials[at].map_err(|cause| match cause.strip_prefix("gone: ") {
                Some(cause) => Trouble::Device(cause.to_owned()),
                None => Trouble::Candidate(cause.to_owned()),
            })
        }
        fn spent(&self) -> f64 {
            self.clock
        }
    }

    fn names(count: usize) -> Vec<String> {
        ["a", "b", "c", "d"][..count].iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_fastest_that_is_right_is_chosen() {
        let mut bench = Script::new(&[&[Ok(0.04)], &[Err("wrong")], &[Ok(0.05), Ok(0.02)], &[Ok(0.9)]]);
        let verdicts = measure(&names(4), &Verdicts::new(), &mut bench, 10.0);
        assert_eq!(verdicts["b"], Verdict::Failed("wrong".to_owned()));
        // Its first trial was slow, as usual.
        assert_eq!(verdicts["c"], Verdict::Seconds(0.02));
        assert_eq!(verdicts["d"], Verdict::Seconds(0.9));
        assert_eq!(choose(&names(4), &verdicts), Some(2));
        // A wrong candidate runs once, a far slower one is not timed again, the others take turns.
        assert_eq!(bench.done, [6, 1, 6, 1]);
    }

    #[test]
    fn medians_withstand_an_interruption() {
        let slow_once = [Ok(0.01), Ok(0.01), Ok(5.0), Ok(0.01)];
        let verdicts =
            measure(&names(2), &Verdicts::new(), &mut Script::new(&[&[Ok(0.02)], &slow_once]), 100.0);
        assert_eq!(verdicts["b"], Verdict::Seconds(0.01));
        assert_eq!(choose(&names(2), &verdicts), Some(1));
    }

    #[test]
    fn who_fails_while_it_is_timed_is_out() {
        let verdicts = measure(
            &names(2),
            &Verdicts::new(),
            &mut Script::new(&[&[Ok(0.02)], &[Ok(0.01), Ok(0.01), Err("hung")]]),
            9.0,
        );
        assert_eq!(verdicts["b"], Verdict::Failed("hung".to_owned()));
        assert_eq!(choose(&names(2), &verdicts), Some(0));
    }

    #[test]
    fn time_is_bounded_and_somebody_is_chosen() {
        let trials: [&[Scripted]; 4] = [&[Err("wrong")], &[Ok(3.0)], &[Ok(0.1)], &[Ok(0.1)]];
        let mut bench = Script::new(&trials);
        let verdicts = measure(&names(4), &Verdicts::new(), &mut bench, 2.0);
        assert_eq!(verdicts["c"], Verdict::Unmeasured);
        assert_eq!(choose(&names(4), &verdicts), Some(1));
        assert_eq!(bench.done, [1, 1, 0, 0]);
    }

    #[test]
    fn who_failed_before_is_not_tried_and_whoever_loses_the_device_is_the_last() {
        let mut bench = Script::new(&[&[Ok(0.1)], &[Ok(0.2)], &[Err("gone: hung")], &[Ok(0.1)]]);
        let before = Verdicts::from([
            ("a".to_owned(), Verdict::Failed("wrong".to_owned())),
            ("b".to_owned(), Verdict::Unmeasured),
        ]);
        let verdicts = measure(&names(4), &before, &mut bench, 10.0);
        assert_eq!(bench.done, [0, 1, 1, 0]);
        assert_eq!(verdicts["a"], before["a"]);
        assert_eq!(verdicts["c"], Verdict::Failed("hung".to_owned()));
        assert_eq!(verdicts["d"], Verdict::Unmeasured);
        assert_eq!(choose(&names(4), &verdicts), Some(1));
        // The same device again: the candidate that lost it is left out, the others are tried.
        let again = measure(&names(4), &verdicts, &mut bench, 10.0);
        assert_eq!((choose(&names(4), &again), bench.done[2]), (Some(3), 1));
        assert_eq!(expected(&names(4), &again), Some(1));
    }

    #[test]
    fn nothing_is_chosen_where_nothing_is_right() {
        let verdicts =
            measure(&names(2), &Verdicts::new(), &mut Script::new(&[&[Err("wrong")], &[Err("lost")]]), 2.0);
        assert_eq!((verdicts.len(), choose(&names(2), &verdicts)), (2, None));
        assert_eq!([2, 3].map(|count| expected(&names(count), &verdicts)), [None, Some(2)]);
        // Times that no measurement gives, as in a damaged file.
        let odd = Verdicts::from([
            ("a".to_owned(), Verdict::Seconds(-1.0)),
            ("b".to_owned(), Verdict::Seconds(f64::NAN)),
        ]);
        assert_eq!(choose(&names(2), &odd), None);
    }

    #[test]
    fn noise_does_not_decide() {
        let near =
            Verdicts::from([("a".into(), Verdict::Seconds(1.02)), ("b".into(), Verdict::Seconds(1.0))]);
        assert_eq!(choose(&names(2), &near), Some(0));
        let far = Verdicts::from([("a".into(), Verdict::Seconds(1.05)), ("b".into(), Verdict::Seconds(1.0))]);
        assert_eq!(choose(&names(2), &far), Some(1));
    }

    fn shape(input: &[usize], weight: &[usize]) -> ConvShape {
        ConvShape::new(input, weight, &ConvParams::default().stride([2])).unwrap()
    }

    #[test]
    fn similar_layers_share_a_class() {
        let base = shape(&[1, 64, 57, 57], &[64, 64, 3, 3]);
        assert_eq!(class(&base), "k1x3x3 s1x2x2 d1x1x1 g0 c6 o6 p10");
        assert_eq!(class(&base), class(&shape(&[1, 60, 55, 59], &[70, 60, 3, 3])));
        for other in [shape(&[1, 64, 57, 57], &[64, 64, 3, 5]), shape(&[1, 64, 57, 57], &[16, 64, 3, 3])] {
            assert_ne!(class(&base), class(&other));
        }
    }

    #[test]
    fn trials_are_cut_to_size() {
        let whole = shape(&[4, 64, 57, 57], &[64, 64, 3, 3]);
        assert_eq!(trial_shape(&whole, u64::MAX), whole);
        let macs = |s: &ConvShape| (s.output_elems() * s.weight_elems() / s.out_channels) as u64;
        let trial = trial_shape(&whole, 10_000_000);
        assert!((5_000_000..=10_000_000).contains(&macs(&trial)), "{trial:?}");
        assert_eq!((trial.kernel, trial.stride, trial.output[2]), (whole.kernel, whole.stride, 28));
        // One pixel is the minimum.
        assert_eq!(trial_shape(&whole, 1).output, [1, 1, 1]);
    }
}
