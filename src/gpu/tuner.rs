//! Chooses kernels by measurement: known results come from a file, others are measured on the device.
//!
//! All tuners of a process share the contents of a file and measure one at a time, so that queues of one adapter do not
//! disturb each other and workers do not repeat a measurement. After a timeout, the candidate expected to be fastest is
//! used.
//!
//! Invariant: after a device was lost, only the verdict on the candidate that lost it is kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::candidate::Candidate;
use super::conv::{ConvEngine, ConvFilters};
use super::measure::{self, Bench, Trouble, TuneMode, Verdict, Verdicts};
use super::plan::ConvPlan;
use super::tuning_cache::{self, Known};
use crate::array::{DType, Element, Values, normal};
use crate::cache;
use crate::conv::{ConvShape, conv_uncoded};
use crate::error::{Error, Result};
use crate::sync::locked;

/// Maximum multiply-adds of a trial: some 20 ms on a software adapter (fewer would not show the gain of Winograd's
/// filtering on deep layers), a fraction of a millisecond on a large GPU, whose results the CPU has to check.
const SOFTWARE_MACS: u64 = 500_000_000;
const HARDWARE_MACS: u64 = 2_000_000_000;
/// Approximate duration of the trials of a class in seconds, most of which is compilation.
const BUDGET_S: f64 = 2.0;
/// Maximum wait for other measurements.
const WAIT: Duration = Duration::from_secs(20);
/// Maximum relative L2 error of a candidate: twice the bound that every kernel is tested for.
const MOST_ERROR_F32: f64 = 2e-5;
const MOST_ERROR_F64: f64 = 1e-12;

/// The path of `kernels.json` in [`cache::folder`].
#[must_use]
pub fn kept_kernels() -> Option<PathBuf> {
    Some(cache::folder()?.join("kernels.json"))
}

/// Picks candidates for layers.
#[derive(Clone, Debug, Default)]
pub struct Tuner {
    tune: TuneMode,
    file: Option<PathBuf>,
}

impl Tuner {
    /// A tuner that reads and writes [`kept_kernels`].
    #[must_use]
    pub fn new(tune: TuneMode) -> Self {
        Self::with_file(tune, kept_kernels())
    }

    /// A tuner that stores its measurements in `file`, or in this process only if `None`.
    #[must_use]
    pub fn with_file(tune: TuneMode, file: Option<PathBuf>) -> Self {
        Self { tune, file }
    }

    /// Picks one of [`Candidate::all`] for layers of `shape`. If nothing is known and the mode allows, measures for a
    /// few seconds in `engine`.
    ///
    /// # Errors
    /// Those of [`ConvPlan::new`]; [`Error::Gpu`] when the device is lost, or when every candidate is known to be wrong
    /// on it.
    pub fn pick(&self, engine: &mut ConvEngine, shape: &ConvShape, dtype: DType) -> Result<Candidate> {
        let caps = engine.device().caps();
        // A shape that the device cannot run at all fails here, not as a candidate.
        ConvPlan::new(shape, dtype, caps, None)?;
        let list = Candidate::all(shape, caps, dtype);
        if self.tune == TuneMode::Off {
            return Ok(list[0]);
        }
        let names: Vec<String> = list.iter().map(|c| c.way()).collect();
        let storage = if caps.half { " in f16" } else { "" };
        let class = format!("{dtype}{storage} {}", measure::class(shape));
        let key = (tuning_cache::device(engine.device().summary()), class);
        let known = self.known(&key).unwrap_or_default();
        if let Some(chosen) = measure::choose(&names, &known) {
            return Ok(list[chosen]);
        }
        let turn = if self.tune == TuneMode::CacheOnly { None } else { Turn::take(WAIT) };
        if turn.is_none() {
            if self.tune != TuneMode::CacheOnly {
                tracing::warn!(
                    class = key.1,
                    "others measure GPU kernels: taking the one expected to be fastest"
                );
            }
            return engine.some(&list, measure::expected(&names, &known), &known);
        }
        // Another thread may have measured this class in the meantime.
        let mut known = self.known(&key).unwrap_or_default();
        if measure::choose(&names, &known).is_none() && measure::expected(&names, &known).is_some() {
            // An earlier loss of the device would otherwise be attributed to the first candidate.
            engine.device().check()?;
            known = match dtype {
                DType::F32 => trials::<f32>(engine, shape, &list, &names, &known),
                DType::F64 => trials::<f64>(engine, shape, &list, &names, &known),
            }?;
            self.keep(key, known.clone());
            tracing::info!(verdicts = ?known, "GPU kernels measured");
            engine.device().check()?;
        }
        engine.some(&list, measure::choose(&names, &known), &known)
    }

