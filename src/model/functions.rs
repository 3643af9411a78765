//! Replaces calls of functions that a file defines by the bodies of these functions.
//!
//! Exporters such as PyTorch's write modules as functions of the model (`ModelProto.functions`); tract knows none. Each call
//! becomes the nodes of the body, with the values and node names of the body renamed so that they are unique in the graph.
//!
//! Invariant: the rewritten model computes the same function, defines no functions, and has at most [`MOST_NODES`] nodes.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto};

use super::check::called;
use crate::memory;

/// Functions can call functions: without a limit, a small file could describe a graph of any size.
const MOST_NODES: usize = 200_000;
/// Calls within calls. Exported modules are some ten deep.
const MOST_DEPTH: usize = 100;
/// Bodies are copied, with the tensors in them: what a file may hold is the limit for its copies too.
const MOST_BYTES: u64 = 1 << 31;

/// Replaces all calls in `proto`, also inside the graphs of nodes.
///
/// # Errors
/// One line, for a function that calls itself, is defined twice, or was written for another version of the standard operators,
/// and for a model that would become too large or whose calls are nested too deeply.
pub(super) fn inline(proto: &mut ModelProto) -> Result<(), String> {
    if proto.functions.is_empty() {
        return Ok(());
    }
    let mut functions = HashMap::new();
    for function in std::mem::take(&mut proto.functions) {
        let key = (domain(function.domain()).to_owned(), function.name().to_owned());
        let name = readable(&key);
        if functions.insert(key, function).is_some() {
            return Err(format!("function {name} is defined twice: export the model again"));
        }
    }
    let Some(graph) = proto.graph.as_mut() else { return Ok(()) };
    let mut inlining = Inlining::of(&functions);
    inlining.collect(graph);
    inlining.graph(graph, &mut Vec::new())?;
    // Bodies that are not called may be written for any version.
    for key in inlining.used {
        for import in &functions[&key].opset_import {
            let own = proto.opset_import.iter().find(|own| domain(&own.domain) == domain(&import.domain));
            match own {
                Some(own) if own.version != import.version && domain(&import.domain).is_empty() => {
                    return Err(format!(
                        "function {} is written for opset {} where the model is for opset {}: export both for one opset",
                        readable(&key),
                        import.version,
                        own.version
                    ));
                }
                Some(_) => {}
                None => proto.opset_import.push(import.clone()),
            }
        }
    }
    Ok(())
}

/// The domain and name of a function.
type Key = (String, String);

/// The standard domain has two names.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn readable((domain, name): &Key) -> String {
    if domain.is_empty() { name.clone() } else { format!("{name} of domain {domain}") }
}

struct Inlining<'a> {
    functions: &'a HashMap<Key, FunctionProto>,
    /// Names of values and nodes that exist.
    taken: HashSet<String>,
    /// Numbers up to this one are in names.
    next: usize,
    calls: usize,
    nodes: usize,
    /// Bytes of the copied bodies, and how many of them are known to fit into memory.
    bytes: u64,
    bytes_allowed: u64,
    used: HashSet<Key>,
}

impl<'a> Inlining<'a> {
    fn of(functions: &'a HashMap<Key, FunctionProto>) -> Self {
        Self {
            functions,
            taken: HashSet::new(),
            next: 0,
            calls: 0,
            nodes: 0,
            bytes: 0,
            bytes_allowed: 0,
            used: HashSet::new(),
        }
    }

