# SPDX-License-Identifier: Apache-2.0
"""How loud the word lines of the teacher's nodes are: what an error of a cell there costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.moments import finite_rows, rows_of
from rimc_onnx.calibration.walk import teacher_run
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.ops.geometry import NodeGeometry

if TYPE_CHECKING:
    import onnx_ir as ir

    from rimc_onnx.passes import RramUnit

__all__ = ["measure_input_power"]

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

_FLOOR_FRAC = 0.1
"""Power that every word line has beside its own, as a share of the mean: samples are few."""


def measure_input_power(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Sequence[Feed],
    factory: SessionFactory,
    *,
    about_mean: bool,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, F64]:
    """E[x_i^2] of every word line, [G d] by node name; variances where ``about_mean``.

    A calibration takes the mean of an error away with the node's bias. Nodes that saw no power are
    left out.
    """
    power: dict[str, F64] = {}
    for done, (unit, chunks, _) in enumerate(teacher_run(teacher, units, feeds, factory)):
        lines = _line_power(unit.geometry, chunks, about_mean)
        if lines.any():
            power[unit.name] = lines + _FLOOR_FRAC * lines.mean()
        progress(done + 1, len(units))
    return power


def _line_power(geometry: NodeGeometry, chunks: Sequence[Array], about_mean: bool) -> F64:
    first = np.zeros((geometry.group, geometry.depth))
    second, rows = np.zeros_like(first), 0
    for x in chunks:
        for row in rows_of(geometry, x):
            (part,) = finite_rows(row)
            rows += len(part)
            first += part.sum(axis=0, dtype=np.float64)
            second += np.square(part, dtype=np.float64).sum(axis=0)
    mean = first / max(rows, 1)
    second /= max(rows, 1)
    lines = second - mean * mean if about_mean else second
    found: F64 = np.maximum(lines, 0.0).reshape(-1)
    return found if np.isfinite(found).all() else np.zeros_like(found)
