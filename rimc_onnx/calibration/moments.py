# SPDX-License-Identifier: Apache-2.0
"""Streaming second moments of one RRAM node: all that the closed-form solver needs to know.

A convolution is a MatMul on its windows (im2col), done a few output rows at a time, so neither all
activations nor all windows of a layer are ever in memory. Letters: P rows (samples times output
positions), G groups, d word lines of one group, m bit lines of one group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram, are_few
from rimc_onnx.errors import CalibrationError
from rimc_onnx.ops.geometry import NodeGeometry

__all__ = ["MOST_ABS", "Features", "SecondMoments", "check_summable", "finite_rows"]
__all__ += ["limited_rows", "rows_of"]

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

MOST_ABS = 1e16
"""Largest value that is summed: float32 holds the sum of a million squares."""
_CHUNK_BYTES = 32 << 20
"""Windows held at once."""


def check_summable(node: str, weight: Array) -> None:
    """Refuse weights whose squares float32 does not hold the sum of.

    Raises:
        CalibrationError: one is beyond :data:`MOST_ABS`.
    """
    largest = max(float(weight.max()), -float(weight.min()))
    if largest > MOST_ABS:
        raise CalibrationError(
            f"node {node!r}: its weights reach {largest:g}, and none beyond {MOST_ABS:g} is "
            "calibrated. Leave the node digital (`keep_digital`)."
        )


def rows_of(geometry: NodeGeometry, x: Array, *outputs: Array) -> Iterator[tuple[Array, ...]]:
    """Rows of X [P, G, d] and of every output [P, G, m], a bounded number at a time."""
    g, d, m = geometry.group, geometry.depth, geometry.group_columns
    limit = max(1, _CHUNK_BYTES // (4 * g * d))
    if not geometry.is_conv:
        flat = [x.reshape(-1, g, d), *(o.reshape(-1, g, m) for o in outputs)]
        for start in range(0, len(flat[0]), limit):
            yield tuple(np.asarray(a[start : start + limit], np.float32) for a in flat)
        return
    windows = geometry.windows(x)
    last = [np.moveaxis(o, 1, -1) for o in outputs]
    positions = int(np.prod(windows.shape[2 : 1 + len(geometry.kernel)]))
    lines = max(1, limit // max(1, positions))
    samples = max(1, lines // max(1, windows.shape[1]))
    for first in range(0, len(windows), samples):
        for start in range(0, windows.shape[1], lines):
            part = np.s_[first : first + samples, start : start + lines]
            yield (
                windows[part].reshape(-1, g, d).astype(np.float32, copy=False),
                *(o[part].reshape(-1, g, m).astype(np.float32, copy=False) for o in last),
            )


def finite_rows(rows: tuple[Array, ...]) -> tuple[Array, ...]:
    """Without the rows in which a value is NaN, infinite or beyond :data:`MOST_ABS`."""
    if _are_summable(rows):
        return rows
    with np.errstate(invalid="ignore"):  # NaN is not below the limit
        known = [(np.abs(part) <= MOST_ABS).all(axis=(1, 2)) for part in rows]
    at = np.logical_and.reduce(known)
    return tuple(part[at] for part in rows)


def _are_summable(rows: Iterable[Array]) -> bool:
    """Whether no value can be beyond :data:`MOST_ABS`; one pass, without a mask."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(np.linalg.norm(part) <= MOST_ABS for part in rows)


def limited_rows(
    rows: tuple[Array, ...], y: Array, axes: int | tuple[int, ...], row_limit: float
) -> tuple[Array, ...]:
    """Rows of which ``y`` has more power over ``axes`` than ``row_limit``, scaled down to it."""
    if row_limit == math.inf:
        return rows
    power = np.square(y, dtype=np.float64).sum(axis=axes, keepdims=True)
    factor = np.sqrt(row_limit / np.maximum(power, row_limit)).astype(np.float32)
    with np.errstate(invalid="ignore"):  # infinities times zero: such rows are left out
        return tuple(part * factor for part in rows)


