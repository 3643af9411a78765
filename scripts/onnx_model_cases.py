#!/usr/bin/env python3
"""Writes ONNX models with inputs and onnxruntime's answers: whole networks, small graphs, broken files.

    python3 scripts/onnx_model_cases.py OUT_DIR [--seed S] [NAME ...]
    python3 scripts/onnx_model_cases.py --list      (names, each with its kind: small, large or broken)

Without names: everything small or broken, the shipped model and three large networks. Needs onnx, onnxruntime and numpy.
Each case is a folder OUT_DIR/NAME with model.onnx, input_I.npy, output_I.npy and case.json; one that exists
with the same seed and version is kept. Broken cases have no outputs, and an input only where one is possible.
"""
import argparse
import json
import os
import shutil
import time
import zlib

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

VERSION = 8  # of the cases: raise it with any change of what is written
OPSET = 17
IR_VERSION = 8
# Conv nodes of the networks whose graphs (without weights) the onnx package ships.
LARGE = {
    "squeezenet": 26, "shufflenet": 49, "resnet50": 53, "bvlc_alexnet": 5, "vgg19": 16, "densenet121": 121,
    "inception_v1": 57, "inception_v2": 69, "zfnet512": 5,
}  # fmt: skip
LARGE_BY_DEFAULT = ("squeezenet", "shufflenet", "resnet50")
# The model of the demonstration.
SHIPPED = "shipped_lenet5"
SMALL, BROKEN = {}, {}


def small(build):
    SMALL["small_" + build.__name__] = build


def broken(expect, feed=(1, 3, 8, 8), says=()):
    """`says` are words that the refusal must have."""

    def register(build):
        BROKEN["broken_" + build.__name__] = (build, expect, feed, says)

    return register


class Net:
    """A graph under construction; weights and inputs are drawn from one generator."""

    def __init__(self, rng):
        self.rng, self.dtype, self.tolerance = rng, np.float32, 1e-4
        self.nodes, self.constants, self.inputs, self.outputs, self.feeds = [], [], [], [], {}
        self.opset, self.functions = OPSET, []
        self.accept = lambda outputs: True  # whether the data are fit for a comparison, otherwise drawn anew

    def normal(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    def positive(self, *shape):
        return self.rng.uniform(0.5, 1.5, shape).astype(self.dtype)

    def const(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, self.dtype), name))
        return name

    def ints(self, values):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def weight(self, *shape, gain=1.0):
        """Filters that keep the variance through a ReLU."""
        return self.normal(*shape, scale=gain * np.sqrt(2.0 / np.prod(shape[1:])))

    def input(self, *shape, declared=None):
        name = f"x{len(self.inputs)}"
        self.feeds[name] = self.normal(*shape)
        elem = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, elem, declared or shape))
        return name

    def op(self, kind, *inputs, **attrs):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"{kind}_{len(self.nodes)}", **attrs))
        return name

    def conv(self, x, out, per_group, kernel=3, bias=True, gain=1.0, **attrs):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        inputs = [x, self.const(self.weight(out, per_group, *kernel, gain=gain))]
        if bias:
            inputs.append(self.const(self.normal(out, scale=0.5)))
        return self.op("Conv", *inputs, **attrs)

    def bn(self, x, channels, sign=1.0):
        # An epsilon far from the default, so that one that is ignored shows.
        scale, bias, mean = sign * self.positive(channels), self.normal(channels), self.normal(channels)
        stats = map(self.const, (scale, bias, mean, self.positive(channels)))
        return self.op("BatchNormalization", x, *stats, epsilon=0.1)

    def relu(self, x):
        return self.op("Relu", x)

    def model(self):
        # Neither type nor shape: inferred below, as exporters write them.
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in {f.domain for f in self.functions}]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=self.functions)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return model


