# SPDX-License-Identifier: Apache-2.0
"""Programming a weight into crossbars: what the RRAM holds in place of the trained weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.config import DeviceConfig, DriftLaw, Scaling
from rimc_onnx.device.draws import Purpose, check_draws, standard_normals
from rimc_onnx.device.normal import Float64Array
from rimc_onnx.errors import NodeMappingError

__all__ = ["CellLaw", "ProgrammedWeight", "Realise", "cell_law", "program"]

Float32Array = npt.NDArray[np.float32]

_CHUNK = 1 << 14
"""Cells at a time: the temporaries then stay in a core's cache. No influence on the result."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgrammedWeight:
    """What :func:`program` returns."""

    w_realised: Float32Array
    """Weight the conductances stand for; shape of the target weight."""
    w_max: Float32Array
    """Largest |target weight|: [1], or [columns] with ``Scaling.COLUMN``."""


@dataclass(frozen=True, kw_only=True)
class CellLaw:
    """A device's deviation from its target G_t as numbers, what other code than numpy is told.

    shift = max(-G_t, (z * drift_frac + drift_mean_frac) * (reference_slope * G_t + reference_us))
    """

    drift_frac: float
    drift_mean_frac: float
    reference_slope: float
    """1 where the deviation is a fraction of G_t, 0 where it is one of G_max."""
    reference_us: float
    g_max_us: float
    g_min_us: float


def cell_law(config: DeviceConfig) -> CellLaw | None:
    """The law of ``config`` as numbers; None where they don't say all of it: numpy does it then."""
    if config.law not in {DriftLaw.GAUSSIAN_RELATIVE, DriftLaw.GAUSSIAN_ABSOLUTE}:
        return None
    relative = config.law is DriftLaw.GAUSSIAN_RELATIVE
    return CellLaw(
        drift_frac=config.drift_frac,
        drift_mean_frac=config.drift_mean_frac,
        reference_slope=1.0 if relative else 0.0,
        reference_us=0.0 if relative else config.g_max_us,
        g_max_us=config.g_max_us,
        g_min_us=config.g_min_us,
    )


class Realise(Protocol):
    """Programs all cells of a node, in the numpy code's stead and with its bits."""

    def __call__(
        self,
        w_target: Float32Array,
        *,
        w_max: Float32Array,
        run: int,
        node: str,
        seed: int,
        law: Mapping[str, float],
    ) -> Float32Array:
        """Realised weights [cells]; cell i belongs to column i // run % w_max.size."""
        ...


def program(
    w_target: npt.NDArray[np.floating],
    *,
    node: str,
    seed: int,
    config: DeviceConfig,
    column_axis: int,
    realise: Realise | None = None,
) -> ProgrammedWeight:
    """Realised weight of a node, a pure function of the arguments (same bits on every machine).

    ``w_target`` is any shape, taken as float32; ``column_axis`` is its axis of outputs (0 of a
    convolution's weight [M, C / group, *kernel], 1 of a matrix [K, N]) and matters to
    ``Scaling.COLUMN`` only. The cell of a weight is its C-order index. ``seed`` is 0..2^64-1.

    For each weight, g = G_max |w| / W_max is held by a pair of devices (G_min + g, G_min), swapped
    for w < 0. Each ends at G_r = max(0, G_t + G_drift), with a draw of its own and the law of
    ``config``; W_r = (G_r+ - G_r-) W_max / G_max (Dong et al. 2025, eq. 1 and 2). Without drift the
    weight comes back bit for bit. Where W_max is 0, so are the realised weights.

    ``realise`` does the cells instead of numpy (the native library has one, many times as fast)
    wherever :func:`cell_law` says all of the law.

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
    if config.drift_frac == 0.0 and config.drift_mean_frac == 0.0:
        return ProgrammedWeight(w_realised=w_realised, w_max=w_max)

    # Cells from one column to the next; one column of all cells where the node has one W_max.
    if config.scaling is Scaling.COLUMN:
        run = int(np.prod(w_target.shape[column_axis % w_target.ndim + 1 :], dtype=np.int64))
    else:
        run = w_target.size
    flat = w_realised.reshape(-1)
    law = cell_law(config)
    if realise is not None and law is not None and flat.size > 0:
        check_draws(seed=seed, node=node, start=0, count=flat.size)
        flat[:] = realise(flat, w_max=w_max, run=run, node=node, seed=seed, law=asdict(law))
        return ProgrammedWeight(w_realised=w_realised, w_max=w_max)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        cells = np.arange(start, start + chunk.size)
        w_max_cell = w_max[cells // run % w_max.size].astype(np.float64)
        chunk[:] = _realise(chunk.astype(np.float64), w_max_cell, node, seed, config, start)
    return ProgrammedWeight(w_realised=w_realised, w_max=w_max)


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
) -> Float64Array:
    """Realised weights of the cells from ``start``; all arrays [cells].

    Both devices are followed as their distance from the target: G_r+ - G_r- is then the exact
    target difference plus (shift+ - shift-), and a weight loses no digits to G_min.
    """
    us_per_weight = np.divide(config.g_max_us, w_max, out=np.zeros_like(w), where=w_max > 0)
    g_us = w * us_per_weight
    shift_pair_us = []
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
    # + 0.0: no shift is 0, never -0, which numpy's maximum gives or not depending on the processor.
    return w + (shift_pair_us[0] - shift_pair_us[1] + 0.0) * (w_max / config.g_max_us)
