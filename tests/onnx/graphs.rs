//! Random graphs around convolutions against onnxruntime with all its optimisations off.
//!
//! `scripts/onnx_graph_cases.py` draws the graphs, some hundreds from one seed; `FCDCC_GRAPHS=COUNT` and `FCDCC_SEED=S`
//! select others (scripts/test_graphs.sh). Each graph is run coded, and node by node as by `--compare`. If the items of a
//! batch are independent by the graph, one item is changed, which must not affect the others.
//! Without a Python with the packages the suite is shown as ignored, never as passed; with `CI=true` it fails.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use fcdcc::model::{GemmChoice, Model, ModelOptions, Output, Tensor};
use fcdcc::{CpuWorker, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use ndarray::{ArrayD, Axis};
use serde_json::Value;

use crate::cases::facts;

const PACKAGES: &str = "onnx, onnxruntime, numpy";
const COUNT: usize = 300;
const SEED: usize = 1;
/// Number of graphs in one trial.
const TOGETHER: usize = 50;
const WORKERS: usize = 6;
/// Minimum number, in a hundred graphs, of graphs with a batch of several independent items.
const APART_IN_A_HUNDRED: usize = 2;

struct Case {
    model: Model,
    input: ArrayD<f32>,
    outputs: Vec<(String, ArrayD<f32>)>,
    tolerance: f64,
}

impl Case {
    fn load(folder: &Path) -> fcdcc::Result<Self> {
        let json = facts(folder);
        let read = |entry: &Value| {
            let file = folder.join(entry["file"].as_str().unwrap());
            (entry["name"].as_str().unwrap().to_owned(), ndarray_npy::read_npy(file).unwrap())
        };
        Ok(Self {
            model: Model::load(folder.join("model.onnx"))?,
            input: read(&json["inputs"][0]).1,
            outputs: json["outputs"].as_array().unwrap().iter().map(read).collect(),
            tolerance: json["tolerance"].as_f64().unwrap(),
        })
    }

    fn difference(&self, got: &[Output]) -> Option<String> {
        if got.len() != self.outputs.len() {
            return Some(format!("{} outputs where {} were expected", got.len(), self.outputs.len()));
        }
        got.iter().zip(&self.outputs).find_map(|(got, (name, want))| {
            if got.name != *name || got.tensor.shape() != want.shape() {
                let (own, shape) = (&got.name, got.tensor.shape());
                return Some(format!("{own} {shape:?} where {name} {:?} was expected", want.shape()));
            }
            let error = relative_l2(&got.tensor.to_f64(), want);
            let within = error <= self.tolerance;
            (!within).then(|| format!("{name} differs by {error:.3e}, allowed is {:.0e}", self.tolerance))
        })
    }
}

fn relative_l2(got: &[f64], want: &ArrayD<f32>) -> f64 {
    let (error, norm) = got.iter().zip(want).fold((0.0, 0.0), |(e, n), (g, w)| {
        let w = f64::from(*w);
        (e + (g - w).powi(2), n + w * w)
    });
    (error / f64::max(norm, f64::MIN_POSITIVE)).sqrt()
}

fn options() -> ModelOptions {
    let layer = LayerOptions::default().on_shortfall(OnShortfall::Fail);
    ModelOptions { layer, gemm: GemmChoice::On, ..ModelOptions::default() }
}

/// Checks a graph; returns whether the items of its batch are known to be independent.
fn check(pool: &Pool, folder: &Path) -> Result<bool, String> {
    let attempt = || -> fcdcc::Result<_> {
        let case = Case::load(folder)?;
        let input = [Tensor::from(case.input.clone())];
        let coded = case.model.prepare(pool, &options())?.run(&input)?.outputs;
        let host = case.model.on_host()?;
        let whole = host.run(&input)?;
        let differs = case.difference(&coded).map(|d| format!("coded: {d}"));
        let differs = differs.or_else(|| case.difference(&whole).map(|d| format!("node by node: {d}")));
        let axes = case.model.batch_axes().ok().filter(|_| case.input.shape()[0] > 1);
        let met = match &axes {
            None => None,
            Some(axes) => {
                let mut changed = case.input.clone();
                changed.index_axis_mut(Axis(0), 0).mapv_inplace(|v| 1.0 - 0.7 * v);
                let changed = host.run(&[changed.into()])?;
                whole.iter().zip(&changed).zip(axes).find_map(|((was, is), axis)| others(was, is, *axis))
            }
        };
        Ok((differs.or(met), axes.is_some()))
    };
    match attempt() {
        Ok((None, apart)) => Ok(apart),
        Ok((Some(wrong), _)) => Err(wrong),
        Err(error) => Err(error.to_string()),
    }
}

/// An error if an output changed outside the first item of the batch, or did not change in it.
fn others(was: &Output, is: &Output, axis: usize) -> Option<String> {
    let (Tensor::F32(was_all), Tensor::F32(is_all)) = (&was.tensor, &is.tensor) else { return None };
    let name = &was.name;
    for item in 1..was_all.shape()[axis] {
        if was_all.index_axis(Axis(axis), item) != is_all.index_axis(Axis(axis), item) {
            return Some(format!("item {item} of {name} along axis {axis} is not apart from the first"));
        }
    }
    None
}

fn all(folders: &[(String, PathBuf)]) -> Result<(), Failed> {
    let pool = Pool::new(CpuWorker::fleet(WORKERS))?;
    let (mut wrong, mut apart) = (Vec::new(), 0);
    for (name, folder) in folders {
        match check(&pool, folder) {
            Ok(items) => apart += usize::from(items),
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    if !wrong.is_empty() {
        return Err(format!("{} of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n")).into());
    }
    let least = folders.len() * APART_IN_A_HUNDRED / 100;
    if apart < least {
        return Err(format!("{apart} graphs keep their items apart where {least} were expected").into());
    }
    Ok(())
}

/// Negative control: an expected output moved by three tolerances, and an item that is not independent.
fn a_difference_is_noticed(folder: &Path) -> Result<(), Failed> {
    let pool = Pool::new(CpuWorker::fleet(WORKERS))?;
    let mut case = Case::load(folder)?;
    let run = case.model.prepare(&pool, &options())?.run(&[case.input.clone().into()])?;
    assert_eq!(case.difference(&run.outputs), None);
    #[expect(clippy::cast_possible_truncation, reason = "a tolerance is small")]
    let scale = 1.0 + 3.0 * case.tolerance as f32;
    case.outputs[0].1.mapv_inplace(|v| v * scale);
    assert!(case.difference(&run.outputs).is_some());
    let output = |values: [f32; 4]| Output {
        name: "y".to_owned(),
        tensor: ArrayD::from_shape_vec(vec![2, 2], values.to_vec()).unwrap().into(),
    };
    let (was, is) = (output([1.0, 2.0, 3.0, 4.0]), output([9.0, 2.0, 3.0, 4.0]));
    assert_eq!(others(&was, &is, 0), None);
    assert!(others(&was, &output([9.0, 2.0, 3.0, 5.0]), 0).is_some());
    assert!(others(&was, &output([9.0, 8.0, 3.0, 4.0]), 1).is_some());
    Ok(())
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

pub(crate) fn trials() -> Vec<Trial> {
    let (count, seed) = (number("FCDCC_GRAPHS", COUNT), number("FCDCC_SEED", SEED));
    let arguments = ["--count", &count.to_string(), "--seed", &seed.to_string()];
    let folders = match oracle::cases("onnx_graph_cases.py", &arguments, PACKAGES) {
        Ok(cases) => oracle::folders(&cases),
        Err(why) => return oracle::instead("graphs::onnx_graphs", PACKAGES, why),
    };
    let (made, first) = (folders.len(), folders[0].1.clone());
    let mut trials = vec![
        Trial::test("graphs::there_are_as_many_as_asked_for", move || {
            if made == count {
                Ok(())
            } else {
                Err(format!("{made} graphs where {count} were asked for").into())
            }
        }),
        Trial::test("graphs::a_difference_is_noticed", move || a_difference_is_noticed(&first)),
    ];
    for (index, some) in folders.chunks(TOGETHER).enumerate() {
        let (some, from) = (some.to_vec(), index * TOGETHER);
        trials.push(Trial::test(format!("graphs::{from}_to_{}", from + some.len() - 1), move || all(&some)));
    }
    trials
}
