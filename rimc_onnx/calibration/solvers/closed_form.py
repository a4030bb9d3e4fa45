# SPDX-License-Identifier: Apache-2.0
"""The default solver: M that keeps power, the largest errors kept sparse, the rest low rank.

With M known, what a node needs is a correction D = W_t / M - W_r that is small in the metric of its
inputs, C = E[x' x]. The cells where D_ij^2 C_ii is largest are kept exactly (S). Of the remainder R
the best rank-r part in that metric is (R o M) V V' / M, where V are the leading eigenvectors of
(R o M)' C (R o M) (Eckart-Young in the metric C, as QERA and EoRA).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.problem import NodeProblem
from rimc_onnx.errors import ConfigError

__all__ = ["Adapter", "ClosedFormConfig", "Draft", "draft", "finish", "mean_error", "squared_error"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

_DENSE_EIGEN = 256
"""Up to this size all eigenvectors cost less than finding a few of them."""
_OWN_GAIN = 4.0
"""A bit line's own gain lies within this factor of its node's."""
_CELL_RIDGE = 10.0
"""Uncorrelated power in the metric of sparse cells beside that of the metric, as a multiple."""
_CELL_STEPS = 4
_MOST_CELLS = 1 << 20
"""Of bit lines whose sparse cells are found at once, and numbers of the systems for that."""


@dataclass(frozen=True, kw_only=True)
class ClosedFormConfig:
    """Regularisation, chosen on ResNet-20 (docs/calibration.md)."""

    prior_samples: float = 10.0
    """Samples that the prior of one gain for the whole node is worth: one sample tells bit lines
    little apart, a thousand let each have its own."""
    bias_prior_samples: float = 2.0
    """The same for the prior of an unchanged bias."""
    sparse_frac: float = 0.75
    """Share of an SRAM budget that goes to sparse cells where the adapter has both parts."""

    def __post_init__(self) -> None:
        if not (
            self.prior_samples >= 0 and self.bias_prior_samples >= 0 and 0 <= self.sparse_frac <= 1
        ):
            raise ConfigError(
                "need prior_samples >= 0, bias_prior_samples >= 0 and 0 <= sparse_frac <= 1, "
                f"got {self.prior_samples}, {self.bias_prior_samples} and {self.sparse_frac}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A fitted branch in real numbers, group by group: Y = M o (H + X (A B + S))."""

    a: F32
    """[G, d, R]"""
    b: F32
    """[G, R, m]"""
    m: F32
    """[G, m]"""
    s: F32 | None
    """[G, d, m], zero where RRAM alone has to do; ``None`` without sparse cells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A node before SRAM is shared out: what it needs, and what each cell would gain."""

    problem: NodeProblem
    m: F32
    """[G, m]"""
    need: F32
    """D = W_t / M - W_r, [G, d, m]"""
    prior: float
    """What the prior of one gain for the node is worth, as a multiple of the samples; infinity
    leaves bit lines no gains of their own."""
    node_gain: float
    """That gain, which takes no SRAM: it is in the scale of M."""
    magnitude_gain: float = 0.0
    """Loss that gains of the bit lines' own remove, beside one gain for the node."""

    def without_magnitude(self) -> Draft:
        """The same node with one gain for all bit lines."""
        if self.prior == math.inf:
            return self
        m = np.full_like(self.m, self.node_gain)
        plain = replace(self, m=m, prior=math.inf, magnitude_gain=0.0)
        return replace(plain, need=plain.need_of(self.problem))

    def need_of(self, problem: NodeProblem) -> F32:
        """``need`` with this M."""
        return _need(problem, self.m)

    def without_products(self) -> Draft:
        """The same node, which holds no products with the metric: many wait beside each other."""
        return replace(self, problem=self.problem.without_products())

    def cell_gains(self) -> F32:
        """Loss that keeping a cell removes, [G, d, m]."""
        line_power = self.problem.moment.diagonal()
        gain = np.square(self.need * self.m[:, None, :]) * line_power[:, :, None]
        return gain * np.float32(self.problem.loss_per_power)

    def rank_gains(self, s: F32 | None, most: int) -> F64:
        """Loss that each rank removes once ``s`` is kept, largest first, [most]."""
        values = np.zeros(most)
        for g in range(len(self.need)):
            found, _ = _leading(*self.remainder(s, g), self.problem.metric[g], most)
            values += np.maximum(found[::-1], 0)
        return values * self.problem.loss_per_power

    def remainder(self, s: F32 | None, g: int) -> tuple[F32, F32]:
        """(D - S) o M of one group and its product with the metric, [d, m]."""
        problem, m = self.problem, self.m[g]
        rest, metric_rest = self.need[g], problem.metric_error[g]
        if s is not None:
            rest, metric_rest = rest - s[g], metric_rest - problem.metric[g] @ s[g]
        return rest * m, (1 - m) * problem.metric_target[g] + m * metric_rest


