# SPDX-License-Identifier: Apache-2.0
"""The commands ``age`` and ``devices``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from rimc_onnx.cli import hints
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.options import (
    NO_PARAMETERS,
    DeviceParameters,
    Force,
    IdealReads,
    Json,
    Output,
    Teacher,
    parse_option_time,
    with_options,
)
from rimc_onnx.cli.tables import show_ageing, show_device, show_devices
from rimc_onnx.errors import UsageError

__all__ = ["age", "devices"]


def age(
    model: Annotated[Path, typer.Argument(help="A converted model.", show_default=False)],
    time: Annotated[
        str,
        typer.Option(
            "--time",
            metavar="TIME",
            help="Time since programming: 1s, 10min, 1h, 30d, 10y, or seconds.",
            show_default=False,
        ),
    ],
    teacher: Teacher = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Move the arrays to another time since programming; writes MODEL.rimc.aged.onnx.

    Examples:
        rimc-onnx age model.rimc.onnx --time 1d

        rimc-onnx age model.rimc.calibrated.onnx --time 2d -o later.rimc.onnx --json
    """
    from rimc_onnx import api

    console = Console(as_json=as_json)
    with console.progress("age"):
        report = api.age(
            model,
            output,
            time_s=parse_option_time(time) or 0.0,
            teacher=teacher,
            force=force,
        )
    console.result(report, lambda: show_ageing(console, report))
    console.suggest(hints.after_ageing(report.output))


@with_options
def devices(
    name: Annotated[
        str | None, typer.Argument(help="A preset, or a .toml file.", show_default="all presets")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Compile it for the execution provider.", show_default=False
        ),
    ] = None,
    parameters: DeviceParameters = NO_PARAMETERS,
    ideal_reads: IdealReads = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show the device presets, or the parameters of one, or compile one with -o.

    A compiled device is what the execution provider takes as device=@FILE. Parameters and time are
    those of the compiled one.

    Examples:
        rimc-onnx devices

        rimc-onnx devices wan2022-aihwkit --time 1d -o wan-1d.rimcdev
    """
    from rimc_onnx.device import describe_device, list_devices

    console = Console(as_json=as_json)
    if output is None and (parameters != NO_PARAMETERS or ideal_reads or force):
        raise UsageError("parameters are those of a compiled device. Give -o FILE too.")
    if output is not None:
        if name is None:
            raise UsageError("-o compiles one device. Give the name of a preset, or a .toml file.")
        from rimc_onnx.jobs.device_file import write_device_file

        written = write_device_file(
            parameters.config_of(name),
            output,
            time_s=parse_option_time(parameters.time),
            device_reads=not ideal_reads,
            force=force,
        )
        device = replace(describe_device(name), output=str(written))
        console.result(device, lambda: console.line(f"wrote {written}"))
    elif name is None:
        found = list_devices()
        console.result(
            {"devices": [asdict(d) for d in found]}, lambda: show_devices(console, found)
        )
        console.suggest(hints.command("devices", "NAME"))
    else:
        device = describe_device(name)
        console.result(device, lambda: show_device(console, device))
        console.suggest(hints.command("convert", "MODEL.onnx", "--device", name))
