//! One version of one model, ready to compute.
//!
//! Relevant if you want to know what loading a model does. A model is prepared for one set of input shapes at a time; a
//! [`Served`] prepares it for each set that clients send, and keeps the sets used last. Requests are computed alone or
//! together, with equal results up to rounding.
//!
//! Invariant: a [`Served`] exists only after a run through the pool gave finite outputs.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fcdcc::model::{InputInfo, Model, ModelOptions, Output, PreparedModel, Tensor};
use fcdcc::{CancelToken, Error, Pool, Result};
use ndarray::ArrayD;

use crate::batch::padded;
use crate::config::ModelConfig;
use crate::datatype::Datatype;
use crate::error::ApiError;
use crate::request::Request;

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

/// Name, element type and shape of an input or output; -1 is a free axis.
#[derive(Clone, Debug)]
pub(crate) struct Fact {
    pub(crate) name: String,
    pub(crate) datatype: Datatype,
    pub(crate) shape: Vec<i64>,
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
    /// The axis of the items in each output, with batching.
    batch_axes: Vec<usize>,
    model: Model,
    engine: Engine,
    prepared: Mutex<Vec<Variant>>,
}

/// The model prepared for one set of shapes; empty while it is being prepared.
struct Variant {
    shapes: Vec<Vec<usize>>,
    model: Arc<Mutex<Option<Arc<PreparedModel>>>>,
}

/// The inputs of a request in the order of the model, and its number of items along the first axis.
pub(crate) struct Accepted {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) items: usize,
}

