//! Normalizes a file before tract reads it, for constructs that have several spellings.
//!
//! Invariant: the meaning of the file does not change. Runs after [`check`](super::check), which rejects files without
//! a single meaning.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, type_proto};

use super::check::{attribute, called, scalar};
use super::nodes::{F32, Nodes, integers};
use super::{numbers, resize, rewrite, upsample};

/// No array has an axis that is padded by more.
const MOST_PAD: u64 = 1 << 24;

/// Rewrites a graph and the graphs inside its nodes; `opset` is the version of the standard operators.
///
/// # Errors
/// One line, for a construct that cannot be rewritten.
pub(super) fn graph(graph: &mut GraphProto, opset: i64) -> Result<(), String> {
    let (constants, large) = (small_constants(graph), numbers::large(graph));
    let mut nodes = Nodes::of(graph, "tidied");
    // Initializers become nodes, because tract compares every initializer with every other.
    let initial: HashSet<String> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
    graph.input.retain(|input| !initial.contains(&input.name));
    for tensor in std::mem::take(&mut graph.initializer) {
        nodes.named_constant(tensor.name.clone(), tensor);
    }
    let mut names = HashSet::new();
    for mut node in std::mem::take(&mut graph.node) {
        if node.op_type == "Scan" {
            let bodies = node.attribute.iter_mut().filter_map(|attribute| attribute.g.as_mut());
            bodies.flat_map(|body| &mut body.input).for_each(as_floats);
        }
        for inner in &mut node.attribute {
            for inner in inner.g.iter_mut().chain(&mut inner.graphs) {
                self::graph(inner, opset)?;
            }
        }
        // Drops omitted optional values at the end.
        for values in [&mut node.input, &mut node.output] {
            while values.last().is_some_and(String::is_empty) {
                values.pop();
            }
        }
        if !node.name.is_empty() && !names.insert(node.name.clone()) {
            // Node names may repeat, but layers are identified by them; names of values are unique.
            if let Some(output) = node.output.first() {
                node.name = format!("{} ({output})", node.name);
            }
        }
        match node.op_type.as_str() {
            "Dropout" if is_identity(&node, &constants) => {
                "Identity".clone_into(&mut node.op_type);
                node.input.truncate(1);
                node.attribute.clear();
            }
            "Resize" => {
                if opset >= 11 {
                    name_empties(&mut node, &mut nodes);
                }
                if resize::takes(&node) {
                    resize::NAME.clone_into(&mut node.op_type);
                }
            }
            _ if upsample::takes(&node) => {
                if let Some(scales) = upsample::as_resize(&mut node, opset)? {
                    node.input.push(nodes.constant(scales));
                }
            }
            "Pad" if opset >= 11 => {
                crop(&mut node, &constants, opset, &mut nodes)?;
                without_axis(&mut node, 2, &constants, &mut nodes);
            }
            "Range" => (0..3).for_each(|slot| without_axis(&mut node, slot, &constants, &mut nodes)),
            _ => {}
        }
        numbers::widen(&mut node, &large, &mut nodes);
        rewrite::add(node, &mut nodes)?;
    }
    graph.node = nodes.done();
    Ok(())
}

/// Constants that hold sizes, axes and flags.
fn small_constants(graph: &GraphProto) -> HashMap<String, TensorProto> {
    const MOST_ELEMS: i64 = 64;
    let nodes = graph.node.iter().filter(|node| node.op_type == "Constant").filter_map(|node| {
        let name = node.output.first()?.clone();
        if let Some(ints) = attribute(node, "value_ints") {
            return Some((name, integers(&ints.ints)));
        }
        Some((name, attribute(node, "value")?.t.clone()?))
    });
    let small = |tensor: &TensorProto| {
        let elems = tensor.dims.iter().try_fold(1i64, |product, size| product.checked_mul(*size));
        elems.is_some_and(|elems| elems <= MOST_ELEMS)
    };
    let initial = graph.initializer.iter().filter(|t| small(t)).map(|t| (t.name.clone(), t.clone()));
    initial.chain(nodes.filter(|(_, t)| small(t))).collect()
}

/// Gives an input of the body of a Scan a type where the file has none, which the standard allows: that of floats. A value of
/// another type is refused.
fn as_floats(input: &mut ValueInfoProto) {
    if input.r#type.is_none() {
        let floats = type_proto::Tensor { elem_type: F32, shape: None };
        let value = Some(type_proto::Value::TensorType(floats));
        input.r#type = Some(TypeProto { value, ..TypeProto::default() });
    }
}

/// Whether a Dropout only passes its input on.
fn is_identity(node: &NodeProto, constants: &HashMap<String, TensorProto>) -> bool {
    let off = match node.input.get(2).filter(|name| !name.is_empty()) {
        None => true,
        Some(training) => constants.get(training).and_then(scalar).is_some_and(|on| on == 0.0),
    };
    off && node.output.len() == 1
}

/// Gives Resize an empty constant for an omitted region or omitted scales, because tract counts inputs.
fn name_empties(node: &mut NodeProto, nodes: &mut Nodes) {
    for slot in 1..3 {
        if node.input.get(slot).is_some_and(String::is_empty) {
            let empty = TensorProto { dims: vec![0], data_type: 1, ..TensorProto::default() };
            node.input[slot] = nodes.constant(empty);
        }
    }
}

