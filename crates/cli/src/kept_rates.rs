//! The file of measured rates, and where rates come from. The same choice of source applies to GPU kernels, whose cache the
//! library keeps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use fcdcc::array::DType;
use fcdcc::cache;
use fcdcc::planner::{Calibration, LinkRates, Network};
use fcdcc::worker::WorkerInfo;
use fcdcc_bench::machine;
use serde::{Deserialize, Serialize};

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
    /// Whether rates that are not known are measured.
    pub(crate) fn may_measure(self) -> bool {
        self.unknown || self.how == Calibrate::Always
    }

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

/// Measured rates.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Cache {
    schema: u32,
    /// By hardware.
    pub(crate) rates: BTreeMap<String, Calibration>,
    /// By machine.
    pub(crate) links: BTreeMap<String, LinkRates>,
    /// By the machines.
    pub(crate) networks: BTreeMap<String, Network>,
}

/// 2: the work of layers that are filtered counts their products. 3: rates are those of the fastest calls. 4: links have
/// rates of their own.
const SCHEMA: u32 = 4;

fn cache_file() -> Option<PathBuf> {
    Some(cache::folder()?.join("rates.json"))
}

/// The rates that were measured earlier.
pub(crate) fn known() -> Cache {
    read(cache_file().as_deref())
}

/// Adds measured rates to those that are kept.
pub(crate) fn add(add: impl FnOnce(&mut Cache)) {
    if let Some(path) = cache_file() {
        keep(&path, add);
    }
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
    cache.filter(|cache| cache.schema == SCHEMA).unwrap_or(Cache { schema: SCHEMA, ..Cache::default() })
}

/// Adds rates to the cache at `path`, which other processes add to as well. If the file cannot be written, the rates are
/// measured again next time.
fn keep(path: &Path, add: impl FnOnce(&mut Cache)) {
    let mut add = Some(add);
    let kept = cache::update(path, |text| {
        let mut cache = parse(text.as_deref());
        if let Some(add) = add.take() {
            add(&mut cache);
        }
        serde_json::to_string_pretty(&cache).map_err(std::io::Error::other)
    });
    if let Err(error) = kept {
        tracing::info!(path = %path.display(), %error, "rates could not be kept");
    }
}

/// The end of a name of rates that depend on the format in which numbers travel to the worker.
pub(crate) fn over_wire(info: &WorkerInfo, dtype: DType) -> String {
    let narrow = Some(info.wire.of(dtype)).filter(|wire| wire.is_narrow());
    narrow.map_or_else(String::new, |wire| format!(" over {wire}"))
}

/// The name under which rates are kept. Unoptimized builds have rates of their own.
pub(crate) fn key(of: &str, dtype: DType) -> String {
    let build = if cfg!(debug_assertions) { " debug" } else { "" };
    format!("{}{build} | {} | {of} | {dtype}", env!("CARGO_PKG_VERSION"), machine::hardware())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fcdcc::planner::Rates;

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
                scope.spawn(move || {
                    keep(path, |cache| {
                        cache.rates.insert(key.to_owned(), measured);
                    });
                });
            }
        });
        assert_eq!(read(Some(&path)).rates.into_keys().collect::<Vec<_>>(), ["one", "two"]);
        // Negative control: a file that is replaced without a merge loses the others' rates.
        let rates = BTreeMap::from([("three".to_owned(), measured)]);
        let own = Cache { schema: SCHEMA, rates, ..Cache::default() };
        cache::update(&path, |_| Ok(serde_json::to_string(&own)?)).unwrap();
        assert_eq!(read(Some(&path)).rates.into_keys().collect::<Vec<_>>(), ["three"]);
    }

    #[test]
    fn rates_of_an_earlier_form_are_measured_again() {
        let now = Cache { schema: SCHEMA, ..Cache::default() };
        let text = serde_json::to_string(&now).unwrap();
        assert_eq!(parse(Some(&text)).schema, SCHEMA);
        let old = r#"{"schema": 3, "rates": {}}"#;
        assert!(parse(Some(old)).rates.is_empty() && parse(Some("{")).links.is_empty());
    }
}
