# SPDX-License-Identifier: Apache-2.0
"""Numbers behind a DAC of few bits: cells and word lines as multiples of a step.

Sums of an array are then integers, which kernels take two at a time (docs/decisions/0025). The
steps are far below what devices and converters err by.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["CODED_BITS", "CURVE_STEPS", "on_grid"]

CODED_BITS = 8
"""A DAC of no more bits puts whole numbers on the word lines."""

CURVE_STEPS = 2048
"""Steps of a bent word line over its range: an eighth of the step of 8 bits."""

_CELL_BITS = 13

Float32Array = npt.NDArray[np.float32]


def on_grid(w: Float32Array, w_max: Float32Array, column_axis: int) -> Float32Array:
    """Cells rounded to multiples of 2^-13 of the power of two above ``w_max`` ([1] or [columns]).

    Ties go to even. A column whose step would be no normal float32 is left as it is, and so is a
    cell of more steps than float32 can count.
    """
    exponent = np.frexp(w_max.astype(np.float32))[1]
    step = np.ldexp(np.float32(1.0), exponent - _CELL_BITS).astype(np.float32)
    is_normal = step >= np.finfo(np.float32).tiny
    shape = [1] * w.ndim
    shape[column_axis] = -1
    step, is_normal = step.reshape(shape), is_normal.reshape(shape)
    safe = np.where(is_normal, step, np.float32(1.0))
    with np.errstate(over="ignore"):
        numbers = np.rint(w / safe)
    is_rounded = is_normal & np.isfinite(numbers)
    return np.where(is_rounded, numbers * safe, w).astype(np.float32, copy=False)
