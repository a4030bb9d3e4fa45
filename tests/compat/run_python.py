# SPDX-License-Identifier: Apache-2.0
"""Run the models of ``prepare.py`` in the ONNX Runtime of this Python, which needs only that.

The test images, and a batch of zero.

Usage: run_python.py FOLDER [LIBRARY]. Writes ``outputs/<runtime>/<model>.bin``, logits in float32.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: Path, library: str | None) -> None:
    """Run every model; with a library, check that its kernels run and not the function bodies."""
    name = f"onnxruntime {onnxruntime.__version__}{', native' if library else ''}"
    outputs = folder / "outputs" / name
    outputs.mkdir(parents=True)
    shape = json.loads((folder / "shape.json").read_text())
    x = np.fromfile(folder / "input.bin", "<f4").reshape(shape)
    for model, file in json.loads((folder / "models.json").read_text()).items():
        options = onnxruntime.SessionOptions()
        made = 0
        if library:
            options.register_custom_ops_library(library)
            counter = ctypes.CDLL(library).RimcKernelsCreated
            counter.restype = ctypes.c_int64
            made = counter()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        if library and counter() == made:
            sys.exit(f"{name}: {file} runs on its function bodies, not on {library}")
        (logits,) = session.run(["logits"], {"input": x})
        (nothing,) = session.run(["logits"], {"input": x[:0]})
        if nothing.shape != (0, *logits.shape[1:]):
            sys.exit(f"{name}: {file} makes {nothing.shape} of a batch of zero")
        logits.astype("<f4").tofile(outputs / f"{model}.bin")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
