//! Studies whole models on real workers.
//!
//! A trial is one run of the model: its faults are drawn once and hold for every layer.

use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::compare::Comparison;
use super::methods::Method;
use super::real_workers::{TestPool, Workers, numbers, of_layers, used, without};
use super::runner::{Contestants, MethodRunner, Progress, Trial};
use super::schema::{MethodPlan, Study};
use fcdcc::array::DType;
use fcdcc::engine::LayerOptions;
use fcdcc::error::{Error, ErrorKind, Result};
use fcdcc::model::{Model, ModelOptions, Output, PreparedModel, Tensor};
use fcdcc::worker::{TaskFault, TaskFaults};

/// Tolerated relative error of a model's outputs, unless the sum of the layers' bounds is greater: layers add up their
/// errors, and what lies between them may enlarge them.
const MODEL_ERROR: f64 = 1e-3;

/// Fixes the open sizes of a model (an open batch becomes 1) and draws uniformly distributed inputs for it.
///
/// # Errors
/// [`Error::Model`] for an input that is not an array of floats of a known shape.
pub fn random_inputs(mut model: Model, seed: u64) -> Result<(Model, Vec<Tensor>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut inputs = Vec::new();
    for info in model.inputs().to_vec() {
        let mut shape = info.shape.clone().unwrap_or_default();
        if let Some(batch @ None) = shape.first_mut() {
            *batch = Some(1);
        }
        let sizes: Option<Vec<usize>> = shape.into_iter().collect();
        let Some(sizes) = sizes.filter(|sizes| {
            !sizes.is_empty() && ["f16", "bf16", "f32", "f64"].contains(&info.dtype.as_str())
        }) else {
            let cause = format!(
                "no numbers can be drawn for input {} of shape {} and type {}: give --input",
                info.name, info.described, info.dtype
            );
            return Err(Error::Model { model: model.name().to_owned(), cause: cause.into() });
        };
        let array =
            ndarray::ArrayD::from_shape_vec(sizes.clone(), numbers::<f32>(sizes.iter().product(), &mut rng))
                .expect("as many numbers as the shape has elements");
        inputs.push(array.into());
        if info.fixed_shape().is_none() {
            model = model.with_input_shape(&info.name, &sizes)?;
        }
    }
    Ok((model, inputs))
}

struct ModelContestant<'a> {
    inputs: &'a [Tensor],
    truth: &'a [Vec<f64>],
    arena: TestPool,
    model: PreparedModel,
}

impl MethodRunner for ModelContestant<'_> {
    fn run(&mut self, fates: &[TaskFault], check: bool) -> Result<Trial> {
        let started = Instant::now();
        let (run, work) = self.arena.run(fates, || {
            let run = self.model.run(self.inputs);
            (run, started.elapsed())
        });
        let (run, took) = run;
        let run = match run {
            Ok(run) => run,
            Err(error) if error.kind() == ErrorKind::BadInput => return Err(error),
            Err(error) => {
                let latency_ms = took.as_secs_f64() * 1e3;
                return Ok(Trial {
                    latency_ms,
                    macs: work.macs,
                    failure: Some(error.to_string()),
                    ..Trial::default()
                });
            }
        };
        // Waste is counted in sub-results, although the layers differ in size.
        let used: f64 = run.layers.iter().map(used).sum();
        let bound: f64 = run.layers.iter().map(|layer| layer.error_bound).sum();
        let error = || [furthest(&run.outputs, self.truth), bound.max(MODEL_ERROR)];
        Ok(Trial {
            latency_ms: run.total.as_secs_f64() * 1e3,
            macs: work.macs,
            wasted: if work.sub_results > 0.0 {
                (1.0 - used / work.sub_results).clamp(0.0, 1.0)
            } else {
                0.0
            },
            error: check.then(error),
            ..of_layers(&run.layers)
        })
    }
}

/// The greatest relative L2 error of an output.
fn furthest(outputs: &[Output], truth: &[Vec<f64>]) -> f64 {
    let distance = |(output, truth): (&Output, &Vec<f64>)| {
        let (error, norm) = output
            .tensor
            .to_f64()
            .iter()
            .zip(truth)
            .fold((0.0, 0.0), |(e, n), (got, want)| (e + (got - want).powi(2), n + want * want));
        if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
    };
    // `max` would ignore a NaN.
    outputs.iter().zip(truth).map(distance).fold(0.0, |a, b| if b.is_nan() || b > a { b } else { a })
}

impl Comparison {
    /// Studies a whole model, with all sizes known, on real workers.
    ///
    /// # Errors
    /// The errors of [`study`](super::study()) and of preparing the model.
    pub fn model(
        &mut self,
        model: &Model,
        inputs: &[Tensor],
        precision: Option<DType>,
        workers: Workers<'_>,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<&Study> {
        let host = model.on_host()?.run(inputs)?;
        let truth: Vec<Vec<f64>> = host.iter().map(|output| output.tensor.to_f64()).collect();
        let fates = TaskFaults::new(self.plan.workers);
        let (mut contestants, mut left_out): (Contestants<'_>, Vec<String>) = (Vec::new(), Vec::new());
        for method in &self.methods {
            let admit = || {
                if *method == Method::Mds {
                    let help = "a model's layers are divided by the planner; compare it by --layers";
                    return Err(Error::invalid("method", method.to_string(), help));
                }
                let layer = method.policies(self.plan.workers, self.plan.tolerate, &self.base);
                let plan = model_plan(*method, self.plan.tolerate, &layer);
                let options = ModelOptions { layer, precision, ..ModelOptions::default() };
                let arena = TestPool::new(workers(self.plan.workers)?, &fates)?;
                let prepared = model.prepare(&arena.pool, &options)?;
                Ok((plan, ModelContestant { inputs, truth: &truth, arena, model: prepared }))
            };
            match admit() {
                Ok((plan, contestant)) => contestants.push((plan, Box::new(contestant))),
                Err(error) => left_out.push(without(model.name(), *method, error)?),
            }
        }
        let shapes: Vec<String> = inputs.iter().map(|input| format!("{:?}", input.shape())).collect();
        let frame = Study {
            name: model.name().to_owned(),
            kind: "model".to_owned(),
            shape: shapes.join(", "),
            macs: 0.0,
            workers: self.plan.workers,
            tolerate: self.plan.tolerate,
            plans: Vec::new(),
            scenarios: Vec::new(),
            break_even: Vec::new(),
        };
        let done = self.take(frame, contestants, left_out, observe)?;
        Ok(self.study(done))
    }
}

/// The part of a method's plan that does not depend on a layer.
fn model_plan(method: Method, tolerate: usize, options: &LayerOptions) -> MethodPlan {
    let n = options.subtasks.unwrap_or(0);
    let tolerated = if method.code() == fcdcc::coding::CodeKind::Uncoded { 0 } else { tolerate };
    MethodPlan {
        method: method.name().to_owned(),
        about: method.about().to_owned(),
        code: method.code().to_string(),
        n,
        recovery_threshold: n.saturating_sub(tolerated),
        k_a: 0,
        k_b: 0,
        tolerated,
        work: 0.0,
        upload_bytes: 0.0,
        download_bytes: 0.0,
        filter_bytes: 0.0,
        predicted_ms: None,
    }
}
