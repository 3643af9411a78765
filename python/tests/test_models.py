"""Whole models against onnxruntime."""

import asyncio
import collections
import concurrent.futures
import threading
import time
import types

import numpy as np
import pytest
from conftest import LENET, assert_close, conv_net, distance, oracle

import fcdcc


def test_the_demo_model_runs_as_its_documentation_shows(pool, digits):
    prepared = fcdcc.Model(LENET).prepare(pool, tolerate=2)
    run = prepared.run({"image": digits})
    (expected,) = oracle(LENET, {"image": digits})
    assert_close(run.outputs[0], expected)
    assert run.outputs[0] is run[0] is run[run.names[0]]
    assert [layer.name for layer in run.layers] and all(layer.n == 6 for layer in run.layers if layer.code != "local")
    assert 0 < run.host <= run.total


def test_inputs_are_taken_by_name_or_in_order(pool, rng, tmp_path):
    path = conv_net(tmp_path / "two.onnx", inputs=2)
    x0, x1 = (rng.normal(size=(2, 3, 16, 12)).astype(np.float32) for _ in range(2))
    expected = oracle(path, {"x0": x0, "x1": x1})
    prepared = fcdcc.Model(path).prepare(pool)
    for run in (prepared.run({"x1": x1, "x0": x0}), prepared.run(x0, x1), prepared(x0, x1)):
        assert run.names == ["relu", "mean"]
        for got, want in zip(run, expected, strict=True):
            assert_close(got, want)
    # The inputs the other way round give something else.
    assert distance(prepared.run(x1, x0)[0], expected[0]) > 0.1


def test_layouts_types_and_other_arrays_give_the_same(pool, rng, tmp_path):
    path = conv_net(tmp_path / "net.onnx")
    x = rng.normal(size=(2, 3, 16, 12)).astype(np.float32)
    expected = oracle(path, {"x0": x})[0]
    prepared = fcdcc.Model(path).prepare(pool)

    class Interface:
        __array_interface__ = x.__array_interface__

    class Dlpack:
        def __dlpack__(self, **options):
            return x.__dlpack__(**options)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    wide = np.zeros((2, 3, 16, 24), np.float32)
    wide[..., ::2] = x
    given = {
        "fortran": np.asfortranarray(x),
        "strided": wide[..., ::2],
        "big endian": x.astype(">f4"),
        "float64": x.astype(np.float64),
        "list": x.tolist(),
        "interface": Interface(),
        "dlpack": Dlpack(),
    }
    for name, value in given.items():
        assert distance(prepared.run(value)[0], expected) < 1e-5, name
    readonly = x.copy()
    readonly.setflags(write=False)
    assert_close(prepared.run(readonly)[0], expected)


def unaligned(array):
    """The array one byte beyond where it should lie."""
    there = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    there[...] = array
    assert not there.flags.aligned and there.flags.c_contiguous
    return there


def field(array):
    """The array as a field of records whose size is no multiple of an element's."""
    records = np.zeros(array.shape, [("value", array.dtype), ("flag", "u1")])
    records["value"] = array
    return records["value"]


def test_arrays_that_lie_oddly_give_the_same(pool, rng, tmp_path):
    x = rng.normal(size=(2, 3, 16, 12)).astype(np.float32)
    w = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    path = conv_net(tmp_path / "net.onnx")
    prepared, expected = fcdcc.Model(path).prepare(pool), oracle(path, {"x0": x})[0]
    layer = fcdcc.CodedConv(pool, x.shape, w)
    image = layer.run(x).output
    ways = [unaligned, field, lambda array: unaligned(field(array)), lambda array: np.flip(np.flip(array, 3).copy(), 3)]
    for way in ways:
        assert np.array_equal(way(x), x)
        assert_close(prepared.run(way(x))[0], expected)
        assert_close(layer.run(way(x)).output, image)
        assert_close(fcdcc.CodedConv(pool, x.shape, way(w)).run(x).output, image)
        assert_close(prepared.run(way(x).astype(np.float64))[0], expected)
    deep = x.reshape((1,) * 28 + x.shape)  # 32 axes, the most of numpy 1
    if int(np.__version__.split(".")[0]) >= 2:
        deep = x.reshape((1,) * 40 + x.shape)
    for given in (deep, np.zeros((0, 3, 16, 12), np.float32)[::-1], np.float32(1.0)):
        with pytest.raises(fcdcc.Mismatch):
            prepared.run(given)
        with pytest.raises(fcdcc.Mismatch):
            layer.run(given)
    with pytest.raises(fcdcc.Mismatch, match="complex"):
        prepared.run(x.astype(complex))
    with pytest.raises(TypeError, match="complex"):
        layer.run(x.astype(complex))