/// Removes the axis of a value of one element, since some exporters write one where the operator expects a scalar.
fn without_axis(
    node: &mut NodeProto,
    slot: usize,
    constants: &HashMap<String, TensorProto>,
    nodes: &mut Nodes,
) {
    let Some(name) = node.input.get(slot).filter(|name| !name.is_empty()) else { return };
    node.input[slot] = match constants.get(name) {
        Some(tensor) if tensor.dims == [1] => {
            nodes.constant(TensorProto { dims: Vec::new(), ..tensor.clone() })
        }
        Some(_) => return,
        None => nodes.op(numbers::SCALAR, &[name]),
    };
}

/// Inserts a Slice before a Pad with negative amounts, which does the cropping.
fn crop(
    node: &mut NodeProto,
    constants: &HashMap<String, TensorProto>,
    opset: i64,
    nodes: &mut Nodes,
) -> Result<(), String> {
    let constant =
        |name: Option<&String>| name.and_then(|name| constants.get(name)).and_then(numbers::values);
    let Some(pads) = constant(node.input.get(1)) else { return Ok(()) };
    if let Some(pad) = pads.iter().find(|pad| pad.unsigned_abs() > MOST_PAD) {
        return Err(format!(
            "{}: an amount of pads is {pad} where at most {MOST_PAD} were expected: export the model again",
            called(node)
        ));
    }
    if pads.iter().all(|pad| *pad >= 0) {
        return Ok(());
    }
    let half = pads.len() / 2;
    let axes = match node.input.get(3).filter(|name| !name.is_empty() && opset >= 18) {
        None => (0..i64::try_from(half).unwrap_or(0)).collect(),
        Some(name) => match constant(Some(name)) {
            Some(axes) if axes.len() == half => axes,
            _ => {
                return Err(format!(
                    "{}: its axes are not known, and amounts of pads are negative: give constant axes",
                    called(node)
                ));
            }
        },
    };
    let ends = |end: &i64| if *end < 0 { *end } else { i64::MAX };
    let starts: Vec<i64> = pads[..half].iter().map(|begin| begin.saturating_neg().max(0)).collect();
    let ends: Vec<i64> = pads[half..].iter().map(ends).collect();
    let mut slice = NodeProto {
        op_type: "Slice".to_owned(),
        name: nodes.name(&format!("{}.crop", node.name)),
        input: vec![node.input[0].clone()],
        output: vec![nodes.name("cropped")],
        ..NodeProto::default()
    };
    for values in [&starts, &ends, &axes] {
        slice.input.push(nodes.integers(values));
    }
    node.input[0].clone_from(&slice.output[0]);
    nodes.add(slice);
    node.input[1] = nodes.integers(&pads.iter().map(|pad| (*pad).max(0)).collect::<Vec<_>>());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Net;
    use super::*;

    fn tidied(net: Net, opset: i64) -> GraphProto {
        let mut proto = net.graph();
        graph(&mut proto, opset).unwrap();
        proto
    }

    #[test]
    fn names_of_nodes_become_different() {
        let mut net = Net::new(&[1, 2, 3]);
        for (from, to) in [("x", "a"), ("a", "b"), ("b", "y")] {
            net.node("Relu", &[from], to).name = "same".to_owned();
        }
        let names: Vec<String> = tidied(net, 17).node.into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["same", "same (b)", "same (y)"]);
    }

    #[test]
    fn values_that_are_left_out_at_the_end_go() {
        let mut net = Net::new(&[1, 2, 3]);
        net.node("Clip", &["x", "", "x"], "a");
        net.node("Conv", &["a", "a", ""], "y").output.push(String::new());
        let nodes = tidied(net, 17).node;
        assert_eq!(nodes[0].input, ["x", "", "x"]);
        assert_eq!((nodes[1].input.len(), nodes[1].output.len()), (2, 1));
    }

    #[test]
    fn a_dropout_that_drops_nothing_passes_on() {
        let mut net = Net::new(&[1, 2, 3]);
        net.node("Dropout", &["x"], "a");
        net.node("Dropout", &["a", "", "x"], "y");
        let nodes = tidied(net, 17).node;
        // Whether the second Dropout is active is known only when it runs.
        assert_eq!(nodes.iter().map(|n| n.op_type.as_str()).collect::<Vec<_>>(), ["Identity", "Dropout"]);
    }

    #[test]
    fn amounts_of_pads_that_no_array_has_are_refused() {
        for (amount, fine) in [(3, true), (-3, true), (1 << 40, false), (i64::MIN, false)] {
            let mut net = Net::new(&[1, 3, 8, 8]);
            net.integers("pads", &[0, 0, 0, 0, 0, 0, 0, amount]);
            net.node("Pad", &["x", "pads"], "y");
            let said = graph(&mut net.graph(), 13);
            assert_eq!(said.is_ok(), fine, "{amount}: {said:?}");
        }
    }

    #[test]
    fn negative_pads_become_a_slice() {
        let mut net = Net::new(&[4, 5]);
        net.integers("p", &[-1, 2, 0, -3]);
        net.node("Pad", &["x", "p"], "y");
        let nodes = tidied(net, 13).node;
        let slice = nodes.iter().find(|n| n.op_type == "Slice").unwrap();
        let constant = |name: &String| {
            let node = nodes.iter().find(|n| n.output.first() == Some(name)).unwrap();
            attribute(node, "value").unwrap().t.as_ref().unwrap().int64_data.clone()
        };
        assert_eq!(constant(&slice.input[1]), [1, 0]);
        assert_eq!(constant(&slice.input[2]), [i64::MAX, -3]);
        assert_eq!(constant(&slice.input[3]), [0, 1]);
        let pad = nodes.last().unwrap();
        assert_eq!((constant(&pad.input[1]), &pad.input[0]), (vec![0, 2, 0, 0], &slice.output[0]));
    }
}
