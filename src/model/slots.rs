//! Gives every value of a schedule its place in a slot.
//!
//! A slot is memory for values that are not needed at the same time. The inputs of a concatenation along the outermost
//! axis that is not 1 are parts of its output: they are written to their places in it, and nothing is copied. Such
//! values form a *group* with one slot. Inputs that cannot be placed are copied: constants, and values that are part of
//! something else already.
//!
//! Invariant: a slot is written only where no later step reads what it held, and no step reads values of the group that it
//! writes to, except a chain that overwrites its only data.

use std::collections::HashMap;

use super::operators::Operator;
use super::steps::{Draft, DraftWork, Step, Target, Work};
use super::value::{Operand, Place, planned};
use crate::array::DType;

/// Most values of a group: every concatenation is compared with all values of the groups that it joins.
const MOST_OF_GROUP: usize = 256;

/// The steps of the drafts, type and number of elements of each slot, and the outputs.
pub(super) fn assign(
    drafts: Vec<Draft>,
    values: Vec<(DType, usize)>,
    mut outputs: Vec<Operand>,
) -> (Vec<Step>, Vec<(DType, usize)>, Vec<Operand>) {
    let mut homes = Homes::new(values, &drafts);
    let drafts: Vec<Draft> = drafts.into_iter().flat_map(|draft| homes.place(draft)).collect();
    let uses = LastUses::of(&drafts, &outputs, &homes);
    let mut memory = Memory { homes, slots: Vec::new(), free: Vec::new(), slot_of: HashMap::new() };
    let steps = drafts.into_iter().enumerate();
    let steps = steps.filter_map(|(index, draft)| step(index, draft, &uses, &mut memory)).collect();
    for output in &mut outputs {
        memory.settle(output);
    }
    (steps, memory.slots, outputs)
}

/// The values in slots among operands.
fn slots_of(operands: &[Operand]) -> impl Iterator<Item = usize> {
    operands.iter().filter_map(|operand| match operand.place {
        Place::Slot(value, _) => Some(value),
        _ => None,
    })
}

/// Which values are parts of others.
struct Homes {
    /// Type and number of elements of each value.
    values: Vec<(DType, usize)>,
    /// The value that each value is a part of, and its first element there.
    home: Vec<Option<(usize, usize)>>,
    /// The values of the group whose root each value is.
    members: Vec<Vec<usize>>,
    /// The values that the step which makes each value reads.
    read: Vec<Vec<usize>>,
}

impl Homes {
    fn new(values: Vec<(DType, usize)>, drafts: &[Draft]) -> Self {
        let mut read = vec![Vec::new(); values.len()];
        for draft in drafts {
            if let Some(value) = draft.work.value() {
                read[value] = slots_of(&draft.inputs).collect();
            }
        }
        let members = (0..values.len()).map(|value| vec![value]).collect();
        Self { home: vec![None; values.len()], values, members, read }
    }

    /// The value that a value is a part of in the end, and its first element there.
    fn root(&self, mut value: usize) -> (usize, usize) {
        let mut offset = 0;
        while let Some((home, at)) = self.home[value] {
            (value, offset) = (home, offset + at);
        }
        (value, offset)
    }

    /// Whether a value is the only one of its group.
    fn is_alone(&self, value: usize) -> bool {
        self.home[value].is_none() && self.members[value].len() == 1
    }

    /// The steps of a draft: for a concatenation along the outermost axis the copies that it needs, for any other the draft
    /// itself.
    fn place(&mut self, draft: Draft) -> Vec<Draft> {
        let DraftWork::Operator(Operator::Concat { outer: 1 }, output) = draft.work else {
            return vec![draft];
        };
        self.read[output].clear();
        let (mut copied, mut offset) = (Vec::new(), 0);
        for operand in draft.inputs {
            let part = match operand.place {
                Place::Slot(value, _) => Some(value).filter(|value| self.values[*value].1 == operand.elems()),
                _ => None,
            };
            let elems = operand.elems();
            if !part.is_some_and(|value| self.join(value, output, offset)) {
                copied.push((operand, offset));
            }
            offset += elems;
        }
        let mut steps = Vec::new();
        for (mut from, offset) in copied {
            let root = self.root(output).0;
            if slots_of(std::slice::from_ref(&from)).any(|value| self.root(value).0 == root) {
                // Of the same group: through memory of its own.
                let (step, copy) = self.copy(from, None);
                steps.push(step);
                from = copy;
            }
            steps.push(self.copy(from, Some((output, offset))).0);
        }
        steps
    }

    /// Makes a value a part of `home`, if it is no part of another one and no step would read the group that it writes to.
    fn join(&mut self, value: usize, home: usize, offset: usize) -> bool {
        let root = self.root(home).0;
        let both = self.members[value].len() + self.members[root].len();
        if self.home[value].is_some() || value == root || both > MOST_OF_GROUP {
            return false;
        }
        let of_value = std::mem::take(&mut self.members[value]);
        self.home[value] = Some((home, offset));
        self.members[root].extend(&of_value);
        if self.reads_itself(home) {
            self.members[root].truncate(both - of_value.len());
            self.home[value] = None;
            self.members[value] = of_value;
            return false;
        }
        true
    }

