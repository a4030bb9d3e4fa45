# SPDX-License-Identifier: Apache-2.0
"""One SRAM budget, spent over all nodes and all kinds of adapter where a byte removes most error.

Errors of different nodes are compared by what the model's outputs feel of them. Costs separate, so
taking the best gain per byte first is the Lagrangian solution (as IO-SVD and Zero-Sum SVD).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.solvers.closed_form import Draft
from rimc_onnx.execution.parallel import ALONE, beside_each_other
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.schema import MAX_RANK

__all__ = ["LARGE_NODE_WEIGHTS", "Kinds", "Share", "allocate", "uniform"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

_SPARSE_BYTES = 1.5
"""A code of 4 bits and an 8-bit relative index."""
LARGE_NODE_WEIGHTS = ALONE
"""Beyond this a node's matrices, some ten of its size, are not held beside another's."""
_FIRST_RANKS = 32
_MORE_RANKS = 4
"""Gains of so many ranks of a node are found first, and so many times more where all are bought."""


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Parts that an adapter may have beside its digital bias."""

    low_rank: bool = True
    magnitude: bool = True
    sparse: bool = False
    dense: bool = False
    """A node may be kept whole in SRAM."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """What one node was given."""

    rank: int
    cells: Index | None
    """Places of the sparse cells of the correction [G, d, m], in C order."""
    dense: bool = False
    """The correction is kept whole."""
    magnitude: bool = True
    """Bit lines may have gains of their own."""

    def kept(self, need: F32) -> F32 | None:
        """The cells of ``need`` [G, d, m] that SRAM holds, zero elsewhere; none at all is None."""
        return need if self.dense else _kept(need, self.cells)


def _kept(need: F32, cells: Index | None) -> F32 | None:
    if cells is None:
        return None
    s = np.zeros_like(need)
    s.reshape(-1)[cells] = need.reshape(-1)[cells]
    return s


def uniform(geometries: Iterable[NodeGeometry], rank: int) -> list[Share]:
    """One rank for all nodes, as the papers do; less where a matrix has less."""
    return [Share(rank=geometry.clamp_rank(rank), cells=None) for geometry in geometries]


def allocate(
    drafts: Sequence[Draft], budget_bytes: int, kinds: Kinds, sparse_frac: float
) -> list[Share]:
    """Spend ``budget_bytes``; never more, where they hold the magnitudes that have to be."""
    own = _magnitudes(drafts, budget_bytes, kinds, sparse_frac)
    left = budget_bytes - sum(d.m.size for d, keep in zip(drafts, own, strict=True) if keep)
    chosen = _Chosen(drafts, [(i, keep) for i, keep in enumerate(own)])
    shares: list[Share | None] = [None] * len(drafts)
    if kinds.dense:
        shares, left = _dense(chosen, left, kinds)
    open_nodes = [i for i, share in enumerate(shares) if share is None]
    rest = _Chosen(drafts, [(i, own[i]) for i in open_nodes])
    cells: list[Index | None] = [None] * len(rest)
    if kinds.sparse:
        cells = _sparse_cells(rest, _num_cells(left, kinds, sparse_frac))
        left -= sum(_bytes_of(c) for c in cells)
    ranks = _ranks(rest, cells, left) if kinds.low_rank else [0] * len(rest)
    for i, rank, found in zip(open_nodes, ranks, cells, strict=True):
        shares[i] = Share(rank=rank, cells=found)
    return [
        replace(share, magnitude=keep)
        for share, keep in zip(shares, own, strict=True)
        if share is not None
    ]


class _Chosen(Sequence[Draft]):
    """Some of the drafts, with or without magnitudes of their own; none is held."""

    def __init__(self, drafts: Sequence[Draft], chosen: Sequence[tuple[int, bool]]) -> None:
        """``chosen`` are (index in ``drafts``, whether it has its magnitudes)."""
        self._drafts = drafts
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Draft: ...
    @overload
    def __getitem__(self, index: slice) -> _Chosen: ...
    def __getitem__(self, index: int | slice) -> Draft | _Chosen:
        if isinstance(index, slice):
            return _Chosen(self._drafts, self._chosen[index])
        at, keep = self._chosen[index]
        return self._drafts[at] if keep else self._drafts[at].without_magnitude()


def _bytes_of(cells: Index | None) -> int:
    """SRAM of one node's sparse cells: whole bytes."""
    return 0 if cells is None else math.ceil(_SPARSE_BYTES * cells.size)


def _num_cells(budget_bytes: int, kinds: Kinds, sparse_frac: float) -> int:
    part = sparse_frac * budget_bytes if kinds.low_rank else budget_bytes
    return max(0, int(part / _SPARSE_BYTES))


def _magnitudes(
    drafts: Sequence[Draft], budget_bytes: int, kinds: Kinds, sparse_frac: float
) -> list[bool]:
    """Nodes whose bit lines get gains of their own: where these gain more than sparse cells.

    One gain for the node costs nothing. Without sparse cells to compare with all nodes have them.
    """
    if not kinds.magnitude or not kinds.sparse:
        return [kinds.magnitude] * len(drafts)
    count = _num_cells(budget_bytes, kinds, sparse_frac)
    gains: list[tuple[float, int]] = []

    def plain() -> Iterator[Draft]:
        for node in drafts:
            gains.append((node.magnitude_gain, node.m.size))
            yield node.without_magnitude()

    best = _best_gains(plain(), count)
    price = float(best.min()) / _SPARSE_BYTES if count else 0.0
    own = [False] * len(drafts)
    for i in sorted(range(len(drafts)), key=lambda i: -gains[i][0] / gains[i][1]):
        gain, size = gains[i]
        if gain > price * size and size <= budget_bytes:
            own[i] = True
            budget_bytes -= size
    return own


