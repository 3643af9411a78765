"""Pools, faults, and workers written in Python."""

import pickle
import time

import numpy as np
import pytest
from conftest import assert_close

import fcdcc
from fcdcc import Fault


@pytest.fixture
def layer_of(rng):
    x, w = rng.normal(size=(1, 3, 16, 12)).astype(np.float32), rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    expected = fcdcc.convolve(x.astype(np.float64), w.astype(np.float64))

    def run(pool, **options):
        run = fcdcc.CodedConv(pool, x.shape, w, **{"partitions": (4, 4), **options}).run(x)
        assert_close(run.output, expected)
        return run.report

    return run


def outcomes(report):
    return {row.worker: row.outcome for row in report.workers}


def test_pools_describe_their_workers(pool):
    assert len(pool) == 6
    first = pool.workers[0]
    assert (first.name, first.kind, first.host, first.f64, first.state) == ("cpu-0", "cpu", "local", True, "probation")
    assert "cpu-5" in repr(pool) and fcdcc.Pool.cpu(1, threads=2).workers[0].device == "2 threads"
    assert pool.wait_idle(5)
    for count in (0, 100_000):
        with pytest.raises(fcdcc.InvalidParameter):
            fcdcc.Pool.cpu(count)
    with pytest.raises(TypeError):
        pickle.dumps(pool)


def test_faults_as_objects_and_texts(layer_of):
    faults = [Fault.crash([0]), "1:delay=5s"]
    report = layer_of(fcdcc.Pool.cpu(6, faults=faults), on_shortfall="fail")
    assert outcomes(report)["cpu-0"] == "failed" and not {0, 1} & set(report.used)
    texts = {
        Fault.delay([1], 0.05): "1:delay=50ms",
        Fault.delay("all", 0.05, mean=0.1): "all:delay=shifted-exp(50ms,100ms)",
        Fault.drop([2, 3]): "2,3:drop",
        Fault.corrupt([2], 1e-3): "2:corrupt=0.001",
        Fault.nan("random:1"): "random:1:nan",
        Fault.device_lost([0]): "0:device-lost",
        Fault.slow([0], 2.5): "0:slow=2.5x",
    }
    assert {str(fault): text for fault, text in texts.items()} == {text: text for text in texts.values()}
    fcdcc.Pool.cpu(6, faults=list(texts))
    with pytest.raises(fcdcc.BadInput, match="the fault is one of"):
        fcdcc.Pool.cpu(2, faults=["0:tired"])
    with pytest.raises(fcdcc.BadInput):
        fcdcc.Pool.cpu(2, faults=[Fault.crash([2])])
    wrong = fcdcc.Pool.cpu(8, faults=[Fault.corrupt([2], 0.1)])
    report = layer_of(wrong, audit="correct")
    assert report.flagged or "cpu-2" not in {w.worker for w in report.workers if w.outcome == "used"}


def test_pool_files(tmp_path, layer_of):
    file = tmp_path / "pool.toml"
    file.write_text('[[worker]]\nkind = "cpu"\ncount = 5\n[[worker]]\nkind = "cpu"\nname = "slow"\nfault = "delay=2s"\n')
    pool = fcdcc.Pool.from_toml(file)
    assert [worker.name for worker in pool.workers][-1] == "slow"
    assert "slow" not in {w.worker for w in layer_of(pool).workers if w.outcome == "used"}
    file.write_text("[[worker]]\nkind = 'abacus'\n")
    with pytest.raises(fcdcc.FileError, match="abacus"):
        fcdcc.Pool.from_toml(file)


def test_gpu_pools_or_their_absence(layer_of):
    try:
        pool = fcdcc.Pool.gpu(6)
    except fcdcc.Unavailable as error:
        pytest.skip(f"no GPU adapter: {error}")
    assert {worker.kind for worker in pool.workers} == {"gpu"}
    layer_of(pool)
    with pytest.raises(fcdcc.Unavailable, match="abacus"):
        fcdcc.Pool.gpu(1, adapter="abacus")


