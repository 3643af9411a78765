//! Operators on a batch of sequences of different lengths.
//!
//! - `ReverseSequence` reverses the first elements of each sequence.
//! - [`ENDED`] ends what a recurrent layer made of longer sequences ([`recurrent`](super::recurrent)).
//! - [`WHOLE`] makes sure that all sequences are as long as the data.
//!
//! Relevant if you want to know what becomes of elements behind the end of a sequence.
//!
//! Invariant: a length that the data do not have is an error.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{DatumType, SpecialOps, Tensor, TractResult};
use tract_onnx::tract_core::internal::{
    DatumTypeExt, EvalContext, EvalOp, IntoTValue, Op, OutletId, StaticName, TDim, TValue, TVec, TypedFact,
    TypedModel, TypedOp, args_2, as_op, bail, op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::{attribute, called, is_standard};

/// The operator of the standard.
pub(super) const REVERSED: &str = "ReverseSequence";
/// Makes the outputs of a recurrent layer for sequences that end, from those for sequences that do not: zeros behind the end,
/// and the state at the end. The name cannot occur in a file.
pub(super) const ENDED: &str = "Ended sequences";
/// Reverses the outputs of a recurrent layer, as `ReverseSequence` does its data.
pub(super) const RESTORED: &str = "Reversed steps";
/// Hands on its first input, if the lengths in the second one are that of the data.
pub(super) const WHOLE: &str = "Whole sequences";

/// What follows the description of a node of the file in the names of the operators that stand for it.
pub(super) const PART: &str = " (sequences)";

/// Whether a node is parsed here.
pub(super) fn takes(node: &NodeProto) -> bool {
    node.op_type == REVERSED && is_standard(node)
}

/// The axes of batch and time, and which of the operators works on them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sequences {
    /// The description of the node of the file in messages.
    node: String,
    batch: usize,
    time: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reversed,
    Ended,
    Whole,
}

/// The parser of `ReverseSequence` for tract's operator register.
///
/// # Errors
/// For axes other than 0 and 1, one each.
pub(super) fn parse_reversed(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let axis = |name: &str, default: i64| attribute(node, name).map_or(default, |own| own.i);
    let (batch, time) = match (axis("batch_axis", 1), axis("time_axis", 0)) {
        (1, 0) => (1, 0),
        (0, 1) => (0, 1),
        (batch, time) => bail!(
            "{}: attributes batch_axis and time_axis are {batch} and {time}: give 0 for one and 1 for the other",
            called(node)
        ),
    };
    Ok((expand(Sequences { node: called(node), batch, time, kind: Kind::Reversed }), vec![]))
}

/// The parser of [`ENDED`] and [`RESTORED`] for tract's operator register.
///
/// # Errors
/// None.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all parsers")]
pub(super) fn parse_outputs(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    // Outputs are [steps, directions, batch, hidden], or [batch, steps, directions, hidden].
    let (batch, time) = if is_batch_first(node) { (0, 1) } else { (2, 0) };
    let kind = if node.op_type == ENDED { Kind::Ended } else { Kind::Reversed };
    Ok((expand(Sequences { node: described(node), batch, time, kind }), vec![]))
}

/// The parser of [`WHOLE`] for tract's operator register.
///
/// # Errors
/// None.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all parsers")]
pub(super) fn parse_whole(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let (batch, time) = if is_batch_first(node) { (0, 1) } else { (1, 0) };
    Ok((expand(Sequences { node: described(node), batch, time, kind: Kind::Whole }), vec![]))
}

/// The description of the node of the file that an operator stands for.
fn described(node: &NodeProto) -> String {
    node.name.split_once(PART).map_or(&*node.name, |(described, _)| described).to_owned()
}

/// Whether the batch is the first axis of the data of a recurrent layer.
pub(super) fn is_batch_first(node: &NodeProto) -> bool {
    attribute(node, "layout").is_some_and(|layout| layout.i == 1)
}

impl Sequences {
    /// The length of each of `batch` sequences of at most `most` elements.
    fn lengths(&self, lengths: &Tensor, batch: usize, most: usize) -> TractResult<Vec<usize>> {
        let lengths = lengths.cast_to::<i64>()?;
        let view = lengths.try_as_plain_ram()?;
        let lengths = view.as_slice::<i64>()?;
        if lengths.len() != batch {
            bail!("{}: it has {} lengths for {batch} sequences: give one for each", self.node, lengths.len());
        }
        let own = |length: &i64| usize::try_from(*length).ok().filter(|length| *length <= most);
        let Some(own) = lengths.iter().map(own).collect() else {
            bail!(
                "{}: its lengths are {lengths:?} for sequences of {most} elements: give lengths from 0 to {most}",
                self.node
            );
        };
        Ok(own)
    }

    /// The number of outputs.
    fn outputs(&self) -> usize {
        if self.kind == Kind::Ended { 2 } else { 1 }
    }

