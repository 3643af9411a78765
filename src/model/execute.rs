//! Executes a schedule.
//!
//! Invariant: after a run without error, a set of arrays holds the memory that it had before, and can be used again.

use tract_onnx::prelude::{Datum, TractResult};
use tract_onnx::tract_core::internal::{
    EvalContext, IntoTValue, TValue, TVec, Tensor as TractTensor, bail, tvec,
};
use tract_onnx::tract_core::plan::eval;

use super::operators::{ChainStep, LocalConv, Operator, Packed};
use super::schedule::Schedule;
use super::steps::{Step, Target, Work};
use super::tensor::Tensor;
use super::value::{Operand, Place, planned};
use super::view::Given;
use crate::array::{DType, Element, Values};
use crate::conv::{Filters, Scratch};
use crate::ops::{self, BinaryOp, chain, chain_in_place, concat, sum_rows};
use crate::share::threads;

/// The memory of one run at a time.
#[derive(Default)]
pub(super) struct Arrays {
    slots: Vec<Values>,
    single: Scratch<f32>,
    double: Scratch<f64>,
}

/// An element type of tract and of this crate.
pub(super) trait HostElement: Element + Datum {
    /// The scratch memory of convolutions.
    fn scratch(arrays: &mut Arrays) -> &mut Scratch<Self>;
    /// Filters and bias, if they are of this type.
    fn filters(packed: &Packed) -> Option<(&Filters<Self>, &[Self])>;
}

impl HostElement for f32 {
    fn scratch(arrays: &mut Arrays) -> &mut Scratch<Self> {
        &mut arrays.single
    }

    fn filters(packed: &Packed) -> Option<(&Filters<Self>, &[Self])> {
        if let Packed::F32(filters, bias) = packed { Some((filters, bias)) } else { None }
    }
}

impl HostElement for f64 {
    fn scratch(arrays: &mut Arrays) -> &mut Scratch<Self> {
        &mut arrays.double
    }

    fn filters(packed: &Packed) -> Option<(&Filters<Self>, &[Self])> {
        if let Packed::F64(filters, bias) = packed { Some((filters, bias)) } else { None }
    }
}

impl Arrays {
    /// Memory for the slots of a schedule.
    pub(super) fn new(schedule: &Schedule) -> Self {
        let slots = schedule.slots.iter().map(|(dtype, elems)| Values::zeros(*dtype, *elems)).collect();
        Self { slots, single: Scratch::new(), double: Scratch::new() }
    }
}

/// A run in progress.
pub(super) struct Execution<'a, 'inputs> {
    pub(super) inputs: &'a [Given<'inputs>],
    pub(super) arrays: &'a mut Arrays,
    kept: Vec<Option<TValue>>,
}

