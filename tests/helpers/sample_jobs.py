# SPDX-License-Identifier: Apache-2.0
"""Jobs on the digits sample that several test modules of calibration run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rimc_onnx import calibrate, evaluate
from rimc_onnx.calibration.config import CalibrateConfig


def top1(path: Path, *, native: bool = True) -> float:
    """Accuracy on ``test.npz`` beside the model."""
    found = evaluate(path, data=path.parent / "test.npz", native=native).top1
    assert found is not None
    return found


def calibrated(folder: Path, name: str, **config: Any) -> Path:
    """``model.rimc.onnx`` of a folder, calibrated into another file of it."""
    out = folder / name
    calibrate(folder / "model.rimc.onnx", out, config=CalibrateConfig(**config), force=True)
    return out
