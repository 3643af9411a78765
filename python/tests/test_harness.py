"""The benchmark harness, its results as arrays, and that it can be stopped."""

import time

import numpy as np
import pytest

import fcdcc


def test_a_comparison_in_virtual_time():
    report = fcdcc.bench(
        ["lenet5/conv2", "vgg16/conv5_1"],
        workers=12, tolerate=3, trials=20, simulated=True, break_even=False,
        scenarios=["none", fcdcc.Fault.delay("random:3", 0.2), "random:3:crash"],
        methods=["uncoded", "replication", "crme"],
    )  # fmt: skip
    scenarios, methods, medians = report.median_ms("vgg16/conv5_1")
    assert methods == ["uncoded", "replication", "crme"] and medians.shape == (3, 3) and len(scenarios) == 3
    # Two hundred milliseconds late: an uncoded run waits, a coded one does not.
    assert medians[1, 0] > 200 > medians[1, 2]
    assert medians[0, 2] < medians[1, 0]
    rows = report.rows()
    assert len(rows) == 2 * 3 * 3 and {"study", "scenario", "method", "median", "failed"} <= set(rows[0])
    assert report.findings and repr(report) == "BenchReport(lenet5/conv2, vgg16/conv5_1)"
    with pytest.raises(KeyError):
        report.median_ms("vgg16")
    again = fcdcc.bench("lenet5/conv2", trials=5, simulated=True, break_even=False, scenarios=["all:delay=exp(20ms)"], seed=3)
    same = fcdcc.bench("lenet5/conv2", trials=5, simulated=True, break_even=False, scenarios=["all:delay=exp(20ms)"], seed=3)
    other = fcdcc.bench("lenet5/conv2", trials=5, simulated=True, break_even=False, scenarios=["all:delay=exp(20ms)"], seed=4)
    assert np.array_equal(again.median_ms()[2], same.median_ms()[2])
    assert not np.array_equal(again.median_ms()[2], other.median_ms()[2])


def test_a_code_of_ones_own_is_compared_with_the_others(rng):
    own = fcdcc.codes.Code.from_generators(rng.normal(size=(6, 4, 1)), np.ones((6, 1, 1)))
    given = {"trials": 4, "break_even": False, "scenarios": ["random:2:delay=200ms"], "methods": ["uncoded", "crme", own]}
    simulated = fcdcc.bench("vgg16/conv5_1", simulated=True, **given)
    _, methods, medians = simulated.median_ms()
    assert methods == ["uncoded", "crme", "custom"] and medians[0, 0] > 200 > medians[0, 2]
    real = fcdcc.bench("lenet5/conv2", calibrate="never", **given).studies[0]
    assert real["plans"][2]["recovery_threshold"] == 4
    assert real["scenarios"][0]["methods"][2]["max_error"] < 1e-4
    with pytest.raises(fcdcc.BadInput):
        fcdcc.bench("vgg16/conv5_1", simulated=True, methods=["uncoded", "custom"])
    with pytest.raises(ValueError, match="one"):
        fcdcc.bench("vgg16/conv5_1", simulated=True, methods=[own, own])
    few = fcdcc.bench("vgg16/conv5_1", simulated=True, workers=5, trials=2, break_even=False, methods=["uncoded", own])
    assert any("custom" in finding for finding in few.findings)


def test_a_comparison_on_real_workers():
    report = fcdcc.bench(
        "lenet5/conv2",
        trials=3,
        break_even=False,
        scenarios=["random:2:delay=30ms"],
        methods=["uncoded", "crme"],
        calibrate="never",
    )
    results = report.studies[0]["scenarios"][0]["methods"]
    assert results[0]["median"]["value"] > 30 and results[1]["max_error"] < 1e-4


def test_options_are_those_of_the_command():
    with pytest.raises(fcdcc.InvalidParameter, match="nonsense"):
        fcdcc.bench(simulated=True, nonsense=3)
    with pytest.raises(fcdcc.BadInput, match="trials"):
        fcdcc.bench(simulated=True, trials=0)
    with pytest.raises(fcdcc.BadInput):
        fcdcc.stability(n=[4], delta=[6])


def test_progress_deadlines_and_tables():
    steps = []
    report = fcdcc.stability(
        n=[8, 10], delta=[6], codes=["crme", "chebyshev"], layers="none", quick=True, progress=lambda *s: steps.append(s)
    )
    assert steps and steps[-1][0] <= steps[-1][1]
    rows = report.rows()
    assert {row["n"] for row in rows} == {8, 10} and all(row["worst"] >= row["median"] >= 1 for row in rows)
    pytest.importorskip("pandas")
    assert set(report.to_pandas()["code"]) == {"crme", "chebyshev"}
    started = time.monotonic()
    with pytest.raises(fcdcc.Timeout):
        fcdcc.bench("vgg16/conv4_2", workers=400, tolerate=40, trials=100_000, simulated=True, deadline=0.5)
    assert time.monotonic() - started < 30
