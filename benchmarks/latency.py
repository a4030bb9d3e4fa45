# SPDX-License-Identifier: Apache-2.0
"""Latency and peak memory of converted models against their fp32 teachers in the same process.

    python -m benchmarks.latency [--rounds 31] [--threads 2] [--rank R] [--networks ResNet-20 ...]
        [--kinds ideal tiled all] [--paths provider native stock] [--adapters] [--cpu-time]
        [--json docs/figures/latency.json --processor "AVX2 (AMD EPYC 7003)"]

Every model is calibrated first (10 samples, default SRAM or one rank; ResNet-50's shape: rank 4):
its branches do real work. ``twin`` is the ideal model with its adapters folded in, float32 in stock
ONNX Runtime. ``--adapters`` prints instead, for the convolutions of ResNet-50's shape and for the
whole network, what the low-rank part of an adapter of rank 4 costs on top of its node.

Sessions take turns, run after run; a ratio is taken within a turn and its median is printed. With
several threads each has a core of its own, and a turn begins when those of the session before
sleep. Peak memory is that of a process of its own that loads the model and runs it.

``--json`` puts the ratios into a file that benchmarks.latency_table makes README's table of, one
run for each processor and number of threads; networks that were not measured keep their ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import rimc_onnx
from benchmarks import resnet50
from benchmarks.datasets import DATA
from benchmarks.latency_table import put_run
from rimc_onnx import passes, runtime
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.runtime.provider import provider_session

Feeds = dict[str, np.ndarray[Any, Any]]

_TURN_S = 0.05
_PAUSE_S = 0.15
"""Threads of ONNX Runtime look for work for tens of milliseconds before they sleep: those of the
session before would have a core that this one's need."""
_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

_TILED = {"tile_rows": 128, "dac_bits": 8, "adc_bits": 8}
_KINDS = {
    "ideal": PeripheryConfig(),
    "tiled": PeripheryConfig(**_TILED),
    "all": PeripheryConfig(**_TILED, read_noise_frac=0.01, iv_sinh=2.0),
}
"""Drift only; 8-bit converters and tiles of 128 rows; read noise and sinh word lines too."""
_PATHS = ("provider", "native", "stock")
"""The library as a provider, its custom ops, and the function bodies without it."""

_SHAPES = [
    (64, 64, 1, 56),
    (64, 256, 1, 56),
    (256, 64, 1, 56),
    (64, 64, 3, 56),
    (128, 512, 1, 28),
    (512, 128, 1, 28),
    (128, 128, 3, 28),
    (256, 1024, 1, 14),
    (1024, 256, 1, 14),
    (256, 256, 3, 14),
    (512, 2048, 1, 7),
    (2048, 512, 1, 7),
    (512, 512, 3, 7),
]
"""Input and output channels, kernel and image size of ResNet-50's convolutions of stride 1."""


def _images(batch: int, size: int = 32) -> Callable[[], Feeds]:
    return lambda: {
        "input": np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    }


def _tokens(batch: int, length: int) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
        return {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int64)}

    return feeds


_DEPTH = 1152


def _rows(count: int) -> Callable[[], Feeds]:
    return lambda: {"x": np.random.default_rng(0).normal(size=(count, _DEPTH)).astype(np.float32)}


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
    "ResNet-50": (
        Path("resnet50.onnx"),  # made here
        "benchmarks.resnet50:images",
        {"batch 1": _images(1, 224), "batch 8": _images(8, 224)},
    ),
    "MatMul": (
        Path("matmul.onnx"),  # made here
        "benchmarks.latency:rows",
        {"4096 x 1152 x 256": _rows(4096)},
    ),
}


def rows() -> Iterator[Feeds]:
    """Calibration data of ``MatMul``: rows of noise."""
    for seed in range(64):
        yield {"x": np.random.default_rng(seed).normal(size=(1, _DEPTH)).astype(np.float32)}


