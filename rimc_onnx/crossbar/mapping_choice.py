# SPDX-License-Identifier: Apache-2.0
"""Scaling and clipping of one node, chosen by the expected error of its output.

A cell of size x = |w| with its W_max c is set to u = min(x / c, 1). With h(u) and v(u) the mean and
the variance of its error in units of c (:mod:`rimc_onnx.device.pair_error`, read noise added to v),
lambda = sum u h / sum u^2 the gain that all cells have in common and k = 1 / max(1 + lambda, 0.1)
the magnitude that takes it back, what a calibration leaves of a cell's error is

    e(c) = ((x - c)+ - c k (h - lambda u))^2 + (c k)^2 v

The least sum of e E[x_i^2] is looked for, x_i the input of the cell's word line, over all cells but
those that SRAM will hold exactly, for which the largest stand. Without a calibration k is 1, lambda
is 0 and SRAM holds none; but the share g of itself that an output loses, sum x lost / sum x^2, then
multiplies over the nodes in a row where independent errors only add up, so with n of them
(n - 1) g^2 sum x^2 E[x_i^2] comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.crossbar.read_noise import read_variance
from rimc_onnx.device import DeviceConfig, Scaling
from rimc_onnx.device.mapping import clipped, weight_limits
from rimc_onnx.device.pair_error import KNOTS, PairError, pair_error

__all__ = ["choose_mapping"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_CLIP_SIGMAS = (
    *(10.0, 8.0, 7.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.75, 2.5, 2.25, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0),
)
"""Limits that are tried, in standard deviations."""
_SAMPLE = 1 << 14
"""Cells that stand for a node."""
_SIMPLER = 1.03
"""The first candidate whose error is at most so many times the least is taken: one W_max a node
before one a bit line, no clipping before some, less before more."""
_LEAST_GAIN = 0.1
"""Of the array's own gain, that a magnitude takes back."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cells:
    """The cells that stand for a node, [n]."""

    x: F64
    """|w|"""
    column: npt.NDArray[np.int64]
    """Bit line."""
    power: F64
    """E[x_i^2] of the word line; ones where nothing is known."""

    @classmethod
    def of(cls, w: F32, column_axis: int, input_power: F64 | None) -> _Cells:
        columns, size = w.shape[column_axis], w.size
        depth = size // columns
        step = max(1, size // _SAMPLE)
        # Every bit line and every word line has its turn.
        while math.gcd(step, columns) > 1 or math.gcd(step, depth) > 1:
            step += 1
        cells = np.arange(0, size, step)
        column, row = (
            np.divmod(cells, depth) if column_axis == 0 else np.divmod(cells, columns)[::-1]
        )
        power = np.ones(len(cells))
        if input_power is not None:
            groups = input_power.size // depth
            power = input_power.reshape(groups, depth)[column * groups // columns, row]
        x = np.abs(w.reshape(-1)[cells].astype(np.float64))
        return cls(x=x, column=column, power=power)


def choose_mapping(
    w: F32,
    *,
    config: ConvertConfig,
    column_axis: int,
    held_frac: float = 0.0,
    num_nodes: int = 1,
    input_power: F64 | None = None,
) -> DeviceConfig:
    """The device of ``config`` with scaling and clipping of the weight where they are open.

    Args:
        w: a weight [M, C / group, *kernel] or [K, N].
        config: device, time and read noise.
        column_axis: axis of the bit lines, 0 or 1.
        held_frac: share of all cells that SRAM will hold exactly.
        num_nodes: nodes whose gains multiply where there is no calibration.
        input_power: E[x_i^2] of every word line, group by group; None is the same for all.
    """
    device = config.device
    if device.scaling is not None and device.clip_sigma is not None:
        return device
    if not np.isfinite(w).all() or w.size == 0:  # refused where it is programmed
        return replace(device, scaling=device.scaling or Scaling.NODE, clip_sigma=math.inf)
    cells = _Cells.of(w, column_axis, input_power)
    table = _with_reads(config)
    found = []
    for candidate, w_max in _candidates(device, w, column_axis):
        if config.uncalibrated:
            error = _error_without_calibration(cells, w_max, table, num_nodes)
        else:
            error = _error(cells, w_max, table, held_frac)
        found.append((candidate, error))
    least = min(error for _, error in found)
    return next(candidate for candidate, error in found if error <= _SIMPLER * least)


def _candidates(
    device: DeviceConfig, w: F32, column_axis: int
) -> Iterator[tuple[DeviceConfig, F32]]:
    """Devices whose mapping is complete, the simplest first, and W_max: [1] or [columns]."""
    scalings = tuple(Scaling) if device.scaling is None else (device.scaling,)
    clips = (math.inf, *_CLIP_SIGMAS) if device.clip_sigma is None else (device.clip_sigma,)
    limits = {scaling: weight_limits(w, scaling, column_axis) for scaling in scalings}
    for clip in clips:
        for scaling, (largest, sigma) in limits.items():
            limit = clipped(largest, sigma, clip)
            # A limit that clips nothing is the candidate without one.
            if clip == clips[0] or (limit < largest).any():
                yield replace(device, scaling=scaling, clip_sigma=clip), limit


def _with_reads(config: ConvertConfig) -> PairError:
    """The error of a pair with what its reads add."""
    device = replace(config.device, scaling=None, clip_sigma=None)
    table = pair_error(device, device.resolve_time(config.time_s))
    noise = read_variance(config)
    return table if noise is None else replace(table, variance=table.variance + noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Set:
    """The cells as one candidate sets them, [n]."""

    c: F64
    """W_max."""
    u: F64
    mean: F64
    """Of the error, in units of ``c``."""
    variance: F64

    @classmethod
    def of(cls, cells: _Cells, w_max: F32, table: PairError) -> _Set:
        limit = w_max.astype(np.float64)
        c = limit[cells.column] if limit.size > 1 else np.full(cells.x.size, limit[0])
        u = np.minimum(np.divide(cells.x, c, out=np.zeros_like(c), where=c > 0), 1.0)
        knot = np.rint(u * (KNOTS - 1)).astype(np.int64)
        return cls(c=c, u=u, mean=table.mean[knot], variance=table.variance[knot])


def _error(cells: _Cells, w_max: F32, table: PairError, held_frac: float) -> float:
    """The sum of e E[x_i^2] over the cells that SRAM will not hold."""
    at = _Set.of(cells, w_max, table)
    weight = cells.power * (at.c * at.c) * at.u
    power = _sum(weight * at.u)
    common = _sum(weight * at.mean) / power if power > 0.0 else 0.0
    gain = 1.0 / max(1.0 + common, _LEAST_GAIN)
    lost = np.maximum(cells.x - at.c, 0.0) - at.c * gain * (at.mean - common * at.u)
    error = cells.power * (lost * lost + (at.c * gain) ** 2 * at.variance)
    held = int(held_frac * error.size)
    if not held:
        return _sum(error)
    # Those above the threshold are held, of its equals as many as there is room for.
    threshold = np.partition(error, error.size - held)[error.size - held]
    above = error > threshold
    return _sum(np.where(above, 0.0, error)) - (held - int(above.sum())) * float(threshold)


def _error_without_calibration(
    cells: _Cells, w_max: F32, table: PairError, num_nodes: int
) -> float:
    at = _Set.of(cells, w_max, table)
    lost = np.maximum(cells.x - at.c, 0.0) - at.c * at.mean
    error = _sum(cells.power * (lost * lost + at.c**2 * at.variance))
    power = _sum(cells.power * cells.x * cells.x)
    common = _sum(cells.power * cells.x * lost)
    return error + (num_nodes - 1) * common * common / power if power > 0.0 else error


def _sum(values: F64) -> float:
    """One after the other: the same bits on every machine."""
    return float(values.cumsum()[-1])
