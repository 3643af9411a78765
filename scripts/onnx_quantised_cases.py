#!/usr/bin/env python3
"""Writes quantised models with inputs and the outputs that they must have.

    python3 scripts/onnx_quantised_cases.py OUT_DIR     (needs onnx, onnxruntime and numpy)

writes OUT_DIR/NAME/{model.onnx,input_I.npy,output_J.npy,case.json}. case.json names the oracle:

- definition: operators computed here from the standard, with sums in int64. Outputs must be equal to the last bit.
- onnxruntime: whole networks and QDQ graphs, with all optimisations off. They contain convolutions in floats, whose rounding
  decides ties of a later quantisation. `quantum` is the step of the output, `ties` the largest share of elements that may
  be one or more steps away, `steps` the largest number of steps.

`coded` is the number of layers that must run on workers.
"""
import json
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
TYPES = {"u8": np.uint8, "i8": np.int8}
F32 = np.float32


def limits(dtype):
    info = np.iinfo(dtype)
    return info.min, info.max


def per(values, rank, axis):
    """One value for each element of an axis, to be broadcast."""
    values = np.asarray(values)
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def same_pads(size, kernel, stride, dilation, upper):
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def conv_sums(x, w, strides=None, pads=None, dilations=None, group=1, auto_pad="NOTSET", **_):
    """The sums of products of two arrays of int64, exactly as Conv is defined."""
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        upper = auto_pad == "SAME_UPPER"
        ends = [same_pads(x.shape[2 + a], w.shape[2 + a], strides[a], dilations[a], upper) for a in range(rank)]
    else:
        pads = pads or [0] * 2 * rank
        ends = list(zip(pads[:rank], pads[rank:]))
    x = np.pad(x, [(0, 0), (0, 0), *ends])
    span = [(w.shape[2 + a] - 1) * dilations[a] + 1 for a in range(rank)]
    out = [(x.shape[2 + a] - span[a]) // strides[a] + 1 for a in range(rank)]
    sums = np.zeros((x.shape[0], w.shape[0], *out), np.int64)
    each_in, each_out = x.shape[1] // group, w.shape[0] // group
    for tap in np.ndindex(*w.shape[2:]):
        window = tuple(
            slice(tap[a] * dilations[a], tap[a] * dilations[a] + (out[a] - 1) * strides[a] + 1, strides[a])
            for a in range(rank)
        )
        seen = x[(slice(None), slice(None), *window)]
        for g in range(group):
            part = seen[:, g * each_in : (g + 1) * each_in]
            filters = w[(slice(g * each_out, (g + 1) * each_out), slice(None), *tap)]
            sums[:, g * each_out : (g + 1) * each_out] += np.einsum("nc...,oc->no...", part, filters)
    return sums


def wrapped(sums):
    """As a sum in int32."""
    return sums.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)


def requantised(sums, x_scale, w_scale, y_scale, y_zero, axis):
    scale = (F32(x_scale) * np.asarray(w_scale, F32)).astype(F32) / F32(y_scale)
    scaled = wrapped(sums).astype(F32) * per(scale.astype(F32), sums.ndim, axis)
    low, high = limits(y_zero.dtype)
    zero = int(y_zero)
    return (np.clip(np.rint(scaled), low - zero, high - zero) + zero).astype(y_zero.dtype)


def quantised(x, scale, zero, axis=1):
    low, high = limits(zero.dtype)
    scale, wide = per(np.asarray(scale, F32), x.ndim, axis), per(zero, x.ndim, axis).astype(F32)
    return np.clip(np.rint((x / scale).astype(F32)) + wide, low, high).astype(zero.dtype)


def dequantised(x, scale, zero, axis=1):
    difference = x.astype(np.int64) - per(zero, x.ndim, axis).astype(np.int64)
    return (difference.astype(F32) * per(np.asarray(scale, F32), x.ndim, axis)).astype(F32)


def dynamic(x):
    low, high = min(F32(0), x.min()), max(F32(0), x.max())
    scale = F32(1) if low == high else F32(high - low) / F32(255)
    zero = np.uint8(np.rint(np.clip(F32(0) - low / scale, 0, 255)))
    return quantised(x, scale, zero), scale, zero