def deformable(net, x, channels, out, kernel, points, groups=1, offset_groups=1, mask=True, spread=1.0, **attrs):
    """A deformable convolution whose offsets and mask are computed from its input by convolutions with `points`."""
    height, width = kernel
    moved = offset_groups * height * width
    offsets = net.conv(x, 2 * moved, channels, **points, gain=spread)
    weight = net.const(net.weight(out, channels // groups, height, width))
    inputs = [x, weight, offsets, net.const(net.normal(out))]
    if mask:
        inputs.append(net.op("Sigmoid", net.conv(x, moved, channels, **points)))
    return net.op("DeformConv", *inputs, group=groups, offset_group=offset_groups, **attrs)


# Small models: what a graph may look like around its convolutions. Each returns its outputs.


# Attributes of Conv: image, output channels, channels per group, kernel, attributes. The sizes are such that
# SAME_UPPER and SAME_LOWER differ and that axes cannot be mixed up.
CONVS = {
    "asymmetric_padding": ((1, 3, 11, 12), 8, 3, 3, {"pads": [0, 1, 2, 3], "strides": [2, 1]}),
    "same_upper_stride2": ((1, 3, 14, 11), 8, 3, (3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ((1, 3, 13, 10), 8, 3, (4, 2), {"auto_pad": "SAME_LOWER"}),
    "dilation": ((1, 3, 15, 17), 8, 3, 3, {"dilations": [2, 3], "pads": [1, 2, 1, 2]}),
    "grouped": ((1, 8, 10, 11), 12, 2, 3, {"group": 4, "pads": [1, 1, 1, 1]}),
    "conv_1d": ((2, 4, 40), 8, 4, (5,), {"strides": [2], "pads": [2, 1]}),
    "conv_3d": ((1, 2, 7, 8, 9), 6, 2, (3, 2, 3), {"pads": [1, 0, 1, 1, 0, 1], "strides": [1, 2, 1]}),
}


def single_conv(image, out, per_group, kernel, attrs):
    return lambda net: [net.relu(net.conv(net.input(*image), out, per_group, kernel, **attrs))]


SMALL.update({"small_" + name: single_conv(*case) for name, case in CONVS.items()})


def two_convs(net, x):
    return [net.conv(net.relu(net.conv(x, 8, 3, pads=[1, 1, 1, 1])), 6, 8)]


@small
def deform_conv(net):
    net.opset = 19
    x = net.conv(net.input(2, 3, 14, 17), 8, 3, pads=[1, 1, 1, 1])
    points = {"kernel": (3, 3), "pads": [1, 1, 1, 1]}
    y = deformable(net, net.relu(x), 8, 12, (3, 3), points, pads=[1, 1, 1, 1], kernel_shape=[3, 3], spread=2.0)
    return [net.relu(net.bn(y, 12))]


@small
def deform_conv_groups(net):
    net.opset = 22
    x = net.input(1, 12, 15, 19)
    points = {"kernel": (3, 5), "pads": [2, 0, 1, 3], "strides": [2, 3], "dilations": [2, 1]}
    y = deformable(net, x, 12, 10, (3, 5), points, groups=2, offset_groups=3, mask=False, spread=0.5, **{
        name: value for name, value in points.items() if name != "kernel"
    })  # fmt: skip
    return [y]


@small
def deform_conv_free_batch(net):
    net.opset = 19
    x = net.input(3, 4, 9, 9, declared=("N", 4, 9, 9))
    return [deformable(net, x, 4, 8, (1, 2), {"kernel": (1, 2)}, offset_groups=2)]


def branch(name, output, *nodes):
    """A branch of an If, of nodes that read values around it."""
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [made])


@small
def if_by_shape(net):
    """The branch that runs has a convolution; the other one has no meaning for these shapes."""
    x = net.relu(net.conv(net.input(1, 3, 12, 11, declared=("N", 3, "H", "W")), 8, 3))
    height = net.op("Gather", net.op("Shape", x), net.ints(2))
    weight, bias = net.const(net.weight(6, 8, 3, 3)), net.const(net.normal(6))
    inner = helper.make_node("Conv", [x, weight, bias], ["inner"], "Conv_in_branch", pads=[1, 0, 1, 2])
    taken = branch("taken", "clipped", inner, helper.make_node("Relu", ["inner"], ["clipped"]))
    squeezed = helper.make_node("Squeeze", [x, net.ints([2])], ["squeezed"])
    other = branch("other", "squeezed", squeezed)
    y = net.op("If", net.op("Equal", height, net.ints(10)), then_branch=taken, else_branch=other)
    # The branches differ in the number of axes.
    return [net.op("Mul", net.op("Reshape", y, net.ints([1, 6, 10, 9])), net.const(2.5))]


@small
def if_by_data(net):
    x = net.conv(net.input(2, 3, 9, 9), 8, 3)
    positive = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.0))
    taken = branch("taken", "doubled", helper.make_node("Add", [x, x], ["doubled"]))
    other = branch("other", "turned", helper.make_node("Neg", [x], ["turned"]))
    return [net.op("If", positive, then_branch=taken, else_branch=other)]


@small
def batch3(net):
    return two_convs(net, net.input(3, 3, 14, 13))


@small
def dynamic_batch(net):
    return two_convs(net, net.input(2, 3, 12, 11, declared=("N", 3, 12, 11)))


@small
def dynamic_size(net):
    return two_convs(net, net.input(2, 3, 13, 17, declared=("N", 3, "H", "W")))


@small
def depthwise_pointwise(net):
    deep = net.conv(net.input(1, 8, 12, 11), 8, 1, group=8, pads=[1, 1, 1, 1])
    return [net.conv(net.relu(deep), 16, 8, 1)]


@small
def bn_relu(net):
    return [net.relu(net.bn(net.conv(net.input(1, 3, 12, 11), 8, 3, bias=False), 8))]


@small
def bn_negative_scale(net):
    # Behind a folded normalization the sign is that of the filters: both signs occur.
    sign = np.where(np.arange(8) % 2, 1, -1)
    return [net.relu(net.bn(net.conv(net.input(1, 3, 12, 11), 8, 3), 8, sign))]


@small
def bn_shared(net):
    # The raw output is used as well, so the normalization must not be folded into the filters.
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    return [net.op("Add", net.bn(y, 8), y)]


@small
def relu_then_bn(net):
    y = net.relu(net.conv(net.input(1, 3, 12, 11), 8, 3))
    return [net.relu(net.bn(y, 8, np.where(np.arange(8) % 2, 1, -1)))]


@small
def relu_shared(net):
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    return [net.op("Add", net.relu(y), net.op("Sigmoid", y))]


@small
def conv_is_output(net):
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    return [y, net.relu(y)]


@small
def clip6(net):
    y = net.conv(net.input(1, 3, 12, 11), 8, 3, gain=4.0)  # so that both limits are met
    return [net.op("Clip", y, net.const(0.0), net.const(6.0))]


@small
def leaky_relu(net):
    return [net.op("LeakyRelu", net.conv(net.input(1, 3, 12, 11), 8, 3), alpha=0.3)]


@small
def prelu(net):
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    return [net.op("PRelu", y, net.const(net.normal(8, 1, 1)))]


@small
def scale_shift(net):
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    y = net.op("Mul", y, net.const(net.normal(1, 8, 1, 1)))
    y = net.op("Add", net.const(net.normal(8, 1, 1)), y)
    y = net.op("Sub", y, net.const(net.normal(1, 8, 1, 1)))
    return [net.relu(net.op("Div", y, net.const(0.7)))]


@small
def constant_first(net):
    # Constants on the left of Sub and Div: neither may be taken for the operation the other way round.
    y = net.op("Sub", net.const(net.normal(8, 1, 1)), net.conv(net.input(1, 3, 12, 11), 8, 3))
    square = net.op("Add", net.op("Mul", y, y), net.const(1.0))
    return [net.op("Div", net.const(net.normal(8, 1, 1)), square)]


@small
def constant_over_conv(net):
    # The bias keeps the denominator away from zero.
    conv = net.conv(net.input(1, 3, 9, 10), 8, 3, bias=False)
    away = net.op("Conv", *net.nodes[-1].input, net.const(np.full(8, 20.0)))
    return [net.op("Div", net.const(net.normal(8, 1, 1)), away), conv]


@small
def mul_by_per_pixel_constant(net):
    # Not a factor per channel, although the sides are as long as there are channels.
    y = net.conv(net.input(1, 3, 8, 8), 8, 3, pads=[1, 1, 1, 1])
    return [net.relu(net.op("Mul", y, net.const(net.normal(1, 8, 8, 8))))]


@small
def add_per_column_constant(net):
    # Shape [W] broadcasts along the last axis although W is the number of channels.
    y = net.conv(net.input(1, 3, 8, 8), 8, 3, pads=[1, 1, 1, 1])
    return [net.relu(net.op("Add", y, net.const(net.normal(8))))]


@small
def add_residual(net):
    x = net.input(1, 8, 12, 11)
    return [net.relu(net.op("Add", net.conv(x, 8, 8, pads=[1, 1, 1, 1]), x))]


@small
def gemm_variants(net):
    m, k, n = 6, 12, 7
    x, normal = net.input(m, k), lambda *shape: net.const(net.normal(*shape))
    return [
        net.op("Gemm", x, normal(k, n), normal(n)),
        net.op("Gemm", x, normal(n, k), normal(1, n), transB=1),
        net.op("Gemm", x, normal(n, k), normal(n), transB=1, alpha=0.5, beta=2.0),
        net.op("Gemm", x, normal(k, n), normal()),
        net.op("Gemm", x, normal(k, n), normal(m, 1), beta=0.5),
        net.op("Gemm", x, normal(k, n), normal(m, n)),
        net.op("Gemm", x, normal(k, n), alpha=0.3),
        net.op("Gemm", x, normal(m, n), normal(k, 1), transA=1),
        net.op("Gemm", x, normal(n, m), normal(n), transA=1, transB=1),
    ]


@small
def gemm_big(net):
    # Large enough that coding it pays.
    y = net.op("Flatten", net.input(2, 16, 8, 8))
    y = net.relu(net.op("Gemm", y, net.const(net.weight(2048, 1024)), net.const(net.normal(2048)), transB=1))
    return [net.op("Gemm", y, net.const(net.weight(512, 2048)), net.const(net.normal(512)), transB=1)]


@small
def matmul_2d(net):
    y = net.op("MatMul", net.input(5, 12), net.const(net.normal(12, 7)))
    y = net.relu(net.op("Add", y, net.const(net.normal(7))))
    return [net.op("MatMul", y, net.const(net.normal(7, 9)))]


@small
def matmul_3d(net):
    y = net.op("MatMul", net.input(2, 5, 12), net.const(net.normal(12, 7)))
    return [net.relu(net.op("Add", y, net.const(net.normal(7))))]


@small
def matmul_left(net):
    weight = net.const(net.normal(9, 6))
    return [net.op("MatMul", weight, net.input(6, 10)), net.op("MatMul", weight, net.input(2, 6, 10))]


@small
def matmul_dynamic(net):
    return [net.op("MatMul", net.input(5, 12), net.input(12, 7))]


@small
def matmul_vector(net):
    row = net.op("MatMul", net.input(12), net.const(net.normal(12, 7)))
    return [row, net.op("MatMul", net.input(5, 12), net.const(net.normal(12)))]


@small
def dynamic_filter(net):
    return [net.relu(net.op("Conv", net.input(1, 3, 12, 11), net.input(8, 3, 3, 3)))]


@small
def dynamic_bias(net):
    x, bias = net.input(1, 3, 12, 11), net.input(8)
    return [net.relu(net.op("Conv", x, net.const(net.weight(8, 3, 3, 3)), bias))]


@small
def computed_filter(net):
    x, scale = net.input(1, 3, 12, 11), net.const(net.normal(8, 1, 1, 1))
    return [net.relu(net.op("Conv", x, net.op("Mul", net.const(net.weight(8, 3, 3, 3)), scale)))]


@small
def two_inputs_two_outputs(net):
    left = net.conv(net.input(1, 3, 10, 9), 6, 3, strides=[2, 2])
    right = net.conv(net.input(1, 2, 10, 9), 5, 2, strides=[2, 2])
    both = net.op("Concat", left, right, axis=1)

    def no_close_calls(outputs):
        second, first = np.sort(outputs[0], axis=1)[:, -2:].swapaxes(0, 1)
        return (first - second).min() > 0.01  # rounding must not decide the index

    net.accept = no_close_calls
    return [both, net.op("ArgMax", both, axis=1)]


@small
def shared_weights(net):
    x, weight = net.input(1, 6, 12, 11), net.const(net.weight(6, 6, 3, 3))
    return [net.op("Conv", net.relu(net.op("Conv", x, weight)), weight, strides=[2, 1])]


@small
def tiny(net):
    return [net.conv(net.input(1, 1, 1, 1), 1, 1, 1)]


@small
def conv_f64(net):
    net.dtype = np.float64
    return [net.conv(net.relu(net.conv(net.input(1, 3, 12, 11), 8, 3)), 6, 8)]


@small
def conv_f16(net):
    net.dtype, net.tolerance = np.float16, 1e-2
    return [net.conv(net.relu(net.conv(net.input(1, 3, 12, 11), 8, 3)), 6, 8)]


@small
def conv_transpose(net):
    x, weight = net.input(1, 4, 6, 7), net.const(net.weight(4, 8, 3, 3, gain=2.0))
    y = net.op("ConvTranspose", x, weight, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    return [net.conv(net.relu(y), 6, 8)]


@small
def conv_transpose_dynamic_filter(net):
    x, weight = net.input(1, 4, 6, 7), net.input(4, 8, 3, 3)
    return [net.relu(net.op("ConvTranspose", x, weight, strides=[2, 2], dilations=[1, 2], pads=[0, 1, 1, 0]))]


@small
def conv_transpose_f16(net):
    net.dtype, net.tolerance = np.float16, 1e-2
    x = net.input(1, 4, 6, 7)
    y = net.op("ConvTranspose", x, net.const(net.weight(4, 8, 3, 3, gain=2.0)), strides=[2, 2])
    return [net.conv(net.relu(y), 6, 8)]


@small
def conv_transpose_folded(net):
    # A stride beyond the kernel: elements that no tap reaches hold the folded bias.
    x, weight = net.input(2, 4, 6, 7), net.const(net.weight(4, 8, 2, 2, gain=2.0))
    y = net.op("ConvTranspose", x, weight, net.const(net.normal(8)), strides=[3, 3], pads=[1, 0, 0, 1])
    y = net.op("Sub", net.const(0.25), net.bn(y, 8, sign=-1.0))
    return [net.relu(y)]


@small
def conv_transpose_stride1(net):
    # Nothing to interleave.
    x, weight = net.input(1, 4, 9, 8), net.const(net.weight(4, 6, 3, 3))
    return [net.relu(net.op("ConvTranspose", x, weight, pads=[1, 1, 1, 1], group=2))]


@small
def unet(net):
    """Two levels down and up again, with concatenated skips."""

    def block(x, out, own):
        for per_group in (own, out):
            x = net.relu(net.bn(net.conv(x, out, per_group, pads=[1, 1, 1, 1]), out))
        return x

    def up(x, own, out, kernel, **attrs):
        weight = net.const(net.weight(own, out, kernel, kernel, gain=2.0))
        return net.op("ConvTranspose", x, weight, net.const(net.normal(out, scale=0.5)), strides=[2, 2], **attrs)

    def pool(x):
        return net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    first = block(net.input(1, 3, 24, 32), 6, 3)
    second = block(pool(first), 8, 6)
    third = block(pool(second), 12, 8)
    second = block(net.op("Concat", up(third, 12, 8, 2), second, axis=1), 8, 16)
    first = block(net.op("Concat", up(second, 8, 6, 3, pads=[1, 1, 1, 1], output_padding=[1, 1]), first, axis=1), 6, 12)
    return [net.op("Sigmoid", net.conv(first, 2, 6, 1))]


@small
def dead_branch(net):
    x = net.input(1, 3, 12, 11)
    net.conv(x, 4, 3)
    return two_convs(net, x)


# What rewrites of a graph get wrong: signs, strides and axes that are moved past other operators.


@small
def constant_minus_normalized(net):
    # Once with filters enough to be coded, once with a single one, which stays on the host.
    outputs = []
    for filters, side in ((8, 12), (1, 4)):
        y = net.bn(net.conv(net.input(1, 16, side, side), filters, 16, bias=False), filters)
        outputs.append(net.op("Sub", net.const(net.normal(filters, 1, 1)), y))
    return outputs


@small
def constant_minus_passed_on(net):
    outputs = []
    for kind in ("Identity", "Dropout"):
        y = net.op(kind, net.conv(net.input(1, 3, 5, 4), 1, 3))
        outputs.append(net.op("Sub", net.const(0.3), y))
    return outputs


@small
def strides_behind_softmax(net):
    outputs = []
    for axis in (2, 3):
        y = net.op("Softmax", net.input(1, 3, 9, 8), axis=axis)
        outputs.append(net.conv(y, 4, 3, 1, strides=[2, 2]))
    return outputs


@small
def slice_with_steps_of_softmax(net):
    y = net.op("Softmax", net.conv(net.input(1, 3, 9, 8), 4, 3, pads=[1, 1, 1, 1]), axis=3)
    bounds = [net.ints(v) for v in ([0], [8], [3], [2])]
    return [net.op("Slice", y, *bounds)]


@small
def reshape_then_stride(net):
    x = net.conv(net.input(2, 7, 7, 13), 1, 7, (1, 2), pads=[2, 0, 2, 0], strides=[2, 2])
    y = net.op("Reshape", net.op("Reshape", x, net.ints([2, -1])), net.ints([2, 1, 6, 6]))
    return [net.conv(net.op("Identity", y), 1, 1, (1, 3), pads=[0, 2, 0, 0], strides=[3, 3], dilations=[1, 2]), x]


@small
def log_softmax_far_apart(net):
    # Logits so far apart that the softmax of most is zero; its logarithm is not.
    y = net.conv(net.input(1, 3, 9, 8), 6, 3, gain=100.0)
    return [net.op("LogSoftmax", y, axis=1), net.op("LogSoftmax", y)]


# What a file may say in several ways.


def reference(name, to, kind=onnx.AttributeProto.INTS):
    """An attribute of a node in a function that takes the value of the function's attribute."""
    return onnx.AttributeProto(name=name, ref_attr_name=to, type=kind)


@small
def functions_of_the_file(net):
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "conv")
    conv.attribute.extend([reference("pads", "border"), reference("strides", "steps")])
    body = [conv, helper.make_node("Relu", ["c"], ["y"], "relu")]
    opsets = [helper.make_opsetid("", OPSET)]
    block = helper.make_function("own", "Block", ["x", "w"], ["y"], body, opsets, ["border", "steps"])
    calls = [
        helper.make_node("Block", ["x", "v"], ["c"], "first", domain="own", border=[1, 1, 1, 1], steps=[2, 1]),
        helper.make_node("Block", ["c", "w"], ["z"], "second", domain="own", border=[0, 1, 0, 1]),
    ]
    own = opsets + [helper.make_opsetid("own", 1)]
    pair = helper.make_function("own", "Pair", ["x", "v", "w"], ["z", "c"], calls, own)
    net.functions = [block, pair]
    x = net.input(1, 3, 12, 11)
    weights = [net.const(net.weight(*shape)) for shape in [(6, 3, 3, 3), (8, 6, 3, 3)]]
    y = net.op("Pair", x, *weights, domain="own")
    net.nodes[-1].output.append("inner")
    last = net.op("Block", y, net.const(net.weight(5, 8, 3, 3)), domain="own", border=[0, 0, 0, 0])
    return [last, "inner"]


def upsample(net, opset, mode, scales):
    net.opset = opset
    x = net.relu(net.conv(net.input(1, 3, 6, 5), 8, 3, pads=[1, 1, 1, 1]))
    if opset < 9:
        x = net.op("Upsample", x, mode=mode, scales=scales)
    else:
        x = net.op("Upsample", x, net.const(np.array(scales, np.float32)), mode=mode)
    return [net.conv(x, 6, 8)]


SMALL.update({
    "small_upsample_nearest": lambda net: upsample(net, 9, "nearest", [1.0, 1.0, 2.0, 3.0]),
    "small_upsample_linear": lambda net: upsample(net, 9, "linear", [1.0, 1.0, 2.0, 2.0]),
    "small_upsample_opset_7": lambda net: upsample(net, 7, "nearest", [1.0, 1.0, 2.0, 2.0]),
})  # fmt: skip


@small
def bias_without_name(net):
    x, weight = net.input(2, 6, 12, 11), net.const(net.weight(10, 6, 3, 3))
    return [net.op("Conv", x, weight, "", pads=[1, 1, 1, 1])]


@small
def pad_negative(net):
    y = net.conv(net.input(2, 3, 14, 12), 8, 3, pads=[1, 1, 1, 1])
    outputs = [net.op("Pad", y, net.ints([0, 0, -1, 2, 0, 0, -3, -1]), net.const(0.5))]
    return [*outputs, net.op("Pad", y, net.ints([0, 0, -1, 1, 0, 0, 2, -1]), mode="edge")]


@small
def resize_nearest(net):
    outputs = []
    for side, size, attrs in (
        (13, 7, {"coordinate_transformation_mode": "align_corners", "nearest_mode": "floor"}),
        (13, 7, {"coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"}),
        (10, 25, {"coordinate_transformation_mode": "half_pixel"}),
        (9, 4, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "round_prefer_ceil"}),
        (6, 9, {"coordinate_transformation_mode": "pytorch_half_pixel", "nearest_mode": "floor"}),
    ):
        y = net.conv(net.input(1, 2, side, side), 4, 2, 1)
        sizes = net.ints([1, 4, size, 2 * size])
        outputs.append(net.op("Resize", y, "", "", sizes, mode="nearest", **attrs))
    y = net.conv(net.input(1, 2, 10, 12), 4, 2, 1)
    return [*outputs, net.op("Resize", y, "", net.const([1.0, 1.0, 0.6, 1.5]), mode="nearest")]


