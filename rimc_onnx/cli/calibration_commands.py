# SPDX-License-Identifier: Apache-2.0
"""The commands ``calibrate`` and ``statistics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rimc_onnx.cli import hints
from rimc_onnx.cli.calibration_options import TEN_SAMPLES, FitOptions
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.data_options import sample_source
from rimc_onnx.cli.field_options import in_options
from rimc_onnx.cli.options import (
    BatchAxis,
    DataOption,
    Force,
    Json,
    Model,
    Output,
    Teacher,
)
from rimc_onnx.cli.provider_options import NATIVE_PROVIDER, ProviderOptions
from rimc_onnx.cli.tables import show_calibration
from rimc_onnx.errors import UsageError

__all__ = ["calibrate", "statistics"]

_NOT_CALIBRATED = 3
"""A file was written as asked for, and calibration did not help."""


def calibrate(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A converted model.", show_default="the only *.rimc.onnx in this folder"
        ),
    ] = None,
    fit: FitOptions = TEN_SAMPLES,
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    teacher: Teacher = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="The teacher's statistics file; --samples 0 needs no sample then."),
    ] = None,
    swappable: Annotated[
        bool, typer.Option("--swappable", help="Adapters that a live session can change.")
    ] = False,
    adapter_file: Annotated[
        Path | None, typer.Option(help="Write the adapters alone (.onnx_adapter).")
    ] = None,
    twin: Annotated[
        Path | None, typer.Option(help="Write a plain fp32 model of the same function.")
    ] = None,
    runs_on: ProviderOptions = NATIVE_PROVIDER,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", help="File of the JSON report.", show_default="<output>.report.json"
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option("--page", help="Write the report as an HTML page with plots too."),
    ] = False,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit the adapters from a few samples; writes MODEL.rimc.calibrated.onnx.

    Examples:
        rimc-onnx calibrate --samples 10

        rimc-onnx calibrate model.rimc.onnx --data samples.npz --samples 10 --rank 2
    """
    from rimc_onnx import api

    console = Console(as_json=as_json)
    config, device = fit.config(), runs_on.device()
    with console.progress("calibrate") as progress:
        found = api.calibrate(
            model or _only_converted_model(),
            output,
            data=sample_source(data, batch_axis),
            teacher=teacher,
            statistics=statistics,
            swappable=swappable,
            adapter_file=adapter_file,
            twin=twin,
            device=device,
            config=config,
            report=report or True,
            page=page,
            force=force,
            progress=lambda what, done, total: progress(
                done + (total if what == "student" else 0), 2 * total
            ),
        )

    console.result(found, lambda: show_calibration(console, found))
    if found.warning is not None:
        console.warn(in_options(found.warning))
    if found.is_identity:
        console.warn("the adapters do nothing: no step of the calibration helped.")
        raise typer.Exit(_NOT_CALIBRATED)
    console.advise(hints.better_calibration(fit, found))
    console.suggest(hints.after_calibration(found))


def statistics(
    model: Model,
    output: Output = None,
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    keep_samples: Annotated[
        int, typer.Option(help="Samples that the file holds, for calibrations without any.")
    ] = 32,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure the teacher once, on unlabelled data; writes MODEL.statistics.npz.

    Examples:
        rimc-onnx statistics model.onnx --data unlabelled.npz

        rimc-onnx calibrate --read-out --statistics model.statistics.npz --samples 0
    """
    from rimc_onnx import api

    console = Console(as_json=as_json)
    with console.progress("statistics") as progress:
        report = api.write_statistics(
            model,
            output,
            data=sample_source(data, batch_axis),
            keep_samples=keep_samples,
            force=force,
            progress=progress,
        )

    def render() -> None:
        console.line(f"{report.nodes} nodes, {report.samples} samples, {report.bytes} bytes")
        console.line(f"wrote {report.output}")

    console.result(report, render)
    console.suggest(
        hints.command("calibrate", "--read-out", "--statistics", report.output, "--samples", 0)
    )


def _only_converted_model() -> Path:
    found = sorted(Path().glob("*.rimc.onnx"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(map(str, found)) or "none"
    raise UsageError(
        f"need one *.rimc.onnx in this folder, found {names}. "
        "Name the model: rimc-onnx calibrate MODEL.rimc.onnx."
    )
