# SPDX-License-Identifier: Apache-2.0
"""The default solver: M that keeps power, the largest errors kept sparse, the rest low rank.

With M known, what a node needs is a correction D = W_t / M - W_r that is small in the metric of its
inputs, C = E[x' x]. The cells where D_ij^2 C_ii is largest are kept exactly (S). Of the remainder R
the best rank-r part in that metric is (R o M) V V' / M, where V are the leading eigenvectors of
(R o M)' C (R o M) (Eckart-Young in the metric C, as QERA and EoRA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.problem import NodeProblem
from rimc_onnx.calibration.solvers.leading import leading
from rimc_onnx.errors import ConfigError
from rimc_onnx.execution.parallel import for_parts

__all__ = ["Adapter", "ClosedFormConfig", "Draft", "draft", "finish", "mean_error", "squared_error"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Lines = tuple[slice, slice, slice]
"""Some bit lines of arrays [G, d, m]."""

_OWN_GAIN = 4.0
"""A bit line's own gain lies within this factor of its node's."""
_CELL_RIDGE = 10.0
"""Uncorrelated power in the metric of sparse cells beside that of the metric, as a multiple."""
_CELL_STEPS = 4
_MOST_CELLS = 1 << 20
"""Numbers of the systems of bit lines whose sparse cells are found at once."""


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
        return replace(self, m=m, prior=math.inf, magnitude_gain=0.0)

    @cached_property
    def need(self) -> F32:
        """D = W_t / M - W_r, [G, d, m]."""
        problem, m = self.problem, self.m[:, None, :]
        found = np.empty_like(problem.target)

        def fill(at: Lines) -> None:
            target = problem.target[at]
            np.subtract(target / m[at], target - problem.error[at], out=found[at])

        _by_lines(fill, found.shape)
        return found

    def without_products(self) -> Draft:
        """The same node, which holds no products with the metric: many wait beside each other."""
        return replace(self, problem=self.problem.without_products())

    def cell_gains(self) -> F32:
        """Loss that keeping a cell removes, [G, d, m]."""
        line_power = self.problem.moment.diagonal()
        found = np.empty_like(self.need)

        def fill(at: Lines) -> None:
            gain = np.square(self.need[at] * self.m[:, None, :][at]) * line_power[:, :, None]
            np.multiply(gain, np.float32(self.problem.loss_per_power), out=found[at])

        _by_lines(fill, found.shape)
        return found

    def rank_gains(self, s: F32 | None, most: int) -> F64:
        """Loss that each rank removes once ``s`` is kept, largest first, [most]."""
        values = np.zeros(most)
        for g in range(len(self.need)):
            found, _ = leading(*self.remainder(s, g), self.problem.metric[g], most)
            values += np.maximum(found[::-1], 0)
        return values * self.problem.loss_per_power

    def remainder(self, s: F32 | None, g: int) -> tuple[F32, F32]:
        """(D - S) o M of one group and its product with the metric, [d, m]."""
        problem, metric = self.problem, self.problem.metric[g]
        metric_target, metric_error = problem.metric_target, problem.metric_error
        found = np.empty(self.need.shape[1:], np.float32), np.empty(metric_error.shape[1:], "f4")

        def fill(lines: Lines) -> None:
            at, m = lines[1:], self.m[g][lines[2]]
            rest, metric_rest = self.need[g][at], metric_error[g][at]
            if s is not None:
                rest, metric_rest = rest - s[g][at], metric_rest - metric @ s[g][at]
            np.multiply(rest, m, out=found[0][at])
            np.add((1 - m) * metric_target[g][at], m * metric_rest, out=found[1][at])

        _by_lines(fill, (1, *found[0].shape))
        return found


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
        prior=prior,
        node_gain=powers.node_gain,
        magnitude_gain=gain,
    )


def _by_lines(function: Callable[[Lines], object], shape: tuple[int, ...]) -> None:
    """``function`` of some bit lines of arrays [G, d, m] at a time."""
    for_parts(lambda lines: function(np.s_[:, :, lines]), shape[2], shape[0] * shape[1])


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
        metric_target, metric_error = problem.metric_target, problem.metric_error
        group, _, columns = problem.target.shape
        found = cls(**{name: np.empty((group, columns)) for name in ("wanted", "along", "given")})

        def fill(at: Lines) -> None:
            target, metric_target_at = problem.target[at], metric_target[at]
            given, metric_given = target - problem.error[at], metric_target_at - metric_error[at]
            if correction is not None:
                held, metric_held = correction.of_lines(at)
                given += held
                metric_given += metric_held
            lines = at[::2]
            found.wanted[lines] = np.maximum(
                (target * metric_target_at).sum(axis=1, dtype=np.float64), 0.0
            )
            found.along[lines] = (given * metric_target_at).sum(axis=1, dtype=np.float64)
            found.given[lines] = (given * metric_given).sum(axis=1, dtype=np.float64)

        _by_lines(fill, problem.target.shape)
        return found

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
        _, vectors = leading(rest, metric_rest, node.problem.metric[g], rank)
        a[g] = rest @ vectors
        b[g] = vectors.T / node.m[g]
    return Adapter(a=a, b=b, m=node.m, s=s)


def _cells(node: Draft, branch: Adapter | None, start: F32) -> F32:
    """What the cells where ``start`` is not zero should hold beside A B, [G, d, m].

    The least error in a metric that has more uncorrelated power than C': a cell that makes up for
    others relies on correlations, of which few samples tell. By conjugate gradients from ``start``.
    """
    problem, found = node.problem, np.empty_like(start)
    ridge = (_CELL_RIDGE * problem.ridge).astype(np.float32)
    metric = problem.metric.with_ridge(ridge)
    metric_a = None if branch is None else problem.metric @ branch.a
    metric_target, metric_error = problem.metric_target, problem.metric_error

    def fill(at: Lines) -> None:
        m, want = node.m[:, None, :][at], node.need[at]
        metric_want = (1 / m - 1) * metric_target[at] + metric_error[at]
        if branch is not None and metric_a is not None:
            want = want - branch.a @ branch.b[at]
            metric_want -= metric_a @ branch.b[at]
        metric_want += ridge[:, None, None] * want
        found[at] = _on_cells(metric, start[at], metric_want)

    _by_lines(fill, found.shape)
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

    adapter: Adapter
    metric: Gram
    metric_a: F32
    """A in the metric."""

    @classmethod
    def of(cls, problem: NodeProblem, adapter: Adapter) -> _Correction:
        metric = problem.metric
        return cls(adapter=adapter, metric=metric, metric_a=metric @ adapter.a)

    def of_lines(self, at: Lines) -> tuple[F32, F32]:
        """A B + S, and the same in the metric, C' (A B + S)."""
        b, s = self.adapter.b[at], self.adapter.s
        held, metric_held = self.adapter.a @ b, self.metric_a @ b
        if s is not None:
            held += s[at]
            metric_held += self.metric @ s[at]
        return held, metric_held


