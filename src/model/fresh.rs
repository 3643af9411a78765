//! New names and constants for rewrites of a file.
//!
//! Invariant: no name is given twice, and none that the graph contains.

use std::collections::HashSet;

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto};

/// Generates names of values that a graph does not contain.
pub(super) struct Fresh {
    taken: HashSet<String>,
    next: usize,
}

impl Fresh {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let nodes = graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input));
        let values = graph.input.iter().map(|i| &i.name).chain(graph.initializer.iter().map(|i| &i.name));
        Self { taken: nodes.chain(values).cloned().collect(), next: 0 }
    }

    pub(super) fn name(&mut self, base: &str) -> String {
        loop {
            let name = format!("{base}.{}", self.next);
            self.next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// A node that makes the constant `output`.
pub(super) fn constant_node(output: String, tensor: TensorProto) -> NodeProto {
    let value = AttributeProto {
        name: "value".to_owned(),
        r#type: attribute_proto::AttributeType::Tensor.into(),
        t: Some(tensor),
        ..AttributeProto::default()
    };
    NodeProto {
        op_type: "Constant".to_owned(),
        output: vec![output],
        attribute: vec![value],
        ..NodeProto::default()
    }
}
