//! The file of measurements: verdicts by adapter, driver, element type and class of layers.
//!
//! A file about other kernels is ignored; see [`crate::cache`] for damaged files.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::adapter::AdapterSummary;
use super::measure::Verdicts;
use super::shaders;
use crate::cache;

const SCHEMA: u32 = 1;

/// Verdicts by adapter and driver, then by element type and class.
pub(super) type Known = BTreeMap<String, BTreeMap<String, Verdicts>>;

#[derive(Serialize, Deserialize)]
struct File {
    schema: u32,
    /// Fingerprint of the kernels that were measured.
    kernels: String,
    devices: Known,
}

/// Changes with the text of any kernel and with the version of this crate, which invalidate measurements.
pub(super) fn fingerprint() -> String {
    let mut hasher = DefaultHasher::new();
    shaders::sources().hash(&mut hasher);
    format!("{} {:016x}", env!("CARGO_PKG_VERSION"), hasher.finish())
}

/// The key of an adapter with its driver version.
pub(super) fn device(adapter: &AdapterSummary) -> String {
    let AdapterSummary { name, vendor, device, backend, driver, driver_info, .. } = adapter;
    format!("{name} {vendor:x}:{device:x} | {backend} {driver} {driver_info}")
}

/// The contents of the file at `path` for kernels with this `fingerprint`; empty if it is about others or unreadable.
pub(super) fn read(path: &Path, fingerprint: &str) -> Known {
    match cache::read(path) {
        Ok(Some(text)) => parse(path, &text, fingerprint),
        Ok(None) => Known::new(),
        Err(error) => {
            tracing::warn!(%error, "the kept choice of GPU kernels cannot be read");
            Known::new()
        }
    }
}

fn parse(path: &Path, text: &str, fingerprint: &str) -> Known {
    match serde_json::from_str::<File>(text) {
        Ok(file) if file.schema != SCHEMA => {
            tracing::warn!(path = %path.display(), schema = file.schema, "written by another version: ignored");
            Known::new()
        }
        Ok(file) if file.kernels != fingerprint => {
            tracing::info!(path = %path.display(), "about other GPU kernels than these: forgotten");
            Known::new()
        }
        Ok(file) => file.devices,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no choice of GPU kernels: ignored");
            Known::new()
        }
    }
}

/// Adds to the contents of the file at `path`, which other processes add to as well.
///
/// # Errors
/// Those of the file system; the old file is then unchanged.
pub(super) fn update(path: &Path, fingerprint: &str, add: impl FnOnce(&mut Known)) -> io::Result<()> {
    cache::update(path, |text| {
        let mut devices = text.map_or_else(Known::new, |text| parse(path, &text, fingerprint));
        add(&mut devices);
        let file = File { schema: SCHEMA, kernels: fingerprint.to_owned(), devices };
        Ok(serde_json::to_string_pretty(&file)?)
    })
}

/// Replaces the file at `path`.
#[cfg(test)]
pub(super) fn write(path: &Path, fingerprint: &str, devices: Known) -> io::Result<()> {
    update(path, fingerprint, |known| *known = devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::measure::Verdict;

    fn known() -> Known {
        let verdicts = Verdicts::from([
            ("tiled".to_owned(), Verdict::Seconds(0.1 + 0.2)),
            ("naive".to_owned(), Verdict::Failed("wrong by 1e-2".to_owned())),
            ("direct".to_owned(), Verdict::Unmeasured),
        ]);
        Known::from([("an adapter".to_owned(), BTreeMap::from([("f32 k3x3".to_owned(), verdicts)]))])
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/yet/there/kernels.json");
        assert_eq!(read(&path, "1"), Known::new());
        write(&path, "1", known()).unwrap();
        assert_eq!(read(&path, "1"), known());
        // Nothing is known of other kernels.
        assert_eq!(read(&path, "2"), Known::new());
        write(&path, "2", Known::new()).unwrap();
        assert_eq!(read(&path, "1"), Known::new());
        // The folder contains no other file.
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn damaged_and_foreign_files_count_as_empty_and_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.json");
        write(&path, "1", known()).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        let newer = whole.replace("\"schema\": 1", "\"schema\": 2");
        assert_ne!(newer, whole);
        let odd = whole.replace("0.3000", "\"fast\"; 0.3000");
        for text in ["", "{}", "[1, 2]", "\u{0}\u{1}", &whole[..whole.len() / 2], &newer, &odd] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path, "1"), Known::new(), "{text}");
        }
        std::fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert_eq!(read(&path, "1"), Known::new());
        write(&path, "1", known()).unwrap();
        assert_eq!(read(&path, "1"), known());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.json");
        std::fs::create_dir(&path).unwrap();
        assert!(write(&path, "1", known()).is_err());
        assert_eq!(read(&path, "1"), Known::new());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
