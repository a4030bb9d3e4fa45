# SPDX-License-Identifier: Apache-2.0
"""Read noise that follows the conductance and the time of a device, as publications state it.

    sigma(t) = sigma_us(G) s(t)            G: today's conductance
    sigma(t) = G sigma_frac(G_0) s(t)      G_0: as programmed; the mean drift leads from G_0 to G
    s(t)     = sqrt(ln((t + t_read) / (2 t_read))), 1 without t_read

s is the 1/f noise that gathers between a read of t_read seconds and the time t (Nandakumar et al.,
ICECS 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

from rimc_onnx.device.curves import Curve
from rimc_onnx.device.serialization import check_number
from rimc_onnx.errors import ConfigError

__all__ = ["ReadNoiseCurve"]

_WHERE = "read_noise_curve"


@dataclass(frozen=True, kw_only=True)
class ReadNoiseCurve:
    """Standard deviation of a device from one read to the next; one of the two sigmas."""

    sigma_us: Curve | None = None
    """In microsiemens, a function of today's conductance."""
    sigma_frac: Curve | None = None
    """As a fraction of today's conductance, a function of that as programmed."""
    t_read_s: float | None = None
    """Duration of a read; the noise then grows with the time since programming."""

    def __post_init__(self) -> None:
        if (self.sigma_us is None) == (self.sigma_frac is None):
            raise ConfigError(f"{_WHERE}: give one of sigma_us and sigma_frac")
        if self.t_read_s is not None:
            object.__setattr__(self, "t_read_s", check_number(_WHERE, "t_read_s", self.t_read_s))
            if not 1e-12 <= self.t_read_s <= 1.0:
                raise ConfigError(f"{_WHERE}: need 1e-12 <= t_read_s <= 1, got {self.t_read_s}")