    /// The known verdicts of a device and class.
    fn known(&self, key: &(String, String)) -> Option<Verdicts> {
        let mut tables = locked(&TABLES);
        let table = tables.entry(self.file.clone()).or_insert_with(|| Table {
            known: self
                .file
                .as_deref()
                .map_or_else(Known::new, |file| tuning_cache::read(file, &tuning_cache::fingerprint())),
            measured: BTreeMap::new(),
        });
        let found = table.known.get(&key.0)?.get(&key.1)?;
        (self.tune != TuneMode::Remeasure || table.measured.get(key) == Some(&TuneMode::Remeasure))
            .then(|| found.clone())
    }

    fn keep(&self, key: (String, String), verdicts: Verdicts) {
        let mut tables = locked(&TABLES);
        let Some(table) = tables.get_mut(&self.file) else { return };
        table.known.entry(key.0.clone()).or_default().insert(key.1.clone(), verdicts);
        table.measured.insert(key, self.tune);
        if let Some(file) = &self.file
            && let Err(error) = table.merge(file)
        {
            tracing::warn!(path = %file.display(), %error, "the choice of GPU kernels could not be kept");
        }
    }
}

impl ConvEngine {
    /// The `chosen` one of `list`, or an error that says what is wrong with all of them.
    fn some(&self, list: &[Candidate], chosen: Option<usize>, verdicts: &Verdicts) -> Result<Candidate> {
        chosen.map(|at| list[at]).ok_or_else(|| {
            let failed = |(name, verdict): (&String, &Verdict)| match verdict {
                Verdict::Failed(cause) => Some(format!("{name}: {cause}")),
                Verdict::Seconds(_) | Verdict::Unmeasured => None,
            };
            let causes: Vec<String> = verdicts.iter().filter_map(failed).collect();
            self.device().error(format!("no kernel computes this layer right: {}", causes.join("; ")))
        })
    }
}

/// The known contents of a file in this process.
struct Table {
    known: Known,
    /// The keys measured by this process, with the mode.
    measured: BTreeMap<(String, String), TuneMode>,
}

impl Table {
    /// Adds the measurements of this process to the file, which other processes write too.
    fn merge(&self, file: &Path) -> std::io::Result<()> {
        let fingerprint = tuning_cache::fingerprint();
        tuning_cache::update(file, &fingerprint, |whole| {
            for (device, class) in self.measured.keys() {
                if let Some(verdicts) = self.known.get(device).and_then(|classes| classes.get(class)) {
                    whole.entry(device.clone()).or_default().insert(class.clone(), verdicts.clone());
                }
            }
        })
    }
}

static TABLES: Mutex<BTreeMap<Option<PathBuf>, Table>> = Mutex::new(BTreeMap::new());
static MEASURING: Mutex<bool> = Mutex::new(false);
static MEASURED: Condvar = Condvar::new();

/// Permission to measure; released on drop.
struct Turn;

impl Turn {
    /// Waits for the permission; `None` after `limit`.
    fn take(limit: Duration) -> Option<Self> {
        let busy = locked(&MEASURING);
        let waited = MEASURED.wait_timeout_while(busy, limit, |busy| *busy);
        let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        // Constructed only if granted, since dropping it would release the permission of another thread.
        (!std::mem::replace(&mut *busy, true)).then(|| Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *locked(&MEASURING) = false;
        MEASURED.notify_one();
    }
}

/// Measures the candidates on random data.
fn trials<T: Element>(
    engine: &mut ConvEngine,
    shape: &ConvShape,
    list: &[Candidate],
    names: &[String],
    before: &Verdicts,
) -> Result<Verdicts> {
    let started = Instant::now();
    let macs = if engine.device().caps().software { SOFTWARE_MACS } else { HARDWARE_MACS };
    let shape = measure::trial_shape(shape, macs);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    // Few enough bits that no storage type rounds them.
    let eighths = |number: f64| (8.0 * number).round() / 8.0;
    let mut draw =
        |count: usize| -> Vec<T> { (0..count).map(|_| T::from_f64(eighths(normal(&mut rng)))).collect() };
    let (slab, bank) = (draw(shape.input_elems()), draw(shape.weight_elems()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let truth = conv_uncoded(&shape, &slab, &bank, None, threads, &|| false)?;
    let clocked = engine.clock.is_some();
    engine.time_device(true)?;
    let mut bench = DeviceBench {
        engine: &mut *engine,
        list,
        slab: T::wrap(slab),
        bank: T::wrap(bank),
        truth,
        shape,
        installed: list.iter().map(|_| None).collect(),
        started,
    };
    let verdicts = measure::measure(names, before, &mut bench, BUDGET_S);
    drop(bench);
    // A lost device reports that at its next use.
    if engine.device().lost().is_none() {
        engine.time_device(clocked)?;
    }
    Ok(verdicts)
}

/// Runs trials on a device.
struct DeviceBench<'a, T> {
    engine: &'a mut ConvEngine,
    list: &'a [Candidate],
    shape: ConvShape,
    slab: Values,
    bank: Values,
    truth: Vec<T>,
    installed: Vec<Option<ConvFilters>>,
    started: Instant,
}

impl<T: Element> DeviceBench<'_, T> {
    fn trouble(&self, error: &Error) -> Trouble {
        match self.engine.device().lost() {
            Some(cause) => Trouble::Device(cause),
            None => Trouble::Candidate(error.to_string()),
        }
    }

    /// Computes the trial, and copies the result into `result` if given.
    fn compute(&mut self, candidate: usize, mut result: Option<&mut Vec<T>>) -> Result<f64> {
        let filters = self.installed[candidate].as_ref().expect("a candidate is verified before it is timed");
        self.engine.run(filters, 1, &self.slab, None, &|| false, &mut |_, values| {
            if let Some(result) = &mut result {
                **result = T::unwrap(&values).map_or_else(Vec::new, <[T]>::to_vec);
            }
        })?;
        let timing = self.engine.last_timing();
        Ok(timing.device_s.unwrap_or(timing.wall_s))
    }

    fn verified(&mut self, candidate: usize) -> Result<f64, Trouble> {
        let (shape, bank) = (&self.shape, &self.bank);
        let installed = self.engine.install_as(shape, 1, 1, bank, self.list[candidate]);
        self.installed[candidate] = Some(installed.map_err(|error| self.trouble(&error))?);
        let mut result = Vec::new();
        let seconds = self.compute(candidate, Some(&mut result)).map_err(|error| self.trouble(&error))?;
        let error = relative_error(&result, &self.truth);
        let most = if T::DTYPE == DType::F32 { MOST_ERROR_F32 } else { MOST_ERROR_F64 };
        // NaN fails this comparison.
        if error <= most {
            return Ok(seconds);
        }
        Err(Trouble::Candidate(format!("off by {error:.1e} (relative L2) where {most:.0e} is allowed")))
    }
}

impl<T: Element> Bench for DeviceBench<'_, T> {
    fn verify(&mut self, candidate: usize) -> Result<f64, Trouble> {
        // Makes unwritten elements visible.
        let poison = self.engine.poison;
        self.engine.poison_outputs(true);
        let verified = self.verified(candidate);
        self.engine.poison_outputs(poison);
        verified
    }

