//! The planner's rates: measured once on the workers of this machine, then read from a cache file. The same choice of
//! source applies to GPU kernels, whose cache the library keeps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use fcdcc::array::DType;
use fcdcc::cache;
use fcdcc::planner::{Calibration, Rates, calibrate};
use fcdcc::worker::{LOCAL_HOST, WorkerKind};
use fcdcc::{Result, Worker};
use fcdcc_bench::machine;
use serde::{Deserialize, Serialize};

use super::Console;
use super::progress::Bar;

/// Where the planner's rates and the choice of GPU kernels come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Calibrate {
    /// Measured earlier on such workers, else now (about a second), and kept
    #[default]
    Auto,
    /// Measured now
    Always,
    /// Built in: those of a typical server
    Never,
}

/// How to obtain the rates of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measuring {
    pub(crate) how: Calibrate,
    /// Whether to measure unknown rates, if `how` leaves that open.
    pub(crate) unknown: bool,
}

impl Measuring {
    /// The corresponding source for the choice of GPU kernels.
    #[cfg(feature = "gpu")]
    pub(crate) fn tune(self) -> fcdcc::gpu::TuneMode {
        use fcdcc::gpu::TuneMode;
        match (self.how, self.unknown) {
            (Calibrate::Auto, true) => TuneMode::Measure,
            (Calibrate::Auto, false) => TuneMode::CacheOnly,
            (Calibrate::Always, _) => TuneMode::Remeasure,
            (Calibrate::Never, _) => TuneMode::Off,
        }
    }
}

/// Measured rates by hardware.
#[derive(Default, Serialize, Deserialize)]
struct Cache {
    schema: u32,
    rates: BTreeMap<String, Calibration>,
}

/// 2: the work of layers that are filtered counts their products. 3: rates are those of the fastest calls.
const SCHEMA: u32 = 3;

fn cache_file() -> Option<PathBuf> {
    Some(cache::folder()?.join("rates.json"))
}

/// Reads the cache at `path`. A file that is missing, damaged or of another version counts as empty.
fn read(path: Option<&Path>) -> Cache {
    let text = path.and_then(|path| match cache::read(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(%error, "kept rates cannot be read");
            None
        }
    });
    parse(text.as_deref())
}

fn parse(text: Option<&str>) -> Cache {
    let cache = text.and_then(|text| serde_json::from_str::<Cache>(text).ok());
    cache.filter(|cache| cache.schema == SCHEMA).unwrap_or(Cache { schema: SCHEMA, rates: BTreeMap::new() })
}

/// Adds rates to the cache at `path`, which other processes add to as well. If the file cannot be written, the rates are
/// measured again next time.
fn keep(path: &Path, key: String, calibration: Calibration) {
    let kept = cache::update(path, |text| {
        let mut cache = parse(text.as_deref());
        cache.rates.insert(key, calibration);
        serde_json::to_string_pretty(&cache).map_err(std::io::Error::other)
    });
    if let Err(error) = kept {
        tracing::info!(path = %path.display(), %error, "rates could not be kept");
    }
}

/// The rates of the workers of a pool that is about to be made. Workers of one kind and device are assumed to be alike. The
/// slowest kind decides, because a layer waits for most of its workers.
///
/// # Errors
/// The worker's error if rates must be measured and cannot be.
pub(crate) fn of(
    workers: &mut [Box<dyn Worker>],
    dtype: DType,
    Measuring { how, unknown }: Measuring,
    console: Console,
) -> Result<Rates> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut threads_here = false;
    for (at, worker) in workers.iter().enumerate() {
        let info = worker.info();
        threads_here |= info.host == LOCAL_HOST && info.kind == WorkerKind::Cpu;
        if dtype == DType::F32 || info.f64 {
            let narrow = Some(info.wire.of(dtype)).filter(|wire| wire.is_narrow());
            let wire = narrow.map_or_else(String::new, |wire| format!(" over {wire}"));
            kinds.entry(format!("{} {}{wire}", info.kind.name(), info.device)).or_insert(at);
        }
    }
    let cores = threads_here.then(|| std::thread::available_parallelism().map_or(1, usize::from));
    if how == Calibrate::Never {
        return Ok(Rates { cores, ..Rates::default() });
    }
    let path = cache_file();
    let known = read(path.as_deref());
    let mut found: Option<Calibration> = None;
    for (device, at) in kinds {
        let key = format!("{} | {} | {device} | {dtype}", env!("CARGO_PKG_VERSION"), machine::hardware());
        let kept = known.rates.get(&key).filter(|_| how == Calibrate::Auto);
        let calibration = match kept {
            Some(kept) => *kept,
            None if !unknown && how == Calibrate::Auto => continue,
            None => {
                let bar = Bar::new(console, "measuring");
                bar.steps(0, 1, &device);
                let worker = workers[at].as_mut();
                let measured = match dtype {
                    DType::F32 => calibrate::<f32>(worker, cores),
                    DType::F64 => calibrate::<f64>(worker, cores),
                };
                let measured = match measured {
                    Ok(measured) => measured,
                    // Runs tolerate failed workers, so the planner ignores them.
                    Err(error) if how == Calibrate::Auto => {
                        tracing::warn!(device, %error, "could not be measured");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if let Some(path) = &path {
                    keep(path, key, measured);
                }
                measured
            }
        };
        let slower = |than: &Calibration| calibration.rates.worker.mac_s > than.rates.worker.mac_s;
        if found.as_ref().is_none_or(slower) {
            found = Some(calibration);
        }
    }
    let rates = found.map_or_else(Rates::default, |calibration| calibration.rates);
    Ok(Rates { cores, ..rates })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_adds_to_what_others_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.json");
        let measured = Calibration { rates: Rates::default(), worker_error: 0.0, host_error: 0.0 };
        // Both read before either writes.
        assert!(read(Some(&path)).rates.is_empty());
        std::thread::scope(|scope| {
            for key in ["one", "two"] {
                let path = &path;
                scope.spawn(move || keep(path, key.to_owned(), measured));
            }
        });
        assert_eq!(read(Some(&path)).rates.into_keys().collect::<Vec<_>>(), ["one", "two"]);
        // Negative control: a file that is replaced without a merge loses the others' rates.
        let own = Cache { schema: SCHEMA, rates: BTreeMap::from([("three".to_owned(), measured)]) };
        cache::update(&path, |_| Ok(serde_json::to_string(&own)?)).unwrap();
        assert_eq!(read(Some(&path)).rates.into_keys().collect::<Vec<_>>(), ["three"]);
    }
}
