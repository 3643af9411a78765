//! Compiles a graph whose sizes are all known into steps over planned memory.
//!
//! Every array of floats that a step writes has its place in a slot: memory that is reused for arrays that are not needed at
//! the same time ([`slots`](super::slots)). Coded layers, convolutions and the operators of [`ops`](crate::ops) read and
//! write slots; every other operator runs in tract, which allocates its outputs.
//!
//! Relevant if you want to know what an operator of a model runs in, or to add one.
//!
//! Invariant: operators are joined only into chains, in their order, and only where nothing else reads the value between
//! them.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::{EvalContext, OutletId, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::source::TypedSource;

use super::op::CodedOp;
use super::operators::{self, Operator};
use super::slots::assign;
use super::steps::{Draft, DraftWork, Step};
use super::value::{Operand, Place, planned};
use crate::array::DType;

/// The steps of a model in their order.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) steps: Vec<Step>,
    /// Type and number of elements of each slot.
    pub(super) slots: Vec<(DType, usize)>,
    /// Number of kept values.
    pub(super) kept: usize,
    pub(super) outputs: Vec<Operand>,
}

/// Whether the sizes of all arrays are known and no operator has a state: only then memory can be planned.
pub(super) fn is_fixed(graph: &TypedModel) -> TractResult<bool> {
    for node in graph.nodes() {
        let sizes = node.outputs.iter().all(|output| output.fact.shape.as_concrete().is_some());
        if !sizes || node.op.state(&EvalContext::out_of_plan())?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Drafting<'a> {
    graph: &'a TypedModel,
    places: HashMap<OutletId, Place>,
    /// Type and elements of each planned value.
    values: Vec<(DType, usize)>,
    kept: usize,
    drafts: Vec<Option<Draft>>,
}

impl Schedule {
    /// The schedule of a graph for which [`is_fixed`] holds.
    pub(super) fn of(graph: &TypedModel) -> TractResult<Self> {
        let (places, values) = (HashMap::new(), Vec::new());
        let mut drafting = Drafting { graph, places, values, kept: 0, drafts: Vec::new() };
        for (index, input) in graph.input_outlets()?.iter().enumerate() {
            drafting.places.insert(*input, Place::Input(index));
        }
        for id in graph.eval_order()? {
            drafting.node(graph.node(id))?;
        }
        let outputs = graph.output_outlets()?.iter().map(|outlet| drafting.operand(*outlet));
        let outputs = outputs.collect::<TractResult<Vec<_>>>()?;
        join_chains(&mut drafting.drafts, &outputs);
        let Drafting { values, kept, drafts, .. } = drafting;
        let (steps, slots, outputs) = assign(drafts.into_iter().flatten().collect(), values, outputs);
        Ok(Self { steps, slots, kept, outputs })
    }
}

impl Drafting<'_> {
    fn operand(&self, outlet: OutletId) -> TractResult<Operand> {
        let fact = self.graph.outlet_fact(outlet)?;
        let shape = fact.shape.as_concrete().unwrap_or_default().to_vec();
        Ok(Operand { place: self.places[&outlet].clone(), dtype: fact.datum_type, shape })
    }

    fn node(&mut self, node: &TypedNode) -> TractResult<()> {
        let outlet = OutletId::new(node.id, 0);
        if node.op_is::<TypedSource>() {
            return Ok(());
        }
        if let Some(constant) = node.op_as::<Const>() {
            self.places.insert(outlet, Place::Constant(Arc::clone(constant.val())));
            return Ok(());
        }
        let inputs = node.inputs.iter().map(|input| self.operand(*input)).collect::<TractResult<Vec<_>>>()?;
        let slot = |this: &mut Self| {
            let fact = &node.outputs[0].fact;
            let value = this.values.len();
            let elems = fact.shape.as_concrete().unwrap_or_default().iter().product();
            this.values.push((planned(fact.datum_type)?, elems));
            this.places.insert(outlet, Place::Slot(value, 0));
            Some(value)
        };
        if let Some(op) = node.op_as::<CodedOp>() {
            if let Some(value) = slot(self) {
                let work = DraftWork::Coded(op.clone(), value);
                self.drafts.push(Some(Draft { work, inputs }));
                return Ok(());
            }
        } else if operators::only_renames(node)
            && planned(inputs[0].dtype).is_some()
            && !matches!(inputs[0].place, Place::Kept(_))
        {
            self.places.insert(outlet, inputs[0].place.clone());
            return Ok(());
        } else if let Some((operator, inputs)) = operators::operator(self.graph, node, &inputs)?
            && let Some(value) = slot(self)
        {
            self.drafts.push(Some(Draft { work: DraftWork::Operator(operator, value), inputs }));
            return Ok(());
        }
        for index in 0..node.outputs.len() {
            self.places.insert(OutletId::new(node.id, index), Place::Kept(self.kept + index));
        }
        let work = DraftWork::Tract(Box::new(node.clone()), self.kept);
        self.kept += node.outputs.len();
        self.drafts.push(Some(Draft { work, inputs }));
        Ok(())
    }
}