def test_arrays_are_named_by_any_mapping(pool, rng, tmp_path):
    path = conv_net(tmp_path / "two.onnx", inputs=2)
    prepared = fcdcc.Model(path).prepare(pool)
    x0, x1 = (rng.normal(size=(2, 3, 16, 12)).astype(np.float32) for _ in range(2))
    expected = prepared.run(x0, x1)[0]
    named = {"x1": x1, "x0": x0}
    for mapping in (types.MappingProxyType(named), collections.UserDict(named), collections.ChainMap({"x0": x0}, named)):
        assert_close(prepared.run(mapping)[0], expected)
    partial = collections.defaultdict(lambda: x1, x0=x0)
    for given in (partial, {**named, "x2": x0}, {}, collections.UserDict(x0=x0), {1: x0, "x0": x0}):
        with pytest.raises(fcdcc.Mismatch) as caught:
            prepared.run(given)
        assert set(caught.value.got) == set(given) and caught.value.expected == ["x0", "x1"]
    assert list(partial) == ["x0"]


@pytest.mark.parametrize("name", ["FLOAT16", "DOUBLE", "BFLOAT16"])
def test_types_of_the_file_come_in_and_out(pool, rng, tmp_path, name):
    from onnx import TensorProto

    dtype = getattr(TensorProto, name)
    path = conv_net(tmp_path / "typed.onnx", dtype=dtype)
    wide = conv_net(tmp_path / "wide.onnx")
    x = rng.normal(size=(2, 3, 16, 12)).astype(np.float32)
    expected = oracle(wide, {"x0": x})[0]
    if name == "BFLOAT16":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        numpy_type, tolerance = np.dtype(ml_dtypes.bfloat16), 3e-2
    else:
        numpy_type, tolerance = np.dtype({"FLOAT16": "f2", "DOUBLE": "f8"}[name]), 5e-3
    run = fcdcc.Model(path).prepare(pool).run(x.astype(numpy_type))
    assert run[0].dtype == numpy_type
    assert_close(run[0].astype(np.float32), expected, tolerance)


def test_open_sizes_are_prepared_for_the_arrays_that_come(pool, digits):
    prepared = fcdcc.Model(LENET).prepare(pool)
    with pytest.raises(fcdcc.BadInput, match="open sizes"):
        _ = prepared.coded_layers
    for count in (1, 3, 1, 2, 4):
        assert_close(prepared.run(digits[:count])[0], oracle(LENET, {"image": digits[:count]})[0])
    assert prepared.coded_layers >= 2
    with pytest.raises(fcdcc.Mismatch, match="image"):
        prepared.run(digits[:, :, :16])
    fixed = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(pool)
    with pytest.raises(fcdcc.Mismatch) as caught:
        fixed.run(digits)
    assert "4" in str(caught.value)


def test_preparing_for_the_first_arrays_ends_as_a_run_does(digits):
    pool = fcdcc.Pool.cpu(6)
    prepared = fcdcc.Model(LENET).prepare(pool)
    with pytest.raises(fcdcc.Timeout):
        prepared.run(digits, deadline=1e-9)
    token = fcdcc.CancelToken()
    token.cancel()
    with pytest.raises(fcdcc.Cancelled):
        prepared.run(digits, cancel=token)
    with pytest.raises(fcdcc.BadInput, match="open sizes"):
        _ = prepared.memory_bytes
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(lambda count: prepared.run(digits[:count])[0], [1, 2, 1, 2, 3, 4]))
    expected = oracle(LENET, {"image": digits})[0]
    for got in runs:
        assert distance(got, expected[: len(got)]) < 1e-5


def test_an_input_that_holds_sizes_becomes_a_constant(pool, rng, tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save

    weight = (rng.normal(size=(8, 3, 3, 3)) / 5).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Reshape", ["y", "sizes"], ["z"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 6, 6]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [2]),
    ]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, None])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    x = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    for sizes in ([4, 64], np.array([2, 128], np.int32)):
        model = fcdcc.Model(path).with_value("sizes", sizes)
        assert [each.name for each in model.inputs] == ["x"]
        assert_close(model.prepare(pool).run(x)[0], oracle(path, {"x": x, "sizes": np.array(sizes, np.int64)})[0])
    with pytest.raises(fcdcc.Mismatch, match="sizes"):
        fcdcc.Model(path).with_value("sizes", [1.5, 2.0])


def test_bytes_shapes_and_descriptions(digits):
    model = fcdcc.Model(LENET.read_bytes(), name="lenet")
    assert model.name == "lenet" and not model.inputs[0].is_fixed and model.inputs[0].dtype == "f32"
    model = model.with_shapes({"image": (2, 1, 32, 32)})
    assert model.output_shapes() == {model.outputs[0]: (2, 10)}
    assert "image" in repr(model)
    found = fcdcc.inspect(LENET)
    assert found["runs"] and found["parameters"] > 1000


