"""The exceptions of fcdcc. Each has the numbers of its message as fields.

Four classes say how a request ended: :class:`BadInput`, :class:`Shortfall`, :class:`Refused` and :class:`Internal`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Error(Exception):
    """Every error of fcdcc.

    ``layer`` is the name of the model's layer in which it happened, or None. ``exit_status`` is the status with which the
    command line would end.
    """

    layer: str | None = None
    exit_status: ClassVar[int] = 1


class Internal(Error):
    """A defect or a failure of the environment on this side."""


class BadInput(Error, ValueError):
    """The request cannot be carried out."""

    exit_status = 2


class Refused(Error):
    """A result exists but is not returned: it is wrong, or its error bound exceeds the tolerance."""

    exit_status = 4


class InvalidParameter(BadInput):
    """A parameter is outside what the operation is defined for."""

    what: str
    got: Any
    help: str


class Mismatch(BadInput):
    """Two sizes or types that must agree do not."""

    what: str
    got: Any
    expected: Any
    help: str


class NonFinite(BadInput):
    """An input holds a NaN or an infinity, which coding would spread over the whole output."""

    what: str
    value: float
    index: int


class Unavailable(BadInput):
    """A device, adapter or feature does not exist here."""

    what: str
    help: str


class OutOfMemory(BadInput, MemoryError):
    """There is not enough memory for the request."""

    what: str
    needed_bytes: int
    available_bytes: int
    limit: str


class ModelError(BadInput):
    """A model asks for something that cannot be carried out, or its operators disagree."""

    model: str
    cause: str


class FileError(BadInput, OSError):
    """A file cannot be read, or is not what it should be."""

    path: str
    cause: str


class Shortfall(Error):
    """Too few results can still come, or came before the deadline.

    >>> issubclass(Shortfall, Error)
    True
    """

    exit_status = 3
    needed: int
    total: int
    arrived: int
    waited_ms: int
    missing: str
    help: str


class ErrorBound(Refused):
    """The error bound of a result exceeds ``max_error``."""

    bound: float
    tolerance: float
    condition: float
    help: str


class Inexact(Refused):
    """A result is off by more than its report promises."""

    what: str
    error: float
    bound: float
    help: str


class NonFiniteResults(Refused):
    """A result holds a NaN or an infinity although input and filters are finite."""

    count: int
    total: int
    dtype: str
    workers: str


class Corrupted(Refused):
    """Results contradict each other, and the faulty workers cannot be located."""

    results: int
    threshold: int
    workers: str
    help: str


class Singular(Internal):
    """The recovery matrix of a set of subtasks is singular to working precision."""

    subtasks: list[int]
    condition: float


class WorkerLost(Internal):
    """A worker can do no further work. A worker written in Python raises it to say so of itself."""

    worker: str = ""
    cause: str = ""


class WorkerFailed(Internal):
    """A worker could not do one piece of work but can still work."""

    worker: str
    cause: str


class ProbeFailed(Internal):
    """A worker gave a wrong answer to a probe."""

    worker: str
    cause: str


class Cancelled(Error):
    """The work was cancelled before it was complete. A worker written in Python raises it when its task is cancelled."""


class Timeout(Internal, TimeoutError):
    """Something took longer than its limit, in seconds."""

    what: str
    limit: float
    help: str


class GpuError(Internal):
    """A GPU refused an operation or failed during the work."""

    adapter: str
    cause: str


class ForkedProcess(Internal):
    """fcdcc was used in a process that was forked from one that used it: its threads do not exist there."""

    owner: int
    process: int


_CLASSES: dict[str, type[Error]] = {
    each.__name__: each
    for each in (
        Internal, InvalidParameter, Mismatch, NonFinite, Unavailable, OutOfMemory, ModelError, FileError, Shortfall,
        ErrorBound, Inexact, NonFiniteResults, Corrupted, Singular, WorkerLost, WorkerFailed, ProbeFailed, Cancelled,
        Timeout, GpuError, ForkedProcess,
    )
}  # fmt: skip


def make(kind: str, text: str, layer: str | None, fields: dict[str, Any]) -> Error:
    """The exception of the class ``kind`` with these fields; called by the extension module."""
    error = _CLASSES[kind](text)
    for name, value in fields.items():
        setattr(error, name, value)
    error.layer = layer
    return error


def mismatch(what: str, got: Any, expected: Any, help: str) -> Error:
    """A :class:`Mismatch` of values of Python; called by the extension module."""
    fields = {"what": what, "got": got, "expected": expected, "help": help}
    return make("Mismatch", f"{what} is {got} where {expected} was expected: {help}", None, fields)
