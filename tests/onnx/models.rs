//! Whole models against onnxruntime, with two of six workers crashed from the start.
//!
//! `scripts/onnx_model_cases.py` makes the models (topologies of the onnx package with random weights, and small ones for
//! every rule of the graph rewriting), their inputs and onnxruntime's outputs; files that are not models must be refused.
//! Without a Python with the packages the suite is shown as ignored, never as passed; with `CI=true` it fails.
//! `FCDCC_MODELS=large` adds the models of hundreds of megabytes (scripts/test_models.sh).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use fcdcc::array::DType;
use fcdcc::model::{GemmChoice, Model, ModelOptions, ModelRun, PreparedModel, Tensor, f16};
use fcdcc::worker::inject;
use fcdcc::{CodeKind, CpuWorker, ErrorKind, LayerOptions, OnShortfall, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};

use crate::cases::{array, facts};

const PACKAGES: &str = "onnx, onnxruntime, numpy";
const LARGE: &[&str] = &["bvlc_alexnet", "vgg19", "densenet121", "inception_v1", "inception_v2", "zfnet512"];

/// Subtasks; two of them crash at their first task, the number that the code tolerates.
const SUBTASKS: usize = 6;
const CRASHED: &str = "1,4:crash";

/// Minimum number of cases of the script.
const CASES_AT_LEAST: usize = 100;

struct Case {
    model: Model,
    inputs: Vec<Tensor>,
    outputs: Vec<(String, Tensor)>,
    conv_nodes: usize,
    transposed_nodes: usize,
    gemm_nodes: usize,
    tolerance: f64,
}

impl Case {
    fn load(folder: &Path) -> Self {
        let json = facts(folder);
        let arrays = |key: &str| -> Vec<(String, Tensor)> {
            let all = json[key].as_array().unwrap().iter();
            all.map(|a| {
                let stored = array(&folder.join(a["file"].as_str().unwrap()));
                let tensor = match (stored, a["dtype"].as_str().unwrap()) {
                    (Tensor::F32(wide), "float16") => wide.mapv(f16::from_f32).into(),
                    (stored, _) => stored,
                };
                (a["name"].as_str().unwrap().into(), tensor)
            })
            .collect()
        };
        let mut model = Model::load(folder.join("model.onnx")).unwrap();
        for (name, tensor) in arrays("inputs") {
            model = model.with_input_shape(&name, tensor.shape()).unwrap();
        }
        let count = |key: &str| usize::try_from(json[key].as_u64().unwrap()).unwrap();
        Self {
            model,
            inputs: arrays("inputs").into_iter().map(|(_, tensor)| tensor).collect(),
            outputs: arrays("outputs"),
            conv_nodes: count("conv_nodes"),
            transposed_nodes: count("conv_transpose_nodes"),
            gemm_nodes: count("gemm_nodes"),
            tolerance: json["tolerance"].as_f64().unwrap(),
        }
    }

    fn run(&self, options: &ModelOptions, faults: &str) -> Result<(PreparedModel, ModelRun), fcdcc::Error> {
        let pool = Pool::new(inject(CpuWorker::fleet(SUBTASKS), &[faults.parse()?], 0)?)?;
        let prepared = self.model.prepare(&pool, options)?;
        let run = prepared.run(&self.inputs)?;
        Ok((prepared, run))
    }

    /// The first wrong output of a run, if any.
    fn difference(&self, run: &ModelRun, tolerance: f64) -> Option<String> {
        if run.outputs.len() != self.outputs.len() {
            return Some(format!("{} outputs where {} were expected", run.outputs.len(), self.outputs.len()));
        }
        run.outputs.iter().zip(&self.outputs).find_map(|(got, (name, want))| {
            if got.name != *name || got.tensor.shape() != want.shape() || got.tensor.dtype() != want.dtype() {
                let of = |n: &str, t: &Tensor| format!("{n} {} {:?}", t.dtype(), t.shape());
                return Some(format!("{} where {} was expected", of(&got.name, &got.tensor), of(name, want)));
            }
            let error = relative_l2(&got.tensor.to_f64(), &want.to_f64());
            // Class indices have no tolerance.
            let tolerance = if matches!(want, Tensor::I64(_)) { 0.0 } else { tolerance };
            let within = error <= tolerance;
            (!within).then(|| format!("{name} differs by {error:.3e}, allowed is {tolerance:.0e}"))
        })
    }
}

fn relative_l2(got: &[f64], want: &[f64]) -> f64 {
    let (error, norm) =
        got.iter().zip(want).fold((0.0, 0.0), |(e, n), (g, w)| (e + (g - w).powi(2), n + w * w));
    (error / f64::max(norm, f64::MIN_POSITIVE)).sqrt()
}

fn options(code: CodeKind, gemm: GemmChoice) -> ModelOptions {
    let layer = LayerOptions { code, ..LayerOptions::default() }.on_shortfall(OnShortfall::Fail);
    ModelOptions { layer, gemm, ..ModelOptions::default() }
}

