"""Whole models from ONNX files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _fcdcc, _log, _run
from ._arrays import Array
from ._report import LayerReport, frame

if TYPE_CHECKING:
    from ._pool import Pool


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a model."""

    #: Its name in the file.
    name: str
    #: Element type in the file, such as ``f32``.
    dtype: str
    #: Sizes of the axes, None for an open one; None as a whole if even the number of axes is open.
    shape: tuple[int | None, ...] | None
    #: The shape in the words of the file, such as ``[batch, 3, 224, 224]``.
    described: str

    @property
    def is_fixed(self) -> bool:
        """Whether every size is known."""
        return self.shape is not None and None not in self.shape


class Model:
    """An ONNX model: a path, or the bytes of a file. Nothing is computed yet.

    ``shapes`` gives sizes that the file leaves open, or others than it has, by the names of the inputs. Where sizes stay
    open, the model is prepared for the arrays of its first run.

    >>> import fcdcc
    >>> model = fcdcc.Model("lenet5.onnx")  # fcdcc demo --write .
    >>> model.inputs[0].name, model.inputs[0].shape
    ('image', (None, 1, 32, 32))
    >>> model.with_shapes({"image": (2, 1, 32, 32)}).inputs[0].shape
    (2, 1, 32, 32)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        name: str = "model.onnx",
    ) -> None:
        _log.sync()
        if isinstance(source, (bytes, bytearray, memoryview)):
            native = _fcdcc.Model.from_bytes(name, bytes(source))
        else:
            native = _fcdcc.Model.load(os.fspath(source))
        self._native = _shaped(native, shapes)

    @classmethod
    def _of(cls, native: _fcdcc.Model) -> Model:
        model = cls.__new__(cls)
        model._native = native
        return model

    @property
    def name(self) -> str:
        """Path or name."""
        return self._native.name

    @property
    def inputs(self) -> list[Input]:
        """The inputs, in order."""
        return [
            Input(name, dtype, None if shape is None else tuple(shape), described)
            for name, dtype, shape, described in self._native.inputs
        ]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return self._native.outputs

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the outputs for inputs of known shapes; None for a size that depends on data."""
        return {name: tuple(shape) for name, _, shape in self._native.output_infos()}

    def with_shapes(self, shapes: Mapping[str, Sequence[int]]) -> Model:
        """This model with other shapes of inputs."""
        return Model._of(_shaped(self._native, shapes))

    def with_value(self, name: str, value: Any) -> Model:
        """This model with an input that is a constant, for inputs that hold sizes or axes."""
        return Model._of(self._native.with_value(name, value))

    def prepare(
        self,
        pool: Pool,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        cancel: _fcdcc.CancelToken | None = None,
        deadline: float | None = None,
        progress: bool | _run.Observer | None = None,
        **options: Any,
    ) -> PreparedModel:
        """Codes the layers and installs their filters on the workers of ``pool``, once for any number of runs.

        Options are those of :class:`CodedConv` (``tolerate=2`` and so on), and ``gemm`` (``"auto"``, ``"on"``, ``"off"``:
        fully connected layers), ``precision`` (``"f32"``, ``"f64"``) and ``planner`` (what it may choose: ``"code"``,
        ``"subtasks"``, ``"local"``). ``progress`` is a callable (done, total, layer), or True for a bar.

        Raises :class:`ModelError` for a model that cannot run, :class:`InvalidParameter` for options,
        :class:`OutOfMemory`.

        >>> import numpy as np, fcdcc
        >>> prepared = fcdcc.Model("lenet5.onnx").prepare(fcdcc.Pool.cpu(6), tolerate=2)
        >>> prepared.run({"image": np.zeros((1, 1, 32, 32), np.float32)}).outputs[0].shape
        (1, 10)
        """
        _log.sync()
        model = self if shapes is None else self.with_shapes(shapes)
        with _run.observer(progress, "preparing") as observe:
            native = model._native.prepare(pool._native, dict(options), cancel, deadline, observe)
        return PreparedModel(model, pool, native)

    def __repr__(self) -> str:
        return repr(self._native)

    def __reduce__(self) -> Any:
        raise TypeError("a model is not pickled: load it from its file in each process")


def _shaped(native: _fcdcc.Model, shapes: Mapping[str, Sequence[int]] | None) -> _fcdcc.Model:
    if not shapes:
        return native
    return native.with_shapes([(name, [int(size) for size in shape]) for name, shape in shapes.items()])


