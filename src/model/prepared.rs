//! A model whose layers are placed on workers, and its runs.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::{
    DatumType, IntoTValue, TValue, TVec, Tensor as TractTensor, TypedSimplePlan, tvec,
};
use tract_onnx::tract_core::plan::eval;

use super::cancel::during;
use super::execute::{Arrays, Execution};
use super::find::LayerOp;
use super::guard::guarded;
use super::memory::ModelMemory;
use super::op::CodedOp;
use super::options::Progress;
use super::runnable::Program;
use super::schedule::Schedule;
use super::segments::{ModelSegment, SegmentReport};
use super::sets::Sets;
use super::signature::{Output, Signature};
use super::steps::Work;
use super::tensor::Tensor;
use super::view::{Given, TensorView};
use crate::array::{DType, Element};
use crate::coding::Code;
use crate::engine::{CodedConv, LayerReport};
use crate::error::{Error, Result};
use crate::worker::CancelToken;

/// A model ready to run any number of times, from several threads at once. Up to 16 runs are in flight, each in memory of
/// its own; further ones wait for one of them.
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
    body: Body,
    /// The memory of the runs.
    sets: Sets,
    layers: Vec<CodedLayer>,
    /// Every layer of the file, in the order of the graph.
    places: Vec<LayerPlacement>,
    memory: ModelMemory,
}

/// What a run computes.
enum Body {
    Program(Program),
    /// Segments in different places, which have the layers.
    Segments(Box<dyn Segmented>),
}

/// A model whose segments are computed in different places.
pub(super) trait Segmented: Send + Sync {
    fn run(
        &self,
        inputs: &[TensorView<'_>],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelRun>;

    fn memory(&self) -> ModelMemory;

    fn coded_layers(&self) -> usize;

    /// Name, operator and reason of every layer left on the host.
    fn local_layers(&self) -> Vec<(&str, &'static str, &str)>;

    fn segments(&self) -> &[ModelSegment];
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
    /// One report for every Conv and ConvTranspose node of the file, coded or left on the host, and for every coded fully connected
    /// layer, in the order of the graph.
    pub layers: Vec<LayerReport>,
    /// One report for every segment, in order; none for a model that is not divided into segments. Layers of segments that
    /// workers compute whole are not among `layers`.
    pub segments: Vec<SegmentReport>,
    /// Duration of the whole run.
    pub total: Duration,
    /// Time that the host spent on its own computations.
    pub host: Duration,
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

    /// The code of the layer.
    pub(super) fn code(&self) -> &Code {
        match &self.conv {
            Conv::F32(conv) => conv.code(),
            Conv::F64(conv) => conv.code(),
        }
    }

    /// The layer, if its arithmetic is that of `T`.
    pub(super) fn conv<T: Element>(&self) -> Option<&CodedConv<T>> {
        match &self.conv {
            Conv::F32(conv) => (conv as &dyn Any).downcast_ref(),
            Conv::F64(conv) => (conv as &dyn Any).downcast_ref(),
        }
    }

    /// Runs the layer from and into slices of the type of the graph.
    fn run<S: Element>(&self, input: &[S], output: &mut [S], cancel: &CancelToken) -> Result<LayerReport> {
        let report = match &self.conv {
            Conv::F32(conv) => run_as(conv, input, output, cancel),
            Conv::F64(conv) => run_as(conv, input, output, cancel),
        };
        let mut report = report.map_err(|error| match error {
            Error::Cancelled => Error::Cancelled,
            error => Error::Layer { layer: self.name().to_owned(), source: Box::new(error) },
        })?;
        self.op.name().clone_into(&mut report.op);
        Ok(report)
    }

    /// As [`CodedLayer::run`], on a tensor of tract.
    fn run_on_tensor(
        &self,
        op: &CodedOp,
        input: &TractTensor,
        cancel: &CancelToken,
    ) -> TractResult<(TractTensor, LayerReport)> {
        let mut output = TractTensor::zero_dt(op.dtype, &op.output)?;
        let from = input.try_as_plain_ram()?;
        let mut to = output.try_as_plain_ram_mut()?;
        let report = match op.dtype {
            DatumType::F32 => self.run(from.as_slice::<f32>()?, to.as_slice_mut()?, cancel)?,
            _ => self.run(from.as_slice::<f64>()?, to.as_slice_mut()?, cancel)?,
        };
        Ok((output, report))
    }
}

/// Runs a layer of arithmetic `T` from and into slices of `S`.
fn run_as<S: Element, T: Element>(
    conv: &CodedConv<T>,
    input: &[S],
    output: &mut [S],
    cancel: &CancelToken,
) -> Result<LayerReport> {
    if S::DTYPE == T::DTYPE {
        return conv.run_slices(bytemuck::cast_slice(input), bytemuck::cast_slice_mut(output), cancel);
    }
    let input: Vec<T> = input.iter().map(|v| T::from_f64(v.to_f64())).collect();
    let mut other = vec![T::default(); output.len()];
    let report = conv.run_slices(&input, &mut other, cancel)?;
    for (to, from) in output.iter_mut().zip(other) {
        *to = S::from_f64(from.to_f64());
    }
    Ok(report)
}

/// The reports of the coded layers of a run, as they end.
struct Reports<'a> {
    model: &'a PreparedModel,
    cancel: &'a CancelToken,
    observe: &'a mut dyn FnMut(Progress<'_>),
    done: usize,
    of_layers: Vec<Option<LayerReport>>,
}

impl Reports<'_> {
    fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn add(&mut self, index: usize, report: LayerReport) {
        self.of_layers[index] = Some(report);
        self.done += 1;
        let (layers, done) = (&self.model.layers, self.done);
        (self.observe)(Progress { done, total: layers.len(), layer: layers[index].name() });
    }
}

