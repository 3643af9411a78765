//! Checks the inputs and outputs of a command against each other before it starts.
//!
//! Invariant: no output goes to a place that is read, or that another output goes to.

use std::path::Path;

use fcdcc::files::{self, Identity, Kind, Output};
use fcdcc::{Error, Result};

/// Inputs and outputs of a command.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
}

struct Entry {
    /// The option with its value, such as `--input x.npy`.
    what: String,
    reads: bool,
    /// Whether it is `-`.
    standard: bool,
    place: Identity,
}

impl Ledger {
    /// Enters an input file. A file that cannot be reached is ignored here; reading it gives the error.
    pub(crate) fn input(&mut self, option: &str, path: &Path) -> Result<()> {
        let standard = files::is_standard(path);
        let place = if standard { Identity::standard_input() } else { Identity::of(path) };
        match place {
            Ok(place) => self.add(Entry { what: said(option, path), reads: true, standard, place }, path),
            Err(_) => Ok(()),
        }
    }

    /// Enters an output file, if it can be written; `-` is standard output.
    pub(crate) fn output(&mut self, option: &str, path: &Path) -> Result<Output> {
        let output = Output::plan(path)?;
        self.planned(option, path, output)
    }

    /// Enters an output file called `name` in a folder; creates the folder if its parent exists.
    pub(crate) fn output_within(&mut self, option: &str, folder: &Path, name: &str) -> Result<Output> {
        if files::is_standard(folder) {
            let help = "several files are written, and standard output takes one: name a folder";
            return Err(Error::invalid(format!("folder ({option})"), "-", help));
        }
        let output = Output::plan_within(folder, name)?;
        self.planned(option, &folder.join(name), output)
    }

    /// Checks a folder for files whose names are known only later.
    #[cfg(feature = "onnx")]
    pub(crate) fn check_folder(option: &str, folder: &Path) -> Result<()> {
        // Tries a name like the later ones.
        Self::default().output_within(option, folder, ".fcdcc-output").map(drop)
    }

    fn planned(&mut self, option: &str, path: &Path, output: Output) -> Result<Output> {
        let (standard, place) = (files::is_standard(path), output.identity().clone());
        self.add(Entry { what: said(option, path), reads: false, standard, place }, path)?;
        Ok(output)
    }

    /// Refuses to print `what` to standard output if an output is written there too.
    pub(crate) fn printed(&self, what: &str) -> Result<()> {
        match self.entries.iter().find(|entry| !entry.reads && entry.standard) {
            None => Ok(()),
            Some(entry) => Err(Error::invalid(
                "standard output",
                format!("asked for by {} and by {what}", entry.what),
                "it takes one: name a file for the other",
            )),
        }
    }

    /// Whether an output is written to standard output, so that nothing else may be printed there.
    pub(crate) fn takes_standard_output(&self) -> bool {
        let standard = Identity::standard_output().ok();
        let mut outputs = self.entries.iter().filter(|entry| !entry.reads);
        // A terminal can show both.
        outputs.any(|o| o.standard || o.place.kind != Kind::Device && Some(&o.place) == standard.as_ref())
    }

    fn add(&mut self, new: Entry, path: &Path) -> Result<()> {
        let clash = self.entries.iter().find(|old| clash(old, &new));
        if let Some(old) = clash {
            let name = if new.standard { new.what.clone() } else { path.display().to_string() };
            let help = match (old.reads, new.reads) {
                (true, true) => "it can be read only once: name a file for one of them",
                (false, false) => "name two files",
                _ => "what is read is never written over: name another file",
            };
            return Err(Error::File {
                path: name,
                cause: format!("is both {} and {}: {help}", old.what, new.what),
                input: true,
            });
        }
        self.entries.push(new);
        Ok(())
    }
}

fn said(option: &str, path: &Path) -> String {
    format!("{option} {}", path.display())
}

/// Whether two entries are the same place and must not be.
fn clash(a: &Entry, b: &Entry) -> bool {
    // Two streams through `-` would mix, whatever is behind it.
    let both_standard = a.standard && b.standard && a.reads == b.reads;
    let stream = matches!(a.place.kind, Kind::Pipe | Kind::Socket);
    let may_share = match (a.reads, b.reads) {
        // A file can be read twice, a stream cannot.
        (true, true) => !stream,
        // Null devices and terminals can be written twice.
        (false, false) => a.place.kind == Kind::Device,
        // A socket carries both directions.
        _ => matches!(a.place.kind, Kind::Device | Kind::Socket),
    };
    both_standard || (a.place == b.place && !may_share)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_output_goes_where_something_is_read_or_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("x"), "x").unwrap();
        fs::hard_link(path("x"), path("hard")).unwrap();
        symlink("x", path("soft")).unwrap();
        symlink("new", path("to_new")).unwrap();
        for same in ["x", "hard", "soft"] {
            for (first, second) in [("x", same), (same, "x")] {
                let mut ledger = Ledger::default();
                ledger.input("--input", &path(first)).unwrap();
                let error = ledger.output("--report", &path(second)).err().unwrap().to_string();
                assert!(error.contains("--input") && error.contains("--report"), "{error}");
                let mut ledger = Ledger::default();
                ledger.output("--report", &path(first)).unwrap();
                assert!(ledger.input("--input", &path(second)).is_err());
                assert!(ledger.output("--output", &path(second)).is_err());
            }
        }
        let mut ledger = Ledger::default();
        ledger.output("--output", &path("to_new")).unwrap();
        assert!(ledger.output("--report", &path("new")).is_err());
        // Negative control: different places, and reading twice.
        ledger.input("--input", &path("x")).unwrap();
        ledger.input("--weight", &path("hard")).unwrap();
        ledger.input("--bias", &path("missing")).unwrap();
        ledger.output("--report", &path("other")).unwrap();
        assert!(ledger.output_within("--outputs", &path("."), "other").is_err());
        ledger.output_within("--outputs", &path("folder"), "other").unwrap();
        assert!(ledger.output_within("--outputs", &path("./folder/"), "other").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn standard_streams_are_used_once() {
        let standard = Path::new("-");
        let mut ledger = Ledger::default();
        assert!(ledger.printed("--json").is_ok() && !ledger.takes_standard_output());
        ledger.input("--input", standard).unwrap();
        assert!(ledger.input("--weight", standard).is_err());
        ledger.output("--output", standard).unwrap();
        assert!(ledger.takes_standard_output());
        let error = ledger.output("--report", standard).err().unwrap().to_string();
        assert!(error.contains("--output -") && error.contains("--report -"), "{error}");
        assert!(ledger.printed("--top").unwrap_err().to_string().contains("--top"));
        assert!(ledger.output_within("--outputs", standard, "y.npy").is_err());
    }
}
