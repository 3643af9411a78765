#!/usr/bin/env python3
"""Writes transposed convolutions of random attributes, with inputs and onnxruntime's answers.

    python3 scripts/onnx_transpose_cases.py OUT_DIR [--count N] [--seed S]

Case number I of seed S is always the same: a folder OUT_DIR/tI with model.onnx, input_0.npy, output_0.npy and case.json.
Needs onnx, onnxruntime and numpy. Each is one ConvTranspose node with 1 to 3 spatial axes; a batch normalization and a
ReLU follow some. What onnxruntime refuses is drawn again.
"""
import argparse
import json
import os

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
TOLERANCE = 1e-5


class Draw:
    def __init__(self, rng):
        self.rng = rng

    def between(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def flip(self, chance=0.5):
        return bool(self.rng.random() < chance)

    def each(self, rank, low, high):
        return [self.between(low, high) for _ in range(rank)]

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)


def attributes(d, rank, size, kernel):
    """Strides, dilations and one of the ways to give the size of the output."""
    strides, dilations = d.each(rank, 1, 4), d.each(rank, 1, 3 if d.flip(0.4) else 1)
    attrs = {"strides": strides, "dilations": dilations}
    if d.flip():
        attrs["kernel_shape"] = kernel
    way = d.rng.choice(["pads", "padded", "output_shape", "same", "valid", "default"], p=[0.3, 0.25, 0.2, 0.1, 0.05, 0.1])
    reach = [(k - 1) * t + 1 for k, t in zip(kernel, dilations)]
    # onnxruntime takes no more output padding than it has strides or dilations.
    most = [max(s, t) - 1 for s, t in zip(strides, dilations)]
    more = [d.between(0, m) for m in most]
    if way in ("pads", "padded"):
        begins, ends = ([d.between(0, min(r + 1, 5)) for r in reach] for _ in range(2))
        attrs["pads"] = begins + ends
    if way == "padded" or (way == "output_shape" and d.flip(0.3)):
        attrs["output_padding"] = more
    if way == "output_shape":
        full = [(n - 1) * s + r for n, s, r in zip(size, strides, reach)]
        attrs["output_shape"] = [d.between(max(1, f - 4), f + (2 if d.flip(0.3) else 0)) for f in full]
    if way in ("same", "output_shape") and (way == "same" or d.flip()):
        attrs["auto_pad"] = d.rng.choice(["SAME_UPPER", "SAME_LOWER"])
    if way == "valid":
        attrs["auto_pad"] = "VALID"
    return attrs


def draw(rng):
    d = Draw(rng)
    rank = int(rng.choice([1, 2, 3], p=[0.25, 0.6, 0.15]))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    group_in, group_out = d.between(1, 4), d.between(1, 4)
    if d.flip(0.2):  # depthwise
        groups, group_in, group_out = d.between(2, 6), 1, 1
    size, kernel = d.each(rank, 1, {1: 20, 2: 9, 3: 4}[rank]), d.each(rank, 1, 5 if rank < 3 else 3)
    channels, out = groups * group_in, groups * group_out
    attrs = {**attributes(d, rank, size, kernel), "group": groups}
    constants = {"w": d.normal(channels, group_out, *kernel)}
    if d.flip(0.6):
        constants["b"] = d.normal(out)
    nodes = [helper.make_node("ConvTranspose", ["x", *constants], ["t"], "up", **attrs)]
    last = "t"
    if d.flip(0.4):
        stats = {"scale": d.normal(out), "shift": d.normal(out), "mean": d.normal(out), "var": np.abs(d.normal(out)) + 0.5}
        constants |= stats
        nodes.append(helper.make_node("BatchNormalization", [last, *stats], ["n"], "norm"))
        last = "n"
    if d.flip(0.4):
        nodes.append(helper.make_node("Relu", [last], ["r"], "relu"))
        last = "r"
    feed = d.normal(d.between(1, 2), channels, *size)
    graph = helper.make_graph(
        nodes,
        "transpose",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, feed.shape)],
        [onnx.ValueInfoProto(name=last)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return onnx.shape_inference.infer_shapes(model), feed


def answer(model, feed):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.get_outputs()[0].name, session.run(None, {"x": feed})[0]


def case(seed, number):
    """The first draw of its number that onnxruntime computes and whose output is not all zero."""
    for attempt in range(1000):
        model, feed = draw(np.random.default_rng([seed, number, attempt]))
        try:
            name, output = answer(model, feed)
        except Exception as error:  # onnxruntime has no common class for its refusals
            if "onnxruntime" not in type(error).__module__:
                raise
            continue
        if 0 < output.size < 200_000 and np.isfinite(output).all() and np.abs(output).max() > 1e-3:
            return model, feed, name, output
    raise SystemExit(f"no case {number} of seed {seed} is fit")


def write(folder, seed, number):
    model, feed, name, output = case(seed, number)
    os.makedirs(folder)
    onnx.save(model, os.path.join(folder, "model.onnx"))
    np.save(os.path.join(folder, "input_0.npy"), feed)
    np.save(os.path.join(folder, "output_0.npy"), np.ascontiguousarray(output))
    attrs = {a.name: helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    about = {
        "seed": seed,
        "number": number,
        "attributes": {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()},
        "inputs": [{"name": "x", "file": "input_0.npy"}],
        "outputs": [{"name": name, "file": "output_0.npy"}],
        "tolerance": TOLERANCE,
    }
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(about, f, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT_DIR")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for number in range(args.count):
        write(os.path.join(args.out, f"t{number:05}"), args.seed, number)


if __name__ == "__main__":
    main()