class PreparedModel:
    """A model ready to run, from several threads at once; made by :meth:`Model.prepare`.

    Up to 16 runs are in flight at a time, each in memory of its own. A model with open sizes stays prepared for the last four
    sets of shapes that came; its properties are those of the set used last.
    """

    def __init__(self, model: Model, pool: Pool, native: _fcdcc.PreparedModel) -> None:
        self._model = model
        self._pool = pool
        self._native = native

    def run(
        self,
        *inputs: Any,
        cancel: _fcdcc.CancelToken | None = None,
        deadline: float | None = None,
        progress: bool | _run.Observer | None = None,
    ) -> ModelRun:
        """Computes every output.

        Takes one mapping from the names of the inputs to arrays, or the arrays in the model's order. Arrays are those of
        numpy, and whatever offers DLPack or ``__array_interface__``. Contiguous ones of the type in which the model computes
        are read where they lie: do not write to them during the run. Outputs are numpy arrays that are not copied. ``cancel``
        ends the run from another thread, ``deadline`` after that many seconds, an interrupt (Ctrl-C) on the main thread.

        Raises :class:`Mismatch` for a wrong number, shape or type of inputs, :class:`Shortfall` when too few results came
        after every fallback, a :class:`Refused` for results that are not good enough, :class:`Cancelled`,
        :class:`Timeout`.
        """
        if progress is None:
            return ModelRun(self._native.run(inputs, cancel, deadline))
        with _run.observer(progress, "running") as observe:
            return ModelRun(self._native.run(inputs, cancel, deadline, observe))

    __call__ = run

    async def run_async(self, *inputs: Any, deadline: float | None = None) -> ModelRun:
        """As :meth:`run`, for ``asyncio``: cancelling the task ends the run."""
        return await _run.in_thread(lambda cancel: self.run(*inputs, cancel=cancel, deadline=deadline))

    @property
    def inputs(self) -> list[Input]:
        """The inputs of the model, in order."""
        return self._model.inputs

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return self._model.outputs

    @property
    def coded_layers(self) -> int:
        """Number of layers on the workers."""
        return self._native.coded_layers

    @property
    def local_layers(self) -> list[tuple[str, str, str]]:
        """Name, operator and reason of each layer that stays on this machine."""
        return self._native.local_layers

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of the prepared model and a run."""
        return self._native.memory_bytes

    def __repr__(self) -> str:
        return f"PreparedModel({self._model.name!r} on {len(self._pool)} workers)"

    def __reduce__(self) -> Any:
        raise TypeError("a prepared model belongs to the process that made it: prepare it in each process")


class ModelRun(Sequence[Array]):
    """The outputs of a run, as a sequence in the order of the model, and its reports.

    ``run[0]`` and ``run["name"]`` give outputs.
    """

    def __init__(self, native: _fcdcc.ModelRun) -> None:
        self._native = native
        #: The outputs, in the order of the model.
        self.outputs: list[Array] = native.outputs
        self._layers: list[LayerReport] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        return self._native.names

    @property
    def layers(self) -> list[LayerReport]:
        """A report for every convolution, coded or not, and every coded fully connected layer."""
        if self._layers is None:
            self._layers = [LayerReport.of(layer) for layer in self._native.layers]
        return self._layers

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return self._native.total

    @property
    def host(self) -> float:
        """Seconds that this machine spent on its own computations."""
        return self._native.host

    def to_dict(self) -> dict[str, Array]:
        """The outputs by name."""
        return dict(zip(self.names, self.outputs, strict=True))

    def to_pandas(self) -> Any:
        """The layers' reports as a ``pandas.DataFrame``, without the rows of their workers."""
        rows = [layer.to_dict() for layer in self.layers]
        return frame({name: value for name, value in row.items() if name != "workers"} for row in rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"{key!r}: the outputs are {', '.join(self.names)}")
            return self.outputs[self.names.index(key)]
        return self.outputs[key]

    def __len__(self) -> int:
        return len(self.outputs)

    def __iter__(self) -> Iterator[Array]:
        return iter(self.outputs)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{n} {o.dtype} {list(o.shape)}" for n, o in zip(self.names, self.outputs, strict=True))
        return f"ModelRun({outputs}; {self.total * 1e3:.1f} ms)"


def inspect(path: str | os.PathLike[str], *, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """What an ONNX file holds, and every reason why it cannot run, as ``fcdcc inspect --json`` prints it.

    >>> import fcdcc
    >>> found = fcdcc.inspect("lenet5.onnx", shapes={"image": (1, 1, 32, 32)})
    >>> found["runs"], len(found["layers"])
    (True, 5)
    """
    given = [(name, [int(size) for size in shape]) for name, shape in (shapes or {}).items()]
    return _fcdcc.inspect(os.fspath(path), given)
