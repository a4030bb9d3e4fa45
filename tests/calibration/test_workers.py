# SPDX-License-Identifier: Apache-2.0
"""Work on nodes beside each other: in order, one thread of BLAS each, errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import scipy.linalg  # noqa: F401  its BLAS is one of those counted
from threadpoolctl import threadpool_info

from rimc_onnx.execution import parallel
from rimc_onnx.execution.parallel import beside_each_other, for_parts


def blas_threads() -> list[int]:
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


def test_results_come_in_order() -> None:
    # The one that is done first given first.
    def late(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    assert list(beside_each_other(late, range(12), workers=3)) == [i * i for i in range(12)]


def test_items_are_not_made_ahead() -> None:
    # A walk over a network run to its end at once: every activation in memory.
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    results = beside_each_other(lambda i: i, items(), workers=2)
    assert next(results) == 0
    assert len(made) == 3
    results.close()
    assert len(made) == 3


def test_blas_has_one_thread_while_nodes_are_fitted() -> None:
    # Adapters whose last bits depend on the number of cores; a limit that outlives the work.
    before = blas_threads()
    assert before
    seen = list(beside_each_other(lambda _: blas_threads(), range(3), workers=2))
    assert seen == [[1] * len(before)] * 3
    assert blas_threads() == before


def test_first_error_ends_the_work() -> None:
    # An error that is lost in a thread, or one that waits until all other nodes are fitted.
    begun: list[int] = []
    gate = threading.Event()

    def fails(i: int) -> int:
        begun.append(i)
        if i == 0:
            gate.wait(5)
            raise ValueError("node 0")
        return i

    def items() -> Iterator[int]:
        for i in range(50):
            if i == 1:
                gate.set()
            yield i

    with pytest.raises(ValueError, match="node 0"):
        list(beside_each_other(fails, items(), workers=1))
    assert len(begun) <= 2


@pytest.mark.parametrize("alone", [0, 1 << 30])
def test_parts_cover_all_whatever_the_threads(monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    # A last part that is left out or goes too far, parts that depend on threads, an error lost.
    monkeypatch.setattr(parallel, "PART", 30)
    monkeypatch.setattr(parallel, "ALONE", alone)
    seen: list[tuple[int, int]] = []
    for_parts(lambda part: seen.append((part.start, part.stop)), 8, 10)
    assert sorted(seen) == [(0, 3), (3, 6), (6, 8)]
    for_parts(seen.append, 0, 10)
    assert len(seen) == 3

    def fails(part: slice) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError, match="slice"):
        for_parts(fails, 8, 10)
