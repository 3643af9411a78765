//! Every Conv case of the ONNX backend test suite, coded and uncoded: an oracle nobody here wrote.
//!
//! `scripts/onnx_conv_cases.py` extracts the cases, with the Python that `FCDCC_PYTHON` names, else
//! `.venv/bin/python`, else `python3`; it must have the onnx package. Without one the suite is shown as ignored,
//! never as passed; where `CI=true` that fails it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use fcdcc::worker::{FaultSpec, inject};
use fcdcc::{CodeKind, CodedConv, ConvParams, CpuWorker, LayerOptions, OnShortfall, Pool};
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array1, ArrayD};

/// The tolerances of the ONNX backend suite's own runner for float32, relative to each element.
const RTOL: f32 = 1e-3;
/// Absolute, relative to the largest output: decoding in f32 at condition numbers below 100 costs at most about
/// 100 * 6e-8 of that, near which elements close to zero say nothing.
const ATOL: f32 = 1e-5;

/// Subtasks of the coded run; two of them crash, as many as it tolerates.
const SUBTASKS: usize = 6;
const CRASHED: &str = "1,4:crash";

/// Cases that the suite has had since it was first used here.
const CASES_AT_LEAST: usize = 25;

struct Case {
    x: ArrayD<f32>,
    w: ArrayD<f32>,
    b: Option<Array1<f32>>,
    y: ArrayD<f32>,
    params: ConvParams,
}

impl Case {
    fn load(folder: &Path) -> Self {
        let array = |name: &str| ndarray_npy::read_npy(folder.join(name)).unwrap();
        let json = std::fs::read_to_string(folder.join("params.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let list = |key: &str| serde_json::from_value::<Vec<usize>>(json[key].clone()).unwrap();
        let bias = folder.join("b.npy");
        Self {
            x: array("x.npy"),
            w: array("w.npy"),
            b: bias.exists().then(|| ndarray_npy::read_npy(bias).unwrap()),
            y: array("y.npy"),
            params: ConvParams {
                stride: list("stride"),
                padding: list("padding"),
                dilation: list("dilation"),
                groups: serde_json::from_value(json["groups"].clone()).unwrap(),
            },
        }
    }

    fn run(&self, code: CodeKind, faults: &[FaultSpec]) -> Result<ArrayD<f32>, fcdcc::Error> {
        let pool = Pool::new(inject(CpuWorker::fleet(SUBTASKS), faults, 0)?)?;
        let options =
            LayerOptions { code, tolerate: 2, on_shortfall: OnShortfall::Fail, ..LayerOptions::default() };
        let bias = self.b.as_ref().map(|b| b.view());
        let layer = CodedConv::prepare(&pool, self.x.shape(), self.w.view(), bias, &self.params, options)?;
        Ok(layer.run(self.x.view())?.output)
    }
}

/// The first difference over the tolerance.
fn difference(got: &ArrayD<f32>, want: &ArrayD<f32>) -> Option<String> {
    if got.shape() != want.shape() {
        return Some(format!("shape {:?} where {:?} was expected", got.shape(), want.shape()));
    }
    let largest = want.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
    got.iter().zip(want).enumerate().find_map(|(i, (g, w))| {
        // A NaN is within no tolerance.
        let within = (g - w).abs() <= RTOL * w.abs() + ATOL * largest;
        (!within).then(|| format!("element {i} is {g} where {w} was expected"))
    })
}

fn agrees(folder: &Path) -> Result<(), Failed> {
    let case = Case::load(folder);
    for (code, faults) in [(CodeKind::Crme, vec![CRASHED.parse()?]), (CodeKind::Uncoded, vec![])] {
        if let Some(difference) = difference(&case.run(code, &faults)?, &case.y) {
            return Err(format!("{code}: {difference}").into());
        }
    }
    Ok(())
}

/// Negative control: one element of one expected output moved by ten tolerances.
fn a_perturbed_output_is_noticed(folder: &Path) -> Result<(), Failed> {
    let mut case = Case::load(folder);
    let got = case.run(CodeKind::Crme, &[CRASHED.parse()?])?;
    assert_eq!(difference(&got, &case.y), None);
    let largest = case.y.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
    let last = case.y.iter_mut().last().unwrap();
    *last += 10.0 * (RTOL * last.abs() + ATOL * largest);
    assert!(difference(&got, &case.y).is_some());
    *case.y.iter_mut().last().unwrap() = f32::NAN;
    assert!(difference(&got, &case.y).is_some());
    Ok(())
}

/// Where the cases lie. They are extracted once for each script and Python, not once for each test process.
fn cases() -> Result<PathBuf, Unavailable> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = root.join("scripts/onnx_conv_cases.py");
    let script_text = std::fs::read_to_string(&script).unwrap();
    let candidates = match std::env::var_os("FCDCC_PYTHON") {
        Some(python) => vec![PathBuf::from(python)],
        None => vec![root.join(".venv/bin/python"), PathBuf::from("python3")],
    };
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for python in &candidates {
        let mut made_by = DefaultHasher::new();
        (python, &script_text).hash(&mut made_by);
        let found = target.join(format!("onnx_conv_cases-{:016x}", made_by.finish()));
        if found.is_dir() {
            return Ok(found);
        }
        let imports = Command::new(python).args(["-c", "import onnx"]).output();
        if !imports.is_ok_and(|out| out.status.success()) {
            continue;
        }
        let fresh = tempfile::tempdir_in(target).unwrap();
        let out = Command::new(python).arg(&script).arg(fresh.path()).output().unwrap();
        if !out.status.success() {
            return Err(Unavailable::Failed(String::from_utf8_lossy(&out.stderr).into_owned()));
        }
        // Test runners list tests in several processes at once: the first puts its cases in place, the others find them.
        return match std::fs::rename(fresh.path(), &found) {
            Err(error) if !found.is_dir() => Err(Unavailable::Failed(error.to_string())),
            _ => Ok(found),
        };
    }
    Err(Unavailable::NoPython(format!(
        "none of {candidates:?} is a Python with the onnx package: pip install onnx, or set FCDCC_PYTHON"
    )))
}

enum Unavailable {
    /// Shown as ignored, unless CI=true.
    NoPython(String),
    /// A defect.
    Failed(String),
}

fn trials() -> Vec<Trial> {
    let folder = match cases() {
        Ok(folder) => folder,
        Err(Unavailable::NoPython(why)) => {
            let required = std::env::var("CI").is_ok_and(|v| v == "true");
            let suite = Trial::test("onnx_backend_suite", move || Err(why.into()));
            return vec![suite.with_kind("needs Python with onnx").with_ignored_flag(!required)];
        }
        Err(Unavailable::Failed(why)) => {
            return vec![Trial::test("onnx_backend_suite", move || Err(why.into()))];
        }
    };
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    let (count, first) = (folders.len(), folders.first().cloned());
    let mut trials = vec![
        Trial::test("there_are_enough_cases", move || match count {
            CASES_AT_LEAST.. => Ok(()),
            _ => Err(format!("{count} cases where at least {CASES_AT_LEAST} were expected").into()),
        }),
        Trial::test("a_perturbed_output_is_noticed", move || {
            a_perturbed_output_is_noticed(&first.ok_or("there is no case")?)
        }),
    ];
    trials.extend(folders.into_iter().map(|folder| {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        Trial::test(name, move || agrees(&folder))
    }));
    trials
}

fn main() {
    libtest_mimic::run(&Arguments::from_args(), trials()).exit();
}
