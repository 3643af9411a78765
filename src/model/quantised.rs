//! Rewrites the operators of quantised models into plain ones, so that their convolutions and products can be coded.
//!
//! Relevant for models of 8-bit integers: QLinearConv, ConvInteger, QLinearMatMul, MatMulInteger, and convolutions between
//! DequantizeLinear and QuantizeLinear (QDQ). Zero points are subtracted first. What remains are sums of products of
//! integers: exact in f64, and exact after rounding where workers decode them ([`whole`](super::whole)). Everything after
//! the sums follows the standard and onnxruntime: sums in int32, scales and products in f32, halves to the even number.
//!
//! A convolution of a QDQ graph is rewritten too, although its file asks for floats: its output then does not depend on which
//! workers answered, not even where rounding errors would decide a tie of the next quantisation. QuantizeLinear is
//! rewritten because tract multiplies by the reciprocal of the scale, which decides some ties otherwise than the quotient.
//!
//! Invariant: the meaning of the file does not change. A node whose types or shapes are not known from the file stays as it
//! is, for tract.

use std::collections::HashMap;

use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::check::{self, attribute, is_standard, name_of};
use super::nodes::{F32, F64, I8, I32, I64, Nodes, Shape, U8, integer};
use super::whole;

/// The largest difference of two integers of 8 bits.
const LARGEST: i64 = 255;

/// Maximum number of axes of an array with parameters for each channel.
const MOST_AXES: usize = 8;

/// Attributes that Conv has in common with the quantised convolutions.
const WINDOW: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

/// Rewrites a graph and the graphs inside its nodes.
pub(super) fn graph(graph: &mut GraphProto) {
    let mut rewriting = Rewriting {
        constants: constants(graph),
        casts: casts(graph),
        dequantised: dequantised(graph),
        nodes: Nodes::of(graph, "quantised"),
    };
    for mut node in std::mem::take(&mut graph.node) {
        for inner in &mut node.attribute {
            inner.g.iter_mut().chain(&mut inner.graphs).for_each(self::graph);
        }
        if rewriting.rewrite(&node).is_none() {
            rewriting.nodes.add(node);
        }
    }
    graph.node = rewriting.nodes.done();
}

/// What is known of a parameter.
struct Constant {
    dtype: i32,
    dims: Vec<i64>,
    /// The value of a single integer of 8 bits.
    byte: Option<i64>,
}

impl Constant {
    fn of(tensor: &TensorProto) -> Self {
        let raw = tensor.raw_data.first().filter(|_| tensor.raw_data.len() == 1);
        let byte = match (tensor.data_type, raw) {
            (U8, Some(raw)) => Some(i64::from(*raw)),
            (I8, Some(raw)) => Some(i64::from(raw.cast_signed())),
            (U8 | I8, None) if tensor.int32_data.len() == 1 => Some(i64::from(tensor.int32_data[0])),
            _ => None,
        };
        Self { dtype: tensor.data_type, dims: tensor.dims.clone(), byte }
    }

    fn is_single(&self) -> bool {
        self.dims.iter().all(|size| *size == 1)
    }

    /// Whether the elements are integers of 8 bits.
    fn is_bytes(&self) -> bool {
        matches!(self.dtype, U8 | I8)
    }
}

/// The constants of a graph, from initializers and from Constant nodes.
fn constants(graph: &GraphProto) -> HashMap<String, Constant> {
    let known = check::constants(graph).into_iter();
    let known = known.map(|(name, tensor)| (name.to_owned(), Constant::of(tensor)));
    // As much is known of the scale and the zero point of a dynamic quantisation.
    let single = |dtype| Constant { dtype, dims: Vec::new(), byte: None };
    let dynamic =
        graph.node.iter().filter(|node| node.op_type == "DynamicQuantizeLinear" && is_standard(node));
    let dynamic = dynamic.flat_map(|node| node.output.iter().skip(1).cloned().zip([single(F32), single(U8)]));
    known.chain(dynamic).collect()
}

