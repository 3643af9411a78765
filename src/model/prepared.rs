//! A model whose layers are placed on workers, and its runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::{ArrayD, ArrayViewD, IxDyn};
use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::{
    DatumType, IntoTValue, IntoTensor, TValue, TVec, Tensor as TractTensor, TypedSimplePlan, tvec,
};
use tract_onnx::tract_core::plan::eval;

use super::find::LayerOp;
use super::guard::guarded;
use super::load::Model;
use super::memory::ModelMemory;
use super::op::CodedOp;
use super::options::Progress;
use super::tensor::{Tensor, dtype_name};
use crate::array::Element;
use crate::engine::{CodedConv, LayerReport};
use crate::error::{Error, Result};
use crate::worker::CancelToken;

/// A model ready to run any number of times, from several threads at once.
///
/// # Examples
///
/// ```
/// # use fcdcc::{CpuWorker, Model, ModelOptions, Pool};
/// # let pool = Pool::new(CpuWorker::fleet(6))?;
/// # let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// use ndarray::ArrayD;
///
/// let prepared = model.prepare(&pool, &ModelOptions::default())?;
/// let run = prepared.run(&[ArrayD::<f32>::zeros(vec![1, 1, 32, 32]).into()])?;
/// assert_eq!(run.outputs[0].tensor.shape(), [1, 10]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// # use fcdcc::{CpuWorker, Model, ModelOptions, Pool};
/// # let pool = Pool::new(CpuWorker::fleet(6))?;
/// # let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// let prepared = model.prepare(&pool, &ModelOptions::default())?;
/// assert_eq!(prepared.input_shapes(), [("image", [1, 1, 32, 32].as_slice())]);
/// for (name, op, why) in prepared.local_layers() {
///     println!("{name} ({op}) stays on this machine: {why}");
/// }
/// # Ok::<(), fcdcc::Error>(())
/// ```
pub struct PreparedModel {
    pub(super) signature: Signature,
    pub(super) plan: Arc<TypedSimplePlan>,
    pub(super) layers: Vec<CodedLayer>,
    /// Every layer of the file, in the order of the graph.
    pub(super) places: Vec<LayerPlacement>,
    pub(super) memory: ModelMemory,
}

/// The placement of a layer of the file.
#[derive(Debug)]
pub(super) enum LayerPlacement {
    /// On the workers: its index among the coded layers.
    Coded(usize),
    Local(LocalLayer),
}

#[derive(Debug)]
pub(super) struct LocalLayer {
    pub(super) name: String,
    pub(super) op: LayerOp,
    pub(super) why: String,
}

/// The outcome of a run of a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelRun {
    /// The outputs, in the order of the model.
    pub outputs: Vec<Output>,
    /// One report for every Conv node of the file, coded or left on the host, and for every coded fully connected
    /// layer, in the order of the graph.
    pub layers: Vec<LayerReport>,
    /// Duration of the whole run.
    pub total: Duration,
    /// Time that the host spent on its own computations.
    pub host: Duration,
}

/// One output of a model.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name in the file.
    pub name: String,
    /// Its value.
    pub tensor: Tensor,
}

/// A coded layer in the arithmetic it was prepared for.
pub(super) struct CodedLayer {
    op: LayerOp,
    conv: Conv,
}

enum Conv {
    F32(CodedConv<f32>),
    F64(CodedConv<f64>),
}

impl CodedLayer {
    pub(super) fn f32(op: LayerOp, conv: CodedConv<f32>) -> Self {
        Self { op, conv: Conv::F32(conv) }
    }

    pub(super) fn f64(op: LayerOp, conv: CodedConv<f64>) -> Self {
        Self { op, conv: Conv::F64(conv) }
    }

    fn name(&self) -> &str {
        match &self.conv {
            Conv::F32(conv) => conv.name(),
            Conv::F64(conv) => conv.name(),
        }
    }

