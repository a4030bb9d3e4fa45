# SPDX-License-Identifier: Apache-2.0
"""Nodes are fitted beside each other, each on one thread, so that no bit depends on how many.

BLAS splits a sum over its threads, so what it gives depends on their number, and its threads wait
for each other in matrices as small as a node's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from threadpoolctl import threadpool_limits

__all__ = [
    "ALONE",
    "PART",
    "beside_each_other",
    "for_parts",
    "limit_threads",
    "one_blas_thread",
    "session_threads",
]

T = TypeVar("T")
R = TypeVar("R")

ALONE = 8 << 20
"""Numbers of a matrix beyond which it is not worked on beside others, but its parts are."""
PART = 1 << 20
"""Numbers of a part: what is computed of it stays in the processor's caches."""
_MOST_WORKERS = 4
"""Each holds a node's matrices: a bound on memory."""


class _Limit:
    threads: int | None = None


def limit_threads(count: int) -> None:
    """From now on this process computes on ``count`` threads: for workers that share a machine.

    It holds for sessions that are opened and pools that are started after it, and for libraries
    that are loaded after it, too.
    """
    _Limit.threads = count
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    threadpool_limits(count)


def session_threads() -> int | None:
    """Threads of a session; None leaves it to ONNX Runtime."""
    return _Limit.threads


def one_blas_thread() -> AbstractContextManager[object]:
    """A context in which BLAS has one thread a call, in the whole process."""
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def beside_each_other(
    function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None
) -> Iterator[R]:
    """``function`` of every item, in order, on as many threads as there are cores (at most four).

    Items are taken as they are needed, one more than there are threads. While the iteration lasts
    BLAS has one thread a call, in the whole process.
    """
    count = workers or min(_cores(), _MOST_WORKERS)
    waiting: deque[Future[R]] = deque()
    with one_blas_thread(), ThreadPoolExecutor(count, "rimc-fit") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # After an error, or when nobody asks on: what has not begun must not.
            for future in waiting:
                future.cancel()


def for_parts(function: Callable[[slice], object], count: int, size: int) -> None:
    """``function`` of slices of 0..count-1, so many that ``size`` numbers each are :data:`PART`.

    What a slice is does not depend on the number of threads, on which those of a large matrix are.
    """
    together = max(1, PART // max(size, 1))
    parts = [slice(i, min(i + together, count)) for i in range(0, count, together)]
    workers = min(_cores(), _MOST_WORKERS, len(parts)) if count * size > ALONE else 1
    if workers == 1:
        for part in parts:
            function(part)
        return
    with ThreadPoolExecutor(workers, "rimc-part") as pool:
        for _ in pool.map(function, parts):
            pass


def _cores() -> int:
    if _Limit.threads is not None:
        return _Limit.threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
