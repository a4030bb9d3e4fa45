# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
    from rimc_onnx.device import DeviceConfig

__all__ = [
    "EVERY_NODE",
    "IDEAL_PERIPHERY",
    "NO_PARAMETERS",
    "PRESET",
    "BatchAxis",
    "BatchSize",
    "DataOption",
    "DeviceOptions",
    "DeviceParameters",
    "Force",
    "IdealReads",
    "Json",
    "Labels",
    "MappingOptions",
    "Model",
    "OneMetric",
    "Output",
    "PeripheryOptions",
    "Rank",
    "ReadOutNoise",
    "Report",
    "Seed",
    "Teacher",
    "TestData",
    "TileRows",
    "Uncalibrated",
    "convert_config",
    "parse_option_time",
    "with_options",
]


def _number_or_none(text: str | int) -> int | str:
    """An option that is a whole number of 1 or more, or ``none`` for an ideal part."""
    if text == "none":
        return "none"
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise typer.BadParameter(f"{text!r} is neither a whole number of 1 or more nor 'none'.")
    return value


def _fraction(text: str | float) -> float:
    """An option that is a fraction; no per cent, of which 0.5 may be either."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number. Write a fraction: 0.2 is 20 %."
        ) from None


def _optional(value: Any) -> int | None:
    return None if value == "none" else int(value)


def _share(text: str, default: str | bool = True) -> Any:
    return typer.Option(parser=_fraction, metavar="FRACTION", help=text, show_default=default)


def _size(unit: str, text: str) -> Any:
    return typer.Option(parser=_number_or_none, metavar=f"{unit}|none", help=text)


Model = Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Report = Annotated[
    Path | None,
    typer.Option("--report", help="Write the JSON object to a file, too.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="An .npz with arrays named after the inputs, a folder of .npy, or module:callable.",
        show_default="calibration.npz beside the model",
    ),
]
BatchAxis = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[INPUT=]AXIS|none",
        help="Axis of the arrays that counts samples, of all inputs or of one; none: the array is "
        "part of every run. May be given again.",
        show_default="0",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(help="Name of the label array.", show_default="labels, where there is one"),
]
BatchSize = Annotated[int, typer.Option(help="Samples a run.", min=1)]
Teacher = Annotated[
    Path | None,
    typer.Option(help="The model it was converted from.", show_default="as recorded"),
]
Device = Annotated[str, typer.Option(help="Device preset, or a .toml file of one's own.")]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="TIME",
        help="Time since programming: 1s, 10min, 1h, 30d, 10y, or seconds.",
        show_default="the first one that the preset's law knows",
    ),
]
StuckMin = Annotated[float | None, _share("Share of devices stuck at G_min.", "the preset's")]
StuckMax = Annotated[float | None, _share("Share of devices stuck at the top.", "the preset's")]
ClipSigma = Annotated[
    str,
    typer.Option(
        metavar="SIGMAS|none|auto", help="Clip weights beyond so many standard deviations."
    ),
]
LevelBits = Annotated[
    int | None, typer.Option(help="Bits of a device's levels.", show_default="any level")
]
Slices = Annotated[
    int | None,
    typer.Option(help="Pairs of devices that share a weight's bits.", show_default="1"),
]
DevicesPerWeight = Annotated[
    int | None,
    typer.Option(help="Pairs of devices in parallel that hold the same.", show_default="1"),
]
Drift = Annotated[
    float | None, _share("Standard deviation of the drift (0.2 is 20 %).", "the preset's")
]
Scaling = Annotated[str, typer.Option(help="Weights that share one W_max: node, column or auto.")]
Uncalibrated = Annotated[
    bool,
    typer.Option(
        "--uncalibrated", help="Choose scaling and clipping for use without a calibration."
    ),
]
Seed = Annotated[int, typer.Option(help="Key of every draw.")]
Rank = Annotated[int, typer.Option(help="Rank of the adapter branches.")]
TestData = Annotated[
    str, typer.Option(help="Samples to evaluate on, in any form that --data takes.")
]
OneMetric = Annotated[
    str | None, typer.Option(help="module:callable of (outputs, other arrays), one number.")
]
TileRows = Annotated[str, _size("ROWS", "Word lines of a tile.")]
DacBits = Annotated[str, _size("BITS", "Bits of the DACs.")]
AdcBits = Annotated[str, _size("BITS", "Bits of the ADCs.")]
RangePercentile = Annotated[
    float, typer.Option(help="Share of the data, in percent, that a converter's range holds.")
]
DacSerialBits = Annotated[str, _size("BITS", "Input bits that go in at a time.")]
IvSinh = Annotated[
    float | None,
    typer.Option(
        help="K of the devices' current, sinh(K u) over the input range.",
        show_default="the preset's",
    ),
]
InputShrink = Annotated[float, _share("Share of the devices' voltage range that the inputs use.")]
AdcGainError = Annotated[float | None, _share("Standard deviation of the ADCs' gains.", "none")]
AdcOffsetError = Annotated[
    float | None, _share("Standard deviation of the ADCs' offsets, of full scale.", "none")
]
ReadNoise = Annotated[
    float | None, _share("Standard deviation of a device's noise in every read.", "the preset's")
]
NoiseLaw = Annotated[
    str, typer.Option(help="What --read-noise is a fraction of: absolute (G_max) or relative (G).")
]
IdealReads = Annotated[
    bool,
    typer.Option(
        "--ideal-reads", help="No read noise and no I-V curve but those given, whatever the preset."
    ),
]
WireOhm = Annotated[
    float | None,
    typer.Option(help="Resistance of a wire from cell to cell, ohm.", show_default="none"),
]
ReadOutNoise = Annotated[
    float | None, _share("Standard deviation of a measured weight, of the weight.", "0.02")
]
KeepDigital = Annotated[
    list[str] | None,
    typer.Option(help="Pattern of node names that stay digital; may be given again."),
]
MapShared = Annotated[
    bool, typer.Option("--map-shared", help="Map nodes that share a weight, an array for each.")
]


_READS = {"panel": "Reads"}
"""Options of a group under a heading of their own in ``--help``."""


@dataclass(frozen=True, kw_only=True)
class DeviceParameters:
    """How weights are put on a device model, and how old it is."""

    panel: ClassVar[str] = "Device"

    drift: Drift = None
    time: Time = None
    scaling: Scaling = "auto"
    clip_sigma: ClipSigma = "auto"
    level_bits: LevelBits = None
    slices: Slices = None
    devices_per_weight: DevicesPerWeight = None
    stuck_min: StuckMin = None
    stuck_max: StuckMax = None

    def config_of(self, device: str) -> DeviceConfig:
        """A preset, or the model of a file, with what is given in place of its own."""
        from rimc_onnx.calibration.config import one_of
        from rimc_onnx.device import (
            AUTO,
            Scaling,
            get_preset,
            load_device,
            read_clip_sigma,
            read_scaling,
        )

        scaling = one_of("--scaling", self.scaling, AUTO, *(s.value for s in Scaling))
        given: dict[str, Any] = {
            "drift_frac": self.drift,
            "clip_sigma": read_clip_sigma(self.clip_sigma),
            "level_bits": self.level_bits,
            "num_slices": self.slices,
            "devices_per_weight": self.devices_per_weight,
            "stuck_min_frac": self.stuck_min,
            "stuck_max_frac": self.stuck_max,
            "scaling": read_scaling(scaling),
        }
        overrides = {name: value for name, value in given.items() if value is not None}
        if not device.endswith(".toml"):
            return get_preset(device, **overrides)
        # What is auto is the file's to say.
        return load_device(Path(device), **overrides)


NO_PARAMETERS = DeviceParameters()


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(DeviceParameters):
    """A device model and its parameters."""

    device: Device = "gaussian-relative"

    @property
    def files(self) -> list[Path]:
        """Files that the device model comes from."""
        return [Path(self.device)] if self.device.endswith(".toml") else []

    def config(self) -> DeviceConfig:
        """The device model; what is not given is the preset's, or the file's."""
        return self.config_of(self.device)


PRESET = DeviceOptions()


@dataclass(frozen=True, kw_only=True)
class MappingOptions:
    """Which nodes go to RRAM."""

    panel: ClassVar[str] = "Nodes"

    keep_digital: KeepDigital = None
    map_shared: MapShared = False


EVERY_NODE = MappingOptions()


@dataclass(frozen=True, kw_only=True)
class PeripheryOptions:
    """What surrounds the arrays, as typed; the defaults are those of ``PeripheryConfig``."""

    panel: ClassVar[str] = "Arrays and converters"

    tile_rows: TileRows = "none"
    dac_bits: DacBits = "none"
    adc_bits: AdcBits = "none"
    dac_serial_bits: DacSerialBits = "none"
    iv_sinh: IvSinh = field(default=None, metadata=_READS)
    input_shrink: InputShrink = field(default=1.0, metadata=_READS)
    adc_gain_error: AdcGainError = None
    adc_offset_error: AdcOffsetError = None
    read_noise: ReadNoise = field(default=None, metadata=_READS)
    read_noise_law: NoiseLaw = field(default="absolute", metadata=_READS)
    ideal_reads: IdealReads = field(default=False, metadata=_READS)
    wire_ohm: WireOhm = field(default=None, metadata=_READS)
    range_percentile: RangePercentile = 99.99

    def config(self) -> PeripheryConfig:
        """The configuration of these options."""
        from rimc_onnx.calibration.config import one_of
        from rimc_onnx.crossbar.config import PeripheryConfig, ReadNoiseLaw

        law = one_of(
            "--read-noise-law", self.read_noise_law, *(known.value for known in ReadNoiseLaw)
        )
        if law != ReadNoiseLaw.ABSOLUTE.value and self.read_noise is None:
            raise UsageError(
                "--read-noise-law says what --read-noise is a fraction of. Give --read-noise too."
            )
        return PeripheryConfig(
            tile_rows=_optional(self.tile_rows),
            dac_bits=_optional(self.dac_bits),
            adc_bits=_optional(self.adc_bits),
            dac_serial_bits=_optional(self.dac_serial_bits),
            iv_sinh=self.iv_sinh,
            input_shrink=self.input_shrink,
            adc_gain_error_frac=self.adc_gain_error,
            adc_offset_error_frac=self.adc_offset_error,
            read_noise_frac=self.read_noise,
            read_noise_law=ReadNoiseLaw(law),
            wire_ohm=self.wire_ohm,
            device_reads=not self.ideal_reads,
            range_percentile=self.range_percentile,
        )


IDEAL_PERIPHERY = PeripheryOptions()


def parse_option_time(text: str | None) -> float | None:
    """Seconds of ``--time``; None where it is not given."""
    from rimc_onnx.device import parse_time

    return None if text is None else parse_time(text)


def _under(panel: str, annotation: Any) -> Any:
    """The annotation of an option, shown under a heading of ``--help``."""
    kind, option = get_args(annotation)
    option = copy(option)
    option.rich_help_panel = panel
    return Annotated[kind, option]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose groups of options (frozen dataclasses) are parameters one by one.

    typer reads options from a signature: there the fields of a group stand in the group's place,
    in ``--help`` under the heading ``panel`` of the group or of the field's metadata.
    """
    hints: dict[str, Any] = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if (group := groups.get(parameter.name)) is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        types = get_type_hints(group, include_extras=True)
        parameters += [
            parameter.replace(
                name=f.name,
                annotation=_under(f.metadata.get("panel", group.panel), types[f.name]),
                default=f.default,
            )
            # What a group adds to another one is what it is named after: --device is told first.
            for f in sorted(fields(group), key=lambda f: f.name not in group.__annotations__)
        ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
        command(**given)

    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    vars(wrapper)["__signature__"] = inspect.Signature(parameters)
    return wrapper


def convert_config(
    *,
    device: DeviceOptions = PRESET,
    mapping: MappingOptions = EVERY_NODE,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    seed: int = 0,
    rank: int = 4,
    uncalibrated: bool = False,
) -> ConvertConfig:
    """The conversion that a command's options ask for."""
    from rimc_onnx.crossbar.config import ConvertConfig

    return ConvertConfig(
        device=device.config(),
        seed=seed,
        time_s=parse_option_time(device.time),
        rank=rank,
        periphery=periphery.config(),
        keep_digital=tuple(mapping.keep_digital or ()),
        map_shared=mapping.map_shared,
        uncalibrated=uncalibrated,
    )
