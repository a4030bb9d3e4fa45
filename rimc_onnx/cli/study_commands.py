# SPDX-License-Identifier: Apache-2.0
"""The commands ``quickstart`` and ``study``: the main job once, and many times over."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rimc_onnx.cli import hints
from rimc_onnx.cli.calibration_options import (
    AdapterParts,
    SamplesOfOne,
    SramBudget,
    study_calibration,
)
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
    OneMetric,
    PeripheryOptions,
    Rank,
    Report,
    TestData,
    convert_config,
    with_options,
)
from rimc_onnx.cli.provider_options import NATIVE_PROVIDER, ProviderOptions
from rimc_onnx.cli.tables import show_recovery, show_study
from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.studies.runner import Engine

__all__ = ["StudyGroup", "quickstart", "study_recovery", "study_run"]


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
    test: TestData,
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    seeds: Annotated[int, typer.Option(help="Devices: seeds 0, 1, ...", min=1)] = 5,
    draws: Annotated[int, typer.Option(help="Draws of samples for each.", min=1)] = 3,
    samples: SamplesOfOne = 10,
    device: DeviceOptions = PRESET,
    rank: Rank = 4,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    mapping: MappingOptions = EVERY_NODE,
    adapter: AdapterParts = "dora+sparse",
    sram_budget: SramBudget = None,
    labels: Labels = None,
    metric: OneMetric = None,
    runs_on: ProviderOptions = NATIVE_PROVIDER,
    batch_size: BatchSize = 64,
    folder: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for rows, plots and a page; a study goes on where it was.",
            show_default="none is kept",
        ),
    ] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """How much accuracy calibration gives back, over devices and draws: a shipped study file.

    Examples:
        rimc-onnx study recovery model.onnx --data calibration.npz --test test.npz

        rimc-onnx study recovery model.onnx --test test.npz --seeds 3 --draws 1 --json
    """
    from rimc_onnx.studies.recovery import recovery_study

    console = Console(as_json=as_json, report=report, force=force)
    config = convert_config(device=device, mapping=mapping, periphery=periphery, rank=rank)
    calibration = study_calibration(samples=samples, adapter=adapter, sram_budget=sram_budget)
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
            folder=folder,
            command=hints.command(*sys.argv[1:]),
            progress=progress,
        )
    console.result(found, lambda: show_recovery(console, found))


class StudyGroup(TyperGroup):
    """``study STUDY.toml`` is ``study run STUDY.toml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command where what comes first is none."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def study_run(
    study: Annotated[
        Path | None, typer.Argument(help="A study's .toml file.", show_default=False)
    ] = None,
    paper: Annotated[
        str | None, typer.Option(help="A paper's figures: dong2025, tang2025 or lin2026.")
    ] = None,
    zoo: Annotated[
        bool, typer.Option("--zoo", help="Networks, devices and kinds of knowledge.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder to write to; a study goes on where it was.",
            show_default="the study's name",
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model of all trials.")] = None,
    data: Annotated[str | None, typer.Option(help="Samples to calibrate from.")] = None,
    test: Annotated[str | None, typer.Option(help="Samples to evaluate on.")] = None,
    networks: Annotated[
        Path | None, typer.Option(help="A .toml file of networks, in place of the study's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Devices: seeds 0, 1, ...", show_default="the study's", min=1)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=PLACE", help="Places to run; may be given again."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="A field of all trials; may be given again."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="processes or ray.")] = "processes",
    workers: Annotated[
        int | None, typer.Option(help="Trials at a time.", show_default="one for each core")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a study's trials and write rows, tables, plots and a page; ``run`` may be left out.

    Examples:
        rimc-onnx study study.toml -o study

        rimc-onnx study --paper dong2025 --model net.onnx --data calibration.npz --test test.npz
    """
    from rimc_onnx.studies.study import run_study
    from rimc_onnx.studies.study_file import load_study, parse_setting, shipped_study

    console = Console(as_json=as_json)
    if (study is not None) + (paper is not None) + zoo != 1:
        raise UsageError("give one study: a .toml file, --paper or --zoo.")
    fields = dict(parse_setting(text) for text in settings or ())
    given = {"model": None if model is None else str(model), "data": data, "test": test}
    fields |= {name: _from_here(text) for name, text in given.items() if text is not None}
    overrides: dict[str, Any] = {"settings": fields, "seeds": seeds, "networks": networks}
    overrides["only"] = [parse_setting(text) for text in only or ()]
    name = "zoo" if zoo else str(paper)
    found = load_study(study, **overrides) if study else shipped_study(name, **overrides)
    target = folder or Path(study.stem if study else name)
    runs_on = _engine(engine, workers)
    with console.progress("study") as progress:
        report = run_study(
            found, target, engine=runs_on, command=hints.command(*sys.argv[1:]), progress=progress
        )
    console.result(report, lambda: show_study(console, report))
    for line in report.left_out:
        console.warn(f"left out: {line}")
    if report.failed:
        console.warn(f"{report.failed} of {report.trials} trials failed; their rows say why.")
        raise typer.Exit(1)


def _engine(name: str, workers: int | None) -> Engine:
    from rimc_onnx.calibration.config import one_of
    from rimc_onnx.studies.runner import Processes

    if one_of("--engine", name, "processes", "ray") == "processes":
        return Processes(count=workers)
    from rimc_onnx.studies.ray_engine import RayCluster

    return RayCluster(count=workers)


def _from_here(text: str) -> str:
    """A path as it is seen from the current folder; a reader's name as it is."""
    is_reader = ":" in text and not os.path.exists(text)
    return text if is_reader else str(Path(text).absolute())
