# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.config import ConvertConfig, PeripheryConfig
    from rimc_onnx.runtime.any_provider import ProviderDevice

__all__ = [
    "IDEAL_PERIPHERY",
    "NATIVE_PROVIDER",
    "ClipSigma",
    "DataOption",
    "Device",
    "DevicesPerWeight",
    "Drift",
    "Force",
    "IdealReads",
    "Json",
    "KeepDigital",
    "LevelBits",
    "MapShared",
    "Model",
    "Output",
    "PeripheryOptions",
    "ProviderOptions",
    "Rank",
    "Scaling",
    "Seed",
    "Slices",
    "StuckMax",
    "StuckMin",
    "TileRows",
    "Time",
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


def _optional(value: Any) -> int | None:
    return None if value == "none" else int(value)


Model = Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="An .npz with arrays named after the inputs, a folder of .npy, or module:callable.",
        show_default="calibration.npz beside the model",
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Execution provider of ONNX Runtime that runs the arrays.",
        show_default="the native library",
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Option of the provider; may be given again."),
]
ProviderLibrary = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Shared library of a plugin provider, ONNX Runtime 1.24."),
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
StuckMin = Annotated[
    float | None,
    typer.Option(help="Share of devices stuck at G_min.", show_default="the preset's"),
]
StuckMax = Annotated[
    float | None,
    typer.Option(help="Share of devices stuck at the top.", show_default="the preset's"),
]
ClipSigma = Annotated[
    float | None,
    typer.Option(help="Clip weights beyond so many standard deviations.", show_default="none"),
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
    float | None,
    typer.Option(
        help="Standard deviation of the drift, a fraction (0.2 is 20 %).",
        show_default="the preset's",
    ),
]
Scaling = Annotated[str, typer.Option(help="Weights that share one W_max: node or column.")]
Seed = Annotated[int, typer.Option(help="Key of every draw.")]
Rank = Annotated[int, typer.Option(help="Rank of the adapter branches.")]
TileRows = Annotated[
    str, typer.Option(parser=_number_or_none, metavar="ROWS|none", help="Word lines of a tile.")
]
DacBits = Annotated[
    str, typer.Option(parser=_number_or_none, metavar="BITS|none", help="Bits of the DACs.")
]
AdcBits = Annotated[
    str, typer.Option(parser=_number_or_none, metavar="BITS|none", help="Bits of the ADCs.")
]
RangePercentile = Annotated[
    float, typer.Option(help="Share of the data, in percent, that a converter's range holds.")
]
DacSerialBits = Annotated[
    str,
    typer.Option(
        parser=_number_or_none, metavar="BITS|none", help="Input bits that go in at a time."
    ),
]
IvSinh = Annotated[
    float | None,
    typer.Option(
        help="K of the devices' current, sinh(K u) over the input range.",
        show_default="the preset's",
    ),
]
InputShrink = Annotated[
    float, typer.Option(help="Share of the devices' voltage range that the inputs use.")
]
AdcGainError = Annotated[
    float | None,
    typer.Option(help="Standard deviation of the ADCs' gains.", show_default="none"),
]
AdcOffsetError = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of the ADCs' offsets, a fraction of full scale.",
        show_default="none",
    ),
]
ReadNoise = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of a device's noise in every read, a fraction.",
        show_default="the preset's",
    ),
]
NoiseLaw = Annotated[
    str, typer.Option(help="What it is a fraction of: absolute (G_max) or relative (G).")
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
KeepDigital = Annotated[
    list[str] | None,
    typer.Option(help="Pattern of node names that stay digital; may be given again."),
]
MapShared = Annotated[
    bool, typer.Option("--map-shared", help="Map nodes that share a weight, an array for each.")
]


@dataclass(frozen=True, kw_only=True)
class PeripheryOptions:
    """What surrounds the arrays, as typed; the defaults are those of ``PeripheryConfig``."""

    tile_rows: TileRows = "none"
    dac_bits: DacBits = "none"
    adc_bits: AdcBits = "none"
    dac_serial_bits: DacSerialBits = "none"
    iv_sinh: IvSinh = None
    input_shrink: InputShrink = 1.0
    adc_gain_error: AdcGainError = None
    adc_offset_error: AdcOffsetError = None
    read_noise: ReadNoise = None
    read_noise_law: NoiseLaw = "absolute"
    ideal_reads: IdealReads = False
    wire_ohm: WireOhm = None
    range_percentile: RangePercentile = 99.99

    def config(self) -> PeripheryConfig:
        """The configuration of these options."""
        from rimc_onnx.config import PeripheryConfig, ReadNoiseLaw
        from rimc_onnx.errors import suggest

        known = [law.value for law in ReadNoiseLaw]
        if self.read_noise_law not in known:
            raise UsageError(
                f"--read-noise-law {self.read_noise_law!r} is not known. "
                f"{suggest(self.read_noise_law, known)}"
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
            read_noise_law=ReadNoiseLaw(self.read_noise_law),
            wire_ohm=self.wire_ohm,
            device_reads=not self.ideal_reads,
            range_percentile=self.range_percentile,
        )


IDEAL_PERIPHERY = PeripheryOptions()


def parse_option_time(text: str | None) -> float | None:
    """Seconds of ``--time``; None where it is not given."""
    from rimc_onnx.device import parse_time

    return None if text is None else parse_time(text)


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """Which execution provider runs the arrays."""

    provider: Provider = None
    provider_option: ProviderOption = None
    provider_library: ProviderLibrary = None

    def device(self) -> ProviderDevice | None:
        """What makes its sessions; None is the native library."""
        if self.provider is None:
            options = {
                "--provider-option": self.provider_option,
                "--provider-library": self.provider_library,
            }
            if given := next((name for name, value in options.items() if value), None):
                raise UsageError(f"{given} needs --provider, the name of the execution provider.")
            return None
        texts: dict[str, str] = {}
        for option in self.provider_option or []:
            key, equals, value = option.partition("=")
            if not key or not equals:
                raise UsageError(f"--provider-option {option!r} is not of the form KEY=VALUE.")
            if key in texts:
                raise UsageError(f"--provider-option {key} is given twice.")
            texts[key] = value
        from rimc_onnx.runtime.any_provider import provider_device

        return provider_device(self.provider, options=texts, library=self.provider_library)


NATIVE_PROVIDER = ProviderOptions()


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose groups of options (frozen dataclasses) are parameters one by one.

    typer reads options from a signature: there the fields of a group stand in the group's place.
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
            parameter.replace(name=f.name, annotation=types[f.name], default=f.default)
            for f in fields(group)
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
    device: str,
    drift: float | None,
    scaling: str,
    seed: int,
    rank: int,
    periphery: PeripheryConfig,
    keep_digital: list[str] | None,
    map_shared: bool,
    *,
    time: str | None = None,
    **device_fields: Any,
) -> ConvertConfig:
    """The conversion that a command's options ask for; a device field of None is the preset's."""
    from rimc_onnx.config import ConvertConfig
    from rimc_onnx.device import Scaling as WeightScaling
    from rimc_onnx.device import get_preset, load_device
    from rimc_onnx.errors import suggest

    known = [s.value for s in WeightScaling]
    if scaling not in known:
        raise UsageError(f"--scaling {scaling!r} is not known. {suggest(scaling, known)}")
    overrides = {k: v for k, v in device_fields.items() if v is not None}
    if drift is not None:
        overrides["drift_frac"] = drift
    if device.endswith(".toml"):
        # the file says how weights are scaled, unless the option does
        if scaling != WeightScaling.NODE.value:
            overrides["scaling"] = WeightScaling(scaling)
        found = load_device(Path(device), **overrides)
    else:
        found = get_preset(device, scaling=WeightScaling(scaling), **overrides)
    return ConvertConfig(
        device=found,
        seed=seed,
        time_s=parse_option_time(time),
        rank=rank,
        periphery=periphery,
        keep_digital=tuple(keep_digital or ()),
        map_shared=map_shared,
    )