/// The types of 8-bit integers to which the Cast nodes of a graph convert.
fn casts(graph: &GraphProto) -> HashMap<String, i32> {
    let of = |node: &NodeProto| {
        let to = attribute(node, "to")
            .and_then(|to| i32::try_from(to.i).ok())
            .filter(|to| range(*to).is_some())?;
        Some((node.output.first()?.clone(), to))
    };
    let casts = graph.node.iter().filter(|node| node.op_type == "Cast" && is_standard(node));
    casts.filter_map(of).collect()
}

/// A value before DequantizeLinear.
#[derive(Clone)]
struct Dequantised {
    integers: String,
    scale: String,
    zero: Option<String>,
    axis: i64,
}

/// The outputs of the DequantizeLinear nodes of a graph.
fn dequantised(graph: &GraphProto) -> HashMap<String, Dequantised> {
    let of = |node: &NodeProto| {
        let (integers, scale) = (input(node, 0)?.to_owned(), input(node, 1)?.to_owned());
        let axis = attribute(node, "axis").map_or(1, |axis| axis.i);
        let zero = input(node, 2).map(str::to_owned);
        let plain = is_standard(node) && attribute(node, "block_size").is_none_or(|size| size.i == 0);
        plain.then(|| Some((node.output.first()?.clone(), Dequantised { integers, scale, zero, axis })))?
    };
    graph.node.iter().filter(|node| node.op_type == "DequantizeLinear").filter_map(of).collect()
}

/// The name of an input, if it is given.
fn input(node: &NodeProto, slot: usize) -> Option<&str> {
    node.input.get(slot).map(String::as_str).filter(|name| !name.is_empty())
}

/// The smallest and the largest integer of a type of 8 bits.
fn range(dtype: i32) -> Option<(f32, f32)> {
    match dtype {
        U8 => Some((0.0, 255.0)),
        I8 => Some((-128.0, 127.0)),
        _ => None,
    }
}

struct Rewriting {
    constants: HashMap<String, Constant>,
    /// The types of the outputs of Cast nodes.
    casts: HashMap<String, i32>,
    dequantised: HashMap<String, Dequantised>,
    nodes: Nodes,
}

impl Rewriting {
    /// Replaces a node by others. `None`, and nothing is changed, for nodes that stay.
    fn rewrite(&mut self, node: &NodeProto) -> Option<()> {
        if !is_standard(node) {
            return None;
        }
        match node.op_type.as_str() {
            "QLinearConv" => self.qlinear_conv(node),
            "ConvInteger" => self.conv_integer(node),
            "QLinearMatMul" => self.qlinear_matmul(node),
            "MatMulInteger" => self.matmul_integer(node),
            "Conv" => self.dequantised_conv(node),
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            "DynamicQuantizeLinear" => self.dynamic(node),
            _ => None,
        }
    }

    fn qlinear_conv(&mut self, node: &NodeProto) -> Option<()> {
        let name = |slot| input(node, slot);
        let (x, w) = ((name(0)?, name(2)), (name(3)?, name(5)));
        let rank = self.rank(w.0)?;
        let scale = self.along(name(4)?, 0, rank - 1)?;
        let to = self.target(name(7)?)?;
        let sums = self.conv(node, x, w)?;
        let sums = self.nodes.cast(&sums, I64);
        let sums = match name(8) {
            None => sums,
            Some(bias) => {
                let bias = self.nodes.cast(bias, I64);
                let bias = self.nodes.reshaped(&bias, Some(channels(rank - 1)));
                self.nodes.op("Add", &[&sums, &bias])
            }
        };
        self.requantise(&sums, [name(1)?, name(4)?, name(6)?], scale, (name(7)?, to), node.output.first()?);
        Some(())
    }

    fn conv_integer(&mut self, node: &NodeProto) -> Option<()> {
        let sums = self.conv(node, (input(node, 0)?, input(node, 2)), (input(node, 1)?, input(node, 3)))?;
        self.int32(&sums, node.output.first()?);
        Some(())
    }

    fn qlinear_matmul(&mut self, node: &NodeProto) -> Option<()> {
        let name = |slot| input(node, slot);
        let single = |name: &str| self.constants.get(name).is_some_and(Constant::is_single);
        if !single(name(1)?) {
            return None;
        }
        let to = self.target(name(7)?)?;
        let sums = self.matmul(node, (name(0)?, name(2)), (name(3)?, name(5)))?;
        let sums = self.nodes.cast(&sums, I64);
        self.requantise(&sums, [name(1)?, name(4)?, name(6)?], None, (name(7)?, to), node.output.first()?);
        Some(())
    }