class SecondMoments:
    """Sums over rows of X (word lines), Y (teacher, without bias) and Y - H (H: device).

    Rows in which any of the three is NaN, infinite or beyond :data:`MOST_ABS` are left out.
    """

    def __init__(self, geometry: NodeGeometry, row_limit: float = math.inf) -> None:
        """All sums zero. Rows whose Y has more power than ``row_limit`` are scaled down to it."""
        g, d, m = geometry.group, geometry.depth, geometry.group_columns
        self.geometry = geometry
        self.row_limit = row_limit
        self.num_rows = 0
        self.num_left_out = 0
        self.x_abs_max = 0.0
        self._rows: list[Array] = []
        self._x_x: F64 | None = None
        self.x_e: F64 = np.zeros((g, d, m))
        self.x: F64 = np.zeros((g, d))
        self.y: F64 = np.zeros((g, m))
        self.y_y: F64 = np.zeros((g, m))

    def update(self, x: Array, y: Array, h: Array | None = None) -> None:
        """Add the rows of one chunk of samples: x as the node reads it, y and h as it writes.

        Without ``h`` only the teacher's moments are kept.
        """
        for whole_rows in rows_of(self.geometry, x, y, *([] if h is None else [h])):
            rows = limited_rows(whole_rows, whole_rows[1], (1, 2), self.row_limit)
            x_rows, y_rows, *h_rows = rows
            # What the array lacks: Y - H.
            with np.errstate(invalid="ignore"):  # infinities of both: those rows go below
                e_rows = y_rows - h_rows[0] if h_rows else None
            if not _are_summable((x_rows, y_rows, *([] if e_rows is None else [e_rows]))):
                x_rows, y_rows, *h_rows = finite_rows(rows)
                self.num_left_out += len(rows[0]) - len(x_rows)
                e_rows = y_rows - h_rows[0] if h_rows else None
            if not len(x_rows):
                continue
            self.num_rows += len(x_rows)
            self.x_abs_max = max(self.x_abs_max, float(x_rows.max()), -float(x_rows.min()))
            self._add(x_rows)
            self.x += x_rows.sum(axis=0, dtype=np.float64)
            self.y += y_rows.sum(axis=0, dtype=np.float64)
            self.y_y += np.square(y_rows, dtype=np.float64).sum(axis=0)
            if e_rows is not None:
                self.x_e += np.moveaxis(x_rows, 1, 0).transpose(0, 2, 1) @ np.moveaxis(e_rows, 1, 0)

    @property
    def gram(self) -> Gram:
        """X'X."""
        if self._x_x is not None:
            return Gram(matrix=self._x_x)
        g, d = self.geometry.group, self.geometry.depth
        rows = np.concatenate([np.zeros((0, g, d), np.float32), *self._rows])
        return Gram(rows=np.moveaxis(rows, 1, 0))

    def _add(self, rows: Array) -> None:
        """Rows themselves while they are few, the matrix from then on."""
        if self._x_x is None and are_few(self.num_rows, self.geometry.depth):
            self._rows.append(rows.copy())
            return
        if self._x_x is None:
            g, d = self.geometry.group, self.geometry.depth
            self._x_x = np.zeros((g, d, d))
        for part in (*self._rows, rows):
            x_g = np.moveaxis(part, 1, 0)
            self._x_x += x_g.transpose(0, 2, 1) @ x_g
        self._rows = []


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """One node's input, the teacher's output without bias and the device's, chunk by chunk."""

    x: Sequence[Array]
    y: Sequence[Array]
    h: Sequence[Array]

    def moments(self, geometry: NodeGeometry, row_limit: float = math.inf) -> SecondMoments:
        """Their second moments."""
        moments = SecondMoments(geometry, row_limit)
        for x, y, h in zip(self.x, self.y, self.h, strict=True):
            moments.update(x, y, h)
        return moments
