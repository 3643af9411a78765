"""Coded distributed convolution: exact CNN layers and ONNX models from unreliable workers.

A layer is coded into n subtasks of which any delta give the exact result, so workers may be slow, wrong or lost.

>>> import numpy as np
>>> import fcdcc
>>> pool = fcdcc.Pool.cpu(6)
>>> x = np.ones((1, 8, 16, 16), dtype=np.float32)
>>> w = np.ones((16, 8, 3, 3), dtype=np.float32)
>>> layer = fcdcc.CodedConv(pool, x.shape, w, padding=1, tolerate=2)
>>> run = layer.run(x)
>>> run.output.shape
(1, 16, 16, 16)
>>> bool(np.isclose(run.output[0, 0, 8, 8], 72.0))
True

Whole models: :class:`Model`. Workers: :class:`Pool`, :class:`Worker`, :class:`Fault`. Codes: :mod:`fcdcc.codes`.
Measurements: :func:`bench`, :func:`stability`. PyTorch: :mod:`fcdcc.torch`. Every error is an :class:`Error` with fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import codes as codes
    from ._errors import (
        BadInput as BadInput,
        Cancelled as Cancelled,
        Corrupted as Corrupted,
        Error as Error,
        ErrorBound as ErrorBound,
        FileError as FileError,
        ForkedProcess as ForkedProcess,
        GpuError as GpuError,
        Inexact as Inexact,
        Internal as Internal,
        InvalidParameter as InvalidParameter,
        Mismatch as Mismatch,
        ModelError as ModelError,
        NonFinite as NonFinite,
        NonFiniteResults as NonFiniteResults,
        OutOfMemory as OutOfMemory,
        ProbeFailed as ProbeFailed,
        Refused as Refused,
        Shortfall as Shortfall,
        Singular as Singular,
        Timeout as Timeout,
        Unavailable as Unavailable,
        WorkerFailed as WorkerFailed,
        WorkerLost as WorkerLost,
    )
    from ._fcdcc import CancelToken as CancelToken, SubtaskShape as SubtaskShape, Task as Task
    from ._harness import (
        BenchReport as BenchReport,
        StabilityReport as StabilityReport,
        bench as bench,
        stability as stability,
    )
    from ._layer import CodedConv as CodedConv, Run as Run, conv as conv, convolve as convolve
    from ._model import (
        Input as Input,
        Model as Model,
        ModelRun as ModelRun,
        PreparedModel as PreparedModel,
        inspect as inspect,
    )
    from ._pool import Fault as Fault, Pool as Pool, WorkerState as WorkerState
    from ._report import LayerReport as LayerReport, WorkerReport as WorkerReport
    from ._version import __version__ as __version__
    from ._worker import Finding as Finding, Worker as Worker, check_worker as check_worker

# The module of each name. Names are imported when they are used, so that the command `fcdcc` starts without numpy.
_HOMES = {
    "_errors": [
        "BadInput", "Cancelled", "Corrupted", "Error", "ErrorBound", "FileError", "Finding", "ForkedProcess",
        "GpuError", "Inexact", "Internal", "InvalidParameter", "Mismatch", "ModelError", "NonFinite",
        "NonFiniteResults", "OutOfMemory", "ProbeFailed", "Refused", "Shortfall", "Singular", "Timeout",
        "Unavailable", "WorkerFailed", "WorkerLost",
    ],
    "_fcdcc": ["CancelToken", "SubtaskShape", "Task"],
    "_harness": ["BenchReport", "StabilityReport", "bench", "stability"],
    "_layer": ["CodedConv", "Run", "conv", "convolve"],
    "_model": ["Input", "Model", "ModelRun", "PreparedModel", "inspect"],
    "_pool": ["Fault", "Pool", "WorkerState"],
    "_report": ["LayerReport", "WorkerReport"],
    "_version": ["__version__"],
    "_worker": ["Finding", "Worker", "check_worker"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BadInput", "BenchReport", "CancelToken", "Cancelled", "CodedConv", "Corrupted", "Error", "ErrorBound", "Fault",
    "FileError", "ForkedProcess", "GpuError", "Inexact", "Input", "Internal", "InvalidParameter", "LayerReport",
    "Mismatch", "Model", "ModelError", "ModelRun", "NonFinite", "NonFiniteResults", "OutOfMemory", "Pool",
    "PreparedModel", "ProbeFailed", "Refused", "Run", "Shortfall", "Singular", "StabilityReport", "SubtaskShape",
    "Task", "Timeout", "Unavailable", "Worker", "WorkerFailed", "WorkerLost", "WorkerReport", "WorkerState",
    "__version__", "bench", "check_worker", "codes", "conv", "convolve", "inspect", "stability",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("codes", "torch"):
        return importlib.import_module(f".{name}", __name__)
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