impl PreparedModel {
    pub(super) fn new(
        signature: Signature,
        program: Program,
        layers: Vec<CodedLayer>,
        places: Vec<LayerPlacement>,
        memory: ModelMemory,
    ) -> Self {
        let body = Body::Program(program);
        Self { signature, body, sets: Sets::default(), layers, places, memory }
    }

    /// A model whose segments are computed in different places.
    pub(super) fn segmented(signature: Signature, segments: Box<dyn Segmented>) -> Self {
        let memory = segments.memory();
        let (body, layers, places) = (Body::Segments(segments), Vec::new(), Vec::new());
        Self { signature, body, sets: Sets::default(), layers, places, memory }
    }

    /// The segments in which the planner divided the model, if it was to ([`ModelOptions::segments`]).
    ///
    /// [`ModelOptions::segments`]: super::ModelOptions::segments
    #[must_use]
    pub fn segments(&self) -> &[ModelSegment] {
        match &self.body {
            Body::Program(_) => &[],
            Body::Segments(segments) => segments.segments(),
        }
    }

    /// The coded layer of this name.
    pub(super) fn layer(&self, name: &str) -> Option<&CodedLayer> {
        self.layers.iter().find(|layer| layer.name() == name)
    }

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
    /// in a coded layer at once, else after the operator of the host that is being computed, or the iteration of its loop.
    ///
    /// # Errors
    /// Those of [`PreparedModel::run`], and [`Error::Cancelled`].
    pub fn run_cancellable(
        &self,
        inputs: &[Tensor],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelRun> {
        self.run_views(&inputs.iter().map(TensorView::from).collect::<Vec<_>>(), cancel, observe)
    }

    /// As [`PreparedModel::run_cancellable`], on inputs that may lie in memory of others. They are not copied where type and
    /// order are those of the graph.
    ///
    /// # Errors
    /// Those of [`PreparedModel::run_cancellable`].
    pub fn run_views(
        &self,
        inputs: &[TensorView<'_>],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelRun> {
        let _span = tracing::info_span!("model", name = self.signature.model).entered();
        let program = match &self.body {
            Body::Program(program) => program,
            Body::Segments(segments) => return segments.run(inputs, cancel, observe),
        };
        let inputs = self.signature.accept(inputs)?;
        let started = Instant::now();
        let of_layers = vec![None; self.layers.len()];
        let mut reports = Reports { model: self, cancel, observe, done: 0, of_layers };
        let outputs = during(cancel, || match program {
            Program::Fixed(schedule) => self.run_schedule(schedule, &inputs, &mut reports),
            Program::Dynamic(plan) => self.run_plan(plan, inputs, &mut reports),
        })?;
        let total = started.elapsed();
        let mut reports = reports.of_layers;
        let layers: Vec<LayerReport> = self
            .places
            .iter()
            .filter_map(|place| match place {
                LayerPlacement::Coded(index) => reports[*index].take(),
                LayerPlacement::Local(local) if local.op != LayerOp::Gemm => {
                    Some(LayerReport::local(&local.name, local.op.name(), &local.why))
                }
                LayerPlacement::Local(_) => None,
            })
            .collect();
        let coded: f64 = layers.iter().map(|l| l.total_ms / 1e3).sum();
        let segments = Vec::new();
        Ok(ModelRun {
            outputs,
            layers,
            segments,
            total,
            host: total.saturating_sub(Duration::from_secs_f64(coded)),
        })
    }

    /// Runs the steps of a schedule in memory that earlier runs left.
    fn run_schedule(
        &self,
        schedule: &Schedule,
        inputs: &[Given<'_>],
        reports: &mut Reports<'_>,
    ) -> Result<Vec<Output>> {
        let cancel = reports.cancel;
        let mut set = self.sets.take(cancel, || Arrays::new(schedule))?;
        let outputs = guarded(&self.signature.model, || {
            let mut execution = Execution::new(schedule, inputs, &mut set.arrays);
            for step in &schedule.steps {
                reports.check_cancelled()?;
                let Work::Coded { op, output } = &step.work else {
                    execution.step(step)?;
                    continue;
                };
                let layer = &self.layers[op.index];
                let report =
                    match output.dtype {
                        DType::F32 => execution
                            .coded::<f32, _>(step, *output, |from, to| Ok(layer.run(from, to, cancel)?)),
                        DType::F64 => execution
                            .coded::<f64, _>(step, *output, |from, to| Ok(layer.run(from, to, cancel)?)),
                    }?;
                reports.add(op.index, report);
            }
            let operands = self.signature.outputs.iter().zip(&schedule.outputs);
            let tensors = operands.map(|(output, operand)| execution.output(&output.name, operand));
            Ok(self.signature.name(tensors.collect::<TractResult<Vec<_>>>()?))
        })?;
        // A set whose run failed may lack a slot.
        set.done();
        Ok(outputs)
    }

    /// Runs a plan of tract, except its coded layers.
    fn run_plan(
        &self,
        plan: &Arc<TypedSimplePlan>,
        inputs: Vec<Given<'_>>,
        reports: &mut Reports<'_>,
    ) -> Result<Vec<Output>> {
        let outputs = guarded(&self.signature.model, || {
            let inputs: TVec<TValue> =
                inputs.into_iter().map(|given| given.into_tensor().into_tvalue()).collect();
            plan.spawn()?.run_plan_with_eval(inputs, |context, state, node, inputs| {
                reports.check_cancelled()?;
                let Some(op) = node.op_as::<CodedOp>() else { return eval(context, state, node, inputs) };
                let (output, report) = self.layers[op.index].run_on_tensor(op, &inputs[0], reports.cancel)?;
                reports.add(op.index, report);
                Ok::<_, tract_onnx::prelude::TractError>(tvec!(output.into_tvalue()))
            })
        })?;
        self.signature.name_all(&outputs)
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
        match &self.body {
            Body::Program(_) => self.layers.len(),
            Body::Segments(segments) => segments.coded_layers(),
        }
    }

    /// Name, operator and reason of every layer left on the host, fully connected ones included.
    pub fn local_layers(&self) -> impl Iterator<Item = (&str, &'static str, &str)> {
        let own = self.places.iter().filter_map(|place| match place {
            LayerPlacement::Local(local) => Some((local.name.as_str(), local.op.name(), local.why.as_str())),
            LayerPlacement::Coded(_) => None,
        });
        let of_segments = match &self.body {
            Body::Program(_) => Vec::new(),
            Body::Segments(segments) => segments.local_layers(),
        };
        own.chain(of_segments)
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
