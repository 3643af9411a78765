//! Runs a `Loop` iteration by iteration, as one operator on this machine.
//!
//! Relevant if you want to know what a loop costs whose number of iterations depends on data. Its body is translated for the
//! shapes of the values that an iteration gets, and again when these change. Where shapes in the body depend on the values of
//! small arrays of integers, such as the number of the iteration, it is translated for every iteration.
//!
//! Invariant: the trip count and the condition are the only bounds on the number of iterations; a run that is cancelled ends
//! after the current one.

use std::sync::{Arc, Mutex};

use tract_onnx::prelude::{
    DatumType, InferenceFact, InferenceModel, IntoRunnable, SpecialOps, Tensor, TractResult,
};
use tract_onnx::tract_core::internal::{
    DimLike, EvalContext, EvalOp, IntoArcTensor, IntoTValue, IntoTensor, Op, OutletId, StaticName, TValue,
    TVec, TypedFact, TypedModel, TypedOp, TypedSimplePlan, as_op, not_out_of_plan, op_as_typed_op,
};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::{Factoid, InferenceModelExt};

use super::compiled::compile;
use super::conv::{Way, compute_by};
use super::loop_spec::{NAME, Spec};
use super::lower::lower;
use super::transpose;
use super::{branch, cancel};
use crate::memory;
use crate::sync::locked;

/// Maximum number of translations of a body that are kept.
const MOST_PLANS: usize = 8;
/// Maximum number of elements of an array on whose values shapes in the body may depend.
const MOST_PARAMETERS: usize = 64;

/// A loop. Its inputs are those of the node.
#[derive(Clone, Debug)]
pub(super) struct LoopOp {
    pub(super) spec: Arc<Spec>,
    /// The values of inputs of the body that are the same in every iteration and every run.
    pub(super) constants: Vec<Option<Arc<Tensor>>>,
    /// The outputs, as indices of the carried values and then the collected ones.
    pub(super) wanted: Vec<usize>,
    pub(super) facts: TVec<TypedFact>,
    /// The method for its convolutions.
    pub(super) way: Way,
    pub(super) plans: Arc<Mutex<Vec<Plan>>>,
}

/// Types and shapes of the inputs of a body.
type Shapes = Vec<(DatumType, TVec<usize>)>;

/// The body for one set of types and shapes.
#[derive(Debug)]
pub(super) struct Plan {
    inputs: Shapes,
    /// `None` if shapes depend on values.
    plan: Option<Arc<TypedSimplePlan>>,
}

/// What the iterations so far have collected of one output.
#[derive(Default)]
struct Collected {
    all: Vec<Tensor>,
    bytes: u64,
    admitted: u64,
}

