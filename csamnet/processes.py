"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def fresh_processes(count: int, start: Callable | None = None, *given) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes, in each of which `start(*given)` is called first.

    They end at once where this process is interrupted, and under Linux where it is killed.
    """
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (start, given)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:  # else the pool would first finish what it has begun
            for process in active_children():
                process.terminate()
            raise


def _begin(start: Callable | None, given: tuple) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if start:
        start(*given)