/// Joins a chain to the one that makes its data, where nothing else reads that.
fn join_chains(drafts: &mut [Option<Draft>], outputs: &[Operand]) {
    let mut uses: HashMap<usize, usize> = HashMap::new();
    let inputs = drafts.iter().flatten().flat_map(|draft| &draft.inputs);
    for operand in inputs.chain(outputs) {
        if let Place::Slot(value, _) = operand.place {
            *uses.entry(value).or_default() += 1;
        }
    }
    let mut makers: HashMap<usize, usize> = HashMap::new();
    for index in 0..drafts.len() {
        let Some(draft) = &drafts[index] else { continue };
        let DraftWork::Operator(Operator::Chain(steps), value) = &draft.work else { continue };
        makers.insert(*value, index);
        let maker = |operand: &Operand| match operand.place {
            Place::Slot(value, _) if uses[&value] == 1 => makers.get(&value).copied(),
            _ => None,
        };
        // A chain begins with one step on two operands; where both have all elements, either can be the data.
        let swapped = steps.iter().all(|step| step.swappable);
        let Some((maker, data)) = [0, 1]
            .into_iter()
            .take(1 + usize::from(swapped))
            .find_map(|at| Some((maker(&draft.inputs[at])?, at)))
        else {
            continue;
        };
        let Some(Draft { work: DraftWork::Operator(Operator::Chain(mut first), _), inputs: mut all }) =
            drafts[maker].take()
        else {
            continue;
        };
        let Some(Draft { work: DraftWork::Operator(Operator::Chain(steps), value), mut inputs }) =
            drafts[index].take()
        else {
            continue;
        };
        inputs.remove(data);
        first.extend(steps.into_iter().map(|step| if data == 1 { step.swapped() } else { step }));
        all.extend(inputs);
        makers.insert(value, index);
        let work = DraftWork::Operator(Operator::Chain(first), value);
        drafts[index] = Some(Draft { work, inputs: all });
    }
}

#[cfg(test)]
mod tests {
    use super::super::loaded::loaded;
    use super::super::steps::Work;
    use super::super::testing::{Attributes, Net};
    use super::*;

    fn schedule(net: Net) -> Schedule {
        let graph = loaded(net).and_then(|model| model.typed()).unwrap();
        assert!(is_fixed(&graph).unwrap());
        Schedule::of(&graph).unwrap()
    }

    fn operators(schedule: &Schedule) -> Vec<String> {
        let name = |step: &Step| match &step.work {
            Work::Coded { .. } => "Coded".to_owned(),
            Work::Operator { operator: Operator::Chain(steps), .. } => format!("Chain {}", steps.len()),
            Work::Operator { operator, .. } => {
                format!("{operator:?}").split(['(', ' ']).next().unwrap().to_owned()
            }
            Work::Tract { node, .. } => format!("tract {}", node.op.name()),
        };
        schedule.steps.iter().map(name).collect()
    }

