# SPDX-License-Identifier: Apache-2.0
"""The commands ``quickstart`` and ``study recovery``: the main job once, and many times over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rimc_onnx.cli import hints
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.data_options import sample_source
from rimc_onnx.cli.options import (
    EVERY_NODE,
    IDEAL_PERIPHERY,
    PRESET,
    BatchAxis,
    BatchSize,
    DataOption,
    DeviceOptions,
    Force,
    Json,
    Labels,
    MappingOptions,
    Model,
    PeripheryOptions,
    Rank,
    Report,
    convert_config,
    with_options,
)
from rimc_onnx.cli.provider_options import NATIVE_PROVIDER, ProviderOptions
from rimc_onnx.cli.tables import show_recovery

__all__ = ["quickstart", "study_recovery"]


def quickstart(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path("rimc-quickstart"),
    page: Annotated[
        bool,
        typer.Option("--page", help="Write a page to play with: drift, time, arrays, digits."),
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The main job on the sample that comes with the package: convert, drift, calibrate, compare.

    Examples:
        rimc-onnx quickstart

        rimc-onnx quickstart demo --page --force
    """
    from rimc_onnx.jobs import quickstart as job

    console = Console(as_json=as_json)
    with console.progress("quickstart") as progress:
        report = job.quickstart(folder, page=page, force=force, progress=progress)

    def render() -> None:
        console.table(
            ["model", "file", "accuracy", "in stock ONNX Runtime"],
            [
                [r.state, r.file, f"{100 * r.top1:.1f} %", f"{100 * r.top1_stock:.1f} %"]
                for r in report.rows
            ],
        )
        console.line(
            f"{report.samples} samples, {report.sram_bytes} bytes of SRAM "
            f"({100 * report.gamma:.1f} % of the weights); RRAM untouched"
        )
        console.line(f"wrote {report.page or report.folder}")

    console.result(report, render)
    console.suggest(hints.command("convert", "MODEL.onnx"))


@with_options
def study_recovery(
    model: Model,
    test: Annotated[
        str, typer.Option(help="Samples to evaluate on, in any form that --data takes.")
    ],
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    seeds: Annotated[int, typer.Option(help="Devices: seeds 0, 1, ...", min=1)] = 5,
    draws: Annotated[int, typer.Option(help="Draws of samples for each.", min=1)] = 3,
    samples: Annotated[int, typer.Option(help="Samples of one calibration.")] = 10,
    device: DeviceOptions = PRESET,
    rank: Rank = 4,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    mapping: MappingOptions = EVERY_NODE,
    adapter: Annotated[str, typer.Option(help="Parts of the adapters.")] = "dora+sparse",
    sram_budget: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES|SHARE%",
            help="SRAM for all adapters.",
            show_default="5% of the weights",
        ),
    ] = None,
    labels: Labels = None,
    metric: Annotated[
        str | None, typer.Option(help="module:callable of (outputs, other arrays), one number.")
    ] = None,
    runs_on: ProviderOptions = NATIVE_PROVIDER,
    batch_size: BatchSize = 64,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """How much accuracy calibration gives back, over devices and draws of samples.

    Examples:
        rimc-onnx study recovery model.onnx --data calibration.npz --test test.npz

        rimc-onnx study recovery model.onnx --test test.npz --seeds 3 --draws 1 --json
    """
    from rimc_onnx.calibration.config import CalibrateConfig, parse_budget
    from rimc_onnx.studies.recovery import recovery_study

    console = Console(as_json=as_json, report=report, force=force)
    config = convert_config(device=device, mapping=mapping, periphery=periphery, rank=rank)
    budget_bytes, budget_frac = parse_budget(sram_budget) if sram_budget else (None, None)
    calibration = CalibrateConfig(
        num_samples=samples,
        adapter=adapter,
        sram_budget_bytes=budget_bytes,
        sram_budget_frac=budget_frac,
    )
    device_sessions = runs_on.device()
    with console.progress("study") as progress:
        found = recovery_study(
            model,
            test=sample_source(test, batch_axis) or test,
            data=sample_source(data, batch_axis),
            seeds=range(seeds),
            draws=range(draws),
            config=config,
            calibrate=calibration,
            labels=labels,
            metric=metric,
            device=device_sessions,
            batch_size=batch_size,
            progress=progress,
        )
    console.result(found, lambda: show_recovery(console, found))
