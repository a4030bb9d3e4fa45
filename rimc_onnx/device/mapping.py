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

__all__ = [
    "SlicedWeight",
    "WeightSlice",
    "clipped",
    "largest_weight",
    "pair_shares",
    "slice_weight",
    "weight_limits",
]

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
    w_max = _largest(w_target, config.scaling, column_axis)
    if not config.clips or w_target.size == 0 or not np.isfinite(w_max).all():
        return w_max
    return clipped(w_max, _sigma(w_target, w_max, column_axis), config.clip_sigma)


def weight_limits(
    w_target: Float32Array, scaling: Scaling, column_axis: int
) -> tuple[Float32Array, Float64Array]:
    """Largest absolute weight and standard deviation of those that share a W_max."""
    w_max = _largest(w_target, scaling, column_axis)
    return w_max, _sigma(w_target, w_max, column_axis)


def clipped(w_max: Float32Array, sigma: Float64Array, clip_sigma: float | None) -> Float32Array:
    """W_max of weights that are clipped beyond so many standard deviations."""
    if clip_sigma is None or clip_sigma == math.inf:
        return w_max
    return np.minimum(w_max, clip_sigma * sigma).astype(np.float32)


def _largest(w: Float32Array, scaling: Scaling | None, column_axis: int) -> Float32Array:
    by_column = scaling is Scaling.COLUMN
    num_columns = w.shape[column_axis] if by_column else 1
    if w.size == 0:
        return np.zeros(num_columns, np.float32)
    axis = column_axis % w.ndim
    shared = tuple(a for a in range(w.ndim) if not by_column or a != axis)
    # Two reductions, no temporary of the weight's size. + 0.0 turns -0.0 into 0.0.
    w_max = np.maximum(w.max(axis=shared), -w.min(axis=shared)) + np.float32(0.0)
    return np.asarray(w_max, np.float32).reshape(num_columns)


def _sigma(w: Float32Array, w_max: Float32Array, column_axis: int) -> Float64Array:
    """Standard deviation of the weights of each of ``w_max``."""
    inner = w.size // max(1, w_max.size)
    if w_max.size > 1:
        inner = int(np.prod(w.shape[column_axis % w.ndim + 1 :], dtype=np.int64))
    return _standard_deviation(w.reshape(-1, w_max.size, max(1, inner)), w_max)


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