impl<'a, 'inputs> Execution<'a, 'inputs> {
    pub(super) fn new(schedule: &Schedule, inputs: &'a [Given<'inputs>], arrays: &'a mut Arrays) -> Self {
        Self { inputs, arrays, kept: vec![None; schedule.kept] }
    }

    /// Computes a step that is no coded layer.
    pub(super) fn step(&mut self, step: &Step) -> TractResult<()> {
        match &step.work {
            Work::Coded { .. } => bail!("a coded layer runs on workers"),
            Work::Operator { operator, output } => match output.dtype {
                DType::F32 => self.operator::<f32>(operator, &step.inputs, *output)?,
                DType::F64 => self.operator::<f64>(operator, &step.inputs, *output)?,
            },
            Work::Tract { node, first } => {
                let inputs =
                    step.inputs.iter().map(|input| self.tensor(input)).collect::<TractResult<_>>()?;
                for value in step.ends.iter().filter(|value| **value < *first) {
                    self.kept[*value] = None;
                }
                let outputs = eval(&EvalContext::out_of_plan(), None, node, inputs)?;
                for (place, output) in self.kept[*first..].iter_mut().zip(outputs) {
                    *place = Some(output);
                }
            }
        }
        self.end(step);
        Ok(())
    }

    /// Computes a coded layer by `run`, from and into slices of the type of the graph.
    pub(super) fn coded<S: HostElement, R>(
        &mut self,
        step: &Step,
        output: Target,
        run: impl FnOnce(&[S], &mut [S]) -> TractResult<R>,
    ) -> TractResult<R> {
        let done = self.write_slot(output, |this, to| run(this.slice(&step.inputs[0])?, to))?;
        self.end(step);
        Ok(done)
    }

    fn end(&mut self, step: &Step) {
        for value in &step.ends {
            self.kept[*value] = None;
        }
    }

    /// Calls `write` with the elements of a slot.
    fn write_slot<T: Element, R>(
        &mut self,
        target: Target,
        write: impl FnOnce(&mut Self, &mut [T]) -> TractResult<R>,
    ) -> TractResult<R> {
        let taken = std::mem::replace(&mut self.arrays.slots[target.slot], Values::F32(Vec::new()));
        let Some(mut values) = T::take(taken) else { bail!("a slot of another type") };
        let done = write(self, &mut values[target.offset..target.offset + target.elems]);
        self.arrays.slots[target.slot] = T::wrap(values);
        done
    }

    /// The elements of a value in row-major order.
    fn slice<'s, T: HostElement>(&'s self, operand: &'s Operand) -> TractResult<&'s [T]> {
        let elems = operand.elems();
        let values = match &operand.place {
            Place::Input(index) => self.inputs[*index].as_slice::<T>()?,
            Place::Constant(tensor) => tensor.try_as_plain_ram()?.as_slice::<T>()?,
            Place::Slot(slot, offset) => {
                self.arrays.slots[*slot].as_slice::<T>()?.get(*offset..).unwrap_or_default()
            }
            Place::Kept(value) => match &self.kept[*value] {
                Some(tensor) => tensor.try_as_plain_ram()?.as_slice::<T>()?,
                None => bail!("a value is used after its end"),
            },
        };
        match values.get(..elems) {
            Some(values) => Ok(values),
            None => bail!("a value of {} elements where {elems} are needed", values.len()),
        }
    }

    /// A value for an operator of tract.
    fn tensor(&self, operand: &Operand) -> TractResult<TValue> {
        let copy = |operand: &Operand| match planned(operand.dtype) {
            Some(DType::F32) => TractTensor::from_shape(&operand.shape, self.slice::<f32>(operand)?),
            Some(DType::F64) => TractTensor::from_shape(&operand.shape, self.slice::<f64>(operand)?),
            None => bail!("{:?} has no slot", operand.dtype),
        };
        Ok(match &operand.place {
            Place::Constant(tensor) if *tensor.shape() == operand.shape => TValue::from_const(tensor.clone()),
            Place::Kept(value) => match &self.kept[*value] {
                Some(tensor) => tensor.clone(),
                None => bail!("a value is used after its end"),
            },
            Place::Input(index) => match &self.inputs[*index] {
                Given::Converted(tensor) if *tensor.shape() == operand.shape => tensor.clone().into_tvalue(),
                _ => copy(operand)?.into_tvalue(),
            },
            Place::Constant(_) | Place::Slot(..) => copy(operand)?.into_tvalue(),
        })
    }

    /// An output of the model.
    pub(super) fn output(&self, name: &str, operand: &Operand) -> TractResult<Tensor> {
        let shape = &operand.shape[..];
        match (&operand.place, planned(operand.dtype)) {
            (Place::Slot(..), Some(DType::F32)) => {
                Ok(ndarray::ArrayD::from_shape_vec(shape, self.slice::<f32>(operand)?.to_vec())?.into())
            }
            (Place::Slot(..), Some(DType::F64)) => {
                Ok(ndarray::ArrayD::from_shape_vec(shape, self.slice::<f64>(operand)?.to_vec())?.into())
            }
            _ => {
                let value = self.tensor(operand)?;
                Ok(Tensor::from_model(name, &value)?)
            }
        }
    }

    fn operator<T: HostElement>(
        &mut self,
        operator: &Operator,
        inputs: &[Operand],
        output: Target,
    ) -> TractResult<()> {
        self.write_slot(output, |this, to| {
            match operator {
                Operator::Chain(steps) => this.chain::<T>(steps, inputs, output, to)?,
                Operator::Conv(conv) => this.conv::<T>(conv, &inputs[0], to)?,
                Operator::Pool(pooling) => pooling.run(this.slice::<T>(&inputs[0])?, to),
                Operator::Lrn { lrn, channels, plane } => {
                    lrn.run(*channels, *plane, this.slice::<T>(&inputs[0])?, to);
                }
                Operator::Concat { outer } => {
                    let mut rows: TVec<(&[T], usize)> = tvec!();
                    for input in inputs {
                        rows.push((this.slice(input)?, input.elems() / (*outer).max(1)));
                    }
                    concat(&rows, *outer, to);
                }
                Operator::Permute(permutation) => permutation.run(this.slice::<T>(&inputs[0])?, to),
                Operator::Interleave(interleave, fill) => {
                    interleave.run(this.slice::<T>(&inputs[0])?, fill, to);
                }
                Operator::SumRows(length) => sum_rows(this.slice::<T>(&inputs[0])?, *length, to),
                Operator::Unary(function) => function.run(this.slice::<T>(&inputs[0])?, to),
                Operator::Softmax(softmax) => softmax.run(this.slice::<T>(&inputs[0])?, to),
                Operator::Dense(dense) => {
                    dense.run(this.slice::<T>(&inputs[0])?, this.slice::<T>(&inputs[1])?, to);
                }
            }
            Ok(())
        })
    }

    fn chain<T: HostElement>(
        &self,
        steps: &[ChainStep],
        inputs: &[Operand],
        output: Target,
        to: &mut [T],
    ) -> TractResult<()> {
        let mut ready: TVec<ops::Step<'_, T>> = tvec!();
        for (ChainStep { op, inner, .. }, operand) in steps.iter().zip(&inputs[1..]) {
            ready.push(ops::Step { op: *op, values: self.slice::<T>(operand)?, inner: *inner });
        }
        match inputs[0].place {
            Place::Slot(slot, offset) if (slot, offset) == (output.slot, output.offset) => {
                chain_in_place(to, &ready);
            }
            _ => chain(self.slice::<T>(&inputs[0])?, &ready, to),
        }
        Ok(())
    }

    fn conv<T: HostElement>(&mut self, conv: &LocalConv, input: &Operand, to: &mut [T]) -> TractResult<()> {
        let Some((filters, bias)) = T::filters(&conv.filters) else { bail!("filters of another type") };
        // The scratch is moved out while the input is borrowed.
        let mut scratch = std::mem::take(T::scratch(self.arrays));
        let threads = threads();
        let done =
            conv.kernel
                .run(&mut scratch, self.slice(input)?, &[filters], &mut [&mut *to], threads, &|| false);
        *T::scratch(self.arrays) = scratch;
        done?;
        if bias.iter().any(|b| *b != T::default()) {
            let inner = conv.kernel.shape().output_plane();
            chain_in_place(to, &[ops::Step { op: BinaryOp::Add, values: bias, inner }]);
        }
        Ok(())
    }
}