    fn matmul_integer(&mut self, node: &NodeProto) -> Option<()> {
        let sums = self.matmul(node, (input(node, 0)?, input(node, 2)), (input(node, 1)?, input(node, 3)))?;
        self.int32(&sums, node.output.first()?);
        Some(())
    }

    /// A convolution whose data and filters were integers of 8 bits.
    fn dequantised_conv(&mut self, node: &NodeProto) -> Option<()> {
        let x = self.dequantised.get(input(node, 0)?)?.clone();
        let w = self.dequantised.get(input(node, 1)?)?.clone();
        let filters = self.constants.get(&w.integers).filter(|filters| filters.is_bytes())?;
        let zero = self.constants.get(x.zero.as_deref()?).filter(|zero| zero.is_bytes())?;
        let single = |name: &str| self.constants.get(name).is_some_and(|s| s.is_single() && s.dtype == F32);
        let rank = filters.dims.len();
        let many = self.constants.get(&w.scale).is_some_and(|scale| !scale.is_single());
        if !zero.is_single() || !single(&x.scale) || (many && w.axis != 0) {
            return None;
        }
        let scale = self.along(&w.scale, 0, rank.checked_sub(1)?)?;
        let sums = self.conv(node, (&x.integers, x.zero.as_deref()), (&w.integers, w.zero.as_deref()))?;
        self.nodes.attribute(integer(whole::FLOATS, 1));
        let floats = self.nodes.cast(&sums, F32);
        let factor = self.nodes.op("Mul", &[&x.scale, &w.scale]);
        let factor = self.nodes.reshaped(&factor, scale);
        let output = node.output.first()?;
        match input(node, 2) {
            None => self.nodes.last("Mul", &[&floats, &factor], output),
            Some(bias) => {
                let product = self.nodes.op("Mul", &[&floats, &factor]);
                let bias = self.nodes.reshaped(bias, Some(channels(rank - 1)));
                self.nodes.last("Add", &[&product, &bias], output);
            }
        }
        Some(())
    }

    /// `saturate(round(x / scale) + zero)`.
    fn quantize(&mut self, node: &NodeProto) -> Option<()> {
        let (x, scale, zero) = (input(node, 0)?, input(node, 1)?, input(node, 2));
        let (scale_shape, zero_shape) = self.parameters(node, x, scale, zero)?;
        let to = match zero {
            Some(zero) => self.target(zero)?,
            None if attribute(node, "output_dtype").is_none_or(|dtype| dtype.i == i64::from(U8)) => U8,
            None => return None,
        };
        let scale = self.nodes.reshaped(scale, scale_shape);
        let scaled = self.nodes.op("Div", &[x, &scale]);
        let zero = zero.map(|zero| {
            let zero = self.nodes.cast(zero, F32);
            self.nodes.reshaped(&zero, zero_shape)
        });
        self.saturate(&scaled, zero.as_deref(), to, node.output.first()?);
        Some(())
    }

    /// `(x - zero) * scale`.
    fn dequantize(&mut self, node: &NodeProto) -> Option<()> {
        let (x, scale, zero) = (input(node, 0)?, input(node, 1)?, input(node, 2));
        let (scale_shape, zero_shape) = self.parameters(node, x, scale, zero)?;
        let mut floats = self.nodes.cast(x, F32);
        if let Some(zero) = zero.filter(|zero| !self.is_zero(zero)) {
            let zero = self.nodes.cast(zero, F32);
            let zero = self.nodes.reshaped(&zero, zero_shape);
            floats = self.nodes.op("Sub", &[&floats, &zero]);
        }
        let scale = self.nodes.reshaped(scale, scale_shape);
        self.nodes.last("Mul", &[&floats, &scale], node.output.first()?);
        Some(())
    }

