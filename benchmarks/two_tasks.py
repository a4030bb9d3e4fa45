# SPDX-License-Identifier: Apache-2.0
"""Two tasks on one set of arrays in one live session: the table in docs/training.md.

    python -m benchmarks.two_tasks [--device wan2022-aihwkit] [--time 1d] [--steps 400] [--seeds 3]

The digits' network is converted once for every device. Its adapters alone are trained on the
device's outputs, from class indices: once for the ten digits, once for four kinds (at least five or
not, odd or even). Then one session of the arrays answers both tasks, with the adapter that each run
names. Printed are the shares of right answers on the 500 test images, by adapter and task, as means
over the devices; the digits without any adapter; and bytes of an adapter file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import rimc_onnx
from benchmarks.training import NETWORKS
from rimc_onnx.crossbar import ConvertConfig
from rimc_onnx.device import get_preset, parse_time
from rimc_onnx.execution.sessions import open_session
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.jobs.finetune import finetune
from rimc_onnx.passes import MakeAdaptersSwappablePass
from rimc_onnx.training.config import FinetuneConfig, Loss

Labels = np.ndarray[Any, Any]
TASKS: dict[str, Callable[[Labels], Labels]] = {
    "ten digits": lambda y: y,
    "four kinds": lambda y: (y >= 5) + 2 * (y % 2),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="wan2022-aihwkit")
    parser.add_argument("--time", default="1d")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(_device(Path(folder), seed, arguments))
    for name in found[0]:
        values = [row[name] for row in found]
        print(f"{name:40s} {np.mean(values):8.1f}  ({min(values):.1f} to {max(values):.1f})")


def _device(folder: Path, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    network = NETWORKS["digits"]()
    assert isinstance(network.train, dict)
    device = get_preset(arguments.device)
    time_s = None if device.time_law is None else parse_time(arguments.time)
    model = folder / "model.rimc.onnx"
    config = ConvertConfig(device=device, time_s=time_s, seed=seed)
    rimc_onnx.convert(network.model, model, config=config)
    found = {
        "no adapter, ten digits, %": 100 * (rimc_onnx.evaluate(model, data=network.test).top1 or 0)
    }
    for name, label in TASKS.items():
        finetune(
            model,
            folder / "trained.onnx",
            data={**network.train, "labels": label(network.train["labels"]).astype(np.int64)},
            config=FinetuneConfig(
                loss=Loss.TASK, steps=arguments.steps, learning_rate=4e-3, batch_size=32
            ),
            adapter_file=folder / f"{name}.onnx_adapter",
            force=True,
        )
    live = load_model(model)
    MakeAdaptersSwappablePass()(live)
    save_model(live, folder / "live.onnx", force=False)
    session = open_session(folder / "live.onnx", native=True)
    test = network.test
    for adapter_name in TASKS:
        adapter, options = ort.LoraAdapter(), ort.RunOptions()
        path = folder / f"{adapter_name}.onnx_adapter"
        adapter.Load(str(path))
        options.add_active_adapter(adapter)
        (logits,) = session.run(None, {"input": test["input"]}, options)
        for task, label in TASKS.items():
            is_right = logits.argmax(1) == label(test["labels"])
            found[f"adapter of {adapter_name}, {task}, %"] = 100 * float(is_right.mean())
        found[f"adapter of {adapter_name}, bytes"] = path.stat().st_size
    return found


if __name__ == "__main__":
    main()
