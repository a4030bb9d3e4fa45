# SPDX-License-Identifier: Apache-2.0
"""What a conversion is asked to do, checked when it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rimc_onnx.crossbar.periphery import NodeRanges, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import (
    DeviceConfig,
    IvPolynomial,
    ReadNoiseTable,
    get_preset,
    read_noise_table,
)
from rimc_onnx.errors import ConfigError
from rimc_onnx.ops.schema import IV_TERMS, MAX_RANK

__all__ = ["ConvertConfig", "NodeRanges", "PeripheryConfig", "ReadNoiseLaw"]


def _scaled(values: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(float(np.float32(value * factor)) for value in values)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Everything that decides what a converted file holds, the model and the data apart."""

    device: DeviceConfig = field(default_factory=lambda: get_preset("gaussian-relative"))
    seed: int = 0
    """Key of every draw; the same model, device and seed give the same bytes."""
    time_s: float | None = None
    """Seconds since programming; None is the first time that the device's law knows, or no time."""
    rank: int = 4
    """Rank of the adapter branches (clamped to what a node's matrix has)."""
    periphery: PeripheryConfig = field(default_factory=PeripheryConfig)
    keep_digital: tuple[str, ...] = ()
    """Shell patterns of node names that stay digital."""
    map_shared: bool = False
    """Give each of several nodes that share a weight an array of its own."""
    uncalibrated: bool = False
    """Choose scaling and clipping for a model that will not be calibrated."""
    node_devices: Mapping[str, DeviceConfig] = field(default_factory=dict)
    """The device of some nodes, by name, ``device`` with a scaling and clipping of their own."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"`seed` must lie in 0..2^63-1, got {self.seed}")
        self.device.resolve_time(self.time_s)
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"`rank` must lie in 1..{MAX_RANK}, got {self.rank}")
        if self.iv_polynomial is not None and self.device.num_slices > 1:
            raise ConfigError(
                f"device '{self.device.preset}': its iv_polynomial needs whole weights on a pair "
                f"of devices, got num_slices {self.device.num_slices}. "
                f"Use `device_reads=False`, or no slices."
            )
        if self.has_read_noise_curve and self.device.num_slices > 1:
            raise ConfigError(
                f"device '{self.device.preset}': its read_noise_curve needs whole weights on a "
                f"pair of devices, got num_slices {self.device.num_slices}. "
                f"Use `read_noise_frac` or `device_reads=False`, or no slices."
            )
        self.read_noise_table()

    @property
    def is_mapping_open(self) -> bool:
        """True where scaling or clipping is the conversion's choice."""
        return self.device.scaling is None or self.device.clip_sigma is None

    def device_of(self, node: str) -> DeviceConfig:
        """The device of a node's arrays."""
        return self.node_devices.get(node, self.device)

    @property
    def has_read_noise_curve(self) -> bool:
        """True where read noise follows the conductance, by the device model's law."""
        given = self.periphery
        is_asked_for = given.device_reads and given.read_noise_frac is None
        return is_asked_for and self.device.read_noise_curve is not None

    def read_noise_table(self) -> ReadNoiseTable | None:
        """What nodes carry of the device model's ``read_noise_curve``, where it applies."""
        if not self.has_read_noise_curve:
            return None
        return read_noise_table(self.device, self.device.resolve_time(self.time_s))

    @property
    def read_noise_law(self) -> str | None:
        """``absolute``, ``relative`` or ``curve``; None without read noise."""
        if self.has_read_noise_curve:
            return "curve"
        reads = self.reads
        return None if reads.read_noise_frac is None else reads.read_noise_law.value

    @property
    def reads(self) -> PeripheryConfig:
        """The periphery with read noise and sinh curve of the device model, where these apply."""
        given, device = self.periphery, self.device
        if not given.device_reads:
            return given
        if given.read_noise_frac is None and device.read_noise_frac is not None:
            law = ReadNoiseLaw.ABSOLUTE
            given = replace(given, read_noise_frac=device.read_noise_frac, read_noise_law=law)
        if given.iv_sinh is None and device.iv_sinh is not None:
            given = replace(given, iv_sinh=device.iv_sinh)
        return given

    @property
    def iv_polynomial(self) -> IvPolynomial | None:
        """The device model's, where it applies."""
        asked_for = not self.periphery.device_reads or self.periphery.iv_sinh is not None
        return None if asked_for else self.device.iv_polynomial

    @property
    def iv_curve(self) -> str | None:
        """Family of the I-V curve, ``sinh`` or ``polynomial``; None is a straight line."""
        if self.reads.iv_sinh is not None:
            return "sinh"
        return None if self.iv_polynomial is None else "polynomial"

    @property
    def reads_of_device(self) -> bool:
        """True where read noise or I-V curve are those of the device model."""
        follows = self.iv_polynomial is not None or self.has_read_noise_curve
        return self.reads != self.periphery or follows

    @property
    def iv_curves(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """``iv_square`` and ``iv_cube`` of all nodes, float32; zeros without a polynomial."""
        polynomial, device = self.iv_polynomial, self.device
        if polynomial is None:
            return (0.0,) * IV_TERMS, (0.0,) * IV_TERMS
        square, cube = polynomial.weight_curves(g_min_us=device.g_min_us, g_max_us=device.g_max_us)
        share = self.periphery.input_shrink
        return _scaled(square, share), _scaled(cube, share * share)

    @property
    def needs_ranges(self) -> bool:
        """True where converters or word lines have to be given an input range."""
        return self.reads.needs_ranges or self.iv_polynomial is not None
