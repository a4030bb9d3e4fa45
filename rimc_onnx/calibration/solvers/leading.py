# SPDX-License-Identifier: Apache-2.0
"""The few directions of a node's correction that hold most of its power."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.execution.parallel import for_parts

__all__ = ["leading"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_DENSE_EIGEN = 256
"""Up to this size all eigenvectors cost less than finding a few of them."""
_MOST_FORMED = 1 << 22
"""Cells of a correction up to which R' C R is formed; beyond, some hundred vectors are multiplied
by R and C R, which costs a tenth."""
_KRYLOV_STEPS = 8
_KRYLOV_BLOCK = 16
"""Vectors multiplied at once, at least."""


def leading(rest: F32, metric_rest: F32, metric: Gram, count: int) -> tuple[F64, F32 | F64]:
    """Largest eigenvalues of R' C R, ascending, and their vectors [m, count].

    R and C R are [d, m].
    """
    block = max(_KRYLOV_BLOCK, -(-count // 2))
    if rest.size > _MOST_FORMED and _KRYLOV_STEPS * block <= min(rest.shape):
        return _krylov(rest, metric_rest, count, block)
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


def _krylov(rest: F32, metric_rest: F32, count: int, block: int) -> tuple[F64, F32]:
    """:func:`leading` of large nodes: the best in a Krylov space of R' C R, which is not formed.

    Where eigenvalues stand out, as those of samples do, these are exact; of the crowd behind them,
    whose vectors are as good as any of their kind, the sum is short of some hundredths (block
    Krylov iteration: Musco and Musco, NIPS 2015).
    """
    import scipy.linalg  # here, as in gram.py

    # The start is fixed, so that the same problem gives the same adapter.
    part = np.random.default_rng(0).standard_normal((rest.shape[1], block), np.float32)
    space = np.zeros((rest.shape[1], 0), np.float32)
    for _ in range(_KRYLOV_STEPS):
        part = _across(rest.T, _across(metric_rest, part))
        part -= space @ (space.T @ part)
        part, _ = np.linalg.qr(part)
        space = np.concatenate([space, part], axis=1)
    # Once more, since what is left beside the space may be rounding alone.
    space, _ = np.linalg.qr(space)
    inside = (_across(rest, space).T @ _across(metric_rest, space)).astype(np.float64)
    size = len(inside)
    values, vectors = scipy.linalg.eigh(
        (inside + inside.T) / 2, subset_by_index=(size - count, size - 1)
    )
    return values, space @ vectors.astype(np.float32)


def _across(matrix: F32, vectors: F32) -> F32:
    """Their product, some rows of the matrix at a time."""
    found = np.empty((len(matrix), vectors.shape[1]), np.float32)

    def multiply(part: slice) -> None:
        np.matmul(matrix[part], vectors, out=found[part])

    for_parts(multiply, len(matrix), matrix.shape[1])
    return found
