//! Small models for tests.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto, type_proto,
};

/// A graph under construction, of one input `x` of f32 and one output `y`.
pub(super) struct Net {
    graph: GraphProto,
}

fn wide(sizes: &[usize]) -> Vec<i64> {
    sizes.iter().map(|size| i64::try_from(*size).unwrap()).collect()
}

impl Net {
    pub(super) fn new(input: &[usize]) -> Self {
        let value = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
        let mut net = Self { graph: GraphProto { output: vec![value("y")], ..GraphProto::default() } };
        net.input("x", 1, input);
        net
    }

    /// A graph without inputs and outputs, for use inside a node.
    pub(super) fn bare() -> Self {
        Self { graph: GraphProto::default() }
    }

    /// Adds an input of elements of type `dtype`, a number of `tensor_proto::DataType`.
    pub(super) fn input(&mut self, name: &str, dtype: i32, shape: &[usize]) {
        let dim =
            |size: &i64| Dimension { value: Some(dimension::Value::DimValue(*size)), ..Dimension::default() };
        let shape = TensorShapeProto { dim: wide(shape).iter().map(dim).collect() };
        let tensor = type_proto::Tensor { elem_type: dtype, shape: Some(shape) };
        let of = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        let name = name.to_owned();
        self.graph.input.push(ValueInfoProto { name, r#type: Some(of), ..ValueInfoProto::default() });
    }

    pub(super) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: wide(shape),
            data_type: 1,
            float_data: values.to_vec(),
            ..TensorProto::default()
        });
    }

    pub(super) fn booleans(&mut self, name: &str, values: &[bool]) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: wide(&[values.len()]),
            data_type: 9,
            raw_data: values.iter().map(|value| u8::from(*value)).collect(),
            ..TensorProto::default()
        });
    }

    pub(super) fn integers(&mut self, name: &str, values: &[i64]) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: wide(&[values.len()]),
            data_type: 7,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
    }

    pub(super) fn node(&mut self, op: &str, inputs: &[&str], output: &str) -> &mut NodeProto {
        self.graph.node.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
        self.graph.node.last_mut().unwrap()
    }

    /// Adds an output.
    pub(super) fn output(&mut self, name: &str) {
        self.graph.output.push(ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() });
    }

    pub(super) fn graph(self) -> GraphProto {
        self.graph
    }

    /// The model as a message, with opset 17.
    pub(super) fn proto(self) -> ModelProto {
        let opset = OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() };
        let graph = Some(self.graph);
        ModelProto { ir_version: 8, opset_import: vec![opset], graph, ..ModelProto::default() }
    }
}

/// Attributes for nodes.
pub(super) trait Attributes {
    fn ints(&mut self, name: &str, values: &[i64]) -> &mut Self;
    fn int(&mut self, name: &str, value: i64) -> &mut Self;
    fn float(&mut self, name: &str, value: f32) -> &mut Self;
    fn string(&mut self, name: &str, value: &str) -> &mut Self;
}

fn named(name: &str, kind: attribute_proto::AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: kind.into(), ..AttributeProto::default() }
}

impl Attributes for NodeProto {
    fn ints(&mut self, name: &str, values: &[i64]) -> &mut Self {
        let ints = values.to_vec();
        self.attribute.push(AttributeProto { ints, ..named(name, attribute_proto::AttributeType::Ints) });
        self
    }

    fn int(&mut self, name: &str, value: i64) -> &mut Self {
        self.attribute.push(AttributeProto { i: value, ..named(name, attribute_proto::AttributeType::Int) });
        self
    }

    fn float(&mut self, name: &str, value: f32) -> &mut Self {
        self.attribute
            .push(AttributeProto { f: value, ..named(name, attribute_proto::AttributeType::Float) });
        self
    }

    fn string(&mut self, name: &str, value: &str) -> &mut Self {
        let s = value.as_bytes().to_vec();
        self.attribute.push(AttributeProto { s, ..named(name, attribute_proto::AttributeType::String) });
        self
    }
}