def onnxruntime_outputs(model, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


class Graph:
    """A model under construction."""

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.outputs = [], [], [], []

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name, value):
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.inputs.append((helper.make_tensor_value_info(name, kind, value.shape), value))
        return name

    def node(self, op, inputs, outputs="y", **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return outputs[0]

    def output(self, name, kind, shape):
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self):
        infos = [info for info, _ in self.inputs]
        graph = helper.make_graph(self.nodes, "g", infos, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def feeds(self):
        return {info.name: value for info, value in self.inputs}


class Cases:
    def __init__(self, out):
        self.out, self.count = out, 0

    def write(self, name, model, feeds, outputs, **facts):
        folder = os.path.join(self.out, name)
        os.makedirs(folder)
        onnx.save(model, os.path.join(folder, "model.onnx"))
        for i, value in enumerate(feeds.values()):
            np.save(os.path.join(folder, f"input_{i}.npy"), np.asarray(value, order="C"))
        for i, value in enumerate(outputs):
            np.save(os.path.join(folder, f"output_{i}.npy"), np.asarray(value, order="C"))
        facts = {"inputs": len(feeds), "outputs": len(outputs), "oracle": "definition", "coded": 0, **facts}
        with open(os.path.join(folder, "case.json"), "w") as f:
            json.dump(facts, f)
        self.count += 1


def drawn(rng, dtype, shape, share=1.0):
    """Integers of the middle `share` of a type's range."""
    low, high = limits(dtype)
    middle, reach = (low + high) / 2, (high - low) / 2 * share
    return rng.integers(int(middle - reach), int(middle + reach) + 1, shape).astype(dtype)


# name: x, w, per channel, bias, shape of x, shape of w, attributes
CONVOLUTIONS = {
    "u8_u8": ("u8", "u8", False, True, (1, 3, 17, 13), (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "u8_i8_channels": ("u8", "i8", True, True, (2, 5, 19, 16), (12, 5, 3, 3), {"pads": [1, 2, 0, 1]}),
    "i8_i8_channels": ("i8", "i8", True, False, (1, 4, 15, 15), (8, 4, 5, 5), {"strides": [2, 2], "pads": [2, 2, 2, 2]}),
    "i8_u8": ("i8", "u8", False, True, (1, 4, 12, 11), (8, 4, 3, 2), {"strides": [1, 2]}),
    "groups": ("u8", "i8", True, True, (1, 6, 14, 14), (12, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ("u8", "u8", True, True, (1, 8, 13, 13), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "same_upper": ("u8", "i8", False, True, (1, 3, 13, 18), (8, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ("i8", "i8", True, False, (1, 3, 13, 18), (8, 3, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ("u8", "u8", False, False, (1, 3, 11, 9), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    "dilated": ("u8", "i8", False, True, (1, 3, 20, 20), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "one_axis": ("u8", "i8", True, True, (2, 4, 40), (8, 4, 5), {"pads": [2, 2]}),
    "three_axes": ("i8", "i8", True, True, (1, 2, 9, 8, 7), (6, 2, 3, 2, 3), {"pads": [1, 0, 1, 1, 1, 1]}),
    "pointwise": ("u8", "u8", False, True, (1, 64, 14, 14), (32, 64, 1, 1), {}),
    "deep": ("u8", "i8", True, True, (1, 256, 14, 14), (16, 256, 3, 3), {"pads": [1, 1, 1, 1]}),
}


def conv_parameters(rng, x_type, w_type, channels, w_shape):
    many = w_shape[0] if channels else 1
    low, high = limits(TYPES[w_type])
    w_zero = rng.integers(low + 100, high - 100, many).astype(TYPES[w_type])
    # Signed filters are symmetric in files, per channel even by the standard of onnxruntime.
    w_zero = np.zeros(many, TYPES[w_type]) if w_type == "i8" else w_zero
    w_scale = rng.uniform(0.002, 0.02, many).astype(F32)
    shaped = (lambda v: v) if channels else (lambda v: v.reshape(()))
    return shaped(w_scale), shaped(w_zero)


def qlinear_conv(cases, rng, name, x_type, w_type, channels, bias, x_shape, w_shape, attributes):
    graph = Graph()
    x, w = drawn(rng, TYPES[x_type], x_shape), drawn(rng, TYPES[w_type], w_shape, 0.8)
    w_scale, w_zero = conv_parameters(rng, x_type, w_type, channels, w_shape)
    x_zero = drawn(rng, TYPES[x_type], (), 0.5)
    y_zero = drawn(rng, TYPES[x_type], (), 0.3)
    wide_w = w.astype(np.int64) - per(w_zero, w.ndim, 0).astype(np.int64)
    sums = conv_sums(x.astype(np.int64) - int(x_zero), wide_w, **attributes)
    b = rng.integers(-(2**26), 2**26, w_shape[0]).astype(np.int32) // 1000 if bias else None
    if bias:
        sums = sums + per(b.astype(np.int64), sums.ndim, 1)
    x_scale = F32(0.03)
    y_scale = F32(np.abs(sums).std() * x_scale * np.mean(w_scale) / 40)
    y = requantised(sums, x_scale, w_scale, y_scale, y_zero, 1)
    constants = {"xs": x_scale, "xz": x_zero, "w": w, "ws": w_scale, "wz": w_zero, "ys": y_scale, "yz": y_zero}
    names = ["x", *(graph.constant(key, value) for key, value in constants.items())]
    if bias:
        names.append(graph.constant("b", b))
    graph.input("x", x)
    graph.node("QLinearConv", names, **attributes)
    graph.output("y", helper.np_dtype_to_tensor_dtype(y.dtype), y.shape)
    model = graph.model()
    cases.write(f"qlinear_conv_{name}", model, graph.feeds(), [y], coded=1)
    return model, graph.feeds(), y


def conv_integer(cases, rng, name, x_type, w_type, channels, zeros, x_shape, w_shape, attributes):
    graph = Graph()
    x, w = drawn(rng, TYPES[x_type], x_shape), drawn(rng, TYPES[w_type], w_shape)
    _, w_zero = conv_parameters(rng, x_type, w_type, channels, w_shape)
    x_zero = drawn(rng, TYPES[x_type], (), 0.5)
    names = [graph.input("x", x), graph.constant("w", w)]
    wide_x, wide_w = x.astype(np.int64), w.astype(np.int64)
    if zeros:
        names += [graph.constant("xz", x_zero), graph.constant("wz", w_zero)]
        wide_x, wide_w = wide_x - int(x_zero), wide_w - per(w_zero, w.ndim, 0).astype(np.int64)
    y = wrapped(conv_sums(wide_x, wide_w, **attributes))
    graph.node("ConvInteger", names, **attributes)
    graph.output("y", TensorProto.INT32, y.shape)
    cases.write(f"conv_integer_{name}", graph.model(), graph.feeds(), [y], coded=1)


def computed_filters(cases, rng):
    """Filters that are an input of the model: nothing can be coded."""
    graph = Graph()
    x, w = drawn(rng, np.uint8, (1, 3, 9, 9)), drawn(rng, np.int8, (4, 3, 3, 3))
    graph.node("ConvInteger", [graph.input("x", x), graph.input("w", w), graph.constant("xz", np.uint8(7))])
    y = wrapped(conv_sums(x.astype(np.int64) - 7, w.astype(np.int64)))
    graph.output("y", TensorProto.INT32, y.shape)
    cases.write("conv_integer_computed_filters", graph.model(), graph.feeds(), [y])


def products(cases, rng):
    for a_type, b_type, columns, shape, size in [
        ("u8", "u8", False, (5, 70), 33),
        ("u8", "i8", True, (40, 64), 48),
        ("i8", "i8", True, (2, 9, 50), 24),
        ("u8", "i8", False, (30, 2000), 16),
    ]:
        many = size if columns else 1
        a, b = drawn(rng, TYPES[a_type], shape), drawn(rng, TYPES[b_type], (shape[-1], size), 0.9)
        b_zero = np.zeros(many, b.dtype) if b_type == "i8" else drawn(rng, b.dtype, many, 0.4)
        b_scale = rng.uniform(0.002, 0.02, many).astype(F32)
        if not columns:
            b_zero, b_scale = b_zero.reshape(()), b_scale.reshape(())
        a_zero, a_scale = drawn(rng, a.dtype, (), 0.5), F32(0.02)
        sums = (a.astype(np.int64) - int(a_zero)) @ (b.astype(np.int64) - b_zero.astype(np.int64))
        y_zero, y_scale = drawn(rng, a.dtype, (), 0.3), F32(sums.std() * a_scale * b_scale.mean() / 40)
        name = f"{a_type}_{b_type}_{'x'.join(map(str, shape))}"
        graph = Graph()
        names = [graph.input("x", a), graph.constant("b", b), graph.constant("az", a_zero), graph.constant("bz", b_zero)]
        graph.node("MatMulInteger", names)
        graph.output("y", TensorProto.INT32, sums.shape)
        cases.write(f"matmul_integer_{name}", graph.model(), graph.feeds(), [wrapped(sums)], coded=1)
        graph = Graph()
        constants = {"as": a_scale, "az": a_zero, "b": b, "bs": b_scale, "bz": b_zero, "ys": y_scale, "yz": y_zero}
        graph.input("x", a)
        graph.node("QLinearMatMul", ["x", *(graph.constant(key, value) for key, value in constants.items())])
        y = requantised(sums, a_scale, b_scale, y_scale, y_zero, sums.ndim - 1)
        graph.output("y", helper.np_dtype_to_tensor_dtype(y.dtype), y.shape)
        cases.write(f"qlinear_matmul_{name}", graph.model(), graph.feeds(), [y], coded=1)


def quantisations(cases, rng):
    """QuantizeLinear at ties and beyond the range, DequantizeLinear, DynamicQuantizeLinear."""
    for dtype in TYPES:
        graph = Graph()
        x = np.concatenate([np.arange(-600, 600) / 2, np.arange(-200, 200) / 20]).astype(F32).reshape(2, 4, 200)
        scale = np.array([0.5, 1.0, 0.7, 3.0], F32)
        zero = drawn(rng, TYPES[dtype], 4, 0.6)
        graph.input("x", x)
        graph.node("QuantizeLinear", ["x", graph.constant("s", scale), graph.constant("z", zero)], "y", axis=1)
        graph.node("DequantizeLinear", ["y", "s", "z"], "d", axis=-2)
        graph.node("QuantizeLinear", ["x", graph.constant("tenth", F32(0.1)), graph.constant("first", zero[0])], "t")
        y = quantised(x, scale, zero)
        kind = helper.np_dtype_to_tensor_dtype(zero.dtype)
        graph.output("y", kind, x.shape)
        graph.output("d", TensorProto.FLOAT, x.shape)
        graph.output("t", kind, x.shape)
        # Ties where the quotient differs from a product with the reciprocal.
        assert np.count_nonzero(np.rint(x / F32(0.1)) != np.rint(x * (F32(1) / F32(0.1)))) > 10
        outputs = [y, dequantised(y, scale, zero), quantised(x, F32(0.1), zero[0])]
        cases.write(f"quantise_{dtype}", graph.model(), graph.feeds(), outputs)
    for name, x in {
        "mixed": rng.normal(0.3, 2, (3, 50)),
        "positive": rng.uniform(1, 5, (3, 50)),
        "negative": -rng.uniform(1, 5, (3, 50)),
        "zero": np.zeros((3, 50)),
    }.items():
        graph = Graph()
        x = graph.inputs.append((helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape), x.astype(F32))) or x.astype(F32)
        graph.node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
        y, scale, zero = dynamic(x)
        graph.output("y", TensorProto.UINT8, x.shape)
        graph.output("s", TensorProto.FLOAT, ())
        graph.output("z", TensorProto.UINT8, ())
        cases.write(f"dynamic_{name}", graph.model(), graph.feeds(), [y, np.asarray(scale), np.asarray(zero)])


def dynamic_conv(cases, rng):
    """What onnxruntime makes of a Conv by dynamic quantisation."""
    graph = Graph()
    x = graph.input("x", rng.normal(0.2, 1, (1, 6, 18, 15)).astype(F32)) and graph.inputs[0][1]
    w, w_zero, w_scale = drawn(rng, np.uint8, (8, 6, 3, 3)), np.uint8(121), F32(0.0123)
    graph.node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    graph.node("ConvInteger", ["q", graph.constant("w", w), "z", graph.constant("wz", w_zero)], "sums", pads=[1, 1, 1, 1])
    graph.node("Cast", ["sums"], "floats", to=TensorProto.FLOAT)
    graph.node("Mul", ["s", graph.constant("ws", w_scale)], "scale")
    graph.node("Mul", ["floats", "scale"])
    q, scale, zero = dynamic(x)
    sums = conv_sums(q.astype(np.int64) - int(zero), w.astype(np.int64) - int(w_zero), pads=[1, 1, 1, 1])
    y = sums.astype(F32) * (scale * w_scale)
    graph.output("y", TensorProto.FLOAT, y.shape)
    cases.write("dynamic_conv", graph.model(), graph.feeds(), [y], coded=1)


def qdq_conv(cases, rng, name, x_type, w_type, channels, relu):
    graph = Graph()
    x_shape, w_shape, attributes = (1, 5, 18, 17), (8, 5, 3, 3), {"pads": [1, 1, 1, 1], "strides": [1, 2]}
    x, w = rng.normal(0, 1, x_shape).astype(F32), drawn(rng, TYPES[w_type], w_shape, 0.8)
    w_scale, w_zero = conv_parameters(rng, x_type, w_type, channels, w_shape)
    x_scale, x_zero = F32(6 / 255), drawn(rng, TYPES[x_type], (), 0.2)
    b = rng.integers(-4000, 4000, w_shape[0]).astype(np.int32)
    b_scale = (x_scale * w_scale).astype(F32) * np.ones(w_shape[0], F32)
    for key, value in {"xs": x_scale, "xz": x_zero, "w": w, "ws": w_scale, "wz": w_zero, "b": b, "bs": b_scale}.items():
        graph.constant(key, value)
    graph.input("x", x)
    graph.node("QuantizeLinear", ["x", "xs", "xz"], "xq")
    graph.node("DequantizeLinear", ["xq", "xs", "xz"], "xd")
    graph.node("DequantizeLinear", ["w", "ws", "wz"], "wd", axis=0)
    graph.node("DequantizeLinear", ["b", "bs", graph.constant("bz", np.zeros(w_shape[0], np.int32))], "bd", axis=0)
    last = graph.node("Conv", ["xd", "wd", "bd"], "c", **attributes)
    if relu:
        last = graph.node("Relu", ["c"], "r")
    q = quantised(x, x_scale, x_zero)
    wide_w = w.astype(np.int64) - per(w_zero, w.ndim, 0).astype(np.int64)
    sums = conv_sums(q.astype(np.int64) - int(x_zero), wide_w, **attributes) + per(b.astype(np.int64), 4, 1)
    y_scale, y_zero = F32(sums.std() * x_scale * np.mean(w_scale) / 40), drawn(rng, TYPES[x_type], (), 0.2)
    graph.node("QuantizeLinear", [last, graph.constant("ys", y_scale), graph.constant("yz", y_zero)])
    graph.output("y", helper.np_dtype_to_tensor_dtype(y_zero.dtype), sums.shape)
    graph.output("c", TensorProto.FLOAT, sums.shape)
    model = graph.model()
    want = onnxruntime_outputs(model, graph.feeds())
    facts = {"oracle": "onnxruntime", "quanta": [1.0, float(y_scale) / 1000], "ties": [0.005, 1.0], "steps": 1}
    cases.write(f"qdq_conv_{name}", model, graph.feeds(), want, coded=1, **facts)


def floats_network(rng):
    """A small CNN as exporters write it, before quantisation."""
    graph = Graph()
    filters = lambda name, *shape: graph.constant(name, rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(F32))
    biases = lambda name, size: graph.constant(name, rng.normal(0, 0.1, size).astype(F32))
    graph.node("Conv", ["x", filters("w1", 16, 3, 3, 3), biases("b1", 16)], "c1", pads=[1, 1, 1, 1])
    graph.node("Relu", ["c1"], "r1")
    graph.node("MaxPool", ["r1"], "p1", kernel_shape=[2, 2], strides=[2, 2])
    graph.node("Conv", ["p1", filters("w2", 16, 1, 3, 3), biases("b2", 16)], "c2", pads=[1, 1, 1, 1], group=16)
    graph.node("Relu", ["c2"], "r2")
    graph.node("Conv", ["r2", filters("w3", 32, 16, 1, 1), biases("b3", 32)], "c3")
    graph.node("Conv", ["p1", filters("w4", 32, 16, 1, 1), biases("b4", 32)], "c4")
    graph.node("Add", ["c3", "c4"], "a")
    graph.node("Relu", ["a"], "r3")
    graph.node("Conv", ["r3", filters("w5", 24, 32, 3, 3), biases("b5", 24)], "c5", strides=[2, 2], pads=[1, 1, 1, 1])
    graph.node("Relu", ["c5"], "r5")
    graph.node("GlobalAveragePool", ["r5"], "g")
    graph.node("Flatten", ["g"], "f")
    graph.node("MatMul", ["f", filters("w6", 24, 10)], "m")
    graph.node("Add", ["m", biases("b6", 10)])
    graph.inputs.append((helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32, 32)), None))
    graph.output("y", TensorProto.FLOAT, (1, 10))
    return graph.model()


def networks(cases, rng):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    float_model = floats_network(rng)
    data = [{"x": rng.normal(0, 1, (1, 3, 32, 32)).astype(F32)} for _ in range(8)]

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(data)

        def get_next(self):
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        path, made = os.path.join(folder, "float.onnx"), os.path.join(folder, "made.onnx")
        onnx.save(float_model, path)

        def write(name, coded, ties):
            model = onnx.load(made)
            feeds = {"x": data[0]["x"]}
            want = onnxruntime_outputs(model, feeds)
            quantum = float(np.abs(want[0]).max()) / 127
            facts = {"oracle": "onnxruntime", "quanta": [quantum], "ties": [ties], "steps": 1}
            cases.write(f"network_{name}", model, feeds, want, coded=coded, **facts)

        for name, kinds in {
            "qdq_u8_i8": dict(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True),
            "qdq_i8_i8": dict(activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=False),
            "qdq_u8_u8": dict(activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8, per_channel=False),
        }.items():
            quantize_static(path, made, Reader(), quant_format=QuantFormat.QDQ, **kinds)
            write(name, 5, 0.3)
        quantize_static(
            path, made, Reader(), quant_format=QuantFormat.QOperator, op_types_to_quantize=["Conv"],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8,
        )
        # These end in floats, which differ in their last digits.
        write("operators", 5, 1.0)
        quantize_dynamic(path, made, weight_type=QuantType.QUInt8)
        write("dynamic", 5, 1.0)


def main(out):
    rng = np.random.default_rng(20260101)
    cases = Cases(out)
    differ = []
    for name, given in CONVOLUTIONS.items():
        model, feeds, y = qlinear_conv(cases, rng, name, *given)
        try:
            own = onnxruntime_outputs(model, feeds)[0]
            differ.append(f"{name} {np.count_nonzero(own != y)}/{y.size}")
        except Exception as error:  # Some combinations of types are not implemented there.
            differ.append(f"{name} not there: {str(error)[:60]}")
        x_type, w_type, channels, zeros, x_shape, w_shape, attributes = given
        conv_integer(cases, rng, name, x_type, w_type, channels, zeros, x_shape, w_shape, attributes)
    computed_filters(cases, rng)
    products(cases, rng)
    quantisations(cases, rng)
    dynamic_conv(cases, rng)
    for name, given in {
        "u8_i8_channels": ("u8", "i8", True, False),
        "i8_i8_relu": ("i8", "i8", False, True),
        "u8_u8_relu": ("u8", "u8", False, True),
    }.items():
        qdq_conv(cases, rng, name, *given)
    networks(cases, rng)
    print(f"{cases.count} cases; QLinearConv in onnxruntime differs from the definition:", *differ, sep="\n  ")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
