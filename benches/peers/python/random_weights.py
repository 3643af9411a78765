"""Well-known networks with random weights, for the comparison of whole models.

The package `onnx` brings the graphs of these networks for its own tests, with weights that are all equal. This script
gives every weight numbers drawn from a seed and the weight's name: the same package and the same seed give the same
file. Weights of convolutions and dense layers have a variance of 2 / fan-in, so that no activation overflows or vanishes.

A network that ends in a Softmax gets a second output, the tensor before it, as its first output: a Softmax turns large
logits into a single one, and hides or exaggerates differences.

As a server (no arguments) it answers the command "make", see `answers.py`; by hand:

    python3 random_weights.py DIRECTORY [NAME ...]
"""
import json
import os
import sys
import zlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The names of the comparison, and those of the package.
GRAPHS = {
    "squeezenet": "squeezenet",
    "resnet50": "resnet50",
    "shufflenet": "shufflenet",
    "inception_v1": "inception_v1",
    "densenet121": "densenet121",
    "alexnet": "bvlc_alexnet",
    "vgg19": "vgg19",
}
# Beside them: a small model with trained weights that belongs to the repository.
SMALL = {"lenet": os.path.join(os.path.dirname(__file__), "../../../assets/digits/lenet5.onnx")}
SEED = 1
# To be raised with every change of the files that this script makes.
RECIPE = 1


def uses_of(graph):
    """For each tensor the nodes that read it, with the place among their inputs; looks through changes of shape."""
    readers = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))

    def through(name):
        for node, place in readers.get(name, []):
            if node.op_type in ("Unsqueeze", "Reshape", "Identity") and place == 0:
                yield from through(node.output[0])
            else:
                yield node, place

    return through


def drawn(name, shape, uses):
    """Numbers for the weight `name`, fit for what it is used for."""
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    node, place = next(iter(uses), (None, 0))
    op = node.op_type if node is not None else ""
    if (op == "BatchNormalization" and place in (1, 4)) or op == "Mul":
        numbers = generator.uniform(0.5, 1.5, shape)
    elif op in ("Conv", "Gemm", "MatMul") and place == 1:
        transposed = op == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        fan_in = shape[0] if op == "MatMul" or (op == "Gemm" and not transposed) else np.prod(shape[1:])
        numbers = generator.standard_normal(shape) * np.sqrt(2.0 / max(1, fan_in))
    else:
        numbers = generator.standard_normal(shape) * 0.1
    return numpy_helper.from_array(numbers.astype(np.float32), name)


def randomise(graph):
    """Replaces every constant of one value by random numbers, and drops what nothing reads any more."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    uses = uses_of(graph)
    kept = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in constants:
            shape = [int(size) for size in numpy_helper.to_array(constants[node.input[0]])]
            graph.initializer.append(drawn(node.output[0], shape, uses(node.output[0])))
        else:
            kept.append(node)
    if len(kept) == len(graph.node):
        raise ValueError("the graph has no constant weights to replace: another version of the package onnx?")
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in graph.node for name in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
    # Constants need not be inputs of a graph.
    inputs = [value for value in graph.input if value.name in read and value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def show_logits(graph):
    last = graph.node[-1]
    if last.op_type != "Softmax":
        return
    shape = [size.dim_value for size in graph.output[0].type.tensor_type.shape.dim]
    probabilities = list(graph.output)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, shape))
    graph.output.extend(probabilities)


def load(name):
    if name in SMALL:
        return onnx.load(SMALL[name])
    path = f"backend/test/data/light/light_{GRAPHS[name]}.onnx"
    model = onnx.load(os.path.join(os.path.dirname(onnx.__file__), path))
    randomise(model.graph)
    # From version 4 on, constants need not be inputs.
    model.ir_version = max(model.ir_version, 8)
    return model


def fix_batch(graph):
    """A batch of one; every other size must be known."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs instead of 1")
    for value in inputs + list(graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.value_info[:]
    shape = [size.dim_value for size in inputs[0].type.tensor_type.shape.dim]
    if 0 in shape:
        raise ValueError(f"the size of the input {inputs[0].name} is not fixed: {shape}")
    return shape


def make(name, directory):
    """Makes the model `name`, or finds it made before: its path, the shape of its input, its number of Conv nodes."""
    if name not in GRAPHS and name not in SMALL:
        raise ValueError(f"no model {name!r}, only {', '.join([*GRAPHS, *SMALL])}")
    os.makedirs(directory, exist_ok=True)
    path = os.path.abspath(os.path.join(directory, f"{name}.onnx"))
    described = os.path.join(directory, f"{name}.json")
    made_by = {"recipe": RECIPE, "seed": SEED, "onnx": onnx.__version__}
    try:
        with open(described) as file:
            found = json.load(file)
        if found["made_by"] == made_by and os.path.getsize(path) == found["size"] and name not in SMALL:
            return {**found, "path": path}
    except (OSError, ValueError, KeyError):
        pass  # Not there, or not whole.
    model = load(name)
    shape = fix_batch(model.graph)
    show_logits(model.graph)
    onnx.checker.check_model(model)
    # Complete, or not there.
    onnx.save(model, path + ".part")
    os.replace(path + ".part", path)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    found = {"made_by": made_by, "size": os.path.getsize(path), "shape": shape, "convolutions": convolutions}
    with open(described, "w") as file:
        json.dump(found, file)
    return {**found, "path": path}


def main():
    if len(sys.argv) > 1:
        for name in sys.argv[2:] or GRAPHS:
            made = make(name, sys.argv[1])
            print(f"{made['path']}: input {made['shape']}, {made['convolutions']} Conv nodes, {made['size'] >> 20} MiB")
        return
    import answers

    command = lambda request, payload: (make(request["name"], request["directory"]), b"")
    answers.serve(lambda: f"onnx {onnx.__version__}", {"make": command})


if __name__ == "__main__":
    main()
