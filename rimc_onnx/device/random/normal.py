# SPDX-License-Identifier: Apache-2.0
"""Standard normals from random words, the same bits on every machine.

Only operations that IEEE 754 rounds in one way are used: ``+ - * /``, square root and ``frexp``.
``np.log`` and its like are not: their last bits change with the SIMD level of the processor.

Source: Wichura, "Algorithm AS 241: the percentage points of the normal distribution",
Applied Statistics 37 (1988) 477-484, routine PPND7 (7 digits), evaluated in float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.random.philox import Words

__all__ = ["SQRT_HALF", "Float64Array", "horner", "normal_from_words"]

Float64Array = npt.NDArray[np.float64]

_CENTRE = 0.425
_CENTRE_SQUARED = 0.180625
# AS 241, PPND7, |p - 1/2| <= 0.425; highest power first.
_A = (5.9109374720e01, 1.5929113202e02, 5.0434271938e01, 3.3871327179e00)
_B = (6.7187563600e01, 7.8757757664e01, 1.7895169469e01, 1.0)
# Same, tails with sqrt(-ln p) <= 5. The routine's far tail (> 5) is left out: the smallest p here
# is 2^-33, where sqrt(-ln p) is 4.79.
_C = (1.7023821103e-01, 1.3067284816e00, 2.7568153900e00, 1.4234372777e00)
_D = (1.2021132975e-01, 7.3700164250e-01, 1.0)

_LN_2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476
# 2 atanh(s) = s (2 + 2/3 s^2 + ... ); |s| <= 0.172 leaves a relative error under 1e-11.
_ATANH = (2 / 13, 2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)


def horner(coefficients: tuple[float, ...], x: Float64Array) -> Float64Array:
    """Horner's rule, highest power first; every product and sum is rounded by itself."""
    value = coefficients[0] * x
    for coefficient in coefficients[1:-1]:
        value += coefficient
        value *= x
    value += coefficients[-1]
    return value


def _minus_log(p: Float64Array) -> Float64Array:
    """-ln p for 2^-33 <= p < 1 without a library logarithm; relative error under 1e-10."""
    # p = mantissa * 2^exponent, mantissa / sqrt(1/2) in [0.707, 1.414)
    mantissa, exponent = np.frexp(p)
    s = (mantissa - SQRT_HALF) / (mantissa + SQRT_HALF)
    return (0.5 - exponent) * _LN_2 - s * horner(_ATANH, s * s)


def normal_from_words(words: Words) -> Float64Array:
    """Inverse of the normal distribution at p = (word + 1/2) / 2^32; same shape, float64.

    Values lie in -6.34..6.34, complementary words give opposite values exactly, and the absolute
    error is under 1e-6 (PPND7).
    """
    # p - 1/2 is exact: 33 bits.
    q = words.astype(np.float64)
    q -= 2.0**31 - 0.5
    q *= 2.0**-32
    r = _CENTRE_SQUARED - q * q
    value = horner(_A, r)
    value *= q
    value /= horner(_B, r)

    q = q.reshape(-1)
    tail = np.flatnonzero(np.abs(q) > _CENTRE)
    q_tail = q[tail]
    t = np.sqrt(_minus_log(0.5 - np.abs(q_tail)))
    t -= 1.6
    value.reshape(-1)[tail] = np.copysign(horner(_C, t) / horner(_D, t), q_tail)
    return value
