# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.config import ConvertConfig, PeripheryConfig

__all__ = [
    "AdcBits",
    "AdcGainError",
    "AdcOffsetError",
    "ClipSigma",
    "DacBits",
    "DacSerialBits",
    "DataOption",
    "Device",
    "DevicesPerWeight",
    "Drift",
    "Force",
    "IdealReads",
    "InputShrink",
    "IvSinh",
    "Json",
    "KeepDigital",
    "LevelBits",
    "MapShared",
    "Model",
    "NoiseLaw",
    "Output",
    "RangePercentile",
    "Rank",
    "ReadNoise",
    "Scaling",
    "Seed",
    "Slices",
    "StuckMax",
    "StuckMin",
    "TileRows",
    "Time",
    "WireOhm",
    "convert_config",
    "parse_option_time",
    "periphery_config",
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


def periphery_config(
    *,
    tile_rows: Any,
    dac_bits: Any = "none",
    adc_bits: Any = "none",
    dac_serial_bits: Any = "none",
    iv_sinh: float | None = None,
    input_shrink: float = 1.0,
    adc_gain_error: float | None = None,
    adc_offset_error: float | None = None,
    read_noise: float | None = None,
    read_noise_law: str = "absolute",
    ideal_reads: bool = False,
    wire_ohm: float | None = None,
    range_percentile: float = 99.99,
) -> PeripheryConfig:
    """The periphery that a command's options ask for."""
    from rimc_onnx.config import PeripheryConfig, ReadNoiseLaw
    from rimc_onnx.errors import suggest

    known = [law.value for law in ReadNoiseLaw]
    if read_noise_law not in known:
        raise UsageError(
            f"--read-noise-law {read_noise_law!r} is not known. {suggest(read_noise_law, known)}"
        )
    return PeripheryConfig(
        tile_rows=_optional(tile_rows),
        dac_bits=_optional(dac_bits),
        adc_bits=_optional(adc_bits),
        dac_serial_bits=_optional(dac_serial_bits),
        iv_sinh=iv_sinh,
        input_shrink=input_shrink,
        adc_gain_error_frac=adc_gain_error,
        adc_offset_error_frac=adc_offset_error,
        read_noise_frac=read_noise,
        read_noise_law=ReadNoiseLaw(read_noise_law),
        wire_ohm=wire_ohm,
        device_reads=not ideal_reads,
        range_percentile=range_percentile,
    )


def parse_option_time(text: str | None) -> float | None:
    """Seconds of ``--time``; None where it is not given."""
    from rimc_onnx.device import parse_time

    return None if text is None else parse_time(text)


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
