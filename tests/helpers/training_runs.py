# SPDX-License-Identifier: Apache-2.0
"""Short trainings of the digits sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rimc_onnx import ConvertConfig, FinetuneConfig, finetune
from rimc_onnx.device import Scaling, get_preset

WAN = ConvertConfig(
    device=get_preset("wan2022-aihwkit", scaling=Scaling.NODE, clip_sigma=math.inf),
    time_s=86400.0,
)
"""With so simple a mapping a few steps have something to gain."""


def recipe(**changes: Any) -> FinetuneConfig:
    """A few steps."""
    few = {
        "convert": WAN,
        "noise_scale": None,  # a dozen steps gain nothing under drawn deviations
        "steps": 12,
        "batch_size": 16,
        "validations": 3,
        "validation_samples": 64,
        "validation_devices": 1,
    }
    return FinetuneConfig(**(few | changes))


def run(folder: Path, name: str, config: FinetuneConfig, **arguments: Any) -> Any:
    return finetune(
        folder / arguments.pop("model", "model.onnx"),
        folder / name,
        data=arguments.pop("data", folder / "train.npz"),
        config=config,
        **arguments,
    )