class Recording(fcdcc.Worker):
    """Notes what it is asked for."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def install(self, key, shape, banks):
        self.calls.append(("install", banks.shape == (shape.banks, *shape.bank_shape)))
        super().install(key, shape, banks)

    def execute(self, task):
        fits = task.slabs.shape == (task.shape.slabs, *task.shape.slab_shape)
        self.calls.append(("execute", fits and max(task.order) < task.shape.sub_results))
        yield from super().execute(task)


def test_workers_in_python_compute_layers(layer_of):
    workers = [Recording(f"w{i}") for i in range(6)]
    report = layer_of(fcdcc.Pool.of(workers))
    assert report.completion == "exact" and len(report.used) >= 4
    assert all(("install", True) in worker.calls for worker in workers)
    assert all(fits for worker in workers for _, fits in worker.calls)


def test_stragglers_in_python_are_not_waited_for(layer_of):
    class Late(fcdcc.Worker):
        def execute(self, task):
            # The probe's layer is not one of a model.
            if task.key[0] < 2**63:
                for _ in range(200):
                    if task.cancel.cancelled:
                        raise fcdcc.Cancelled("no longer needed")
                    time.sleep(0.05)
            yield from super().execute(task)

    pool = fcdcc.Pool.of([Late("late")] + [fcdcc.Worker(f"w{i}") for i in range(5)])
    started = time.monotonic()
    report = layer_of(pool)
    assert time.monotonic() - started < 8
    assert outcomes(report)["late"] in ("cancelled", "late")


def test_what_goes_wrong_in_a_worker_is_its_own_failure(layer_of):
    def broken(body):
        return type("Broken", (fcdcc.Worker,), {"execute": body})("broken")

    def raises(self, task):
        if task.key[0] == 2**64 - 1:
            yield from fcdcc.Worker.execute(self, task)
        else:
            raise ValueError("no power")

    def wrong_shape(self, task):
        for index, result in fcdcc.Worker.execute(self, task):
            yield index, result if task.key[0] == 2**64 - 1 else result[..., :-1]

    def wrong_type(self, task):
        for index, result in fcdcc.Worker.execute(self, task):
            yield index, result if task.key[0] == 2**64 - 1 else result.astype(np.float64)

    def twice(self, task):
        for index, result in fcdcc.Worker.execute(self, task):
            yield index, result
            if task.key[0] != 2**64 - 1:
                yield index, result

    def too_few(self, task):
        results = list(fcdcc.Worker.execute(self, task))
        yield from results if task.key[0] == 2**64 - 1 else results[:0]

    def lost(self, task):
        if task.key[0] == 2**64 - 1:
            yield from fcdcc.Worker.execute(self, task)
        else:
            raise fcdcc.WorkerLost("gone")

    rows = [
        (raises, "ValueError: no power"),
        (wrong_shape, "has shape"),
        (wrong_type, "must be a numpy array of f32"),
        (twice, "does not ask for"),
        (too_few, "ended without"),
        (lost, "gone"),
    ]
    # Every subtask is needed, and no worker gets one of another.
    options = {"tolerate": 0, "partitions": None, "hedge": "off", "partial": False, "on_shortfall": "local", "audit": "off"}
    for body, cause in rows:
        others = [fcdcc.Worker(f"w{i}") for i in range(5)]
        report = layer_of(fcdcc.Pool.of([broken(body), *others]), **options)
        (row,) = [row for row in report.workers if row.worker == "broken"]
        assert row.outcome == "failed" and cause in row.cause, (cause, row)
        assert report.fallback == "local" and {w.outcome for w in report.workers if w.worker != "broken"} <= {
            "late",
            "used",
            "cancelled",
        }


def test_a_worker_that_lies_fails_its_probe(layer_of):
    class Liar(fcdcc.Worker):
        def compute(self, shape, slab, bank):
            return super().compute(shape, slab, bank) + 1

    pool = fcdcc.Pool.of([Liar("liar")] + [fcdcc.Worker(f"w{i}") for i in range(5)])
    report = layer_of(pool)
    assert all(row.outcome != "used" for row in report.workers if row.worker == "liar")
    assert next(w for w in pool.workers if w.name == "liar").state in ("lost", "quarantined")


def test_lost_workers_come_back(layer_of):
    class Mortal(fcdcc.Worker):
        can_respawn = True
        lives = []

        def execute(self, task):
            if task.key[0] != 2**64 - 1 and not self.lives:
                self.lives.append("lost")
                raise fcdcc.WorkerLost("once")
            yield from super().execute(task)

        def respawn(self):
            self.lives.append("back")
            return Mortal(self.name)

    pool = fcdcc.Pool.of([Mortal("mortal")] + [fcdcc.Worker(f"w{i}") for i in range(5)])
    # Every subtask is needed, so it gets one.
    layer_of(pool, tolerate=0, partitions=None, on_shortfall="local")
    end = time.monotonic() + 20
    while Mortal.lives != ["lost", "back"] and time.monotonic() < end:
        time.sleep(0.05)
    assert Mortal.lives == ["lost", "back"]
    layer_of(pool)
