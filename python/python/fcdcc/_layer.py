"""Single coded layers, and uncoded convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _fcdcc, _run
from ._arrays import Array, as_array, contiguous, floats
from ._report import LayerReport

if TYPE_CHECKING:
    from ._pool import Pool
    from .codes import Code

Sizes = int | Sequence[int]
Geometry = tuple[list[int], list[int], list[int], int]


def geometry(stride: Sizes, padding: Sizes, dilation: Sizes, groups: int) -> Geometry:
    """Stride, padding, dilation and groups as the extension module takes them."""
    return (_sizes(stride), _sizes(padding), _sizes(dilation), int(groups))


def _sizes(value: Sizes) -> list[int]:
    return [int(value)] if isinstance(value, (int, np.integer)) else [int(each) for each in value]


class Run:
    """The output of a layer and the report of its run; ``output, report = run`` unpacks it."""

    __slots__ = ("_native", "_report", "output")

    def __init__(self, output: Array, native: _fcdcc.Report) -> None:
        #: ``[N, O, spatial...]``.
        self.output = output
        self._native = native
        self._report: LayerReport | None = None

    @property
    def report(self) -> LayerReport:
        """How it was computed."""
        if self._report is None:
            self._report = LayerReport.of(self._native.to_dict())
        return self._report

    @property
    def total_ms(self) -> float:
        """Milliseconds of the run, as in the report."""
        return self._native.total_ms

    def __iter__(self) -> Iterator[Any]:
        return iter((self.output, self.report))

    def __repr__(self) -> str:
        return f"Run(output {self.output.dtype} {list(self.output.shape)}, {self.total_ms:.2f} ms)"


class CodedConv:
    """A convolution whose filters are coded and installed on the workers of a pool, for any number of runs.

    ``input_shape`` is ``[N, C, spatial...]``, ``weight`` ``[O, C/groups, kernel...]`` with 1, 2 or 3 spatial axes, ``bias``
    ``[O]``. The type of ``weight``, float32 or float64, is that of the computation; other types become float32. ``stride``,
    ``padding`` and ``dilation`` are as in ONNX: one number, one for each axis, or (padding) begins, then ends.

    Options: ``tolerate`` (stragglers), ``partitions`` (k_a, k_b), ``subtasks``, ``code`` (a name or a
    :class:`fcdcc.codes.Code`), ``layer_deadline`` (seconds), ``on_shortfall``, ``hedge``, ``partial``, ``patience``,
    ``audit``, ``max_error``, ``max_windowwise``, ``activation`` (``"relu"``, ``"relu6"`` or (low, high)), ``integers``,
    ``seed``, ``name``; docs/python.md describes them.

    >>> import numpy as np, fcdcc
    >>> x, w = np.ones((1, 2, 8, 8)), np.ones((4, 2, 3, 3))
    >>> layer = fcdcc.CodedConv(fcdcc.Pool.cpu(6), x.shape, w, stride=2, activation="relu")
    >>> layer.output_shape, layer.dtype.name
    ((1, 4, 3, 3), 'float64')
    >>> round(float(layer.run(x).output[0, 0, 0, 0]), 6)
    18.0
    """

    def __init__(
        self,
        pool: Pool,
        input_shape: Sequence[int],
        weight: Any,
        bias: Any = None,
        *,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        weight = floats(weight, "weight")
        if bias is not None:
            bias = contiguous(bias, weight.dtype, "bias")
        options = {name: code_of(value) if name == "code" else value for name, value in options.items()}
        sizes, form = [int(size) for size in input_shape], geometry(stride, padding, dilation, groups)
        self._native = _fcdcc.CodedConv(pool._native, sizes, weight, bias, form, options)
        self._dtype: np.dtype[Any] = weight.dtype

    def run(self, x: Any, *, cancel: _fcdcc.CancelToken | None = None, deadline: float | None = None) -> Run:
        """Computes the layer for ``x`` ``[N, C, spatial...]``.

        A contiguous array of the layer's type is read where it lies. ``cancel`` ends the run from another thread, and
        ``deadline`` after that many seconds.

        Raises :class:`Mismatch` or :class:`NonFinite` for an invalid input, :class:`Shortfall` when too few results came
        after every fallback, a :class:`Refused` for results that are not good enough, :class:`Cancelled` and
        :class:`Timeout`.
        """
        output, report = self._native.run(x, cancel, deadline)
        return Run(output, report)

    async def run_async(self, x: Any, *, deadline: float | None = None) -> Run:
        """As :meth:`run`, for ``asyncio``: cancelling the task ends the run."""
        return await _run.in_thread(lambda cancel: self.run(x, cancel=cancel, deadline=deadline))

    __call__ = run

    @property
    def name(self) -> str:
        """The name in reports."""
        return self._native.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the computation."""
        return self._dtype

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, C, spatial...]``."""
        return tuple(self._native.input_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[N, O, spatial...]``."""
        return tuple(self._native.output_shape)

    @property
    def code(self) -> Code:
        """The code in use."""
        from .codes import Code

        return Code(self._native.code)

    @property
    def assignment(self) -> list[int]:
        """The index of the worker that holds each subtask."""
        return self._native.assignment

    def __repr__(self) -> str:
        return f"CodedConv({self.name!r}, {self.input_shape} -> {self.output_shape}, {self.code!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a prepared layer belongs to the process that made it: prepare it in each process")


def code_of(value: Any) -> Any:
    """A code as the extension module takes it: the native object, or a name."""
    return getattr(value, "_native", value)


def conv(
    pool: Pool,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    **options: Any,
) -> Run:
    """One coded convolution: prepares a :class:`CodedConv` and runs it once.

    >>> import numpy as np, fcdcc
    >>> run = fcdcc.conv(fcdcc.Pool.cpu(4), np.ones((1, 1, 8, 8)), np.ones((2, 1, 3, 3)), padding=1)
    >>> run.output.shape
    (1, 2, 8, 8)
    """
    array = as_array(x, "input")
    layer = CodedConv(
        pool, array.shape, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options
    )
    return layer.run(array)


def convolve(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    threads: int = 1,
) -> Array:
    """One uncoded convolution on this machine, in the type of ``x`` (float64, else float32).

    ``x`` is ``[N, C, spatial...]``, ``weight`` ``[O, C/groups, kernel...]``, ``bias`` ``[O]``.

    >>> import numpy as np
    >>> convolve(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))).tolist()
    [[[[9.0]]]]
    """
    x = floats(x, "input")
    weight = contiguous(weight, x.dtype, "weight")
    if bias is not None:
        bias = contiguous(bias, x.dtype, "bias")
    return _fcdcc.convolve(x, weight, bias, geometry(stride, padding, dilation, groups), threads)
