# SPDX-License-Identifier: Apache-2.0
"""Clean, drifted and calibrated accuracy of ResNet-20 / CIFAR-100 on all 5,000 test images.

    python -m benchmarks.accuracy [--seeds 5] [--samples 10] [--rank 2] [--budget 5%] [--drift 0.2]
        [--solver adam] [--read-out] [--device gaussian-relative] [--scaling node]
        [--clip-sigma none] [--native] [--fp32-adapters]

One row per drift seed, with the native library and in stock ONNX Runtime, which ``--native`` leaves
out. ``error`` is the calibration's own figure of the outputs, on its samples. ``--read-out`` brings
a statistics file of 256 training images along; it needs ``--samples 0`` or more.
``--fp32-adapters`` adds what the same adapters give before A, B and S are rounded to codes, inputs
not rounded either: as dense fp32 weights, so without converters and noise.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import numpy_helper

import rimc_onnx
from benchmarks.datasets import DATA, cifar100_calibration
from rimc_onnx import passes
from rimc_onnx.calibration import fit
from rimc_onnx.calibration.config import CalibrateConfig, Solver, parse_budget
from rimc_onnx.calibration.problem import NodeProblem
from rimc_onnx.calibration.solvers.closed_form import Adapter
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import Scaling, get_preset, read_clip_sigma
from rimc_onnx.io.model_files import load_model, save_model

_TEST = "benchmarks.datasets:cifar100_test"
_FIGURES = "{:7.2f} {:8.2f}  {:10.2f} {:8.2f}  {:7.3f} {:7.2f}"
_FP32 = "  {:7.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--sample-seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=2, help="one rank for all nodes")
    parser.add_argument("--budget", help="bytes or share (5%%) of SRAM, in place of the rank")
    parser.add_argument("--native", action="store_true", help="not in stock ONNX Runtime, too")
    parser.add_argument("--drift", type=float, default=0.2)
    parser.add_argument("--device", default="gaussian-relative")
    parser.add_argument("--scaling", choices=[s.value for s in Scaling], help="default: auto")
    parser.add_argument("--clip-sigma", default="auto", help="a number, auto or none")
    parser.add_argument("--solver", nargs="+", default=["closed-form"], help="one or more")
    parser.add_argument("--read-out", action="store_true", help="with a statistics file")
    parser.add_argument("--fp32-adapters", action="store_true", help="before rounding, too")
    parser.add_argument("--model", default="resnet20.onnx")
    arguments = parser.parse_args()
    teacher = DATA / "resnet20_cifar100" / arguments.model
    print(f"teacher {_top1(teacher, native=False):.2f} %")
    print("solver       seed  drifted  (stock)  calibrated  (stock)    error seconds", end="")
    print(f"{'  fp32':9s}" if arguments.fp32_adapters else "", " RRAM bytes kept")
    form = _FIGURES + (_FP32 if arguments.fp32_adapters else "")
    rows: dict[str, list[tuple[float, ...]]] = {solver: [] for solver in arguments.solver}
    with tempfile.TemporaryDirectory() as folder:
        known = None
        if arguments.read_out:
            known = Path(folder) / "statistics.npz"
            rimc_onnx.write_statistics(teacher, known, data=_images())
        for seed in range(arguments.seeds):
            target = Path(folder) / f"{seed}.rimc.onnx"
            converted = _convert(teacher, target, seed, arguments)
            for solver, found in rows.items():
                *figures, kept = _row(teacher, converted, solver, arguments, known)
                found.append(tuple(figures))
                print(f"{solver:12s} {seed:4d}  {form.format(*figures)}  {kept}")
    for solver, found in rows.items():
        print(f"{solver:12s} mean  {form.format(*np.mean(found, axis=0))}")


@functools.cache
def _images() -> dict[str, Any]:
    """All calibration images as one array, so that several are run at once."""
    return {"input": np.concatenate([feed["input"] for feed in cifar100_calibration()])}


def _convert(teacher: Path, target: Path, seed: int, arguments: argparse.Namespace) -> str:
    config = ConvertConfig(
        device=get_preset(
            arguments.device,
            drift_frac=arguments.drift,
            scaling=None if arguments.scaling is None else Scaling(arguments.scaling),
            clip_sigma=read_clip_sigma(arguments.clip_sigma),
        ),
        seed=seed,
        rank=arguments.rank,
    )
    return str(rimc_onnx.convert(teacher, target, config=config).output)


def _row(
    teacher: Path, converted: str, solver: str, arguments: argparse.Namespace, known: Path | None
) -> tuple[Any, ...]:
    # What earlier rows left must not be collected in this one's time: torch makes that long.
    gc.collect()
    fitted: dict[str, Adapter] = {}

    def quantize(adapter: Adapter, problem: NodeProblem, *rest: Any, **more: Any) -> Any:
        fitted[problem.name] = adapter
        return round_to_codes(adapter, problem, *rest, **more)

    round_to_codes = fit.quantize
    with mock.patch.object(fit, "quantize", quantize):
        report = _calibrate(converted, teacher, solver, arguments, known)
    figures = [
        _top1(model, native=native) if native or not arguments.native else math.nan
        for model in (converted, report.output)
        for native in (True, False)
    ]
    figures += [report.calibrated.error, report.seconds]
    if arguments.fp32_adapters:
        twin = Path(converted).with_suffix(".fp32.onnx")
        _write_fp32(converted, Path(report.output), fitted, twin)
        figures.append(_top1(twin, native=False))
    return *figures, _rram_weights(converted) == _rram_weights(report.output)


def _calibrate(
    converted: str, teacher: Path, solver: str, arguments: argparse.Namespace, known: Path | None
) -> Any:
    in_bytes, frac = parse_budget(arguments.budget)
    return rimc_onnx.calibrate(
        converted,
        data=_images(),
        teacher=teacher,
        statistics=known,
        force=True,
        config=CalibrateConfig(
            solver=Solver(solver),
            read_out=arguments.read_out,
            num_samples=arguments.samples,
            rank=arguments.rank if arguments.budget is None else None,
            sram_budget_bytes=in_bytes,
            sram_budget_frac=frac,
            sample_seed=arguments.sample_seed,
        ),
    )


def _write_fp32(converted: str, calibrated: Path, fitted: dict[str, Adapter], twin: Path) -> None:
    """The digital twin of ``calibrated`` with A, B and S of ``fitted`` in each weight.

    M is that of the file: it moved when gains were matched on the student's inputs.
    """
    folded = load_model(calibrated)
    codes = {branch.node: branch.adapter() for branch in passes.rram_branches(folded)}
    gains = {n: a.magnitude * np.float64(a.magnitude_scale[0]) for n, a in codes.items()}
    passes.FoldAdaptersPass()(folded)
    save_model(folded, twin, force=True)
    cells = _rram_weights(converted)
    model = onnx.load(twin)
    weights = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in fitted:
            continue
        weight, adapter = weights[node.input[1]], fitted[node.name]
        delta = adapter.a @ adapter.b + (0 if adapter.s is None else adapter.s)
        merged = numpy_helper.to_array(cells[f"{node.name}/rram"])
        if node.op_type == "Conv":  # matrices are [G, d, m], the weight [M, C / group, *kernel]
            merged = merged + delta.transpose(0, 2, 1).reshape(merged.shape)
            merged = merged * gains[node.name].reshape(-1, *[1] * (merged.ndim - 1))
        else:
            merged = (merged + delta[0]) * gains[node.name]
        weight.CopyFrom(numpy_helper.from_array(merged.astype(np.float32), weight.name))
    onnx.save(model, twin)


def _top1(model: str | Path, *, native: bool) -> float:
    top1 = rimc_onnx.evaluate(model, data=_TEST, native=native).top1
    assert top1 is not None, "the data has labels"
    return 100 * top1


def _rram_weights(path: str) -> dict[str, onnx.TensorProto]:
    """The cells of each RRAM node."""
    graph = onnx.load(path).graph
    tensors = {t.name: t for t in graph.initializer}
    rram = [n for n in graph.node if n.op_type in {"RramConv", "RramMatMul"}]
    return {n.name: tensors[n.input[1]] for n in rram}


if __name__ == "__main__":
    main()
