# SPDX-License-Identifier: Apache-2.0
"""The commands ``quickstart`` and ``study recovery``: the main job once, and many times over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rimc_onnx._console import Console
from rimc_onnx._options import (
    AdcBits,
    AdcGainError,
    AdcOffsetError,
    DacBits,
    DacSerialBits,
    DataOption,
    Device,
    Drift,
    Force,
    IdealReads,
    InputShrink,
    IvSinh,
    Json,
    KeepDigital,
    MapShared,
    Model,
    NoiseLaw,
    RangePercentile,
    Rank,
    ReadNoise,
    Scaling,
    TileRows,
    Time,
    WireOhm,
    convert_config,
    periphery_config,
)
from rimc_onnx._tables import show_recovery

__all__ = ["quickstart", "study_recovery"]


def quickstart(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path("rimc-quickstart"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The main job on the sample that comes with the package: convert, drift, calibrate, compare.

    Examples:
        rimc-onnx quickstart

        rimc-onnx quickstart demo --force --json
    """
    from rimc_onnx import quickstart as job

    console = Console(as_json=as_json)
    with console.progress("quickstart") as progress:
        report = job.quickstart(folder, force=force, progress=progress)

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
        console.line(f"wrote {report.folder}")

    console.result(report, render)


def study_recovery(
    model: Model,
    test: Annotated[
        str, typer.Option(help="Samples to evaluate on, in any form that --data takes.")
    ],
    data: DataOption = None,
    seeds: Annotated[int, typer.Option(help="Devices: seeds 0, 1, ...", min=1)] = 5,
    draws: Annotated[int, typer.Option(help="Draws of samples for each.", min=1)] = 3,
    samples: Annotated[int, typer.Option(help="Samples of one calibration.")] = 10,
    device: Device = "gaussian-relative",
    drift: Drift = None,
    time: Time = None,
    scaling: Scaling = "node",
    rank: Rank = 4,
    tile_rows: TileRows = "none",
    dac_bits: DacBits = "none",
    adc_bits: AdcBits = "none",
    dac_serial_bits: DacSerialBits = "none",
    iv_sinh: IvSinh = None,
    input_shrink: InputShrink = 1.0,
    adc_gain_error: AdcGainError = None,
    adc_offset_error: AdcOffsetError = None,
    read_noise: ReadNoise = None,
    read_noise_law: NoiseLaw = "absolute",
    ideal_reads: IdealReads = False,
    wire_ohm: WireOhm = None,
    range_percentile: RangePercentile = 99.99,
    keep_digital: KeepDigital = None,
    map_shared: MapShared = False,
    adapter: Annotated[str, typer.Option(help="Parts of the adapters.")] = "dora+sparse",
    sram_budget: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES|SHARE%",
            help="SRAM for all adapters.",
            show_default="that of branches of --rank",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Name of the label array.", show_default="labels, where there is one"),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="module:callable of (outputs, other arrays), one number.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples a run.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """How much accuracy calibration gives back, over devices and draws of samples.

    Examples:
        rimc-onnx study recovery model.onnx --data calibration.npz --test test.npz

        rimc-onnx study recovery model.onnx --test test.npz --seeds 3 --draws 1 --json
    """
    from rimc_onnx.calibration.config import CalibrateConfig, parse_budget
    from rimc_onnx.studies.recovery import recovery_study

    console = Console(as_json=as_json)
    periphery = periphery_config(
        tile_rows=tile_rows,
        dac_bits=dac_bits,
        adc_bits=adc_bits,
        dac_serial_bits=dac_serial_bits,
        iv_sinh=iv_sinh,
        input_shrink=input_shrink,
        adc_gain_error=adc_gain_error,
        adc_offset_error=adc_offset_error,
        read_noise=read_noise,
        read_noise_law=read_noise_law,
        ideal_reads=ideal_reads,
        wire_ohm=wire_ohm,
        range_percentile=range_percentile,
    )
    config = convert_config(
        *(device, drift, scaling, 0, rank, periphery, keep_digital, map_shared),
        time=time,
    )
    budget_bytes, budget_frac = parse_budget(sram_budget) if sram_budget else (None, None)
    calibration = CalibrateConfig(
        num_samples=samples,
        adapter=adapter,
        sram_budget_bytes=budget_bytes,
        sram_budget_frac=budget_frac,
    )
    with console.progress("study") as progress:
        report = recovery_study(
            model,
            test=test,
            data=data,
            seeds=range(seeds),
            draws=range(draws),
            config=config,
            calibrate=calibration,
            labels=labels,
            metric=metric,
            batch_size=batch_size,
            progress=progress,
        )
    console.result(report, lambda: show_recovery(console, report))
