# SPDX-License-Identifier: Apache-2.0
"""Run a deployed model on test images: needs onnxruntime and numpy, no part of rimc-onnx.

Usage: app.py MODEL.onnx DATA.npz [--adapter FILE.onnx_adapter] [--library LIBRARY]
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime


def main() -> None:
    """Print the accuracy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", help="arrays input [N, 1, 8, 8] float32 and labels [N]")
    parser.add_argument("--adapter", help="adapter of a swappable model")
    parser.add_argument("--library", help="the native operator library of rimc-onnx")
    arguments = parser.parse_args()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a swappable model is warned of, input by input
    if arguments.library:
        options.register_custom_ops_library(arguments.library)
    session = onnxruntime.InferenceSession(
        arguments.model, options, providers=["CPUExecutionProvider"]
    )
    run_options = onnxruntime.RunOptions()
    if arguments.adapter:
        adapter = onnxruntime.LoraAdapter()  # has to live as long as it is active
        adapter.Load(arguments.adapter)
        run_options.add_active_adapter(adapter)

    with np.load(arguments.data) as data:
        images, labels = data["input"], data["labels"]
    (logits,) = session.run(["logits"], {"input": images}, run_options)
    right = int((logits.argmax(axis=1) == labels).sum())
    print(f"{right} of {len(labels)} right, accuracy {100 * right / len(labels):.1f} %")


if __name__ == "__main__":
    main()
