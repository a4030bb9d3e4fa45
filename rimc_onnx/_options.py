# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.config import ConvertConfig

__all__ = [
    "AdcBits",
    "DacBits",
    "DataOption",
    "Device",
    "Drift",
    "Force",
    "Json",
    "KeepDigital",
    "MapShared",
    "Model",
    "Output",
    "Rank",
    "Scaling",
    "Seed",
    "TileRows",
    "convert_config",
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
Device = Annotated[str, typer.Option(help="Device preset.")]
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
KeepDigital = Annotated[
    list[str] | None,
    typer.Option(help="Pattern of node names that stay digital; may be given again."),
]
MapShared = Annotated[
    bool, typer.Option("--map-shared", help="Map nodes that share a weight, an array for each.")
]


def convert_config(
    device: str,
    drift: float | None,
    scaling: str,
    seed: int,
    rank: int,
    tile_rows: Any,
    dac_bits: Any,
    adc_bits: Any,
    keep_digital: list[str] | None,
    map_shared: bool,
) -> ConvertConfig:
    """The conversion that a command's options ask for."""
    from rimc_onnx.config import ConvertConfig, PeripheryConfig
    from rimc_onnx.device import Scaling as WeightScaling
    from rimc_onnx.device import get_preset
    from rimc_onnx.errors import suggest

    known = [s.value for s in WeightScaling]
    if scaling not in known:
        raise UsageError(f"--scaling {scaling!r} is not known. {suggest(scaling, known)}")
    overrides: dict[str, Any] = {"scaling": WeightScaling(scaling)}
    if drift is not None:
        overrides["drift_frac"] = drift
    return ConvertConfig(
        device=get_preset(device, **overrides),
        seed=seed,
        rank=rank,
        periphery=PeripheryConfig(
            tile_rows=_optional(tile_rows),
            dac_bits=_optional(dac_bits),
            adc_bits=_optional(adc_bits),
        ),
        keep_digital=tuple(keep_digital or ()),
        map_shared=map_shared,
    )