    fn dynamic(&mut self, node: &NodeProto) -> Option<()> {
        let [y, scale, zero] = &node.output[..] else { return None };
        let x = input(node, 0)?;
        let [none, most, one] = [0.0, 255.0, 1.0].map(|value| self.nodes.floats(value));
        let (low, high) = (self.nodes.reduced("ReduceMin", x), self.nodes.reduced("ReduceMax", x));
        let (low, high) = (self.nodes.op("Min", &[&low, &none]), self.nodes.op("Max", &[&high, &none]));
        let span = self.nodes.op("Sub", &[&high, &low]);
        let step = self.nodes.op("Div", &[&span, &most]);
        let flat = self.nodes.op("Equal", &[&span, &none]);
        self.nodes.last("Where", &[&flat, &one, &step], scale);
        let below = self.nodes.op("Div", &[&low, scale]);
        let first = self.nodes.op("Sub", &[&none, &below]);
        let first = self.nodes.op("Max", &[&first, &none]);
        let first = self.nodes.op("Min", &[&first, &most]);
        let first = self.nodes.op("Round", &[&first]);
        self.nodes.cast_to(&first, U8, zero);
        let scaled = self.nodes.op("Div", &[x, scale]);
        self.saturate(&scaled, Some(&first), U8, y);
        Some(())
    }

    /// The sums of a convolution of integers, in f64.
    fn conv(&mut self, node: &NodeProto, x: (&str, Option<&str>), w: (&str, Option<&str>)) -> Option<String> {
        let rank = self.rank(w.0)?;
        let zero = match w.1 {
            Some(zero) => self.along(zero, 0, rank)?,
            None => None,
        };
        let data = self.centred(x.0, x.1, None);
        let filters = self.centred(w.0, w.1, zero);
        let mut conv = self.product("Conv", &data, &filters, node);
        conv.attribute =
            node.attribute.iter().filter(|a| WINDOW.contains(&a.name.as_str())).cloned().collect();
        Some(self.whole(conv, x.1))
    }

    /// The sums of a product with a constant matrix of integers, in f64.
    fn matmul(
        &mut self,
        node: &NodeProto,
        a: (&str, Option<&str>),
        b: (&str, Option<&str>),
    ) -> Option<String> {
        if self.rank(b.0)? != 2 {
            return None;
        }
        let single = |name: &str| self.constants.get(name).map(Constant::is_single);
        if a.1.is_some_and(|zero| single(zero) != Some(true))
            || b.1.is_some_and(|zero| single(zero).is_none())
        {
            return None;
        }
        let data = self.centred(a.0, a.1, None);
        let weights = self.centred(b.0, b.1, None);
        let product = self.product("MatMul", &data, &weights, node);
        Some(self.whole(product, a.1))
    }

    /// A node with the name of `node`, or else of its output.
    fn product(&mut self, op: &str, data: &str, weights: &str, node: &NodeProto) -> NodeProto {
        NodeProto {
            op_type: op.to_owned(),
            name: name_of(node).cloned().unwrap_or_default(),
            input: vec![data.to_owned(), weights.to_owned()],
            output: vec![self.nodes.name("sums")],
            ..NodeProto::default()
        }
    }

    /// Adds a product of integers, and marks its output. `zero` is the zero point of the data.
    fn whole(&mut self, product: NodeProto, zero: Option<&str>) -> String {
        let zero = zero.and_then(|zero| self.constants.get(zero));
        let largest = match zero.and_then(|zero| Some((zero.dtype, zero.byte?))) {
            Some((U8, zero)) => zero.max(255 - zero),
            Some((I8, zero)) => (zero + 128).max(127 - zero),
            _ => LARGEST,
        };
        let (sums, output) = (product.output[0].clone(), self.nodes.name("whole"));
        self.nodes.add(product);
        self.nodes.last(whole::NAME, &[&sums], &output);
        self.nodes.attribute(integer(whole::LARGEST, largest));
        output
    }

    /// `value - zero` in f64, where `shape` makes the zero point broadcast.
    fn centred(&mut self, value: &str, zero: Option<&str>, shape: Shape) -> String {
        let wide = self.nodes.cast(value, F64);
        let Some(zero) = zero.filter(|zero| !self.is_zero(zero)) else { return wide };
        let zero = self.nodes.cast(zero, F64);
        let zero = self.nodes.reshaped(&zero, shape);
        self.nodes.op("Sub", &[&wide, &zero])
    }