impl LoopOp {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let spec = &self.spec;
        let most = if spec.counted { Some(spec.most(&inputs[0])?) } else { None };
        let condition = !spec.conditional || spec.holds(&inputs[usize::from(spec.counted)])?;
        let mut values: Vec<TValue> = inputs[spec.first()..].to_vec();
        let mut collected: Vec<Collected> = (0..spec.collected()).map(|_| Collected::default()).collect();
        let (mut done, mut on) = (0, condition && most != Some(0));
        while on {
            cancel::check()?;
            let outputs = self
                .iteration(done, &values)
                .map_err(|error| error.context(format!("{}, iteration {done}", spec.node)))?;
            done += 1;
            let mut outputs = outputs.into_iter();
            let next = outputs.next().map_or(Ok(false), |condition| spec.holds(&condition))?;
            on = spec.goes_on(next, done.unsigned_abs(), most)?;
            for (value, next) in values[..spec.carried].iter_mut().zip(outputs.by_ref().take(spec.carried)) {
                *value = next;
            }
            for (all, one) in collected.iter_mut().zip(outputs) {
                all.push(spec, one.into_tensor())?;
            }
        }
        let outputs =
            self.wanted.iter().zip(&self.facts).map(|(at, fact)| match at.checked_sub(spec.carried) {
                None => Ok(values[*at].clone()),
                Some(list) => std::mem::take(&mut collected[list]).listed(fact),
            });
        outputs.collect()
    }

    /// The outputs of the body for one iteration.
    fn iteration(&self, number: i64, values: &[TValue]) -> TractResult<TVec<TValue>> {
        let spec = &self.spec;
        let inputs: TVec<TValue> = [spec.number(number).into_tvalue(), spec.truth().into_tvalue()]
            .into_iter()
            .chain(values.iter().cloned())
            .collect();
        self.plan(&inputs)?.run(inputs)
    }

    /// The body for these inputs.
    fn plan(&self, inputs: &[TValue]) -> TractResult<Arc<TypedSimplePlan>> {
        let shapes: Shapes = inputs.iter().map(|value| (value.datum_type(), value.shape().into())).collect();
        let found =
            locked(&self.plans).iter().find(|plan| plan.inputs == shapes).map(|plan| plan.plan.clone());
        let by_shapes = if let Some(plan) = found { plan } else { self.by_shapes(shapes, inputs)? };
        if let Some(plan) = by_shapes {
            return Ok(plan);
        }
        let facts = self.known(inputs, true);
        let graph = self.translated(&facts).or_else(|why| match self.decided(&facts, inputs)? {
            Some(body) => self.finished(body),
            None => Err(why),
        });
        graph?.into_runnable()
    }

    /// The body with the conditions of its branches computed for this iteration, for branches whose results differ in type or
    /// number of axes; `None` if all are known.
    fn decided(&self, facts: &[InferenceFact], inputs: &[TValue]) -> TractResult<Option<InferenceModel>> {
        let mut body = self.with(facts)?;
        let mut any = false;
        loop {
            body.analyse(false)?;
            let mut unknown = None;
            for id in body.eval_order()? {
                let node = body.node(id);
                if node.op.name() == branch::NAME && !body.outlet_fact(node.inputs[0])?.value.is_concrete() {
                    unknown = Some(node.inputs[0]);
                    break;
                }
            }
            let Some(condition) = unknown else { return Ok(any.then_some(body)) };
            let mut part = body.clone();
            part.select_output_outlets(&[condition])?;
            let value = self.finished(part)?.into_runnable()?.run(inputs.iter().cloned().collect())?;
            body.set_outlet_fact(condition, InferenceFact::from(value[0].clone().into_tensor()))?;
            any = true;
        }
    }

    /// The body for inputs of these shapes; `None` if other shapes depend on their values.
    fn by_shapes(&self, shapes: Shapes, inputs: &[TValue]) -> TractResult<Option<Arc<TypedSimplePlan>>> {
        // Operators that need values may refuse to be translated without them.
        let graph = self.translated(&self.known(inputs, false)).ok().filter(is_known);
        let plan = graph.map(|mut graph| {
            compile(&mut graph, |_, _| Ok(false))?;
            graph.compact()?;
            graph.into_runnable()
        });
        let plan = plan.transpose()?;
        let mut plans = locked(&self.plans);
        if plans.len() == MOST_PLANS {
            plans.remove(0);
        }
        plans.push(Plan { inputs: shapes, plan: plan.clone() });
        Ok(plan)
    }

    /// What is known of the inputs of the body: types and shapes, the values of constants and, with `small`, those of small
    /// arrays of integers.
    fn known(&self, inputs: &[TValue], small: bool) -> Vec<InferenceFact> {
        let fixed = [None, None].into_iter().chain(self.constants.iter().cloned());
        let known = inputs.iter().zip(fixed).map(|(value, constant)| {
            let fact = InferenceFact::dt_shape(value.datum_type(), value.shape());
            let integers = value.datum_type().is_integer() || value.datum_type() == DatumType::Bool;
            let value = constant.or_else(|| {
                (small && integers && value.len() <= MOST_PARAMETERS).then(|| value.clone().into_arc_tensor())
            });
            match value {
                Some(value) => InferenceFact { value: value.into(), ..fact },
                None => fact,
            }
        });
        known.collect()
    }

    /// The body, with what is known of its inputs.
    fn with(&self, facts: &[InferenceFact]) -> TractResult<InferenceModel> {
        let mut body = self.spec.body.clone();
        for (at, fact) in facts.iter().enumerate() {
            body.set_input_fact(at, fact.clone())?;
        }
        Ok(body)
    }

    /// The body as a graph of all types and shapes.
    fn translated(&self, facts: &[InferenceFact]) -> TractResult<TypedModel> {
        self.finished(self.with(facts)?)
    }

    /// A part of the body as a graph of all types and shapes.
    fn finished(&self, body: InferenceModel) -> TractResult<TypedModel> {
        let mut graph = lower(body)?;
        if self.way == Way::Definition {
            compute_by(&mut graph, self.way);
            transpose::compute_by(&mut graph, self.way);
        }
        let outputs = graph.output_outlets()?.to_vec();
        let outputs = as_numbers(&mut graph, &format!("{NAME} output"), &outputs)?;
        graph.select_output_outlets(&outputs)?;
        graph.compact()?;
        Ok(graph)
    }
}

