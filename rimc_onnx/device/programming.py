# SPDX-License-Identifier: Apache-2.0
"""Programming a weight into crossbars: what the RRAM holds in place of the trained weight.

A cell is a fixed sequence of float64 operations that IEEE 754 rounds in one way (``+ - * /``,
square root, comparisons, ``rint``, ``frexp``, ``ldexp``), none fused: the same bits on every
machine and in every language. For each device of a cell, with its target G_t:

1. z = its draw for programming; shift = (rho z + mu) G_t or G_max, or z sigma[G_t]
2. additive drift: shift = shift + mean[G_t], shift = shift + z' sigma_drift[G_t]
3. power drift: G = max(0, G_t + shift), nu = |nu_mean[G_t] + nu_sigma[G_t] z'|,
   shift = G exp(max(-nu ln(t / t0), -700)) - G_t
4. shift = max(shift, -G_t): no conductance below zero
5. a stuck device: shift = G_stuck - G_t

[G_t] reads a table (:mod:`.law_table`); steps that a model does not have are left out, with their
draws. The weight is W_r = W + (sum over its pairs of (shift+ - shift-) share) (W_max / G_max), with
W after clipping and rounding to levels, and pairs in the order of their devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.cell_law import CellProgrammer, cell_law, stuck_words
from rimc_onnx.device.conductance_table import LawTable, Positions, make_table
from rimc_onnx.device.config import DeviceConfig, DriftLaw, Scaling
from rimc_onnx.device.mapping import largest_weight, pair_shares, slice_weight
from rimc_onnx.device.random.keyed_draws import Purpose, check_draws, random_words, standard_normals
from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.device.reproducible_math import exp
from rimc_onnx.errors import NodeMappingError

__all__ = ["Cells", "ConductancePair", "ProgrammedWeight", "has_error", "program"]

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
    """Largest |target weight| after clipping: [1], or [columns] with ``Scaling.COLUMN``."""
    pairs: tuple[ConductancePair, ...] = ()
    """All pairs of devices; empty unless they were asked for."""


def program(
    w_target: npt.NDArray[np.floating],
    *,
    node: str,
    seed: int,
    config: DeviceConfig,
    column_axis: int,
    time_s: float | None = None,
    programmer: CellProgrammer | None = None,
    keep_conductances: bool = False,
) -> ProgrammedWeight:
    """Realised weight of a node, a pure function of the arguments (same bits on every machine).

    ``w_target`` is any shape, taken as float32; ``column_axis`` is its axis of outputs (0 of a
    convolution's weight [M, C / group, *kernel], 1 of a matrix [K, N]) and matters to
    ``Scaling.COLUMN`` only. The cell of a weight is its C-order index. ``seed`` is 0..2^64-1.
    ``time_s`` is seconds since programming; None is the first time of the device's law.

    For each weight, g = G_max |w| / W_max is held by a pair of devices (G_min + g, G_min), swapped
    for w < 0. Each ends at G_r = max(0, G_t + G_drift), with a draw of its own and the law of
    ``config``; W_r = (G_r+ - G_r-) W_max / G_max (Dong et al. 2025, eq. 1 and 2). Without drift the
    weight comes back bit for bit, clipped and rounded to levels where ``config`` says so. Where
    W_max is 0, so are the realised weights. ``keep_conductances`` returns G_r+ and G_r- as well.

    ``programmer`` does the cells instead of numpy (the native library has one, many times as fast),
    except where conductances are kept, which it does not give.

    Raises:
        NodeMappingError: the weight has NaN or infinite values.
        ConfigError: the seed or the time is out of range, or the node has more than 2^34 weights.
    """
    time_s = config.resolve_time(time_s)
    w_target = np.ascontiguousarray(w_target, dtype=np.float32).reshape(np.shape(w_target))
    w_max = largest_weight(w_target, config, column_axis)
    if not np.isfinite(w_max).all():
        raise NodeMappingError(
            f"node '{node}': the weight has NaN or infinite values, no conductance can hold them. "
            f"Repair the model or leave the node digital."
        )
    w_realised = w_target.copy()
    is_ideal = not has_error(config)
    is_exact = is_ideal and config.level_bits is None and not config.clips
    if is_exact and not keep_conductances:
        return ProgrammedWeight(w_realised=w_realised, w_max=w_max)

    # Cells from one column to the next; one column of all cells where the node has one W_max.
    if config.scaling is Scaling.COLUMN:
        run = int(np.prod(w_target.shape[column_axis % w_target.ndim + 1 :], dtype=np.int64))
    else:
        run = w_target.size
    shares = pair_shares(config) if keep_conductances else ()
    pairs = tuple(
        ConductancePair(
            g_pos_us=np.zeros_like(w_target), g_neg_us=np.zeros_like(w_target), share=share
        )
        for share in shares
    )
    flat = w_realised.reshape(-1)
    if programmer is not None and flat.size > 0 and not keep_conductances:
        check_draws(seed=seed, node=node, start=0, count=flat.size)
        law = cell_law(config, time_s).values()
        flat[:] = programmer(flat, w_max=w_max, run=run, node=node, seed=seed, law=law)
        return ProgrammedWeight(w_realised=w_realised, w_max=w_max)
    cells = Cells(node, seed, config, make_table(config, time_s), pairs)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        numbers = np.arange(start, start + chunk.size)
        w_max_cell = w_max[numbers // run % w_max.size].astype(np.float64)
        chunk[:] = cells.program(chunk.astype(np.float64), w_max_cell, start, is_ideal)
    return ProgrammedWeight(w_realised=w_realised, w_max=w_max, pairs=pairs)


def has_error(config: DeviceConfig) -> bool:
    """False for a device that holds its target exactly, at all times."""
    return bool(
        config.drift_frac
        or config.drift_mean_frac
        or config.programming_sigma_us is not None
        or config.time_law is not None
        or config.stuck_min_frac
        or config.stuck_max_frac
    )


@dataclass(frozen=True, eq=False)
class Cells:
    """The devices of one node at one time; ``normals`` says where their draws come from."""

    node: str
    seed: int
    config: DeviceConfig
    table: LawTable
    pairs: tuple[ConductancePair, ...] = ()
    """Where conductances are kept; empty where they are not."""

    def program(
        self, w: Float64Array, w_max: Float64Array, start: int, is_ideal: bool
    ) -> Float64Array:
        """Realised weights of the cells from ``start``; all arrays [cells].

        Devices are followed as their distance from the target: G_r+ - G_r- is then the exact target
        difference plus (shift+ - shift-), and a weight loses no digits to G_min.
        """
        config = self.config
        if config.clips:
            # + 0.0: which zero is the larger one is the processor's choice.
            w = np.minimum(np.maximum(w, -w_max), w_max) + 0.0
        mapped = slice_weight(w, w_max, config)
        if is_ideal and not self.pairs:
            return mapped.w_mapped + 0.0
        total = None
        for s, part in enumerate(mapped.slices):
            share = part.significance / config.devices_per_weight
            for replica in range(config.devices_per_weight):
                pair = 2 * (s * config.devices_per_weight + replica)
                # The device of the weight's sign holds g, the other one nothing above G_min.
                shift = self.shift_us(part.g_us, pair, start)
                negative = self.shift_us(-part.g_us, pair + 1, start)
                if self.pairs:
                    self._keep(self.pairs[pair // 2], part.g_us, shift, negative, start)
                shift -= negative
                shift *= share
                total = shift if total is None else total + shift
        if total is None:
            raise ValueError("a weight has one pair of devices or more")
        # + 0.0: no shift is 0, never -0, which numpy's maximum gives or not by the processor.
        return mapped.w_mapped + (total + 0.0) * (w_max / config.g_max_us)

    def _keep(
        self,
        kept: ConductancePair,
        g_us: Float64Array,
        shift_us: Float64Array,
        shift_neg_us: Float64Array,
        start: int,
    ) -> None:
        """Writes what the cells from ``start`` hold."""
        cells = slice(start, start + g_us.size)
        g_min_us = self.config.g_min_us
        kept.g_pos_us.reshape(-1)[cells] = np.maximum(g_us, 0.0) + g_min_us + shift_us
        kept.g_neg_us.reshape(-1)[cells] = np.maximum(-g_us, 0.0) + g_min_us + shift_neg_us

    def shift_us(self, g_us: Float64Array, device: int, start: int) -> Float64Array:
        """G_r - G_t of one device of every cell, its target max(g, 0) + G_min."""
        g_target_us = np.maximum(g_us, 0.0) + self.config.g_min_us
        at = None if self.table.is_empty else self.table.locate(g_target_us)
        shift_us = self._programming_us(g_target_us, at, device, start)
        if at is not None:
            shift_us = self._drifted_us(shift_us, g_target_us, at, device, start)
        # Not below zero conductance: G_t + shift >= 0.
        shift_us = np.maximum(shift_us, -g_target_us)
        return self._with_faults(shift_us, g_target_us, device, start)

    def _programming_us(
        self, g_target_us: Float64Array, at: Positions | None, device: int, start: int
    ) -> Float64Array:
        config, sigma_us = self.config, self.table.programming_sigma_us
        if at is not None and sigma_us is not None:
            z = self.normals(device, Purpose.PROGRAMMING, start, g_target_us.size)
            z *= at.read(sigma_us)
            return z
        if not (config.drift_frac or config.drift_mean_frac):
            return np.zeros_like(g_target_us)
        z = self.normals(device, Purpose.PROGRAMMING, start, g_target_us.size)
        z *= config.drift_frac
        z += config.drift_mean_frac
        z *= g_target_us if config.law is DriftLaw.GAUSSIAN_RELATIVE else config.g_max_us
        return z

    def _drifted_us(
        self,
        shift_us: Float64Array,
        g_target_us: Float64Array,
        at: Positions,
        device: int,
        start: int,
    ) -> Float64Array:
        table = self.table
        if table.mean_us is not None:
            shift_us += at.read(table.mean_us)
        if table.drift_sigma_us is not None:
            z = self.normals(device, Purpose.DRIFT, start, g_target_us.size)
            z *= at.read(table.drift_sigma_us)
            shift_us += z
        if table.nu_mean is None and table.nu_sigma is None:
            return shift_us
        nu = np.zeros_like(g_target_us)
        if table.nu_sigma is not None:
            nu = self.normals(device, Purpose.DRIFT, start, g_target_us.size)
            nu *= at.read(table.nu_sigma)
        if table.nu_mean is not None:
            nu += at.read(table.nu_mean)
        g_now_us = np.maximum(g_target_us + shift_us, 0.0)
        # At e^-700 nothing is left, and exp reaches no further.
        g_now_us *= exp(np.maximum(np.abs(nu) * -table.log_time, -700.0))
        g_now_us -= g_target_us
        return g_now_us

    def _with_faults(
        self, shift_us: Float64Array, g_target_us: Float64Array, device: int, start: int
    ) -> Float64Array:
        """Stuck at the bottom: words below stuck_min 2^32; at the top: the last stuck_max 2^32."""
        config = self.config
        if not (config.stuck_min_frac or config.stuck_max_frac):
            return shift_us
        words = random_words(
            seed=self.seed,
            node=self.node,
            device=device,
            purpose=Purpose.FAULT,
            start=start,
            count=shift_us.size,
        ).astype(np.int64)
        stuck_min = words < stuck_words(config.stuck_min_frac)
        stuck_max = words >= 2**32 - stuck_words(config.stuck_max_frac)
        top_us = config.g_min_us + config.g_max_us
        shift_us[stuck_min] = (config.g_min_us - g_target_us)[stuck_min]
        shift_us[stuck_max] = (top_us - g_target_us)[stuck_max]
        return shift_us

    def normals(self, device: int, purpose: Purpose, start: int, count: int) -> Float64Array:
        """Standard normals of one device of the cells from ``start``, [count]."""
        return standard_normals(
            seed=self.seed,
            node=self.node,
            device=device,
            purpose=purpose,
            start=start,
            count=count,
        )
