# SPDX-License-Identifier: Apache-2.0
"""The draws of read noise: a normal for every output, tile and run, as the native kernels make it.

The address of a draw is (seed, node, run, plane and tile, output). An output lies in row r and
column c: of a matrix product in those of y [..., N], of a convolution in channel r and at position
c = image * positions of an image + position. Layout, Philox 4x32 with 7 rounds (:mod:`.philox`):

========== ==========================================================
key 0      lower 32 bits of the node's read key: words 0 and 1 of its draw with purpose ``READ``
key 1      its upper 32 bits, exclusive or the upper 32 bits of the number of the run
counter 0  c
counter 1  r // 8
counter 2  plane * tiles + tile
counter 3  number of the run, lower 32 bits
========== ==========================================================

Word r % 8 // 2 of the result holds the draw: its lower 16 bits where r is even, its upper 16 bits
where r is odd.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.random.keyed_draws import Purpose, random_words
from rimc_onnx.device.random.philox import philox4x32

__all__ = ["CUBICS", "normals_of_bits", "read_key", "read_normals"]

Float32Array = npt.NDArray[np.float32]

_F32 = np.float32
_ROUNDS = 7
_ROWS = 8

CUBICS = (
    (4.38748025894165, 0.0, 0.0, 0.0),
    (4.08040189743042, 0.0, 0.0, 0.0),
    (4.162042140960693, -0.08191706985235214, 0.0, 0.0),
    (4.197457790374756, -0.12354300916194916, 0.010176633484661579, -0.0003753938653972),
    (4.04000186920166, -0.0647716224193573, 0.002685639774426818, -4.987278953194618e-05),
    (3.8764801025390625, -0.03393837437033653, 0.0007041641511023045, -6.546209533553338e-06),
    (3.7059624195098877, -0.017797768115997314, 0.00018420095148030668, -8.555875865567941e-07),
    (3.528108596801758, -0.009366839192807674, 4.8308633267879486e-05, -1.1213315076474828e-07),
    (3.3419785499572754, -0.0049511645920574665, 1.2703966604021844e-05, -1.473007316121766e-08),
    (3.1465580463409424, -0.002632349031046033, 3.3542053188284626e-06, -1.9421479979797596e-09),
    (2.9405336380004883, -0.0014100035186856985, 8.900645411813457e-07, -2.5729493535742165e-10),
    (2.722242593765259, -0.0007625504513271153, 2.375962253609032e-07, -3.428618500223024e-11),
    (2.489577531814575, -0.0004176068468950689, 6.38407229303084e-08, -4.6009337832664254e-12),
    (2.2398757934570312, -0.0002325753594050184, 1.725580567324414e-08, -6.229315565979554e-13),
    (1.9700051546096802, -0.00013261813728604466, 4.676733222908069e-09, -8.601201483904655e-14),
    (1.685178279876709, -7.959784852573648e-05, 1.3254665143236366e-09, -1.4219313186213285e-14),
)  # fmt: skip
"""abs(z) over a = 0.5, 1.5, .. 32767.5: row i, lowest power first, for 2^(i - 1) <= a < 2^i.

Made by ``runtime/src/kernels/make_read_normals.py``. abs(z) is the mean of the normal distribution
over its share of 2^-16 (within 2e-4), times a factor that makes the variance of all 2^16 values 1.
"""


def read_key(*, seed: int, node: str) -> int:
    """The key of a node's read noise, as the attribute ``read_key`` holds it (signed 64 bits)."""
    low, high = random_words(
        seed=seed, node=node, device=0, purpose=Purpose.READ, start=0, count=2
    ).tolist()
    key = low | high << 32
    return key - 2**64 if key >= 2**63 else key


def read_normals(*, key: int, run: int, stream: int, rows: int, columns: int) -> Float32Array:
    """Standard normals [rows, columns] of the outputs of one read.

    ``stream`` is plane * tiles + tile; ``rows`` are rows of a product or channels of a convolution.
    """
    counter = (
        np.arange(columns, dtype=np.uint64),
        np.arange(-(-rows // _ROWS), dtype=np.uint64)[:, None],
        stream,
        run & 0xFFFFFFFF,
    )
    halves = (key & 0xFFFFFFFF, (key >> 32 ^ run >> 32) & 0xFFFFFFFF)
    words = np.stack(philox4x32(counter, halves, rounds=_ROUNDS), axis=1)
    bits = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=2)
    return normals_of_bits(bits.astype(np.uint16).reshape(len(bits) * _ROWS, columns)[:rows])


def normals_of_bits(bits: npt.NDArray[np.uint16]) -> Float32Array:
    """A standard normal, float32, of each 16 random bits: variance 1, abs(z) up to 4.39.

    With s the bits as a signed number, z has the sign of s + 1/2, and its magnitude is a polynomial
    in a = abs(s + 1/2), by Horner's rule with fused multiply-add (IEEE 754); complements give
    opposite values.
    """
    signed: npt.NDArray[Any] = bits.view(np.int16) + 0.5
    a = np.abs(signed)
    # a = mantissa * 2^exponent, mantissa in [1/2, 1)
    cubic = np.asarray(CUBICS, _F32)[np.frexp(a)[1]]
    value = cubic[..., 3]
    for power in (2, 1, 0):
        # float64 holds these sums exactly, so there is one rounding.
        value = (value * a + cubic[..., power]).astype(_F32)
    return np.where(signed < 0, -value, value)
