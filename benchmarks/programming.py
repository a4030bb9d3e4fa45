# SPDX-License-Identifier: Apache-2.0
"""Seconds to program the weights of a ResNet-50 with every device preset, halfway along its time.

    python -m benchmarks.programming [--weights 25.5e6] [--threads 2] [--repeats 3] [--numpy]

Prints a table in Markdown: the native library without and with stuck devices, the best of
``--repeats``; with ``--numpy``, the numpy code too, once and in one thread, over a tenth of the
weights. ``RIMC_ISA`` picks the kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rimc_onnx import runtime
from rimc_onnx.device import DeviceConfig, cell_law, get_preset, list_presets, program
from rimc_onnx.runtime.programming import program_cells


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, default=25.5e6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--numpy", action="store_true")
    arguments = parser.parse_args()
    w = np.random.default_rng(0).standard_normal(int(arguments.weights), dtype=np.float32)
    print(f"{w.size} weights, {runtime.build_info()['isa']}, {arguments.threads} threads\n")
    print("| device | native | with stuck devices | numpy |\n|---|---|---|---|")
    for name in list_presets():
        device = get_preset(name)
        faulty = replace(device, stuck_min_frac=0.01, stuck_max_frac=0.01)
        times = [
            min(
                _seconds(lambda d=d: _native(w, d, arguments.threads))
                for _ in range(arguments.repeats)
            )
            for d in (device, faulty)
        ]
        row = [f"{t:.2f} s" for t in times]
        row.append(f"{_numpy_seconds(w, device):.1f} s" if arguments.numpy else "")
        print(f"| `{name}` | {' | '.join(row)} |", flush=True)


def _age(device: DeviceConfig) -> float | None:
    """The geometric middle of a model's times."""
    if device.time_range_s is None:
        return None
    first, last = device.time_range_s
    return float(np.sqrt(max(first, 1.0) * last))


def _native(w: np.ndarray, device: DeviceConfig, threads: int) -> None:
    law = cell_law(device, device.resolve_time(_age(device))).values()
    w_max = np.abs(w).max(keepdims=True)
    program_cells(w, w_max=w_max, run=w.size, node="n", seed=1, law=law, max_threads=threads)


def _numpy_seconds(w: np.ndarray, device: DeviceConfig) -> float:
    part = w[: max(w.size // 10, 1)]
    seconds = _seconds(
        lambda: program(part, node="n", seed=1, config=device, column_axis=0, time_s=_age(device))
    )
    return seconds * w.size / part.size


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