@small
def normalized_with_constant_output(net):
    # Constants that are not per channel, in front and behind.
    y = net.op("Mul", net.conv(net.input(2, 3, 9, 8), 6, 3), net.const(net.normal(1, 1, 7, 1)))
    return [net.op("Sub", net.const(1.0), net.bn(y, 6))]


# Files that have to be refused with a sentence, never a panic. Each returns the bytes of model.onnx.


def one_conv(rng, shape=(1, 3, 8, 8), nodes=None, weights=(8, 3, 3, 3), elem=TensorProto.FLOAT):
    weight = numpy_helper.from_array(rng.standard_normal(weights).astype(np.float32), "w")
    nodes = nodes or [("Conv", "x w", "y")]
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(), [out]) for op, ins, out in nodes],
        "net",
        [helper.make_tensor_value_info("x", elem, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 8, None, None))],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


@broken("the file ends too early")
def truncated(rng):
    data = one_conv(rng).SerializeToString()
    return data[: len(data) // 2]


@broken("not an ONNX file")
def not_onnx(rng):
    return b"This is a text, not a model.\n" * 20


@broken("the file is empty")
def empty(rng):
    return b""


@broken("not an ONNX file")
def zeros(rng):
    return bytes(4096)


@broken("not an ONNX file")
def random_bytes(rng):
    return rng.bytes(4096)


@broken("an unknown operator, FcdccNoSuchOp")
def unsupported_operator(rng):
    return one_conv(rng, nodes=[("Conv", "x w", "a"), ("FcdccNoSuchOp", "a", "y")])


@broken("the weights, nowhere_defined, are missing")
def missing_initializer(rng):
    return one_conv(rng, nodes=[("Conv", "x nowhere_defined", "y")])


@broken("the filters have 5 channels, the image has 3")
def bad_weight_shape(rng):
    return one_conv(rng, weights=(8, 5, 3, 3))


@broken("the nodes form a cycle")
def cycle(rng):
    return one_conv(rng, nodes=[("Add", "x b", "a"), ("Relu", "a", "b"), ("Conv", "b w", "y")])


@broken("the nodes are not sorted: an error, or the right answer")
def unsorted_nodes(rng):
    return one_conv(rng, nodes=[("Relu", "a", "y"), ("Conv", "x w", "a")])


@broken("an output that nothing computes")
def undefined_output(rng):
    return one_conv(rng, nodes=[("Conv", "x w", "a")])


@broken("nothing to compute", feed=None)
def no_nodes(rng):
    graph = helper.make_graph([], "net", [], [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


@broken("a file of weights, absent.bin, is missing")
def external_data_missing(rng):
    model = one_conv(rng)
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "absent.bin", offset=0, length=len(weight.raw_data))
    weight.ClearField("raw_data")
    return model


@broken("an input too large for any memory", feed=None)
def huge_dims(rng):
    return one_conv(rng, shape=(1, 3, 100_000_000, 100_000_000))


@broken("a dimension of zero: an error, or an empty output", feed=(0, 3, 8, 8))
def zero_dim(rng):
    return one_conv(rng, shape=(0, 3, 8, 8))


@broken("an input of type string", feed=None)
def string_input(rng):
    model = one_conv(rng, nodes=[("Cast", "x", "a"), ("Conv", "a w", "y")], elem=TensorProto.STRING)
    model.graph.node[0].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    return model


@broken("a size has to be given", feed=(1, 3, 12, 14))
def dynamic(rng):
    return one_conv(rng, shape=(1, 3, "H", "W"))


# Files that mean one of several things, or nothing.


def with_attributes(model, at=0, **attrs):
    model.graph.node[at].attribute.extend(helper.make_attribute(k, v) for k, v in attrs.items())
    return model


def at_opset(version, model):
    model.opset_import[0].version = version
    return model


@broken("an operator of a foreign domain", says=["Conv", "com.example.nhwc"])
def foreign_domain(rng):
    model = one_conv(rng)
    model.graph.node[0].domain = "com.example.nhwc"
    model.opset_import.append(helper.make_opsetid("com.example.nhwc", 1))
    return model


@broken("automatic padding beside pads", says=["Conv node that makes y", "auto_pad", "SAME_UPPER", "pads", "[0, 0, 0, 0]"])
def same_with_pads(rng):
    return with_attributes(one_conv(rng), auto_pad="SAME_UPPER", pads=[0, 0, 0, 0])


@broken("no padding beside pads", says=["auto_pad", "VALID", "[1, 1, 1, 1]"])
def valid_with_pads(rng):
    return with_attributes(one_conv(rng), auto_pad="VALID", pads=[1, 1, 1, 1])


@broken("automatic padding beside pads of a pool", says=["MaxPool", "auto_pad", "pads"])
def pool_with_both(rng):
    model = one_conv(rng, nodes=[("MaxPool", "x", "a"), ("Conv", "a w", "y")])
    return with_attributes(model, kernel_shape=[2, 2], auto_pad="SAME_LOWER", pads=[1, 1, 1, 1])


@broken("a normalization that is trained", says=["BatchNormalization", "training_mode"])
def batchnorm_training(rng):
    model = one_conv(rng, nodes=[("Conv", "x w", "a"), ("BatchNormalization", "a s s s s", "y")])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "s"))
    return with_attributes(model, 1, training_mode=1)


