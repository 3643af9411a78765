"""Workers written in Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import _fcdcc
from ._layer import convolve

if TYPE_CHECKING:
    from ._arrays import Array
    from ._fcdcc import SubtaskShape, Task


class Worker:
    """A worker for :meth:`Pool.of`. Subclasses override what they do differently.

    A pool calls a worker from one thread of its own, one call after the other. ``install`` takes the coded filters of a
    subtask; ``execute`` computes results from coded slabs. Both have defaults that compute on this machine. A worker needs no
    knowledge of codes: a slab is an input, a bank is a set of filters, and a result is their convolution.

    An exception from ``install`` or ``execute`` is a failed task; :class:`WorkerLost` says that no task will succeed any
    more. The pool checks a worker with a small subtask before its first filters.

    >>> import time, numpy as np, fcdcc
    >>> class Slow(fcdcc.Worker):
    ...     def execute(self, task):
    ...         time.sleep(0.05)
    ...         yield from super().execute(task)
    >>> pool = fcdcc.Pool.of([Slow("slow")] + [fcdcc.Worker(f"w{i}") for i in range(5)])
    >>> x, w = np.ones((1, 4, 16, 16), np.float32), np.ones((8, 4, 3, 3), np.float32)
    >>> run = fcdcc.CodedConv(pool, x.shape, w).run(x)
    >>> round(float(run.output[0, 0, 0, 0]), 3)
    36.0
    """

    #: Name in reports; a pool appends an index to names that occur twice.
    name: str
    #: The device, readable.
    device: str = "Python"
    #: Whether it computes in float64 as well as float32.
    float64: bool = True
    #: The machine; workers of one machine are expected to be lost together. None: this one.
    host: str | None = None
    #: Whether :meth:`respawn` gives another worker when this one is lost.
    can_respawn: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.installed: dict[tuple[int, int], tuple[SubtaskShape, Array]] = {}

    def install(self, key: tuple[int, int], shape: SubtaskShape, banks: Array) -> None:
        """Takes the filter banks of a subtask, ``[banks, O', C/g, kernel...]``, and replaces those of the same key."""
        self.installed[key] = (shape, banks)

    def remove(self, key: tuple[int, int]) -> None:
        """Forgets the filters of a key."""
        self.installed.pop(key, None)

    def execute(self, task: Task) -> Iterable[tuple[int, Array]]:
        """Computes the results that ``task.order`` names, in that order.

        Yields (index, array) as soon as a result is complete; result p * banks + r is slab p convolved with bank r. Each
        array is ``[N, O', spatial...]`` in the type of the slabs. Results that were yielded count even if the task is
        cancelled, or fails, later.
        """
        shape, banks = self.installed[task.key]
        for index in task.order:
            slab, bank = divmod(index, shape.banks)
            yield index, self.compute(shape, task.slabs[slab], banks[bank])

    def compute(self, shape: SubtaskShape, slab: Array, bank: Array) -> Array:
        """One result: ``slab`` ``[N, C, spatial...]`` convolved with ``bank`` ``[O', C/g, kernel...]``, without padding."""
        return convolve(slab, bank, stride=shape.stride, dilation=shape.dilation, groups=shape.groups)

    def respawn(self) -> Worker:
        """Another worker of the same name, without filters, in place of this one, which is lost."""
        raise NotImplementedError("set can_respawn only where respawn is overridden")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a worker belongs to the process that made it: make it there")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A property of the contract of workers that a worker lacks."""

    #: Its name.
    property: str
    #: What the contract demands.
    expected: str
    #: What the worker did.
    came: str


def check_worker(make: Callable[[], Worker], *, limit: float = 30.0) -> list[Finding]:
    """Checks the workers that ``make`` gives against the contract that pools rely on; an empty list is a good worker.

    Each property (results, their order and types, cancelling, replaced and removed filters, ...) is checked with a worker of
    its own, for at most ``limit`` seconds.

    >>> import fcdcc
    >>> fcdcc.check_worker(lambda: fcdcc.Worker("plain"))
    []
    >>> class Twice(fcdcc.Worker):
    ...     def compute(self, shape, slab, bank):
    ...         return 2 * super().compute(shape, slab, bank)
    >>> bool(fcdcc.check_worker(lambda: Twice("twice")))
    True
    """
    return [Finding(*found) for found in _fcdcc.check_worker(make, limit)]