    fn run(
        &self,
        op: &CodedOp,
        input: &TractTensor,
        cancel: &CancelToken,
    ) -> TractResult<(TractTensor, LayerReport)> {
        let (output, mut report) = match (&self.conv, op.dtype) {
            (Conv::F32(conv), DatumType::F32) => run_as::<f32, f32>(conv, op, input, cancel),
            (Conv::F64(conv), DatumType::F32) => run_as::<f32, f64>(conv, op, input, cancel),
            (Conv::F32(conv), _) => run_as::<f64, f32>(conv, op, input, cancel),
            (Conv::F64(conv), _) => run_as::<f64, f64>(conv, op, input, cancel),
        }?;
        self.op.name().clone_into(&mut report.op);
        Ok((output, report))
    }
}

/// Runs a layer of arithmetic `T` on a tensor of `S` and returns the output in `S`.
fn run_as<S, T>(
    conv: &CodedConv<T>,
    op: &CodedOp,
    input: &TractTensor,
    cancel: &CancelToken,
) -> TractResult<(TractTensor, LayerReport)>
where
    S: Element + tract_onnx::prelude::Datum,
    T: Element,
{
    let shape = conv.shape().input_shape();
    let values = input.try_as_plain_ram()?.as_slice::<S>()?;
    let failed = |error: Error| match error {
        Error::Cancelled => Error::Cancelled,
        error => Error::Layer { layer: conv.name().to_owned(), source: Box::new(error) },
    };
    let view = ArrayViewD::from_shape(IxDyn(&shape), values)?;
    let same = (S::DTYPE == T::DTYPE).then(|| bytemuck::cast_slice::<S, T>(values));
    let run = match same {
        Some(same) => conv.run_cancellable(ArrayViewD::from_shape(IxDyn(&shape), same)?, cancel),
        None => conv.run_cancellable(view.mapv(|v| T::from_f64(v.to_f64())).view(), cancel),
    }
    .map_err(failed)?;
    let output = run.output.into_raw_vec_and_offset().0;
    // f32 and f64 differ in alignment, so the cast succeeds only for equal types.
    let output: Vec<S> = bytemuck::allocation::try_cast_vec::<T, S>(output)
        .unwrap_or_else(|(_, other)| other.into_iter().map(|v| S::from_f64(v.to_f64())).collect());
    let output = ArrayD::from_shape_vec(IxDyn(&op.output), output)?;
    Ok((output.into_tensor(), run.report))
}

impl PreparedModel {
    /// Computes every output from `inputs`, in the model's order.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a wrong number, shape or type of inputs, [`Error::Layer`] with an error of
    /// [`CodedConv::run`] for a layer, [`Error::Model`] when an operator on the host fails.
    pub fn run(&self, inputs: &[Tensor]) -> Result<ModelRun> {
        self.run_observed(inputs, &mut |_| {})
    }