@broken("elements that are dropped at random", says=["Dropout", "training_mode"])
def dropout_training(rng):
    model = one_conv(rng, nodes=[("Conv", "x w", "a"), ("Dropout", "a r t", "y")])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "r"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "t"))
    return model


@broken("a kernel that fits nowhere into the image", feed=(1, 3, 4, 4), says=["Conv node y", "5", "4"])
def kernel_larger_than_image(rng):
    return one_conv(rng, shape=(1, 3, 4, 4), weights=(8, 3, 5, 5))


@broken("a pool that fits nowhere into the image", says=["MaxPool node a", "9", "8"])
def pool_larger_than_image(rng):
    model = one_conv(rng, nodes=[("MaxPool", "x", "a"), ("Conv", "a w", "y")])
    return with_attributes(model, kernel_shape=[9, 9])


@broken("a kernel whose dilated taps fit nowhere", says=["Conv node y", "9", "8"])
def dilated_kernel_larger_than_image(rng):
    return with_attributes(one_conv(rng), dilations=[4, 4])


@broken("taps that lie on one another", says=["Conv node that makes y", "dilations", "[0, 1]"])
def zero_dilation(rng):
    return with_attributes(one_conv(rng), dilations=[0, 1])


@broken("a stride of nothing", says=["strides", "[1, 0]"])
def zero_stride(rng):
    return with_attributes(one_conv(rng), strides=[1, 0])


