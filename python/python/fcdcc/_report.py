"""Reports of coded layers as dataclasses."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")


def read(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the dataclass ``cls`` from the values that it knows."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in values.items() if name in names})


def frame(rows: Iterable[Any]) -> Any:
    """A ``pandas.DataFrame`` with a row for each mapping or dataclass."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install 'fcdcc[pandas]'") from error
    return pandas.DataFrame([row if isinstance(row, dict) else dataclasses.asdict(row) for row in rows])


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """One attempt of one worker at a subtask."""

    #: The subtask; None for an idle worker.
    subtask: int | None
    #: The worker's name.
    worker: str
    #: ``used``, ``late``, ``cancelled``, ``failed``, ``corrupt`` or ``idle``.
    outcome: str
    #: Milliseconds from the dispatch to the last reply; None without a reply.
    latency_ms: float | None
    #: Milliseconds of the latency spent waiting for the worker, a core or a device. The phases add up to the latency.
    queue_ms: float | None
    #: Milliseconds until another machine had the slabs; 0 for workers of this machine.
    send_ms: float | None
    #: Milliseconds of computing.
    compute_ms: float | None
    #: Milliseconds of receiving from another machine after it had computed; 0 for workers of this machine.
    receive_ms: float | None
    #: Results delivered in time.
    sub_results: int
    #: The worker's state after the run: ``healthy``, ``straggling``, ``quarantined``, ``lost`` or ``probation``.
    state: str
    #: Why the attempt failed, if it did.
    cause: str | None


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one layer was computed in one run. Times are milliseconds of wall-clock time."""

    #: The layer's name.
    name: str
    #: ``Conv``, ``ConvTranspose`` or ``Gemm``.
    op: str
    #: Code family, or ``local`` for a layer of a model that this machine computes by itself.
    code: str
    #: Why this machine computes it, if it does.
    why_local: str | None
    #: Coded subtasks.
    n: int
    #: Subtasks that suffice.
    recovery_threshold: int
    #: Parts of the input.
    k_a: int
    #: Parts of the filters.
    k_b: int
    #: ``cpu``, ``gpu``, ``remote``, ``mixed`` or ``host``.
    backend: str
    #: Every attempt at a subtask.
    workers: list[WorkerReport]
    #: Subtasks from which the output was decoded.
    used: list[int]
    #: How it ended, such as ``exact`` or ``exact-locally``.
    completion: str
    #: ``local`` if the output was computed on this machine.
    fallback: str | None
    #: Condition number of the recovery matrix.
    condition_number: float
    #: Bound of the relative L2 error of the output before its activation.
    error_bound: float
    #: Bound of the error of every output, relative to its window and filter.
    windowwise_bound: float
    #: Largest amplification of a decoded window.
    amplification: float
    #: Outputs computed on this machine because of their amplification.
    recomputed: int
    #: Padding, partitioning and encoding.
    encode_ms: float
    #: From the first dispatch to the decision.
    wait_ms: float
    #: Decoding, or computing on this machine.
    decode_ms: float
    #: The whole run.
    total_ms: float
    #: Number format of messages to other machines.
    wire: str | None
    #: Bytes of coded slabs handed to workers.
    bytes_up: int
    #: Bytes of results received before decoding.
    bytes_down: int
    #: Subtasks given to another worker.
    redispatched: int
    #: Subtasks of which an idle worker got a copy.
    hedged: int
    #: Subtasks whose results were wrong.
    flagged: list[int]
    #: Whether spare results agreed with those used.
    audited: bool
    #: Smallest relative error that the audit was certain to find.
    audit_floor: float | None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LayerReport:
        """The report in a dictionary of the extension module."""
        workers = [read(WorkerReport, worker) for worker in values["workers"]]
        return read(cls, {**values, "workers": workers})

    def to_dict(self) -> dict[str, Any]:
        """All fields, those of the workers included, as plain values."""
        return dataclasses.asdict(self)

    def to_pandas(self) -> Any:
        """The workers' rows as a ``pandas.DataFrame``."""
        return frame(self.workers)
