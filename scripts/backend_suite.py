#!/usr/bin/env python3
"""Runs the ONNX project's backend suite through `fcdcc run`, and counts.

    python3 scripts/backend_suite.py FCDCC OUT_DIR [--kinds node,simple,pytorch-operator,pytorch-converted] [--only TEXT]

FCDCC is the command. Every case is a model with inputs and expected outputs; those of kind `node` are generated from the
installed package `onnx`. Every model is run with the cases' inputs, coded where it has layers to code, and its outputs are
compared within the tolerances of the case. OUT_DIR gets `cases.json` with the outcome of every case. Printed are counts, and
one line for each operator with cases that do not pass. Needs onnx and numpy. Exit code 1 if a number was wrong or the
command crashed. Cases of any kind that consist of the operators in scripts/operators.txt alone are counted once more.

Outcomes: `pass`; `refused` (exit code 2, with its reason); `wrong`; `crash` (any other exit code, or no end within 60 s);
`skipped` (inputs or outputs that an array file cannot hold: strings, sequences, optional values, types of less than 8 bits).
"""
import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import onnx
from onnx import numpy_helper

LIMIT_S = 60
# Types that a .npy file holds in a way that the command reads.
PLAIN = {"float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}


def node_cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            for inputs, outputs in case.data_sets:
                yield case.name, case.model, list(inputs), list(outputs), case.rtol, case.atol


def stored_cases(kind):
    import onnx.backend.test

    root = os.path.join(os.path.dirname(onnx.backend.test.__file__), "data", kind)
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not os.path.exists(os.path.join(folder, "model.onnx")):
            continue
        model = onnx.load(os.path.join(folder, "model.onnx"))
        data = os.path.join(folder, "test_data_set_0")
        try:
            inputs = read(data, "input", model.graph.input)
            outputs = read(data, "output", model.graph.output)
        except Exception:  # Sequences and maps are stored as other messages.
            inputs = outputs = [None]
        yield name, model, inputs, outputs, 1e-3, 1e-7


def read(folder, prefix, infos):
    values = []
    for index in range(len(infos)):
        path = os.path.join(folder, f"{prefix}_{index}.pb")
        if not os.path.exists(path):
            break
        with open(path, "rb") as file:
            values.append(numpy_helper.to_array(onnx.load_tensor_from_string(file.read())))
    return values


def plain(values):
    return all(isinstance(value, (np.ndarray, np.generic)) and str(np.asarray(value).dtype) in PLAIN for value in values)


def run(command, folder, model, inputs, outputs, rtol, atol):
    """The outcome of a case and its reason."""
    if not plain(inputs) or not plain(outputs):
        return "skipped", "strings, sequences, optional values or narrow types"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    onnx.save(model, os.path.join(folder, "model.onnx"))
    line = [command, "run", "model.onnx", "--quiet", "--outputs", "out", "--workers", "6", "--tolerate", "2"]
    initial = {tensor.name for tensor in model.graph.initializer}
    names = [info.name for info in model.graph.input]
    if len(inputs) < len(names):
        names = [name for name in names if name not in initial] or names
    for index, (name, value) in enumerate(zip(names, inputs)):
        value = np.asarray(value)
        np.save(os.path.join(folder, f"input_{index}.npy"), np.ascontiguousarray(value).reshape(value.shape))
        line += ["--input", f"{name}=input_{index}.npy"]
        if value.ndim and value.size:
            line += ["--shape", f"{name}=" + ",".join(str(size) for size in value.shape)]
    try:
        ended = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "crash", f"no end within {LIMIT_S} s"
    reason = (ended.stderr.strip().splitlines() or [""])[0]
    if ended.returncode == 2:
        return "refused", reason
    if ended.returncode != 0:
        return "crash", f"exit code {ended.returncode}: {reason}"
    files = sorted(os.listdir(os.path.join(folder, "out")))
    for info, want in zip(model.graph.output, outputs):
        path = os.path.join(folder, "out", info.name.replace("/", "_") + ".npy")
        if not os.path.exists(path):
            return "crash", f"no file for output {info.name!r} among {files}"
        got, want = np.load(path), np.asarray(want)
        if got.shape != want.shape or got.dtype != want.dtype:
            return "wrong", f"{info.name}: {got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
        if not np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=want.dtype.kind == "f"):
            difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
            return "wrong", f"{info.name}: off by up to {np.nanmax(difference):.3g}"
    return "pass", ""


def operators(graph):
    """The operators of a graph and of those inside its nodes, in order, with their domain if it is another."""
    for node in graph.node:
        yield node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from operators(inner)


def operator(model):
    """The operator that a case of kind `node` is about: the first that is not a constant."""
    return next((kind for kind in operators(model.graph) if kind != "Constant"), "none")


def listed():
    """The operators of scripts/operators.txt."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "operators.txt")) as file:
        return {name for line in file if not line.startswith("#") for name in line.split()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command")
    parser.add_argument("out")
    parser.add_argument("--kinds", default="node,simple,pytorch-operator,pytorch-converted")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    command = os.path.abspath(arguments.command)
    scratch = os.path.join(os.path.abspath(arguments.out), "case")
    cases, counts, known = [], collections.defaultdict(collections.Counter), listed()
    for kind in arguments.kinds.split(","):
        for name, model, inputs, outputs, rtol, atol in node_cases() if kind == "node" else stored_cases(kind):
            if arguments.only not in name:
                continue
            outcome, reason = run(command, scratch, model, inputs, outputs, rtol, atol)
            cases.append(dict(kind=kind, name=name, operator=operator(model), outcome=outcome, reason=reason))
            counts[kind][outcome] += 1
            # Functions that a model defines are made of operators too.
            bodies = [model.graph, *model.functions]
            if all(name in known for body in bodies for name in operators(body)):
                counts["of listed operators"][outcome] += 1
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(arguments.out, exist_ok=True)
    with open(os.path.join(arguments.out, "cases.json"), "w") as file:
        json.dump(cases, file, indent=1)
    kinds = ["pass", "refused", "wrong", "crash", "skipped"]
    print("| kind | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for kind, counter in counts.items():
        print(f"| {kind} | " + " | ".join(str(counter[outcome]) for outcome in kinds) + " |")
    failed = collections.defaultdict(list)
    for case in cases:
        if case["outcome"] not in ("pass", "skipped"):
            failed[case["operator"]].append(case)
    for name, list_of in sorted(failed.items()):
        outcomes = collections.Counter(case["outcome"] for case in list_of)
        print(f"{name}: {dict(outcomes)}, e.g. {list_of[0]['name']}: {list_of[0]['reason'][:160]}")
    return 1 if any(case["outcome"] in ("wrong", "crash") for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
