//! `model.toml`: how one model is served.
//!
//! Relevant if you want to set batching, limits, labels or the size of pictures for a model. The file is optional, and so is
//! every field of it; an unknown field is an error.
//!
//! Invariant: a [`ModelConfig`] that was read is consistent; no later step checks it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fcdcc::{Error, Result};
use serde::{Deserialize, Deserializer};

/// Largest delay of batching, and largest time in a queue.
const MOST_DELAY: Duration = Duration::from_secs(10);
const MOST_TIME: Duration = Duration::from_hours(24);
/// Largest number of items in a batch.
const MOST_ITEMS: usize = 1024;

/// How one model is served; what `model.toml` holds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The shape of an input for which the model is prepared first, where its file leaves sizes open. Without it the first
    /// axis gets 1, and other open sizes are an error.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// A text file with the names of the classes, one a line; relative to the folder of `model.toml`.
    pub labels: Option<PathBuf>,
    /// Joins the items of several requests into one run.
    pub batching: Option<Batching>,
    /// Requests that may wait.
    pub queue_length: usize,
    /// The longest time from the arrival of a request to its answer.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Different input shapes for which the model is kept prepared at once; each holds coded filters on the workers.
    pub max_shapes: usize,
    /// Compares the first run with one on this machine without coding, before the model is ready.
    pub verify: bool,
    /// What becomes of pictures, as the program that serves reads it.
    pub picture: Option<toml::Table>,
}

/// `[batching]` of `model.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Most items of one run.
    pub max_size: usize,
    /// Sizes that run without further waiting, in rising order; [`Batching::max_size`] always is one.
    #[serde(default)]
    pub preferred_sizes: Vec<usize>,
    /// How long a request may wait for others.
    #[serde(default, deserialize_with = "duration")]
    pub max_delay: Duration,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            shapes: BTreeMap::new(),
            labels: None,
            batching: None,
            queue_length: 64,
            timeout: Duration::from_mins(1),
            max_shapes: 4,
            verify: false,
            picture: None,
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let help = |e| serde::de::Error::custom(format!("{text:?} is not a duration such as 2ms or 30s: {e}"));
    humantime::parse_duration(&text).map_err(help)
}

impl ModelConfig {
    /// Reads the file, and gives relative paths in it the folder of the file.
    ///
    /// # Errors
    /// [`Error::File`] with the line where it is not TOML of this form, [`Error::InvalidParameter`] for a value that is out
    /// of bounds, [`Error::Io`] where it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |cause| Error::File { path: path.display().to_string(), cause, input: true };
        let text = fcdcc::files::read_text(path)?;
        let mut config: Self = toml::from_str(&text).map_err(|e| {
            let before = text.bytes().take(e.span().map_or(0, |span| span.start));
            let line = before.filter(|byte| *byte == b'\n').count() + 1;
            bad(format!("is not a model's configuration, line {line}: {}", e.message()))
        })?;
        if let (Some(labels), Some(folder)) = (&mut config.labels, path.parent()) {
            *labels = folder.join(&*labels);
        }
        config.checked()
    }

    /// This configuration, if every value is within its bounds.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for one that is not.
    pub fn checked(mut self) -> Result<Self> {
        within("queue_length", self.queue_length, 65_536)?;
        within("max_shapes", self.max_shapes, 64)?;
        time("timeout", self.timeout, Duration::from_millis(1), MOST_TIME)?;
        for (input, shape) in &self.shapes {
            if shape.is_empty() || shape.contains(&0) {
                let help = "give one size an axis, each at least 1";
                return Err(Error::invalid(format!("shapes.{input} of model.toml"), &shape[..], help));
            }
        }
        if let Some(batching) = &mut self.batching {
            within("batching.max_size", batching.max_size, MOST_ITEMS)?;
            time("batching.max_delay", batching.max_delay, Duration::ZERO, MOST_DELAY)?;
            for size in &batching.preferred_sizes {
                within("batching.preferred_sizes", *size, batching.max_size)?;
            }
            batching.preferred_sizes.push(batching.max_size);
            batching.preferred_sizes.sort_unstable();
            batching.preferred_sizes.dedup();
        }
        Ok(self)
    }
}

fn within(what: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} of model.toml"), value, format!("use 1 to {most}")))
}

fn time(what: &str, value: Duration, least: Duration, most: Duration) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let help = format!("use {least:?} to {most:?}");
    Err(Error::invalid(format!("{what} of model.toml"), format!("{value:?}"), help))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        std::fs::write(&path, text).unwrap();
        ModelConfig::read(&path)
    }

    #[test]
    fn every_field_is_read_and_sizes_are_sorted() {
        let text = "labels = 'names.txt'\nqueue_length = 3\ntimeout = '2s'\nmax_shapes = 2\nverify = true\n\
            [shapes]\nimage = [1, 1, 32, 32]\n[batching]\nmax_size = 8\npreferred_sizes = [4, 2, 4]\nmax_delay = '5ms'\n\
            [picture]\nmean = [0.5]\n";
        let config = read(text).unwrap();
        assert!(config.labels.unwrap().is_absolute() && config.verify && config.picture.is_some());
        assert_eq!((config.queue_length, config.timeout, config.max_shapes), (3, Duration::from_secs(2), 2));
        let batching = config.batching.unwrap();
        assert_eq!(batching.preferred_sizes, [2, 4, 8]);
        assert_eq!(batching.max_delay, Duration::from_millis(5));
        assert_eq!(read("").unwrap().queue_length, ModelConfig::default().queue_length);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_with_its_place() {
        let rows = [
            ("queue_length = 0", "queue_length of model.toml is 0: use 1 to 65536"),
            ("\n\nqueue = 3", "line 3: unknown field `queue`"),
            ("timeout = 'soon'", "not a duration"),
            ("timeout = '0s'", "timeout of model.toml is 0ns"),
            ("[shapes]\nx = [1, 0]", "shapes.x"),
            (
                "[batching]\nmax_size = 2\npreferred_sizes = [3]",
                "preferred_sizes of model.toml is 3: use 1 to 2",
            ),
            ("[batching]\nmax_size = 2\nmax_delay = '1h'", "max_delay"),
        ];
        for (text, part) in rows {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
