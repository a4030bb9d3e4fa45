# SPDX-License-Identifier: Apache-2.0
"""The command ``lifetime``: accuracy over the years, by when adapters are fitted anew."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rimc_onnx.cli.calibration_options import (
    AdapterParts,
    SamplesOfOne,
    SramBudget,
    study_calibration,
)
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.cost_options import Constants
from rimc_onnx.cli.cost_tables import show_lifetime
from rimc_onnx.cli.data_options import sample_source
from rimc_onnx.cli.options import (
    EVERY_NODE,
    IDEAL_PERIPHERY,
    BatchAxis,
    BatchSize,
    DataOption,
    Device,
    DeviceOptions,
    Force,
    Json,
    Labels,
    MappingOptions,
    Model,
    OneMetric,
    PeripheryOptions,
    Rank,
    Seed,
    TestData,
    convert_config,
    parse_option_time,
    with_options,
)
from rimc_onnx.errors import UsageError

__all__ = ["lifetime"]


@dataclass(frozen=True, kw_only=True)
class _AgingDeviceOptions(DeviceOptions):
    """A device model with a time axis."""

    device: Device = "cmo-hfox-2025-2pct"


_AGES = _AgingDeviceOptions()


@with_options
def lifetime(
    model: Model,
    test: TestData,
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="never, periodic, probe or schedule; may be given again.",
            show_default="never and probe",
        ),
    ] = None,
    checkpoints: Annotated[int, typer.Option(help="Ages that are evaluated.")] = 20,
    last: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Last of them.", show_default="10y, or the last the law knows"
        ),
    ] = None,
    period: Annotated[str, typer.Option(metavar="TIME", help="Of the policy periodic.")] = "365d",
    probe_samples: Annotated[int, typer.Option(help="Of the policy probe.")] = 32,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Least agreement on the probe samples.",
            show_default="--growth tells",
        ),
    ] = None,
    growth: Annotated[
        float,
        typer.Option(
            metavar="FACTOR", help="Most error on them, over that right after a calibration."
        ),
    ] = 1.5,
    schedule: Annotated[
        str, typer.Option(help="Baseline that makes the sets of the policy schedule.")
    ] = "vera-plus",
    schedule_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of that baseline; may be given again."),
    ] = None,
    levels: Annotated[int, typer.Option(help="Sets of the policy schedule.")] = 5,
    schedule_data: Annotated[
        str | None, typer.Option(help="Its training set.", show_default="as --data")
    ] = None,
    samples: SamplesOfOne = 10,
    device: _AgingDeviceOptions = _AGES,
    seed: Seed = 0,
    rank: Rank = 4,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    mapping: MappingOptions = EVERY_NODE,
    adapter: AdapterParts = "dora+sparse",
    sram_budget: SramBudget = None,
    labels: Labels = None,
    metric: OneMetric = None,
    constants: Constants = None,
    batch_size: BatchSize = 64,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for lifetime.json, lifetime.png and lifetime.html.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Accuracy, writes and energy over ten years, by when adapters are fitted anew.

    --time is the age at deployment.

    Examples:
        rimc-onnx lifetime model.onnx --test test.npz -o life

        rimc-onnx lifetime model.onnx --test test.npz --policy never --policy periodic --json
    """
    from rimc_onnx.studies.lifetime import LifetimeConfig, Policy
    from rimc_onnx.studies.lifetime import lifetime as study
    from rimc_onnx.studies.lifetime_page import check_folder, write_lifetime
    from rimc_onnx.studies.study_file import parse_setting

    console = Console(as_json=as_json)
    known = {p.value: p for p in Policy}
    for name in policy or ():
        if name not in known:
            raise UsageError(f"--policy {name!r} is not known. Known: {', '.join(known)}.")
    life = LifetimeConfig(
        policies=tuple(known[name] for name in policy or ("never", "probe")),
        checkpoints=checkpoints,
        first_s=parse_option_time(device.time),
        last_s=parse_option_time(last),
        period_s=parse_option_time(period) or 0.0,
        probe_samples=probe_samples,
        threshold=threshold,
        growth=growth,
        levels=levels,
        schedule=schedule,
    )
    calibration = study_calibration(samples=samples, adapter=adapter, sram_budget=sram_budget)
    config = convert_config(
        device=device, mapping=mapping, periphery=periphery, seed=seed, rank=rank
    )
    if output is not None:
        check_folder(output, force=force)
    with console.progress("lifetime") as progress:
        report = study(
            model,
            test=sample_source(test, batch_axis) or test,
            data=sample_source(data, batch_axis),
            config=config,
            calibrate=calibration,
            life=life,
            schedule_data=sample_source(schedule_data, batch_axis),
            schedule_options=dict(parse_setting(text) for text in schedule_option or ()),
            labels=labels,
            metric=metric,
            constants=constants,
            batch_size=batch_size,
            progress=progress,
        )
    if output is not None:
        command = shlex.join(["rimc-onnx", *sys.argv[1:]])
        report = write_lifetime(report, output, command=command, force=force)
    console.result(report, lambda: show_lifetime(console, report))
