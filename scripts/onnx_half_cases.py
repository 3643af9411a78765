#!/usr/bin/env python3
"""Writes ONNX models of 16-bit floats with inputs and onnxruntime's answers.

    python3 scripts/onnx_half_cases.py OUT_DIR

Each case is a folder OUT_DIR/NAME with model.onnx, input_I.npy, output_I.npy and case.json, and for most cases wrong.onnx:
the same model with one wrong weight. Arrays of 16-bit floats are stored as f32; case.json has their types. Needs onnx,
onnxruntime, numpy and ml_dtypes, which onnx brings.

onnxruntime computes f16 on processors in f32, and rounds after each operator. It has no bf16 there: the answers of these
models are those of the same graph in f32, rounded at the end.
"""
import json
import os
import sys

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}
NUMBERS = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "f32": TensorProto.FLOAT}
# Relative L2. f16 keeps 11 bits and is rounded after each operator by onnxruntime; bf16 keeps 8, rounded once.
TOLERANCES = {"f16": 4e-3, "bf16": 4e-3, "f32": 1e-6}
CASES = {}


def case(kind, opset, **options):
    def register(build):
        CASES[f"{kind}_{options.pop('name', build.__name__)}"] = (build, kind, opset, options)
        return build

    return register


class Net:
    """A graph of constants of `kind`; a twin has the same values in f32."""

    def __init__(self, name, kind, opset, twin=False):
        self.rng = np.random.default_rng(list(name.encode()))
        self.kind, self.opset = kind, opset
        self.stored = "f32" if twin else kind
        self.nodes, self.constants, self.inputs, self.outputs, self.feeds = [], [], [], [], {}
        self.functions = []
        self.coded = 0  # layers on the workers, at least

    @property
    def number(self):
        return NUMBERS[self.stored]

    def rounded(self, values):
        return np.asarray(values, np.float32).astype(TYPES[self.kind]).astype(np.float32)

    def normal(self, *shape, scale=1.0):
        return scale * self.rng.standard_normal(shape)

    def tensor(self, values, name):
        return numpy_helper.from_array(self.rounded(values).astype(TYPES[self.stored]), name)

    def const(self, values):
        name = f"c{len(self.constants)}"
        self.constants.append(self.tensor(values, name))
        return name

    def raw(self, array):
        """A constant of another type."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def input(self, *shape):
        name = f"x{len(self.inputs)}"
        self.feeds[name] = self.rounded(self.normal(*shape))
        self.inputs.append(helper.make_tensor_value_info(name, self.number, shape))
        return name

    def op(self, kind, *inputs, **attrs):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"{kind}_{len(self.nodes)}", **attrs))
        return name

    def conv(self, x, out, channels, **attrs):
        self.coded += 1
        weight = self.normal(out, channels, 3, 3, scale=np.sqrt(2 / (9 * channels)))
        return self.op("Conv", x, self.const(weight), self.const(self.normal(out, scale=0.5)), **attrs)

    def model(self):
        outputs = [onnx.ValueInfoProto(name=name) for name, _ in self.outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(f.domain, 1) for f in self.functions]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=self.functions)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        types = [output.type.tensor_type.elem_type for output in model.graph.output]
        assert types == [number for _, number in self.outputs], types
        return model


@case("f16", 17)
@case("bf16", 22)
def network(net):
    x = net.conv(net.input(2, 3, 17, 16), 8, 3, pads=[1, 1, 1, 1])
    scale, shift, mean = net.const(net.rng.uniform(0.5, 1.5, 8)), net.const(net.normal(8)), net.const(net.normal(8))
    x = net.op("BatchNormalization", x, scale, shift, mean, net.const(net.rng.uniform(0.5, 1.5, 8)))
    x = net.op("MaxPool", net.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv(x, 12, 8))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    logits = net.op("Gemm", x, net.const(net.normal(10, 12)), net.const(net.normal(10)), transB=1)
    return [logits, net.op("Softmax", logits)]


@case("f16", 17, store="int32_data")
@case("bf16", 22, store="int32_data")
def int32_data(net):
    return [net.op("Relu", net.conv(net.input(1, 3, 12, 11), 8, 3))]


@case("f16", 17, store="external")
@case("bf16", 22, store="external")
def external(net):
    return [net.op("Relu", net.conv(net.input(1, 3, 12, 11), 8, 3))]


@case("f16", 17)
def constants(net):
    """Small operands and attributes in 16 bits."""
    y = net.conv(net.input(1, 4, 10, 9), 8, 4)
    y = net.op("Clip", y, net.const(-1.5), net.const(2.5))
    y = net.op("Pad", y, net.raw(np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)), net.const(0.25))
    scales = net.raw(np.array([1, 1, 2, 2], np.float32))
    y = net.op("Resize", y, net.const(np.zeros(0)), scales, mode="linear", coordinate_transformation_mode="half_pixel")
    shape = net.raw(np.array([8, 1, 1], np.int64))
    y = net.op("Add", y, net.op("ConstantOfShape", shape, value=net.tensor([0.375], "value")))
    y = net.op("Mul", y, net.op("Constant", value=net.tensor(net.normal(8, 1, 1), "value")))
    width = 2 * (7 + 3)
    y = net.op("LayerNormalization", y, net.const(net.normal(width)), net.const(net.normal(width)), axis=-1, stash_type=1)
    return [y]


@case("f16", 19)
def quantised_weights(net):
    """Filters of 8 bits with a scale of 16 bits."""
    codes = net.rng.integers(-127, 127, (8, 4, 3, 3)).astype(np.int8)
    zero = net.raw(np.zeros(8, np.int8))
    weight = net.op("DequantizeLinear", net.raw(codes), net.const(net.rng.uniform(1e-3, 3e-3, 8)), zero, axis=0)
    net.coded += 1
    return [net.op("Relu", net.op("Conv", net.input(1, 4, 12, 11), weight))]


@case("f16", 17)
def branch(net):
    """Constants and types inside the graphs of a node."""
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    graphs = {}
    for name, value in (("then_branch", 0.75), ("else_branch", -3.0)):
        out = helper.make_tensor_value_info(name + "_out", net.number, [1, 8, 10, 9])
        nodes = [
            helper.make_node("Mul", [y, name + "_k"], [name + "_a"]),
            helper.make_node("Cast", [name + "_a"], [name + "_out"], to=net.number),
        ]
        graphs[name] = helper.make_graph(nodes, name, [], [out], [net.tensor(value, name + "_k")])
    return [net.op("If", net.raw(np.array(True)), **graphs)]


@case("f16", 17)
def function(net):
    """Constants and casts inside a function of the file."""
    body = [
        helper.make_node("Constant", [], ["k"], value=net.tensor(1.7, "k")),
        helper.make_node("Mul", ["a", "k"], ["m"]),
        helper.make_node("Cast", ["m"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["w"], ["s"]),
        helper.make_node("Cast", ["s"], ["b"], to=net.number),
    ]
    opset = [helper.make_opsetid("", net.opset)]
    net.functions = [helper.make_function("local", "Gate", ["a"], ["b"], body, opset)]
    y = net.conv(net.input(1, 3, 12, 11), 8, 3)
    net.nodes.append(helper.make_node("Gate", [y], ["gated"], domain="local"))
    return ["gated"]


@case("f16", 17)
def wide_border(net):
    """f32 at the border and f16 within, as converters write it that keep the types of inputs and outputs."""
    x = net.input(1, 3, 12, 11)
    net.inputs[0].type.tensor_type.elem_type = TensorProto.FLOAT
    # Not rounded before: the cast does it.
    net.feeds[x] = net.normal(1, 3, 12, 11).astype(np.float32)
    y = net.conv(net.op("Cast", x, to=net.number), 8, 3)
    return [(net.op("Cast", y, to=TensorProto.FLOAT), TensorProto.FLOAT)]


@case("f32", 17, name="rounded_to_f16")
@case("f32", 22, name="rounded_to_bf16")
def deliberate_rounding(net):
    """What f16 (opset 17) or bf16 (22) loses of f32 values: nothing is left of it where a pair of casts is dropped."""
    to = TensorProto.FLOAT16 if net.opset == 17 else TensorProto.BFLOAT16
    x = net.input(2, 3, 9, 8)
    rounded = net.op("Cast", net.op("Cast", x, to=to), to=TensorProto.FLOAT)
    return [net.op("Mul", net.op("Sub", x, rounded), net.const(1024.0))]


def answers(path, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    types = {i.name: np.float16 if i.type == "tensor(float16)" else np.float32 for i in session.get_inputs()}
    return session.run(None, {name: array.astype(types[name]) for name, array in feeds.items()})


def store(model, how):
    """Stores the 16-bit constants in another way than as raw bytes."""
    for tensor in model.graph.initializer:
        if how == "int32_data":
            tensor.int32_data.extend(np.frombuffer(tensor.raw_data, np.uint16).astype(np.int32))
            tensor.ClearField("raw_data")


def save(model, folder, name, how):
    path = os.path.join(folder, name)
    if how == "external":
        beside = name.replace(".onnx", ".bin")
        onnx.save(model, path, save_as_external_data=True, location=beside, size_threshold=0)
        return path
    onnx.save(model, path)
    return path


def spoil(model):
    """Changes one weight; whether there is one."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            weight = numpy_helper.to_array(tensor).copy()
            weight.flat[0] = 100 if weight.dtype == np.int8 else 2
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
            return True
    return False


