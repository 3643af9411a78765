//! One version of one model, ready to compute.
//!
//! Relevant if you want to know what loading a model does. A model is prepared for one set of input shapes at a time; a
//! [`Served`] prepares it for each set that clients send, and keeps the sets used last. Requests are computed alone or
//! together, with equal results up to rounding.
//!
//! Invariant: a [`Served`] exists only after a run through the pool gave finite outputs.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use fcdcc::model::{InputInfo, Model, ModelOptions, ModelShapes, Output, Tensor};
use fcdcc::{CancelToken, Error, Pool, Report, Result};

use crate::batch::padded;
use crate::config::ModelConfig;
use crate::cost::RunTimes;
use crate::error::ApiError;
use crate::facts::{Fact, example, first_shapes, input_fact, output_facts, read_labels};
use crate::pictures::Pictures;
use crate::request::{Content, Named, Request};
use crate::stats::{Stats, Times};
use crate::strings::{BYTES, Strings};

/// The largest relative L2 distance of a verified run from the run without coding: f32 models round differently on the two.
const VERIFY: f64 = 1e-3;

/// A pool and the options with which every model is prepared on it.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The workers.
    pub pool: Pool,
    /// Options of every model.
    pub options: ModelOptions,
}

/// A loaded model.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) config: ModelConfig,
    pub(crate) inputs: Vec<Fact>,
    pub(crate) outputs: Vec<Fact>,
    /// Names of the classes.
    pub(crate) labels: Vec<String>,
    pub(crate) stats: Stats,
    /// The axis of the items in each output, with batching.
    batch_axes: Vec<usize>,
    shapes: ModelShapes,
}

/// The inputs of a request in the order of the model, and its number of items along the first axis.
pub(crate) struct Accepted {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) items: usize,
}

/// What a run of some requests gives.
pub(crate) struct Together {
    /// The outputs of each request.
    pub(crate) parts: Vec<Vec<Output>>,
    pub(crate) report: Report,
    pub(crate) times: Times,
    /// The phases of the run; the queue is left at zero.
    pub(crate) phases: RunTimes,
}

impl Served {
    /// Reads the model, prepares it, and computes once.
    ///
    /// # Errors
    /// Those of [`Model::load`], [`Model::prepare`] and [`ModelShapes::run`]; [`Error::Model`] for sizes that are open
    /// and not configured, for types that the protocol lacks, and where batching is impossible; [`Error::Inexact`] where a
    /// verified run is wrong.
    pub(crate) fn load(
        name: &str,
        version: u64,
        path: &Path,
        config: ModelConfig,
        engine: &Engine,
    ) -> Result<Self> {
        let started = Instant::now();
        let model = Model::load(path)?;
        let labels = config.labels.as_deref().map(read_labels).transpose()?.unwrap_or_default();
        let first = first_shapes(&model, &config)?;
        let inputs = model.inputs().iter().map(|input| input_fact(&model, input)).collect::<Result<_>>()?;
        let (outputs, batch_axes) = output_facts(&model, &first, &config)?;
        let kept = NonZeroUsize::new(config.max_shapes).unwrap_or(NonZeroUsize::MIN);
        let served = Self {
            name: name.to_owned(),
            version,
            inputs,
            outputs,
            labels,
            stats: Stats::default(),
            batch_axes,
            shapes: ModelShapes::new(model, &engine.pool, engine.options.clone(), kept),
            config,
        };
        served.first_run(&first)?;
        tracing::info!(model = name, version, seconds = started.elapsed().as_secs_f64(), "loaded");
        Ok(served)
    }

    /// The inputs as the model's file has them.
    pub(crate) fn input_infos(&self) -> &[InputInfo] {
        self.shapes.model().inputs()
    }