    #[test]
    fn a_chain_is_one_step_unless_something_else_reads_between() {
        let mut net = Net::new(&[1, 2, 3]);
        net.floats("k", &[3], &[1.0, 2.0, 3.0]);
        net.node("Relu", &["x"], "a");
        net.node("Add", &["a", "k"], "b");
        net.node("Sub", &["k", "b"], "c");
        net.node("Mul", &["c", "b"], "y");
        // `b` is read twice.
        let schedule = schedule(net);
        assert_eq!(operators(&schedule), ["Chain 2", "Chain 2"]);
        let Work::Operator { operator: Operator::Chain(steps), .. } = &schedule.steps[1].work else {
            panic!()
        };
        assert_eq!(steps[0].op, crate::ops::BinaryOp::ReverseSub);
        // The second chain may not overwrite its data, which it also multiplies with.
        assert_eq!(schedule.slots.len(), 2);
    }

    #[test]
    fn slots_are_used_again_and_grow() {
        let mut net = Net::new(&[1, 2, 4, 4]);
        net.node("MaxPool", &["x"], "a").ints("kernel_shape", &[2, 2]);
        net.node("Concat", &["a", "a"], "b").int("axis", 1);
        net.node("MaxPool", &["b"], "c").ints("kernel_shape", &[1, 1]);
        net.node("AveragePool", &["c"], "y").ints("kernel_shape", &[3, 3]);
        let schedule = schedule(net);
        // The second part of `b` is copied, through memory of its own.
        assert_eq!(operators(&schedule), ["Pool", "Chain 0", "Chain 0", "Pool", "Pool"]);
        assert_eq!(schedule.slots, [(DType::F32, 36), (DType::F32, 36)]);
    }

    #[test]
    fn values_are_written_to_their_places_in_concatenations() {
        let mut net = Net::new(&[1, 2, 3, 3]);
        net.floats("k", &[1, 1, 3, 3], &[7.0; 9]);
        // As in a dense block: each concatenation is the beginning of the next.
        net.node("Relu", &["x"], "a");
        net.node("MaxPool", &["a"], "b").ints("kernel_shape", &[3, 3]).ints("pads", &[1, 1, 1, 1]);
        net.node("Concat", &["a", "b"], "c").int("axis", 1);
        net.node("Neg", &["c"], "d");
        net.node("Concat", &["c", "k", "a"], "y").int("axis", 1);
        let schedule = schedule(net);
        let placed: Vec<(usize, usize, usize)> = schedule
            .steps
            .iter()
            .filter_map(|step| match &step.work {
                Work::Operator { output, .. } => Some((output.slot, output.offset, output.elems)),
                _ => None,
            })
            .collect();
        // `b` reads `a`, so that it is not written beside it but copied, as are the constant and the second use of `a`.
        let slots: Vec<usize> = placed.iter().map(|(slot, ..)| *slot).collect();
        let within: Vec<usize> = slots.iter().copied().filter(|slot| *slot == slots[0]).collect();
        assert!(within.len() >= 4, "{placed:?}");
        let mut parts: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(slot, ..)| *slot == slots[0])
            .map(|(_, at, elems)| (*at, *elems))
            .collect();
        parts.sort_unstable();
        assert_eq!(parts, [(0, 18), (18, 18), (36, 9), (45, 18)], "{placed:?}");
    }

    #[test]
    fn functions_and_softmax_are_not_tracts() {
        let mut net = Net::new(&[1, 2, 3]);
        for (op, from, to) in
            [("Sigmoid", "x", "a"), ("Tanh", "a", "b"), ("Erf", "b", "c"), ("Exp", "c", "d")]
        {
            net.node(op, &[from], to);
        }
        net.node("Softmax", &["d"], "e").int("axis", 1);
        net.node("LogSoftmax", &["e"], "y").int("axis", -1);
        let schedule = schedule(net);
        assert_eq!(operators(&schedule), ["Unary", "Unary", "Unary", "Unary", "Softmax", "Softmax"]);
    }

    #[test]
    fn other_operators_run_in_tract_and_read_any_value() {
        let mut net = Net::new(&[1, 2, 3]);
        net.node("Relu", &["x"], "a");
        net.node("Sin", &["a"], "b");
        net.node("Add", &["a", "b"], "y");
        let schedule = schedule(net);
        assert_eq!(operators(&schedule), ["Chain 1", "tract Sin", "Chain 1"]);
        assert_eq!((schedule.kept, schedule.steps[2].ends.len()), (1, 1));
    }
}
