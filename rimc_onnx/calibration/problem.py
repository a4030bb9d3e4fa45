# SPDX-License-Identifier: Apache-2.0
"""What is known of one RRAM node: the error of its array and the power of its inputs.

Two ways lead here. Black box: the error is estimated from the device's answers to the teacher's
inputs. Since the target weight is known, the estimate needs few samples: X (W_t - W_r) = Y - H is
free of noise, and a cell's error is likely to be as large as its word line's weights. Read-out: the
array was measured, so the error is known up to the read-out noise, which answers of the device make
smaller, and the inputs' statistics may come from a file. Everything after that is the same (compare
QERA, EoRA and DFQ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.moments import MOST_ABS, SecondMoments
from rimc_onnx.errors import CalibrationError
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.parallel import for_parts
from rimc_onnx.ops.geometry import NodeGeometry

__all__ = [
    "CellPrior",
    "NodeProblem",
    "Statistics",
    "TeacherKnowledge",
    "nothing_finite",
    "problem_from_device",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_PRIOR_FRAC = 1e-3
"""Weight of the prior on a word line's error, as a share of the mean power of the inputs."""
_FLOOR_FRAC = 0.05
"""Prior variance that every cell has, as a share of the mean squared weight."""
_MOST_OPERATIONS = 1e9
"""Largest columns * d^2 for which every bit line has a prior of its own in the regression."""
_MOST_STEPS = 16
"""Steps of that regression; most nodes need three to six."""
_TOLERANCE = 3e-3
"""Where the regression ends: what is left of X'E, in the norm of the preconditioner, as a share."""
_TINY = np.float32(np.finfo(np.float32).tiny)
_ROUNDING = 2.0**-20
"""Standard deviation of what is constant, over its root mean square, once sums were rounded."""
_MOST_COST = 1e30
"""Largest loss for a unit of power; outputs of less than its inverse are nothing to float32."""
_SHRINK_FRAC = 0.1
"""Uncorrelated power added to the inputs' second moment, as a share of its mean diagonal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Teacher statistics of one node; sums of rows divided by their number."""

    x_mean: F32
    """[G, d]"""
    x_cov: Gram
    """E[(x - mean)' (x - mean)]"""
    y_mean: F32
    """[G, m], without bias"""
    y_variance: F32
    """[G, m]"""
    x_abs_max: float
    sensitivity: float | None = None
    """Error power at the model's outputs for a unit of error power here (:mod:`.sensitivity`);
    ``None`` is not known."""
    row_limit: float = math.inf
    """Power of Y on a row beyond which it was scaled down (:mod:`.sensitivity`)."""

    @cached_property
    def x_x(self) -> Gram:
        """The second moment E[x' x]."""
        return self.x_cov.plus(self.x_mean)

    @classmethod
    def of(cls, moments: SecondMoments, sensitivity: float | None = None) -> Statistics:
        """Means over the rows that were seen (zeros if there were none)."""
        rows = max(moments.num_rows, 1)
        x_mean, y_mean = moments.x / rows, moments.y / rows
        y_power = moments.y_y / rows
        y_variance = y_power - np.square(y_mean)
        return cls(
            x_mean=np.asarray(x_mean, np.float32),
            x_cov=moments.gram.centred(x_mean, rows),
            y_mean=np.asarray(y_mean, np.float32),
            # Below that a constant output varies as float32 rounds sums of it.
            y_variance=np.where(y_variance > _ROUNDING**2 * y_power, y_variance, 0).astype("f4"),
            x_abs_max=moments.x_abs_max,
            sensitivity=sensitivity,
            row_limit=moments.row_limit,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherKnowledge:
    """What a statistics file holds."""

    statistics: dict[str, Statistics]
    """By node name."""
    reference: Sequence[Feed]
    """A few of the samples themselves, chunk by chunk as feeds: what a model of the measured arrays
    is run on, to see what its layers do to each other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeProblem:
    """Everything that a solver in closed form needs of one node."""

    name: str
    geometry: NodeGeometry
    statistics: Statistics
    target: F32
    """W_t, [G, d, m]"""
    error: F32
    """W_t - W_r as far as it is known, [G, d, m]"""
    bias_frac: float
    """Share of a wrong mean output that the digital bias will take away."""

    @cached_property
    def moment(self) -> Gram:
        """E[x' x], of the mean only what the bias will leave of its error."""
        mean = self.statistics.x_mean * np.float32(1 - self.bias_frac)
        return self.statistics.x_cov.plus(mean)

    @cached_property
    def metric(self) -> Gram:
        """The moment and some uncorrelated power, as few samples see few directions."""
        return self.moment.with_ridge(self.ridge)

    @cached_property
    def ridge(self) -> F64:
        """That power, [G]."""
        return np.asarray(_SHRINK_FRAC * self.moment.diagonal().mean(axis=1), np.float64)

    @cached_property
    def metric_target(self) -> F32:
        """The target in the metric, C' W_t, [G, d, m]."""
        return self.metric @ self.target

    @cached_property
    def metric_error(self) -> F32:
        """The error in the metric, C' E, [G, d, m]."""
        return self.metric @ self.error

    def without_products(self) -> NodeProblem:
        """The same, with nothing of what :attr:`metric_target` and :attr:`metric_error` hold."""
        return replace(self)

    @property
    def loss_per_power(self) -> float:
        """What a unit of error power here costs; comparable over nodes."""
        sensitivity = self.statistics.sensitivity
        cost = 1 / self.output_power if sensitivity is None else sensitivity
        return min(cost, _MOST_COST)

    @property
    def output_power(self) -> float:
        """Power of the teacher's feature about its mean, all bit lines together."""
        return float(self.statistics.y_variance.sum(dtype=np.float64)) or 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class CellPrior:
    """What is known of the cells of a node before its device is asked, [G, d, m]."""

    error: F32
    """Mean of W_t - W_r."""
    variance: F32
    read_variance: F32 | None = None
    """Of what the device answers with, from one answer to the next."""


def problem_from_device(
    name: str,
    moments: SecondMoments,
    target: F32,
    *,
    bias_frac: float,
    prior: CellPrior,
    has_common_loss: bool = True,
    sensitivity: float | None = None,
) -> NodeProblem:
    """Bayesian regression of Y - H on X, where H is the device's answer.

    With ``has_common_loss`` all cells have lost, beside what is expected of them, the share of
    themselves that the node's outputs have.

    Raises:
        CalibrationError: rows were seen, and none of them is finite.
    """
    if moments.num_left_out and not moments.num_rows:
        raise nothing_finite(name)
    error, grams = prior.error.copy(), moments.gram
    for g in range(moments.geometry.group if prior.variance.any() else 0):
        gram = grams[g]
        noise = np.zeros(error.shape[2])
        if prior.read_variance is not None:
            noise = gram.diagonal()[0] @ prior.read_variance[g] / max(moments.num_rows, 1)
        held = target[g] - error[g] if has_common_loss else None
        error[g] = _regress(gram, moments.x_e[g], error[g], prior.variance[g], noise, held)
    return NodeProblem(
        name=name,
        geometry=moments.geometry,
        statistics=Statistics.of(moments, sensitivity),
        target=target,
        error=error,
        bias_frac=bias_frac,
    )


def nothing_finite(node: str) -> CalibrationError:
    """The error of a node that shows NaN, infinity and larger values than are summed alone."""
    return CalibrationError(
        f"node {node!r}: every sample has NaN, infinity or values beyond {MOST_ABS:g} in its "
        "inputs or outputs. Check the samples for values out of range, or leave the node digital."
    )


def _regress(x_x: Gram, x_e: F64, known: F32, variance: F32, noise: F64, held: F32 | None) -> F32:
    """Posterior mean of E [d, m] in X E = X_E, for cells of mean ``known`` and their variance.

    Answers of bit line j vary by ``noise`` [m] from read to read.

    Where arrays are expected to hold ``held``, they may have lost a share of that beside, all cells
    alike: it is found by least squares first, since directions that no sample showed must not count
    as whole.

    Each bit line j has a prior of its own, so a system of its own: (X'X + L_j) e_j = X'E_j with L_j
    diagonal. They differ by little, so a few steps of conjugate gradients, preconditioned by the
    inverse for the mean prior, solve all of them at once. Large nodes have the mean prior for all.

    In float32 but for the inverse: the sums come from products of float32 rows, too.
    """
    depth, columns = known.shape
    variance = variance + np.float32(
        _FLOOR_FRAC * variance.mean(dtype=np.float64) + np.finfo(np.float32).tiny
    )
    line_power = x_x.diagonal()[0].astype(np.float64)
    unit = line_power.mean()
    if unit == 0:
        return known
    power = _PRIOR_FRAC * ((line_power / unit) @ variance / depth) + noise / unit
    gram = x_x.over(unit)
    try:
        solve = gram.inverse(power.mean() / variance.mean(axis=1, dtype=np.float64))
    except np.linalg.LinAlgError:  # inputs below 1e-21: float32 rounds their squares to anything
        return known
    seen = np.divide(x_e, unit, out=np.empty(x_e.shape, np.float32), casting="same_kind")
    if known.any():
        seen -= gram @ known
    if held is not None:
        metric_held = gram @ held
        whole = (held * metric_held).sum(dtype=np.float64)
        share = np.float32((held * seen).sum(dtype=np.float64) / whole if whole > 0 else 0.0)
        seen -= share * metric_held
        known = known + share * held
    rank = depth if gram.rows is None else gram.rows.shape[1]
    is_large = columns * depth * min(depth, 2 * rank) > _MOST_OPERATIONS
    ridge = np.divide(power.astype(np.float32), variance, out=variance)

    def regress(lines: slice) -> None:
        part = np.s_[:, lines]
        some = np.ascontiguousarray(seen[part])
        found = solve(some) if is_large else _conjugate_gradients(gram, ridge[part], some, solve)
        np.add(found, known[part], out=seen[part])

    for_parts(regress, columns, depth)
    return seen


def _conjugate_gradients(gram: Gram, ridge: F32, seen: F32, solve: Callable[[F32], F32]) -> F32:
    """Columns e_j of (G + diag(ridge_j)) e_j = seen_j, preconditioned by ``solve``, [d, m]."""
    x = np.zeros_like(seen)
    r = seen  # residual; z preconditioned, p search direction, as in Golub and Van Loan
    z = solve(r)
    p = z.copy()
    rho = _dots(r, z)
    enough = _TOLERANCE**2 * rho.sum(dtype=np.float64)
    for _ in range(_MOST_STEPS):
        a_p = gram @ p
        a_p += ridge * p
        alpha = rho / np.maximum(_dots(p, a_p), _TINY)
        x += alpha * p
        a_p *= alpha
        r -= a_p
        z = solve(r)
        rho_before, rho = rho, _dots(r, z)
        if rho.sum(dtype=np.float64) <= enough:
            break
        p *= rho / np.maximum(rho_before, _TINY)
        p += z
    return x


def _dots(a: F32, b: F32) -> F32:
    """The scalar product of every column of a and b [d, m]."""
    return np.einsum("dm,dm->m", a, b)
