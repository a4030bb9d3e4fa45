# SPDX-License-Identifier: Apache-2.0
"""Run the models of ``prepare.py`` by the execution provider, in a Python with onnxruntime only.

Usage: run_provider.py FOLDER LIBRARY. ONNX Runtime 1.24 and newer: logits as ``run_python.py``
writes them, and the unconverted model runs on simulated crossbars. 1.22 and 1.23: the library has
to be refused with a message. Older ones know no provider libraries.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

PROVIDER = "RimcExecutionProvider"


def main(folder: Path, library: str) -> None:
    """Run every model with the provider and check that its kernels run."""
    name = f"onnxruntime {onnxruntime.__version__}, provider"
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 24):
        try:
            onnxruntime.register_execution_provider_library(PROVIDER, library)
        except Exception as error:  # the bindings have no common base class for statuses
            if "needs ONNX Runtime 1.24 or newer" in str(error):
                return
            raise
        sys.exit(f"{name}: {library} was not refused")
    onnxruntime.register_execution_provider_library(PROVIDER, library)
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
    counter = ctypes.CDLL(library).RimcKernelsCreated
    counter.restype = ctypes.c_int64
    x = np.fromfile(folder / "input.bin", "<f4")
    x = x.reshape(json.loads((folder / "shape.json").read_text()))

    def run(file: str, **options: str) -> np.ndarray:
        made = counter()
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3
        session_options.add_provider_for_devices(devices, options)
        session = onnxruntime.InferenceSession(file, session_options, enable_fallback=0)
        if counter() == made:
            sys.exit(f"{name}: {file} runs none of its nodes on the provider")
        return session.run(["logits"], {"input": x})[0]

    outputs = folder / "outputs" / name
    outputs.mkdir(parents=True)
    for model, file in json.loads((folder / "models.json").read_text()).items():
        run(file).astype("<f4").tofile(outputs / f"{model}.bin")
    digits = str(folder / "model.onnx")
    ideal = run(digits, device=f"@{folder / 'ideal.rimcdev'}").argmax(axis=1)
    labels = np.array(json.loads((folder / "labels.json").read_text()))
    if (ideal == labels).mean() < 0.95:
        sys.exit(f"{name}: {digits} is not what it was without drift")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