@broken("padding that takes away", says=["pads", "-1"])
def conv_with_negative_pads(rng):
    return with_attributes(one_conv(rng), pads=[0, -1, 0, 0])


@broken("groups of nothing", says=["group", "0"])
def no_groups(rng):
    return with_attributes(one_conv(rng), group=0)


@broken("strides for another number of axes", says=["strides", "kernel_shape"])
def too_many_strides(rng):
    return with_attributes(one_conv(rng), kernel_shape=[3, 3], strides=[1, 1, 1])


@broken("an operator that nothing here has", says=["MaxUnpool"])
def unknown_operator(rng):
    return one_conv(rng, nodes=[("MaxUnpool", "x x", "y")])


@broken("offsets of another shape", feed=None, says=["DeformConv node y", "offsets", "18"])
def deformed_by_other_offsets(rng):
    return at_opset(19, one_conv(rng, nodes=[("DeformConv", "x w x", "y")]))


@broken("a kernel that reaches beyond the input", feed=None, says=["DeformConv node y", "reaches over 41"])
def deformed_beyond_the_input(rng):
    model = at_opset(19, one_conv(rng, nodes=[("DeformConv", "x w x", "y")]))
    return with_attributes(model, dilations=[20, 1])


@broken("offsets in three axes", feed=None, says=["DeformConv node y", "two spatial axes"])
def deformed_in_volumes(rng):
    model = at_opset(19, one_conv(rng, nodes=[("DeformConv", "x w x", "y")]))
    return with_attributes(model, strides=[1, 1, 1])


