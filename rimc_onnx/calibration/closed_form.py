# SPDX-License-Identifier: Apache-2.0
"""The default solver: reduced-rank regression for A and B, shrunk least squares for M.

With M fixed, min over A, B of ||Y - M o H - X A (B diag M)||_F is closed: G = X'X + lambda I,
T = inv(G) X'(Y - M o H), and A (B diag M) = T V V', where V holds the r leading eigenvectors of
T' G T. With A, B fixed, M is a one-dimensional least squares per bit line, shrunk towards 1. A few
rounds of both converge. Only second moments are needed (SPEC section 5).

The prior of a sample count, not of a variance, sets the shrinkage: ``prior_samples`` samples would
weigh as much as the belief that nothing has to be corrected. So one sample moves M and the bias
little and a thousand move them freely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse.linalg

from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.errors import ConfigError

__all__ = ["Adapter", "ClosedFormConfig", "solve", "squared_error"]

F64 = npt.NDArray[np.float64]

_DENSE_EIGEN = 256
"""Up to this size all eigenvectors cost less than finding a few of them."""


@dataclass(frozen=True, kw_only=True)
class ClosedFormConfig:
    """Strength of the three regularisations, chosen on ResNet-20 (docs/calibration.md)."""

    ridge_frac: float = 0.1
    """lambda as a share of the mean diagonal of X'X."""
    prior_samples: float = 10.0
    """Samples that the belief in M = 1 and in an unchanged bias is worth."""
    rounds: int = 3
    """Alternations between A, B and M."""

    def __post_init__(self) -> None:
        if not (self.ridge_frac > 0 and self.prior_samples >= 0 and self.rounds >= 1):
            raise ConfigError(
                "need ridge_frac > 0, prior_samples >= 0 and rounds >= 1, "
                f"got {self.ridge_frac}, {self.prior_samples} and {self.rounds}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A fitted branch in real numbers, group by group: Y = M o (H + X A B)."""

    a: F64
    """[G, d, R]"""
    b: F64
    """[G, R, m]"""
    m: F64
    """[G, m]"""


def solve(
    moments: SecondMoments, *, rank: int, num_samples: int, config: ClosedFormConfig
) -> Adapter:
    """Fit one node. A word line that never carried a signal gets a zero row in A.

    ``rank`` must not exceed what the matrix has (:func:`rimc_onnx.adapter.adapter_rank`).
    """
    groups = [
        _solve_group(moments, g, rank, num_samples, config) for g in range(moments.geometry.group)
    ]
    a, b, m = (np.stack(parts) for parts in zip(*groups, strict=True))
    return Adapter(a=a, b=b, m=m)


def _solve_group(
    moments: SecondMoments, g: int, rank: int, num_samples: int, config: ClosedFormConfig
) -> tuple[F64, F64, F64]:
    x_x, x_y, x_h = moments.x_x[g], moments.x_y[g], moments.x_h[g]
    depth, columns = x_y.shape
    loudness = float(np.trace(x_x)) / depth
    if loudness == 0.0:
        # Nothing was seen at this group's inputs, so there is nothing to correct.
        return np.zeros((depth, rank)), np.zeros((rank, columns)), np.ones(columns)
    factor = scipy.linalg.cho_factor(
        x_x + config.ridge_frac * loudness * np.eye(depth), overwrite_a=True, check_finite=False
    )
    inv_x_y = scipy.linalg.cho_solve(factor, x_y, check_finite=False)
    inv_x_h = scipy.linalg.cho_solve(factor, x_h, check_finite=False)
    prior = config.prior_samples / num_samples
    a, b = np.zeros((depth, rank)), np.zeros((rank, columns))
    m: F64 = np.ones(columns)
    for _ in range(config.rounds):
        along, power = _corrected(moments, g, a, b)
        m = _magnitude(along, power, prior)
        target = inv_x_y - inv_x_h * m
        vectors = _leading_eigenvectors((x_y - x_h * m).T @ target, rank)
        a = target @ vectors
        b = vectors.T / m
    return a, b, m


def _corrected(moments: SecondMoments, g: int, a: F64, b: F64) -> tuple[F64, F64]:
    """Per bit line: (H + X A B)'Y and (H + X A B)'(H + X A B)."""
    along = moments.h_y[g] + ((a.T @ moments.x_y[g]) * b).sum(axis=0)
    power = (
        moments.h_h[g]
        + 2 * ((a.T @ moments.x_h[g]) * b).sum(axis=0)
        + ((a.T @ moments.x_x[g] @ a) @ b * b).sum(axis=0)
    )
    return along, power


def _leading_eigenvectors(matrix: F64, rank: int) -> F64:
    """The eigenvectors [n, rank] of the largest eigenvalues of a symmetric matrix [n, n]."""
    size = len(matrix)
    if size <= _DENSE_EIGEN or 4 * rank > size:
        return scipy.linalg.eigh(matrix, subset_by_index=(size - rank, size - 1))[1]
    # The start vector is fixed, so that the same moments give the same adapter.
    return scipy.sparse.linalg.eigsh(matrix, k=rank, v0=np.ones(size))[1]


def _magnitude(along: F64, power: F64, prior: float) -> F64:
    """Least squares of Y on H + X A B per bit line, with ``prior`` times its weight put on 1."""
    silent = power <= 0
    m = (along + prior * power) / np.where(silent, 1.0, (1 + prior) * power)
    # A magnitude is a gain: a bit line that answers with the wrong sign is left as it is.
    return np.where(silent | (m <= 0), 1.0, m)


def squared_error(moments: SecondMoments, adapter: Adapter | None) -> float:
    """Sum over rows and bit lines of (Y - Y_student)^2 on teacher inputs; ``None`` is identity."""
    total = 0.0
    for g in range(moments.geometry.group):
        along, power, m = moments.h_y[g], moments.h_h[g], np.ones(1)
        if adapter is not None:
            along, power = _corrected(moments, g, adapter.a[g], adapter.b[g])
            m = adapter.m[g]
        total += float((moments.y_y[g] - 2 * m * along + m * m * power).sum())
    return max(total, 0.0)