impl Served {
    /// Reads the model, prepares it, and computes once.
    ///
    /// # Errors
    /// Those of [`Model::load`], [`Model::prepare`] and [`PreparedModel::run`]; [`Error::Model`] for sizes that are open
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
        let served = Self {
            name: name.to_owned(),
            version,
            inputs,
            outputs,
            labels,
            batch_axes,
            model,
            engine: engine.clone(),
            prepared: Mutex::default(),
            config,
        };
        served.first_run(&first)?;
        tracing::info!(model = name, version, seconds = started.elapsed().as_secs_f64(), "loaded");
        Ok(served)
    }

    /// The inputs as the model's file has them.
    pub(crate) fn input_infos(&self) -> &[InputInfo] {
        self.model.inputs()
    }

    fn first_run(&self, shapes: &[Vec<usize>]) -> Result<()> {
        let inputs: Vec<Tensor> =
            self.inputs.iter().zip(shapes).map(|(fact, shape)| example(fact.datatype, shape)).collect();
        let outputs = self.run(&inputs, &CancelToken::new())?;
        for output in &outputs {
            if output.tensor.to_f64().iter().any(|value| !value.is_finite()) {
                let cause = format!("output {} of the first run is not finite: check the model", output.name);
                return Err(Error::Model { model: self.name.clone(), cause: cause.into() });
            }
        }
        if !self.config.verify {
            return Ok(());
        }
        let mut model = self.model.clone();
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

    /// The inputs of a request in the order of the model, checked against its names, types and shapes.
    pub(crate) fn accept(&self, request: &mut Request) -> Result<Accepted, ApiError> {
        let names = || self.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
        if request.inputs.len() != self.inputs.len() {
            let (got, needed) = (request.inputs.len(), self.inputs.len());
            return Err(ApiError::bad(format!(
                "{got} inputs where {needed} were expected: send {}",
                names()
            )));
        }
        for wanted in &request.outputs {
            if !self.outputs.iter().any(|output| output.name == wanted.name) {
                let outputs: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
                let known = outputs.join(", ");
                return Err(ApiError::bad(format!("there is no output {}: it has {known}", wanted.name)));
            }
        }
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for (fact, info) in self.inputs.iter().zip(self.model.inputs()) {
            let Some(index) = request.inputs.iter().position(|input| input.name == fact.name) else {
                return Err(ApiError::bad(format!("input {} is missing: send {}", fact.name, names())));
            };
            let input = request.inputs.swap_remove(index);
            if input.datatype != fact.datatype {
                let (got, needed) = (input.datatype.name(), fact.datatype.name());
                let name = &fact.name;
                return Err(ApiError::bad(format!("input {name} is {got} where {needed} was expected")));
            }
            if !info.admits(input.tensor.shape()) {
                return Err(ApiError::bad(format!(
                    "input {} has shape {:?} where {:?} was expected (-1: any size)",
                    fact.name,
                    input.tensor.shape(),
                    fact.shape
                )));
            }
            tensors.push(input.tensor);
        }
        self.accept_tensors(tensors)
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

    /// Computes requests of one item shape together; the outputs of each.
    pub(crate) fn run_together(
        &self,
        requests: &[(&[Tensor], usize)],
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<Output>>> {
        let batching = self.config.batching.as_ref();
        let items: usize = requests.iter().map(|(_, items)| items).sum();
        let size = if batching.is_some() { padded(batching, items) } else { items };
        if let [(only, _)] = requests
            && size == items
        {
            return Ok(vec![self.run(only, cancel)?]);
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
        let outputs = self.run(&[Tensor::concat(&pieces)?], cancel)?;
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
        Ok(parts)
    }

    fn run(&self, inputs: &[Tensor], cancel: &CancelToken) -> Result<Vec<Output>> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
        let prepared = self.prepared_for(&shapes)?;
        Ok(prepared.run_cancellable(inputs, cancel, &mut |_| {})?.outputs)
    }

    /// The model prepared for these shapes. Threads that need the same shapes wait for the one that prepares them.
    fn prepared_for(&self, shapes: &[Vec<usize>]) -> Result<Arc<PreparedModel>> {
        let variant = {
            let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
            let found = all.iter().position(|variant| variant.shapes == shapes);
            let variant = match found {
                Some(index) => all.remove(index),
                None => Variant { shapes: shapes.to_vec(), model: Arc::default() },
            };
            let model = Arc::clone(&variant.model);
            // The one used last is at the end; those used longest ago go. Runs in progress keep theirs.
            all.push(variant);
            let surplus = all.len().saturating_sub(self.config.max_shapes);
            all.drain(..surplus);
            model
        };
        let mut model = variant.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = &*model {
            return Ok(Arc::clone(prepared));
        }
        let mut shaped = self.model.clone();
        for (fact, shape) in self.inputs.iter().zip(shapes) {
            shaped = shaped.with_input_shape(&fact.name, shape)?;
        }
        let prepared = Arc::new(shaped.prepare(&self.engine.pool, &self.engine.options)?);
        tracing::info!(model = self.name, version = self.version, ?shapes, "prepared");
        *model = Some(Arc::clone(&prepared));
        Ok(prepared)
    }
}

fn refused(model: &Model, cause: String) -> Error {
    Error::Model { model: model.name().to_owned(), cause: cause.into() }
}

fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = fcdcc::files::read_text(path)?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

fn input_fact(model: &Model, input: &InputInfo) -> Result<Fact> {
    let datatype = Datatype::of_library(&input.dtype).ok_or_else(|| {
        refused(model, format!("input {} is of type {}, which the protocol lacks", input.name, input.dtype))
    })?;
    let size = |size: &Option<usize>| size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1);
    let shape = input.shape.as_ref().map(|shape| shape.iter().map(size).collect()).unwrap_or_default();
    Ok(Fact { name: input.name.clone(), datatype, shape })
}

/// The shapes for which the model is prepared first: those of the file, of the configuration, or 1 for a free first axis.
fn first_shapes(model: &Model, config: &ModelConfig) -> Result<Vec<Vec<usize>>> {
    if let Some(unknown) = config.shapes.keys().find(|name| !model.inputs().iter().any(|i| i.name == **name))
    {
        return Err(refused(model, format!("has no input {unknown}, for which a shape is configured")));
    }
    let shape = |input: &InputInfo| {
        if let Some(configured) = config.shapes.get(&input.name) {
            if !input.admits(configured) {
                let (name, own) = (&input.name, &input.described);
                return Err(refused(
                    model,
                    format!("input {name} is {own}, which {configured:?} does not fit"),
                ));
            }
            return Ok(configured.clone());
        }
        let sizes = input.shape.iter().flatten().enumerate();
        let sizes: Option<Vec<usize>> = sizes.map(|(axis, size)| size.or((axis == 0).then_some(1))).collect();
        sizes.filter(|_| input.shape.is_some()).ok_or_else(|| {
            let (name, own) = (&input.name, &input.described);
            let help = "give the shape of the first run as `shapes` in model.toml";
            refused(model, format!("input {name} leaves sizes open, {own}: {help}"))
        })
    };
    model.inputs().iter().map(shape).collect()
}

/// What the outputs are, with -1 for every axis that changes with the free axes of the inputs, and the axes of the batch.
fn output_facts(
    model: &Model,
    first: &[Vec<usize>],
    config: &ModelConfig,
) -> Result<(Vec<Fact>, Vec<usize>)> {
    let shaped = |shapes: &[Vec<usize>]| {
        model
            .inputs()
            .iter()
            .zip(shapes)
            .try_fold(model.clone(), |shaped, (input, shape)| shaped.with_input_shape(&input.name, shape))
    };
    let infos = shaped(first)?.output_infos()?;
    // Every free axis with another size.
    let free = |input: &InputInfo, axis: usize| input.shape.as_ref().is_none_or(|s| s[axis].is_none());
    let grown: Vec<Vec<usize>> = model
        .inputs()
        .iter()
        .zip(first)
        .map(|(input, shape)| {
            shape
                .iter()
                .enumerate()
                .map(|(axis, size)| if free(input, axis) { size * 2 } else { *size })
                .collect()
        })
        .collect();
    let any_free = grown != first;
    // Sizes that do not fit together when all are doubled: then every axis may change.
    let other = if any_free { shaped(&grown)?.output_infos().ok() } else { Some(infos.clone()) };
    let fact = |(index, info): (usize, &fcdcc::model::OutputInfo)| {
        let other = other.as_ref().map(|infos| &infos[index].shape);
        let size = |(axis, size): (usize, &Option<usize>)| {
            let same = other.is_some_and(|shape| shape.get(axis) == Some(size));
            size.filter(|_| same).and_then(|size| i64::try_from(size).ok()).unwrap_or(-1)
        };
        let datatype = Datatype::of_library(info.dtype).unwrap_or(Datatype::Int64);
        let shape = info.shape.iter().enumerate().map(size).collect();
        Fact { name: info.name.clone(), datatype, shape }
    };
    let facts = infos.iter().enumerate().map(fact).collect();
    if config.batching.is_none() {
        return Ok((facts, Vec::new()));
    }
    let open = |input: &InputInfo| !input.shape.as_ref().is_none_or(Vec::is_empty) && free(input, 0);
    if let Some(fixed) = model.inputs().iter().find(|input| !open(input)) {
        let (name, own) = (&fixed.name, &fixed.described);
        let help = "remove [batching] from model.toml, or export the model with a free batch";
        return Err(refused(model, format!("input {name} is {own}, which has no free batch: {help}")));
    }
    Ok((facts, shaped(&grown)?.batch_axes()?))
}

/// Data for a first run: small, uneven enough not to hide a mistake, and the same in every process.
fn example(datatype: Datatype, shape: &[usize]) -> Tensor {
    let wave = |index: usize| (index * 37 % 101) as f32 / 101.0;
    let count: usize = shape.iter().product();
    match datatype {
        Datatype::Fp16 | Datatype::Fp32 => {
            let values = (0..count).map(wave).collect();
            ArrayD::from_shape_vec(shape, values)
                .map_or_else(|_| ArrayD::<f32>::zeros(shape).into(), Tensor::from)
        }
        Datatype::Fp64 => {
            let values = (0..count).map(|index| f64::from(wave(index))).collect();
            ArrayD::from_shape_vec(shape, values)
                .map_or_else(|_| ArrayD::<f64>::zeros(shape).into(), Tensor::from)
        }
        // Zero is a valid index, size and flag.
        Datatype::Bool => ArrayD::from_elem(shape, false).into(),
        Datatype::Uint8 => ArrayD::<u8>::zeros(shape).into(),
        Datatype::Int8 => ArrayD::<i8>::zeros(shape).into(),
        Datatype::Int32 => ArrayD::<i32>::zeros(shape).into(),
        _ => ArrayD::<i64>::zeros(shape).into(),
    }
}
