# SPDX-License-Identifier: Apache-2.0
"""Programming a weight into crossbars: what the RRAM holds in place of the trained weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.config import DeviceConfig, DriftLaw, Scaling
from rimc_onnx.device.draws import Purpose, standard_normals
from rimc_onnx.device.normal import Float64Array
from rimc_onnx.errors import NodeMappingError

__all__ = ["ConductancePair", "ProgrammedWeight", "program"]

Float32Array = npt.NDArray[np.float32]

_CHUNK = 1 << 14
"""Cells at a time: the temporaries then stay in a core's cache. No influence on the result."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConductancePair:
    """What one pair of devices of every weight holds, microsiemens; shape of the weight."""

    g_pos_us: Float32Array
    g_neg_us: Float32Array
    share: float
    """Of the weight: w is the sum over its pairs of (G+ - G-) share W_max / G_max."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgrammedWeight:
    """What :func:`program` returns."""

    w_realised: Float32Array
    """Weight the conductances stand for; shape of the target weight."""
    w_max: Float32Array
    """Largest |target weight|: [1], or [columns] with ``Scaling.COLUMN``."""
    pairs: tuple[ConductancePair, ...] = ()
    """All pairs of devices; empty unless they were asked for."""


def program(
    w_target: npt.NDArray[np.floating],
    *,
    node: str,
    seed: int,
    config: DeviceConfig,
    column_axis: int,
    keep_conductances: bool = False,
) -> ProgrammedWeight:
    """Realised weight of a node, a pure function of the arguments (same bits on every machine).

    ``w_target`` is any shape, taken as float32; ``column_axis`` is its axis of outputs (0 of a
    convolution's weight [M, C / group, *kernel], 1 of a matrix [K, N]) and matters to
    ``Scaling.COLUMN`` only. The cell of a weight is its C-order index. ``seed`` is 0..2^64-1.

    For each weight, g = G_max |w| / W_max is held by a pair of devices (G_min + g, G_min), swapped
    for w < 0. Each ends at G_r = max(0, G_t + G_drift), with a draw of its own and the law of
    ``config``; W_r = (G_r+ - G_r-) W_max / G_max (Dong et al. 2025, eq. 1 and 2). Without drift the
    weight comes back bit for bit. Where W_max is 0, so are the realised weights.
    ``keep_conductances`` returns G_r+ and G_r- as well.

    Raises:
        NodeMappingError: the weight has NaN or infinite values.
        ConfigError: the seed is out of range, or the node has more than 2^34 weights.
    """
    w_target = np.ascontiguousarray(w_target, dtype=np.float32).reshape(np.shape(w_target))
    w_max = _largest(w_target, config.scaling, column_axis)
    if not np.isfinite(w_max).all():
        raise NodeMappingError(
            f"node '{node}': the weight has NaN or infinite values, no conductance can hold them. "
            f"Repair the model or leave the node digital."
        )
    w_realised = w_target.copy()
    if config.drift_frac == 0.0 and config.drift_mean_frac == 0.0 and not keep_conductances:
        return ProgrammedWeight(w_realised=w_realised, w_max=w_max)

    # Cells from one column to the next; one column of all cells where the node has one W_max.
    if config.scaling is Scaling.COLUMN:
        run = int(np.prod(w_target.shape[column_axis % w_target.ndim + 1 :], dtype=np.int64))
    else:
        run = w_target.size
    flat = w_realised.reshape(-1)
    g_us = [np.zeros_like(w_realised) for _ in range(2 if keep_conductances else 0)]
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        cells = np.arange(start, start + chunk.size)
        w_max_cell = w_max[cells // run % w_max.size].astype(np.float64)
        chunk[:], pair_us = _realise(
            chunk.astype(np.float64), w_max_cell, node, seed, config, start
        )
        for kept, held_us in zip(g_us, pair_us, strict=False):
            kept.reshape(-1)[start : start + _CHUNK] = held_us
    if not keep_conductances:
        return ProgrammedWeight(w_realised=w_realised, w_max=w_max)
    pair = ConductancePair(g_pos_us=g_us[0], g_neg_us=g_us[1], share=1.0)
    return ProgrammedWeight(w_realised=w_realised, w_max=w_max, pairs=(pair,))


def _largest(w_target: Float32Array, scaling: Scaling, column_axis: int) -> Float32Array:
    """W_max, [1] or [columns]; NaN or infinite where a weight is."""
    num_columns = 1 if scaling is Scaling.NODE else w_target.shape[column_axis]
    if w_target.size == 0:
        return np.zeros(num_columns, np.float32)
    if scaling is Scaling.NODE:
        shared = tuple(range(w_target.ndim))
    else:
        shared = tuple(a for a in range(w_target.ndim) if a != column_axis % w_target.ndim)
    # Two reductions, no temporary of the weight's size. + 0.0 turns -0.0 into 0.0.
    w_max = np.maximum(w_target.max(axis=shared), -w_target.min(axis=shared)) + np.float32(0.0)
    return np.asarray(w_max, np.float32).reshape(num_columns)


def _realise(
    w: Float64Array, w_max: Float64Array, node: str, seed: int, config: DeviceConfig, start: int
) -> tuple[Float64Array, list[Float64Array]]:
    """Realised weights of the cells from ``start``, and G_r+ and G_r-; all arrays [cells].

    Both devices are followed as their distance from the target: G_r+ - G_r- is then the exact
    target difference plus (shift+ - shift-), and a weight loses no digits to G_min.
    """
    us_per_weight = np.divide(config.g_max_us, w_max, out=np.zeros_like(w), where=w_max > 0)
    g_us = w * us_per_weight
    shift_pair_us, held_us = [], []
    for device, sign in enumerate((1.0, -1.0)):
        # The device of the weight's sign holds g, the other one nothing above G_min.
        g_target_us = np.maximum(sign * g_us, 0.0) + config.g_min_us
        z = standard_normals(
            seed=seed,
            node=node,
            device=device,
            purpose=Purpose.PROGRAMMING,
            start=start,
            count=w.size,
        )
        shift_us = z * config.drift_frac
        shift_us += config.drift_mean_frac
        if config.law is DriftLaw.GAUSSIAN_RELATIVE:
            shift_us *= g_target_us
        else:
            shift_us *= config.g_max_us
        # Not below zero conductance: G_t + shift >= 0.
        shift_pair_us.append(np.maximum(shift_us, -g_target_us))
        held_us.append(g_target_us + shift_pair_us[-1])
    return w + (shift_pair_us[0] - shift_pair_us[1]) * (w_max / config.g_max_us), held_us
