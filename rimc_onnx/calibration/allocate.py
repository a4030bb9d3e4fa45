# SPDX-License-Identifier: Apache-2.0
"""One SRAM budget, spent over all nodes and all kinds of adapter where a byte removes most error.

Errors of different nodes are compared by what the model's outputs feel of them. Costs separate, so
taking the best gain per byte first is the Lagrangian solution (as IO-SVD and Zero-Sum SVD).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.solvers.closed_form import Draft
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.schema import MAX_RANK

__all__ = ["Kinds", "Share", "allocate", "uniform"]

F32 = npt.NDArray[np.float32]

_SPARSE_BYTES = 2
"""An int8 code and an 8-bit relative index."""


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


def uniform(geometries: Iterable[NodeGeometry], rank: int) -> list[Share]:
    """One rank for all nodes, as the papers do; less where a matrix has less."""
    return [Share(rank=geometry.clamp_rank(rank), s=None) for geometry in geometries]


def allocate(
    drafts: Sequence[Draft], budget_bytes: int, kinds: Kinds, sparse_frac: float
) -> list[Share]:
    """Spend ``budget_bytes`` on top of the magnitudes; never more."""
    shares: list[Share | None] = [None] * len(drafts)
    left = budget_bytes
    if kinds.dense:
        shares, left = _dense(drafts, left, kinds)
    open_nodes = [i for i, share in enumerate(shares) if share is None]
    rest = [drafts[i] for i in open_nodes]
    cells: list[F32 | None] = [None] * len(rest)
    if kinds.sparse:
        part = int(sparse_frac * left) if kinds.low_rank else left
        cells = _sparse_cells(rest, part // _SPARSE_BYTES)
        left -= _SPARSE_BYTES * sum(int(np.count_nonzero(c)) for c in cells if c is not None)
    ranks = _ranks(rest, cells, left) if kinds.low_rank else [0] * len(rest)
    for i, rank, s in zip(open_nodes, ranks, cells, strict=True):
        shares[i] = Share(rank=rank, s=s)
    return [share for share in shares if share is not None]


def _sparse_cells(drafts: Sequence[Draft], count: int) -> list[F32 | None]:
    """The ``count`` cells of all nodes that gain most."""
    if count <= 0 or not drafts:
        return [None] * len(drafts)
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
    costs = []
    gains = []
    for node, s in zip(drafts, cells, strict=True):
        group, depth, columns = node.need.shape
        cost = group * (depth + columns)
        # Beyond this rank the branch costs more than the matrix.
        most = min(depth, columns, max(1, depth * columns // (depth + columns)))
        most = max(0, min(most, budget_bytes // cost, MAX_RANK))
        costs.append(cost)
        gains.append(node.rank_gains(s, most) if most else np.zeros(0))
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
        best = float(_largest(cells, size // _SPARSE_BYTES).sum())
    if kinds.low_rank:
        for j in nodes:
            group, depth, columns = drafts[j].need.shape
            first = float(drafts[j].rank_gains(None, 1)[0])
            best = max(best, first * size / (group * (depth + columns)))
    return best
