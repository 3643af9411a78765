//! Rewrites RNN, GRU and LSTM nodes that tract computes otherwise than the standard says.
//!
//! - A backward direction runs forward over reversed sequences, and its outputs of all steps are reversed back.
//! - Sequences that end before the data run to the end of the data; what is made behind their ends is removed
//!   ([`sequences`](super::sequences)). A step depends only on those before it.
//! - Activations other than the usual ones, and limits of their arguments, are refused: tract does not read them.
//!
//! Relevant if you want to know what a recurrent layer becomes.
//!
//! Invariant: a rewritten node makes the values that the standard describes, under the names that it had.

use tract_onnx::pb::NodeProto;

use super::check::{attribute, called, is_standard, text};
use super::nodes::{Nodes, integer};
use super::sequences::{ENDED, PART, RESTORED, REVERSED, WHOLE, is_batch_first};

/// The activations of each operator in a direction.
const USUAL: &[(&str, &[&str])] =
    &[("RNN", &["Tanh"]), ("GRU", &["Sigmoid", "Tanh"]), ("LSTM", &["Sigmoid", "Tanh", "Tanh"])];
/// Inputs: data, weights, recurrent weights, bias, lengths, initial state, initial cell state, peepholes.
const LENGTHS: usize = 4;
/// Inputs that have an axis of directions behind the batch, if that comes first.
const STATES: [usize; 2] = [5, 6];

/// Whether a node is a recurrent layer.
pub(super) fn takes(node: &NodeProto) -> bool {
    is_standard(node) && USUAL.iter().any(|(op, _)| *op == node.op_type)
}

/// Adds a recurrent layer, or the nodes that stand for it.
///
/// # Errors
/// One line, for a layer that tract would compute otherwise and that cannot be rewritten.
pub(super) fn rewrite(node: NodeProto, nodes: &mut Nodes) -> Result<(), String> {
    usual(&node)?;
    let layer = Layer {
        lengths: node.input.get(LENGTHS).filter(|name| !name.is_empty()).cloned(),
        batch_first: is_batch_first(&node),
        node,
    };
    match text(&layer.node, "direction").unwrap_or("forward") {
        "bidirectional" if layer.lengths.is_some() || layer.batch_first => layer.both(nodes),
        "reverse" => {
            let outputs = [0, 1, 2].map(|slot| layer.output(slot).cloned());
            layer.direction(None, true, outputs, nodes);
        }
        "forward" if layer.lengths.is_some() => {
            let outputs = [0, 1, 2].map(|slot| layer.output(slot).cloned());
            layer.direction(None, false, outputs, nodes);
        }
        _ => nodes.add(layer.node),
    }
    Ok(())
}

/// Refuses what tract does not read.
fn usual(node: &NodeProto) -> Result<(), String> {
    const HELP: &str = "export the model with the layer written out in single operators";
    let given = attribute(node, "activations").map_or(&[][..], |own| own.strings.as_slice());
    let given: Vec<String> = given.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let usual = USUAL.iter().find(|(op, _)| *op == node.op_type).map_or(&[][..], |(_, usual)| usual);
    let fits = given.iter().zip(usual.iter().cycle()).all(|(own, usual)| own.eq_ignore_ascii_case(usual));
    if !fits || !given.len().is_multiple_of(usual.len().max(1)) {
        return Err(format!(
            "{}: attribute activations is {given:?} where only {usual:?} is known: {HELP}",
            called(node)
        ));
    }
    if let Some(clip) = attribute(node, "clip") {
        return Err(format!("{}: attribute clip is {}, which is not known: {HELP}", called(node), clip.f));
    }
    if attribute(node, "input_forget").is_some_and(|own| own.i != 0) {
        return Err(format!("{}: attribute input_forget is 1, which is not known: {HELP}", called(node)));
    }
    Ok(())
}

struct Layer {
    node: NodeProto,
    lengths: Option<String>,
    batch_first: bool,
}

impl Layer {
    fn output(&self, slot: usize) -> Option<&String> {
        self.node.output.get(slot).filter(|name| !name.is_empty())
    }

    /// The axis of the steps.
    fn time(&self) -> i64 {
        i64::from(self.batch_first)
    }

    /// Adds both directions as layers of one direction each.
    fn both(&self, nodes: &mut Nodes) {
        let made: Vec<[Option<String>; 3]> = [false, true]
            .into_iter()
            .enumerate()
            .map(|(index, back)| {
                let outputs = [0, 1, 2].map(|slot| self.output(slot).map(|_| nodes.name("direction")));
                self.direction(Some(index), back, outputs.clone(), nodes);
                outputs
            })
            .collect();
        for (slot, both) in made[0].iter().zip(&made[1]).enumerate() {
            let (Some(output), (Some(fore), Some(back))) = (self.output(slot), both) else { continue };
            // The axis of the directions.
            let axis = match (slot, self.batch_first) {
                (0, true) => 2,
                (_, false) if slot > 0 => 0,
                _ => 1,
            };
            nodes.last("Concat", &[fore, back], output);
            nodes.attribute(integer("axis", axis));
        }
    }

