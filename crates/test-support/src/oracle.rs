//! Cases that a Python script makes with packages of the ONNX project, once per script and Python.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::binary::{kept, repository};

pub enum Unavailable {
    /// Shown as ignored, unless CI=true.
    NoPython(String),
    /// The script failed.
    Failed(String),
}

/// The folder of the cases of `scripts/{script}`. Runs it with a folder and `arguments`, by the Python named by
/// `FCDCC_PYTHON`, else `.venv/bin/python`, else `python3`, which must have all `packages`.
pub fn cases(script: &str, arguments: &[&str], packages: &str) -> Result<PathBuf, Unavailable> {
    let root = repository();
    let path = root.join("scripts").join(script);
    let text = std::fs::read_to_string(&path).unwrap();
    let candidates = match std::env::var_os("FCDCC_PYTHON") {
        Some(python) => vec![PathBuf::from(python)],
        None => vec![root.join(".venv/bin/python"), PathBuf::from("python3")],
    };
    let target = kept();
    for python in &candidates {
        let mut made_by = DefaultHasher::new();
        (python, &text, arguments).hash(&mut made_by);
        let found = target.join(format!("{}-{:016x}", script.trim_end_matches(".py"), made_by.finish()));
        if found.is_dir() {
            return Ok(found);
        }
        let imports = Command::new(python).args(["-c", &format!("import {packages}")]).output();
        if !imports.is_ok_and(|out| out.status.success()) {
            continue;
        }
        let fresh = tempfile::tempdir_in(&target).unwrap();
        let out = Command::new(python).arg(&path).arg(fresh.path()).args(arguments).output().unwrap();
        if !out.status.success() {
            return Err(Unavailable::Failed(String::from_utf8_lossy(&out.stderr).into_owned()));
        }
        // Test runners list tests in several processes at once: the first one renames its cases, the others use these.
        return match std::fs::rename(fresh.path(), &found) {
            Err(error) if !found.is_dir() => Err(Unavailable::Failed(error.to_string())),
            _ => Ok(found),
        };
    }
    Err(Unavailable::NoPython(format!(
        "none of {candidates:?} is a Python with {packages}: install them with pip, or set FCDCC_PYTHON"
    )))
}

/// The only trial of a suite without cases: ignored if Python is missing and this is not CI, else failed.
pub fn instead(suite: &str, packages: &str, why: Unavailable) -> Vec<Trial> {
    let (why, ignored) = match why {
        Unavailable::NoPython(why) => (why, !std::env::var("CI").is_ok_and(|v| v == "true")),
        Unavailable::Failed(why) => (why, false),
    };
    let trial = Trial::test(suite, move || Err(why.into()));
    vec![trial.with_kind(format!("needs Python with {packages}")).with_ignored_flag(ignored)]
}

/// The folders of the cases, by name.
pub fn folders(cases: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    folders.into_iter().map(|path| (name(&path), path)).collect()
}
