# SPDX-License-Identifier: Apache-2.0
"""Drafts of all nodes at once, while the SRAM is shared out, in the memory of a few.

What a node needs is as large as its weight, and the moments of its inputs may be larger. Beyond a
bound they wait in a temporary file without a name; targets are read from the teacher again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.job import target_of
from rimc_onnx.calibration.problem import NodeProblem
from rimc_onnx.calibration.solvers.closed_form import Draft
from rimc_onnx.calibration.walk import Pair
from rimc_onnx.execution.array_file import ArrayFile, Place

__all__ = ["Shelf"]

Array = npt.NDArray[Any]

_HELD_BYTES = 256 << 20
"""Drafts that stay in memory."""
_NONE = np.zeros((0, 0, 0), np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Put:
    """A draft whose large arrays are in the file."""

    draft: Draft
    error: Place
    gram: dict[str, Place]


class Shelf(Sequence[Draft]):
    """The drafts of ``pairs``, in their order: ``with Shelf(pairs) as drafts``.

    A draft that is asked for is made anew, bit by bit what it was, unless it is one of the few that
    stay. Threads may put and ask at the same time.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        held_bytes: int = _HELD_BYTES,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        """Empty.

        ``forget`` is called before a target is read again: it gives back the memory of others.
        """
        self._pairs = pairs
        self._forget = forget
        self._free_bytes = held_bytes
        self._items: dict[str, Draft | _Put] = {}
        self._file = ArrayFile()
        self._lock = threading.Lock()

    def __enter__(self) -> Shelf:
        """Itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Let the file go."""
        self._items = {}
        self._file.close()

    def __len__(self) -> int:
        """Number of drafts, those included that are still to be put."""
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Draft: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Draft]: ...
    def __getitem__(self, index: int | slice) -> Draft | Sequence[Draft]:
        """A draft, or some of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair = self._pairs[index]
        item = self._items[pair.branch.node]
        return item.without_products() if isinstance(item, Draft) else self._made(pair, item)

    def put(self, pair: Pair, draft: Draft) -> None:
        """Keep the draft of ``pair``.

        Raises:
            CalibrationError: the folder for temporary files has no room.
        """
        # Target and error; the Gram matrix.
        gram = draft.problem.statistics.x_cov
        num_bytes = 2 * draft.problem.error.nbytes + sum(a.nbytes for a in _parts(gram).values())
        with self._lock:
            is_held = num_bytes <= self._free_bytes
            self._free_bytes -= num_bytes if is_held else self._free_bytes
        self._items[pair.branch.node] = draft if is_held else self._put(draft)

    def _put(self, draft: Draft) -> _Put:
        problem = draft.problem
        gram = _parts(problem.statistics.x_cov)
        return _Put(
            draft=replace(draft, problem=_thin(problem)),
            error=self._file.write(problem.error),
            gram={name: self._file.write(part) for name, part in gram.items()},
        )

    def _made(self, pair: Pair, put: _Put) -> Draft:
        self._forget()
        thin = put.draft.problem
        gram = Gram(**{name: self._file.read(place) for name, place in put.gram.items()})
        problem = replace(
            thin,
            target=target_of(pair),
            error=self._file.read(put.error),
            statistics=replace(thin.statistics, x_cov=gram),
        )
        return replace(put.draft, problem=problem)


def _parts(gram: Gram) -> dict[str, Array]:
    parts = {"matrix": gram.matrix, "rows": gram.rows, "ridge": gram.ridge}
    return {name: part for name, part in parts.items() if part is not None}


def _thin(problem: NodeProblem) -> NodeProblem:
    """Without what is as large as the node."""
    statistics = replace(problem.statistics, x_cov=Gram())
    return replace(problem, target=_NONE, error=_NONE, statistics=statistics)
