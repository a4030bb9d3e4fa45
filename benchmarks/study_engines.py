# SPDX-License-Identifier: Apache-2.0
"""A study of 200 trials by processes and by Ray, workers killed, and what the runner itself takes.

    python -m benchmarks.study_engines [--trials 200] [--ray-workers 4] [--images 50] [--no-ray]

from the project's root. Digits; 20 devices with ranks 1 to 10 each. A worker of every engine kills
itself once, in the middle; all rows have to be equal but for their times. Times are of the
processor, so that a loaded machine measures the same: of the runner's own process over all trials,
and of its workers, with one and with two of them. The wall clock stands beside the load.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.studies.runner import Engine, Processes, run
from rimc_onnx.studies.trial import Row, Trial

_DIGITS = Path(__file__).resolve().parents[1] / "samples" / "digits"
_TO_KILL = "RIMC_STUDY_ENGINES_KILL"
"""Names a file whose taking away kills the process that took it."""
_TIMES = {"seconds", "calibration_seconds"}


def deadly_top1(
    outputs: dict[str, npt.NDArray[np.float32]], extras: dict[str, npt.NDArray[np.int64]]
) -> float:
    """Top-1 of the labels; whoever finds the file to kill by dies instead."""
    if path := os.environ.get(_TO_KILL):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        else:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    (logits,) = outputs.values()
    return float((logits.argmax(-1) == extras["labels"]).mean())


@dataclass(frozen=True, kw_only=True)
class _Measured:
    rows: list[Row]
    runner_seconds: float
    """Of the processor, in this process."""
    worker_seconds: float
    """Of the processor, in those that it started and that ended."""
    wall_seconds: float
    was_killed: bool


def _trials(folder: Path, count: int, images: int) -> list[Trial]:
    test = folder / "test.npz"
    with np.load(_DIGITS / "test.npz") as file:
        np.savez(test, **{name: array[:images] for name, array in file.items()})
    trial = Trial(
        model=_DIGITS / "model.onnx",
        test=test,
        data=_DIGITS / "calibration.npz",
        metric="benchmarks.study_engines:deadly_top1",
    )
    return [
        replace(
            trial,
            convert=ConvertConfig(seed=number // 10),
            method=CalibrateConfig(num_samples=4, rank=number % 10 + 1, allow_identity=True),
        )
        for number in range(count)
    ]


def _measured(trials: Sequence[Trial], rows: Path, engine: Engine, *, kills: bool) -> _Measured:
    mark = rows.with_suffix(".kill")
    os.environ[_TO_KILL] = str(mark)
    half = len(trials) // 2
    done: list[Row] = []

    def on_row(row: Row) -> None:
        done.append(row)
        if kills and len(done) == half:
            mark.touch()

    begun = (time.process_time(), _children(), time.perf_counter())
    found = run(trials, rows, engine=engine, on_row=on_row)
    ended = (time.process_time(), _children(), time.perf_counter())
    own, workers, wall = (b - a for a, b in zip(begun, ended, strict=True))
    return _Measured(
        rows=[{k: v for k, v in row.items() if k not in _TIMES} for row in found],
        runner_seconds=own,
        worker_seconds=workers,
        wall_seconds=wall,
        was_killed=kills and not mark.exists(),
    )


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--ray-workers", type=int, default=4)
    parser.add_argument("--no-ray", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, _Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials = _trials(folder, arguments.trials, arguments.images)
        for count in (1, 2):
            engine = Processes(count=count)
            label = f"processes, {count}"
            found[label] = _measured(trials, folder / f"{count}.parquet", engine, kills=False)
            _tell(label, found[label], len(trials))
        killed = Processes(count=2)
        label = "processes, 2, one killed"
        found[label] = _measured(trials, folder / "killed.parquet", killed, kills=True)
        _tell(label, found[label], len(trials))
        if not arguments.no_ray:
            from rimc_onnx.studies.ray_engine import RayCluster

            cluster = RayCluster(count=arguments.ray_workers)
            label = f"Ray, {arguments.ray_workers}, one killed"
            found[label] = _measured(trials, folder / "ray.parquet", cluster, kills=True)
            _tell(label, found[label], len(trials))
    first = found["processes, 1"]
    equal = all(one.rows == first.rows for one in found.values())
    errors = sum(row["error"] is not None for row in first.rows)
    all_killed = all(one.was_killed for label, one in found.items() if "killed" in label)
    two = found["processes, 2"]
    print(f"rows equal: {equal}; {errors} errors; workers killed: {all_killed}")
    print(
        f"two processes over one: {two.wall_seconds / first.wall_seconds:.2f} by the wall clock, "
        f"{two.worker_seconds / 2 / first.worker_seconds:.2f} of the processor's time each"
    )
    return 0 if equal and not errors and all_killed else 1


def _tell(label: str, one: _Measured, count: int) -> None:
    print(
        f"{label:26s} runner {1e3 * one.runner_seconds / count:6.2f} ms a trial, workers "
        f"{one.worker_seconds:6.1f} s of the processor, wall {one.wall_seconds:6.1f} s, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(_main())