def built(name, twin=False):
    build, kind, opset, _ = CASES[name]
    net = Net(name, kind, opset, twin)
    made = build(net)
    net.outputs = [o if isinstance(o, tuple) else (o, net.number) for o in made]
    return net


def arrays(folder, kind, named, numbers):
    entries = []
    names = {number: name for name, number in NUMBERS.items()}
    for i, ((name, array), number) in enumerate(zip(named, numbers)):
        file = f"{kind}_{i}.npy"
        np.save(os.path.join(folder, file), np.ascontiguousarray(array.astype(np.float32)))
        entries.append({"name": name, "file": file, "dtype": names[number]})
    return entries


def write_case(name, out):
    _, kind, _, options = CASES[name]
    folder, how = os.path.join(out, name), options.get("store")
    os.makedirs(folder)
    net = built(name)
    model = net.model()
    onnx.checker.check_model(model)
    numbers = [number for _, number in net.outputs]
    if kind == "bf16":
        twin = os.path.join(folder, "twin.onnx")
        onnx.save(built(name, twin=True).model(), twin)
        outputs = [array.astype(ml_dtypes.bfloat16) for array in answers(twin, net.feeds)]
    else:
        plain = os.path.join(folder, "plain.onnx")
        onnx.save(model, plain)
        outputs = answers(plain, net.feeds)
    for output in outputs:
        values = output.astype(np.float32)
        # A comparison with what is constant could not fail.
        assert np.isfinite(values).all() and values.std() > 1e-3 * np.abs(values).max() > 0, name
    wrong = built(name).model()
    spoilt = spoil(wrong)
    if spoilt:
        store(wrong, how)
        save(wrong, folder, "wrong.onnx", how)
    store(model, how)
    save(model, folder, "model.onnx", how)
    described = {
        "inputs": arrays(folder, "input", net.feeds.items(), [i.type.tensor_type.elem_type for i in net.inputs]),
        "outputs": arrays(folder, "output", zip([o for o, _ in net.outputs], outputs), numbers),
        "coded": net.coded,
        "tolerance": TOLERANCES[kind],
        "wrong": spoilt,
    }
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(described, f, indent=1)


