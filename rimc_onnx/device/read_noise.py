# SPDX-License-Identifier: Apache-2.0
"""The draws of read noise: a normal for every output, tile and run, as the native kernels make it.

The address of a draw is (seed, node, run, plane and tile, output). Layout, Philox 4x32-10:

========== ==========================================================
key 0, 1   the node's read key: words 0 and 1 of its draw with purpose ``READ``
counter 0  j // 64 * 16 + j % 16 for output number j; its word is j // 16 % 4
counter 1  plane * tiles + tile
counter 2  number of the run, lower 32 bits
counter 3  number of the run, upper 32 bits
========== ==========================================================

so that a vector of up to 16 lanes draws 64 outputs that lie side by side. Every step is one float32
operation that IEEE 754 rounds in one way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.draws import Purpose, random_words
from rimc_onnx.device.philox import Words, philox4x32

__all__ = ["normals_of_words", "read_key", "read_normals"]

Float32Array = npt.NDArray[np.float32]

_F32 = np.float32
_GROUP = 64
_LANES = 16

# z / (1 - 2 p) as a polynomial, highest power first, fitted for the smallest relative error:
# in w - 2.5 for w = -ln(4 p (1 - p)) below 5, in sqrt(w) - 3 for 5 <= w <= 21.6.
_CENTRE = (
    4.035462808360535e-08, 4.861039428760705e-07, -4.990565230400534e-06, -6.217992904566927e-06,
    0.00030915020033717155, -0.0017730101244524121, -0.005908171180635691, 0.3488026559352875,
    2.1233136653900146,
)  # fmt: skip
_TAIL = (
    -2.7950824005529284e-05, -0.00016246568702626973, 0.0016234691720455885, -0.004842372611165047,
    0.00822721142321825, -0.010898633860051632, 0.013330565765500069, 1.416590929031372,
    4.006434917449951,
)  # fmt: skip
_ATANH = (2 / 7, 2 / 5, 2 / 3, 2.0)
_SQRT_HALF_BITS = 0x3F3504F3


def read_key(*, seed: int, node: str) -> int:
    """The key of a node's read noise, as the attribute ``read_key`` holds it (signed 64 bits)."""
    low, high = random_words(
        seed=seed, node=node, device=0, purpose=Purpose.READ, start=0, count=2
    ).tolist()
    key = low | high << 32
    return key - 2**64 if key >= 2**63 else key


def read_normals(*, key: int, run: int, stream: int, count: int) -> Float32Array:
    """Standard normals [count] of the outputs of one read; ``stream`` is plane * tiles + tile."""
    groups = -(-count // _GROUP)
    group, lane = np.divmod(np.arange(groups * _LANES, dtype=np.uint64), np.uint64(_LANES))
    counter = (
        (group * np.uint64(_LANES) + lane) & np.uint64(0xFFFFFFFF),
        stream,
        run & 0xFFFFFFFF,
        run >> 32,
    )
    words = philox4x32(counter, (key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF))
    # [groups, word, lane]
    laid = np.stack([w.reshape(groups, _LANES) for w in words], axis=1)
    return normals_of_words(laid.reshape(-1)[:count])


def _polynomial(coefficients: tuple[float, ...], x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _F32(coefficient)
    return value


def normals_of_words(words: Words) -> Float32Array:
    """Inverse of the normal distribution, float32: absolute error under 3e-6, |z| up to 6.34.

    Bit 31 of a word is the sign, and p = (lower 31 bits + 1/2) / 2^32 is the distribution function
    at -abs(z); so complementary signs give opposite values. After Giles, "Approximating the erfinv
    function", GPU Computing Gems Jade Edition (2011), chapter 10, with coefficients fitted here.
    """
    lower = (words & np.uint32(0x7FFFFFFF)).astype(np.int32).astype(_F32)
    p = (lower + _F32(0.5)) * _F32(2.0**-32)
    a = (_F32(4.0) * p) * (_F32(1.0) - p)
    x = _F32(1.0) - (p + p)
    # a = mantissa * 2^exponent, mantissa in [sqrt(1/2), sqrt(2))
    bits = a.view(np.int32)
    exponent = (bits - np.int32(_SQRT_HALF_BITS)) >> 23
    f = (bits - (exponent << 23)).view(_F32) - _F32(1.0)
    s = f / (f + _F32(2.0))
    log_a = exponent.astype(_F32) * _F32(0.6931471805599453) + s * _polynomial(_ATANH, s * s)
    w = _F32(0.0) - log_a
    centre = _polynomial(_CENTRE, w - _F32(2.5))
    tail = _polynomial(_TAIL, np.sqrt(np.abs(w)) - _F32(3.0))
    z = x * np.where(w < _F32(5.0), centre, tail)
    sign = words & np.uint32(0x80000000)
    return (z.view(np.uint32) ^ sign).view(_F32)
