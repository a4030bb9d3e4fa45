# SPDX-License-Identifier: Apache-2.0
"""Write the models and the raw test data that every runtime of ``run.sh`` is given.

Usage: prepare.py FOLDER. Leaves ``models.json`` (model name -> file), ``input.bin`` (float32,
little-endian), ``shape.json`` and ``labels.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from rimc_onnx import calibrate, convert
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset
from rimc_onnx.jobs.device_file import write_device_file

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"

PERIPHERIES = {
    "ideal": PeripheryConfig(),
    "8 bits": PeripheryConfig(tile_rows=64, dac_bits=8, adc_bits=8),
}


def main(folder: Path) -> None:
    """Convert and calibrate the sample, once for every periphery."""
    for name in ("model.onnx", "calibration.npz"):
        shutil.copy(DIGITS / name, folder / name)
    models = {}
    for name, periphery in PERIPHERIES.items():
        converted = folder / f"{name.replace(' ', '-')}.rimc.onnx"
        convert(folder / "model.onnx", converted, config=ConvertConfig(periphery=periphery))
        models[name] = calibrate(converted).output
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["input"], test["labels"]
    write_device_file(get_preset("gaussian-relative", drift_frac=0.0), folder / "ideal.rimcdev")
    images.astype("<f4").tofile(folder / "input.bin")
    (folder / "shape.json").write_text(json.dumps(images.shape))
    (folder / "labels.json").write_text(json.dumps(labels.tolist()))
    (folder / "models.json").write_text(json.dumps(models))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