    fn first_run(&self, shapes: &[Vec<usize>]) -> Result<()> {
        let inputs: Vec<Tensor> =
            self.inputs.iter().zip(shapes).map(|(fact, shape)| example(fact.datatype, shape)).collect();
        let (outputs, _) = self.run(&inputs, &CancelToken::new())?;
        for output in &outputs {
            if output.tensor.to_f64().iter().any(|value| !value.is_finite()) {
                let cause = format!("output {} of the first run is not finite: check the model", output.name);
                return Err(Error::Model { model: self.name.clone(), cause: cause.into() });
            }
        }
        if !self.config.verify {
            return Ok(());
        }
        let mut model = self.shapes.model().clone();
        for (fact, shape) in self.inputs.iter().zip(shapes) {
            model = model.with_input_shape(&fact.name, shape)?;
        }
        let expected = model.on_host()?.run(&inputs)?;
        for (output, expected) in outputs.iter().zip(&expected) {
            let (got, want) = (output.tensor.to_f64(), expected.tensor.to_f64());
            let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let off = squares(&mut got.iter().zip(&want).map(|(g, w)| g - w));
            let error = off / squares(&mut want.iter().copied()).max(f64::MIN_POSITIVE);
            // Written so that a NaN fails too.
            if !(off == 0.0 || error <= VERIFY) {
                let what = format!("output {} of the first run of {}", output.name, self.name);
                return Err(Error::Inexact { what, error, bound: VERIFY, help: "check the workers".into() });
            }
        }
        Ok(())
    }

    /// The inputs of a request in the order of the model, checked against its names, types and shapes. Pictures are decoded,
    /// which may take long.
    pub(crate) fn accept(
        &self,
        inputs: Vec<Named>,
        pictures: Option<&dyn Pictures>,
    ) -> Result<Accepted, ApiError> {
        let mut inputs = inputs;
        let names = || self.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
        if inputs.len() != self.inputs.len() {
            let (got, needed) = (inputs.len(), self.inputs.len());
            return Err(ApiError::bad(format!(
                "{got} inputs where {needed} were expected: send {}",
                names()
            )));
        }
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for (fact, info) in self.inputs.iter().zip(self.shapes.model().inputs()) {
            let Some(index) = inputs.iter().position(|input| input.name == fact.name) else {
                return Err(ApiError::bad(format!("input {} is missing: send {}", fact.name, names())));
            };
            let (name, needed) = (&fact.name, fact.datatype.name());
            let tensor = match inputs.swap_remove(index).content {
                Content::Numbers(datatype, tensor) if datatype == fact.datatype => tensor,
                Content::Numbers(datatype, _) => {
                    let got = datatype.name();
                    return Err(ApiError::bad(format!("input {name} is {got} where {needed} was expected")));
                }
                Content::Strings(strings) => self.decoded(info, needed, &strings, pictures)?,
            };
            if !info.admits(tensor.shape()) {
                return Err(ApiError::bad(format!(
                    "input {name} has shape {:?} where {:?} was expected (-1: any size)",
                    tensor.shape(),
                    fact.shape
                )));
            }
            tensors.push(tensor);
        }
        self.accept_tensors(tensors)
    }

    /// Checks the outputs that a request asks for.
    pub(crate) fn check_outputs(&self, request: &Request) -> Result<(), ApiError> {
        for wanted in &request.outputs {
            if !self.outputs.iter().any(|output| output.name == wanted.name) {
                let outputs: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
                let known = outputs.join(", ");
                return Err(ApiError::bad(format!("there is no output {}: it has {known}", wanted.name)));
            }
        }
        Ok(())
    }