def draft(
    problem: NodeProblem, *, magnitude: bool, num_samples: int, config: ClosedFormConfig
) -> Draft:
    """Fit M and find what is left. ``magnitude`` False gives all bit lines one gain.

    ``num_samples`` 0 means exact statistics: M is not shrunk.
    """
    prior = math.inf
    if magnitude:
        prior = config.prior_samples / num_samples if num_samples else 0.0
    powers = _Powers.of(problem)
    m = powers.magnitude(prior)
    gain = problem.loss_per_power * (powers.lost(powers.node_gain) - powers.lost(m))
    return Draft(
        problem=problem,
        m=m,
        need=_need(problem, m),
        prior=prior,
        node_gain=powers.node_gain,
        magnitude_gain=gain,
    )


def _need(problem: NodeProblem, m: F32) -> F32:
    """W_t / M - W_r, [G, d, m]."""
    return problem.target / m[:, None, :] - (problem.target - problem.error)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Powers:
    """Powers of target t and weight r of every bit line in the metric C, [G, m]."""

    wanted: F64
    """t'Ct"""
    along: F64
    """t'Cr"""
    given: F64
    """r'Cr"""

    @classmethod
    def of(cls, problem: NodeProblem, correction: _Correction | None = None) -> _Powers:
        """Of the array, or of the array with a correction."""
        target, metric_target = problem.target, problem.metric_target
        given, metric_given = target - problem.error, metric_target - problem.metric_error
        if correction is not None:
            given += correction.held
            metric_given += correction.metric_held
        return cls(
            wanted=np.maximum((target * metric_target).sum(axis=1, dtype=np.float64), 0.0),
            along=(given * metric_target).sum(axis=1, dtype=np.float64),
            given=(given * metric_given).sum(axis=1, dtype=np.float64),
        )

    @property
    def node_gain(self) -> float:
        """One gain for all bit lines that gives the node its target's power."""
        wanted, given = self.wanted.sum(), self.given.sum()
        return float(np.sqrt(wanted / given)) if wanted > 0 and given > 0 else 1.0

    def magnitude(self, prior: float) -> F32:
        """M that gives every bit line its target's power, shrunk to one gain.

        Least squares would give t'Cr / r'Cr, which is too small: an array's errors are independent
        of its target and add to r'Cr alone (errors in variables), so that each node would be a
        little too quiet, and a chain of them by the product. The root of t'Ct / r'Cr is the
        geometric mean of that and of the inverse regression t'Ct / t'Cr, and keeps a node as loud
        as the teacher's.
        """
        if prior == math.inf:
            return np.full(self.given.shape, self.node_gain, np.float32)
        node, silent = self.node_gain, self.given <= 0
        own = np.sqrt(self.wanted / np.where(silent, 1.0, self.given))
        # A magnitude is a gain: a bit line of the wrong sign tells nothing of its own.
        own = np.where(self.along <= 0, node, np.clip(own, node / _OWN_GAIN, node * _OWN_GAIN))
        return np.where(silent, 1.0, (own + prior * node) / (1 + prior)).astype(np.float32)

    def lost(self, gain: F32 | float) -> float:
        """Power of the error with these gains."""
        return float((self.wanted - 2 * gain * self.along + gain**2 * self.given).sum())


def finish(node: Draft, *, rank: int, s: F32 | None) -> Adapter:
    """The adapter of a node that was given ``rank`` and sparse cells where ``s`` is not zero.

    M was fitted to the array alone; with the branch in place it is fitted once more, and the branch
    to it. What the sparse cells hold is found then, before A B and once more beside it: inputs are
    correlated, so that a cell makes up for errors of the cells beside it, too.
    """
    adapter = _branch(node, rank, s)
    if rank or s is not None:
        problem = node.problem
        powers = _Powers.of(problem, _Correction.of(problem, adapter))
        # A bit line whose own answer told nothing of its gain keeps it.
        m = np.where(node.m == 1, np.float32(1), powers.magnitude(node.prior))
        node = replace(node, m=m)
        node = replace(node, need=node.need_of(problem))
        s = None if s is None else np.where(s != 0, node.need, np.float32(0))
        adapter = _branch(node, rank, s) if s is None else adapter
    if s is None:
        return adapter
    held = _cells(node, None, s)
    if rank == 0:
        return replace(adapter, m=node.m, s=held)
    adapter = _branch(node, rank, held)
    return replace(adapter, s=_cells(node, adapter, held))