@broken("padding that takes a whole output", feed=None, says=["ConvTranspose node y", "11", "10"])
def transposed_without_output(rng):
    model = one_conv(rng, weights=(3, 8, 3, 3), nodes=[("ConvTranspose", "x w", "y")])
    return with_attributes(model, pads=[9, 0, 2, 0])


@broken("filters for other channels", feed=None, says=["ConvTranspose node y", "3", "5"])
def transposed_other_channels(rng):
    return one_conv(rng, weights=(5, 8, 3, 3), nodes=[("ConvTranspose", "x w", "y")])


@broken("positions beyond any memory", feed=None, says=["ConvTranspose node y"])
def transposed_huge_stride(rng):
    model = one_conv(rng, weights=(3, 8, 3, 3), nodes=[("ConvTranspose", "x w", "y")])
    return with_attributes(model, strides=[2**62, 1])


@broken("an output larger than any memory", feed=None, says=["GiB"])
def transposed_large_output(rng):
    model = one_conv(rng, weights=(3, 8, 3, 3), nodes=[("ConvTranspose", "x w", "y")])
    return with_attributes(model, strides=[2**36, 1])


@broken("a kernel_shape that is not that of the filters", feed=None, says=["ConvTranspose node y", "kernel_shape", "[2, 3]"])
def transposed_other_kernel(rng):
    model = one_conv(rng, weights=(3, 8, 3, 3), nodes=[("ConvTranspose", "x w", "y")])
    return with_attributes(model, kernel_shape=[2, 3])


