//! Finds the values at which a graph can be cut in two.
//!
//! Relevant if you want to know why a model can be cut at one value and not at another. A value is a cut if every path from
//! the inputs of a graph to its outputs crosses it. Values that are known before a run, such as filters and shapes, are on no
//! path.
//!
//! Invariant: time is proportional to the number of wires of the graph. A graph in which this could be wrong has no cuts.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{GraphProto, NodeProto};

/// Operators whose two computations differ.
const RANDOM: &[&str] =
    &["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

/// What a graph computes from what, node by node.
pub(super) struct Wiring {
    /// Names of the values that each node reads, also inside its graphs.
    reads: Vec<Vec<String>>,
    /// For each node its position among those that lie on a path from an input to an output; `None` for the others.
    pub(super) on_path: Vec<Option<usize>>,
    /// Values that are known before a run although nodes make them from inputs, such as shapes.
    known: HashSet<String>,
    /// The cuts in order: the value, and the position of the node that makes it.
    pub(super) cuts: Vec<(String, usize)>,
}

/// The values that a node reads, also those that its graphs take from outside of it.
fn reads(node: &NodeProto) -> Vec<String> {
    let mut names: Vec<String> = node.input.clone();
    for inner in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
        names.extend(inner.node.iter().flat_map(reads));
        names.extend(inner.output.iter().map(|output| output.name.clone()));
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Names of the initializers.
fn initializers(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    graph.initializer.iter().chain(sparse).map(|tensor| tensor.name.as_str())
}

/// Whether the results of a node are rounded to few bits, which a cut beside it may decide otherwise.
fn is_quantised(node: &NodeProto) -> bool {
    ["Quantize", "QLinear", "Integer"].iter().any(|word| node.op_type.contains(word))
        && node.op_type != "DequantizeLinear"
}

impl Wiring {
    /// The wiring of a graph. `known`: whether a value is known before a run although it is made from inputs.
    pub(super) fn of(graph: &GraphProto, known: &dyn Fn(&str) -> bool) -> Self {
        let reads: Vec<Vec<String>> = graph.node.iter().map(reads).collect();
        // Those made from constants alone, and all that are known.
        let mut pure: HashSet<&str> = initializers(graph).collect();
        let mut constant = pure.clone();
        let mut replaced = HashSet::new();
        for (node, reads) in graph.node.iter().zip(&reads) {
            let repeats = !RANDOM.contains(&node.op_type.as_str());
            let all = |of: &HashSet<&str>| repeats && reads.iter().all(|name| of.contains(name.as_str()));
            let mut outputs = node.output.iter().map(String::as_str).filter(|name| !name.is_empty());
            if all(&pure) {
                pure.extend(outputs.clone());
                constant.extend(outputs);
            } else if outputs.clone().all(known) {
                replaced.extend(outputs.clone().map(str::to_owned));
                constant.extend(outputs);
            } else if all(&constant) {
                constant.extend(&mut outputs);
            }
        }
        // From the outputs to the inputs: the nodes that an output needs.
        let mut needed: HashSet<&str> =
            graph.output.iter().map(|o| o.name.as_str()).filter(|name| !constant.contains(name)).collect();
        let all = needed.len() == graph.output.len();
        let mut on_path = vec![None; graph.node.len()];
        for (at, node) in graph.node.iter().enumerate().rev() {
            if node.output.iter().any(|name| needed.contains(name.as_str())) {
                on_path[at] = Some(0);
                let moving = reads[at].iter().map(String::as_str).filter(|name| !constant.contains(name));
                needed.extend(moving);
            }
        }
        for (position, place) in on_path.iter_mut().flatten().enumerate() {
            *place = position;
        }
        let doubtful = |node: &NodeProto| RANDOM.contains(&node.op_type.as_str()) || is_quantised(node);
        let mut cuts = Vec::new();
        if all && !graph.node.iter().any(doubtful) {
            cuts = cut(graph, &reads, &on_path, &constant, &needed).unwrap_or_default();
        }
        Self { reads, on_path, known: replaced, cuts }
    }

    /// Indices of the nodes of a part in the order of the graph: those on a path for which `inside` holds, and those that
    /// compute constants for them. Also the names of the values that they read and that none of them makes.
    pub(super) fn nodes(
        &self,
        graph: &GraphProto,
        inside: &dyn Fn(usize) -> bool,
    ) -> (Vec<usize>, HashSet<String>) {
        let makers: HashMap<&str, usize> = (graph.node.iter().enumerate())
            .flat_map(|(at, node)| node.output.iter().map(move |name| (name.as_str(), at)))
            .collect();
        let mut taken: HashSet<usize> =
            (0..self.on_path.len()).filter(|at| self.on_path[*at].is_some_and(inside)).collect();
        let mut open: Vec<usize> = taken.iter().copied().collect();
        let mut read = HashSet::new();
        while let Some(at) = open.pop() {
            for name in &self.reads[at] {
                if let Some(maker) = makers.get(name.as_str())
                    && self.on_path[*maker].is_none()
                    && !self.known.contains(name)
                    && taken.insert(*maker)
                {
                    open.push(*maker);
                }
                read.insert(name.clone());
            }
        }
        let mut nodes: Vec<usize> = taken.into_iter().collect();
        nodes.sort_unstable();
        for name in nodes.iter().flat_map(|at| &graph.node[*at].output) {
            read.remove(name);
        }
        (nodes, read)
    }
}

/// The cuts, in order; `None` if the nodes are not in the order in which they can be computed.
fn cut(
    graph: &GraphProto,
    reads: &[Vec<String>],
    on_path: &[Option<usize>],
    constant: &HashSet<&str>,
    needed: &HashSet<&str>,
) -> Option<Vec<(String, usize)>> {
    let nodes = || {
        let places = graph.node.iter().zip(reads).zip(on_path);
        places.filter_map(|((node, reads), place)| Some((node, reads, (*place)?)))
    };
    let mut last_read: HashMap<&str, usize> = HashMap::new();
    for (_, reads, position) in nodes() {
        last_read.extend(reads.iter().map(|name| (name.as_str(), position)));
    }
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let of_nodes: HashSet<&str> =
        graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let mut made: HashSet<&str> = HashSet::new();
    // Values that a later node or the caller still needs.
    let mut live: HashSet<&str> = HashSet::new();
    for input in graph.input.iter().map(|input| input.name.as_str()) {
        if !constant.contains(input) {
            made.insert(input);
            if needed.contains(input) {
                live.insert(input);
            }
        }
    }
    let mut cuts = Vec::new();
    for (node, reads, position) in nodes() {
        for name in reads.iter().map(String::as_str) {
            let is_value = needed.contains(name) && !constant.contains(name);
            if is_value && !made.contains(name) && of_nodes.contains(name) {
                return None;
            }
            if last_read.get(name) == Some(&position) && !outputs.contains(name) {
                live.remove(name);
            }
        }
        for name in node.output.iter().map(String::as_str).filter(|name| needed.contains(name)) {
            made.insert(name);
            live.insert(name);
        }
        let mut rest = live.iter();
        if let (Some(only), None) = (rest.next(), rest.next())
            && !outputs.contains(only)
            && node.output.iter().any(|name| name == only)
        {
            cuts.push(((*only).to_owned(), position));
        }
    }
    Some(cuts)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Net;
    use super::*;

    fn cuts(net: Net, known: &[&str]) -> Vec<String> {
        let graph = net.graph();
        let wiring = Wiring::of(&graph, &|name| known.contains(&name));
        wiring.cuts.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_path_crosses_a_cut() {
        let mut net = Net::new(&[1, 2]);
        net.floats("w", &[1, 2], &[1.0, 2.0]);
        net.node("Relu", &["x"], "a");
        net.node("Neg", &["a"], "b");
        // A constant that is made, and a node that no output needs.
        net.node("Abs", &["w"], "w2");
        net.node("Sin", &["x"], "unused");
        net.node("Add", &["a", "b"], "c");
        net.node("Mul", &["c", "w2"], "d");
        net.node("Exp", &["d"], "y");
        assert_eq!(cuts(net, &[]), ["a", "c", "d"]);
    }

    #[test]
    fn values_that_are_known_are_on_no_path() {
        let build = || {
            let mut net = Net::new(&[1, 2]);
            net.node("Relu", &["x"], "a");
            net.node("Shape", &["x"], "s");
            net.node("Neg", &["a"], "b");
            net.node("Reshape", &["b", "s"], "y");
            net
        };
        assert_eq!(cuts(build(), &["s"]), ["a", "b"]);
        assert!(cuts(build(), &[]).is_empty());
    }

    #[test]
    fn several_outputs_and_doubtful_graphs_have_fewer_cuts() {
        let mut net = Net::new(&[1, 2]);
        net.node("Relu", &["x"], "a");
        net.node("Neg", &["a"], "b");
        net.node("Exp", &["b"], "y");
        net.output("b");
        assert_eq!(cuts(net, &[]), ["a"]);
        let mut random = Net::new(&[1, 2]);
        random.node("Relu", &["x"], "a");
        random.node("RandomNormalLike", &["a"], "b");
        random.node("Add", &["a", "b"], "y");
        assert!(cuts(random, &[]).is_empty());
        let mut turned = Net::new(&[1, 2]);
        turned.node("Exp", &["a"], "y");
        turned.node("Relu", &["x"], "a");
        assert!(cuts(turned, &[]).is_empty());
    }
}