    fn time(&mut self, candidate: usize) -> Result<f64, Trouble> {
        self.compute(candidate, None).map_err(|error| self.trouble(&error))
    }

    fn spent(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Relative L2 error; NaN if any element is.
fn relative_error<T: Element>(result: &[T], truth: &[T]) -> f64 {
    if result.len() != truth.len() {
        return f64::NAN;
    }
    let norm = |of: &dyn Fn(usize) -> f64| (0..truth.len()).map(|i| of(i) * of(i)).sum::<f64>();
    let error = norm(&|i| result[i].to_f64() - truth[i].to_f64());
    (error / norm(&|i| truth[i].to_f64())).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_measures_at_a_time_and_nobody_waits_for_ever() {
        let turn = Turn::take(Duration::from_secs(10)).unwrap();
        assert!(Turn::take(Duration::from_millis(5)).is_none());
        let waiting = std::thread::spawn(|| Turn::take(Duration::from_secs(10)).is_some());
        drop(turn);
        assert!(waiting.join().unwrap());
        assert!(Turn::take(Duration::from_secs(10)).is_some());
    }

    #[test]
    fn errors_are_relative_and_nan_never_passes() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_error(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-15);
        assert!(relative_error(&[3.0, f64::NAN], &[3.0, 4.0]).is_nan());
        assert!(relative_error(&[3.0], &[3.0, 4.0]).is_nan());
    }

    #[test]
    fn what_is_kept_adds_to_what_others_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        let key = |class: &str| ("adapter".to_owned(), class.to_owned());
        let verdicts = Verdicts::from([("naive 1x64".to_owned(), Verdict::Seconds(1.0))]);
        let tuner = Tuner::with_file(TuneMode::CacheOnly, Some(file.clone()));
        assert_eq!(tuner.known(&key("one")), None);
        // Another process writes after this one has read.
        let theirs = BTreeMap::from([("two".to_owned(), verdicts.clone())]);
        tuning_cache::write(
            &file,
            &tuning_cache::fingerprint(),
            Known::from([("adapter".to_owned(), theirs)]),
        )
        .unwrap();
        tuner.keep(key("one"), verdicts.clone());
        let all = tuning_cache::read(&file, &tuning_cache::fingerprint());
        assert_eq!(all["adapter"].keys().collect::<Vec<_>>(), ["one", "two"]);
        // Remeasuring uses only what was measured in this mode by this process.
        let again = Tuner::with_file(TuneMode::Remeasure, Some(file.clone()));
        assert_eq!(again.known(&key("one")), None);
        again.keep(key("one"), verdicts.clone());
        assert_eq!(again.known(&key("one")), Some(verdicts));
        let elsewhere = folder.path().join("other.json");
        std::fs::copy(&file, &elsewhere).unwrap();
        let fresh = Tuner::with_file(TuneMode::Remeasure, Some(elsewhere.clone()));
        assert_eq!(fresh.known(&key("one")), None);
        assert!(Tuner::with_file(TuneMode::CacheOnly, Some(elsewhere)).known(&key("one")).is_some());
    }
}