@broken("one name for two values", says=["name a", "Relu node", "Conv node"])
def value_twice(rng):
    return one_conv(rng, nodes=[("Conv", "x w", "a"), ("Relu", "x", "a"), ("Relu", "a", "y")])


@broken("one name for two constants", says=["initializer w"])
def initializer_twice(rng):
    model = one_conv(rng)
    model.graph.initializer.append(model.graph.initializer[0])
    return model


@broken("one name for an input and a value", says=["name x", "input x"])
def input_computed(rng):
    return one_conv(rng, nodes=[("Relu", "x", "x"), ("Conv", "x w", "y")])


# Networks with more than a few layers.


def shipped_model():
    """The trained model of the repository and its digits, enlarged more crudely than the demonstration does it."""
    assets = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "assets", "digits")
    digits = np.load(os.path.join(assets, "digits.npy")).astype(np.float32) / 16
    images = np.kron(digits, np.ones((4, 4), np.float32))[:, None]
    return onnx.load(os.path.join(assets, "lenet5.onnx")), {"image": images}


def random_light_model(name, rng):
    """A network of the onnx package, its constant weights (which make the output constant) replaced.

    Filters are He-scaled and batch normalization keeps the size of its input, so that differences neither die
    out nor overflow on their way through a hundred layers.
    """
    light = os.path.join(os.path.dirname(onnx.__file__), "backend/test/data/light")
    model = onnx.load(os.path.join(light, f"light_{name}.onnx"))
    graph = model.graph
    given = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    # Most weights are ConstantOfShape nodes; the shortest are there, of a scale that fits the lost others.
    shapes = {n.output[0]: tuple(given[n.input[0]]) for n in graph.node if n.op_type == "ConstantOfShape"}
    shapes.update({k: v.shape for k, v in given.items() if v.dtype == np.float32})
    users = {name: (node, slot) for node in graph.node for slot, name in enumerate(node.input)}

    def draw(name, shape):
        node, slot = users[name]
        while node.op_type in ("Unsqueeze", "Reshape"):
            node, slot = users[node.output[0]]
        role = (node.op_type, slot)
        if role in (("Conv", 1), ("Gemm", 1)):
            assert role[0] == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
            fan_in = shape[-1] if role[0] == "Gemm" else np.prod(shape[1:])
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(np.sqrt(2.0 / fan_in))  # in place: one of these has 100 million elements
            return values
        if role in (("BatchNormalization", 1), ("BatchNormalization", 4)) or role[0] == "Mul":
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return rng.normal(0, 0.1, shape).astype(np.float32)

    weights = [numpy_helper.from_array(draw(k, v), k) for k, v in shapes.items() if k in users]
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    read = {name for n in nodes for name in n.input}
    kept = [i for i in graph.initializer if i.name in read and i.name not in shapes]
    inputs = [i for i in graph.input if i.name not in given]
    for field, values in (("node", nodes), ("initializer", kept + weights), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    if nodes[-1].op_type == "Softmax":  # it hides differences: what enters it is compared as well
        logits = onnx.ValueInfoProto()
        logits.CopyFrom(graph.output[0])
        logits.name = nodes[-1].input[0]
        graph.output.append(logits)
    model.ir_version = IR_VERSION  # from 4 on, initializers need not be inputs
    feeds = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs}
    return model, {k: rng.standard_normal(v).astype(np.float32) for k, v in feeds.items()}


# Writing.


def count_nodes(graph):
    """Conv nodes, and Gemm or MatMul nodes whose second operand is a constant matrix."""
    ranks = {i.name: len(i.dims) for i in graph.initializer}
    known = set(ranks)  # what can be computed from constants alone, the nodes being sorted
    conv = gemm = 0
    # Where a case has branches, the first one runs.
    taken = [n for node in graph.node for a in node.attribute if a.name == "then_branch" for n in a.g.node]
    for node in [*graph.node, *taken]:
        if all(i in known for i in node.input):
            known.update(node.output)
        conv += node.op_type in ("Conv", "DeformConv")
        gemm += node.op_type == "Gemm" and node.input[1] in known
        gemm += node.op_type == "MatMul" and ranks.get(node.input[1]) == 2
    return conv, gemm


