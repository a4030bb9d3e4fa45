# SPDX-License-Identifier: Apache-2.0
"""What a conversion is asked to do, checked when it is written down."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, unique

import numpy as np

from rimc_onnx.device import (
    DeviceConfig,
    IvPolynomial,
    ReadNoiseTable,
    get_preset,
    read_noise_table,
)
from rimc_onnx.errors import ConfigError
from rimc_onnx.ops.schema import IV_TERMS, MAX_IV_SINH, MAX_RANK

__all__ = ["ConvertConfig", "NodeRanges", "PeripheryConfig", "ReadNoiseLaw"]

_MAX_BITS = 16
"""Converters beyond 16 bits are finer than the fp32 arithmetic that simulates them."""

_MAX_CONVERTER_ERROR = 0.15
"""A draw of 6.3 standard deviations still leaves a gain above 0."""

_MAX_WIRE_OHM = 1e3
"""Far beyond any wire between two cells; a typing error."""


def _check_bits(name: str, bits: int | None, lowest: int) -> None:
    if bits is not None and not lowest <= bits <= _MAX_BITS:
        raise ConfigError(
            f"{name} must lie in {lowest}..{_MAX_BITS} bits, got {bits}. Use none for an ideal one."
        )


def _check_share(name: str, value: float | None, most: float, *, least: float = 0.0) -> None:
    """Above ``least`` and at most ``most``; NaN is neither."""
    if value is not None and not least < value <= most:
        raise ConfigError(f"{name} must be above {least:g} and at most {most:g}, got {value}")


@unique
class ReadNoiseLaw(Enum):
    """What the standard deviation of a device's read noise is a fraction of."""

    ABSOLUTE = "absolute"
    """G_max: the same for all devices, whatever they hold."""
    RELATIVE = "relative"
    """The device's own conductance."""


@dataclass(frozen=True, kw_only=True)
class PeripheryConfig:
    """What surrounds the arrays; ``None`` means ideal (SPEC section 3)."""

    tile_rows: int | None = None
    """Word lines of one array; ``None`` is one array of any height."""
    dac_bits: int | None = None
    """Resolution of the word-line drivers."""
    adc_bits: int | None = None
    """Resolution of the bit-line converters, sign included."""
    dac_serial_bits: int | None = None
    """Bits of an input code that the word lines take at a time; ``None`` is all at once."""
    iv_sinh: float | None = None
    """K of the devices' current over voltage, sinh(K u) for u from -1 to 1 over the input range."""
    input_shrink: float = 1.0
    """Share of the devices' voltage range that the inputs use; less is more linear, but the ADC
    keeps its full scale (Lin et al. 2026)."""
    adc_gain_error_frac: float | None = None
    """Standard deviation of a converter's gain, drawn once for every tile and bit line."""
    adc_offset_error_frac: float | None = None
    """The same of its offset, as a fraction of full scale."""
    read_noise_frac: float | None = None
    """Standard deviation of a device's conductance from one read to the next; ``read_noise_law``
    says of what."""
    read_noise_law: ReadNoiseLaw = ReadNoiseLaw.ABSOLUTE
    wire_ohm: float | None = None
    """Resistance of a word line and of a bit line from one cell to the next, ohm."""
    device_reads: bool = True
    """Where ``read_noise_frac`` is None, use that of the device model, and where ``iv_sinh`` is
    None, its I-V curve; as far as the model states them."""
    range_percentile: float = 99.99
    """Share of the absolute values of the data, in percent, that a converter's range holds;
    50 or more."""

    def __post_init__(self) -> None:
        if self.tile_rows is not None and self.tile_rows < 1:
            raise ConfigError(
                f"tile_rows must be 1 or more, got {self.tile_rows}. Use none for untiled arrays."
            )
        _check_bits("dac_bits", self.dac_bits, 2)
        _check_bits("adc_bits", self.adc_bits, 2)
        self._check_word_lines()
        for name in ("adc_gain_error_frac", "adc_offset_error_frac"):
            _check_share(name, getattr(self, name), _MAX_CONVERTER_ERROR)
            if getattr(self, name) is not None and self.adc_bits is None:
                raise ConfigError(f"{name} is an error of an ADC, and adc_bits is none. Set it.")
        _check_share("read_noise_frac", self.read_noise_frac, 1.0)
        if not isinstance(self.read_noise_law, ReadNoiseLaw):
            raise ConfigError(f"read_noise_law must be a ReadNoiseLaw, got {self.read_noise_law!r}")
        _check_share("wire_ohm", self.wire_ohm, _MAX_WIRE_OHM)
        if not 50.0 <= self.range_percentile <= 100.0:  # less clips most of the data
            raise ConfigError(
                f"range_percentile must lie in 50..100 percent, got {self.range_percentile}"
            )

    def _check_word_lines(self) -> None:
        if self.dac_serial_bits is not None:
            if self.dac_bits is None:
                raise ConfigError(
                    f"dac_serial_bits is {self.dac_serial_bits}, and there are no input bits to "
                    f"take in turn. Set dac_bits."
                )
            if not 1 <= self.dac_serial_bits < self.dac_bits:
                raise ConfigError(
                    f"dac_serial_bits must lie in 1..{self.dac_bits - 1} with dac_bits "
                    f"{self.dac_bits}, got {self.dac_serial_bits}. Use none for all at once."
                )
        _check_share("iv_sinh", self.iv_sinh, MAX_IV_SINH)
        _check_share("input_shrink", self.input_shrink, 1.0)

    @property
    def needs_ranges(self) -> bool:
        """True where converters or word lines have to be given an input range."""
        parts = (self.dac_bits, self.adc_bits, self.iv_sinh)
        return any(part is not None for part in parts)


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
        if self.iv_polynomial is not None and self.device.num_slices > 1:
            raise ConfigError(
                f"device '{self.device.preset}': its iv_polynomial needs whole weights on a pair "
                f"of devices, got num_slices {self.device.num_slices}. Use --ideal-reads, or no "
                f"slices."
            )
        if self.has_read_noise_curve and self.device.num_slices > 1:
            raise ConfigError(
                f"device '{self.device.preset}': its read_noise_curve needs whole weights on a "
                f"pair of devices, got num_slices {self.device.num_slices}. Use --read-noise or "
                f"--ideal-reads, or no slices."
            )
        self.read_noise_table()

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
        square, cube = polynomial.weight_curves(
            g_min_us=device.g_min_us,
            g_max_us=device.g_max_us,
            input_shrink=self.periphery.input_shrink,
        )
        return tuple(float(np.float32(c)) for c in square), tuple(
            float(np.float32(c)) for c in cube
        )

    @property
    def needs_ranges(self) -> bool:
        """True where converters or word lines have to be given an input range."""
        return self.reads.needs_ranges or self.iv_polynomial is not None
