# SPDX-License-Identifier: Apache-2.0
"""What a pair of devices is expected to be off by, over the weight that it holds.

Mean and variance of :func:`.program`'s realised weights, by its own steps: the draws are a lattice
(one point for each of equally likely parts of both normals) in place of random numbers. So every
law, time and mapping that can be programmed has its expected error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.conductance_table import make_table
from rimc_onnx.device.config import DeviceConfig
from rimc_onnx.device.mapping import slice_weight
from rimc_onnx.device.programming import Cells
from rimc_onnx.device.random.keyed_draws import Purpose
from rimc_onnx.device.random.normal import Float64Array, normal_from_words

Float32Array = npt.NDArray[np.float32]

__all__ = ["KNOTS", "ExpectedArray", "PairError", "expected_array", "pair_error"]

KNOTS = 4097
"""Values of a table, at |w| / W_max = i / 4096."""
_COARSE = 257
"""Weights that the law is evaluated at, at (i / 256)^2: closest where most weights are."""
_POINTS = 256
"""Of the lattice."""
_STEP = 97
"""Of its second axis; odd, so every part of it has one point."""
_CELLS = 1 << 17
"""Of a weight at once: what is computed for them stays in the processor's caches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairError:
    """Realised less target weight of a cell, in units of W_max, at |w| = W_max i / 4096, [KNOTS].

    Of all pairs that hold the weight together, of levels the rounding included. The sign is that of
    a positive weight: a mean below zero is a loss.
    """

    mean: Float64Array
    variance: Float64Array


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpectedArray:
    """What arrays are expected to lack of a weight, by the law of their device alone."""

    error: Float32Array
    """Mean of the target less the realised weight, of the weight's shape: what is clipped, and what
    the law takes on the mean."""
    variance: Float32Array
    read_variance: Float32Array | None
    """Of the weight from one read to the next; ``None`` without read noise."""


def expected_array(
    w: Float32Array,
    config: DeviceConfig,
    time_s: float,
    w_max: Float32Array,
    column_axis: int,
    reads: Float64Array | None = None,
) -> ExpectedArray:
    """The expectation for a weight whose mapping is known.

    Args:
        w: [M, C / group, *kernel] or [K, N].
        config: the device.
        time_s: seconds since programming, as :meth:`DeviceConfig.resolve_time` gave them.
        w_max: [1] or [columns]; what is above it is clipped.
        column_axis: axis of the bit lines.
        reads: variance from read to read in units of W_max^2, [KNOTS].
    """
    table = pair_error(replace(config, scaling=None, clip_sigma=None), time_s)
    shape = [1] * w.ndim
    shape[column_axis] = -1
    c = w_max.astype(np.float32).reshape(shape if w_max.size > 1 else [1] * w.ndim)
    variance = table.variance
    if config.level_bits is not None:
        # Which level a weight is rounded to is known.
        variance = np.maximum(variance - _rounding_variance(config.level_bits, config), 0)
    mean, variances = table.mean.astype(np.float32), variance.astype(np.float32)
    read = None if reads is None else reads.astype(np.float32)
    found = ExpectedArray(
        error=np.empty(w.shape, np.float32),
        variance=np.empty(w.shape, np.float32),
        read_variance=None if read is None else np.empty(w.shape, np.float32),
    )
    together = max(1, _CELLS * len(w) // max(w.size, 1))
    for part in (np.s_[i : i + together] for i in range(0, len(w), together)):
        limit = c[part] if len(c) > 1 else c
        size = np.abs(w[part])
        u = np.divide(size, limit, out=np.zeros_like(size), where=limit > 0)
        knot = np.rint(np.minimum(u, 1, out=u) * (KNOTS - 1), out=u).astype(np.int32)
        held = np.minimum(size, limit)
        if config.level_bits is not None:
            held = _rounded(held, limit, config)
        held = held + limit * mean[knot]
        lost = w[part] - np.copysign(1, w[part]) * held
        found.error[part] = np.where(size > 0, lost, np.float32(0))
        square = np.square(limit)
        np.multiply(square, variances[knot], out=found.variance[part])
        if read is not None and found.read_variance is not None:
            np.multiply(square, read[knot], out=found.read_variance[part])
    return found


def _rounded(held: Float32Array, limit: Float32Array, config: DeviceConfig) -> Float32Array:
    """Weights of no sign as levels hold them."""
    cells, limits = (a.astype(np.float64).ravel() for a in np.broadcast_arrays(held, limit))
    return slice_weight(cells, limits, config).w_mapped.astype(np.float32).reshape(held.shape)


def _rounding_variance(level_bits: int, config: DeviceConfig) -> float:
    step = 1.0 / ((1 << (level_bits * config.num_slices)) - 1)
    return step * step / 12.0


@lru_cache(maxsize=64)
def pair_error(config: DeviceConfig, time_s: float) -> PairError:
    """The expected error of a device at a time that :meth:`DeviceConfig.resolve_time` gave."""
    u = np.square(np.arange(_COARSE) / (_COARSE - 1.0))
    mapped = slice_weight(u, np.ones(_COARSE), config)
    mean, variance = np.zeros(_COARSE), np.zeros(_COARSE)
    zero_mean, zero_variance = _device_error(np.zeros(1), config, time_s)
    for part in mapped.slices:
        device_mean, device_variance = _device_error(part.g_us, config, time_s)
        share = part.significance / config.g_max_us
        mean += (device_mean - zero_mean) * share
        variance += (device_variance + zero_variance) * (share * share / config.devices_per_weight)
    if config.level_bits is not None:
        variance += _rounding_variance(config.level_bits, config)
    at = np.arange(KNOTS) / (KNOTS - 1.0)
    return PairError(mean=np.interp(at, u, mean), variance=np.interp(at, u, variance))


def _device_error(
    g_us: Float64Array, config: DeviceConfig, time_s: float
) -> tuple[Float64Array, Float64Array]:
    """Mean and variance of one device's distance from its targets g + G_min, [n], microsiemens."""
    cells = _LatticeCells(
        "", 0, replace(config, stuck_min_frac=0.0, stuck_max_frac=0.0), make_table(config, time_s)
    )
    shift = cells.shift_us(np.tile(g_us, _POINTS), 0, 0).reshape(_POINTS, -1)
    # Sums over the first axis go row by row: the same bits on every machine.
    first = shift.sum(axis=0) / _POINTS
    second = np.square(shift).sum(axis=0) / _POINTS
    works = 1.0 - config.stuck_min_frac - config.stuck_max_frac
    first, second = works * first, works * second
    for share, g_stuck_us in (
        (config.stuck_min_frac, 0.0),
        (config.stuck_max_frac, config.g_max_us),
    ):
        first = first + share * (g_stuck_us - g_us)
        second = second + share * np.square(g_stuck_us - g_us)
    return first, np.maximum(second - first * first, 0.0)


class _LatticeCells(Cells):
    """Cells [points * n], one point of the lattice after another."""

    def normals(self, device: int, purpose: Purpose, start: int, count: int) -> Float64Array:
        """Normals of unit variance of the points, each ``count / points`` times."""
        del device, start  # a lattice has no addresses
        order = np.arange(_POINTS)
        if purpose is not Purpose.PROGRAMMING:
            order = order * _STEP % _POINTS
        words = (order * (2**32 // _POINTS) + 2**31 // _POINTS).astype(np.uint32)
        z = normal_from_words(words)
        z /= np.sqrt(np.square(z[np.argsort(order)]).cumsum()[-1] / _POINTS)
        return np.repeat(z, count // _POINTS)
