# SPDX-License-Identifier: Apache-2.0
"""The random numbers of a device: each one a pure function of its own address.

The address is (seed, node name, device of the pair, cell, purpose). Nothing depends on the order
of calls, on chunks or on threads, so any cell can be drawn alone.

Layout of a draw, fixed because files depend on it (Philox 4x32-10, :mod:`.philox`):

========== ==========================================================
key 0, 1   seed, lower and upper 32 bits
counter 0  cell // 4; word ``cell % 4`` of the result is the cell's
counter 1  purpose * 2^16 + device
counter 2  bytes 0..3 of sha256(node name in UTF-8), little-endian
counter 3  bytes 4..7 of the same
========== ==========================================================
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, unique

import numpy as np

from rimc_onnx.device.random.normal import Float64Array, normal_from_words
from rimc_onnx.device.random.philox import Words, philox4x32
from rimc_onnx.errors import ConfigError

__all__ = ["Purpose", "check_draws", "random_words", "standard_normals"]

_WORDS_PER_BLOCK = 4
_MAX_CELLS = _WORDS_PER_BLOCK * 2**32


@unique
class Purpose(IntEnum):
    """What a number is drawn for. Values are part of the file format: never reused or changed."""

    PROGRAMMING = 0
    """Deviation of a device's conductance from its target."""
    READ_OUT = 1
    """Error of a measurement of the realised weight."""
    DRIFT = 2
    """Direction and size of a device's drift, the same at all times."""
    FAULT = 3
    """Whether a device is stuck, for good."""
    READ = 32
    """Key of the read noise of a node (:mod:`.read_noise`)."""
    ADC_GAIN = 33
    """Gain error of a converter; the cell is tile * bit lines + bit line."""
    ADC_OFFSET = 34
    """Offset error of a converter; the cell as for the gain."""
    SENSITIVITY = 64
    """Test error of a teacher's weights; no property of a device."""
    SOLVER_START = 65
    """Start of a solver's descent; no property of a device."""


def check_draws(*, seed: int, node: str, start: int, count: int) -> None:
    """Check that cells ``start`` .. ``start + count - 1`` of a node have numbers under ``seed``.

    Raises:
        ConfigError: the seed does not fit 64 bits, or a cell lies outside 0..2^34-1.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must lie in 0..2^64-1, got {seed}")
    if start < 0 or count < 0 or start + count > _MAX_CELLS:
        raise ConfigError(
            f"node '{node}': cells {start}..{start + count - 1} lie outside 0..2^34-1, the cells "
            f"that one node can have"
        )


def random_words(
    *, seed: int, node: str, device: int, purpose: Purpose, start: int, count: int
) -> Words:
    """Random words [count], uint32, of the cells ``start`` .. ``start + count - 1``.

    ``device`` is the device's number within its cell (0 is G+, 1 is G- of a pair), below 2^16.

    Raises:
        ConfigError: the seed does not fit 64 bits, or a cell lies outside 0..2^34-1.
    """
    check_draws(seed=seed, node=node, start=start, count=count)
    name = hashlib.sha256(node.encode("utf-8")).digest()
    first = start // _WORDS_PER_BLOCK
    num_blocks = -(-(start + count) // _WORDS_PER_BLOCK) - first
    counter = (
        np.arange(first, first + num_blocks, dtype=np.uint64),
        (purpose << 16) + device,
        int.from_bytes(name[0:4], "little"),
        int.from_bytes(name[4:8], "little"),
    )
    words = np.empty((num_blocks, _WORDS_PER_BLOCK), np.uint32)
    for column, word in enumerate(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))):
        words[:, column] = word
    skip = start - first * _WORDS_PER_BLOCK
    return words.reshape(-1)[skip : skip + count]


def standard_normals(
    *, seed: int, node: str, device: int, purpose: Purpose, start: int, count: int
) -> Float64Array:
    """Standard normals [count], float64; arguments and errors as :func:`random_words`."""
    return normal_from_words(
        random_words(seed=seed, node=node, device=device, purpose=purpose, start=start, count=count)
    )