    /// The pictures of an input that `model.toml` declares to be one, joined along the first axis.
    fn decoded(
        &self,
        info: &InputInfo,
        needed: &str,
        strings: &Strings,
        pictures: Option<&dyn Pictures>,
    ) -> Result<Tensor, ApiError> {
        let (name, settings) = (&info.name, self.config.picture.as_ref());
        let (Some(pictures), Some(settings)) = (pictures, settings) else {
            return Err(ApiError::bad(format!(
                "input {name} is {BYTES} where {needed} was expected: pictures need the table [picture] in model.toml"
            )));
        };
        if !matches!(strings.shape[..], [_] | [_, 1]) {
            return Err(ApiError::bad(format!(
                "input {name} has {BYTES} of shape {:?} where [N] or [N, 1] was expected, N pictures",
                strings.shape
            )));
        }
        let read = |value: &bytes::Bytes| pictures.read(info, Some(settings), value.to_vec());
        let tensors = strings.values.iter().map(read).collect::<Result<Vec<_>>>()?;
        match <[Tensor; 1]>::try_from(tensors) {
            Ok([one]) => Ok(one),
            Err(several) => Ok(Tensor::concat(&several)?),
        }
    }

    /// Inputs in the order of the model, whose shapes were checked.
    pub(crate) fn accept_tensors(&self, tensors: Vec<Tensor>) -> Result<Accepted, ApiError> {
        let items = tensors.first().and_then(|tensor| tensor.shape().first()).copied().unwrap_or(1);
        if let Some(batching) = &self.config.batching
            && items > batching.max_size
        {
            let most = batching.max_size;
            return Err(ApiError::bad(format!(
                "{items} items where at most {most} are allowed: send fewer at once"
            )));
        }
        Ok(Accepted { tensors, items })
    }

    /// Computes requests of one item shape together.
    pub(crate) fn run_together(
        &self,
        requests: &[(&[Tensor], usize)],
        cancel: &CancelToken,
    ) -> Result<Together> {
        let batching = self.config.batching.as_ref();
        let items: usize = requests.iter().map(|(_, items)| items).sum();
        let size = if batching.is_some() { padded(batching, items) } else { items };
        let started = Instant::now();
        if let [(only, _)] = requests
            && size == items
        {
            let (outputs, report) = self.run(only, cancel)?;
            let times = Times { infer: started.elapsed(), ..Times::default() };
            let phases = RunTimes::of(&report);
            return Ok(Together { parts: vec![outputs], report, times, phases });
        }
        let mut pieces: Vec<Tensor> = requests.iter().filter_map(|(t, _)| t.first().cloned()).collect();
        // The last item again: zeros would make the data uneven, which costs accuracy or time.
        let last = pieces.last().and_then(|piece| {
            let count = piece.shape().first().copied()?;
            piece.part(0, count.checked_sub(1)?..count)
        });
        if let Some(last) = last {
            pieces.extend(std::iter::repeat_n(last, size - items));
        }
        let joined = Tensor::concat(&pieces)?;
        let input = started.elapsed();
        let (outputs, report) = self.run(&[joined], cancel)?;
        let computed = started.elapsed();
        let mut from = 0;
        let mut parts = Vec::with_capacity(requests.len());
        for (_, items) in requests {
            let part = |(output, axis): (&Output, &usize)| {
                let tensor = output.tensor.part(*axis, from..from + items).ok_or_else(|| {
                    let what = format!("axis {axis} of output {}", output.name);
                    Error::mismatch(what, output.tensor.shape(), format!("{size} items"), "report this")
                })?;
                Ok(Output { name: output.name.clone(), tensor })
            };
            parts.push(outputs.iter().zip(&self.batch_axes).map(part).collect::<Result<Vec<_>>>()?);
            from += items;
        }
        let output = started.elapsed().saturating_sub(computed);
        let times = Times { input, infer: computed.saturating_sub(input), output };
        let phases = RunTimes { input, output, ..RunTimes::of(&report) };
        Ok(Together { parts, report, times, phases })
    }

    fn run(&self, inputs: &[Tensor], cancel: &CancelToken) -> Result<(Vec<Output>, Report)> {
        let run = self.shapes.run_cancellable(inputs, cancel)?;
        Ok((run.outputs, Report::new("serve", run.total.as_secs_f64() * 1e3, run.layers)))
    }
}