    /// Records the names in a graph and in the graphs of its nodes.
    fn collect(&mut self, graph: &GraphProto) {
        let values = graph.input.iter().chain(&graph.output).map(|value| &value.name);
        self.taken.extend(values.chain(graph.initializer.iter().map(|tensor| &tensor.name)).cloned());
        for node in &graph.node {
            self.taken.extend(node.input.iter().chain(&node.output).chain([&node.name]).cloned());
            for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
                self.collect(inner);
            }
        }
    }

    /// Replaces the calls in a graph. `within` are the functions whose bodies the graph comes from.
    fn graph(&mut self, graph: &mut GraphProto, within: &mut Vec<Key>) -> Result<(), String> {
        graph.node = self.expanded(std::mem::take(&mut graph.node), within)?;
        Ok(())
    }

    fn expanded(&mut self, nodes: Vec<NodeProto>, within: &mut Vec<Key>) -> Result<Vec<NodeProto>, String> {
        let mut expanded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for inner in &mut node.attribute {
                for inner in inner.g.iter_mut().chain(&mut inner.graphs) {
                    self.graph(inner, within)?;
                }
            }
            let key = (domain(&node.domain).to_owned(), node.op_type.clone());
            let Some(function) = self.functions.get(&key) else {
                self.nodes += 1;
                if self.nodes > MOST_NODES {
                    return Err(format!(
                        "its functions make more than {MOST_NODES} nodes: export a smaller model"
                    ));
                }
                expanded.push(node);
                continue;
            };
            if within.contains(&key) {
                return Err(format!("function {} calls itself: export the model again", readable(&key)));
            }
            if within.len() == MOST_DEPTH {
                return Err(format!(
                    "function {} is called within {MOST_DEPTH} others: export the model without functions",
                    readable(&key)
                ));
            }
            self.admit(function)?;
            let body = self.body(function, &node)?;
            self.used.insert(key.clone());
            within.push(key);
            expanded.extend(self.expanded(body, within)?);
            within.pop();
        }
        Ok(expanded)
    }

    /// Counts a call of `function`.
    ///
    /// # Errors
    /// One line, where the copies of bodies become too many or too large.
    fn admit(&mut self, function: &FunctionProto) -> Result<(), String> {
        self.calls += 1;
        // Calls without nodes are limited too.
        if self.calls > MOST_NODES {
            return Err(format!(
                "its functions are called more than {MOST_NODES} times: export a smaller model"
            ));
        }
        self.bytes += function.node.iter().map(bytes).sum::<u64>();
        if self.bytes > MOST_BYTES {
            return Err(format!(
                "copies of its functions have more than {MOST_BYTES} bytes: keep large tensors out of functions"
            ));
        }
        if self.bytes > self.bytes_allowed {
            // The question costs a few files, so it is asked for twice as much as is needed now, if there is so much.
            let ahead = (2 * self.bytes).min(MOST_BYTES);
            let what = "copies of the functions in the model";
            let allowed = memory::require_all(what, ahead).map(|()| ahead);
            let allowed = allowed.or_else(|_| memory::require_all(what, self.bytes).map(|()| self.bytes));
            self.bytes_allowed = allowed.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The nodes of `function` in place of the call `node`.
    fn body(&mut self, function: &FunctionProto, node: &NodeProto) -> Result<Vec<NodeProto>, String> {
        if node.input.len() > function.input.len() || node.output.len() > function.output.len() {
            return Err(format!(
                "{} has {} inputs and {} outputs where its function has {} and {}: export the model again",
                called(node),
                node.input.len(),
                node.output.len(),
                function.input.len(),
                function.output.len()
            ));
        }
        let label = if node.name.is_empty() { &node.op_type } else { &node.name };
        let mut names = Names { label, taken: &mut self.taken, next: &mut self.next, new: HashMap::new() };
        for (slot, formal) in function.input.iter().enumerate() {
            // An omitted input is an empty name.
            names.new.insert(formal.clone(), node.input.get(slot).cloned().unwrap_or_default());
        }
        // What the body passes through or gives twice needs a node of its own.
        let mut copies = Vec::new();
        for (formal, actual) in
            function.output.iter().zip(&node.output).filter(|(_, actual)| !actual.is_empty())
        {
            if names.new.contains_key(formal) {
                copies.push((formal.clone(), actual.clone()));
            } else {
                names.new.insert(formal.clone(), actual.clone());
            }
        }
        let mut body = Vec::with_capacity(function.node.len() + copies.len());
        for inner in &function.node {
            let mut inner = inner.clone();
            names.node(&mut inner);
            bind(&mut inner, function, node)?;
            body.push(inner);
        }
        for (formal, actual) in copies {
            let mut copy = NodeProto {
                op_type: "Identity".to_owned(),
                input: vec![formal],
                output: vec![String::new()],
                ..NodeProto::default()
            };
            names.node(&mut copy);
            copy.output[0] = actual;
            body.push(copy);
        }
        Ok(body)
    }
}

/// The bytes of a tensor's elements.
fn tensor_bytes(tensor: &TensorProto) -> u64 {
    let words = tensor.float_data.len() + tensor.int32_data.len();
    let double_words = tensor.double_data.len() + tensor.int64_data.len() + tensor.uint64_data.len();
    (tensor.raw_data.len() + 4 * words + 8 * double_words) as u64
}

fn graph_bytes(graph: &GraphProto) -> u64 {
    graph.initializer.iter().map(tensor_bytes).chain(graph.node.iter().map(bytes)).sum()
}

/// The bytes in the attributes of a node, apart from names.
fn bytes(node: &NodeProto) -> u64 {
    let attribute = |attribute: &AttributeProto| -> u64 {
        let tensors: u64 = attribute.t.iter().chain(&attribute.tensors).map(tensor_bytes).sum();
        let lists = attribute.s.len() + 4 * attribute.floats.len() + 8 * attribute.ints.len();
        let graphs: u64 = attribute.g.iter().chain(&attribute.graphs).map(graph_bytes).sum();
        tensors + lists as u64 + graphs
    };
    node.attribute.iter().map(attribute).sum()
}

/// The names in one copy of a body.
struct Names<'a> {
    label: &'a str,
    taken: &'a mut HashSet<String>,
    /// Numbers up to this one have been used.
    next: &'a mut usize,
    new: HashMap<String, String>,
}