    /// Makes sure that the lengths are known, and are that of the data.
    fn check_whole(&self, data: &TypedFact, lengths: &TypedFact) -> TractResult<()> {
        let steps = &data.shape[self.time];
        let known = lengths.konst.as_ref().and_then(|known| known.cast_to::<i64>().ok());
        let Some(known) = known else {
            bail!(
                "{}: the lengths of its sequences depend on data, which is not supported where the final cell state is an \
                 output: leave out the input sequence_lens or the output Y_c",
                self.node
            );
        };
        let view = known.try_as_plain_ram()?;
        let known = view.as_slice::<i64>()?;
        if known.iter().any(|length| TDim::from(*length) != *steps) {
            bail!(
                "{}: the lengths of its sequences are {known:?} where the data have {steps} steps, which is not supported where \
                 the final cell state is an output: leave out the input sequence_lens or the output Y_c",
                self.node
            );
        }
        Ok(())
    }
}

impl Expansion for Sequences {
    fn name(&self) -> StaticName {
        match self.kind {
            Kind::Reversed => REVERSED,
            Kind::Ended => ENDED,
            Kind::Whole => WHOLE,
        }
        .into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if inputs.len() != 2 || outputs.len() != self.outputs() {
            bail!("{}: it has {} inputs: give data and lengths", self.node, inputs.len());
        }
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].shape, &outputs[0].shape)?;
        if let Some(last) = outputs.get(1) {
            solver.equals(&inputs[0].datum_type, &last.datum_type)?;
            solver.equals(&last.rank, 3)?;
            for axis in 0..3 {
                let from = axis + usize::from(axis >= self.time);
                solver.equals(&inputs[0].shape[from], &last.shape[axis])?;
            }
        }
        solver.equals(&inputs[1].rank, 1)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let data = model.outlet_fact(inputs[0])?.clone();
        if data.rank() <= self.batch.max(self.time) {
            bail!("{}: its data have {} axes: give a batch of sequences", self.node, data.rank());
        }
        if self.kind == Kind::Whole {
            self.check_whole(&data, model.outlet_fact(inputs[1])?)?;
            return Ok(tvec!(inputs[0]));
        }
        let mut wires: TVec<OutletId> = inputs.into();
        for (slot, wire) in wires.iter_mut().enumerate() {
            if model.outlet_fact(*wire)?.datum_type == DatumType::TDim {
                *wire =
                    model.wire_node(format!("{prefix}.number {slot}"), cast(DatumType::I64), &[*wire])?[0];
            }
        }
        model.wire_node(prefix, self.clone(), &wires)
    }
}

impl Op for Sequences {
    fn name(&self) -> StaticName {
        Expansion::name(self)
    }

    op_as_typed_op!();
}

impl EvalOp for Sequences {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (data, lengths) = args_2!(inputs);
        let (dtype, shape) = (data.datum_type(), data.shape());
        let (steps, batch) = (shape[self.time], shape[self.batch]);
        let lengths = self.lengths(&lengths, batch, steps)?;
        if !dtype.is_copy() {
            bail!("{}: its elements are {dtype:?}: use numbers", self.node);
        }
        // Behind the last of both axes, and between them.
        let (first, second) = (self.time.min(self.batch), self.time.max(self.batch));
        let inner = shape[second + 1..].iter().product::<usize>() * dtype.size_of();
        let between: usize = shape[first + 1..second].iter().product();
        let place = |step: usize, item: usize, at: usize| {
            let (outer, within) = if self.time < self.batch { (step, item) } else { (item, step) };
            let index = (outer * between + at) * shape[second] + within;
            index * inner..(index + 1) * inner
        };
        let from = data.try_as_plain_ram()?;
        let from = from.as_bytes();
        let mut made = Tensor::zero_dt(dtype, shape)?;
        let mut last_shape = shape.to_vec();
        last_shape.remove(self.time);
        let mut last = Tensor::zero_dt(dtype, &last_shape)?;
        {
            let (mut made, mut last) = (made.try_as_plain_ram_mut()?, last.try_as_plain_ram_mut()?);
            let (made, last) = (made.as_bytes_mut(), last.as_bytes_mut());
            for (item, length) in lengths.into_iter().enumerate() {
                for at in 0..between {
                    for step in 0..steps {
                        let source = match self.kind {
                            Kind::Ended if step >= length => continue,
                            Kind::Reversed if step < length => length - 1 - step,
                            _ => step,
                        };
                        made[place(step, item, at)].copy_from_slice(&from[place(source, item, at)]);
                    }
                    if self.kind == Kind::Ended && length > 0 {
                        // There is one direction, so that items follow each other in both orders of axes.
                        let index = (at * batch + item) * inner;
                        last[index..index + inner].copy_from_slice(&from[place(length - 1, item, at)]);
                    }
                }
            }
        }
        Ok([made, last].into_iter().take(self.outputs()).map(IntoTValue::into_tvalue).collect())
    }
}

impl TypedOp for Sequences {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut facts = tvec!(inputs[0].without_value());
        if self.kind == Kind::Ended {
            let dims = inputs[0].shape.iter().enumerate().filter(|(axis, _)| *axis != self.time);
            facts.push(inputs[0].datum_type.fact(dims.map(|(_, dim)| dim.clone()).collect::<TVec<TDim>>()));
        }
        Ok(facts)
    }

    as_op!();
}
