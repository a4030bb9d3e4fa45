# SPDX-License-Identifier: Apache-2.0
"""Read noise of a pair over its weight at one time: what a node carries of a device's law.

The weight w of a node tells one device of a pair from the other if the smaller one is where the
mean of the law has a device of target g_min: it is at G_low, and the other one at
G_low + G_max |w| / W_max. So the variance of the pair is a function of |w| / W_max, and the node
has its root as a table. Another language gets the same bits from the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rimc_onnx.device.config import DeviceConfig
from rimc_onnx.device.mapping import pair_shares
from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.device.reproducible_math import exp, scalar_log
from rimc_onnx.device.time_laws import PowerDecay
from rimc_onnx.errors import ConfigError
from rimc_onnx.ops.schema import NOISE_KNOTS

__all__ = ["ReadNoiseTable", "read_noise_table"]

_HALVINGS = 60
"""Of the range of targets: what is left is below the resolution of float64."""


@dataclass(frozen=True, kw_only=True)
class ReadNoiseTable:
    """``read_noise`` and ``read_noise_curve`` of a node."""

    top_frac: float
    """Largest standard deviation of a pair, as a fraction of G_max."""
    read_noise: float
    """The same of a weight: that of its parallel pairs' mean."""
    knots: tuple[float, ...]
    """[NOISE_KNOTS] standard deviations at |w| = W_max (i / (NOISE_KNOTS - 1))^2, over the largest;
    float32."""


def read_noise_table(device: DeviceConfig, time_s: float) -> ReadNoiseTable:
    """The table of a device with a ``read_noise_curve``, ``time_s`` after programming.

    Raises:
        ConfigError: the noise of a pair is larger than G_max, or none at any weight.
    """
    low_us = np.maximum(_mean_path(device, np.asarray([device.g_min_us]), time_s), 0.0)
    share = np.arange(NOISE_KNOTS, dtype=np.float64) / float(NOISE_KNOTS - 1)
    g_us = low_us + device.g_max_us * (share * share)
    sigma = _sigma_us(device, np.concatenate([low_us, g_us]), time_s)
    pair: Float64Array = np.sqrt(sigma[1:] * sigma[1:] + sigma[0] * sigma[0]) / device.g_max_us
    top = float(pair.max())
    # Pairs that share a weight add their variances: sum of share^2.
    whole = top * float(np.sqrt(sum(s * s for s in pair_shares(device))))
    if not 0.0 < top <= 1.0:
        raise ConfigError(
            f"device '{device.preset}': the read noise of its read_noise_curve must be above 0 and "
            f"at most g_max_us, got {top * device.g_max_us:g} of {device.g_max_us:g} microsiemens"
        )
    knots = (pair / top).astype(np.float32).tolist()
    return ReadNoiseTable(top_frac=top, read_noise=whole, knots=tuple(knots))


def _sigma_us(device: DeviceConfig, g_us: Float64Array, time_s: float) -> Float64Array:
    """Of devices that have the conductances [n] today, in microsiemens, [n]."""
    law = device.read_noise_curve
    if law is None:
        raise ValueError(f"device '{device.preset}' has no read_noise_curve")
    if law.sigma_us is not None:
        sigma = np.maximum(law.sigma_us.at(g_us), 0.0)
    else:
        programmed = _programmed(device, g_us, time_s)
        curve = law.sigma_frac
        sigma = g_us * np.maximum(curve.at(programmed), 0.0) if curve else np.zeros_like(g_us)
    if law.t_read_s is None:
        return sigma
    spread = scalar_log((time_s + law.t_read_s) / (2.0 * law.t_read_s))
    return sigma * float(np.sqrt(max(spread, 0.0)))


def _mean_path(device: DeviceConfig, g_us: Float64Array, time_s: float) -> Float64Array:
    """Where the mean of the law has devices of the targets [n] today, [n]."""
    law = device.time_law
    if isinstance(law, PowerDecay):
        return g_us * exp(-(law.nu_mean.at(g_us) * scalar_log(time_s / law.t0_s)))
    if law is None:
        return g_us
    return g_us + law.drift(g_us, device.programming_sigma(g_us), time_s)[0]


def _programmed(device: DeviceConfig, g_us: Float64Array, time_s: float) -> Float64Array:
    """The targets whose mean is [n] today: by halving the range that devices are set to."""
    low = np.zeros_like(g_us) + device.g_min_us
    high = low + device.g_max_us
    for _ in range(_HALVINGS):
        middle = (low + high) * 0.5
        is_below = _mean_path(device, middle, time_s) < g_us
        low = np.where(is_below, middle, low)
        high = np.where(is_below, high, middle)
    return high
