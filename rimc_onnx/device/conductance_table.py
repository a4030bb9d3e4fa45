# SPDX-License-Identifier: Apache-2.0
"""A device law at one time, tabulated over the conductance.

Once the time is fixed, mean and deviation of a device depend on its target conductance alone. So
curves are evaluated at 4097 equally spaced targets, once a node, and cells interpolate: one short
routine serves every law, with no transcendental function but the power law's exponential.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rimc_onnx.device.config import DeviceConfig
from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.device.reproducible_math import scalar_log
from rimc_onnx.device.time_laws import PowerDecay

__all__ = ["INTERVALS", "Column", "LawTable", "Positions", "make_table"]

INTERVALS = 4096
"""Straight pieces of a table; part of the meaning of a file. Curves of the presets are off by under
5e-5 of their largest value, and by under 1e-3 in the one piece in which a clamp bends (tested)."""


Column = Float64Array | float
"""Knots [INTERVALS + 1], or the one value that all of them have: reading either gives the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Where conductances lie in a table: interval [n], and share of it [n] behind."""

    interval: np.ndarray[tuple[int], np.dtype[np.int64]]
    share: Float64Array

    def read(self, knots: Column) -> Column:
        """Values [n] of a column: a + (b - a) * share; a constant is itself."""
        if isinstance(knots, float):
            return knots
        value: Float64Array = np.take(knots[1:] - knots[:-1], self.interval)
        value *= self.share
        value += np.take(knots, self.interval)
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class LawTable:
    """Columns [INTERVALS + 1] at targets from ``g_low_us`` up, microsiemens but for nu.

    Columns that a law does not have are None: they cost nothing and draw nothing.
    """

    g_low_us: float
    per_us: float
    """Intervals per microsiemens."""
    programming_sigma_us: Column | None
    """None: the closed form of a gaussian law."""
    mean_us: Column | None
    drift_sigma_us: Column | None
    nu_mean: Column | None
    nu_sigma: Column | None
    log_time: float
    """ln(t / t0) of a power law."""

    @property
    def is_empty(self) -> bool:
        """True where no cell has to read the table."""
        columns = (self.programming_sigma_us, self.mean_us, self.drift_sigma_us)
        return all(c is None for c in (*columns, self.nu_mean, self.nu_sigma))

    def locate(self, g_us: Float64Array) -> Positions:
        """Positions of targets [n] of at least ``g_low_us``."""
        at = (g_us - self.g_low_us) * self.per_us
        interval = np.minimum(at.astype(np.int64), INTERVALS - 1)
        at -= interval
        return Positions(interval=interval, share=at)


def make_table(config: DeviceConfig, time_s: float) -> LawTable:
    """The table of a device at a time that :meth:`DeviceConfig.resolve_time` gave."""
    g_us: Float64Array = np.arange(INTERVALS + 1, dtype=np.float64)
    g_us = config.g_min_us + g_us * (config.g_max_us / INTERVALS)
    sigma = config.programming_sigma(g_us)
    law = config.time_law
    mean = drift = nu_mean = nu_sigma = None
    log_time = 0.0
    if isinstance(law, PowerDecay):
        log_time = scalar_log(time_s / law.t0_s)
        if log_time != 0.0:
            nu_mean, nu_sigma = law.nu_mean.at(g_us), law.nu_sigma.at(g_us)
    elif law is not None:
        mean, drift = law.drift(g_us, sigma, time_s)
    return LawTable(
        g_low_us=config.g_min_us,
        per_us=INTERVALS / config.g_max_us,
        programming_sigma_us=_column(sigma) if config.programming_sigma_us is not None else None,
        mean_us=_column(mean),
        drift_sigma_us=_column(drift),
        nu_mean=_column(nu_mean),
        nu_sigma=_column(nu_sigma),
        log_time=log_time,
    )


def _column(knots: Float64Array | None) -> Column | None:
    """None for zeros, a number for a constant."""
    if knots is None or not knots.any():
        return None
    return float(knots[0]) if (knots == knots[0]).all() else knots
