# SPDX-License-Identifier: Apache-2.0
"""How a weight varies from read to read: as it is asked for, as attributes, as a variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, unique
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.device import DeviceConfig, DriftLaw, pair_shares, read_key
from rimc_onnx.device.pair_error import KNOTS
from rimc_onnx.ops.schema import NOISE_KNOTS

if TYPE_CHECKING:
    from rimc_onnx.crossbar.config import ConvertConfig

__all__ = ["ReadNoiseLaw", "read_noise_attributes", "read_variance", "variance_of_reads"]


@unique
class ReadNoiseLaw(Enum):
    """What the standard deviation of a device's read noise is a fraction of."""

    ABSOLUTE = "absolute"
    """G_max: the same for all devices, whatever they hold."""
    RELATIVE = "relative"
    """The device's own conductance."""


def read_noise_attributes(node: str, config: ConvertConfig) -> dict[str, Any]:
    """The attributes of an RRAM node that are not neutral.

    Raises:
        ValueError: the law needs conductances that the weight does not tell.
    """
    found = _attributes(config)
    if found.get("read_noise_relative") and not _weight_tells_conductances(config.device):
        raise ValueError(
            f"relative read noise needs both conductances of a pair, and the weight tells them "
            f"only with g_min_us 0, the law {DriftLaw.GAUSSIAN_RELATIVE.value}, one pair a weight "
            f"and no faults; got g_min_us {config.device.g_min_us} and {config.device.law.value}. "
            f"Use the law absolute."
        )
    return {**found, "read_key": read_key(seed=config.seed, node=node)} if found else {}


def read_variance(config: ConvertConfig) -> npt.NDArray[np.float64] | None:
    """Variance of a weight from read to read, as :func:`variance_of_reads` has it."""
    return variance_of_reads(**_attributes(config))


def variance_of_reads(
    *,
    read_noise: float = 0.0,
    read_noise_relative: int = 0,
    read_noise_curve: Sequence[float] = (0.0,),
) -> npt.NDArray[np.float64] | None:
    """Variance of a weight from read to read in units of W_max^2, at |w| / W_max = i / 4096.

    [KNOTS], of a node's attributes; ``None`` without read noise.
    """
    if not read_noise:
        return None
    u = np.arange(KNOTS) / (KNOTS - 1.0)
    if len(read_noise_curve) > 1:
        knots = np.square(np.arange(NOISE_KNOTS) / (NOISE_KNOTS - 1.0))
        return np.square(read_noise * np.interp(u, knots, read_noise_curve))
    # Absolute: both devices of a pair; relative: the one that is not at zero.
    return read_noise**2 * (u * u if read_noise_relative else np.full(KNOTS, 2.0))


def _attributes(config: ConvertConfig) -> dict[str, Any]:
    table, reads = config.read_noise_table(), config.reads
    if table is not None:
        return {"read_noise": table.read_noise, "read_noise_curve": table.knots}
    if reads.read_noise_frac is None:
        return {}
    relative = reads.read_noise_law is ReadNoiseLaw.RELATIVE
    noise = _pair_noise(config.device, reads.read_noise_frac)
    return {"read_noise": noise, "read_noise_relative": int(relative)}


def _pair_noise(device: DeviceConfig, read_noise_frac: float) -> float:
    """Read noise of a weight whose devices have ``read_noise_frac``, as a fraction of G_max.

    Pairs that share a weight add their variances: sum of share^2.
    """
    return read_noise_frac * math.sqrt(sum(share * share for share in pair_shares(device)))


def _weight_tells_conductances(device: DeviceConfig) -> bool:
    """True where sum x^2 (G+^2 + G-^2) is sum x^2 w^2: one device of every pair is at zero."""
    return (
        device.g_min_us == 0.0
        and len(pair_shares(device)) == 1
        and device.time_law is None
        and device.programming_sigma_us is None
        and not (device.stuck_min_frac or device.stuck_max_frac)
        and (
            device.law is DriftLaw.GAUSSIAN_RELATIVE
            or (device.drift_frac == 0.0 and device.drift_mean_frac == 0.0)
        )
    )
