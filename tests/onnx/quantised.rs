//! Quantised models, with two of six workers crashed from the start.
//!
//! `scripts/onnx_quantised_cases.py` makes the models. Single operators must equal their definition, computed there with
//! sums in int64, to the last bit. Whole networks and QDQ graphs are compared with onnxruntime with its optimisations off:
//! its convolutions in floats round otherwise, so a share of elements may be steps of the quantisation away, and the
//! tests print how many are.
//! Without a Python with the packages the suite is shown as ignored, never as passed; with `CI=true` it fails.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "the numbers of differences are for the reader")]

use std::path::{Path, PathBuf};

use fcdcc::array::DType;
use fcdcc::model::{GemmChoice, Model, ModelOptions, ModelRun, Tensor};
use fcdcc::worker::{inject, intercept};
use fcdcc::{Completion, CpuWorker, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::cases::{array, difference, facts};

const PACKAGES: &str = "onnx, onnxruntime, numpy";

/// Subtasks; two of them crash at their first task, the number that the code tolerates.
const SUBTASKS: usize = 6;
const CRASHED: &str = "1,4:crash";

/// Minimum number of cases of the script.
const CASES_AT_LEAST: usize = 52;

struct Case {
    name: String,
    model: Model,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    facts: Value,
}

impl Case {
    fn load(folder: &Path) -> Self {
        let facts = facts(folder);
        let arrays = |key: &str, file: &str| -> Vec<Tensor> {
            (0..facts[key].as_u64().unwrap())
                .map(|i| array(&folder.join(format!("{file}_{i}.npy"))))
                .collect()
        };
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model: Model::load(folder.join("model.onnx")).unwrap(),
            inputs: arrays("inputs", "input"),
            outputs: arrays("outputs", "output"),
            facts,
        }
    }

    fn run(&self, faults: &str, precision: Option<DType>) -> fcdcc::Result<ModelRun> {
        let pool = Pool::new(inject(CpuWorker::fleet(SUBTASKS), &[faults.parse()?], 0)?)?;
        let layer = LayerOptions::default().on_shortfall(OnShortfall::Fail);
        let options = ModelOptions { layer, gemm: GemmChoice::On, precision, ..ModelOptions::default() };
        self.model.prepare(&pool, &options)?.run(&self.inputs)
    }

    /// The first output that is wrong, if any.
    fn difference<'a>(&self, got: impl IntoIterator<Item = &'a Tensor>) -> Option<String> {
        difference(got, &self.outputs, |index, got, want| self.far(index, &got.to_f64(), &want.to_f64()))
    }

    fn far(&self, index: usize, got: &[f64], want: &[f64]) -> Option<String> {
        let number = |key: &str| self.facts[key][index].as_f64().unwrap();
        let exact = self.facts["oracle"] == "definition";
        let quantum = if exact { 1.0 } else { number("quanta") };
        let steps = got.iter().zip(want).map(|(got, want)| (got - want).abs() / quantum);
        let apart = got.iter().zip(want).filter(|(got, want)| got != want).count();
        let most = steps.fold(0.0, |most: f64, step| if step <= most { most } else { step });
        let (all, name) = (want.len(), &self.name);
        let (ties, allowed) =
            if exact { (0.0, 0.0) } else { (number("ties"), self.facts["steps"].as_f64().unwrap()) };
        if !exact {
            println!("{name}, output {index}: {apart} of {all} elements differ, by up to {most:.3} steps");
        }
        // Outputs in floats differ in their last digits. A NaN is never within the limit.
        let within = most <= allowed && apart as f64 <= ties * all as f64;
        let first = got.iter().zip(want).find(|(got, want)| got != want);
        (!within)
            .then(|| format!("output {index}: {apart} of {all} differ, by up to {most:.3} steps: {first:?}"))
    }
}

/// With two crashed workers, in the arithmetic that the engine chooses and in f64, every layer that is to be coded is, and the
/// outputs are those of the oracle. So are those of the whole graph on this machine.
fn agrees(folder: &Path) -> Result<(), Failed> {
    let case = Case::load(folder);
    let coded = usize::try_from(case.facts["coded"].as_u64().unwrap()).unwrap();
    let mut all = Vec::new();
    for (faults, precision) in [(CRASHED, None), ("0,3:crash", None), (CRASHED, Some(DType::F64))] {
        let run = case.run(faults, precision)?;
        if let Some(difference) = case.difference(run.outputs.iter().map(|output| &output.tensor)) {
            return Err(format!("coded, {faults}, {precision:?}: {difference}").into());
        }
        let on_workers: Vec<_> = run.layers.iter().filter(|layer| layer.why_local.is_none()).collect();
        if on_workers.len() < coded {
            let why: Vec<_> = run.layers.iter().filter_map(|layer| layer.why_local.as_ref()).collect();
            return Err(format!("{} layers on workers, not {coded}: {why:?}", on_workers.len()).into());
        }
        for layer in on_workers {
            assert_eq!(layer.completion, Completion::Exact, "{}: {:?}", layer.name, layer.fallback);
            assert!(
                layer.error_bound == 0.0 || case.facts["oracle"] != "definition",
                "{}",
                layer.error_bound
            );
        }
        all.push(run.outputs.into_iter().map(|output| output.tensor).collect::<Vec<_>>());
    }
    // The answer does not depend on which workers answered, nor on their arithmetic, except after a product in floats.
    if case.facts["oracle"] == "definition" || !case.name.starts_with("network") {
        assert_eq!(all[0], all[1]);
        assert_eq!(all[0], all[2]);
    }
    let host = case.model.on_host()?.run(&case.inputs)?;
    match case.difference(host.iter().map(|output| &output.tensor)) {
        Some(difference) => Err(format!("on the host: {difference}").into()),
        None => Ok(()),
    }
}

