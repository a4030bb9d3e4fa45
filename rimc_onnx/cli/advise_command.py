# SPDX-License-Identifier: Apache-2.0
"""The command ``advise``: what ways to convert and calibrate a model would give."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rimc_onnx.cli.console import Console
from rimc_onnx.cli.options import (
    EVERY_NODE,
    IDEAL_PERIPHERY,
    PRESET,
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
    several = device.devices_per_weight is None
    with console.progress("advise") as progress:
        found = api.advise(
            model,
            config=config,
            data=data,
            num_samples=samples,
            sram_fracs=shares or None,
            devices_per_weight=None if several else (config.device.devices_per_weight,),
            progress=progress,
        )
    given = _given(device, periphery, mapping, seed)
    kept = mapping.keep_digital or []
    shown_report = asdict(found)
    for option, shown in zip(found.options, shown_report["options"], strict=True):
        shown["commands"] = _commands(str(model), given, kept, data, samples, option)
    console.result(shown_report, lambda: show_advice(console, found, shown_report["options"]))


def _given(
    device: DeviceOptions, periphery: PeripheryOptions, mapping: MappingOptions, seed: int
) -> list[str]:
    """What was typed for a conversion, apart from what is advised on."""
    apart = {"scaling", "clip_sigma", "devices_per_weight", "slices"}
    values = {"seed": seed or None}
    for typed, default in ((device, PRESET), (periphery, IDEAL_PERIPHERY), (mapping, EVERY_NODE)):
        plain = asdict(default)
        values |= {n: v for n, v in asdict(typed).items() if v != plain[n] and n not in apart}
    return [part for name, value in values.items() for part in _typed(name, value)]


def _typed(name: str, value: Any) -> list[str]:
    """An option and its value, as it is typed."""
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if value is True:
        return [option]
    if isinstance(value, list):
        return [part for one in value for part in (option, str(one))]
    return [option, str(value)]


def _commands(
    model: str,
    given: list[str],
    keep_digital: list[str],
    data: str | None,
    samples: int,
    option: AdviceOption,
) -> list[str]:
    """The commands of an option."""
    before = []
    if option.equalized:
        kept = _typed("keep_digital", keep_digital)
        before = [shlex.join(["rimc-onnx", "equalize", model, *kept])]
        model = model.removesuffix(".onnx") + ".equalized.onnx"
    converted = model.removesuffix(".onnx") + ".rimc.onnx"
    source = [] if data is None else ["--data", data]
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
        shlex.join(["rimc-onnx", "convert", model, *given, *source, *mapping]),
        shlex.join(["rimc-onnx", "calibrate", converted, *source, *fit]),
    ]