    /// Adds direction `index` of a layer, or its only one, which makes `outputs`.
    fn direction(&self, index: Option<usize>, back: bool, outputs: [Option<String>; 3], nodes: &mut Nodes) {
        let mut node = self.node.clone();
        // A final cell state is that of the last step of the data.
        let ends = self.lengths.as_deref().filter(|_| outputs[2].is_none());
        if let Some(lengths) = &self.lengths {
            node.input[LENGTHS].clear();
            if ends.is_none() {
                let whole = nodes.name("sequences");
                self.add_on_sequences(WHOLE, &node.input[0], lengths, std::slice::from_ref(&whole), nodes);
                node.input[0] = whole;
            }
        }
        if back {
            node.input[0] = self.reversed(&node.input[0], ends, nodes);
        }
        if let Some(index) = index {
            node.name =
                format!("{} {index}", if node.name.is_empty() { &node.output[0] } else { &node.name });
            self.share(index, &mut node, nodes);
        }
        node.attribute.retain(|own| !["direction", "activations"].contains(&own.name.as_str()));
        while node.input.last().is_some_and(String::is_empty) {
            node.input.pop();
        }
        let mut all = outputs[0].clone();
        // Ended sequences make their state from the outputs of all steps.
        let last = if ends.is_some() { None } else { outputs[1].clone() };
        let wanted = if back { all.take().map(|all| (nodes.name("steps"), all)) } else { None };
        let steps = wanted.as_ref().map(|(steps, _)| steps.clone()).or(all);
        let raw = ends.map(|lengths| (lengths, nodes.name("unended")));
        node.output = match &raw {
            Some((_, raw)) => vec![raw.clone()],
            None => [steps.clone(), last, outputs[2].clone()].map(Option::unwrap_or_default).to_vec(),
        };
        while node.output.last().is_some_and(String::is_empty) {
            node.output.pop();
        }
        nodes.add(node);
        if let Some((lengths, raw)) = raw {
            let steps = steps.unwrap_or_else(|| nodes.name("steps"));
            let last = outputs[1].clone().unwrap_or_else(|| nodes.name("last"));
            self.add_on_sequences(ENDED, &raw, lengths, &[steps, last], nodes);
        }
        if let Some((steps, all)) = wanted {
            match ends {
                None => reverse(&steps, self.time(), &all, nodes),
                Some(lengths) => self.add_on_sequences(RESTORED, &steps, lengths, &[all], nodes),
            }
        }
    }

    /// Cuts the share of a direction out of weights and states.
    fn share(&self, index: usize, node: &mut NodeProto, nodes: &mut Nodes) {
        let index = i64::from(index == 1);
        for (slot, name) in node.input.iter_mut().enumerate().skip(1) {
            if name.is_empty() || slot == LENGTHS {
                continue;
            }
            let axis = i64::from(STATES.contains(&slot) && self.batch_first);
            let [start, end, axis] = [index, index + 1, axis].map(|value| nodes.integers(&[value]));
            *name = nodes.op("Slice", &[name, &start, &end, &axis]);
        }
    }

    /// Reverses the steps of the data: those before their ends, if they have one.
    fn reversed(&self, value: &str, ends: Option<&str>, nodes: &mut Nodes) -> String {
        let output = nodes.name("reversed");
        match ends {
            None => reverse(value, self.time(), &output, nodes),
            Some(lengths) => {
                nodes.last(REVERSED, &[value, lengths], &output);
                nodes.attribute(integer("time_axis", self.time()));
                nodes.attribute(integer("batch_axis", 1 - self.time()));
            }
        }
        output
    }

    /// Adds an operator on sequences.
    fn add_on_sequences(&self, op: &str, value: &str, lengths: &str, outputs: &[String], nodes: &mut Nodes) {
        let name = nodes.name(&format!("{}{PART}", called(&self.node)));
        nodes.add(NodeProto {
            op_type: op.to_owned(),
            // Errors name the node of the file.
            name,
            input: vec![value.to_owned(), lengths.to_owned()],
            output: outputs.to_vec(),
            ..NodeProto::default()
        });
        nodes.attribute(integer("layout", i64::from(self.batch_first)));
    }
}

/// Adds a node that makes `output` from `value` with the order of an axis reversed.
fn reverse(value: &str, axis: i64, output: &str, nodes: &mut Nodes) {
    // From the last element to the first in steps of -1.
    let [start, end, axis, step] = [-1, i64::MIN + 1, axis, -1].map(|parameter| nodes.integers(&[parameter]));
    nodes.last("Slice", &[value, &start, &end, &axis, &step], output);
}