def test_wrong_inputs_are_refused_with_both_sides(pool, tmp_path):
    path = conv_net(tmp_path / "net.onnx")
    prepared = fcdcc.Model(path).prepare(pool)
    x = np.zeros((2, 3, 16, 12), np.float32)
    with pytest.raises(fcdcc.Mismatch) as caught:
        prepared.run({"y": x})
    assert caught.value.got == ["y"] and caught.value.expected == ["x0"]
    with pytest.raises(fcdcc.Mismatch) as caught:
        prepared.run(x, x)
    assert (caught.value.got, caught.value.expected) == (2, 1)
    with pytest.raises(fcdcc.Mismatch):
        prepared.run(x[:1])
    with pytest.raises(fcdcc.NonFinite) as nan:
        prepared.run(np.full_like(x, np.nan))
    assert nan.value.index == 0 and nan.value.layer == "conv0"
    with pytest.raises(TypeError):
        prepared.run(np.array([object()]))
    with pytest.raises(fcdcc.InvalidParameter, match="tolerat"):
        fcdcc.Model(path).prepare(pool, tolerat=2)
    with pytest.raises(fcdcc.InvalidParameter, match="hedge="):
        fcdcc.Model(path).prepare(pool, hedge="sometimes")
    with pytest.raises(fcdcc.ModelError):
        fcdcc.Model(b"\x00nothing")
    with pytest.raises(fcdcc.FileError) as missing:
        fcdcc.Model("missing.onnx")
    assert isinstance(missing.value, OSError) and missing.value.exit_status == 2


def test_threads_share_a_model(pool, digits):
    prepared = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(pool)
    expected = oracle(LENET, {"image": digits})[0]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda i: prepared.run(digits[i % 4 : i % 4 + 1])[0], range(40)))
    for index, got in enumerate(runs):
        assert distance(got, expected[index % 4 : index % 4 + 1]) < 1e-5


def test_the_interpreter_runs_while_a_model_waits(digits):
    pool = fcdcc.Pool.cpu(6, faults=["all:delay=300ms"])
    prepared = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(pool, hedge="off")
    counted = 0
    stop = threading.Event()

    def count():
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    prepared.run(digits[:1])
    stop.set()
    thread.join()
    assert counted > 50


def test_asyncio_runs_and_cancels(digits):
    pool = fcdcc.Pool.cpu(6)
    prepared = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(pool)
    expected = oracle(LENET, {"image": digits})[0]

    async def several():
        return await asyncio.gather(*(prepared.run_async(digits[i : i + 1]) for i in range(4)))

    for index, run in enumerate(asyncio.run(several())):
        assert distance(run[0], expected[index : index + 1]) < 1e-5

    slow = fcdcc.Pool.cpu(6, faults=["all:delay=20s"])
    waiting = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(slow, on_shortfall="fail")

    async def given_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting.run_async(digits[:1]), 0.3)

    started = time.monotonic()
    asyncio.run(given_up())
    assert time.monotonic() - started < 10


def test_deadlines_and_tokens_end_runs(digits):
    slow = fcdcc.Pool.cpu(6, faults=["all:delay=20s"])
    waiting = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(slow, on_shortfall="fail")
    started = time.monotonic()
    with pytest.raises(fcdcc.Timeout) as late:
        waiting.run(digits[:1], deadline=0.2)
    assert late.value.limit == pytest.approx(0.2) and isinstance(late.value, TimeoutError)
    token = fcdcc.CancelToken()
    threading.Timer(0.2, token.cancel).start()
    with pytest.raises(fcdcc.Cancelled):
        waiting.run(digits[:1], cancel=token)
    assert token.cancelled
    with pytest.raises(fcdcc.Cancelled):
        waiting.run(digits[:1], cancel=token)
    assert time.monotonic() - started < 10
    with pytest.raises(fcdcc.InvalidParameter, match="deadline"):
        waiting.run(digits[:1], deadline=-1)


def test_progress_is_reported_and_its_exceptions_come_through(pool, digits):
    seen = []
    model = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)})
    prepared = model.prepare(pool, progress=lambda *step: seen.append(step))
    assert [step[0] for step in seen] == list(range(1, prepared.coded_layers + 1))
    seen.clear()
    prepared.run(digits[:1], progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == prepared.coded_layers

    def raises(*step):
        raise KeyError(step[2])

    with pytest.raises(KeyError):
        prepared.run(digits[:1], progress=raises)
    with pytest.raises(KeyError):
        model.prepare(pool, progress=raises)
    assert prepared.run(digits[:1]).outputs


def test_reports_become_tables(pool, digits):
    run = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(pool).run(digits[:1])
    layer = run.layers[0]
    assert layer.recovery_threshold <= len(layer.workers) and layer.completion.startswith("exact")
    assert set(run.to_dict()) == set(run.names)
    pandas = pytest.importorskip("pandas")
    table = run.to_pandas()
    assert isinstance(table, pandas.DataFrame) and list(table["name"]) == [each.name for each in run.layers]
    assert set(layer.to_pandas()["worker"]) <= {worker.name for worker in pool.workers}
