# SPDX-License-Identifier: Apache-2.0
"""The law of a device at one time as numbers and tables, what other code than numpy is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rimc_onnx.device.conductance_table import Column, make_table
from rimc_onnx.device.config import DeviceConfig, DriftLaw

__all__ = ["CellLaw", "CellProgrammer", "cell_law", "stuck_words"]

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellLaw:
    """All that the steps of :mod:`.programming` know of a device, at one time.

    Columns are as in a :class:`.LawTable`, from ``g_min_us`` up.
    """

    drift_frac: float
    drift_mean_frac: float
    reference_slope: float
    """1 where the deviation is a fraction of G_t, 0 where it is one of G_max."""
    reference_us: float
    """The error of programming without ``programming_sigma_us`` is
    (z drift_frac + drift_mean_frac) (reference_slope G_t + reference_us)."""
    g_max_us: float
    g_min_us: float
    programming_sigma_us: Column | None
    mean_us: Column | None
    drift_sigma_us: Column | None
    nu_mean: Column | None
    nu_sigma: Column | None
    log_time: float
    """ln(t / t0) of nu."""
    stuck_min_words: int
    """Of 2^32 words, how many leave a device stuck at ``g_min_us``: the lowest."""
    stuck_max_words: int
    """At ``g_min_us + g_max_us``: the highest."""
    clips: int
    """1 where weights beyond W_max are cut."""
    level_bits: int
    """0: any conductance."""
    num_slices: int
    devices_per_weight: int

    def values(self) -> dict[str, Column | int | None]:
        """The fields by name; arrays are not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def cell_law(config: DeviceConfig, time_s: float) -> CellLaw:
    """The law of a device at a time that :meth:`DeviceConfig.resolve_time` gave."""
    table = make_table(config, time_s)
    relative = config.law is DriftLaw.GAUSSIAN_RELATIVE
    return CellLaw(
        drift_frac=config.drift_frac,
        drift_mean_frac=config.drift_mean_frac,
        reference_slope=1.0 if relative else 0.0,
        reference_us=0.0 if relative else config.g_max_us,
        g_max_us=config.g_max_us,
        g_min_us=config.g_min_us,
        programming_sigma_us=table.programming_sigma_us,
        mean_us=table.mean_us,
        drift_sigma_us=table.drift_sigma_us,
        nu_mean=table.nu_mean,
        nu_sigma=table.nu_sigma,
        log_time=table.log_time,
        stuck_min_words=stuck_words(config.stuck_min_frac),
        stuck_max_words=stuck_words(config.stuck_max_frac),
        clips=int(config.clips),
        level_bits=config.level_bits or 0,
        num_slices=config.num_slices,
        devices_per_weight=config.devices_per_weight,
    )


def stuck_words(frac: float) -> int:
    """How many of the 2^32 random words are a share of them."""
    return int(frac * 2.0**32)


class CellProgrammer(Protocol):
    """Programs all cells of a node, in the numpy code's stead and with its bits."""

    def __call__(
        self,
        w_target: Float32Array,
        *,
        w_max: Float32Array,
        run: int,
        node: str,
        seed: int,
        law: Mapping[str, Column | int | None],
    ) -> Float32Array:
        """Realised weights [cells]; cell i belongs to column i // run % w_max.size.

        ``law`` is what :meth:`CellLaw.values` gives.
        """
        ...
