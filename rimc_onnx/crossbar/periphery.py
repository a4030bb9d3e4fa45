# SPDX-License-Identifier: Apache-2.0
"""What surrounds the arrays of a node: as it is asked for, and as attributes of an RRAM operator.

An attribute is a field of :class:`NodePeriphery`: its name, its ONNX type (that of the neutral
value), what is checked of it, and what a configuration makes of it. Nodes of files, the option of
the execution provider and the arguments of the oracle are made from that class and read by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from rimc_onnx.crossbar.read_noise import ReadNoiseLaw, read_noise_attributes
from rimc_onnx.device import Purpose, sinh, standard_normals
from rimc_onnx.errors import ConfigError
from rimc_onnx.ops import schema
from rimc_onnx.ops.geometry import NodeGeometry

if TYPE_CHECKING:
    from rimc_onnx.crossbar.config import ConvertConfig

__all__ = [
    "NodePeriphery",
    "NodeRanges",
    "PeripheryConfig",
    "ReadNoiseLaw",
    "attribute_types",
    "ideal_attributes",
    "node_periphery",
    "reads_of_device",
]

_MAX_BITS = 16
"""Converters beyond 16 bits are finer than the fp32 arithmetic that simulates them."""

_MAX_CONVERTER_ERROR = 0.15
"""A draw of 6.3 standard deviations still leaves a gain above 0."""

_MAX_WIRE_OHM = 1e3
"""Far beyond any wire between two cells; a typing error."""


def _check_bits(name: str, bits: int | None, lowest: int) -> None:
    if bits is not None and not lowest <= bits <= _MAX_BITS:
        raise ConfigError(
            f"`{name}` must lie in {lowest}..{_MAX_BITS} bits, got {bits}. "
            f"Use none for an ideal one."
        )


def _check_share(name: str, value: float | None, most: float, *, least: float = 0.0) -> None:
    """Above ``least`` and at most ``most``; NaN is neither."""
    if value is not None and not least < value <= most:
        raise ConfigError(f"`{name}` must be above {least:g} and at most {most:g}, got {value}")


@dataclass(frozen=True, kw_only=True)
class PeripheryConfig:
    """What surrounds the arrays; ``None`` means ideal."""

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
                f"`tile_rows` must be 1 or more, got {self.tile_rows}. Use none for untiled arrays."
            )
        _check_bits("dac_bits", self.dac_bits, 2)
        _check_bits("adc_bits", self.adc_bits, 2)
        self._check_word_lines()
        for name in ("adc_gain_error_frac", "adc_offset_error_frac"):
            _check_share(name, getattr(self, name), _MAX_CONVERTER_ERROR)
            if getattr(self, name) is not None and self.adc_bits is None:
                raise ConfigError(
                    f"`{name}` is an error of an ADC, and `adc_bits` is none. Set it."
                )
        _check_share("read_noise_frac", self.read_noise_frac, 1.0)
        if not isinstance(self.read_noise_law, ReadNoiseLaw):
            raise ConfigError(
                f"`read_noise_law` must be a ReadNoiseLaw, got {self.read_noise_law!r}"
            )
        _check_share("wire_ohm", self.wire_ohm, _MAX_WIRE_OHM)
        if not 50.0 <= self.range_percentile <= 100.0:  # less clips most of the data
            raise ConfigError(
                f"`range_percentile` must lie in 50..100 percent, got {self.range_percentile}"
            )

    def _check_word_lines(self) -> None:
        if self.dac_serial_bits is not None:
            if self.dac_bits is None:
                raise ConfigError(
                    f"`dac_serial_bits` is {self.dac_serial_bits}, and there are no input bits to "
                    f"take in turn. Set `dac_bits`."
                )
            if not 1 <= self.dac_serial_bits < self.dac_bits:
                raise ConfigError(
                    f"`dac_serial_bits` must lie in 1..{self.dac_bits - 1} with `dac_bits` "
                    f"{self.dac_bits}, got {self.dac_serial_bits}. Use none for all at once."
                )
        _check_share("iv_sinh", self.iv_sinh, schema.MAX_IV_SINH)
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
class NodePeriphery:
    """What surrounds the arrays of one node: attributes of its operator, all off by default."""

    tile_rows: int = 0
    num_tiles: int = 1
    dac_bits: int = 0
    dac_range: float = 1.0
    dac_signed: int = 1
    dac_serial_bits: int = 0
    iv_sinh: float = 0.0
    input_shrink: float = 1.0
    iv_square: tuple[float, ...] = (0.0,) * schema.IV_TERMS
    """What a cell adds for u^2, over w: powers of |w| / w_max, lowest first."""
    iv_cube: tuple[float, ...] = (0.0,) * schema.IV_TERMS
    """The same for u^3."""
    adc_bits: int = 0
    adc_range: tuple[float, ...] = (1.0,)
    """[1] or [M]."""
    adc_gain: tuple[float, ...] = (1.0,)
    """[1] or [tiles * M], bit lines of one tile together."""
    adc_offset: tuple[float, ...] = (0.0,)
    """As ``adc_gain``."""
    read_noise: float = 0.0
    read_noise_relative: int = 0
    read_noise_curve: tuple[float, ...] = (0.0,)
    """[1], or standard deviations of a pair at |w| = w_max (i / 64)^2, over ``read_noise``."""
    read_key: int = 0

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> NodePeriphery:
        """Of the attributes of a node, by name; others are left out."""
        return cls(**{f.name: attributes[f.name] for f in fields(cls)})

    def values(self) -> dict[str, Any]:
        """The attributes by name, in the order of files."""
        return {f.name: getattr(self, f.name) for f in fields(NodePeriphery)}

    @property
    def follows_weight(self) -> bool:
        """True where the I-V curve is not the same for all cells."""
        return any(self.iv_square) or any(self.iv_cube)

    @property
    def bends(self) -> bool:
        """True where devices have an I-V curve that is no straight line."""
        return self.iv_sinh != 0.0 or self.follows_weight

    def check(self, geometry: NodeGeometry, w_max: Any) -> None:
        """Refuse what the operators do not take, as the native kernels do; ``w_max`` [1] or [M].

        Raises:
            ValueError: the first fault.
        """
        if self.tile_rows < 0:
            raise ValueError(f"tile_rows must be 0 (untiled) or more, got {self.tile_rows}")
        columns, tiles = geometry.columns, geometry.num_tiles(self.tile_rows or None)
        if self.num_tiles != tiles:
            raise ValueError(f"num_tiles must be {tiles}, got {self.num_tiles}")
        of_node = {"adc_range": self.adc_range, "w_max": w_max}
        of_tile = {"adc_gain": self.adc_gain, "adc_offset": self.adc_offset}
        for values, count in ((of_node, columns), (of_tile, tiles * columns)):
            for name, found in values.items():
                if len(found) not in {1, count}:
                    raise ValueError(f"{name} must have 1 or {count} values, got {len(found)}")
        self._check_numbers()
        self._check_bits()
        for name in ("iv_square", "iv_cube"):
            terms = getattr(self, name)
            if len(terms) != schema.IV_TERMS or not np.isfinite(terms).all():
                raise ValueError(f"{name} must have {schema.IV_TERMS} finite values, got {terms}")
        self._check_read_noise_curve()
        self._check_ranges(np.asarray(w_max, np.float32))

    def _check_numbers(self) -> None:
        limits = {
            "iv_sinh": (0.0, schema.MAX_IV_SINH),
            "input_shrink": (float(np.finfo(np.float32).tiny), 1.0),
            "read_noise": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            got = getattr(self, name)
            if not low <= got <= high:
                raise ValueError(f"{name} must lie in {low:g}..{high:g}, got {got:g}")

    def _check_bits(self) -> None:
        for name in ("dac_signed", "read_noise_relative"):
            if getattr(self, name) not in {0, 1}:
                raise ValueError(f"{name} must be 0 or 1, got {getattr(self, name)}")
        for name, least in (("dac_bits", 1 + self.dac_signed), ("adc_bits", 2)):
            bits = getattr(self, name)
            if bits != 0 and not least <= bits <= schema.MAX_BITS:
                raise ValueError(f"{name} must be 0 or {least}..{schema.MAX_BITS}, got {bits}")
        most = max(self.dac_bits - self.dac_signed, 0)
        if not 0 <= self.dac_serial_bits <= most:
            raise ValueError(f"dac_serial_bits must lie in 0..{most}, got {self.dac_serial_bits}")

    def _check_read_noise_curve(self) -> None:
        curve = np.asarray(self.read_noise_curve, np.float32)
        if curve.size != schema.NOISE_KNOTS and curve.tolist() != [0.0]:
            raise ValueError(
                f"read_noise_curve must be one 0 or {schema.NOISE_KNOTS} values, got {curve.size}"
            )
        if not ((curve >= 0) & (curve <= 1)).all():
            raise ValueError("read_noise_curve must lie in 0..1")
        if curve.size > 1 and self.read_noise_relative:
            raise ValueError("read_noise_relative must be 0 with a read_noise_curve")

    def _check_ranges(self, w_max: np.ndarray[Any, Any]) -> None:
        """Ranges of converters and of noise: in float32 their steps and codes are finite."""
        dac_range = np.float32(self.dac_range)
        ranges, gains, offsets = (
            np.asarray(values, np.float32)
            for values in (self.adc_range, self.adc_gain, self.adc_offset)
        )
        for name, values in (("dac_range", dac_range), ("adc_range", ranges)):
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name} must be positive and finite")
        if not (np.isfinite(gains) & (gains > 0)).all() or not np.isfinite(offsets).all():
            raise ValueError("adc_gain must be above 0 and adc_offset finite")
        if not (np.isfinite(w_max) & (w_max >= 0)).all():
            raise ValueError("w_max must be 0 or more and finite")
        bits = self.dac_bits - self.dac_signed
        with np.errstate(over="ignore", under="ignore"):
            if bits > 0 and dac_range / np.float32(2**bits - 1) < np.finfo(np.float32).tiny:
                raise ValueError(f"dac_range {dac_range:g} is too small for its bits")
            top = np.float32(2 ** max(self.adc_bits - 1, 0) - 1)
            gain = (top / ranges).max() * gains.max()
            if self.adc_bits and not (np.isfinite(gain) and np.isfinite(offsets * top).all()):
                raise ValueError("adc_range, adc_gain and adc_offset must give finite codes")
            noise = np.float32(np.sqrt(2.0)) * np.float32(self.read_noise)
            if not np.isfinite(noise * w_max.max()):
                raise ValueError("read_noise * w_max must be finite")

    def summary(self, *, wire_ohm: float) -> dict[str, float | bool | str | None]:
        """Converters, reads and wires for people, by name; ``None`` is ideal.

        ``read_noise_law`` says what ``read_noise`` is: a fraction of G_max (``absolute``), of the
        device's conductance (``relative``), or the largest of a table over the conductance
        (``curve``). ``iv_polynomial`` and ``adc_errors`` are True where a node has such numbers.
        """
        law = ReadNoiseLaw.RELATIVE if self.read_noise_relative else ReadNoiseLaw.ABSOLUTE
        has_curve = len(self.read_noise_curve) > 1
        has_errors = tuple(self.adc_gain) != (1.0,) or tuple(self.adc_offset) != (0.0,)
        return {
            "tile_rows": self.tile_rows or None,
            "dac_bits": self.dac_bits or None,
            "adc_bits": self.adc_bits or None,
            "dac_serial_bits": self.dac_serial_bits or None,
            "iv_sinh": _as_typed(self.iv_sinh) or None,
            "input_shrink": None if self.input_shrink == 1.0 else _as_typed(self.input_shrink),
            "read_noise": _as_typed(self.read_noise) or None,
            "wire_ohm": _as_typed(wire_ohm) or None,
            "read_noise_law": ("curve" if has_curve else law.value) if self.read_noise else None,
            "iv_polynomial": self.follows_weight or None,
            "adc_errors": has_errors or None,
        }

    def ranges(self) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        """What goes into the word lines, lowest and highest, and the ADCs' least and most range.

        The first in units of x: without a DAC the range of a bent current, ``None`` where nothing
        has a range. The second in units of y, ``None`` for an ideal ADC; a node has one range or
        one for every bit line.
        """
        word_lines = adcs = None
        if self.dac_bits or self.bends:
            top = _as_typed(self.dac_range)
            word_lines = (-top if self.dac_signed else 0.0, top)
        if self.adc_bits:
            adcs = (_as_typed(min(self.adc_range)), _as_typed(max(self.adc_range)))
        return word_lines, adcs


_TYPES = {int: "int", float: "float", tuple: "floats"}


def attribute_types(op_type: str) -> dict[str, str]:
    """ONNX types of all attributes of an operator of the domain, by name, in the order of files."""
    if op_type not in {schema.RRAM_CONV, schema.RRAM_MATMUL}:
        return dict(schema.GEOMETRY if op_type == schema.DORA_CONV else {})
    periphery = {f.name: _TYPES[type(f.default)] for f in fields(NodePeriphery)}
    if op_type == schema.RRAM_MATMUL:
        return periphery | schema.DEVICE_STATE
    return schema.GEOMETRY | periphery | {"tile_group": "int"} | schema.DEVICE_STATE


def ideal_attributes() -> dict[str, dict[str, Any]]:
    """Type and value of every attribute where nothing is asked for, by name."""
    return {
        name: {attribute_types(schema.RRAM_MATMUL)[name]: value}
        for name, value in NodePeriphery().values().items()
    }


def reads_of_device(config: ConvertConfig) -> list[dict[str, Any]]:
    """What the device of a conversion brings along in every read, as attributes that go together.

    ``needs`` are attributes that a node states with them: a bent current needs a range.
    """
    found: list[dict[str, Any]] = []
    if noise := read_noise_attributes("", config):
        names = ("read_noise", "read_noise_curve")
        attributes = {name: noise[name] for name in names if name in noise}
        found.append({"what": "read noise", "needs": [], "attributes": attributes})
    polynomial, device = config.iv_polynomial, config.device
    if config.iv_curve is not None:
        # Not rounded: they are multiplied by the share of the voltage range that inputs use.
        square, cube = (
            config.iv_curves
            if polynomial is None
            else polynomial.weight_curves(g_min_us=device.g_min_us, g_max_us=device.g_max_us)
        )
        attributes = {"iv_sinh": config.reads.iv_sinh or 0.0, "iv_square": square, "iv_cube": cube}
        found.append({"what": "I-V curve", "needs": ["dac_range"], "attributes": attributes})
    return found


def _as_typed(value: float) -> float:
    """A file holds the nearest float32 of what was typed."""
    return float(str(np.float32(value)))


def node_periphery(
    config: ConvertConfig, ranges: NodeRanges | None, *, node: str, columns: int, num_tiles: int
) -> NodePeriphery:
    """The periphery of a teacher's node with so many bit lines and row tiles.

    Raises:
        ValueError: a converter or the word lines need a range and have none, or one that fits
            neither one nor all bit lines; or read noise follows conductances that can't be told
            from the weight.
    """
    periphery = config.reads
    if ranges is None:
        if config.needs_ranges:
            raise ValueError(
                "its converters have no range. Give one, or calibration data, or use ideal "
                "converters."
            )
        ranges = NodeRanges()
    adc_range = (1.0,) if periphery.adc_bits is None else ranges.adc_range
    if len(adc_range) not in {1, columns}:
        raise ValueError(f"the ADC needs 1 range or {columns}, got {len(adc_range)}")
    square, cube = config.iv_curves
    has_dac = periphery.dac_bits is not None
    bends = periphery.iv_sinh is not None or config.iv_polynomial is not None
    if periphery.adc_bits is not None:
        # The ADC keeps its full scale, in amperes, when the inputs shrink.
        shrunk = _current_frac(periphery.iv_sinh, periphery.input_shrink)
        adc_range = tuple(float(np.float32(r / shrunk)) for r in adc_range)

    def errors(purpose: Purpose, middle: float, sigma_frac: float | None) -> tuple[float, ...]:
        """A draw for every tile and bit line, bit lines of a tile together; one if none errs."""
        if sigma_frac is None:
            return (middle,)
        count = num_tiles * columns
        z = standard_normals(
            seed=config.seed, node=node, device=0, purpose=purpose, start=0, count=count
        )
        return tuple((middle + sigma_frac * z).astype(np.float32).tolist())

    return NodePeriphery(
        tile_rows=periphery.tile_rows or 0,
        num_tiles=num_tiles,
        dac_bits=periphery.dac_bits or 0,
        dac_range=ranges.dac_range if has_dac or bends else 1.0,
        dac_signed=int(ranges.dac_signed) if has_dac else 1,
        dac_serial_bits=_serial_bits(periphery, ranges),
        iv_sinh=periphery.iv_sinh or 0.0,
        input_shrink=periphery.input_shrink,
        iv_square=square,
        iv_cube=cube,
        adc_bits=periphery.adc_bits or 0,
        adc_range=adc_range,
        adc_gain=errors(Purpose.ADC_GAIN, 1.0, periphery.adc_gain_error_frac),
        adc_offset=errors(Purpose.ADC_OFFSET, 0.0, periphery.adc_offset_error_frac),
        **read_noise_attributes(node, config),
    )


def _current_frac(iv_sinh: float | None, shrink: float) -> float:
    """Current at the end of the shrunk input range, of that at the end of the whole one.

    Of a curve that follows the conductance, that of its straight part.
    """
    if shrink == 1.0:
        return 1.0
    return shrink if iv_sinh is None else sinh(iv_sinh * shrink) / sinh(iv_sinh)


def _serial_bits(periphery: PeripheryConfig, ranges: NodeRanges) -> int:
    if periphery.dac_bits is None or periphery.dac_serial_bits is None:
        return 0
    # A signed DAC has one magnitude bit less; all of them at once are one plane.
    return min(periphery.dac_serial_bits, periphery.dac_bits - int(ranges.dac_signed))
