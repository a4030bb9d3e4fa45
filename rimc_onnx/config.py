# SPDX-License-Identifier: Apache-2.0
"""What a conversion is asked to do, checked when it is written down."""

from __future__ import annotations

from dataclasses import dataclass, field

from rimc_onnx.device import DeviceConfig, get_preset
from rimc_onnx.errors import ConfigError
from rimc_onnx.opset import MAX_RANK

__all__ = ["ConvertConfig", "NodeRanges", "PeripheryConfig"]

_MAX_BITS = 16
"""Converters beyond 16 bits are finer than the fp32 arithmetic that simulates them."""


def _check_bits(name: str, bits: int | None, lowest: int) -> None:
    if bits is not None and not lowest <= bits <= _MAX_BITS:
        raise ConfigError(
            f"{name} must lie in {lowest}..{_MAX_BITS} bits, got {bits}. Use none for an ideal one."
        )


@dataclass(frozen=True, kw_only=True)
class PeripheryConfig:
    """Converters around the arrays; ``None`` means ideal (SPEC section 3)."""

    tile_rows: int | None = None
    """Word lines of one array; ``None`` is one array of any height."""
    dac_bits: int | None = None
    """Resolution of the word-line drivers."""
    adc_bits: int | None = None
    """Resolution of the bit-line converters, sign included."""

    def __post_init__(self) -> None:
        if self.tile_rows is not None and self.tile_rows < 1:
            raise ConfigError(
                f"tile_rows must be 1 or more, got {self.tile_rows}. Use none for untiled arrays."
            )
        _check_bits("dac_bits", self.dac_bits, 2)
        _check_bits("adc_bits", self.adc_bits, 2)

    @property
    def needs_ranges(self) -> bool:
        """True where converters have to be given an input range."""
        return self.dac_bits is not None or self.adc_bits is not None


@dataclass(frozen=True, kw_only=True)
class NodeRanges:
    """Full scale of the converters of one RRAM node, in the units of x and of x W."""

    dac_range: float = 1.0
    dac_signed: bool = True
    adc_range: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.dac_range > 0 or not all(r > 0 for r in self.adc_range):
            raise ConfigError(
                f"converter ranges must be positive, got DAC {self.dac_range}, "
                f"ADC {min(self.adc_range)}"
            )


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

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie in 0..2^63-1, got {self.seed}")
        self.device.resolve_time(self.time_s)
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"rank must lie in 1..{MAX_RANK}, got {self.rank}")
