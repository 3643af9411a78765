//! What a model's file says of its inputs and outputs, and the data of its first run.
//!
//! Relevant if you want to know for which shapes a model is prepared when it is loaded, and which axes are free.
//!
//! Invariant: an axis is described as fixed only if no free axis of an input changes it.

use std::path::Path;

use fcdcc::model::{InputInfo, Model, Tensor};
use fcdcc::{Error, Result};
use ndarray::ArrayD;

use crate::config::ModelConfig;
use crate::datatype::Datatype;

/// Name, element type and shape of an input or output; -1 is a free axis.
#[derive(Clone, Debug)]
pub(crate) struct Fact {
    pub(crate) name: String,
    pub(crate) datatype: Datatype,
    pub(crate) shape: Vec<i64>,
}

fn refused(model: &Model, cause: String) -> Error {
    Error::Model { model: model.name().to_owned(), cause: cause.into() }
}

pub(crate) fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = fcdcc::files::read_text(path)?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

pub(crate) fn input_fact(model: &Model, input: &InputInfo) -> Result<Fact> {
    let datatype = Datatype::of_library(&input.dtype).ok_or_else(|| {
        refused(model, format!("input {} is of type {}, which the protocol lacks", input.name, input.dtype))
    })?;
    let size = |size: &Option<usize>| size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1);
    let shape = input.shape.as_ref().map(|shape| shape.iter().map(size).collect()).unwrap_or_default();
    Ok(Fact { name: input.name.clone(), datatype, shape })
}

/// The shapes for which the model is prepared first: those of the file, of the configuration, or 1 for a free first axis.
pub(crate) fn first_shapes(model: &Model, config: &ModelConfig) -> Result<Vec<Vec<usize>>> {
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
pub(crate) fn output_facts(
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
pub(crate) fn example(datatype: Datatype, shape: &[usize]) -> Tensor {
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
