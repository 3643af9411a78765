//! Every Conv case of the ONNX backend test suite, an independent oracle, coded and uncoded.
//!
//! `scripts/onnx_conv_cases.py` extracts the cases, with the Python named by `FCDCC_PYTHON`, else `.venv/bin/python`, else
//! `python3`; it must have the onnx package. Without one the suite is shown as ignored, never as passed; with `CI=true` it
//! fails.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use fcdcc::worker::{FaultSpec, inject};
use fcdcc::{CodeKind, CodedConv, ConvParams, CpuWorker, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use ndarray::{Array1, ArrayD};

/// The tolerances of the ONNX backend suite's own runner for float32, relative to each element.
const RTOL: f32 = 1e-3;
/// Absolute tolerance relative to the largest output: decoding in f32 at condition numbers below 100 costs at most about
/// 100 * 6e-8 of it, so elements near zero have no relative accuracy.
const ATOL: f32 = 1e-5;

/// Subtasks of the coded run; two of them crash, the tolerated number.
const SUBTASKS: usize = 6;
const CRASHED: &str = "1,4:crash";

/// Packages that the Python must have.
const PACKAGES: &str = "onnx, numpy";

/// Minimum number of cases of the suite.
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
            LayerOptions { code, tolerate: 2, ..LayerOptions::default() }.on_shortfall(OnShortfall::Fail);
        let bias = self.b.as_ref().map(|b| b.view());
        let layer = CodedConv::builder(&pool, self.x.shape(), self.w.view())
            .bias(bias)
            .params(self.params.clone())
            .options(options)
            .prepare()?;
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
        // A NaN is never within the tolerance.
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

pub(crate) fn trials() -> Vec<Trial> {
    let folders = match oracle::cases("onnx_conv_cases.py", &[], PACKAGES) {
        Ok(cases) => oracle::folders(&cases),
        Err(why) => return oracle::instead("conv::onnx_backend_suite", PACKAGES, why),
    };
    let (count, first) = (folders.len(), folders.first().map(|(_, path)| path.clone()));
    let mut trials = vec![
        Trial::test("conv::there_are_enough_cases", move || match count {
            CASES_AT_LEAST.. => Ok(()),
            _ => Err(format!("{count} cases where at least {CASES_AT_LEAST} were expected").into()),
        }),
        Trial::test("conv::a_perturbed_output_is_noticed", move || {
            a_perturbed_output_is_noticed(&first.ok_or("there is no case")?)
        }),
    ];
    trials.extend(
        folders
            .into_iter()
            .map(|(name, folder)| Trial::test(format!("conv::{name}"), move || agrees(&folder))),
    );
    trials
}
