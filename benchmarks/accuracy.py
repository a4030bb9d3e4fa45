# SPDX-License-Identifier: Apache-2.0
"""Clean, drifted and calibrated accuracy of ResNet-20 / CIFAR-100 on all 5,000 test images.

    python -m benchmarks.accuracy [--seeds 5] [--samples 10] [--rank 2] [--budget] [--drift 0.2]
        [--solver adam] [--read-out] [--device gaussian-relative] [--scaling node]

One row per drift seed, with the native library and in stock ONNX Runtime. ``--read-out`` brings a
statistics file of 256 training images along; it needs ``--samples 0`` or more.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx

import rimc_onnx
from benchmarks.datasets import DATA
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.config import ConvertConfig
from rimc_onnx.device import Scaling, get_preset

_DATA = "benchmarks.datasets:cifar100_calibration"
_TEST = "benchmarks.datasets:cifar100_test"


_FIGURES = "{:7.2f} {:8.2f}  {:10.2f} {:8.2f}  {:7.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--sample-seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=2, help="rank that is converted for")
    parser.add_argument("--budget", action="store_true", help="its SRAM as one budget")
    parser.add_argument("--drift", type=float, default=0.2)
    parser.add_argument("--device", default="gaussian-relative")
    parser.add_argument("--scaling", choices=[s.value for s in Scaling], default="node")
    parser.add_argument("--solver", nargs="+", default=["closed-form"], help="one or more")
    parser.add_argument("--read-out", action="store_true", help="with a statistics file")
    parser.add_argument("--model", default="resnet20.onnx")
    arguments = parser.parse_args()
    teacher = DATA / "resnet20_cifar100" / arguments.model
    print(f"teacher {_top1(teacher, native=False):.2f} %")
    print("solver       seed  drifted  (stock)  calibrated  (stock)  seconds  RRAM bytes kept")
    rows: dict[str, list[tuple[float, ...]]] = {solver: [] for solver in arguments.solver}
    with tempfile.TemporaryDirectory() as folder:
        known = None
        if arguments.read_out:
            known = Path(folder) / "statistics.npz"
            rimc_onnx.write_statistics(teacher, known, data=_DATA)
        for seed in range(arguments.seeds):
            target = Path(folder) / f"{seed}.rimc.onnx"
            converted = _convert(teacher, target, seed, arguments)
            for solver, found in rows.items():
                *figures, kept = _row(teacher, converted, solver, arguments, known)
                found.append(tuple(figures))
                print(f"{solver:12s} {seed:4d}  {_FIGURES.format(*figures)}  {kept}")
    for solver, found in rows.items():
        print(f"{solver:12s} mean  {_FIGURES.format(*np.mean(found, axis=0))}")


def _convert(teacher: Path, target: Path, seed: int, arguments: argparse.Namespace) -> str:
    config = ConvertConfig(
        device=get_preset(
            arguments.device, drift_frac=arguments.drift, scaling=Scaling(arguments.scaling)
        ),
        seed=seed,
        rank=arguments.rank,
    )
    return str(rimc_onnx.convert(teacher, target, config=config).output)


def _row(
    teacher: Path, converted: str, solver: str, arguments: argparse.Namespace, known: Path | None
) -> tuple[float, float, float, float, float, bool]:
    # What earlier rows left must not be collected in this one's time: torch makes that long.
    gc.collect()
    report = rimc_onnx.calibrate(
        converted,
        data=_DATA,
        teacher=teacher,
        statistics=known,
        force=True,
        config=CalibrateConfig(
            solver=solver,
            read_out=arguments.read_out,
            num_samples=arguments.samples,
            rank=None if arguments.budget else arguments.rank,
            sample_seed=arguments.sample_seed,
        ),
    )
    return (
        _top1(converted, native=True),
        _top1(converted, native=False),
        _top1(report.output, native=True),
        _top1(report.output, native=False),
        report.seconds,
        _rram_weights(converted) == _rram_weights(report.output),
    )


def _top1(model: str | Path, *, native: bool) -> float:
    top1 = rimc_onnx.evaluate(model, data=_TEST, native=native).top1
    assert top1 is not None, "the data has labels"
    return 100 * top1


def _rram_weights(path: str) -> dict[str, bytes]:
    model = onnx.load(path)
    names = {n.input[1] for n in model.graph.node if n.op_type in {"RramConv", "RramMatMul"}}
    return {t.name: t.SerializeToString() for t in model.graph.initializer if t.name in names}


if __name__ == "__main__":
    main()