def write_broken(name, says, damage, out):
    """A model with a damaged tensor, and words that the refusal must have."""
    folder = os.path.join(out, name)
    os.makedirs(folder)
    model = built("f16_int32_data").model()
    damage(model.graph.initializer[0])
    onnx.save(model, os.path.join(folder, "model.onnx"))
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump({"says": says}, f)


def cut(tensor):
    tensor.raw_data = tensor.raw_data[:-1]


def too_many_bits(tensor):
    tensor.ClearField("raw_data")
    tensor.int32_data.extend([70000] * int(np.prod(tensor.dims)))


def too_few(tensor):
    tensor.ClearField("raw_data")
    tensor.int32_data.extend([1, 2, 3])


def no_shape(tensor):
    tensor.dims[0] = -1


# The filters have shape [8, 3, 3, 3].
BROKEN = {
    "broken_cut": (["c0", "431", "432"], cut),
    "broken_bits": (["c0", "70000", "16 bits"], too_many_bits),
    "broken_few": (["c0", "has 3", "216"], too_few),
    "broken_shape": (["c0", "-1"], no_shape),
}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name in CASES:
        write_case(name, sys.argv[1])
        print(name, flush=True)
    for name, (says, damage) in BROKEN.items():
        write_broken(name, says, damage, sys.argv[1])


if __name__ == "__main__":
    main()
