# SPDX-License-Identifier: Apache-2.0
"""Every baseline of studies on one converted model, the table of docs/baselines.md.

    python -m benchmarks.baselines [--network digits|resnet20] [--device gaussian-relative|own.toml]
        [--time 1d] [--baselines bias lora ...] [--seeds 3] [--images 1000] [--train TRAIN.npz]
        [--samples 10] [--option epochs=3 batch_size=32]

A row per baseline: top-1 on test images, mean over devices (seeds of the conversion), bytes of
SRAM, weights written into arrays, seconds. ``--train`` is for the baselines that train off line
(vera-plus) and for back-propagation with many samples (``--samples``); otherwise the calibration's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import rimc_onnx
from benchmarks.training import NETWORKS, drawn
from rimc_onnx.crossbar import ConvertConfig
from rimc_onnx.device import get_preset, load_device, parse_time
from rimc_onnx.studies.baselines import BASELINES, BaselineProblem

_OFF_LINE = {"vera-plus"}
"""Trained on what a factory has, not on samples of the field."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="digits")
    parser.add_argument("--device", default="gaussian-relative")
    parser.add_argument("--drift", type=float)
    parser.add_argument("--time", default="1d")
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--samples", type=int, help="in place of each baseline's default")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--train")
    arguments = parser.parse_args()
    given_options = [text.split("=", 1) for text in arguments.option]
    changes = {} if arguments.drift is None else {"drift_frac": arguments.drift}
    if arguments.device.endswith(".toml"):
        device = load_device(Path(arguments.device), **changes)
    else:
        device = get_preset(arguments.device, **changes)
    time_s = None if device.time_law is None else parse_time(arguments.time)
    config = ConvertConfig(device=device, time_s=time_s, rank=2)
    network = NETWORKS[arguments.network]()
    test = drawn(network.test, arguments.images)
    clean = _top1(network.model, test, native=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        devices = []
        for seed in range(arguments.seeds):
            devices.append(folder / f"{seed}.rimc.onnx")
            rimc_onnx.convert(network.model, devices[-1], config=replace(config, seed=seed))
        drifted = np.mean([_top1(d, test) for d in devices])
        print(f"clean {clean:.2f}, drifted {drifted:.2f}", flush=True)
        print("baseline                    top-1   SRAM bytes  RRAM writes  seconds", flush=True)
        for baseline in arguments.baselines:
            given = arguments.train or (network.train if baseline in _OFF_LINE else None)
            options: dict[str, Any] = {n: json.loads(v) for n, v in given_options}
            if arguments.samples is not None:
                options["num_samples"] = arguments.samples
            rows = []
            for seed, converted in enumerate(devices):
                problem = BaselineProblem(
                    teacher=network.model,
                    converted=converted,
                    data=given or network.calibration,
                    labels="labels",
                    out=folder / f"{baseline}.{seed}.onnx",
                    options=options,
                )
                result = BASELINES[baseline](problem)
                costs = (result.sram_bytes, result.rram_writes, result.seconds)
                rows.append((_top1(result.model, test), *costs))
            top1, sram, writes, seconds = np.mean(rows, axis=0)
            print(
                f"{baseline:26s} {top1:6.2f} {sram:12.0f} {writes:12.3g} {seconds:8.1f}", flush=True
            )


def _top1(model: Path, test: dict[str, Any], *, native: bool = True) -> float:
    return 100 * (rimc_onnx.evaluate(model, data=test, native=native).top1 or 0.0)


if __name__ == "__main__":
    main()
