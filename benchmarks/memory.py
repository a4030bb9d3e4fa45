# SPDX-License-Identifier: Apache-2.0
"""Peak memory of convert, calibrate and evaluate on a model of large matrices.

    python benchmarks/memory.py --layers 40 --size 4096 FOLDER

The model is a chain of MatMul and Relu with its weights in a file of their own: 40 of 4096 x 4096
are 2.7 GB. Every command runs in a process of its own; its peak is the resident set that the kernel
counts, pages of mapped files included. The bound is 1.5 times the weights and 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

GIB = 1 << 30


def make(path: Path, layers: int, size: int) -> int:
    """Write the model, matrix by matrix; its weights in bytes."""
    random = np.random.default_rng(0)
    nodes, tensors = [], []
    length = 4 * size * size
    with (path.parent / "big.data").open("wb") as data:
        for i in range(layers):
            weight = random.standard_normal((size, size), np.float32) * np.float32(1.4 / size**0.5)
            data.write(weight.tobytes())
            tensor = onnx.TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[size, size])
            tensor.data_location = TensorProto.EXTERNAL
            places = {"location": "big.data", "offset": i * length, "length": length}
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"h{i}"], name=f"mm{i}"))
            nodes.append(helper.make_node("Relu", [f"h{i}"], [f"x{i + 1}"], name=f"relu{i}"))
    shape = ["N", size]
    graph = helper.make_graph(
        nodes,
        "big",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()
    )
    x = random.standard_normal((10, size), np.float32)
    np.savez(path.parent / "calibration.npz", x0=x)
    return layers * length


def peak(command: list[str], folder: Path) -> tuple[int, float, str]:
    """Bytes and seconds of a command, and what it printed."""
    start = time.perf_counter()
    code = "from rimc_onnx.cli.entry import main; main()"
    with (folder / "out.json").open("w+") as out:
        process = subprocess.Popen([sys.executable, "-c", code, *command], cwd=folder, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024, time.perf_counter() - start, text


def main() -> None:
    """Make the model, run the commands and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--layers", type=int, default=40)
    arguments.add_argument("--size", type=int, default=4096)
    arguments.add_argument("--samples", type=int, default=10)
    arguments.add_argument("--only", nargs="+", default=["convert", "calibrate", "evaluate"])
    given = arguments.parse_args()
    folder = given.folder
    weights = 4 * given.layers * given.size**2
    if not (folder / "big.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder / "big.onnx", given.layers, given.size)
    bound = 1.5 * weights + GIB
    data = ["--data", "calibration.npz"]
    commands = {
        "convert": ["convert", "big.onnx", "--force"],
        "calibrate": ["calibrate", "big.rimc.onnx", f"--samples={given.samples}", *data, "--force"],
        "evaluate": ["evaluate", "big.rimc.calibrated.onnx", *data],
    }
    print(f"weights {weights / 1e9:.2f} GB, bound {bound / 1e9:.2f} GB", flush=True)
    for name in given.only:
        used, seconds, text = peak([*commands[name], "--json"], folder)
        figures = json.loads(text)
        shown = {k: figures[k] for k in ("sqnr_db", "drifted", "calibrated") if k in figures}
        verdict = "ok" if used <= bound else "OVER"
        print(f"{name:10} {used / 1e9:6.2f} GB  {seconds:7.1f} s  {verdict}  {shown}", flush=True)


if __name__ == "__main__":
    main()
