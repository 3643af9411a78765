"""What the tests share: models made with onnx, oracles by onnxruntime, pools."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fcdcc

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENET = ROOT / "assets/digits/lenet5.onnx"

#: Largest deviation from an f32 oracle, relative to the largest output: sums of some hundred terms, coded with condition
#: numbers of about ten.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Examples name files by their paths in the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def pool():
    return fcdcc.Pool.cpu(6)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def digits():
    """Pictures for the demo's model, ``[count, 1, 32, 32]``."""
    rng = np.random.default_rng(3)
    return rng.random((4, 1, 32, 32), dtype=np.float32)


def distance(got, expected) -> float:
    """Largest deviation relative to the largest expected magnitude; infinite for other shapes."""
    if np.shape(got) != np.shape(expected):
        return float("inf")
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_close(got, expected, tolerance=TOLERANCE):
    """Compares, and checks that a wrong element would have been noticed."""
    assert distance(got, expected) <= tolerance
    wrong = np.array(expected, copy=True)
    wrong.flat[wrong.size // 2] += np.abs(expected).max() * 10 * tolerance
    assert distance(got, wrong) > tolerance


def python(code: str, *, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT, **options,
    )  # fmt: skip


def conv_net(path, *, dtype=None, batch=2, inputs=1):
    """Writes a small model: a convolution for each input, their sum, ReLU, and a second output."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dtype = dtype or TensorProto.FLOAT
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    rng = np.random.default_rng(11)
    nodes, weights, given = [], [], []
    for index in range(inputs):
        weight = (rng.normal(size=(8, 3, 3, 3)) / 5).astype(numpy_type)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        given.append(helper.make_tensor_value_info(f"x{index}", dtype, [batch, 3, 16, 12]))
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"y{index}"], pads=[1, 1, 1, 1], name=f"conv{index}"))
    total = "y0"
    for index in range(1, inputs):
        nodes.append(helper.make_node("Sub", [total, f"y{index}"], [f"sum{index}"]))
        total = f"sum{index}"
    nodes.append(helper.make_node("Relu", [total], ["relu"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["relu"], ["mean"]))
    outputs = [
        helper.make_tensor_value_info("relu", dtype, [batch, 8, 16, 12]),
        helper.make_tensor_value_info("mean", dtype, [batch, 8, 1, 1]),
    ]
    graph = helper.make_graph(nodes, "net", given, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


def oracle(path, inputs):
    """What onnxruntime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