/// Negative controls: an expected integer that is one too large, and a missing output; two steps in one element where one is
/// allowed, and one step in too many.
fn a_difference_of_one_is_noticed(folder: &Path, qdq: &Path) -> Result<(), Failed> {
    let mut case = Case::load(folder);
    let run = case.run(CRASHED, None)?;
    let got = || run.outputs.iter().map(|output| &output.tensor);
    assert_eq!(case.difference(got()), None);
    let Tensor::U8(exact) = &mut case.outputs[0] else { return Err("the control needs u8".into()) };
    let last = exact.iter_mut().last().unwrap();
    *last = last.wrapping_add(1);
    assert!(case.difference(got()).is_some());
    case.outputs.clear();
    assert!(case.difference(got()).is_some());
    for (steps, elements, noticed) in [(1, 1, false), (2, 1, true), (1, 40, true)] {
        let mut case = Case::load(qdq);
        let run = case.run(CRASHED, None)?;
        let Tensor::U8(expected) = &mut case.outputs[0] else { return Err("the control needs u8".into()) };
        for value in expected.iter_mut().filter(|value| **value < 250).take(elements) {
            *value += steps;
        }
        let difference = case.difference(run.outputs.iter().map(|output| &output.tensor));
        assert_eq!(difference.is_some(), noticed, "{steps} {elements}: {difference:?}");
    }
    Ok(())
}

/// Workers without f64, such as GPUs: sums that f32 cannot hold stay on this machine, and those for which the file asks in
/// floats are computed in floats.
fn workers_without_f64(folders: &[(String, PathBuf)]) -> Result<(), Failed> {
    let of = |wanted: &str| folders.iter().find(|(name, _)| name == wanted).map(|(_, path)| Case::load(path));
    for (name, local) in [("qlinear_conv_deep", true), ("qdq_conv_i8_i8_relu", false)] {
        let case = of(name).ok_or("there is no such case")?;
        let worker = |i: usize| {
            intercept(CpuWorker::new(format!("cpu-{i}"), 1)).with_info(|info| info.f64 = false).boxed()
        };
        let pool = Pool::new((0..SUBTASKS).map(worker).collect())?;
        let run = case.model.prepare(&pool, &ModelOptions::default())?.run(&case.inputs)?;
        assert_eq!(case.difference(run.outputs.iter().map(|output| &output.tensor)), None, "{name}");
        let why = run.layers[0].why_local.as_deref();
        let named =
            why.is_some_and(|why| why.contains("too large for f32") && why.contains("f64 arithmetic"));
        assert_eq!(named, local, "{why:?}");
        assert!(local || run.layers[0].error_bound > 0.0, "{:?}", run.layers[0]);
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let folders = match oracle::cases("onnx_quantised_cases.py", &[], PACKAGES) {
        Ok(cases) => oracle::folders(&cases),
        Err(why) => return oracle::instead("quantised::operators", PACKAGES, why),
    };
    let count = folders.len();
    let named = |wanted: &str| folders.iter().find(|(name, _)| name == wanted).map(|(_, path)| path.clone());
    let controls = named("qlinear_conv_u8_u8").zip(named("qdq_conv_u8_u8_relu"));
    let mut trials = vec![
        Trial::test("quantised::there_are_enough_cases", move || match count {
            CASES_AT_LEAST.. => Ok(()),
            _ => Err(format!("{count} cases where at least {CASES_AT_LEAST} were expected").into()),
        }),
        Trial::test("quantised::a_difference_of_one_is_noticed", move || {
            let (exact, qdq) = controls.ok_or("there is no control case")?;
            a_difference_of_one_is_noticed(&exact, &qdq)
        }),
    ];
    let all = folders.clone();
    trials.push(Trial::test("quantised::workers_without_f64", move || workers_without_f64(&all)));
    trials.extend(
        folders
            .into_iter()
            .map(|(name, folder)| Trial::test(format!("quantised::{name}"), move || agrees(&folder))),
    );
    trials
}
