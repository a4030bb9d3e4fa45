# SPDX-License-Identifier: Apache-2.0
"""Philox 4x32: random words as a pure function of a counter and a key.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
doi 10.1145/2063384.2063405. The constants are those of the authors' Random123 library. Seven rounds
are the fewest that pass the BigCrush tests, ten are the authors' default (section 5.3, table 2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Words", "philox4x32"]

Words = npt.NDArray[np.uint32]

_WORD = 0xFFFFFFFF
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85


def philox4x32(
    counter: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike],
    key: tuple[int, int],
    *,
    rounds: int = 10,
) -> tuple[Words, Words, Words, Words]:
    """Four random words for every counter.

    ``counter`` holds four words, each a number or an array of numbers in 0..2^32-1; they broadcast
    against each other. ``key`` is two words in 0..2^32-1, the same for all counters. Each of the
    four results is uint32 in the common shape.
    """
    mask, half = np.uint64(_WORD), np.uint64(32)
    # 32-bit words in 64-bit lanes: a product of two words then keeps its upper half.
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(rounds):
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = (product_1 >> half) ^ (c1 ^ np.uint64(k0))
        c2 = (product_0 >> half) ^ (c3 ^ np.uint64(k1))
        c1 = product_1 & mask
        c3 = product_0 & mask
        k0 = (k0 + _WEYL_0) & _WORD
        k1 = (k1 + _WEYL_1) & _WORD
    w0, w1, w2, w3 = (np.asarray(word).astype(np.uint32) for word in (c0, c1, c2, c3))
    return w0, w1, w2, w3
