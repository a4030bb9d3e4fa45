# SPDX-License-Identifier: Apache-2.0
"""One SRAM budget, spent over all nodes and all kinds of adapter where a byte removes most error.

Errors of different nodes are compared by what the model's outputs feel of them. Costs separate, so
taking the best gain per byte first is the Lagrangian solution (as IO-SVD and Zero-Sum SVD).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.solvers.closed_form import Draft
from rimc_onnx.execution.parallel import beside_each_other
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.schema import MAX_RANK

__all__ = ["Kinds", "Share", "allocate", "uniform"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_SPARSE_BYTES = 1.5
"""A code of 4 bits and an 8-bit relative index."""


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
    s: F32 | None
    """Sparse cells (or all cells) of the correction, [G, d, m]."""
    dense: bool = False
    """The correction is kept whole."""
    magnitude: bool = True
    """Bit lines may have gains of their own."""


def uniform(geometries: Iterable[NodeGeometry], rank: int) -> list[Share]:
    """One rank for all nodes, as the papers do; less where a matrix has less."""
    return [Share(rank=geometry.clamp_rank(rank), s=None) for geometry in geometries]


def allocate(
    drafts: Sequence[Draft], budget_bytes: int, kinds: Kinds, sparse_frac: float
) -> list[Share]:
    """Spend ``budget_bytes``; never more, where they hold the magnitudes that have to be."""
    own = _magnitudes(drafts, budget_bytes, kinds, sparse_frac)
    drafts = [d if keep else d.without_magnitude() for d, keep in zip(drafts, own, strict=True)]
    shares: list[Share | None] = [None] * len(drafts)
    left = budget_bytes - sum(d.m.size for d, keep in zip(drafts, own, strict=True) if keep)
    if kinds.dense:
        shares, left = _dense(drafts, left, kinds)
    open_nodes = [i for i, share in enumerate(shares) if share is None]
    rest = [drafts[i] for i in open_nodes]
    cells: list[F32 | None] = [None] * len(rest)
    if kinds.sparse:
        cells = _sparse_cells(rest, _num_cells(left, kinds, sparse_frac))
        left -= sum(_bytes_of(c) for c in cells)
    ranks = _ranks(rest, cells, left) if kinds.low_rank else [0] * len(rest)
    for i, rank, s in zip(open_nodes, ranks, cells, strict=True):
        shares[i] = Share(rank=rank, s=s)
    return [
        replace(share, magnitude=keep)
        for share, keep in zip(shares, own, strict=True)
        if share is not None
    ]


def _bytes_of(cells: F32 | None) -> int:
    """SRAM of one node's sparse cells: whole bytes."""
    return 0 if cells is None else math.ceil(_SPARSE_BYTES * int(np.count_nonzero(cells)))


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
    price = 0.0
    if count:
        plain = [node.without_magnitude() for node in drafts]
        best = np.concatenate([_largest(node.cell_gains().ravel(), count) for node in plain])
        price = float(_largest(best, count).min()) / _SPARSE_BYTES
    own = [False] * len(drafts)
    for i in sorted(range(len(drafts)), key=lambda i: -drafts[i].magnitude_gain / drafts[i].m.size):
        size, gain = drafts[i].m.size, drafts[i].magnitude_gain
        if gain > price * size and size <= budget_bytes:
            own[i] = True
            budget_bytes -= size
    return own


def _sparse_cells(drafts: Sequence[Draft], count: int) -> list[F32 | None]:
    """The cells of all nodes that gain most, in the bytes of ``count``."""
    budget_bytes = _SPARSE_BYTES * count
    while count > 0 and drafts:
        cells = _best_cells(drafts, count)
        # Half a byte is left over in every node with an odd number of them.
        over = sum(_bytes_of(c) for c in cells) - budget_bytes
        if over <= 0:
            return cells
        count -= math.ceil(over / _SPARSE_BYTES)
    return [None] * len(drafts)


def _best_cells(drafts: Sequence[Draft], count: int) -> list[F32 | None]:
    # A node can't hold more of the best than there are: a bound keeps the list of gains short.
    best = np.concatenate([_largest(node.cell_gains().ravel(), count) for node in drafts])
    best = _largest(best, count)
    threshold = best.min()
    ties = int((best == threshold).sum()) if threshold > 0 else 0
    cells: list[F32 | None] = []
    for node in drafts:
        gains = node.cell_gains()
        kept = gains > threshold
        # As many of the cells just at the threshold as there is room for, in their order.
        at = np.flatnonzero(gains == threshold)[:ties]
        kept.flat[at] = True
        ties -= len(at)
        s = np.where(kept, node.need, np.float32(0))
        cells.append(s if s.any() else None)
    return cells


def _largest(values: F32, count: int) -> F32:
    if count >= values.size:
        return values
    return np.partition(values, values.size - count)[values.size - count :]


def _ranks(drafts: Sequence[Draft], cells: Sequence[F32 | None], budget_bytes: int) -> list[int]:
    costs = [node.need.shape[0] * sum(node.need.shape[1:]) for node in drafts]

    def gains_of(item: tuple[Draft, F32 | None, int]) -> F64:
        node, s, cost = item
        _, depth, columns = node.need.shape
        # Beyond this rank the branch costs more than the matrix.
        most = min(depth, columns, max(1, depth * columns // (depth + columns)))
        most = max(0, min(most, budget_bytes // cost, MAX_RANK))
        return node.without_products().rank_gains(s, most) if most else np.zeros(0)

    gains = list(beside_each_other(gains_of, zip(drafts, cells, costs, strict=True)))
    ranks = [0] * len(drafts)
    heap = [(-g[0] / c, i) for i, (g, c) in enumerate(zip(gains, costs, strict=True)) if len(g)]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        if costs[i] > budget_bytes:
            continue
        budget_bytes -= costs[i]
        ranks[i] += 1
        if ranks[i] < len(gains[i]):
            heapq.heappush(heap, (-gains[i][ranks[i]] / costs[i], i))
    return ranks


def _dense(
    drafts: Sequence[Draft], budget_bytes: int, kinds: Kinds
) -> tuple[list[Share | None], int]:
    """Whole nodes, the best gain per byte first, where the bytes gain nowhere more.

    A whole node needs no index, so its cells cost half of what they cost one by one.
    """
    whole = [Share(rank=0, s=node.need, dense=True) for node in drafts]
    total = sum(node.need.size for node in drafts)
    if total <= budget_bytes:
        return list(whole), budget_bytes - total
    shares: list[Share | None] = [None] * len(drafts)
    gains = [node.cell_gains() for node in drafts]
    order = sorted(range(len(drafts)), key=lambda i: -float(gains[i].mean()))
    for i in order:
        size = gains[i].size
        still_open = [j for j in range(len(drafts)) if shares[j] is None]
        if size <= budget_bytes and gains[i].sum() > _rival(drafts, gains, still_open, size, kinds):
            shares[i] = whole[i]
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
