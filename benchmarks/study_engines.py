# SPDX-License-Identifier: Apache-2.0
"""A study of 200 trials by processes and by Ray, workers killed, and what the runner itself takes.

    python -m benchmarks.study_engines [--trials 200] [--images 50] [--folder FOLDER]
        [--engines one two killed ray]

from the project's root. One Gemm on the digits; 20 devices with 10 draws of samples each: trials
that take little, so that the runner shows. Where a worker is to be killed it kills itself once, in
its beginning; all rows have to be equal but for their times. What a folder has of earlier calls is
not done again, and compared, too. Times are of the processor, so that a loaded machine measures the
same: of the runner's own process over all trials, and of its workers, with one and with two of
them. The wall clock stands beside the load.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.studies.runner import Engine, Processes, run
from rimc_onnx.studies.trial import BaselineMethod, Row, Trial

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
    new: int
    """Rows that this call measured; times are of these."""
    runner_seconds: float
    """Of the processor, in this process."""
    worker_seconds: float
    """Of the processor, in those that it started and that ended."""
    wall_seconds: float
    was_killed: bool
    load: float


def _engines() -> dict[str, tuple[Callable[[], Engine], bool]]:
    """By name: how it starts, and whether a worker dies."""
    from rimc_onnx.studies.ray_engine import RayCluster

    return {
        "one": (lambda: Processes(count=1), False),
        "two": (lambda: Processes(count=2), False),
        "killed": (lambda: Processes(count=2), True),
        "ray": (lambda: RayCluster(count=4), True),
    }


def _write_model(path: Path) -> None:
    """Least squares of the digits' classes on their pixels."""
    with np.load(_DIGITS / "test.npz") as file:
        x, classes = file["input"].reshape(len(file["input"]), -1), np.eye(10)[file["labels"]]
    weight = np.linalg.lstsq(x.T @ x + 10.0 * np.eye(x.shape[1]), x.T @ classes, rcond=None)[0]
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], name="fc"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ["n", 1, 8, 8]), ("logits", ["n", 10]))
    ]
    initializer = numpy_helper.from_array(weight.astype(np.float32), "weight")
    graph = helper.make_graph(nodes, "digits", ends[:1], ends[1:], [initializer])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _trials(folder: Path, count: int, images: int) -> list[Trial]:
    _write_model(folder / "model.onnx")
    test = folder / "test.npz"
    with np.load(_DIGITS / "test.npz") as file:
        np.savez(test, **{name: array[:images] for name, array in file.items()})
    trial = Trial(
        model=folder / "model.onnx",
        test=test,
        data=_DIGITS / "calibration.npz",
        metric="benchmarks.study_engines:deadly_top1",
    )
    return [
        replace(
            trial,
            convert=ConvertConfig(seed=number // 10),
            method=BaselineMethod(name="bias", num_samples=2, sample_seed=number % 10),
        )
        for number in range(count)
    ]


def _measured(trials: Sequence[Trial], rows: Path, engine: Engine, *, kills: bool) -> _Measured:
    mark = rows.with_suffix(".kill")
    os.environ[_TO_KILL] = str(mark)
    done: list[Row] = []

    def on_row(row: Row) -> None:
        done.append(row)
        if kills and len(done) == 10:
            mark.touch()

    begun = (time.process_time(), _children(), time.perf_counter())
    found = run(trials, rows, engine=engine, on_row=on_row)
    ended = (time.process_time(), _children(), time.perf_counter())
    own, workers, wall = (b - a for a, b in zip(begun, ended, strict=True))
    return _Measured(
        rows=[{k: v for k, v in row.items() if k not in _TIMES} for row in found],
        new=len(done),
        runner_seconds=own,
        worker_seconds=workers,
        wall_seconds=wall,
        was_killed=kills and not mark.exists(),
        load=os.getloadavg()[0],
    )


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--engines", nargs="+", default=list(_engines()), choices=_engines())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(exist_ok=True)
        trials = _trials(folder, arguments.trials, arguments.images)
        for label in arguments.engines:
            start, kills = _engines()[label]
            one = _measured(trials, folder / f"{label}.parquet", start(), kills=kills)
            (folder / f"{label}.json").write_text(json.dumps(asdict(one)), "utf-8")
        found = {
            label: _Measured(**json.loads(path.read_text("utf-8")))
            for label in _engines()
            if (path := folder / f"{label}.json").is_file()
        }
    return _tell(found)


def _tell(found: dict[str, _Measured]) -> int:
    for label, one in found.items():
        own, workers = (1e3 * s / max(one.new, 1) for s in (one.runner_seconds, one.worker_seconds))
        print(
            f"{label:8s} {len(one.rows)} trials, {one.new} in the last call: runner {own:.2f} ms a "
            f"trial, workers {workers:.1f} ms of the processor, wall {one.wall_seconds:.1f} s, "
            f"load {one.load:.1f}{', one killed' if one.was_killed else ''}"
        )
    rows = [one.rows for one in found.values()]
    equal = all(other == rows[0] for other in rows)
    errors = sum(row["error"] is not None for of_one in rows for row in of_one)
    killed = all(found[name].was_killed for name in ("killed", "ray") if name in found)
    print(f"rows equal: {equal}; {errors} errors; workers killed: {killed}")
    if all(label in found and found[label].new for label in ("one", "two")):
        one, two = found["one"], found["two"]
        wall, worker = (
            (getattr(two, name) / two.new) / (getattr(one, name) / one.new)
            for name in ("wall_seconds", "worker_seconds")
        )
        print(f"two processes over one: {wall:.2f} by the wall clock, {worker / 2:.2f} of the "
              "processor's time each")  # fmt: skip
    return 0 if equal and not errors and killed else 1


if __name__ == "__main__":
    sys.exit(_main())
