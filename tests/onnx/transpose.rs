//! Transposed convolutions of random attributes against onnxruntime, with two of six workers crashed from the start.
//!
//! `scripts/onnx_transpose_cases.py` draws the cases, some hundreds from one seed; `FCDCC_TRANSPOSED=COUNT` and
//! `FCDCC_SEED=S` select others. Each is run coded, in f64, uncoded on the workers, and by definition as by `--compare`.
//! Without a Python with the packages the suite is shown as ignored, never as passed; with `CI=true` it fails.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use fcdcc::array::DType;
use fcdcc::model::{Model, ModelOptions, Output, Tensor};
use fcdcc::worker::inject;
use fcdcc::{CodeKind, CpuWorker, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use ndarray::ArrayD;

use crate::cases::facts;

const PACKAGES: &str = "onnx, onnxruntime, numpy";
const COUNT: usize = 400;
const SEED: usize = 1;
/// Number of cases in one trial.
const TOGETHER: usize = 50;
/// Subtasks; two of them crash at their first task, the number that the code tolerates.
const SUBTASKS: usize = 6;
const CRASHED: &str = "1,4:crash";
/// Minimum number of coded layers in a hundred: the others are too small to be split, with one filter on one row.
const CODED_IN_A_HUNDRED: usize = 80;

struct Case {
    model: Model,
    input: [Tensor; 1],
    output: (String, ArrayD<f32>),
    tolerance: f64,
}

impl Case {
    fn load(folder: &Path) -> fcdcc::Result<Self> {
        let json = facts(folder);
        let read = |key: &str| -> ArrayD<f32> {
            ndarray_npy::read_npy(folder.join(json[key][0]["file"].as_str().unwrap())).unwrap()
        };
        Ok(Self {
            model: Model::load(folder.join("model.onnx"))?,
            input: [read("inputs").into()],
            output: (json["outputs"][0]["name"].as_str().unwrap().to_owned(), read("outputs")),
            tolerance: json["tolerance"].as_f64().unwrap(),
        })
    }

    /// Runs the model on workers; returns whether its layer was coded.
    fn run(&self, options: &ModelOptions, faults: &str) -> fcdcc::Result<(Vec<Output>, bool)> {
        let pool = Pool::new(inject(CpuWorker::fleet(SUBTASKS), &[faults.parse()?], 0)?)?;
        let run = self.model.prepare(&pool, options)?.run(&self.input)?;
        let [layer] = &run.layers[..] else { panic!("{} layers in the report", run.layers.len()) };
        assert_eq!((layer.name.as_str(), layer.op.as_str()), ("up", "ConvTranspose"));
        let coded = layer.why_local.is_none();
        assert_eq!(coded, !layer.workers.is_empty());
        Ok((run.outputs, coded))
    }

    fn difference(&self, got: &[Output]) -> Option<String> {
        let (name, want) = &self.output;
        let [got] = got else { return Some(format!("{} outputs", got.len())) };
        if got.name != *name || got.tensor.shape() != want.shape() {
            let (own, shape) = (&got.name, got.tensor.shape());
            return Some(format!("{own} {shape:?} where {name} {:?} was expected", want.shape()));
        }
        // Every element counts: those that no tap reaches are few.
        let largest = want.iter().fold(0.0, |most, v| f64::max(most, f64::from(*v).abs()));
        got.tensor.to_f64().iter().zip(want).enumerate().find_map(|(index, (got, want))| {
            let within = (got - f64::from(*want)).abs() <= self.tolerance * largest;
            (!within).then(|| format!("element {index} is {got} where {want} was expected"))
        })
    }
}

fn options(code: CodeKind, precision: Option<DType>) -> ModelOptions {
    let layer = LayerOptions { code, ..LayerOptions::default() }.on_shortfall(OnShortfall::Fail);
    ModelOptions { layer, precision, ..ModelOptions::default() }
}

/// Checks a case; returns whether its layer was coded.
fn check(folder: &Path) -> Result<bool, String> {
    let attempt = || -> fcdcc::Result<_> {
        let case = Case::load(folder)?;
        let (outputs, coded) = case.run(&options(CodeKind::Crme, None), CRASHED)?;
        let (wide, _) = case.run(&options(CodeKind::Crme, Some(DType::F64)), CRASHED)?;
        let (uncoded, _) = case.run(&options(CodeKind::Uncoded, None), "1,4:delay=0ms")?;
        let defined = case.model.on_host()?.run(&case.input)?;
        let runs = [("coded", outputs), ("f64", wide), ("uncoded", uncoded), ("by definition", defined)];
        let differs =
            runs.iter().find_map(|(what, run)| case.difference(run).map(|d| format!("{what}: {d}")));
        Ok((differs, coded))
    };
    match attempt() {
        Ok((None, coded)) => Ok(coded),
        Ok((Some(wrong), _)) => Err(wrong),
        Err(error) => Err(error.to_string()),
    }
}

fn all(folders: &[(String, PathBuf)]) -> Result<(), Failed> {
    let (mut wrong, mut coded) = (Vec::new(), 0);
    for (name, folder) in folders {
        match check(folder) {
            Ok(on_workers) => coded += usize::from(on_workers),
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    if !wrong.is_empty() {
        return Err(format!("{} of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n")).into());
    }
    let least = folders.len() * CODED_IN_A_HUNDRED / 100;
    if coded < least {
        return Err(format!("{coded} layers were coded where {least} were expected").into());
    }
    Ok(())
}

/// Negative control: one element of an expected output moved by two tolerances, and one that is not a number.
fn a_difference_is_noticed(folder: &Path) -> Result<(), Failed> {
    let mut case = Case::load(folder)?;
    let (outputs, _) = case.run(&options(CodeKind::Crme, None), CRASHED)?;
    assert_eq!(case.difference(&outputs), None);
    let exact = case.output.1.clone();
    let largest = exact.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    #[expect(clippy::cast_possible_truncation, reason = "a tolerance is small")]
    let moved = 2.0 * case.tolerance as f32 * largest;
    let last = exact.len() - 1;
    for value in [exact.iter().last().unwrap() + moved, f32::NAN] {
        case.output.1.as_slice_mut().unwrap()[last] = value;
        assert!(case.difference(&outputs).is_some(), "{value}");
    }
    Ok(())
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

pub(crate) fn trials() -> Vec<Trial> {
    let (count, seed) = (number("FCDCC_TRANSPOSED", COUNT), number("FCDCC_SEED", SEED));
    let arguments = ["--count", &count.to_string(), "--seed", &seed.to_string()];
    let folders = match oracle::cases("onnx_transpose_cases.py", &arguments, PACKAGES) {
        Ok(cases) => oracle::folders(&cases),
        Err(why) => return oracle::instead("transpose::onnx_transpose", PACKAGES, why),
    };
    let (made, first) = (folders.len(), folders[0].1.clone());
    let mut trials = vec![
        Trial::test("transpose::there_are_as_many_as_asked_for", move || {
            if made == count {
                Ok(())
            } else {
                Err(format!("{made} cases where {count} were asked for").into())
            }
        }),
        Trial::test("transpose::a_difference_is_noticed", move || a_difference_is_noticed(&first)),
    ];
    for (index, some) in folders.chunks(TOGETHER).enumerate() {
        let (some, from) = (some.to_vec(), index * TOGETHER);
        trials
            .push(Trial::test(format!("transpose::{from}_to_{}", from + some.len() - 1), move || all(&some)));
    }
    trials
}
