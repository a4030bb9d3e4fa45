# SPDX-License-Identifier: Apache-2.0
"""Gram matrices of a node's inputs, as the few rows that they were made of where rows are few.

Ten samples give a late layer far fewer rows than it has word lines: C = R' R then has a low rank,
and products with R and R' take a fraction of the time and memory of products with C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Gram", "are_few"]

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


def are_few(rows: int, depth: int) -> bool:
    """True where two products with rows cost less than one with the matrix."""
    return 2 * rows < depth


@dataclass(frozen=True, kw_only=True, eq=False)
class Gram:
    """C = matrix + R' R + ridge I, group by group; a part that is ``None`` is zero."""

    matrix: Array | None = None
    """[G, d, d]"""
    rows: Array | None = None
    """R, [G, P, d]"""
    ridge: Array | None = None
    """[G]"""

    def __getitem__(self, group: int) -> Gram:
        """One group's, as a Gram of one group."""
        parts = (self.matrix, self.rows, self.ridge)
        matrix, rows, ridge = (None if p is None else p[group : group + 1] for p in parts)
        return Gram(matrix=matrix, rows=rows, ridge=ridge)

    def among(self, cells: Index) -> Gram:
        """The blocks of ``cells`` [n, k] of the only group, as a Gram of n groups.

        A cell that a row names twice has its ridge on the diagonal alone.
        """
        matrix, rows = self.matrix, self.rows
        if matrix is not None:
            matrix = matrix[0][cells[:, :, None], cells[:, None, :]]
        if rows is not None:
            rows = np.ascontiguousarray(rows[0].T)[cells].transpose(0, 2, 1)
        return Gram(matrix=matrix, rows=rows, ridge=self.ridge)

    def __matmul__(self, other: Array) -> Array:
        """The product with [G, d, n], or with [d, n] where there is one group."""
        parts = []
        if self.matrix is not None:
            parts.append(self.matrix @ other)
        if self.rows is not None:
            parts.append(self.rows.transpose(0, 2, 1) @ (self.rows @ other))
        if self.ridge is not None:
            parts.append(self.ridge[:, None, None].astype(other.dtype) * other)
        if not parts:
            return np.zeros((), other.dtype)
        total = parts[0]
        for part in parts[1:]:
            total = np.add(total, part, out=total if total.dtype >= part.dtype else None)
        return total[0] if other.ndim == 2 and total.ndim == 3 else total

    def diagonal(self) -> Array:
        """What stands on the diagonal, [G, d]."""
        total: Array = np.zeros((), np.float32)[()]
        if self.matrix is not None:
            total = np.diagonal(self.matrix, axis1=1, axis2=2)
        if self.rows is not None:
            total = total + np.einsum("gpd,gpd->gd", self.rows, self.rows)
        return total if self.ridge is None else total + self.ridge[:, None]

    def dense(self) -> Array:
        """All of it as one matrix, [G, d, d]."""
        if self.rows is None:
            assert self.matrix is not None
            total = self.matrix.copy()
        else:
            total = self.rows.transpose(0, 2, 1) @ self.rows
            total += 0 if self.matrix is None else self.matrix
        if self.ridge is not None:
            at = np.arange(total.shape[1])
            total[:, at, at] += self.ridge[:, None]
        return total

    def plus(self, vector: Array) -> Gram:
        """With v' v added, v [G, d]; the matrix is shared."""
        row = vector[:, None, :]
        rows = row if self.rows is None else np.concatenate([self.rows, row], axis=1)
        return replace(self, rows=rows)

    def with_ridge(self, ridge: Array) -> Gram:
        """With ridge [G] added to the diagonal; all else is shared."""
        return replace(self, ridge=ridge if self.ridge is None else self.ridge + ridge)

    def centred(self, mean: Array, count: int) -> Gram:
        """The covariance of ``count`` rows with this sum of products and ``mean`` [G, d]."""
        if self.matrix is None:
            assert self.rows is not None
            rows = (self.rows - mean[:, None, :]) / np.sqrt(count)
            return Gram(rows=rows.astype(np.float32))
        matrix = self.matrix / count
        matrix -= mean[:, :, None] * mean[:, None, :]
        return Gram(matrix=matrix.astype(np.float32))

    def over(self, unit: float) -> Gram:
        """Divided by ``unit``, in float32."""
        by = np.float64(unit)
        return Gram(
            matrix=None if self.matrix is None else _quotient(self.matrix, by),
            rows=None if self.rows is None else _quotient(self.rows, np.sqrt(by)),
            ridge=None if self.ridge is None else _quotient(self.ridge, by),
        )

    def inverse(self, ridge: F64) -> Callable[[F32], F32]:
        """What gives (C + diag(ridge))^-1 F for F [d, n], ridge [d] > 0; for one group.

        Factored in float64, solved in float32. With few rows by Woodbury's identity:
        L^-1 - L^-1 R' (I + R L^-1 R')^-1 R L^-1.
        """
        import scipy.linalg  # here, since commands that fit nothing must not wait for it

        if self.matrix is not None or self.rows is None:
            matrix = self.dense()[0].astype(np.float64, copy=False)
            np.fill_diagonal(matrix, matrix.diagonal() + ridge)
            factor = _factor(matrix)
            return lambda f: scipy.linalg.cho_solve(factor, f, check_finite=False)
        rows = self.rows[0].astype(np.float64, copy=False)
        over = rows / ridge
        factor = _factor(np.eye(len(over)) + over @ rows.T)
        over, line = over.astype(np.float32), ridge.astype(np.float32)[:, None]

        def solve(f: F32) -> F32:
            seen = scipy.linalg.cho_solve(factor, over @ f, check_finite=False)
            return f / line - over.T @ seen

        return solve


def _factor(matrix: F64) -> tuple[F32, bool]:
    """Cholesky's factor of a symmetric matrix, which is overwritten."""
    import scipy.linalg

    # Transposed, as LAPACK takes it without a copy.
    factor, lower = scipy.linalg.cho_factor(matrix.T, overwrite_a=True, check_finite=False)
    return factor.astype(np.float32), lower


def _quotient(values: Array, by: np.float64) -> F32:
    return np.asarray(values / by, np.float32)
