//! Compiles a graph whose sizes are all known into steps over planned memory.
//!
//! Every array of floats that a step writes has a slot: memory that is reused for arrays that are not needed at the same
//! time. Coded layers, convolutions and the operators of [`ops`](crate::ops) read and write slots; every other operator
//! runs in tract, which allocates its outputs.
//!
//! Relevant if you want to know what an operator of a model runs in, or to add one.
//!
//! Invariant: a slot is written only when no later step reads what it held. Operators are joined only into chains, in
//! their order, and only where nothing else reads the value between them.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::{EvalContext, OutletId, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::source::TypedSource;

use super::op::CodedOp;
use super::operators::{self, Operator};
use super::value::{Operand, Place, planned};
use crate::array::DType;

/// What a step computes, and where to.
#[derive(Debug)]
pub(super) enum Work {
    Coded {
        op: CodedOp,
        output: Target,
    },
    Operator {
        operator: Operator,
        output: Target,
    },
    /// By tract, into values that are kept from index `first` on.
    Tract {
        node: Box<TypedNode>,
        first: usize,
    },
}

/// The slot of an output. The data of a chain may be in it already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) slot: usize,
    pub(super) dtype: DType,
    pub(super) elems: usize,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) work: Work,
    pub(super) inputs: Vec<Operand>,
    /// Kept values that no later step reads.
    pub(super) ends: Vec<usize>,
}

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

/// Before slots are assigned, [`Place::Slot`] holds the number of a value.
struct Draft {
    work: DraftWork,
    inputs: Vec<Operand>,
}

enum DraftWork {
    Coded(CodedOp, usize),
    Operator(Operator, usize),
    Tract(Box<TypedNode>, usize),
}

