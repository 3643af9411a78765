//! Names, shapes and types of the inputs and outputs of a model.
//!
//! The graph of a model of 16-bit floats computes in f32, and its inputs and outputs keep the type of the file: inputs are
//! rounded to it before a run, and outputs after it. Relevant if you want to know which data a model accepts.
//!
//! Invariant: a graph receives only arrays of its own types and shapes.

use tract_onnx::tract_core::internal::{DatumType, TValue};

use super::load::{InputInfo, Model};
use super::round::HalfType;
use super::tensor::{Tensor, dtype_name};
use super::view::{Given, TensorView};
use crate::error::{Error, Result};

/// One output of a model.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name in the file.
    pub name: String,
    /// Its value, in the type of the file.
    pub tensor: Tensor,
}

/// Names, shapes and types of the inputs and outputs of a model.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) model: String,
    pub(super) inputs: Vec<InputFact>,
    pub(super) outputs: Vec<OutputFact>,
}

#[derive(Clone, Debug)]
pub(super) struct InputFact {
    pub(super) name: String,
    /// The type in the graph.
    dtype: DatumType,
    /// The type in the file, if it has 16 bits.
    half: Option<HalfType>,
    pub(super) shape: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct OutputFact {
    pub(super) name: String,
    /// The type in the file, if it has 16 bits.
    half: Option<HalfType>,
}

impl InputFact {
    /// The accepted types, in words.
    fn dtypes(&self) -> String {
        self.half.map_or_else(|| dtype_name(self.dtype), |half| format!("{half} (or f32)"))
    }
}

impl Signature {
    /// The signature of a model whose shapes are known, as checked by [`Model::typed`].
    pub(super) fn of(model: &Model) -> Result<Self> {
        let half = model.half();
        let input = |(index, info): (usize, &InputInfo)| {
            let shape = info.fixed_shape().unwrap_or_default();
            let half = half.inputs.get(&info.name).copied();
            Ok(InputFact { name: info.name.clone(), dtype: model.input_type(index)?, half, shape })
        };
        let inputs = model.inputs().iter().enumerate().map(input).collect::<Result<_>>()?;
        let output = |name: &String| OutputFact { name: name.clone(), half: half.outputs.get(name).copied() };
        let outputs = model.outputs().iter().map(output).collect();
        Ok(Self { model: model.name().to_owned(), inputs, outputs })
    }

    /// Checks inputs and converts those whose type or order differs from that of the graph.
    pub(super) fn accept<'a>(&self, inputs: &[TensorView<'a>]) -> Result<Vec<Given<'a>>> {
        if inputs.len() != self.inputs.len() {
            let names: Vec<&str> = self.inputs.iter().map(|i| i.name.as_str()).collect();
            let expected = format!("{} ({})", names.len(), names.join(", "));
            return Err(Error::mismatch(
                "number of inputs",
                inputs.len(),
                expected,
                "give each input of the model",
            ));
        }
        let pairs = self.inputs.iter().zip(inputs);
        pairs
            .map(|(own, given)| {
                if given.shape() != own.shape {
                    return Err(Error::mismatch(
                        format!("shape of input {}", own.name),
                        given.shape(),
                        format!("{:?} {}", own.shape, own.dtypes()),
                        "give data of that shape, or prepare the model for another one",
                    ));
                }
                match own.half {
                    Some(half) => Given::rounded(given, &own.name, half),
                    None => Given::new(given.clone(), &own.name, own.dtype),
                }
            })
            .collect()
    }

    /// Adds the names to the outputs of the graph, and gives them the types of the file.
    pub(super) fn name(&self, outputs: Vec<Tensor>) -> Vec<Output> {
        let named = self.outputs.iter().zip(outputs);
        named
            .map(|(own, tensor)| {
                let tensor = match own.half {
                    Some(half) => tensor.narrowed(half),
                    None => tensor,
                };
                Output { name: own.name.clone(), tensor }
            })
            .collect()
    }

    /// As [`Signature::name`], of tensors of tract.
    pub(super) fn name_all(&self, outputs: &[TValue]) -> Result<Vec<Output>> {
        let values = self.outputs.iter().zip(outputs);
        let tensors = values.map(|(own, value)| Tensor::from_model(&own.name, value));
        Ok(self.name(tensors.collect::<Result<_>>()?))
    }
}
