//! A temporary folder in which the binary runs, with its input files.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fcdcc::Element;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{ReadableElement, WritableElement};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::{command, kept};
use crate::normal;

pub const INPUT: [usize; 4] = [1, 3, 12, 10];
pub const WEIGHT: [usize; 4] = [8, 3, 3, 3];

/// Default options of `conv` in tests.
pub const DEFAULTS: [(&str, &str); 4] =
    [("--backend", "cpu"), ("--input", "x.npy"), ("--weight", "w.npy"), ("--output", "y.npy")];

/// A temporary folder in which the binary runs.
pub struct Folder(TempDir);

pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Folder {
    pub fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with x.npy and w.npy of the usual shapes.
    pub fn new() -> Self {
        let folder = Self::empty();
        folder.random::<f32>("x.npy", &INPUT, 1);
        folder.random::<f32>("w.npy", &WEIGHT, 2);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn array<T: WritableElement + Clone>(&self, name: &str, shape: &[usize], values: Vec<T>) {
        let array = ArrayD::from_shape_vec(IxDyn(shape), values).unwrap();
        ndarray_npy::write_npy(self.path(name), &array).unwrap();
    }

    pub fn random<T: Element + WritableElement>(&self, name: &str, shape: &[usize], seed: u64) -> Vec<T> {
        let values = normal::<T>(shape.iter().product(), seed);
        self.array(name, shape, values.clone());
        values
    }

    /// The array in a file, which must have exactly this element type.
    pub fn load<T: ReadableElement>(&self, name: &str) -> ArrayD<T> {
        ndarray_npy::read_npy(self.path(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// Every file with its content; folders with empty content.
    pub fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(Result::unwrap);
        entries
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap_or_default()))
            .collect()
    }

    pub fn run(&self, args: &str) -> Said {
        self.run_with(args, &[])
    }

    /// Runs the binary with additional environment variables.
    pub fn run_with(&self, args: &str, variables: &[(&str, &str)]) -> Said {
        let out = Command::new(command())
            // Does not use the user's own cache.
            .env("FCDCC_CACHE", kept())
            .args(args.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            // As without a desktop session, where Mesa would print a line on stderr.
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("NODEVICE_SELECT")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        Said {
            status: out.status.code().expect("the binary was killed by a signal"),
            out: String::from_utf8(out.stdout).unwrap(),
            err: String::from_utf8(out.stderr).unwrap(),
        }
    }

    /// `fcdcc conv` with default options for everything that `args` does not set.
    pub fn conv(&self, args: &str) -> Said {
        let given = |option: &str| args.split_whitespace().any(|a| a == option);
        // A pool file replaces the backend.
        let wanted = |option: &str| !given(option) && (option != "--backend" || !given("--pool"));
        let defaults = DEFAULTS.into_iter().filter(|(option, _)| wanted(option));
        let defaults: Vec<&str> = defaults.flat_map(|(option, value)| [option, value]).collect();
        self.run(&format!("conv {} {args}", defaults.join(" ")))
    }

    pub fn exact(&self, args: &str) -> Said {
        let said = self.conv(args);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{args}");
        said
    }

    /// The command must end with `status` and one line on stderr, and print and change nothing else, except for the report
    /// of a run that began.
    pub fn refused(&self, status: i32, args: &str, run: impl Fn(&Self, &str) -> Said) -> String {
        let begun = [3, 4].contains(&status) && args.contains("--report r.json");
        let before = self.content();
        let said = run(self, args);
        assert_eq!(said.status, status, "{args}: {}", said.err);
        assert!(said.err.starts_with("error: ") && said.err.ends_with('\n'), "{args}: {}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{args}: {}", said.err);
        assert!(said.err.len() < 600, "{args}: {}", said.err);
        assert_eq!(said.out, "", "{args}");
        let mut after = self.content();
        assert!(!begun || after.remove("r.json").is_some_and(|report| !report.is_empty()), "{args}");
        assert!(before.keys().eq(after.keys()), "{args} left {:?}", after.keys());
        let changed: Vec<_> = after.iter().filter(|(name, now)| before.get(*name) != Some(now)).collect();
        let changed: Vec<_> = changed.iter().map(|(name, _)| name).collect();
        assert!(changed.is_empty(), "{args} changed {changed:?}");
        said.err
    }
}

/// A .npy file of version 1.0 with any header and data.
pub fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len() + 1).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.push(b'\n');
    bytes.extend(data);
    bytes
}

pub fn header(dtype: &str, shape: &str) -> String {
    format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}")
}
