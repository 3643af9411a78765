"""The benchmark harness: comparisons of methods under the same faults, and the study of numerical stability."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _fcdcc, _run
from ._arrays import Array
from ._report import frame

if TYPE_CHECKING:
    from ._pool import Fault
    from .codes import Code


def _options(given: dict[str, Any], *, joined: Sequence[str]) -> list[str]:
    """Keyword arguments as options of the command line; lists in ``joined`` with commas between, others repeated."""
    options: list[str] = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            options.append(flag)
        elif isinstance(value, (list, tuple)) and name in joined:
            options.append(f"{flag}={','.join(str(each) for each in value)}")
        elif isinstance(value, (list, tuple)):
            options.extend(f"{flag}={each}" for each in value)
        elif isinstance(value, os.PathLike):
            options.append(f"{flag}={os.fspath(value)}")
        else:
            options.append(f"{flag}={value}")
    return options


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row of condition numbers and errors, in which reports have nothing for what is infinite."""
    return {name: math.inf if value is None else value for name, value in row.items()}


def _duration(seconds: float | str | None) -> str | None:
    if seconds is None or isinstance(seconds, str):
        return seconds
    return f"{round(seconds * 1e9)}ns"


class BenchReport:
    """The result of :func:`bench`; ``data`` is the content of bench.json (docs/benchmarks.md)."""

    def __init__(self, data: dict[str, Any]) -> None:
        #: The whole report as plain values.
        self.data = data

    @property
    def studies(self) -> list[dict[str, Any]]:
        """One study for each layer or model."""
        studies: list[dict[str, Any]] = self.data["studies"]
        return studies

    @property
    def findings(self) -> list[str]:
        """What the numbers show, in sentences."""
        findings: list[str] = self.data["findings"]
        return findings

    def rows(self) -> list[dict[str, Any]]:
        """A row for each study, scenario and method, with its percentiles in milliseconds."""
        rows = []
        for study in self.studies:
            for scenario in study["scenarios"]:
                for result in scenario["methods"]:
                    plain = {name: value for name, value in result.items() if not isinstance(value, (list, dict))}
                    estimates = {
                        name: value["value"] for name, value in result.items() if isinstance(value, dict) and "value" in value
                    }
                    rows.append({"study": study["name"], "scenario": scenario["name"], **plain, **estimates})
        return rows

    def to_pandas(self) -> Any:
        """:meth:`rows` as a ``pandas.DataFrame``."""
        return frame(self.rows())

    def median_ms(self, study: str | int = 0) -> tuple[list[str], list[str], Array]:
        """Scenarios, methods, and the medians in milliseconds, ``[scenarios, methods]``; NaN where there is none."""
        found = self.studies[study] if isinstance(study, int) else self._named(study)
        scenarios = [scenario["name"] for scenario in found["scenarios"]]
        methods = [plan["method"] for plan in found["plans"]]
        medians = np.full((len(scenarios), len(methods)), np.nan)
        for row, scenario in enumerate(found["scenarios"]):
            for result in scenario["methods"]:
                estimate = result["median"]
                if estimate is not None:
                    medians[row, methods.index(result["method"])] = estimate["value"]
        return scenarios, methods, medians

    def _named(self, name: str) -> dict[str, Any]:
        for study in self.studies:
            if study["name"] == name:
                return study
        raise KeyError(f"{name!r}: the studies are {', '.join(study['name'] for study in self.studies)}")

    def __repr__(self) -> str:
        return f"BenchReport({', '.join(study['name'] for study in self.studies)})"