def _branch(node: Draft, rank: int, s: F32 | None) -> Adapter:
    """A and B for the node's M, and ``s`` as it is."""
    group, depth, columns = node.need.shape
    a = np.zeros((group, depth, rank), np.float32)
    b = np.zeros((group, rank, columns), np.float32)
    for g in range(group if rank else 0):
        rest, metric_rest = node.remainder(s, g)
        _, vectors = _leading(rest, metric_rest, node.problem.metric[g], rank)
        a[g] = rest @ vectors
        b[g] = vectors.T / node.m[g]
    return Adapter(a=a, b=b, m=node.m, s=s)


def _cells(node: Draft, branch: Adapter | None, start: F32) -> F32:
    """What the cells where ``start`` is not zero should hold beside A B, [G, d, m].

    The least error in a metric that has more uncorrelated power than C': a cell that makes up for
    others relies on correlations, of which few samples tell. By conjugate gradients from ``start``.
    """
    problem, found = node.problem, start.copy()
    ridge = (_CELL_RIDGE * problem.ridge).astype(np.float32)
    metric = problem.metric.with_ridge(ridge)
    metric_a = None if branch is None else problem.metric @ branch.a
    group, depth, columns = start.shape
    together = max(1, _MOST_CELLS // (group * depth))
    for part in (np.s_[:, :, i : i + together] for i in range(0, columns, together)):
        m, want = node.m[:, None, :][part], node.need[part]
        metric_want = (1 / m - 1) * problem.metric_target[part] + problem.metric_error[part]
        if branch is not None and metric_a is not None:
            want = want - branch.a @ branch.b[part]
            metric_want -= metric_a @ branch.b[part]
        metric_want += ridge[:, None, None] * want
        found[part] = _on_cells(metric, start[part], metric_want)
    return found


def _on_cells(metric: Gram, start: F32, wanted: F32 | F64) -> F32:
    """S with (C S)_ij = ``wanted`` where ``start`` is not zero, and zero elsewhere.

    Every bit line has a system of its own, as large as the number of its kept cells.
    """
    found = start.copy()
    for g in range(len(start)):
        for lines, cells, held in _kept_cells(start[g] != 0, metric[g]):
            at = (g, cells, lines[:, None])
            x = np.where(held, start[at], 0)[:, :, None]
            x = _solved(metric[g].among(cells), x, np.where(held, wanted[at], 0)[:, :, None], held)
            found[g, cells[held], np.repeat(lines, held.sum(axis=1))] = x[held, 0]
    return found


def _kept_cells(
    kept: npt.NDArray[np.bool_], metric: Gram
) -> Iterator[tuple[Index, Index, npt.NDArray[np.bool_]]]:
    """Bit lines [n], the word lines of their kept cells [n, k], and which of the k are there.

    ``kept`` is [d, m]. Lines of about as many cells come together, as many as memory may take.
    """
    line, cell = np.nonzero(kept.T)
    counts = np.bincount(line, minlength=kept.shape[1])
    place = np.arange(len(line)) - (np.cumsum(counts) - counts)[line]
    padded = np.zeros((kept.shape[1], int(counts.max(initial=0))), np.intp)
    padded[line, place] = cell
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    while order.size:
        most = int(counts[order[0]])
        width = 0 if metric.matrix is None else most
        width += 0 if metric.rows is None else metric.rows.shape[1]
        lines, order = np.split(order, [max(1, _MOST_CELLS // (most * width))])
        yield lines, padded[lines, :most], np.arange(most) < counts[lines, None]


def _solved(metric: Gram, x: F32, wanted: F32 | F64, held: npt.NDArray[np.bool_]) -> F32:
    """Some steps of conjugate gradients from ``x`` in metric x = wanted, where ``held``; [n, k, 1].

    Preconditioned by the diagonal.
    """
    tiny = np.finfo(np.float32).tiny
    mask = held[:, :, None]
    scale = mask / np.maximum(metric.diagonal(), tiny)[:, :, None]
    r = mask * (wanted - metric @ x)
    z = scale * r
    p = z.copy()
    rho = (r * z).sum(axis=1, keepdims=True)
    for _ in range(_CELL_STEPS):
        a_p = mask * (metric @ p)
        alpha = rho / np.maximum((p * a_p).sum(axis=1, keepdims=True), tiny)
        x = x + alpha * p
        r -= alpha * a_p
        z = scale * r
        rho_before, rho = rho, (r * z).sum(axis=1, keepdims=True)
        p = z + rho / np.maximum(rho_before, tiny) * p
    return x


@dataclass(frozen=True, kw_only=True, eq=False)
class _Correction:
    """What an adapter adds to an array, [G, d, m]."""

    held: F32
    """A B + S"""
    metric_held: F32
    """The same in the metric, C' (A B + S)."""

    @classmethod
    def of(cls, problem: NodeProblem, adapter: Adapter) -> _Correction:
        held, metric_held = adapter.a @ adapter.b, (problem.metric @ adapter.a) @ adapter.b
        if adapter.s is not None:
            held += adapter.s
            metric_held += problem.metric @ adapter.s
        return cls(held=held, metric_held=metric_held)


def _leading(rest: F32, metric_rest: F32, metric: Gram, count: int) -> tuple[F64, F64]:
    """Largest eigenvalues of R' C R, ascending, and their vectors [m, count].

    R and C R are [d, m].
    """
    if rest.shape[1] <= rest.shape[0]:
        return _eigen((rest.T @ metric_rest).astype(np.float64), count)
    # The smaller side: with C = F F', the same eigenvalues are those of F' R R' F.
    root = _root(metric.dense()[0].astype(np.float64))
    values, left = _eigen(root.T @ (rest @ rest.T) @ root, count)
    smallest = float(np.finfo(np.float32).tiny)
    floor = float(np.finfo(np.float32).eps) * max(float(values[-1]), smallest)
    # A direction without power corrects nothing: its vector is zero.
    scale = np.where(values > floor, 1 / np.sqrt(np.maximum(values, floor)), 0)
    return values, (rest.T @ (root @ left)) * scale


def _root(matrix: F64) -> F64:
    """F with F F' = ``matrix``, [d, d]."""
    import scipy.linalg  # here, as in gram.py

    try:
        return np.asarray(scipy.linalg.cholesky(matrix, lower=True, check_finite=False))
    except scipy.linalg.LinAlgError:
        # Inputs that hardly vary beside their mean: rounding may make their power negative.
        power, directions = scipy.linalg.eigh(matrix, check_finite=False)
        return np.asarray(directions * np.sqrt(np.maximum(power, 0)))


def _eigen(matrix: F64, count: int) -> tuple[F64, F64]:
    import scipy.linalg  # here, as in gram.py
    import scipy.sparse.linalg

    size = len(matrix)
    if size <= _DENSE_EIGEN or 4 * count > size:
        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=(size - count, size - 1))
    else:
        # The start vector is fixed, so that the same problem gives the same adapter.
        values, vectors = scipy.sparse.linalg.eigsh(matrix, k=count, v0=np.ones(size))
    return values, vectors


def squared_error(problem: NodeProblem, adapter: Adapter | None) -> float:
    """Mean error power of the node's output on the teacher's inputs, relative to its variance.

    What the bias will take away is not counted.
    ``None`` is the array alone.
    """
    rest, metric_rest = problem.error, problem.metric_error
    if adapter is not None:
        m, added = adapter.m[:, None, :], _Correction.of(problem, adapter)
        rest = (1 - m) * problem.target + m * (rest - added.held)
        metric_rest = (1 - m) * problem.metric_target + m * (metric_rest - added.metric_held)
    total = float((rest * metric_rest).sum(dtype=np.float64)) - float(
        problem.ridge @ np.square(rest).sum(axis=(1, 2), dtype=np.float64)
    )
    return max(total, 0.0) / problem.output_power


def mean_error(problem: NodeProblem, adapter: Adapter) -> F32:
    """What the node's mean output lacks on the teacher's inputs, bias aside, [G, m]."""
    realised = problem.target - problem.error + adapter.a @ adapter.b
    if adapter.s is not None:
        realised = realised + adapter.s
    mean = (problem.statistics.x_mean[:, None, :] @ realised)[:, 0, :] * adapter.m
    return problem.statistics.y_mean - mean