impl DraftWork {
    fn value(&self) -> Option<usize> {
        match self {
            Self::Coded(_, value) | Self::Operator(_, value) => Some(*value),
            Self::Tract(..) => None,
        }
    }
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
        Ok(assign(drafts.into_iter().flatten().collect(), &values, kept, outputs))
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
            this.places.insert(outlet, Place::Slot(value));
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
        if let Place::Slot(value) = operand.place {
            *uses.entry(value).or_default() += 1;
        }
    }
    let mut makers: HashMap<usize, usize> = HashMap::new();
    for index in 0..drafts.len() {
        let Some(draft) = &drafts[index] else { continue };
        let DraftWork::Operator(Operator::Chain(steps), value) = &draft.work else { continue };
        makers.insert(*value, index);
        let maker = |operand: &Operand| match operand.place {
            Place::Slot(value) if uses[&value] == 1 => makers.get(&value).copied(),
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

/// Assigns slots to values.
fn assign(drafts: Vec<Draft>, values: &[(DType, usize)], kept: usize, mut outputs: Vec<Operand>) -> Schedule {
    let uses = LastUses::of(&drafts, &outputs);
    let mut memory = Memory { slots: Vec::new(), free: Vec::new(), slot_of: HashMap::new() };
    let steps = drafts.into_iter().enumerate();
    let steps = steps.filter_map(|(index, draft)| step(index, draft, values, &uses, &mut memory)).collect();
    for output in &mut outputs {
        memory.settle(output);
    }
    Schedule { steps, slots: memory.slots, kept, outputs }
}

/// The step of a draft, with slots for what it reads and writes.
fn step(
    index: usize,
    Draft { work, mut inputs }: Draft,
    values: &[(DType, usize)],
    uses: &LastUses,
    memory: &mut Memory,
) -> Option<Step> {
    let ending: Vec<usize> =
        slots_of(&inputs).filter(|value| uses.slots.get(value) == Some(&index)).collect();
    let target = work.value().map(|value| {
        let (dtype, elems) = values[value];
        let in_place = overwritable(&work, &inputs).filter(|data| ending.contains(data));
        let in_place = in_place.map(|data| memory.slot_of[&data]);
        let slot = in_place.unwrap_or_else(|| memory.take(dtype, elems));
        memory.slot_of.insert(value, slot);
        Target { slot, dtype, elems }
    });
    for operand in &mut inputs {
        memory.settle(operand);
    }
    // An output that nothing reads ends at once.
    let unread = work.value().filter(|value| !uses.slots.contains_key(value));
    let kept_slot = target.filter(|_| unread.is_none()).map(|target| target.slot);
    let mut ended: Vec<usize> = ending.iter().chain(&unread).map(|value| memory.slot_of[value]).collect();
    ended.sort_unstable();
    ended.dedup();
    memory.free.extend(ended.into_iter().filter(|slot| Some(*slot) != kept_slot));
    let kept = inputs.iter().filter_map(|operand| match operand.place {
        Place::Kept(value) => Some(value),
        _ => None,
    });
    let mut ends: Vec<usize> = kept.filter(|value| uses.kept.get(value) == Some(&index)).collect();
    let work = match (work, target) {
        (DraftWork::Coded(op, _), Some(output)) => Work::Coded { op, output },
        (DraftWork::Operator(operator, _), Some(output)) => Work::Operator { operator, output },
        (DraftWork::Tract(node, first), _) => {
            let made = first..first + node.outputs.len();
            ends.extend(made.filter(|value| !uses.kept.contains_key(value)));
            Work::Tract { node, first }
        }
        // Only operators of tract have no value, and so no target.
        (DraftWork::Coded(..) | DraftWork::Operator(..), None) => return None,
    };
    Some(Step { work, inputs, ends })
}

/// The values in slots among operands.
fn slots_of(operands: &[Operand]) -> impl Iterator<Item = usize> {
    operands.iter().filter_map(|operand| match operand.place {
        Place::Slot(value) => Some(value),
        _ => None,
    })
}

/// The data that a step may overwrite, if nothing needs them later: those of a chain that reads them only once.
fn overwritable(work: &DraftWork, inputs: &[Operand]) -> Option<usize> {
    let (DraftWork::Operator(Operator::Chain(_), _), [data, others @ ..]) = (work, inputs) else {
        return None;
    };
    let data = slots_of(std::slice::from_ref(data)).next()?;
    slots_of(others).all(|other| other != data).then_some(data)
}

/// The last step that reads each value; outputs of the model are read after all steps.
struct LastUses {
    slots: HashMap<usize, usize>,
    kept: HashMap<usize, usize>,
}

impl LastUses {
    fn of(drafts: &[Draft], outputs: &[Operand]) -> Self {
        let mut uses = Self { slots: HashMap::new(), kept: HashMap::new() };
        let steps =
            drafts.iter().enumerate().flat_map(|(index, draft)| draft.inputs.iter().map(move |i| (index, i)));
        for (index, operand) in steps.chain(outputs.iter().map(|output| (usize::MAX, output))) {
            match operand.place {
                Place::Slot(value) => drop(uses.slots.insert(value, index)),
                Place::Kept(value) => drop(uses.kept.insert(value, index)),
                Place::Input(_) | Place::Constant(_) => {}
            }
        }
        uses
    }
}

/// Slots while they are assigned.
struct Memory {
    slots: Vec<(DType, usize)>,
    free: Vec<usize>,
    /// The slot of each value.
    slot_of: HashMap<usize, usize>,
}

impl Memory {
    /// Replaces the number of a value by its slot.
    fn settle(&self, operand: &mut Operand) {
        if let Place::Slot(value) = &mut operand.place {
            *value = self.slot_of[value];
        }
    }

    /// A free slot for `elems` elements: the smallest that is large enough, or else the largest, which grows; a new one
    /// if none is free.
    fn take(&mut self, dtype: DType, elems: usize) -> usize {
        let fitting = |(_, slot): &(usize, &usize)| self.slots[**slot].0 == dtype;
        let best = self.free.iter().enumerate().filter(fitting).min_by_key(|(_, slot)| {
            let size = self.slots[**slot].1;
            if size >= elems { (false, size) } else { (true, usize::MAX - size) }
        });
        let Some(at) = best.map(|(at, _)| at) else {
            self.slots.push((dtype, elems));
            return self.slots.len() - 1;
        };
        let slot = self.free.swap_remove(at);
        self.slots[slot].1 = self.slots[slot].1.max(elems);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Attributes, Net};
    use super::*;

    fn schedule(net: Net) -> Schedule {
        let graph =
            super::super::Model::of_proto("net.onnx".to_owned(), tract_onnx::onnx(), net.proto(), 0, None)
                .and_then(|model| model.typed())
                .unwrap();
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
        assert_eq!(operators(&schedule), ["Pool", "Concat", "Pool", "Pool"]);
        assert_eq!(schedule.slots, [(DType::F32, 36), (DType::F32, 36)]);
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
