#!/usr/bin/env python3
"""Extracts every Conv case of the ONNX backend test suite as .npy files: an oracle nobody here wrote.

    python3 scripts/onnx_conv_cases.py OUT_DIR        (needs the onnx package)

writes OUT_DIR/NAME/{x,w,b,y}.npy (b only where the case has a bias) and OUT_DIR/NAME/params.json with
stride, padding (begins then ends), dilation and groups; prints the number of cases.
"""
import json
import os
import sys
import warnings

import numpy as np
import onnx
from onnx import numpy_helper


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def explicit_pads(attrs, x, w, stride, dilation):
    rank = x.ndim - 2
    mode = attrs.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        return [int(p) for p in attrs.get("pads", [0] * 2 * rank)]
    begins, ends = [], []
    for axis in range(rank):
        size = x.shape[2 + axis]
        out = -(-size // stride[axis])
        total = max(0, (out - 1) * stride[axis] + (w.shape[2 + axis] - 1) * dilation[axis] + 1 - size)
        small = total // 2
        begins.append(small if mode == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return begins + ends


def load_protobuf(path):
    tensor = onnx.TensorProto()
    with open(path, "rb") as f:
        tensor.ParseFromString(f.read())
    return numpy_helper.to_array(tensor)


def shipped_cases():
    root = os.path.join(os.path.dirname(onnx.__file__), "backend/test/data")
    for suite in ("pytorch-converted", "pytorch-operator"):
        for name in sorted(os.listdir(os.path.join(root, suite))):
            folder = os.path.join(root, suite, name)
            model = onnx.load(os.path.join(folder, "model.onnx"))
            if not any(n.op_type == "Conv" for n in model.graph.node):
                continue
            data = os.path.join(folder, "test_data_set_0")
            inputs = [load_protobuf(os.path.join(data, f"input_{i}.pb")) for i in range(len(os.listdir(data)) - 1)]
            yield name, model, inputs, [load_protobuf(os.path.join(data, "output_0.pb"))]


def node_cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases("Conv"):
            for inputs, outputs in case.data_sets:
                yield case.name, case.model, list(inputs), list(outputs)


def main(out):
    count = 0
    for name, model, inputs, outputs in [*shipped_cases(), *node_cases()]:
        nodes = model.graph.node
        if [n.op_type for n in nodes if n.op_type != "Constant"] != ["Conv"]:
            continue
        values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        fed = [i.name for i in model.graph.input if i.name not in values]
        values.update(zip(fed, inputs))
        node = next(n for n in nodes if n.op_type == "Conv")
        attrs = attributes(node)
        x, w = values[node.input[0]], values[node.input[1]]
        rank = x.ndim - 2
        stride = [int(v) for v in attrs.get("strides", [1] * rank)]
        dilation = [int(v) for v in attrs.get("dilations", [1] * rank)]
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        arrays = {"x": x, "w": w, "y": outputs[0]}
        if len(node.input) > 2:
            arrays["b"] = values[node.input[2]]
        for key, array in arrays.items():
            np.save(os.path.join(folder, f"{key}.npy"), np.ascontiguousarray(array, dtype="<f4"))
        params = {
            "stride": stride,
            "dilation": dilation,
            "padding": explicit_pads(attrs, x, w, stride, dilation),
            "groups": int(attrs.get("group", 1)),
        }
        with open(os.path.join(folder, "params.json"), "w") as f:
            json.dump(params, f)
        count += 1
    print(f"{count} Conv cases")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
