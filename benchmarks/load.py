# SPDX-License-Identifier: Apache-2.0
"""Time to open a session: a converted network of ResNet-50's shape against its fp32 teacher.

    python -m benchmarks.load [--rounds 15] [--rank 4]

The network has 25.5 M random weights. Sessions are opened in turn and closed again: the teacher in
plain ONNX Runtime, the converted and the calibrated model with the native library. The shortest of
all rounds counts, as CPU time of all threads and as wall-clock time; files are in the page cache.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import rimc_onnx
from benchmarks.resnet50 import make_model
from rimc_onnx import runtime
from rimc_onnx.calibration.config import CalibrateConfig


def main() -> None:
    """Make the models, open them in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, help="one rank for all nodes, not the default SRAM")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {arguments.threads} threads; {runtime.build_info()}")
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "model.onnx"
        make_model(teacher)
        converted = teacher.with_suffix(".rimc.onnx")
        rimc_onnx.convert(teacher, converted)
        calibrated = rimc_onnx.calibrate(
            converted,
            data="benchmarks.resnet50:images",
            teacher=teacher,
            config=CalibrateConfig(rank=arguments.rank),
        ).output
        runs = {
            "fp32 teacher": (teacher, False),
            "converted, native": (converted, True),
            "calibrated, native": (Path(calibrated), True),
            "calibrated, stock function body": (Path(calibrated), False),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, (path, native) in runs.items():
                times[name].append(_open(path, native, arguments.threads))
    print(f"{'':34s} CPU time   ratio   wall clock   ratio")
    cpu0, wall0 = _shortest(times["fp32 teacher"])
    for name, found in times.items():
        cpu, wall = _shortest(found)
        print(
            f"{name:34s} {1e3 * cpu:5.0f} ms   {cpu / cpu0:5.2f}   "
            f"{1e3 * wall:7.0f} ms   {wall / wall0:5.2f}"
        )


def _open(path: Path, native: bool, threads: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    session = runtime.make_session(path, native=native, num_threads=threads)
    found = time.process_time() - cpu, time.perf_counter() - wall
    del session
    return found


def _shortest(times: list[tuple[float, float]]) -> tuple[float, float]:
    return min(cpu for cpu, _ in times), min(wall for _, wall in times)


if __name__ == "__main__":
    main()