    /// From sums in i64 to `to` integers of 8 bits; `scales` are those of data, weights and output.
    fn requantise(&mut self, sums: &str, scales: [&str; 3], shape: Shape, to: (&str, i32), output: &str) {
        let sums = self.nodes.cast(sums, I32);
        let floats = self.nodes.cast(&sums, F32);
        let factor = self.nodes.op("Mul", &scales[..2]);
        let factor = self.nodes.op("Div", &[&factor, scales[2]]);
        let factor = self.nodes.reshaped(&factor, shape);
        let scaled = self.nodes.op("Mul", &[&floats, &factor]);
        let zero = self.nodes.cast(to.0, F32);
        self.saturate(&scaled, Some(&zero), to.1, output);
    }

    /// `saturate(round(scaled) + zero)` as integers of the type `to`.
    fn saturate(&mut self, scaled: &str, zero: Option<&str>, to: i32, output: &str) {
        let mut value = self.nodes.op("Round", &[scaled]);
        if let Some(zero) = zero {
            value = self.nodes.op("Add", &[&value, zero]);
        }
        let (low, high) = range(to).unwrap_or_default();
        let (low, high) = (self.nodes.floats(low), self.nodes.floats(high));
        let value = self.nodes.op("Max", &[&value, &low]);
        let value = self.nodes.op("Min", &[&value, &high]);
        self.nodes.cast_to(&value, to, output);
    }

    /// Sums in f64 as int32, which wraps.
    fn int32(&mut self, sums: &str, output: &str) {
        let sums = self.nodes.cast(sums, I64);
        self.nodes.cast_to(&sums, I32, output);
    }

    /// The shapes with which scale and zero point of a (de)quantisation of `x` broadcast.
    fn parameters(
        &self,
        node: &NodeProto,
        x: &str,
        scale: &str,
        zero: Option<&str>,
    ) -> Option<(Shape, Shape)> {
        if attribute(node, "block_size").is_some_and(|size| size.i != 0) {
            return None;
        }
        let axis = attribute(node, "axis").map_or(1, |axis| axis.i);
        let shape = |name: &str| -> Option<Shape> {
            let Some(known) = self.constants.get(name) else { return Some(None) };
            if known.is_single() {
                return Some(None);
            }
            // The axes behind that of the channels.
            let behind = match (usize::try_from(axis), self.rank(x)) {
                (Ok(axis), Some(rank)) => rank.checked_sub(axis + 1)?,
                (Ok(_), None) => return None,
                (Err(_), _) => usize::try_from(-1 - axis).ok().filter(|behind| *behind < MOST_AXES)?,
            };
            (known.dims.len() == 1).then(|| Some(channels(behind + 1)))
        };
        let floats = self.constants.get(scale).is_none_or(|scale| scale.dtype == F32);
        let zero = match zero {
            Some(zero) => shape(zero)?,
            None => None,
        };
        floats.then_some((shape(scale)?, zero))
    }

    fn rank(&self, name: &str) -> Option<usize> {
        self.constants.get(name).map(|known| known.dims.len()).filter(|rank| *rank > 0)
    }

    /// The shape with which a constant of one value, or one for each element of axis `axis`, broadcasts over `rank` axes.
    fn along(&self, name: &str, axis: usize, rank: usize) -> Option<Shape> {
        let known = self.constants.get(name)?;
        if known.is_single() {
            return Some(None);
        }
        (known.dims.len() == 1 && axis < rank).then(|| Some(channels(rank - axis)))
    }

    /// The type of 8-bit integers that a zero point has, if it is a constant or the output of a Cast.
    fn target(&self, zero: &str) -> Option<i32> {
        let constant = self.constants.get(zero).filter(|zero| zero.is_bytes());
        constant.map(|zero| zero.dtype).or_else(|| self.casts.get(zero).copied())
    }

    fn is_zero(&self, name: &str) -> bool {
        self.constants.get(name).is_some_and(|known| known.byte == Some(0))
    }
}

/// The shape of one value for each element of the first of `rank` axes.
fn channels(rank: usize) -> Vec<i64> {
    let mut shape = vec![1; rank.max(1)];
    shape[0] = -1;
    shape
}
