# SPDX-License-Identifier: Apache-2.0
"""Latency and peak memory of converted models against their fp32 teachers in the same process.

    python -m benchmarks.latency [--rounds 31] [--threads 2] [--rank R]

Every model is calibrated first (10 samples, default SRAM or one rank): its branches do real work.
Sessions take turns, run after run; a ratio is taken within a turn and its median is printed. Peak
memory is that of a process of its own that loads the model and runs it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rimc_onnx
from benchmarks.datasets import DATA
from rimc_onnx import runtime
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.config import ConvertConfig, PeripheryConfig

Feeds = dict[str, np.ndarray[Any, Any]]

_TURN_S = 0.05

_TILED = PeripheryConfig(tile_rows=128, dac_bits=8, adc_bits=8)
_VARIANTS = {
    "ideal, native": ("ideal", True),
    "8-bit tiles, native": ("tiled", True),
    "ideal, stock function body": ("ideal", False),
    "8-bit tiles, stock function body": ("tiled", False),
}


def _images(batch: int) -> Callable[[], Feeds]:
    return lambda: {
        "input": np.random.default_rng(0).normal(size=(batch, 3, 32, 32)).astype(np.float32)
    }


def _tokens(batch: int, length: int) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
        return {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int64)}

    return feeds


_NETWORKS: dict[str, tuple[Path, str, dict[str, Callable[[], Feeds]]]] = {
    "ResNet-20": (
        DATA / "resnet20_cifar100" / "resnet20.onnx",
        "benchmarks.datasets:cifar100_calibration",
        {"batch 1": _images(1), "batch 32": _images(32)},
    ),
    "MiniLM": (
        DATA / "minilm_sts" / "minilm_l6.onnx",
        "benchmarks.datasets:sts14_calibration",
        {"batch 8 x 32 tokens": _tokens(8, 32)},
    ),
}


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, help="one rank for all nodes, not the default SRAM")
    arguments = parser.parse_args()
    info = runtime.build_info()
    print(f"{platform.machine()}, {arguments.threads} threads, {arguments.rounds} rounds; {info}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (teacher, data, feeds) in _NETWORKS.items():
            files = _prepare(teacher, data, Path(folder) / name, arguments.rank)
            for what, make in feeds.items():
                _measure(f"{name}, {what}", teacher, files, make(), arguments)


def _prepare(teacher: Path, data: str, folder: Path, rank: int | None) -> dict[str, Path]:
    folder.mkdir()
    files = {}
    for kind, periphery in (("ideal", PeripheryConfig()), ("tiled", _TILED)):
        converted = rimc_onnx.convert(
            teacher,
            folder / f"{kind}.rimc.onnx",
            config=ConvertConfig(periphery=periphery),
            data=data,
        )
        report = rimc_onnx.calibrate(
            str(converted.output), data=data, teacher=teacher, config=CalibrateConfig(rank=rank)
        )
        files[kind] = Path(report.output)
    return files


def _measure(
    title: str, teacher: Path, files: dict[str, Path], feeds: Feeds, arguments: argparse.Namespace
) -> None:
    runs: dict[str, tuple[Path, bool]] = {"fp32 teacher": (teacher, False)}
    runs |= {name: (files[kind], native) for name, (kind, native) in _VARIANTS.items()}
    sessions = {
        name: runtime.make_session(path, native=native, num_threads=arguments.threads)
        for name, (path, native) in runs.items()
    }
    for session in sessions.values():
        _seconds(session, feeds, 3)
    # A turn lasts long enough that waking the threads of the next session does not show.
    repeats = {n: max(1, round(_TURN_S / _seconds(s, feeds, 3))) for n, s in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, session in sessions.items():
            times[name].append(_seconds(session, feeds, repeats[name]))
    reference = times["fp32 teacher"]
    print(f"\n{title}: fp32 teacher {1e3 * statistics.median(reference):.2f} ms")
    print(f"  {'':34s} ratio (25-75 %)        peak memory")
    for name, (path, native) in runs.items():
        ratios = [t / r for t, r in zip(times[name], reference, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        peak = _peak_mib(path, native, feeds, arguments.threads)
        print(f"  {name:34s} {middle:5.2f} ({low:.2f}-{high:.2f})     {peak:8.0f} MiB", flush=True)


def _seconds(session: Any, feeds: Feeds, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        session.run(None, feeds)
    return (time.perf_counter() - start) / repeats


def _peak_mib(path: Path, native: bool, feeds: Feeds, threads: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_alone, (path, native, feeds, threads))


def _run_alone(path: Path, native: bool, feeds: Feeds, threads: int) -> float:
    session = runtime.make_session(path, native=native, num_threads=threads)
    for _ in range(5):
        session.run(None, feeds)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
