# SPDX-License-Identifier: Apache-2.0
"""What the wires of an array lose, to first order in their resistance.

An array has m word lines and n bit lines; every wire has the resistance R from one cell to the
next, from the driver to the first cell of a word line, and from the last cell of a bit line to the
converter, which holds it at 0 V. Cells count from 1. Without wires cell (i, j) carries
I_ij = G_ij V_i. Then, to first order in R:

- the word line drops R sum over j' of min(j, j') I_ij' up to column j, as segment s carries the
  current of all columns j' >= s;
- the bit line rises by R sum over i' of min(d_i, d_i') I_i'j above 0 V at row i, which has
  d_i = m - i + 1 segments to the converter.

Both are linear in the voltages, so what reaches converter j is sum over i of G_eff_ij V_i with

    G_eff_ij = G_ij (1 - R (sum_j' min(j, j') G_ij' + sum_i' min(d_i, d_i') G_i'j))

(in the second sum i and i' have changed places, which it allows: it is symmetric). The next order
is in R^2. Each polarity of a pair has an array of its own, with word lines of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.programming import ProgrammedWeight
from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.errors import NodeMappingError
from rimc_onnx.ops.geometry import NodeGeometry

__all__ = ["ArrayLayout", "apply_ir_drop", "wire_loss"]

_SIEMENS = 1e-6
_MOST_LOSS = 0.5


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """How a weight lies in arrays."""

    geometry: NodeGeometry
    num_tiles: int
    """Row tiles; of a convolution each takes whole input channels."""
    tile_columns: int
    """Most bit lines of one array; wider matrices go to arrays side by side."""


def wire_loss(g_us: Float64Array, wire_ohm: float) -> Float64Array:
    """Share of the current of each cell that is lost, first order; ``g_us`` [word, bit lines].

    Sums of sums: sum_j' min(j, j') G_j' = sum over s <= j of (sum over j' >= s of G_j').
    """
    along_words = np.cumsum(np.cumsum(g_us[:, ::-1], axis=1)[:, ::-1], axis=1)
    # d_i counts from the other end.
    along_bits = np.cumsum(np.cumsum(g_us, axis=0)[::-1], axis=0)[::-1]
    return (wire_ohm * _SIEMENS) * (along_words + along_bits)


def apply_ir_drop(
    programmed: ProgrammedWeight,
    *,
    node: str,
    g_max_us: float,
    wire_ohm: float,
    layout: ArrayLayout,
) -> npt.NDArray[np.float32]:
    """The weight that the arrays answer with: ``w_realised`` less what the wires take.

    ``programmed`` has its conductances. Result and ``w_realised`` have the same shape.

    Raises:
        NodeMappingError: wires take more than half of a cell's current; first order says nothing
            about such an array.
    """
    geometry = layout.geometry
    w_arrays = geometry.matrices(programmed.w_realised).astype(np.float64)
    w_max = np.broadcast_to(programmed.w_max.astype(np.float64), geometry.columns)
    scale = w_max.reshape(len(w_arrays), 1, -1) / g_max_us
    worst = 0.0
    for pair in programmed.pairs:
        for sign, g_us in ((1.0, pair.g_pos_us), (-1.0, pair.g_neg_us)):
            lost_us, most = _lost_us(geometry.matrices(g_us), wire_ohm, layout)
            worst = max(worst, most)
            w_arrays -= (sign * pair.share) * lost_us * scale
    if worst > _MOST_LOSS:
        raise NodeMappingError(
            f"node '{node}': wires of {wire_ohm:g} ohm take {100 * worst:.0f} % of a cell's "
            f"current, beyond what first order describes. Use smaller tiles (`tile_rows`) or less "
            f"resistance."
        )
    return np.ascontiguousarray(geometry.weight(w_arrays), np.float32)


def _lost_us(
    g_us: npt.NDArray[np.float32], wire_ohm: float, layout: ArrayLayout
) -> tuple[Float64Array, float]:
    """Conductance that the wires hide, of arrays [groups, word, bit lines]; largest loss."""
    rows = layout.geometry.tile_depth(layout.num_tiles)
    lost_us = np.zeros(g_us.shape)
    worst = 0.0
    for matrix, lost in zip(g_us, lost_us, strict=True):
        for row in range(0, matrix.shape[0], rows):
            for column in range(0, matrix.shape[1], layout.tile_columns):
                part = slice(row, row + rows), slice(column, column + layout.tile_columns)
                tile_us = matrix[part].astype(np.float64)
                loss = wire_loss(tile_us, wire_ohm)
                worst = max(worst, float(loss.max()))
                lost[part] = tile_us * loss
    return lost_us, worst
