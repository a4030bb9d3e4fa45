# SPDX-License-Identifier: Apache-2.0
"""From weights to target conductances: W_max, clipping, levels and slices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.config import DeviceConfig, Scaling
from rimc_onnx.device.random.normal import Float64Array

__all__ = ["SlicedWeight", "WeightSlice", "largest_weight", "pair_shares", "slice_weight"]

Float32Array = npt.NDArray[np.float32]

_STEPS = float(1 << 20)
"""Weights are rounded to W_max / 2^20 for their standard deviation: whole numbers, whose sums do
not depend on the order of additions."""
_BLOCK = 1 << 20
"""Weights at a time; the sum of their squares stays below 2^63."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSlice:
    """What one pair of devices is asked to hold, cells [n]."""

    g_us: Float64Array
    """Above G_min; its sign says which device of the pair holds it."""
    significance: float
    """Weight of the pair in the sum; 1 where there is one slice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlicedWeight:
    """The slices of some cells, and what they stand for without error, [n]."""

    w_mapped: Float64Array
    slices: tuple[WeightSlice, ...]


def largest_weight(w_target: Float32Array, config: DeviceConfig, column_axis: int) -> Float32Array:
    """W_max, [1] or [columns] with ``Scaling.COLUMN``; NaN or infinite where a weight is.

    With ``clip_sigma``, at most so many standard deviations of the weights that share it.
    """
    num_columns = 1 if config.scaling is Scaling.NODE else w_target.shape[column_axis]
    if w_target.size == 0:
        return np.zeros(num_columns, np.float32)
    axis = column_axis % w_target.ndim
    if config.scaling is Scaling.NODE:
        shared = tuple(range(w_target.ndim))
    else:
        shared = tuple(a for a in range(w_target.ndim) if a != axis)
    # Two reductions, no temporary of the weight's size. + 0.0 turns -0.0 into 0.0.
    w_max = np.maximum(w_target.max(axis=shared), -w_target.min(axis=shared)) + np.float32(0.0)
    w_max = np.asarray(w_max, np.float32).reshape(num_columns)
    if config.clip_sigma is None or not np.isfinite(w_max).all():
        return w_max
    if config.scaling is Scaling.NODE:
        columns = w_target.reshape(1, 1, -1)
    else:
        shape = w_target.shape
        inner = int(np.prod(shape[axis + 1 :], dtype=np.int64))
        columns = w_target.reshape(-1, num_columns, inner)
    limit = config.clip_sigma * _standard_deviation(columns, w_max)
    return np.minimum(w_max, limit.astype(np.float32))


def _standard_deviation(w: Float32Array, w_max: Float32Array) -> Float64Array:
    """Of every column of w [outer, columns, inner], [columns]; exact sums of rounded weights."""
    per_weight = np.divide(
        _STEPS, w_max.astype(np.float64), out=np.zeros(w_max.size), where=w_max > 0
    )
    count = w.shape[0] * w.shape[2]
    sigma = np.zeros(w_max.size)
    for c in range(w_max.size):
        first = second = 0
        for block in _blocks(w[:, c, :]):
            steps = np.rint(block.astype(np.float64) * per_weight[c]).astype(np.int64)
            first += int(steps.sum())
            second += int((steps * steps).sum())
        # whole numbers to the end: n sum(q^2) - sum(q)^2 cancels nothing
        variance = (count * second - first * first) / (count * count)
        sigma[c] = math.sqrt(variance) * (float(w_max[c]) / _STEPS)
    return sigma


def _blocks(column: Float32Array) -> Iterator[Float32Array]:
    """A column [outer, inner] in pieces of a bounded size."""
    flat = column.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def slice_weight(w: Float64Array, w_max: Float64Array, config: DeviceConfig) -> SlicedWeight:
    """Targets of the cells w [n] with their W_max [n].

    With levels, n = rint(w (2^bits - 1) / W_max) with bits = level_bits * num_slices; slice s holds
    the bits s level_bits .. (s + 1) level_bits - 1 of |n|.
    """
    if config.level_bits is None:
        us_per_weight = np.divide(config.g_max_us, w_max, out=np.zeros_like(w), where=w_max > 0)
        one = WeightSlice(g_us=w * us_per_weight, significance=1.0)
        return SlicedWeight(w_mapped=w, slices=(one,))
    bits = config.level_bits
    top = float((1 << (bits * config.num_slices)) - 1)
    per_weight = np.divide(top, w_max, out=np.zeros_like(w), where=w_max > 0)
    codes = np.rint(w * per_weight)
    sizes = np.abs(codes).astype(np.int64)
    digit_top = (1 << bits) - 1
    slices = []
    for s in range(config.num_slices):
        digit = ((sizes >> (s * bits)) & digit_top).astype(np.float64)
        g_us = np.copysign(digit * (config.g_max_us / digit_top), codes)
        slices.append(WeightSlice(g_us=g_us, significance=float(digit_top << (s * bits)) / top))
    return SlicedWeight(w_mapped=codes * (w_max / top), slices=tuple(slices))


def pair_shares(config: DeviceConfig) -> tuple[float, ...]:
    """Share of the weight of every pair of devices, in the order of their numbers.

    w is the sum over pairs of (G+ - G-) share W_max / G_max.
    """
    zero = slice_weight(np.zeros(1), np.ones(1), config)
    return tuple(
        part.significance / config.devices_per_weight
        for part in zero.slices
        for _ in range(config.devices_per_weight)
    )
