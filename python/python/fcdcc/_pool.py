"""Pools of workers, and the faults that can be injected into them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import _fcdcc, _log
from ._report import frame, read

if TYPE_CHECKING:
    from ._worker import Worker


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault and the workers that have it. A pool takes it as an object or as its text.

    >>> str(Fault.slow([0, 3], 5))
    '0,3:slow=5x'
    >>> str(Fault.delay("random:2", mean=0.2))
    'random:2:delay=exp(200ms)'
    """

    #: Indices, ``all``, or ``random:COUNT``, which the pool's seed draws.
    workers: Sequence[int] | str
    #: What happens, as in ``fcdcc run --fault``.
    kind: str

    def __post_init__(self) -> None:
        if not isinstance(self.workers, str):
            object.__setattr__(self, "workers", tuple(self.workers))

    def __str__(self) -> str:
        workers = self.workers if isinstance(self.workers, str) else ",".join(str(index) for index in self.workers)
        return f"{workers}:{self.kind}"

    @classmethod
    def delay(cls, workers: Sequence[int] | str, seconds: float = 0.0, *, mean: float = 0.0) -> Fault:
        """Waits before each task: a constant time, an exponentially distributed one of the given mean, or their sum."""
        if mean and seconds:
            return cls(workers, f"delay=shifted-exp({_ms(seconds)},{_ms(mean)})")
        return cls(workers, f"delay=exp({_ms(mean)})" if mean else f"delay={_ms(seconds)}")

    @classmethod
    def slow(cls, workers: Sequence[int] | str, times: float) -> Fault:
        """Takes this multiple of the time."""
        return cls(workers, f"slow={times:g}x")

    @classmethod
    def crash(cls, workers: Sequence[int] | str) -> Fault:
        """Is lost for good at its first task."""
        return cls(workers, "crash")

    @classmethod
    def drop(cls, workers: Sequence[int] | str) -> Fault:
        """Never answers."""
        return cls(workers, "drop")

    @classmethod
    def corrupt(cls, workers: Sequence[int] | str, error: float = 1e-2) -> Fault:
        """Adds an error of this size, relative to the root mean square of a result."""
        return cls(workers, f"corrupt={error:g}")

    @classmethod
    def nan(cls, workers: Sequence[int] | str) -> Fault:
        """Puts one NaN into every result."""
        return cls(workers, "nan")

    @classmethod
    def device_lost(cls, workers: Sequence[int] | str) -> Fault:
        """Loses its device at its first task, and comes back."""
        return cls(workers, "device-lost")


def _ms(seconds: float) -> str:
    nanoseconds = round(seconds * 1e9)
    return f"{nanoseconds // 1_000_000}ms" if nanoseconds % 1_000_000 == 0 else f"{nanoseconds}ns"


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """A worker of a pool: what it is, and how it is."""

    #: Name, unique in its pool.
    name: str
    #: ``cpu``, ``gpu`` or ``remote``.
    kind: str
    #: The device, readable.
    device: str
    #: Whether it computes in float64 as well as float32.
    f64: bool
    #: Whether it stores operands in 16 bits.
    half: bool
    #: The machine; ``local`` for this one.
    host: str
    #: The GPU adapter, if it has one.
    adapter: str | None
    #: ``healthy``, ``straggling``, ``probation``, ``quarantined`` or ``lost``.
    state: str
    #: Why it is quarantined or lost.
    cause: str | None
    #: Multiply-adds per second, from recent work.
    speed: float | None


Faults = Iterable["Fault | str"]


class Pool:
    """A set of workers. Models, layers and threads can share it; it lives as long as they use it.

    Use :meth:`cpu`, :meth:`gpu`, :meth:`from_toml` or :meth:`of`. ``faults`` injects faults, as :class:`Fault` or as texts
    such as ``"0,3:delay=300ms"``; ``seed`` draws what is random about them.

    >>> pool = Pool.cpu(6, faults=["5:crash"])
    >>> len(pool), pool.workers[0].name
    (6, 'cpu-0')
    """

    def __init__(self, native: _fcdcc.Pool) -> None:
        if not isinstance(native, _fcdcc.Pool):
            raise TypeError("use Pool.cpu, Pool.gpu, Pool.from_toml or Pool.of")
        self._native = native

    @classmethod
    def cpu(cls, count: int = 6, *, threads: int = 1, faults: Faults = (), seed: int = 0) -> Pool:
        """``count`` workers of ``threads`` threads of this machine each."""
        _log.sync()
        return cls(_fcdcc.Pool.cpu(count, threads, _texts(faults), seed))

    @classmethod
    def gpu(
        cls,
        count: int = 6,
        *,
        adapter: str | int | None = None,
        half: bool = False,
        faults: Faults = (),
        seed: int = 0,
    ) -> Pool:
        """``count`` queues of GPU adapters (Vulkan, Metal, DX12).

        ``adapter`` is the number of one or a part of its name, see ``fcdcc devices``. ``half`` stores operands in 16 bits,
        which the error bounds include.
        """
        _log.sync()
        chosen = None if adapter is None else str(adapter)
        return cls(_fcdcc.Pool.gpu(count, chosen, half, _texts(faults), seed))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, tolerate: int = 2, faults: Faults = (), seed: int = 0) -> Pool:
        """The workers of a pool file, those of other machines included (docs/cluster.md).

        Waits for machines until at most ``tolerate`` workers are missing.
        """
        _log.sync()
        return cls(_fcdcc.Pool.of_file(os.fspath(path), tolerate, _texts(faults), seed))

    @classmethod
    def of(cls, workers: Iterable[Worker], *, faults: Faults = (), seed: int = 0) -> Pool:
        """Workers written in Python."""
        _log.sync()
        return cls(_fcdcc.Pool.of_workers(list(workers), _texts(faults), seed))

    @property
    def workers(self) -> list[WorkerState]:
        """The workers and their states now."""
        return [read(WorkerState, row) for row in self._native.workers()]

    def wait_idle(self, limit: float = 10.0) -> bool:
        """Waits until no worker has anything to do, at most ``limit`` seconds; whether that came true."""
        return self._native.wait_idle(limit)

    def to_pandas(self) -> Any:
        """The workers as a ``pandas.DataFrame``."""
        return frame(self.workers)

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        return f"Pool({', '.join(worker.name for worker in self.workers)})"

    def __reduce__(self) -> Any:
        raise TypeError("a pool belongs to the process that made it: make one in each process")


def _texts(faults: Faults) -> list[str]:
    if isinstance(faults, str):
        faults = [faults]
    return [str(fault) for fault in faults]