def _make_matmul(path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(_DEPTH, 256)).astype(np.float32) / _DEPTH**0.5
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 256])],
        [numpy_helper.from_array(w.astype(np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), path)


_MAKERS: dict[str, Callable[[Path], object]] = {
    "ResNet-50": resnet50.make_model,
    "MatMul": _make_matmul,
}


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, help="one rank for all nodes, not the default SRAM")
    parser.add_argument("--networks", nargs="+", choices=_NETWORKS, default=["ResNet-20", "MiniLM"])
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--paths", nargs="+", choices=_PATHS, default=list(_PATHS))
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, on a busy machine")
    parser.add_argument("--adapters", action="store_true", help="what an adapter costs its node")
    parser.add_argument("--json", type=Path, help="puts the ratios into this file")
    parser.add_argument("--processor", help="its class, with --json")
    arguments = parser.parse_args()
    if (arguments.json is None) != (arguments.processor is None):
        parser.error("--json and --processor go together")
    if arguments.cpu_time:
        arguments.threads = 1
    ratios: dict[str, dict[str, float]] = {}
    info = runtime.build_info()
    print(f"{platform.machine()}, {arguments.threads} threads, {arguments.rounds} rounds; {info}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.adapters:
            _measure_adapters(Path(folder), arguments)
            return
        for name in arguments.networks:
            teacher, data, feeds = _NETWORKS[name]
            rank = arguments.rank
            if name in _MAKERS:
                teacher, rank = Path(folder) / teacher, rank or 4
                _MAKERS[name](teacher)
            files = _prepare(teacher, data, Path(folder) / name, arguments.kinds, rank)
            for what, make in feeds.items():
                title = f"{name}, {what}"
                ratios[title] = _measure(title, teacher, files, make(), arguments)
    if arguments.json:
        run = {
            "processor": arguments.processor,
            "isa": info["isa"],
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "onnxruntime": info["onnxruntime"],
            "ratios": ratios,
        }
        put_run(arguments.json, run)


def _prepare(
    teacher: Path, data: str, folder: Path, kinds: list[str], rank: int | None
) -> dict[str, Path]:
    folder.mkdir()
    files = {}
    for kind in kinds:
        converted = rimc_onnx.convert(
            teacher,
            folder / f"{kind}.rimc.onnx",
            config=ConvertConfig(periphery=_KINDS[kind]),
            data=data,
        )
        report = rimc_onnx.calibrate(
            str(converted.output), data=data, teacher=teacher, config=CalibrateConfig(rank=rank)
        )
        files[kind] = Path(report.output)
    if "ideal" in kinds:
        twin = load_model(files["ideal"])
        passes.FoldAdaptersPass()(twin)
        files["twin"] = folder / "twin.onnx"
        save_model(twin, files["twin"], force=False)
    return files


def _session(path: Path, how: str, threads: int) -> Any:
    # A scheduler may put two threads of a session that runs for a millisecond on one core.
    options = {}
    if len(_CORES) >= threads > 1:
        others = ";".join(str(core + 1) for core in _CORES[1:threads])
        options["session.intra_op_thread_affinities"] = others
    if how == "provider":
        return provider_session(path, num_threads=threads, options=options)
    return runtime.make_session(path, native=how == "native", num_threads=threads, options=options)


def _measure(
    title: str, teacher: Path, files: dict[str, Path], feeds: Feeds, arguments: argparse.Namespace
) -> dict[str, float]:
    runs = {"fp32 teacher": (teacher, "stock")}
    if "twin" in files:
        runs["twin"] = (files["twin"], "stock")
    for kind in arguments.kinds:
        runs |= {f"{kind}, {how}": (files[kind], how) for how in arguments.paths}
    sessions = {name: _session(path, how, arguments.threads) for name, (path, how) in runs.items()}
    times = _take_turns(sessions, feeds, arguments)
    reference = times["fp32 teacher"]
    print(f"\n{title}: fp32 teacher {1e3 * statistics.median(reference):.2f} ms")
    print(f"  {'':20s} ratio (25-75 %)        peak memory")
    ratios = {}
    for name, (path, how) in runs.items():
        low, middle, high = _ratios(times[name], reference)
        ratios[name] = round(middle, 2)
        peak = _peak_mib(path, how, feeds, arguments.threads)
        print(f"  {name:20s} {middle:5.2f} ({low:.2f}-{high:.2f})     {peak:8.0f} MiB", flush=True)
    return ratios


def _take_turns(
    sessions: dict[str, Any], feeds: Feeds, arguments: argparse.Namespace
) -> dict[str, list[float]]:
    if _CORES:
        os.sched_setaffinity(0, _CORES[:1])
    try:
        return _times(sessions, feeds, arguments)
    finally:
        if _CORES:
            os.sched_setaffinity(0, _CORES)


def _times(
    sessions: dict[str, Any], feeds: Feeds, arguments: argparse.Namespace
) -> dict[str, list[float]]:
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    for session in sessions.values():
        _seconds(session, feeds, 3, clock)
    # A turn lasts long enough that waking the threads of the next session does not show.
    repeats = {
        n: max(1, round(_TURN_S / _seconds(s, feeds, 3, clock))) for n, s in sessions.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(arguments.rounds):
        for name, session in sessions.items():
            if arguments.threads > 1:
                time.sleep(_PAUSE_S)
                _seconds(session, feeds, 3, clock)
            times[name].append(_seconds(session, feeds, repeats[name], clock))
    return times


def _ratios(times: list[float], reference: list[float]) -> tuple[float, float, float]:
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


def _measure_adapters(folder: Path, arguments: argparse.Namespace) -> None:
    print(f"\nrank {arguments.rank or 4}, provider: time of the node with its adapter over without")
    for shape in _SHAPES:
        channels, columns, kernel, size = shape
        teacher = folder / "conv.onnx"
        onnx.save(_convolution(*shape), teacher)
        x = np.random.default_rng(0).normal(size=(1, channels, size, size)).astype(np.float32)
        name = f"{channels} -> {columns}, {kernel} x {kernel}, {size} x {size}"
        _measure_branches(name, teacher, {"x": x}, arguments)
    teacher = folder / "resnet50.onnx"
    resnet50.make_model(teacher)
    for batch in (1, 8):
        _measure_branches(f"ResNet-50, batch {batch}", teacher, _images(batch, 224)(), arguments)


def _measure_branches(
    name: str, teacher: Path, feeds: Feeds, arguments: argparse.Namespace
) -> None:
    """Of all nodes of a model, with and without the low-rank parts of their adapters."""
    converted = teacher.with_suffix(".rimc.onnx")
    config = ConvertConfig(rank=arguments.rank or 4)
    rimc_onnx.convert(teacher, converted, config=config, force=True)
    # As converted B is zero, and its kernels don't run.
    model = onnx.load(converted)
    files = {"without": converted, "with": teacher.with_suffix(".with.rimc.onnx")}
    for tensor in model.graph.initializer:
        if tensor.name.endswith("/lora_b"):
            ones = np.ones_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(ones, tensor.name))
    onnx.save(model, files["with"])
    sessions = {n: _session(f, "provider", arguments.threads) for n, f in files.items()}
    times = _take_turns(sessions, feeds, arguments)
    low, middle, high = _ratios(times["with"], times["without"])
    print(f"  {name:32s} {middle:5.3f} ({low:.3f}-{high:.3f})", flush=True)


def _convolution(channels: int, columns: int, kernel: int, size: int) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    w = random.normal(size=(columns, channels, kernel, kernel)).astype(np.float32)
    bias = np.zeros(columns, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["h"], "conv", pads=[kernel // 2] * 4),
            helper.make_node("Relu", ["h"], ["y"], "relu"),
        ],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns, size, size])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _seconds(session: Any, feeds: Feeds, repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        session.run(None, feeds)
    return (clock() - start) / repeats


def _peak_mib(path: Path, how: str, feeds: Feeds, threads: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_alone, (path, how, feeds, threads))


def _run_alone(path: Path, how: str, feeds: Feeds, threads: int) -> float:
    session = _session(path, how, threads)
    for _ in range(5):
        session.run(None, feeds)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
