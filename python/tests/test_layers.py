"""Single coded layers against their definition, and what calls cost."""

import asyncio
import statistics
import time

import numpy as np
import pytest
from conftest import assert_close, distance

import fcdcc
from fcdcc import codes


def definition(x, w, bias=None, *, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """The convolution of two spatial axes, element by element, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    x = np.pad(x, ((0, 0), (0, 0), (padding[0], padding[2]), (padding[1], padding[3])))
    count, _, height, width = x.shape
    out, per_group, kh, kw = w.shape
    rows = (height - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    columns = (width - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    y = np.zeros((count, out, rows, columns))
    for o in range(out):
        first = o // (out // groups) * per_group
        for i in range(rows):
            for j in range(columns):
                window = x[
                    :,
                    first : first + per_group,
                    i * stride[0] : i * stride[0] + (kh - 1) * dilation[0] + 1 : dilation[0],
                    j * stride[1] : j * stride[1] + (kw - 1) * dilation[1] + 1 : dilation[1],
                ]
                y[:, o, i, j] = (window * w[o]).sum(axis=(1, 2, 3))
    return y if bias is None else y + np.asarray(bias)[None, :, None, None]


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": (2, 1), "padding": (1, 0, 2, 1)},
        {"dilation": (2, 2), "padding": (2, 2, 2, 2)},
        {"groups": 2, "padding": (1, 1, 1, 1)},
    ],
)
def test_layers_compute_the_definition(pool, rng, geometry):
    x = rng.normal(size=(2, 4, 14, 11))
    w = rng.normal(size=(8, 4 // geometry.get("groups", 1), 3, 3))
    bias = rng.normal(size=8)
    expected = definition(x, w, bias, **geometry)
    assert_close(fcdcc.convolve(x, w, bias, **geometry), expected, 1e-9)
    for code in ("crme", "chebyshev", "replication"):
        run = fcdcc.conv(pool, x, w, bias, code=code, tolerate=2, **geometry)
        assert_close(run.output, expected, 1e-9)
        assert run.report.code in (code, "replication", "crme") and run.output.dtype == np.float64
    narrow = fcdcc.conv(pool, x.astype(np.float32), w.astype(np.float32), bias, **geometry)
    assert narrow.output.dtype == np.float32
    assert_close(narrow.output, expected)


def test_one_and_three_axes_activations_and_options(pool, rng):
    x, w = rng.normal(size=(1, 3, 40)), rng.normal(size=(6, 3, 5))
    layer = fcdcc.CodedConv(pool, x.shape, w, stride=2, padding=2, activation="relu", name="first", partitions=(4, 2))
    assert (layer.name, layer.input_shape, layer.output_shape) == ("first", (1, 3, 40), (1, 6, 20))
    assert (layer.code.kind, layer.code.k_a, layer.code.k_b, len(layer.assignment)) == ("crme", 4, 2, 6)
    plain = definition(x[..., None], w[..., None], stride=(2, 1), padding=(2, 0, 2, 0))[..., 0]
    assert_close(layer.run(x).output, np.maximum(plain, 0), 1e-9)
    x, w = rng.normal(size=(1, 2, 6, 7, 8)), rng.normal(size=(4, 2, 2, 2, 2))
    assert_close(fcdcc.conv(pool, x, w, activation=(-1, 1)).output, np.clip(fcdcc.convolve(x, w), -1, 1), 1e-9)
    whole = rng.integers(-9, 9, size=(1, 2, 9, 9)).astype(np.float32)
    filters = rng.integers(-9, 9, size=(4, 2, 3, 3)).astype(np.float32)
    exact = fcdcc.conv(pool, whole, filters, integers=9).output
    assert np.array_equal(exact, definition(whole, filters))


def test_bad_options_are_refused_by_name(pool, rng):
    x, w = rng.normal(size=(1, 2, 8, 8)), rng.normal(size=(4, 2, 3, 3))
    rows = {
        "tolerate": [-1, "two", 9],
        "code": ["hamming"],
        "partitions": [(3, 5), 4],
        "layer_deadline": [0, "soon"],
        "on_shortfall": ["wait"],
        "audit": ["always"],
        "max_error": [0],
        "max_windowwise": ["never"],
        "activation": ["tanh"],
        "nonsense": [1],
    }
    for name, values in rows.items():
        for value in values:
            with pytest.raises(fcdcc.BadInput):
                fcdcc.CodedConv(pool, x.shape, w, **{name: value})
    with pytest.raises(fcdcc.Mismatch) as caught:
        fcdcc.CodedConv(pool, x.shape, w).run(x[:, :1])
    assert caught.value.expected == "[1, 2, 8, 8]"
    with pytest.raises(fcdcc.BadInput, match="groups is 3"):
        fcdcc.CodedConv(pool, x.shape, w, groups=3)


def test_a_code_of_ones_own_runs_and_tolerates_what_it_promises(rng):
    """A code of the user's: rows of a random matrix for the input, one bank."""
    blocks = rng.normal(size=(6, 4, 1))
    code = codes.Code.from_generators(blocks, np.ones((6, 1, 1)))
    assert (code.recovery_threshold, code.tolerated) == (4, 2)
    x, w = rng.normal(size=(1, 3, 16, 10)), rng.normal(size=(5, 3, 3, 3))
    expected = definition(x, w)
    pool = fcdcc.Pool.cpu(6, faults=[fcdcc.Fault.crash([1, 4])])
    layer = fcdcc.CodedConv(pool, x.shape, w, code=code, on_shortfall="fail")
    run = layer.run(x)
    assert_close(run.output, expected, 1e-9)
    assert run.report.code == "custom" and not {1, 4} & set(run.report.used)
    one_more = fcdcc.Pool.cpu(6, faults=[fcdcc.Fault.crash([0, 1, 4])])
    with pytest.raises(fcdcc.Shortfall) as short:
        fcdcc.CodedConv(one_more, x.shape, w, code=code, on_shortfall="fail").run(x)
    assert (short.value.needed, short.value.total) == (4, 6) and short.value.arrived < 4
    with pytest.raises(fcdcc.InvalidParameter):
        fcdcc.Model("assets/digits/lenet5.onnx", shapes={"image": (1, 1, 32, 32)}).prepare(pool, code=code)


def test_layers_run_in_asyncio(pool, rng):
    x, w = rng.normal(size=(1, 2, 8, 8)), rng.normal(size=(4, 2, 3, 3))
    layer = fcdcc.CodedConv(pool, x.shape, w)

    async def several():
        return await asyncio.gather(*(layer.run_async(x * scale) for scale in (1, 2, 3)))

    for scale, run in zip((1, 2, 3), asyncio.run(several()), strict=True):
        assert_close(run.output, definition(x * scale, w), 1e-9)


def test_a_call_costs_little_beside_its_run(rng):
    """What Python adds to a run of the library, without the copies of large arrays: benches/overhead.py measures it."""
    x, w = rng.normal(size=(1, 1, 8, 8)).astype(np.float32), rng.normal(size=(2, 1, 3, 3)).astype(np.float32)
    layer = fcdcc.CodedConv(fcdcc.Pool.cpu(2), x.shape, w, tolerate=1)
    added = []
    for _ in range(300):
        started = time.perf_counter()
        _, report = layer._native.run(x)
        added.append(time.perf_counter() - started - report.total_ms / 1e3)
    # An unoptimised build on a busy machine; a thread that is started for each call, or a poll, would take longer.
    assert statistics.median(added) < 1e-3
    assert distance(layer.run(x).output, definition(x, w)) < 1e-5
