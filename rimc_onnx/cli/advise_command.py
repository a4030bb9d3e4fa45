# SPDX-License-Identifier: Apache-2.0
"""The command ``advise``: what ways to convert and calibrate a model would give."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rimc_onnx.cli.console import Console
from rimc_onnx.cli.data_options import sample_source
from rimc_onnx.cli.hints import command, typed_option, typed_options
from rimc_onnx.cli.options import (
    EVERY_NODE,
    IDEAL_PERIPHERY,
    PRESET,
    BatchAxis,
    DeviceOptions,
    Force,
    Json,
    MappingOptions,
    Model,
    PeripheryOptions,
    Report,
    Seed,
    convert_config,
)
from rimc_onnx.cli.tables import show_advice
from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.jobs.advise import AdviceOption

__all__ = ["advise"]


def advise(
    model: Model,
    device: DeviceOptions = PRESET,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Samples of the inputs, in any form that calibrate takes.",
            show_default="none: weights alone",
        ),
    ] = None,
    batch_axis: BatchAxis = None,
    samples: Annotated[int, typer.Option(help="Samples of a calibration.", min=1)] = 10,
    sram_budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE%",
            help="SRAM of a calibration; may be given again.",
            show_default="2%, 5% and 10%",
        ),
    ] = None,
    seed: Seed = 0,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    mapping: MappingOptions = EVERY_NODE,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Expected error, devices and SRAM of ways to convert and calibrate; writes nothing.

    Examples:
        rimc-onnx advise model.onnx --device wan2022-aihwkit --time 1d --data calibration.npz

        rimc-onnx advise model.onnx --device gaussian-absolute --sram-budget 5% --json
    """
    from rimc_onnx import api
    from rimc_onnx.calibration.config import parse_budget

    console = Console(as_json=as_json, report=report, force=force)
    config = convert_config(device=device, mapping=mapping, periphery=periphery, seed=seed)
    shares = []
    for text in sram_budget or []:
        _, share = parse_budget(text)
        if share is None:
            raise UsageError(f"--sram-budget {text!r} is no share of the weights (2%).")
        shares.append(share)
    if batch_axis and data is None:
        raise UsageError("--batch-axis is that of samples. Give them with --data.")
    several = device.devices_per_weight is None
    with console.progress("advise") as progress:
        found = api.advise(
            model,
            config=config,
            data=sample_source(data, batch_axis),
            num_samples=samples,
            sram_fracs=shares or None,
            devices_per_weight=None if several else (config.device.devices_per_weight,),
            progress=progress,
        )
    apart = ("scaling", "clip_sigma", "devices_per_weight", "slices")
    given = [
        *typed_options(device, PRESET, apart),
        *typed_options(periphery, IDEAL_PERIPHERY),
        *typed_options(mapping, EVERY_NODE),
        *typed_option("seed", seed or None),
    ]
    kept = typed_option("keep_digital", mapping.keep_digital)
    source = [*typed_option("data", data), *typed_option("batch_axis", batch_axis)]
    shown_report = asdict(found)
    for option, shown in zip(found.options, shown_report["options"], strict=True):
        shown["commands"] = _commands(
            str(model), given, kept, source, found.samples or samples, option
        )
    console.result(shown_report, lambda: show_advice(console, found, shown_report["options"]))


def _commands(
    model: str,
    given: list[str],
    kept: list[str],
    source: list[str],
    samples: int,
    option: AdviceOption,
) -> list[str]:
    """The commands of an option.

    ``kept`` are the names of nodes that stay digital, ``source`` the samples, both as typed.
    """
    before = []
    if option.equalized:
        before = [command("equalize", model, *kept)]
        model = model.removesuffix(".onnx") + ".equalized.onnx"
    converted = model.removesuffix(".onnx") + ".rimc.onnx"
    values = {
        "--scaling": (option.scaling, PRESET.scaling),
        "--clip-sigma": (option.clip_sigma, PRESET.clip_sigma),
        "--devices-per-weight": (option.devices_per_weight, 1),
        "--slices": (option.num_slices, 1),
    }
    mapping = [
        part
        for name, (value, default) in values.items()
        if value != default
        for part in (name, str(value))
    ]
    fit = ["--samples", str(samples), "--sram-budget", f"{100 * option.sram_frac:g}%"]
    return [
        *before,
        command("convert", model, *given, *source, *mapping),
        command("calibrate", converted, *source, *fit),
    ]