    /// As [`PreparedModel::run`]; `observe` is called after every coded layer.
    ///
    /// # Errors
    /// Those of [`PreparedModel::run`].
    pub fn run_observed(&self, inputs: &[Tensor], observe: &mut dyn FnMut(Progress<'_>)) -> Result<ModelRun> {
        self.run_cancellable(inputs, &CancelToken::new(), observe)
    }

    /// As [`PreparedModel::run_observed`], but ends with [`Error::Cancelled`] once `cancel` is cancelled, from any thread:
    /// in a coded layer at once, else after the operator of the host that is being computed.
    ///
    /// # Errors
    /// Those of [`PreparedModel::run`], and [`Error::Cancelled`].
    pub fn run_cancellable(
        &self,
        inputs: &[Tensor],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelRun> {
        let _span = tracing::info_span!("model", name = self.signature.model).entered();
        let inputs = self.signature.accept(inputs)?;
        let started = Instant::now();
        let mut reports: Vec<Option<LayerReport>> = vec![None; self.layers.len()];
        let mut done = 0;
        let outputs = guarded(&self.signature.model, || {
            let inputs: TVec<TValue> = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
            self.plan.spawn()?.run_plan_with_eval(inputs, |context, state, node, inputs| {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled.into());
                }
                let Some(op) = node.op_as::<CodedOp>() else { return eval(context, state, node, inputs) };
                let layer = &self.layers[op.index];
                let (output, report) = layer.run(op, &inputs[0], cancel)?;
                reports[op.index] = Some(report);
                done += 1;
                observe(Progress { done, total: self.layers.len(), layer: layer.name() });
                Ok::<_, tract_onnx::prelude::TractError>(tvec!(output.into_tvalue()))
            })
        })?;
        let total = started.elapsed();
        let outputs = self.signature.name(&outputs)?;
        let layers: Vec<LayerReport> = self
            .places
            .iter()
            .filter_map(|place| match place {
                LayerPlacement::Coded(index) => reports[*index].take(),
                LayerPlacement::Local(local) if local.op == LayerOp::Conv => {
                    Some(LayerReport::local(&local.name, local.op.name(), &local.why))
                }
                LayerPlacement::Local(_) => None,
            })
            .collect();
        let coded: f64 = layers.iter().map(|l| l.total_ms / 1e3).sum();
        Ok(ModelRun { outputs, layers, total, host: total.saturating_sub(Duration::from_secs_f64(coded)) })
    }

    /// The inputs of the model.
    #[must_use]
    pub fn input_shapes(&self) -> Vec<(&str, &[usize])> {
        self.signature.inputs.iter().map(|i| (i.name.as_str(), i.shape.as_slice())).collect()
    }

    /// The estimated memory.
    #[must_use]
    pub fn memory(&self) -> ModelMemory {
        self.memory
    }

    /// Number of layers on the workers.
    #[must_use]
    pub fn coded_layers(&self) -> usize {
        self.layers.len()
    }

    /// Name, operator and reason of every layer left on the host, fully connected ones included.
    pub fn local_layers(&self) -> impl Iterator<Item = (&str, &'static str, &str)> {
        self.places.iter().filter_map(|place| match place {
            LayerPlacement::Local(local) => Some((local.name.as_str(), local.op.name(), local.why.as_str())),
            LayerPlacement::Coded(_) => None,
        })
    }
}

impl std::fmt::Debug for PreparedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedModel")
            .field("model", &self.signature.model)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

/// Names, shapes and types of the inputs and outputs of a model.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) model: String,
    inputs: Vec<InputFact>,
    outputs: Vec<String>,
}

#[derive(Clone, Debug)]
struct InputFact {
    name: String,
    dtype: DatumType,
    shape: Vec<usize>,
}

impl Signature {
    /// The signature of a model whose shapes are known, as checked by [`Model::typed`].
    pub(super) fn of(model: &Model) -> Result<Self> {
        let input = |(index, info): (usize, &super::load::InputInfo)| {
            let shape = info.fixed_shape().unwrap_or_default();
            Ok(InputFact { name: info.name.clone(), dtype: model.input_type(index)?, shape })
        };
        let inputs = model.inputs().iter().enumerate().map(input).collect::<Result<_>>()?;
        Ok(Self { model: model.name().to_owned(), inputs, outputs: model.outputs().to_vec() })
    }

    /// Checks inputs and converts them for the graph.
    pub(super) fn accept(&self, inputs: &[Tensor]) -> Result<Vec<TractTensor>> {
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
                        format!("{:?} {}", own.shape, dtype_name(own.dtype)),
                        "give data of that shape, or prepare the model for another one",
                    ));
                }
                given.for_model(&own.name, own.dtype)
            })
            .collect()
    }

    /// Adds the names to the outputs of the graph.
    pub(super) fn name(&self, outputs: &[TValue]) -> Result<Vec<Output>> {
        let named = self.outputs.iter().zip(outputs);
        named
            .map(|(name, value)| Ok(Output { name: name.clone(), tensor: Tensor::from_model(name, value)? }))
            .collect()
    }
}