    /// Whether the step that makes a value of a group reads another one of it.
    fn reads_itself(&self, value: usize) -> bool {
        let root = self.root(value).0;
        let mut read = self.members[root].iter().flat_map(|member| &self.read[*member]);
        read.any(|read| self.root(*read).0 == root)
    }

    /// A step that copies `from`, to its place in another value if that is given, and the copy.
    fn copy(&mut self, from: Operand, home: Option<(usize, usize)>) -> (Draft, Operand) {
        let value = self.values.len();
        let dtype = planned(from.dtype).unwrap_or(DType::F32);
        self.values.push((dtype, from.elems()));
        self.home.push(home);
        self.members.push(Vec::new());
        let root = self.root(value).0;
        self.members[root].push(value);
        self.read.push(slots_of(std::slice::from_ref(&from)).collect());
        let copy = Operand { place: Place::Slot(value, 0), ..from.clone() };
        let work = DraftWork::Operator(Operator::Chain(Vec::new()), value);
        (Draft { work, inputs: vec![from] }, copy)
    }
}

/// The step of a draft, with places for what it reads and writes.
fn step(
    index: usize,
    Draft { work, mut inputs }: Draft,
    uses: &LastUses,
    memory: &mut Memory,
) -> Option<Step> {
    let roots = slots_of(&inputs).chain(work.value()).map(|value| memory.homes.root(value).0);
    let mut ending: Vec<usize> = roots.filter(|root| uses.slots.get(root) == Some(&index)).collect();
    ending.sort_unstable();
    ending.dedup();
    let target = work.value().map(|value| {
        let (dtype, elems) = memory.homes.values[value];
        let (root, offset) = memory.homes.root(value);
        let in_place = overwritable(&work, &inputs).filter(|data| ending.contains(data));
        let in_place = in_place.filter(|data| memory.homes.is_alone(*data) && memory.homes.is_alone(value));
        let slot = in_place.map(|data| memory.slot_of[&data]);
        let slot = slot.or_else(|| memory.slot_of.get(&root).copied());
        let slot = slot.unwrap_or_else(|| memory.take(memory.homes.values[root]));
        memory.slot_of.insert(root, slot);
        Target { slot, offset, dtype, elems }
    });
    for operand in &mut inputs {
        memory.settle(operand);
    }
    // The slot of data that were overwritten has a new value.
    let of_value = work.value().map(|value| memory.homes.root(value).0).filter(|root| !ending.contains(root));
    let in_use = of_value.map(|root| memory.slot_of[&root]);
    let mut ended: Vec<usize> = ending.iter().map(|root| memory.slot_of[root]).collect();
    ended.sort_unstable();
    ended.dedup();
    memory.free.extend(ended.into_iter().filter(|slot| Some(*slot) != in_use));
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

/// The data that a step may overwrite, if nothing needs them later: those of a chain that reads them only once.
fn overwritable(work: &DraftWork, inputs: &[Operand]) -> Option<usize> {
    let (DraftWork::Operator(Operator::Chain(_), _), [data, others @ ..]) = (work, inputs) else {
        return None;
    };
    let data = slots_of(std::slice::from_ref(data)).next()?;
    slots_of(others).all(|other| other != data).then_some(data)
}

/// The last step that reads or writes each group, by its root, and that reads each kept value; outputs of the model are read
/// after all steps.
struct LastUses {
    slots: HashMap<usize, usize>,
    kept: HashMap<usize, usize>,
}

impl LastUses {
    fn of(drafts: &[Draft], outputs: &[Operand], homes: &Homes) -> Self {
        let mut uses = Self { slots: HashMap::new(), kept: HashMap::new() };
        let mut note = |index: usize, operands: &[Operand], made: Option<usize>| {
            for value in slots_of(operands).chain(made) {
                uses.slots.insert(homes.root(value).0, index);
            }
            for operand in operands {
                if let Place::Kept(value) = operand.place {
                    uses.kept.insert(value, index);
                }
            }
        };
        for (index, draft) in drafts.iter().enumerate() {
            note(index, &draft.inputs, draft.work.value());
        }
        note(usize::MAX, outputs, None);
        uses
    }
}

/// Slots while they are assigned.
struct Memory {
    homes: Homes,
    slots: Vec<(DType, usize)>,
    free: Vec<usize>,
    /// The slot of each group, by its root.
    slot_of: HashMap<usize, usize>,
}

impl Memory {
    /// Replaces the number of a value by its place.
    fn settle(&self, operand: &mut Operand) {
        if let Place::Slot(value, _) = operand.place {
            let (root, offset) = self.homes.root(value);
            operand.place = Place::Slot(self.slot_of[&root], offset);
        }
    }

    /// A free slot for `elems` elements: the smallest that is large enough, or else the largest, which grows; a new one
    /// if none is free.
    fn take(&mut self, (dtype, elems): (DType, usize)) -> usize {
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
