//! Loops, sequences and recurrent layers against onnxruntime, with two of six workers crashed from the start.
//!
//! `scripts/onnx_loop_cases.py` makes the models, and says which convolutions must be coded, which must be reported as local
//! and why, and which models must be refused. Without a Python with the packages the suite is shown as ignored, never as
//! passed; with `CI=true` it fails.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use fcdcc::model::{Model, ModelOptions, ModelRun, Tensor};
use fcdcc::worker::inject;
use fcdcc::{CpuWorker, ErrorKind, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::cases::{array, difference, facts};

const PACKAGES: &str = "onnx, onnxruntime, numpy";

/// Subtasks; two of them crash at their first task, the number that the code tolerates.
const SUBTASKS: usize = 6;
const CRASHED: &str = "1,4:crash";
/// Relative L2 error of an output in f32. Loops of 100 iterations stay below a tenth of it.
const TOLERANCE: f64 = 1e-5;

/// Minimum number of cases of the script.
const CASES_AT_LEAST: usize = 90;

struct Case {
    model: Model,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    facts: Value,
}

fn names(facts: &Value, key: &str) -> Vec<String> {
    facts[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// The model for the inputs of a case, and those that are not constants of it.
fn model(folder: &Path) -> fcdcc::Result<(Model, Vec<Tensor>)> {
    let facts = facts(folder);
    let fixed = names(&facts, "fixed");
    let mut model = Model::load(folder.join("model.onnx"))?;
    let mut inputs = Vec::new();
    for (at, name) in names(&facts, "inputs").into_iter().enumerate() {
        let value = array(&folder.join(format!("input_{at}.npy")));
        if fixed.contains(&name) {
            model = model.with_input_value(&name, &value)?;
        } else {
            model = model.with_input_shape(&name, value.shape())?;
            inputs.push(value);
        }
    }
    Ok((model, inputs))
}

impl Case {
    fn load(folder: &Path) -> fcdcc::Result<Self> {
        let facts = facts(folder);
        let outputs = 0..facts["outputs"].as_u64().unwrap();
        let outputs = outputs.map(|at| array(&folder.join(format!("output_{at}.npy")))).collect();
        let (model, inputs) = model(folder)?;
        Ok(Self { model, inputs, outputs, facts })
    }

    fn run(&self) -> fcdcc::Result<ModelRun> {
        let pool = Pool::new(inject(CpuWorker::fleet(SUBTASKS), &[CRASHED.parse()?], 0)?)?;
        let layer = LayerOptions::default().on_shortfall(OnShortfall::Fail);
        self.model.prepare(&pool, &ModelOptions { layer, ..ModelOptions::default() })?.run(&self.inputs)
    }

    /// The first output that is wrong, if any.
    fn difference<'a>(&self, got: impl IntoIterator<Item = &'a Tensor>) -> Option<String> {
        difference(got, &self.outputs, |at, got, want| {
            let pairs = got.to_f64().into_iter().zip(want.to_f64());
            let (error, norm) = pairs.fold((0.0, 0.0), |(e, n), (g, w)| (e + (g - w).powi(2), n + w * w));
            let error = (error / f64::max(norm, f64::MIN_POSITIVE)).sqrt();
            let allowed = if matches!(want, Tensor::F32(_)) { TOLERANCE } else { 0.0 };
            // A NaN is never within the tolerance.
            let within = error <= allowed;
            (!within).then(|| format!("output {at} differs by {error:.3e}, allowed is {allowed:.0e}"))
        })
    }
}

/// With two crashed workers every output is that of the oracle, and so is that of the graph on this machine. The layers that
/// can be coded are, and the others are reported with their reason.
fn agrees(folder: &Path) -> Result<(), Failed> {
    let case = Case::load(folder)?;
    let run = case.run()?;
    if let Some(difference) = case.difference(run.outputs.iter().map(|output| &output.tensor)) {
        return Err(format!("coded: {difference}").into());
    }
    let host = case.model.on_host()?.run(&case.inputs)?;
    if let Some(difference) = case.difference(host.iter().map(|output| &output.tensor)) {
        return Err(format!("on the host: {difference}").into());
    }
    let (local, coded): (Vec<_>, Vec<_>) = run.layers.iter().partition(|layer| layer.why_local.is_some());
    let count = |key: &str| usize::try_from(case.facts[key].as_u64().unwrap()).unwrap();
    let names = |layers: &[&fcdcc::LayerReport]| layers.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
    assert_eq!(coded.len(), count("coded"), "coded: {:?}", names(&coded));
    assert_eq!(local.len(), count("local"), "local: {:?}", names(&local));
    assert!(coded.iter().all(|layer| layer.fallback.is_none() && !layer.used.is_empty()));
    for (layer, word) in
        local.iter().flat_map(|l| self::names(&case.facts, "why").into_iter().map(move |w| (l, w)))
    {
        let why = layer.why_local.as_deref().unwrap();
        assert!(why.contains(&word), "{}: {why} lacks {word}", layer.name);
    }
    Ok(())
}

/// A model is refused in one line that names the node and says what to do.
fn is_refused(folder: &Path) -> Result<(), Failed> {
    let attempt = || -> fcdcc::Result<()> {
        let (model, inputs) = model(folder)?;
        let pool = Pool::new(CpuWorker::fleet(2))?;
        let layer = LayerOptions::default().tolerate(0);
        let prepared = model.prepare(&pool, &ModelOptions { layer, ..ModelOptions::default() })?;
        prepared.run(&inputs).map(drop)
    };
    let Err(error) = attempt() else { return Err("ran".into()) };
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
    assert!(text.contains("model.onnx") && !text.contains('\n') && text.len() < 500, "{text}");
    for word in names(&facts(folder), "says") {
        assert!(text.contains(&word), "{text} lacks {word}");
    }
    Ok(())
}

/// Negative controls: an output moved by three tolerances, one with a NaN, one that lacks an iteration, an integer that is
/// one too large, and an output too few.
fn a_difference_is_noticed(floats: &Path, integers: &Path) -> Result<(), Failed> {
    let mut case = Case::load(floats)?;
    let run = case.run()?;
    let got = || run.outputs.iter().map(|output| &output.tensor);
    assert_eq!(case.difference(got()), None);
    let Tensor::F32(exact) = case.outputs[1].clone() else { return Err("the control needs f32".into()) };
    case.outputs[1] = exact.mapv(|v| v * 1.000_03).into();
    assert!(case.difference(got()).is_some());
    let mut spoilt = exact.clone();
    *spoilt.iter_mut().last().unwrap() = f32::NAN;
    case.outputs[1] = spoilt.into();
    assert!(case.difference(got()).is_some());
    case.outputs[1] = exact.slice_axis(ndarray::Axis(0), (1..).into()).to_owned().into();
    assert!(case.difference(got()).is_some());
    case.outputs.truncate(1);
    assert!(case.difference(got()).is_some());
    let mut case = Case::load(integers)?;
    let run = case.run()?;
    let got = || run.outputs.iter().map(|output| &output.tensor);
    assert_eq!(case.difference(got()), None);
    let Tensor::I64(total) = &mut case.outputs[0] else { return Err("the control needs i64".into()) };
    *total.iter_mut().last().unwrap() += 1;
    assert!(case.difference(got()).is_some());
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let folders = match oracle::cases("onnx_loop_cases.py", &[], PACKAGES) {
        Ok(cases) => oracle::folders(&cases),
        Err(why) => return oracle::instead("loops::operators", PACKAGES, why),
    };
    let count = folders.len();
    let named = |wanted: &str| folders.iter().find(|(name, _)| name == wanted).map(|(_, path)| path.clone());
    let controls =
        named("convolutions_three_times").zip(named("integers_booleans_and_outputs_that_are_left_out"));
    let mut trials = vec![
        Trial::test("loops::there_are_enough_cases", move || match count {
            CASES_AT_LEAST.. => Ok(()),
            _ => Err(format!("{count} cases where at least {CASES_AT_LEAST} were expected").into()),
        }),
        Trial::test("loops::a_difference_is_noticed", move || {
            let (floats, integers) = controls.ok_or("there is no control case")?;
            a_difference_is_noticed(&floats, &integers)
        }),
    ];
    trials.extend(folders.into_iter().map(|(name, folder)| {
        let refused = name.starts_with("refused_");
        Trial::test(
            format!("loops::{name}"),
            move || if refused { is_refused(&folder) } else { agrees(&folder) },
        )
    }));
    trials
}
