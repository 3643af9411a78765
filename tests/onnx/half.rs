//! Models of 16-bit floats against onnxruntime, with two of six workers crashed from the start.
//!
//! `scripts/onnx_half_cases.py` makes the models: f16 and bf16, stored in every way that the format has, with constants in
//! graphs, branches, functions and attributes. Each has a copy with one wrong weight, which must be noticed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use fcdcc::model::{Model, ModelOptions, Tensor, bf16, f16};
use fcdcc::worker::inject;
use fcdcc::{CpuWorker, ErrorKind, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::cases::facts;

const PACKAGES: &str = "onnx, onnxruntime, numpy, ml_dtypes";
const CASES_AT_LEAST: usize = 17;

/// A value of a case: its name, its type in the file and its elements.
struct Named {
    name: String,
    dtype: String,
    values: ndarray::ArrayD<f32>,
}

impl Named {
    /// In the type of the file.
    fn tensor(&self) -> Tensor {
        match self.dtype.as_str() {
            "f16" => self.values.mapv(f16::from_f32).into(),
            "bf16" => self.values.mapv(bf16::from_f32).into(),
            "f32" => self.values.clone().into(),
            other => panic!("{other} is no type of this suite"),
        }
    }
}

struct Case {
    json: Value,
    inputs: Vec<Named>,
    outputs: Vec<Named>,
    tolerance: f64,
}

impl Case {
    fn load(folder: &Path) -> Self {
        let json = facts(folder);
        let named = |key: &str| -> Vec<Named> {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let all = json[key].as_array().unwrap().iter();
            all.map(|entry| Named {
                name: text(&entry["name"]),
                dtype: text(&entry["dtype"]),
                values: ndarray_npy::read_npy(folder.join(text(&entry["file"]))).unwrap(),
            })
            .collect()
        };
        let (inputs, outputs) = (named("inputs"), named("outputs"));
        let tolerance = json["tolerance"].as_f64().unwrap();
        Self { json, inputs, outputs, tolerance }
    }

    /// The first output that differs from onnxruntime's in type, shape or values.
    fn difference(&self, got: &[fcdcc::model::Output]) -> Option<String> {
        if got.len() != self.outputs.len() {
            return Some(format!("{} outputs where {} were expected", got.len(), self.outputs.len()));
        }
        got.iter().zip(&self.outputs).find_map(|(got, want)| {
            let tensor = &got.tensor;
            if (&got.name, tensor.dtype(), tensor.shape())
                != (&want.name, want.dtype.as_str(), want.values.shape())
            {
                return Some(format!("{} is {} {:?}", got.name, tensor.dtype(), tensor.shape()));
            }
            let pairs = tensor.to_f64().into_iter().zip(want.values.iter().map(|v| f64::from(*v)));
            let (error, norm) = pairs.fold((0.0, 0.0), |(e, n), (g, w)| (e + (g - w).powi(2), n + w * w));
            let error = f64::sqrt(error / norm);
            let within = error <= self.tolerance;
            (!within)
                .then(|| format!("{} differs by {error:.3e}, allowed is {:.0e}", got.name, self.tolerance))
        })
    }
}

fn pool() -> fcdcc::Result<Pool> {
    Pool::new(inject(CpuWorker::fleet(6), &["1,4:crash".parse()?], 0)?)
}

fn options() -> ModelOptions {
    ModelOptions { layer: LayerOptions::default().on_shortfall(OnShortfall::Fail), ..ModelOptions::default() }
}

/// Coded and on the host, a model gives what onnxruntime gives, in the types of the file.
fn agrees(folder: &Path) -> Result<(), Failed> {
    let case = Case::load(folder);
    let model = Model::load(folder.join("model.onnx"))?;
    for (info, input) in model.inputs().iter().zip(&case.inputs) {
        assert_eq!((&info.name, &info.dtype), (&input.name, &input.dtype));
    }
    assert!(model.widened().is_some_and(|widened| !widened.dtypes.is_empty()));
    let inputs: Vec<Tensor> = case.inputs.iter().map(Named::tensor).collect();
    let prepared = model.prepare(&pool()?, &options())?;
    let run = prepared.run(&inputs)?;
    if let Some(difference) = case.difference(&run.outputs) {
        return Err(difference.into());
    }
    let coded = usize::try_from(case.json["coded"].as_u64().unwrap()).unwrap();
    assert_eq!(prepared.coded_layers(), coded, "{:?}", prepared.local_layers().collect::<Vec<_>>());
    if let Some(difference) = case.difference(&model.on_host()?.run(&inputs)?) {
        return Err(format!("on the host: {difference}").into());
    }
    // f32 data are rounded to the type of the file: a hundredth of the last bit changes nothing.
    if case.inputs.iter().all(|input| input.dtype != "f32") {
        let near: Vec<Tensor> =
            case.inputs.iter().map(|input| input.values.mapv(|v| v * (1.0 + 1e-5)).into()).collect();
        let again = prepared.run(&near)?;
        for (one, other) in run.outputs.iter().zip(&again.outputs) {
            assert_eq!(one.tensor.to_f64(), other.tensor.to_f64(), "from f32");
        }
    }
    Ok(())
}

/// Negative control: the same model with one wrong weight.
fn a_wrong_weight_is_noticed(folder: &Path) -> Result<(), Failed> {
    let case = Case::load(folder);
    let inputs: Vec<Tensor> = case.inputs.iter().map(Named::tensor).collect();
    let run = |file: &str| -> fcdcc::Result<_> {
        let prepared = Model::load(folder.join(file))?.prepare(&pool()?, &options())?;
        Ok(prepared.run(&inputs)?.outputs)
    };
    assert_eq!(case.difference(&run("model.onnx")?), None);
    assert!(case.difference(&run("wrong.onnx")?).is_some());
    Ok(())
}

/// What does not exist in f16 is refused with both types, and so are damaged tensors.
fn unfit_data_are_refused(network: &Path, external: &Path) -> Result<(), Failed> {
    let model = Model::load(network.join("model.onnx"))?;
    let prepared = model.prepare(&pool()?, &options())?;
    let shape = Case::load(network).inputs[0].values.shape().to_vec();
    let refused = |tensor: Tensor| {
        let error = prepared.run(&[tensor]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        error.to_string()
    };
    let large = refused(ndarray::ArrayD::from_elem(shape.clone(), 1e5f32).into());
    assert!(large.contains("f16") && large.contains("f32") && large.contains("1e5"), "{large}");
    let odd = refused(ndarray::ArrayD::from_elem(shape.clone(), 4097i32).into());
    assert!(odd.contains("f16") && odd.contains("i32"), "{odd}");
    let shaped = refused(ndarray::ArrayD::from_elem(vec![1, 2], f16::ONE).into());
    assert!(shaped.contains("f16 (or f32)"), "{shaped}");
    // Integers that exist in f16 are accepted.
    prepared.run(&[ndarray::ArrayD::from_elem(shape, 4096i32).into()])?;
    // External data of the wrong length.
    let folder = tempfile::tempdir()?;
    for file in ["model.onnx", "model.bin"] {
        std::fs::copy(external.join(file), folder.path().join(file))?;
    }
    let data = std::fs::OpenOptions::new().write(true).open(folder.path().join("model.bin"))?;
    data.set_len(100)?;
    let error = Model::load(folder.path().join("model.onnx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.to_string().contains("100"), "{error}");
    Ok(())
}

/// A damaged tensor is refused in one line with its name and both numbers.
fn is_refused(folder: &Path) -> Result<(), Failed> {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json"))?)?;
    let error = Model::load(folder.join("model.onnx")).err().ok_or("it was accepted")?;
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
    for word in json["says"].as_array().unwrap() {
        assert!(text.contains(word.as_str().unwrap()) && !text.contains('\n'), "{text} lacks {word}");
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let folders = match oracle::cases("onnx_half_cases.py", &[], PACKAGES) {
        Ok(cases) => oracle::folders(&cases),
        Err(why) => return oracle::instead("half::onnx_half", PACKAGES, why),
    };
    let count = folders.len();
    let folder = |name: &str| folders.iter().find(|(own, _)| own == name).unwrap().1.clone();
    let (network, external) = (folder("f16_network"), folder("f16_external"));
    let mut trials = vec![
        Trial::test("half::there_are_enough_cases", move || match count {
            CASES_AT_LEAST.. => Ok(()),
            _ => Err(format!("{count} cases where at least {CASES_AT_LEAST} were expected").into()),
        }),
        Trial::test("half::unfit_data_are_refused", move || unfit_data_are_refused(&network, &external)),
    ];
    for (name, folder) in folders {
        if name.starts_with("broken_") {
            trials.push(Trial::test(format!("half::{name}"), move || is_refused(&folder)));
            continue;
        }
        if Case::load(&folder).json["wrong"] == true {
            let folder = folder.clone();
            trials.push(Trial::test(format!("half::{name}_with_a_wrong_weight"), move || {
                a_wrong_weight_is_noticed(&folder)
            }));
        }
        trials.push(Trial::test(format!("half::{name}"), move || agrees(&folder)));
    }
    trials
}
