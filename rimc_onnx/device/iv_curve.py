# SPDX-License-Identifier: Apache-2.0
"""The sinh family of I-V curves: I = G0 sinh(k V) / k, G0 the slope at zero.

V is the voltage of a word line, so the curve is a function of the input in front of the array.
With u = V / V_max and K = k V_max it is sinh(K u) / sinh(K), equal to u at both ends. Inputs that
use the share a of the voltage range see K a. The error against the tangent is about (K a u)^2 / 6.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CURVE_TERMS", "sinh", "sinh_curve"]

CURVE_TERMS = 14
"""Terms of the series: for K up to ``opset.MAX_IV_SINH`` what is left out is below float32."""


def _terms(k: float) -> tuple[list[float], float]:
    """Terms of the series of sinh(k), and their sum, in float64 and in this order."""
    terms = [k]
    total = 0.0 + k
    for n in range(1, CURVE_TERMS):
        terms.append(terms[-1] * (k * k) / float(2 * n * (2 * n + 1)))
        total = total + terms[-1]
    return terms, total


def sinh(k: float) -> float:
    """Hyperbolic sine of 0 <= k <= ``opset.MAX_IV_SINH``, the same bits on every machine."""
    return _terms(k)[1]


def sinh_curve(k: float) -> list[np.float32]:
    """sinh(K u) / (u sinh(K)) as powers of u^2, lowest first."""
    terms, total = _terms(k)
    return [np.float32(term / total) for term in terms]