impl Names<'_> {
    fn unique(&mut self, base: &str) -> String {
        let name = format!("{}/{base}", self.label);
        if self.taken.insert(name.clone()) {
            return name;
        }
        // One counter for all names, since many calls may be of the same name.
        loop {
            *self.next += 1;
            let unique = format!("{name}.{}", self.next);
            if self.taken.insert(unique.clone()) {
                return unique;
            }
        }
    }

    fn rename(&mut self, value: &mut String) {
        if value.is_empty() {
            return;
        }
        if let Some(new) = self.new.get(value) {
            value.clone_from(new);
            return;
        }
        let new = self.unique(value);
        self.new.insert(std::mem::replace(value, new.clone()), new);
    }

    fn node(&mut self, node: &mut NodeProto) {
        node.input.iter_mut().chain(&mut node.output).for_each(|value| self.rename(value));
        if !node.name.is_empty() {
            node.name = self.unique(&node.name);
        }
        for inner in &mut node.attribute {
            inner.g.iter_mut().chain(&mut inner.graphs).for_each(|graph| self.graph(graph));
        }
    }

    fn graph(&mut self, graph: &mut GraphProto) {
        for value in graph.input.iter_mut().chain(&mut graph.value_info) {
            self.rename(&mut value.name);
        }
        graph.initializer.iter_mut().for_each(|tensor| self.rename(&mut tensor.name));
        graph.node.iter_mut().for_each(|node| self.node(node));
        graph.output.iter_mut().for_each(|value| self.rename(&mut value.name));
    }
}

/// Gives attributes that refer to those of the function the values of the call. Attributes that the call omits are removed.
///
/// # Errors
/// One line, for an omitted attribute that has a default value: tract's description of the format has no such values, so
/// they are lost when the file is read.
fn bind(node: &mut NodeProto, function: &FunctionProto, call: &NodeProto) -> Result<(), String> {
    for attribute in std::mem::take(&mut node.attribute) {
        let mut attribute = match attribute.ref_attr_name.as_str() {
            "" => attribute,
            name => match call.attribute.iter().find(|given| given.name == name) {
                Some(value) => AttributeProto { name: attribute.name, ..value.clone() },
                // Those without a default are listed by name.
                None if function.attribute.iter().any(|listed| listed == name) => continue,
                None => {
                    return Err(format!(
                        "{}: attribute {name} of its function has a default value, which is not read: export the model with \
                         the attribute given, or without functions",
                        called(call)
                    ));
                }
            },
        };
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            for inner in &mut graph.node {
                bind(inner, function, call)?;
            }
        }
        node.attribute.push(attribute);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests;
