# SPDX-License-Identifier: Apache-2.0
"""ResNet-20 / CIFAR-100 on every device preset at several ages, before and after calibration.

    python -m benchmarks.devices [--device NAME ...] [--time 1s ...] [--seeds 3] [--rank 2]
        [--ideal-reads]

Prints a table in Markdown: top-1 on 5,000 test images, mean and standard deviation over seeds, of
the uncalibrated model, of one calibrated with the device as a black box, and of one whose arrays
were read out. Every age is calibrated anew, with the same samples. Ages that a preset's law does
not reach are left out; a preset without a time axis has one row.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import rimc_onnx
from benchmarks.datasets import DATA
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import format_time, get_preset, list_presets, parse_time

_DATA = "benchmarks.datasets:cifar100_calibration"
_TEST = "benchmarks.datasets:cifar100_test"
_TIMES = ("1s", "1h", "1d", "30d", "10y")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", action="append", choices=list(list_presets()))
    parser.add_argument("--time", action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rank", type=int, default=2, help="that is converted for")
    parser.add_argument("--ideal-reads", action="store_true")
    arguments = parser.parse_args()
    teacher = DATA / "resnet20_cifar100" / "resnet20.onnx"
    print(
        f"teacher {_top1(teacher, native=False):.2f} %, {arguments.seeds} seeds, "
        f"{arguments.samples} samples, 5 % SRAM\n"
    )
    print("| device | time | uncalibrated | black box | read-out |\n|---|---|---|---|---|")
    times = [parse_time(text) for text in arguments.time or _TIMES]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.device or list(list_presets()):
            for time_s in _ages(name, times):
                rows = [
                    _row(teacher, Path(folder), name, time_s, seed, arguments)
                    for seed in range(arguments.seeds)
                ]
                age = "" if time_s is None else format_time(time_s)
                cells = " | ".join(_spread(column) for column in zip(*rows, strict=True))
                print(f"| `{name}` | {age} | {cells} |", flush=True)


def _ages(name: str, times: Sequence[float]) -> list[float | None]:
    valid = get_preset(name).time_range_s
    if valid is None:
        return [None]
    # the first time of a law that begins later than the first one asked for
    ages = {max(t, valid[0]) if t == times[0] else t for t in times}
    return [t for t in sorted(ages) if valid[0] <= t <= valid[1]]


def _row(
    teacher: Path,
    folder: Path,
    name: str,
    time_s: float | None,
    seed: int,
    arguments: argparse.Namespace,
) -> list[float]:
    """Top-1 uncalibrated, calibrated as a black box, and with a read-out."""
    config = ConvertConfig(
        device=get_preset(name),
        seed=seed,
        rank=arguments.rank,
        time_s=time_s,
        periphery=PeripheryConfig(device_reads=not arguments.ideal_reads),
    )
    converted = str(
        rimc_onnx.convert(
            teacher, folder / "net.rimc.onnx", config=config, data=_DATA, force=True
        ).output
    )
    figures = [_top1(converted)]
    for read_out in (False, True):
        report = rimc_onnx.calibrate(
            converted,
            data=_DATA,
            teacher=teacher,
            config=CalibrateConfig(num_samples=arguments.samples, read_out=read_out),
            report=False,
            force=True,
        )
        figures.append(_top1(report.output))
    return figures


def _top1(model: str | Path, *, native: bool = True) -> float:
    top1 = rimc_onnx.evaluate(model, data=_TEST, native=native).top1
    assert top1 is not None, "the data has labels"
    return 100 * top1


def _spread(values: Sequence[float]) -> str:
    deviation = f" +- {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