def bench(
    layers: Sequence[str] | str | None = None,
    *,
    workers: int = 6,
    tolerate: int = 2,
    trials: int = 20,
    methods: Sequence[str | Code] | None = None,
    scenarios: Sequence[str | Fault] | None = None,
    delay: float | str | None = None,
    break_even: bool = True,
    simulated: bool = False,
    link_latency: float | str | None = None,
    bandwidth: float | None = None,
    mac_rate: float | None = None,
    backend: str | None = None,
    seed: int = 0,
    cancel: _fcdcc.CancelToken | None = None,
    deadline: float | None = None,
    progress: bool | _run.Observer | None = None,
    **options: Any,
) -> BenchReport:
    """Compares coded with uncoded, hedged and replicated execution under the same faults, as ``fcdcc bench`` does.

    ``layers`` are networks (``"vgg16"``), layers (``"vgg16/conv4_2"``) or a TOML file of layers. ``methods`` are names, and at
    most one :class:`fcdcc.codes.Code` of your own, which reports call ``custom`` and which has one subtask for each worker;
    the first is what others are compared to. ``scenarios`` are faults that act together, with spaces between; the default is
    a suite. Times are in seconds.

    ``simulated`` runs the production scheduler in virtual time, on up to 10,000 workers with links of ``link_latency``,
    ``bandwidth`` (megabits a second) and ``mac_rate`` (billions of multiply-adds a second). Further ``options`` are those of
    the command, with underscores: ``code="chebyshev"``, ``partitions="4,4"``, ``audit="detect"``, ``pool="pool.toml"``.

    >>> import fcdcc
    >>> report = fcdcc.bench("lenet5/conv2", simulated=True, trials=5, scenarios=["none", "random:2:delay=50ms"],
    ...                      methods=["uncoded", "crme"], break_even=False)
    >>> scenarios, methods, medians = report.median_ms()
    >>> methods, medians.shape
    (['uncoded', 'crme'], (2, 2))
    >>> bool(medians[1, 0] > 50 > medians[1, 1])
    True
    """
    given = {
        "layers": [layers] if isinstance(layers, str) else layers,
        "workers": workers,
        "tolerate": tolerate,
        "trials": trials,
        "methods": methods,
        "scenario": None if scenarios is None else [str(scenario) for scenario in scenarios],
        "delay": _duration(delay),
        "no_break_even": not break_even,
        "virtual": simulated,
        "link_latency": _duration(link_latency),
        "bandwidth": bandwidth,
        "mac_rate": mac_rate,
        "backend": backend or (None if simulated or "pool" in options else "cpu"),
        "seed": seed,
        **options,
    }
    own = None
    if methods is not None:
        own_codes = [method for method in methods if not isinstance(method, str)]
        if len(own_codes) > 1:
            raise ValueError(f"{len(own_codes)} codes of your own: a comparison has place for one")
        own = own_codes[0]._native if own_codes else None
        given["methods"] = [method if isinstance(method, str) else "custom" for method in methods]
    arguments = _options(given, joined=["layers", "methods"])
    with _run.observer(progress, "bench") as observe:
        return BenchReport(_fcdcc.bench(arguments, own, cancel, deadline, observe))


class StabilityReport:
    """The result of :func:`stability`; ``data`` is the content of stability.json (docs/stability.md)."""

    def __init__(self, data: dict[str, Any]) -> None:
        #: The whole report as plain values.
        self.data = data

    def rows(self) -> list[dict[str, Any]]:
        """A row for each code of each table of condition numbers."""
        tables: list[dict[str, Any]] = self.data["tables"]
        return [{"table": table["label"], **_numbers(row)} for table in tables for row in table["rows"]]

    def errors(self) -> list[dict[str, Any]]:
        """A row for each code, layer and element type, with the errors of its decoded outputs."""
        errors: list[dict[str, Any]] = self.data["errors"]
        return [_numbers(row) for row in errors]

    @property
    def findings(self) -> list[str]:
        """What the numbers show, in sentences."""
        findings: list[str] = self.data["findings"]
        return findings

    def to_pandas(self) -> Any:
        """:meth:`rows` as a ``pandas.DataFrame``."""
        return frame(self.rows())

    def __repr__(self) -> str:
        return f"StabilityReport({len(self.rows())} codes)"


def stability(
    *,
    n: Sequence[int] | None = None,
    delta: Sequence[int] | None = None,
    codes: Sequence[str] | None = None,
    layers: str | None = None,
    precision: Sequence[str] | None = None,
    samples: int | None = None,
    limit: int | None = None,
    quick: bool = False,
    seed: int = 0,
    cancel: _fcdcc.CancelToken | None = None,
    deadline: float | None = None,
    progress: bool | _run.Observer | None = None,
) -> StabilityReport:
    """Condition numbers and errors of the code families over (n, delta), as ``fcdcc stability`` computes them.

    Without ``n`` and ``delta``: the study of docs/stability.md, which takes a minute; ``quick`` takes seconds. ``layers``
    are the convolutions to decode, or ``"none"``.

    >>> import fcdcc
    >>> report = fcdcc.stability(n=[6], delta=[4], codes=["crme", "vandermonde"], layers="none", quick=True)
    >>> sorted({row["code"] for row in report.rows()})
    ['crme', 'vandermonde']
    """
    given = {
        "n": n,
        "delta": delta,
        "code": codes,
        "layers": layers,
        "precision": precision,
        "samples": samples,
        "limit": limit,
        "quick": quick,
        "seed": seed,
    }
    arguments = _options(given, joined=["n", "delta", "code", "precision"])
    with _run.observer(progress, "stability") as observe:
        return StabilityReport(_fcdcc.stability(arguments, cancel, deadline, observe))
