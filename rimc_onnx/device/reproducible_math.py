# SPDX-License-Identifier: Apache-2.0
"""Exponential and logarithm with the same bits on every machine.

Only operations that IEEE 754 rounds in one way are used: ``+ - * /``, ``rint``, ``frexp`` and
``ldexp``, in the order written, none fused. The series are cut where the next term is below half a
unit in the last place of float64. Another language gets the same bits from the same lines.
"""

from __future__ import annotations

import numpy as np

from rimc_onnx.device.random.normal import SQRT_HALF, Float64Array, horner

__all__ = ["exp", "log", "scalar_log"]

_LN_2 = 0.6931471805599453
# ln 2 in two parts: the upper one has 21 zero bits at its end, so k * _LN_2_HIGH is exact.
_LN_2_HIGH = 0.6931471803691238
_LN_2_LOW = 1.9082149292705877e-10
# 2 atanh(s) = s (2 + 2/3 s^2 + ... + 2/23 s^22); |s| <= 0.172.
_ATANH = (2 / 23, 2 / 21, 2 / 19, 2 / 17, 2 / 15, 2 / 13, 2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)
# 1/13!, ..., 1/1!, 1; |r| <= 0.347.
_EXP = (
    *(1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320),
    *(1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0),
)


def log(x: Float64Array) -> Float64Array:
    """Ln x of positive, normal numbers; relative error under 1e-15, and 0 at 1."""
    # x = m 2^k with m in [sqrt(1/2), sqrt(2))
    m, k = np.frexp(x)
    is_small = m < SQRT_HALF
    m = m + m * is_small
    s = (m - 1.0) / (m + 1.0)
    return (k - is_small.astype(np.int32)) * _LN_2 + s * horner(_ATANH, s * s)


def scalar_log(x: float) -> float:
    """The same for one number."""
    return float(log(np.asarray([x], np.float64))[0])


def exp(x: Float64Array) -> Float64Array:
    """e^x for -700 <= x <= 700; relative error under 1e-15."""
    k = np.rint(x * (1.0 / _LN_2))
    r = x - k * _LN_2_HIGH
    r -= k * _LN_2_LOW
    return np.ldexp(horner(_EXP, r), k.astype(np.int32))
