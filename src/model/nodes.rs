//! Makes nodes of an ONNX graph, for rewrites of a file before tract reads it.
//!
//! Relevant if you want to rewrite an operator into others.
//!
//! Invariant: every value that a node makes has a name that the graph did not contain, unless the caller names it.

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto};

use super::fresh::{Fresh, constant_node};

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
    /// The beginning of the names of new values.
    base: &'static str,
    fresh: Fresh,
    made: Vec<NodeProto>,
}

impl Nodes {
    /// No nodes yet, for a rewrite of `graph`; names of new values begin with `base`.
    pub(super) fn of(graph: &GraphProto, base: &'static str) -> Self {
        Self { base, fresh: Fresh::of(graph), made: Vec::with_capacity(graph.node.len()) }
    }

    /// All nodes.
    pub(super) fn done(self) -> Vec<NodeProto> {
        self.made
    }

    pub(super) fn add(&mut self, node: NodeProto) {
        self.made.push(node);
    }

    /// A new name for a value.
    pub(super) fn name(&mut self, base: &str) -> String {
        self.fresh.name(base)
    }

    /// Adds a node; returns its output.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        let output = self.fresh.name(self.base);
        self.last(op, inputs, &output);
        output
    }

    /// Adds a node that makes `output`.
    pub(super) fn last(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.made.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
    }

    /// Adds an attribute to the newest node.
    pub(super) fn attribute(&mut self, attribute: AttributeProto) {
        if let Some(node) = self.made.last_mut() {
            node.attribute.push(attribute);
        }
    }

    pub(super) fn cast(&mut self, value: &str, to: i32) -> String {
        let output = self.fresh.name(self.base);
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
        let shape = self.integers(&shape);
        self.op("Reshape", &[value, &shape])
    }

    /// A constant float without an axis.
    pub(super) fn floats(&mut self, value: f32) -> String {
        self.constant(TensorProto { data_type: F32, float_data: vec![value], ..TensorProto::default() })
    }

    /// A constant list of integers.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        self.constant(integers(values))
    }

    /// A constant.
    pub(super) fn constant(&mut self, tensor: TensorProto) -> String {
        let name = self.fresh.name(self.base);
        self.named_constant(name.clone(), tensor);
        name
    }

    /// A constant called `name`.
    pub(super) fn named_constant(&mut self, name: String, tensor: TensorProto) {
        self.made.push(constant_node(name, tensor));
    }
}

/// A list of 64-bit integers.
pub(super) fn integers(values: &[i64]) -> TensorProto {
    TensorProto {
        dims: vec![i64::try_from(values.len()).unwrap_or(i64::MAX)],
        data_type: I64,
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// An attribute that is a list of integers.
pub(super) fn integers_attribute(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: attribute_proto::AttributeType::Ints.into(),
        ints: values.to_vec(),
        ..AttributeProto::default()
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