def _sparse_cells(drafts: Sequence[Draft], count: int) -> list[Index | None]:
    """The cells of all nodes that gain most, in the bytes of ``count``."""
    if count <= 0 or not drafts:
        return [None] * len(drafts)
    budget_bytes = _SPARSE_BYTES * count
    best = _best_gains(drafts, count)
    candidates = [_cells_of(node, best.min()) for node in drafts]
    while count > 0:
        best = _largest(best, count)
        cells = _best_cells(candidates, best)
        # Half a byte is left over in every node with an odd number of them.
        over = sum(_bytes_of(c) for c in cells) - budget_bytes
        if over <= 0:
            return cells
        count -= math.ceil(over / _SPARSE_BYTES)
    return [None] * len(drafts)


def _cells_of(node: Draft, threshold: np.float32) -> tuple[Index, F32]:
    """The cells of a node that gain something, ``threshold`` at least, and their gains."""
    gains = node.cell_gains().ravel()
    at = np.flatnonzero(gains >= threshold if threshold > 0 else gains > 0)
    return at, gains[at]


def _best_cells(candidates: Sequence[tuple[Index, F32]], best: F32) -> list[Index | None]:
    """Those of every node whose gains are among the ``best`` of all."""
    threshold = best.min()
    ties = int((best == threshold).sum()) if threshold > 0 else 0
    cells: list[Index | None] = []
    for at, gains in candidates:
        kept = gains > threshold
        # As many of the cells just at the threshold as there is room for, in their order.
        tied = np.flatnonzero(gains == threshold)[:ties]
        kept[tied] = True
        ties -= len(tied)
        found = at[kept]
        cells.append(found if found.size else None)
    return cells


def _best_gains(drafts: Iterable[Draft], count: int) -> F32:
    """The ``count`` largest gains of all cells, in no order: of a few nodes at a time."""
    best = np.zeros(0, np.float32)
    for node in drafts:
        if not count:
            continue
        # A node can't hold more of the best than there are.
        gains = _largest(node.cell_gains().ravel(), count)
        best = _largest(np.concatenate([best, gains]), count)
    return best


def _largest(values: F32, count: int) -> F32:
    if count >= values.size:
        return values
    return np.partition(values, values.size - count)[values.size - count :]


def _ranks(drafts: Sequence[Draft], cells: Sequence[Index | None], budget_bytes: int) -> list[int]:
    shapes = [node.problem.target.shape for node in drafts]
    costs = [group * (depth + columns) for group, depth, columns in shapes]
    # Beyond this rank the branch costs more than the matrix.
    most = [min(d, m, max(1, d * m // (d + m)), MAX_RANK) for _, d, m in shapes]
    most = [max(0, min(r, budget_bytes // cost)) for r, cost in zip(most, costs, strict=True)]

    def gains_of(item: tuple[int, int]) -> F64:
        i, count = item
        if not count:
            return np.zeros(0)
        node = drafts[i].without_products()
        return node.rank_gains(_kept(node.need, cells[i]), count)

    first = [min(r, _FIRST_RANKS) for r in most]
    large = max((math.prod(shape) for shape in shapes), default=0) > LARGE_NODE_WEIGHTS
    gains = list(beside_each_other(gains_of, enumerate(first), workers=1 if large else None))
    ranks = [0] * len(drafts)
    heap = [(-g[0] / c, i) for i, (g, c) in enumerate(zip(gains, costs, strict=True)) if len(g)]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        if costs[i] > budget_bytes:
            continue
        budget_bytes -= costs[i]
        ranks[i] += 1
        if ranks[i] == len(gains[i]) < most[i]:
            more = [(i, min(most[i], _MORE_RANKS * ranks[i]))]
            (gains[i],) = beside_each_other(gains_of, more, workers=1)
        if ranks[i] < len(gains[i]):
            heapq.heappush(heap, (-gains[i][ranks[i]] / costs[i], i))
    return ranks


def _dense(
    drafts: Sequence[Draft], budget_bytes: int, kinds: Kinds
) -> tuple[list[Share | None], int]:
    """Whole nodes, the best gain per byte first, where the bytes gain nowhere more.

    A whole node needs no index, so its cells cost half of what they cost one by one.
    """
    whole = Share(rank=0, cells=None, dense=True)
    total = sum(node.need.size for node in drafts)
    if total <= budget_bytes:
        return [whole] * len(drafts), budget_bytes - total
    shares: list[Share | None] = [None] * len(drafts)
    gains = [node.cell_gains() for node in drafts]
    order = sorted(range(len(drafts)), key=lambda i: -float(gains[i].mean()))
    for i in order:
        size = gains[i].size
        still_open = [j for j in range(len(drafts)) if shares[j] is None]
        if size <= budget_bytes and gains[i].sum() > _rival(drafts, gains, still_open, size, kinds):
            shares[i] = whole
            budget_bytes -= size
    return shares, budget_bytes


def _rival(
    drafts: Sequence[Draft], gains: Sequence[F32], nodes: Sequence[int], size: int, kinds: Kinds
) -> float:
    """The most that ``size`` bytes would gain as sparse cells or as ranks of ``nodes``."""
    best = 0.0
    if kinds.sparse:
        cells = np.concatenate([gains[j].ravel() for j in nodes])
        best = float(_largest(cells, int(size / _SPARSE_BYTES)).sum())
    if kinds.low_rank:
        for j in nodes:
            group, depth, columns = drafts[j].need.shape
            first = float(drafts[j].rank_gains(None, 1)[0])
            best = max(best, first * size / (group * (depth + columns)))
    return best
