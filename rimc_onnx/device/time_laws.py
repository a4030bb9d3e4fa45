# SPDX-License-Identifier: Apache-2.0
"""What happens to a device's conductance after programming.

A law gives marginals: mean and standard deviation at a time t. The path of one device is this:

    additive laws   G(t) = G_t + mean(t) + sigma_programming * z + sigma_drift(t) * z'
    power law       G(t) = (G_t + sigma_programming * z) * (t / t0)^-nu
                    nu = |nu_mean + nu_sigma * z'|

z and z' are two draws of the device that no time changes, so 1 d continues 1 s: a device keeps the
direction that it drifts in. Publications state marginals only; that is the one assumption added.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from rimc_onnx.device.curves import Curve
from rimc_onnx.device.duration import round_time
from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.device.reproducible_math import scalar_log
from rimc_onnx.device.serialization import check_number, check_numbers
from rimc_onnx.errors import ConfigError

__all__ = [
    "LogRelaxation",
    "PowerDecay",
    "SigmaAtTimes",
    "TimeAxis",
    "TimeLaw",
]


@unique
class TimeAxis(Enum):
    """What is interpolated between two measured times."""

    LOG = "log"
    """Linear in ln t."""
    LINEAR = "linear"
    """Linear in t."""


def _time(where: str, name: str, value: Any) -> float:
    return round_time(check_number(where, name, value))


@dataclass(frozen=True, kw_only=True)
class SigmaAtTimes:
    """Measured at ``times_s``, with ``programming_sigma_us`` at ``t0_s``.

    Mean and variance are interpolated between neighbouring times: var = (1 - a) var_i + a var_i+1.
    ``sigma_us`` is the whole deviation at its time, programming included, as a function of the
    conductance after the mean drift; ``mean_us`` is a function of the target.
    """

    kind: ClassVar[str] = "sigma-at-times"
    t0_s: float
    """When ``programming_sigma_us`` was measured."""
    axis: TimeAxis = TimeAxis.LOG
    times_s: tuple[float, ...] = ()
    """Rising, after ``t0_s``."""
    sigma_us: tuple[Curve, ...] = ()
    """One for each of ``times_s``."""
    mean_us: tuple[Curve, ...] = ()
    """One for each of ``times_s``, or none: no mean drift."""

    def __post_init__(self) -> None:
        where = f"time law {self.kind}"
        object.__setattr__(self, "t0_s", _time(where, "t0_s", self.t0_s))
        times = check_numbers(where, "times_s", self.times_s)
        object.__setattr__(self, "times_s", tuple(map(round_time, times)))
        if any(a >= b for a, b in pairwise((self.t0_s, *self.times_s))):
            raise ConfigError(f"{where}: times_s must rise from t0_s, got {list(self.times_s)}")
        if len(self.sigma_us) != len(times) or len(self.mean_us) not in {0, len(times)}:
            raise ConfigError(
                f"{where}: needs a sigma_us for each of {len(times)} times_s and as many mean_us, "
                f"or none; got {len(self.sigma_us)} and {len(self.mean_us)}"
            )
        if self.axis is TimeAxis.LOG and not self.t0_s > 0:
            raise ConfigError(f"{where}: a log axis needs t0_s above 0, got {self.t0_s}")

    @property
    def time_range_s(self) -> tuple[float, float]:
        """First and last valid time."""
        return self.t0_s, (self.t0_s, *self.times_s)[-1]

    def drift(
        self, g_us: Float64Array, programming_sigma_us: Float64Array, time_s: float
    ) -> tuple[Float64Array, Float64Array]:
        """Mean shift and sigma_drift in microsiemens at targets [n], each [n]."""
        zero = np.zeros_like(g_us)
        before = (zero, programming_sigma_us * programming_sigma_us)
        t_before = self.t0_s
        for i, t in enumerate(self.times_s):
            mean = self.mean_us[i].at(g_us) if self.mean_us else zero
            sigma = np.maximum(self.sigma_us[i].at(np.maximum(g_us + mean, 0.0)), 0.0)
            after = (mean, sigma * sigma)
            if time_s <= t:
                a = self._share(t_before, t, time_s)
                mean, variance = ((1.0 - a) * x + a * y for x, y in zip(before, after, strict=True))
                drift = variance - programming_sigma_us * programming_sigma_us
                return mean, np.sqrt(np.maximum(drift, 0.0))
            before, t_before = after, t
        return zero, zero

    def _share(self, start_s: float, end_s: float, time_s: float) -> float:
        if self.axis is TimeAxis.LINEAR:
            return (time_s - start_s) / (end_s - start_s)
        return scalar_log(time_s / start_s) / scalar_log(end_s / start_s)


@dataclass(frozen=True, kw_only=True)
class LogRelaxation:
    """mean = mean_us_per_ln L, sigma_drift = sigma_us + sigma_us_per_ln L, with L = ln(t / t0)."""

    kind: ClassVar[str] = "log-relaxation"
    t0_s: float
    t_max_s: float
    """Last valid time."""
    mean_us_per_ln: float = 0.0
    sigma_us: float = 0.0
    """Relaxation between programming and ``t0_s``."""
    sigma_us_per_ln: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self)
        for name in ("mean_us_per_ln", "sigma_us", "sigma_us_per_ln"):
            value = check_number(f"time law {self.kind}", name, getattr(self, name))
            object.__setattr__(self, name, value)
        if self.sigma_us < 0 or self.sigma_us_per_ln < 0:
            raise ConfigError(
                f"time law {self.kind}: sigma_us and sigma_us_per_ln must be 0 or more, got "
                f"{self.sigma_us} and {self.sigma_us_per_ln}"
            )

    @property
    def time_range_s(self) -> tuple[float, float]:
        """First and last valid time."""
        return self.t0_s, self.t_max_s

    def drift(
        self, g_us: Float64Array, programming_sigma_us: Float64Array, time_s: float
    ) -> tuple[Float64Array, Float64Array]:
        """Mean shift and sigma_drift in microsiemens at targets [n], each [n]."""
        log_time = scalar_log(time_s / self.t0_s)
        zero = np.zeros_like(g_us + programming_sigma_us)
        sigma = self.sigma_us + self.sigma_us_per_ln * log_time
        return zero + self.mean_us_per_ln * log_time, zero + sigma


@dataclass(frozen=True, kw_only=True)
class PowerDecay:
    """G(t) = G(t0) (t / t0)^-nu, with nu = |nu_mean + nu_sigma z| of each device."""

    kind: ClassVar[str] = "power-decay"
    t0_s: float
    t_max_s: float
    """Last valid time."""
    nu_mean: Curve
    """Of the target conductance."""
    nu_sigma: Curve

    def __post_init__(self) -> None:
        _check_range(self)

    @property
    def time_range_s(self) -> tuple[float, float]:
        """First and last valid time."""
        return self.t0_s, self.t_max_s


TimeLaw = SigmaAtTimes | LogRelaxation | PowerDecay


def _check_range(law: LogRelaxation | PowerDecay) -> None:
    where = f"time law {law.kind}"
    for name in ("t0_s", "t_max_s"):
        object.__setattr__(law, name, _time(where, name, getattr(law, name)))
    if not 0.0 < law.t0_s <= law.t_max_s:
        raise ConfigError(f"{where}: need 0 < t0_s <= t_max_s, got {law.t0_s} and {law.t_max_s}")
