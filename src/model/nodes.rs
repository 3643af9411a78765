//! Makes nodes of an ONNX graph, for rewrites of a file before tract reads it.
//!
//! Relevant if you want to rewrite an operator into others.
//!
//! Invariant: every value that a node makes has a name that the graph did not contain, unless the caller names it.

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto};

use super::fresh::Fresh;

// Numbers of `tensor_proto::DataType`.
pub(super) const F32: i32 = 1;
pub(super) const U8: i32 = 2;
pub(super) const I8: i32 = 3;
pub(super) const I32: i32 = 6;
pub(super) const I64: i32 = 7;
pub(super) const F64: i32 = 11;

/// The shape that makes a parameter broadcast over an array; `None` where its own shape does.
pub(super) type Shape = Option<Vec<i64>>;

/// The new nodes of a graph, in order.
pub(super) struct Nodes {
    fresh: Fresh,
    nodes: Vec<NodeProto>,
}

impl Nodes {
    /// No nodes yet, for a rewrite of `graph`.
    pub(super) fn of(graph: &GraphProto) -> Self {
        Self { fresh: Fresh::of(graph), nodes: Vec::with_capacity(graph.node.len()) }
    }

    /// All nodes.
    pub(super) fn done(self) -> Vec<NodeProto> {
        self.nodes
    }

    pub(super) fn add(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    /// A new name for a value.
    pub(super) fn name(&mut self, base: &str) -> String {
        self.fresh.name(base)
    }

    /// Adds a node; returns its output.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        let output = self.fresh.name("quantised");
        self.last(op, inputs, &output);
        output
    }

    /// Adds a node that makes `output`.
    pub(super) fn last(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
    }

    /// Adds an attribute to the newest node.
    pub(super) fn attribute(&mut self, attribute: AttributeProto) {
        if let Some(node) = self.nodes.last_mut() {
            node.attribute.push(attribute);
        }
    }

    pub(super) fn cast(&mut self, value: &str, to: i32) -> String {
        let output = self.fresh.name("quantised");
        self.cast_to(value, to, &output);
        output
    }

    pub(super) fn cast_to(&mut self, value: &str, to: i32, output: &str) {
        self.last("Cast", &[value], output);
        self.attribute(integer("to", to.into()));
    }

    pub(super) fn reduced(&mut self, op: &str, value: &str) -> String {
        let output = self.op(op, &[value]);
        self.attribute(integer("keepdims", 0));
        output
    }

    pub(super) fn reshaped(&mut self, value: &str, shape: Shape) -> String {
        let Some(shape) = shape else { return value.to_owned() };
        let dims = vec![i64::try_from(shape.len()).unwrap_or(i64::MAX)];
        let shape = TensorProto { dims, data_type: I64, int64_data: shape, ..TensorProto::default() };
        let shape = self.constant(shape);
        self.op("Reshape", &[value, &shape])
    }

    /// A constant float without an axis.
    pub(super) fn floats(&mut self, value: f32) -> String {
        self.constant(TensorProto { data_type: F32, float_data: vec![value], ..TensorProto::default() })
    }

    fn constant(&mut self, tensor: TensorProto) -> String {
        let (name, node) = self.fresh.constant("quantised", tensor);
        self.nodes.push(node);
        name
    }
}

/// An attribute that is an integer.
pub(super) fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: attribute_proto::AttributeType::Int.into(),
        i: value,
        ..AttributeProto::default()
    }
}
