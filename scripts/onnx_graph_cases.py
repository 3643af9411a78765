#!/usr/bin/env python3
"""Writes random graphs around convolutions, with inputs and onnxruntime's answers with all its optimisations off.

    python3 scripts/onnx_graph_cases.py OUT_DIR [--count N] [--seed S]

Graph number I of seed S is always the same. Each is a folder OUT_DIR/gI with model.onnx, input_0.npy, output_J.npy and
case.json. Needs onnx, onnxruntime and numpy.

A graph is drawn operator by operator, each on values that are there. Drawn again is what onnxruntime refuses, and what
no engine could be held to: outputs that are constant, not finite, or that rounding errors of the input change visibly.
"""
import argparse
import json
import os

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 8
TOLERANCE = 1e-4
# What half an ulp in the input may change in an output, as a share of the tolerance.
CALM = 0.05
MOST_ELEMS = 40_000

onnxruntime.set_default_logger_severity(4)


class Unfit(Exception):
    """This graph is drawn again."""


class Graph:
    """A graph under construction: `values` are (name, shape) of what is computed so far."""

    def __init__(self, rng):
        self.rng = rng
        self.opset = int(rng.choice([11, 12, 13, 15, 17, 18]))
        self.nodes, self.constants, self.values = [], [], []
        self.named = rng.random() < 0.7

    # Draws.

    def flip(self, p=0.5):
        return self.rng.random() < p

    def pick(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    def between(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def away(self, *shape):
        """Neither small nor large, of either sign."""
        values = self.rng.uniform(0.5, 2.0, shape) * self.rng.choice([-1, 1], shape)
        return values.astype(np.float32)

    # Building.

    def fresh(self, letter):
        return f"{letter}{len(self.nodes)}_{len(self.constants)}"

    def const(self, array):
        name = self.fresh("k")
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        if self.flip(0.3):
            self.constants.append(None)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def op(self, kind, inputs, shape, outputs=1, **attrs):
        """Adds a node; its outputs have this shape, or these shapes."""
        names = [self.fresh("v") + (f"_{i}" if i else "") for i in range(outputs)]
        label = f"{kind.lower()}{len(self.nodes)}" if self.named else ""
        self.nodes.append(helper.make_node(kind, inputs, names, label, **attrs))
        shapes = shape if outputs > 1 else [shape]
        for name, shape in zip(names, shapes):
            if int(np.prod(shape)) < 1 or int(np.prod(shape)) > MOST_ELEMS:
                raise Unfit("size")
            self.values.append((name, tuple(int(s) for s in shape)))
        return self.values[-outputs:] if outputs > 1 else self.values[-1]


def conv(g, x, shape):
    rank = len(shape) - 2
    if rank not in (1, 2, 3):
        return None
    channels = shape[1]
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    groups = g.pick(divisors) if g.flip(0.3) else 1
    out = groups * g.between(1, max(1, 12 // groups))
    kernel = [g.between(1, 3) for _ in range(rank)]
    strides = [g.pick([1, 1, 1, 2, 3]) for _ in range(rank)]
    dilations = [g.pick([1, 1, 1, 2]) for _ in range(rank)]
    attrs = {}
    pads = [0] * (2 * rank)
    mode = g.pick(["pads", "pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID"])
    # onnxruntime has no automatic padding of dilated kernels.
    if mode.startswith("SAME"):
        dilations = [1] * rank
        attrs["auto_pad"] = mode
        size = [-(-s // t) for s, t in zip(shape[2:], strides)]
    else:
        if mode == "pads":
            pads = [g.between(0, 2) for _ in range(2 * rank)]
            attrs["pads"] = pads
        if mode == "VALID":
            attrs["auto_pad"] = mode
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
        size = [(s + pads[a] + pads[a + rank] - extent[a]) // strides[a] + 1 for a, s in enumerate(shape[2:])]
    if min(size) < 1:
        return None
    if g.flip(0.8) or max(strides) > 1:
        attrs["strides"] = strides
    if g.flip(0.5) or max(dilations) > 1:
        attrs["dilations"] = dilations
    if g.flip(0.5):
        attrs["kernel_shape"] = kernel
    if g.flip(0.5) or groups > 1:
        attrs["group"] = groups
    filters = (out, channels // groups, *kernel)
    weight = g.const(g.normal(*filters, scale=np.sqrt(2.0 / np.prod(filters[1:]))))
    if g.flip(0.15):  # filters that are computed
        scale = g.const(g.away(out, *[1] * (rank + 1)))
        g.nodes.append(helper.make_node("Mul", [weight, scale], [g.fresh("w")]))
        weight = g.nodes[-1].output[0]
    inputs = [x, weight]
    if g.flip(0.6):
        inputs.append(g.const(g.normal(out)))
    elif g.flip(0.2):
        inputs.append("")
    return g.op("Conv", inputs, (shape[0], out, *size), **attrs)


def conv_transpose(g, x, shape):
    rank = len(shape) - 2
    if rank not in (1, 2) or shape[1] > 24:
        return None
    out = g.between(1, 4)
    kernel = [g.between(1, 3) for _ in range(rank)]
    strides = [g.between(1, 2) for _ in range(rank)]
    pads = [g.between(0, k - 1) for k in kernel]
    more = [g.between(0, s - 1) for s in strides]
    size = [
        (s - 1) * t + k - 2 * p + m for s, t, k, p, m in zip(shape[2:], strides, kernel, pads, more)
    ]
    if min(size) < 1:
        return None
    weight = g.const(g.normal(shape[1], out, *kernel, scale=np.sqrt(2.0 / (shape[1] * np.prod(kernel)))))
    inputs = [x, weight] + ([g.const(g.normal(out))] if g.flip() else [])
    return g.op(
        "ConvTranspose", inputs, (shape[0], out, *size), strides=strides, pads=pads + pads, output_padding=more
    )


def batch_norm(g, x, shape):
    if len(shape) < 3:
        return None
    c = shape[1]
    stats = [g.away(c), g.normal(c), g.normal(c), np.abs(g.away(c))]
    return g.op("BatchNormalization", [x, *map(g.const, stats)], shape, epsilon=float(g.pick([1e-5, 0.1])))


def passes(g, x, shape):
    kind = g.pick(["Identity", "Dropout", "Dropout"])
    if kind == "Dropout" and g.opset >= 12 and g.flip():
        return g.op(kind, [x, g.const(np.array(0.3, np.float32))], shape)
    return g.op(kind, [x], shape)


def activation(g, x, shape):
    kind = g.pick(
        ["Relu", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus", "PRelu", "Abs", "Neg"]
    )
    if kind == "Clip":
        bounds = [g.const(np.array(v, np.float32)) for v in (-0.7, 1.3)]
        return g.op(kind, [x, *g.pick([bounds, bounds[:1], ["", bounds[1]]])], shape)
    if kind == "PRelu":
        if len(shape) < 2:
            return None
        return g.op(kind, [x, g.const(g.away(shape[1], *[1] * (len(shape) - 2)))], shape)
    if kind == "LeakyRelu":
        return g.op(kind, [x], shape, alpha=0.2)
    return g.op(kind, [x], shape)


def with_constant(g, x, shape):
    rank = len(shape)
    kept = g.pick(["scalar", "channel", "channel", "last", "all", "one"])
    if kept == "scalar":
        of = ()
    elif kept == "channel" and rank >= 2:
        of = (shape[1],) + (1,) * (rank - 2)
        of = g.pick([of, (1,) + of])
    elif kept == "last":
        of = shape[-1:]
    elif kept == "one":
        of = (1,) * g.between(1, rank)
    else:
        of = shape
    kind = g.pick(["Add", "Sub", "Mul", "Div", "Max", "Min"])
    k = g.const(g.away(*of))
    # Nothing is divided by what is computed: it may be next to nothing.
    pair = [k, x] if kind != "Div" and g.flip() else [x, k]
    return g.op(kind, pair, shape)


def with_other(g, x, shape):
    others = [name for name, other in g.values if other == shape]
    kind = g.pick(["Add", "Sub", "Mul", "Max", "Where"])
    other = g.pick(others)
    if kind == "Where":
        mask = g.const(g.rng.random(shape[-1:]) < 0.5)
        return g.op(kind, [mask, x, other], shape)
    return g.op(kind, [x, other], shape)


def softmax(g, x, shape):
    kind = g.pick(["Softmax", "Softmax", "LogSoftmax"])
    return g.op(kind, [x], shape, axis=g.between(-len(shape), len(shape) - 1))


def reshape(g, x, shape):
    """Flattened and put back, with something in between now and then."""
    at = g.between(1, len(shape))
    flat = shape[:at - 1] + (int(np.prod(shape[at - 1:])),)
    inner = g.op("Reshape", [x, g.ints(*flat)], flat)
    if g.flip(0.6):
        inner = activation(g, *inner) or inner
    target = [0 if g.flip(0.3) and i < len(flat) and flat[i] == s else s for i, s in enumerate(shape)]
    if g.flip(0.5):
        hole = g.between(0, len(shape) - 1)
        if target[hole] != 0:
            target[hole] = -1
    return g.op("Reshape", [inner[0], g.ints(*target)], shape)


def move_axes(g, x, shape):
    perm = [int(p) for p in g.rng.permutation(len(shape))]
    moved = g.op("Transpose", [x], tuple(shape[p] for p in perm), perm=perm)
    if g.flip(0.7):
        inner = g.pick([activation, with_constant, softmax])(g, *moved) or moved
        back = [int(p) for p in np.argsort(perm)]
        return g.op("Transpose", [inner[0]], tuple(inner[1][p] for p in back), perm=back)
    return moved


def axes_op(g, kind, x, shape, axes, **attrs):
    """Squeeze, Unsqueeze and reductions take axes as attribute or input, by opset."""
    since = {"Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13}.get(kind, 18)
    if g.opset >= since:
        return g.op(kind, [x, g.ints(*axes)], shape, **attrs)
    return g.op(kind, [x], shape, axes=axes, **attrs)


def one_more_axis(g, x, shape):
    if len(shape) > 4:
        return None
    at = g.between(0, len(shape))
    wide = axes_op(g, "Unsqueeze", x, shape[:at] + (1,) + shape[at:], [at])
    inner = g.pick([activation, with_constant])(g, *wide) or wide
    if g.flip(0.8) and inner[1] == wide[1]:
        return axes_op(g, "Squeeze", inner[0], shape, [at])
    return inner


def pool(g, x, shape):
    rank = len(shape) - 2
    if rank not in (1, 2):
        return None
    kind = g.pick(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if kind.startswith("Global"):
        return g.op(kind, [x], shape[:2] + (1,) * rank)
    kernel = [g.between(1, 3) for _ in range(rank)]
    strides = [g.between(1, 2) for _ in range(rank)]
    pads = [g.between(0, k - 1) for k in kernel] * 2
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    size = [(s + 2 * p - k) // t + 1 for s, p, k, t in zip(shape[2:], pads, kernel, strides)]
    if min(size) < 1:
        return None
    if kind == "AveragePool":
        attrs["count_include_pad"] = int(g.flip())
    return g.op(kind, [x], shape[:2] + tuple(size), **attrs)


def slices(g, x, shape):
    count = g.between(1, min(2, len(shape)))
    axes = sorted(int(a) for a in g.rng.choice(len(shape), count, replace=False))
    starts, ends, steps, size = [], [], [], list(shape)
    for axis in axes:
        step = g.pick([1, 1, 2, 3, -1, -2])
        first = g.between(0, shape[axis] // 2)
        chosen = np.arange(shape[axis])
        if step > 0:
            end = g.pick([shape[axis], g.between(first + 1, shape[axis]), 2**31 - 1])
        else:
            first, end = shape[axis] - 1 - first, g.pick([-(2**31), -shape[axis] - 1])
        starts.append(first)
        ends.append(end)
        steps.append(step)
        size[axis] = len(chosen[first : (end if step > 0 else None) : step])
    if min(size) < 1:
        return None
    return g.op("Slice", [x, g.ints(*starts), g.ints(*ends), g.ints(*axes), g.ints(*steps)], tuple(size))


def pads_op(g, x, shape):
    mode = g.pick(["constant", "constant", "reflect", "edge"])
    rank = len(shape)
    least = -1 if mode == "constant" and g.flip(0.4) else 0
    amounts = [[0, 0] for _ in shape]
    for axis in range(max(0, rank - 2), rank):
        most = min(2, shape[axis] - 1)
        low = least if shape[axis] > 3 else 0
        amounts[axis] = [g.between(low, most), g.between(low, most)]
    size = tuple(s + a + b for s, (a, b) in zip(shape, amounts))
    inputs = [x, g.ints(*[a for a, _ in amounts], *[b for _, b in amounts])]
    if mode == "constant" and g.flip():
        inputs.append(g.const(np.full(g.pick([(), (1,)]), 0.5, np.float32)))
    return g.op("Pad", inputs, size, mode=mode)


def concat(g, x, shape):
    axis = g.between(0, len(shape) - 1)
    same = [
        (name, other)
        for name, other in g.values
        if len(other) == len(shape) and all(a == b for i, (a, b) in enumerate(zip(other, shape)) if i != axis)
    ]
    name, other = g.pick(same)
    size = shape[:axis] + (shape[axis] + other[axis],) + shape[axis + 1:]
    return g.op("Concat", [x, name], size, axis=axis)


def split(g, x, shape):
    axis = g.between(0, len(shape) - 1)
    if shape[axis] < 2:
        return None
    first = g.between(1, shape[axis] - 1)
    parts = [first, shape[axis] - first]
    shapes = [shape[:axis] + (p,) + shape[axis + 1:] for p in parts]
    if g.opset >= 13:
        return g.op("Split", [x, g.ints(*parts)], shapes, outputs=2, axis=axis)[g.between(0, 1)]
    return g.op("Split", [x], shapes, outputs=2, axis=axis, split=parts)[g.between(0, 1)]


def reduce(g, x, shape):
    if len(shape) < 2:
        return None
    axis = g.between(1, len(shape) - 1)
    size = shape[:axis] + (1,) + shape[axis + 1:]
    return axes_op(g, g.pick(["ReduceMean", "ReduceMax", "ReduceSum"]), x, size, [axis], keepdims=1)


def resize(g, x, shape):
    if len(shape) != 4:
        return None
    size = [shape[2] * g.between(1, 2), g.between(1, 2 * shape[3])]
    if g.flip(0.3):
        attrs = {"mode": "linear", "coordinate_transformation_mode": g.pick(["half_pixel", "asymmetric", "align_corners"])}
    else:
        # Where positions are exact in floats as well: whole factors, and corners.
        attrs = {"mode": "nearest"}
        attrs["coordinate_transformation_mode"] = g.pick(["asymmetric", "align_corners"])
        attrs["nearest_mode"] = g.pick(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        if attrs["coordinate_transformation_mode"] == "asymmetric":
            size[1] = shape[3] * g.between(1, 3)
    full = shape[:2] + tuple(size)
    if g.opset < 13:  # nothing left out before that
        nothing = g.const(np.zeros(0, np.float32))
        return g.op("Resize", [x, nothing, nothing, g.ints(*full)], full, **attrs)
    return g.op("Resize", [x, "", "", g.ints(*full)], full, **attrs)


def dense(g, x, shape):
    """Flattened and multiplied."""
    rows = int(np.prod(shape[:1]))
    columns = int(np.prod(shape[1:]))
    if columns > 3000:
        return None
    flat = g.op("Flatten", [x], (rows, columns))
    out = g.between(2, 12)
    weight = g.normal(columns, out, scale=np.sqrt(1.0 / columns))
    if g.flip():
        return g.op("MatMul", [flat[0], g.const(weight)], (rows, out))
    bias = g.const(g.normal(*g.pick([(out,), (1, out), ()])))
    if g.flip():
        return g.op("Gemm", [flat[0], g.const(weight.T), bias], (rows, out), transB=1, alpha=0.5)
    return g.op("Gemm", [flat[0], g.const(weight), bias], (rows, out), beta=2.0)


def last_product(g, x, shape):
    if len(shape) < 2 or shape[-1] > 300:
        return None
    out = g.between(1, 8)
    weight = g.const(g.normal(shape[-1], out, scale=np.sqrt(1.0 / shape[-1])))
    return g.op("MatMul", [x, weight], shape[:-1] + (out,))


def rearrange(g, x, shape):
    if len(shape) != 4:
        return None
    n, c, h, w = shape
    if c % 4 == 0 and g.flip():
        return g.op("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=g.pick(["DCR", "CRD"]))
    if h % 2 == 0 and w % 2 == 0:
        return g.op("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)
    return None


def normalize(g, x, shape):
    if len(shape) != 4:
        return None
    if g.flip():
        return g.op("LRN", [x], shape, size=3, alpha=0.1, beta=0.7, bias=1.0)
    if shape[2] * shape[3] < 4:
        return None
    c = shape[1]
    return g.op("InstanceNormalization", [x, g.const(g.away(c)), g.const(g.normal(c))], shape, epsilon=0.1)


def gather(g, x, shape):
    axis = g.between(0, len(shape) - 1)
    indices = [g.between(-shape[axis], shape[axis] - 1) for _ in range(g.between(1, 4))]
    return g.op("Gather", [x, g.ints(*indices)], shape[:axis] + (len(indices),) + shape[axis + 1:], axis=axis)


def tile(g, x, shape):
    times = [g.pick([1, 1, 2]) for _ in shape]
    return g.op("Tile", [x, g.ints(*times)], tuple(s * t for s, t in zip(shape, times)))


KINDS = {
    conv: 10, batch_norm: 4, passes: 4, activation: 5, with_constant: 6, with_other: 3, softmax: 3, reshape: 4,
    move_axes: 4, one_more_axis: 2, pool: 3, slices: 4, pads_op: 2, concat: 3, split: 1, reduce: 2, resize: 1.5,
    conv_transpose: 1, dense: 1, last_product: 1, rearrange: 1, normalize: 1, gather: 1, tile: 0.5,
}  # fmt: skip


def draw(rng):
    g = Graph(rng)
    rank = int(rng.choice([1, 2, 3], p=[0.2, 0.7, 0.1]))
    sides = {1: (8, 40), 2: (4, 16), 3: (3, 7)}[rank]
    shape = (g.between(1, 3), g.pick([1, 2, 3, 4, 6, 8, 16]), *[g.between(*sides) for _ in range(rank)])
    feed = g.normal(*shape)
    g.values.append(("x", shape))
    weights = np.array(list(KINDS.values()))
    kinds = list(KINDS)
    wanted = g.between(3, 14)
    tries = convolutions = 0
    while len(g.values) - 1 < wanted or convolutions == 0:
        tries += 1
        if tries > 200:
            raise Unfit("stuck")
        # Mostly what was computed last.
        name, of = g.values[-1] if g.flip(0.75) else g.pick(g.values)
        made = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))](g, name, of)
        convolutions += made is not None and g.nodes[-1].op_type == "Conv"
    used = {i for node in g.nodes for i in node.input}
    outputs = [v for v in g.values[1:] if v[0] not in used]
    inner = [v for v in g.values[1:] if v[0] in used]
    if inner and g.flip(0.4):
        outputs.append(g.pick(inner))
    order = rng.permutation(len(outputs))
    outputs = [outputs[i] for i in order]
    graph = helper.make_graph(
        g.nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in outputs],
        [c for c in g.constants if c is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=IR_VERSION), feed


def answers(model, feed):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [o.name for o in session.get_outputs()], session, session.run(None, {"x": feed})


def difference(got, want):
    return np.linalg.norm((got - want).astype(np.float64)) / max(np.linalg.norm(want.astype(np.float64)), 1e-30)


def case(seed, number):
    """The first draw of its number that is fit."""
    for attempt in range(1000):
        rng = np.random.default_rng([seed, number, attempt])
        try:
            model, feed = draw(rng)
            names, session, outputs = answers(model, feed)
        except Unfit:
            continue
        except Exception as error:  # onnxruntime has no common class for its refusals
            if "onnxruntime" not in type(error).__module__:
                raise
            continue
        near = session.run(None, {"x": feed * (1 + np.float32(6e-8)) * np.ones_like(feed)})
        noisy = session.run(None, {"x": feed * (1 + 6e-8 * rng.choice([-1, 1], feed.shape)).astype(np.float32)})
        fit = all(
            np.isfinite(o).all()
            and np.abs(o).max() > 1e-5
            and np.abs(o).max() < 1e5
            and (o.size == 1 or o.std() > 1e-3 * np.abs(o).max())
            and max(difference(a, o), difference(b, o)) < CALM * TOLERANCE
            for o, a, b in zip(outputs, near, noisy)
        )
        if fit:
            return model, feed, names, outputs
    raise SystemExit(f"no graph {number} of seed {seed} is fit")


def write(folder, seed, number):
    model, feed, names, outputs = case(seed, number)
    os.makedirs(folder)
    onnx.save(model, os.path.join(folder, "model.onnx"))
    np.save(os.path.join(folder, "input_0.npy"), feed)
    for i, output in enumerate(outputs):
        np.save(os.path.join(folder, f"output_{i}.npy"), np.ascontiguousarray(output))
    about = {
        "seed": seed,
        "number": number,
        "inputs": [{"name": "x", "file": "input_0.npy"}],
        "outputs": [{"name": name, "file": f"output_{i}.npy"} for i, name in enumerate(names)],
        "conv_nodes": sum(n.op_type == "Conv" for n in model.graph.node),
        "tolerance": TOLERANCE,
    }
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(about, f, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT_DIR")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for number in range(args.count):
        write(os.path.join(args.out, f"g{number:05}"), args.seed, number)


if __name__ == "__main__":
    main()
