"""What runs share: threads for ``asyncio``, and progress."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ._fcdcc import CancelToken

T = TypeVar("T")

#: Called with the number of steps done, their total number, and the step done last.
Observer = Callable[[int, int, str], object]

_threads: tuple[int, concurrent.futures.ThreadPoolExecutor] | None = None


def _executor() -> concurrent.futures.ThreadPoolExecutor:
    """Threads of this process that only wait: as many as runs of a model can be in flight."""
    global _threads
    if _threads is None or _threads[0] != os.getpid():
        _threads = (os.getpid(), concurrent.futures.ThreadPoolExecutor(16, thread_name_prefix="fcdcc-async"))
    return _threads[1]


async def in_thread(work: Callable[[CancelToken], T]) -> T:
    """Runs ``work`` on another thread; cancelling the task cancels the token that it gets."""
    cancel = CancelToken()
    future = asyncio.get_running_loop().run_in_executor(_executor(), work, cancel)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel.cancel()
        # Its result, or its error, is no longer wanted.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


@contextmanager
def observer(progress: bool | Observer | None, what: str) -> Iterator[Observer | None]:
    """The callback for ``progress``: a callable as it is, True as a bar of tqdm."""
    if progress is None or progress is False:
        yield None
        return
    if progress is not True:
        yield progress
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'fcdcc[progress]', or give a callable") from error
    with tqdm(desc=what, leave=False) as bar:

        def show(done: int, total: int, step: str) -> None:
            bar.total = total or None
            bar.n = done
            bar.set_postfix_str(step)

        yield show