def answers(path, feeds):
    """Output names and values."""
    if any(v.dtype == np.float64 for v in feeds.values()):
        # onnxruntime has no double precision Conv; this is the specification, executed.
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(path)
        return session.output_names, session.run(None, feeds)
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [o.name for o in session.get_outputs()], session.run(None, feeds)


def calm_softmax(path, spread):
    """Scales the last filters down where the logits have grown so far that the softmax is one-hot."""
    model = onnx.load(path)
    producers = {n.output[0]: n for n in model.graph.node}
    name = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")][-1].input[1]
    while name in producers:
        name = producers[name].input[0]
    weight = next(i for i in model.graph.initializer if i.name == name)
    values = numpy_helper.to_array(weight) * np.float32(2 / spread)
    weight.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def check(name, array):
    """A comparison with an output that is constant could not fail."""
    assert np.isfinite(array).all(), f"{name} is not finite"
    size = np.abs(array).max()
    if array.size > 1:
        assert array.std() > 1e-3 * size, f"{name} is constant: {array.std()} around {array.mean()}"
    assert size > 1e-6, f"{name} is zero"


def write_npy(folder, kind, arrays):
    entries = []
    for i, (name, array) in enumerate(arrays):
        entries.append({"name": name, "file": f"{kind}_{i}.npy", "dtype": str(array.dtype)})
        # Readers of .npy outside numpy seldom know half floats.
        wide = array.astype(np.float32) if array.dtype == np.float16 else array
        np.save(os.path.join(folder, entries[-1]["file"]), np.ascontiguousarray(wide))
    return entries


def write_broken(name, folder, rng):
    build, expect, feed, says = BROKEN[name]
    model = build(rng)
    with open(os.path.join(folder, "model.onnx"), "wb") as f:
        f.write(model if isinstance(model, bytes) else model.SerializeToString())
    if feed is not None:
        write_npy(folder, "input", [("x", rng.standard_normal(feed).astype(np.float32))])
    return {"broken": True, "expect": expect, "says": says}


def write_model(name, folder, rng):
    path = os.path.join(folder, "model.onnx")
    accept, tolerance = lambda outputs: True, 1e-3
    while True:
        if name in LARGE:
            model, feeds = random_light_model(name, rng)
        elif name == SHIPPED:
            model, feeds = shipped_model()
        else:
            net = Net(rng)
            net.outputs = SMALL[name](net)
            model, feeds, accept, tolerance = net.model(), net.feeds, net.accept, net.tolerance
        onnx.save(model, path)
        conv, gemm = count_nodes(onnx.inliner.inline_local_functions(model).graph)
        transposed = sum(n.op_type == "ConvTranspose" for n in model.graph.node)
        del model  # half a gigabyte, which onnxruntime is about to read again
        names, outputs = answers(path, feeds)
        if accept(outputs):
            break
    if name in LARGE and len(outputs) > 1 and outputs[1].std() > 4:
        calm_softmax(path, outputs[1].std())
        names, outputs = answers(path, feeds)
    assert conv == LARGE.get(name, conv), f"{name} has {conv} Conv nodes"
    for output, array in zip(names, outputs):
        check(f"{name}: {output}", array)
    return {
        "inputs": write_npy(folder, "input", feeds.items()),
        "outputs": write_npy(folder, "output", zip(names, outputs)),
        "conv_nodes": conv,
        "conv_transpose_nodes": transposed,
        "gemm_nodes": gemm,
        "tolerance": tolerance,
    }


def is_current(folder, stamp):
    try:
        with open(os.path.join(folder, "case.json")) as f:
            return stamp.items() <= json.load(f).items()
    except (OSError, ValueError):
        return False


def write_case(name, out, seed):
    """Whether the case had to be written."""
    stamp = {"name": name, "seed": seed, "version": VERSION}
    folder = os.path.join(out, name)
    if is_current(folder, stamp):
        return False
    outdated = os.path.exists(folder)
    beside = os.path.join(out, f".{name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    os.makedirs(beside)
    try:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        case = (write_broken if name in BROKEN else write_model)(name, beside, rng)
        with open(os.path.join(beside, "case.json"), "w") as f:
            json.dump(stamp | case, f, indent=1)
        if outdated and not is_current(folder, stamp):
            shutil.rmtree(folder)
        os.rename(beside, folder)
    except OSError:
        if not is_current(folder, stamp):  # another process may have been faster
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return True


def main():
    kinds = dict.fromkeys([*SMALL, SHIPPED], "small") | dict.fromkeys(LARGE, "large") | dict.fromkeys(BROKEN, "broken")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("out", metavar="OUT_DIR", nargs="?")
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the names and kinds of all cases")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name} {kind}" for name, kind in kinds.items()))
        return
    if args.out is None:
        parser.error("OUT_DIR is missing")
    unknown = [name for name in args.names if name not in kinds]
    if unknown:
        parser.error(f"no such case: {' '.join(unknown)}")
    os.makedirs(args.out, exist_ok=True)
    for name in args.names or [*SMALL, SHIPPED, *BROKEN, *LARGE_BY_DEFAULT]:
        begin = time.monotonic()
        written = write_case(name, args.out, args.seed)
        print(f"{name}: {f'{time.monotonic() - begin:.1f} s' if written else 'kept'}", flush=True)


if __name__ == "__main__":
    main()
