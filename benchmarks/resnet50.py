# SPDX-License-Identifier: Apache-2.0
"""A network of ResNet-50's shape with random weights: conversion and calibration at size.

    python -m benchmarks.resnet50 [--samples 10] [--rank 4] [--budget 5%]

Prints gamma (Dong, eq. 7), the time of every step and the peak memory of calibration, which runs in
a process of its own. 224 x 224 images of noise; the weights give each feature a power of about 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

__all__ = ["images", "make_model"]

_BLOCKS = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Bottleneck blocks and their inner width, by stage; outputs are 4 times as wide."""


class _Builder:
    """Appends named layers to a graph, batch norms folded as an exporter leaves them."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node; gives the name of its output."""
        node = helper.make_node(op_type, list(inputs), [f"{name}.y"], name=name, **attributes)
        self.nodes.append(node)
        return f"{name}.y"

    def normal(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        """An initializer of normal numbers."""
        values = (scale * self._random.standard_normal(shape)).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, name: str, x: str, shape: tuple[int, int, int], stride: int, gain: float) -> str:
        """A square convolution [M, C, kernel].

        ``gain`` is the power of its output for inputs of power 1 (2: what a Relu took away).
        """
        columns, channels, kernel = shape
        scale = float(np.sqrt(gain / (channels * kernel * kernel)))
        w = self.normal(f"{name}.w", (columns, channels, kernel, kernel), scale)
        b = self.normal(f"{name}.b", (columns,), 0.1)
        pads = [kernel // 2] * 4
        return self.add("Conv", name, x, w, b, strides=[stride] * 2, pads=pads)


def make_model(path: Path, *, seed: int = 0, blocks: Sequence[tuple[int, int]] = _BLOCKS) -> None:
    """Write the network: input [N, 3, 224, 224], logits [N, 1000], 25.5 M weights, opset 17.

    ``blocks``: bottleneck blocks and their inner width, by stage, for a deeper one.
    """
    build = _Builder(seed)
    x = build.add("Relu", "stem.relu", build.conv("stem", "input", (64, 3, 7), 2, 1.0))
    x = build.add("MaxPool", "pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (count, width) in enumerate(blocks):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = build.conv(f"{name}.conv1", x, (width, channels, 1), 1, 2.0)
            y = build.add("Relu", f"{name}.relu1", y)
            y = build.conv(f"{name}.conv2", y, (width, width, 3), stride, 2.0)
            y = build.add("Relu", f"{name}.relu2", y)
            y = build.conv(f"{name}.conv3", y, (4 * width, width, 1), 1, 1.0)
            if not block:
                x = build.conv(f"{name}.downsample", x, (4 * width, channels, 1), stride, 1.0)
                channels = 4 * width
            x = build.add("Relu", f"{name}.relu3", build.add("Add", f"{name}.add", y, x))
    x = build.add("Flatten", "flatten", build.add("GlobalAveragePool", "mean", x))
    weight = build.normal("fc.w", (1000, channels), channels**-0.5)
    build.nodes.append(
        helper.make_node(
            "Gemm", [x, weight, build.normal("fc.b", (1000,), 0.1)], ["logits"], "fc", transB=1
        )
    )
    graph = helper.make_graph(
        build.nodes,
        "resnet50_shape",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        build.initializers,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    onnx.save(model, path)


def images() -> Iterator[dict[str, Array]]:
    """32 images of noise, smooth as photographs are: random waves of falling power."""
    random = np.random.default_rng(0)
    power = 1 / np.maximum(1, np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224)) * 224)
    for _ in range(32):
        waves = np.fft.rfft2(random.standard_normal((1, 3, 224, 224))) * power
        x = np.fft.irfft2(waves, s=(224, 224))
        yield {"input": (x / x.std(axis=(2, 3), keepdims=True)).astype(np.float32)}


def main() -> None:
    """Make, convert, calibrate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--budget", help="bytes or share (5%%) of SRAM, in place of the rank")
    arguments = parser.parse_args()
    sram = ["--rank", str(arguments.rank)]
    if arguments.budget is not None:
        sram = ["--sram-budget", arguments.budget]
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model.onnx", Path(folder) / "images.npz"
        np.savez(data, input=np.concatenate([feed["input"] for feed in images()]))
        make_model(model)
        found = _run("convert", model, "--rank", arguments.rank)
        print(f"convert: {found['rram_weights']} weights, {found['seconds']:.1f} s")
        found = _run(
            "calibrate",
            model.with_suffix(".rimc.onnx"),
            "--data",
            data,
            *sram,
            "--samples",
            arguments.samples,
        )
        before, after = (
            float(np.mean([node[f"error_{when}"] for node in found["nodes"]]))
            for when in ("before", "after")
        )
        print(
            f"calibrate: {found['seconds']:.1f} s, peak {found['peak_rss_bytes'] / 2**30:.2f} GiB, "
            f"gamma {100 * found['gamma']:.2f} %, SRAM {found['sram_bytes']} bytes, "
            f"mean error of a node {before:.4f} before, {after:.4f} after"
        )


def _run(*command: object) -> dict[str, Any]:
    start = "from rimc_onnx.cli.main import main; main()"
    program = [sys.executable, "-c", start, *map(str, command), "--json"]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