/// Coded with two crashed workers, every layer is in the report, and the outputs equal those of onnxruntime.
fn agrees(folder: &Path) -> Result<(), Failed> {
    let case = Case::load(folder);
    let small = folder.file_name().unwrap().to_string_lossy().starts_with("small_");
    let gemm = if small { GemmChoice::On } else { GemmChoice::Auto };
    let (prepared, run) = case.run(&options(CodeKind::Crme, gemm), CRASHED)?;
    if let Some(difference) = case.difference(&run, case.tolerance) {
        return Err(difference.into());
    }
    let convs = run.layers.iter().filter(|l| l.op == "Conv").collect::<Vec<_>>();
    assert_eq!(convs.len(), case.conv_nodes, "Conv layers in the report");
    let transposed = run.layers.iter().filter(|l| l.op == "ConvTranspose").count();
    assert_eq!(transposed, case.transposed_nodes, "ConvTranspose layers in the report");
    let gemms = run.layers.len() - convs.len() - transposed;
    let gemms = gemms + prepared.local_layers().filter(|l| l.1 == "Gemm").count();
    assert!(gemms >= case.gemm_nodes, "{gemms} Gemm layers placed, the file has {}", case.gemm_nodes);
    for layer in &run.layers {
        match &layer.why_local {
            Some(why) => assert!(layer.code == "local" && !why.is_empty() && layer.workers.is_empty()),
            None => assert!(layer.used.iter().all(|s| ![1, 4].contains(&s.0)) && layer.fallback.is_none()),
        }
    }
    if small {
        // Uncoded over the workers, and in f64, the graph is rewritten the same way.
        let (_, uncoded) = case.run(&options(CodeKind::Uncoded, gemm), "1,4:delay=0ms")?;
        let wide = ModelOptions { precision: Some(DType::F64), ..options(CodeKind::Crme, gemm) };
        let (_, wide) = case.run(&wide, CRASHED)?;
        for (what, run) in [("uncoded", uncoded), ("f64", wide)] {
            if let Some(difference) = case.difference(&run, case.tolerance) {
                return Err(format!("{what}: {difference}").into());
            }
        }
    }
    // The unmodified graph of the file, which `--compare` uses, must agree too.
    let host = case.model.on_host()?.run(&case.inputs)?;
    for (host, (name, want)) in host.iter().zip(&case.outputs) {
        let error = relative_l2(&host.tensor.to_f64(), &want.to_f64());
        assert!(error <= case.tolerance, "{name} on the host differs by {error:.3e}");
    }
    Ok(())
}

/// A broken file is refused with one line, and nothing panics.
fn is_refused(folder: &Path) -> Result<(), Failed> {
    let input = folder.join("input_0.npy");
    let attempt = || -> fcdcc::Result<()> {
        let model = Model::load(folder.join("model.onnx"))?;
        let pool = Pool::new(CpuWorker::fleet(2))?;
        let layer = LayerOptions::default().tolerate(0);
        let prepared = model.prepare(&pool, &ModelOptions { layer, ..ModelOptions::default() })?;
        let inputs = if input.exists() { vec![array(&input)] } else { Vec::new() };
        prepared.run(&inputs).map(drop)
    };
    match attempt() {
        // A valid graph with nodes merely listed in another order may be accepted.
        Ok(()) if folder.ends_with("broken_unsorted_nodes") => Ok(()),
        Ok(()) => Err(format!("ran, but: {}", facts(folder)["expect"]).into()),
        Err(error) => {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
            assert!(text.contains("model.onnx") && !text.contains('\n') && text.len() < 500, "{text}");
            for word in facts(folder)["says"].as_array().unwrap() {
                assert!(text.contains(word.as_str().unwrap()), "{text} lacks {word}");
            }
            Ok(())
        }
    }
}

/// Negative control: an expected output moved by three tolerances, and one with a NaN in it.
fn a_perturbed_output_is_noticed(folder: &Path) -> Result<(), Failed> {
    let mut case = Case::load(folder);
    let (_, run) = case.run(&options(CodeKind::Crme, GemmChoice::Auto), CRASHED)?;
    assert_eq!(case.difference(&run, case.tolerance), None);
    let Tensor::F32(exact) = case.outputs[0].1.clone() else { return Err("the control needs f32".into()) };
    #[expect(clippy::cast_possible_truncation, reason = "a tolerance is small")]
    let scale = 1.0 + 3.0 * case.tolerance as f32;
    case.outputs[0].1 = exact.mapv(|v| v * scale).into();
    assert!(case.difference(&run, case.tolerance).is_some());
    let mut spoilt = exact;
    *spoilt.iter_mut().last().unwrap() = f32::NAN;
    case.outputs[0].1 = spoilt.into();
    assert!(case.difference(&run, case.tolerance).is_some());
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let suite = |arguments: &[&str]| {
        oracle::cases("onnx_model_cases.py", arguments, PACKAGES).map(|cases| oracle::folders(&cases))
    };
    let mut folders = match suite(&[]) {
        Ok(folders) => folders,
        Err(why) => return oracle::instead("models::onnx_models", PACKAGES, why),
    };
    if std::env::var("FCDCC_MODELS").is_ok_and(|v| v == "large") {
        match suite(LARGE) {
            Ok(large) => folders.extend(large),
            Err(why) => return oracle::instead("models::onnx_models", PACKAGES, why),
        }
    }
    let count = folders.len();
    let control = folders.iter().find(|(name, _)| name == "small_bn_relu").map(|(_, path)| path.clone());
    let mut trials = vec![
        Trial::test("models::there_are_enough_cases", move || match count {
            CASES_AT_LEAST.. => Ok(()),
            _ => Err(format!("{count} cases where at least {CASES_AT_LEAST} were expected").into()),
        }),
        Trial::test("models::a_perturbed_output_is_noticed", move || {
            a_perturbed_output_is_noticed(&control.ok_or("there is no control case")?)
        }),
    ];
    trials.extend(folders.into_iter().map(|(name, folder)| {
        let broken = name.starts_with("broken_");
        Trial::test(
            format!("models::{name}"),
            move || if broken { is_refused(&folder) } else { agrees(&folder) },
        )
    }));
    trials
}