/// Whether all shapes of a graph are known.
fn is_known(graph: &TypedModel) -> bool {
    let mut outputs = graph.nodes().iter().flat_map(|node| &node.outputs);
    outputs.all(|output| output.fact.shape.as_concrete().is_some())
}

/// Makes numbers of values that tract computes as sizes.
pub(super) fn as_numbers(
    graph: &mut TypedModel,
    name: &str,
    outlets: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let numbers = outlets.iter().enumerate().map(|(at, outlet)| {
        if graph.outlet_fact(*outlet)?.datum_type != DatumType::TDim {
            return Ok(*outlet);
        }
        // The same value may be there twice.
        let name = format!("{name} {at}.number");
        Ok(graph.wire_node(name, cast(DatumType::I64), &[*outlet])?[0])
    });
    numbers.collect()
}

impl Collected {
    fn push(&mut self, spec: &Spec, one: Tensor) -> TractResult<()> {
        if let Some(first) = self.all.first()
            && first.shape() != one.shape()
        {
            return Err(spec.collects(&format!("{:?} after {:?}", one.shape(), first.shape())));
        }
        self.bytes = self.bytes.saturating_add((one.len() * one.datum_type().size_of()) as u64);
        // Asked for in doublings, since each question reads files. A list is in memory twice when it is put together.
        if self.bytes > self.admitted {
            self.admitted = self.bytes.saturating_mul(2);
            memory::require(&format!("the values that {} collects", spec.node), self.admitted)?;
        }
        self.all.push(one);
        Ok(())
    }

    /// All as one array, where `fact` says what is known of it.
    fn listed(self, fact: &TypedFact) -> TractResult<TValue> {
        if self.all.is_empty() {
            let own = fact.shape.iter().skip(1).map(|size| size.to_usize().unwrap_or(0));
            let shape: Vec<usize> = std::iter::once(0).chain(own).collect();
            return Ok(Tensor::zero_dt(fact.datum_type, &shape)?.into_tvalue());
        }
        let mut all = self.all;
        for one in &mut all {
            one.insert_axis(0)?;
        }
        Ok(Tensor::stack_tensors(0, &all)?.into_tvalue())
    }
}

impl PartialEq for LoopOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.plans, &other.plans) && self.way == other.way
    }
}

impl Eq for LoopOp {}

impl Op for LoopOp {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn mints_runtime_symbols(&self) -> bool {
        self.facts.iter().any(|fact| fact.shape.as_concrete().is_none())
    }

    op_as_typed_op!();
}

impl EvalOp for LoopOp {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.run(&inputs)
    }
}

impl TypedOp for LoopOp {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.facts.clone())
    }

    as_op!();
}