def squared_error(problem: NodeProblem, adapter: Adapter | None) -> float:
    """Mean error power of the node's output on the teacher's inputs, relative to its variance.

    What the bias will take away is not counted.
    ``None`` is the array alone.
    """
    metric_target, metric_error = problem.metric_target, problem.metric_error
    added = None if adapter is None else _Correction.of(problem, adapter)
    totals: dict[int, float] = {}

    def add(at: Lines) -> None:
        rest, metric_rest = problem.error[at], metric_error[at]
        if adapter is not None and added is not None:
            m = adapter.m[:, None, :][at]
            held, metric_held = added.of_lines(at)
            rest = (1 - m) * problem.target[at] + m * (rest - held)
            metric_rest = (1 - m) * metric_target[at] + m * (metric_rest - metric_held)
        uncorrelated = problem.ridge @ np.square(rest).sum(axis=(1, 2), dtype=np.float64)
        totals[at[2].start] = float((rest * metric_rest).sum(dtype=np.float64)) - float(
            uncorrelated
        )

    _by_lines(add, problem.error.shape)
    total = sum(totals[start] for start in sorted(totals))
    return max(total, 0.0) / problem.output_power


def mean_error(problem: NodeProblem, adapter: Adapter) -> F32:
    """What the node's mean output lacks on the teacher's inputs, bias aside, [G, m]."""
    mean = np.empty_like(adapter.m)

    def fill(at: Lines) -> None:
        realised = problem.target[at] - problem.error[at] + adapter.a @ adapter.b[at]
        if adapter.s is not None:
            realised = realised + adapter.s[at]
        mean[at[::2]] = (problem.statistics.x_mean[:, None, :] @ realised)[:, 0, :]

    _by_lines(fill, problem.target.shape)
    return problem.statistics.y_mean - mean * adapter.m
