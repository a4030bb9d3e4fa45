# SPDX-License-Identifier: Apache-2.0
"""Deploy ONNX networks on RRAM crossbars: convert, drift, calibrate, run in any ONNX Runtime."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rimc_onnx.api import (
        CalibrateConfig,
        ConvertConfig,
        FinetuneConfig,
        PeripheryConfig,
        ReadNoiseLaw,
        advise,
        age,
        calibrate,
        convert,
        equalize,
        evaluate,
        finetune,
        get_ep_name,
        get_ep_names,
        get_library_path,
        inference_cost,
        inspect,
        write_statistics,
    )

__all__ = [
    "CalibrateConfig",
    "ConvertConfig",
    "FinetuneConfig",
    "PeripheryConfig",
    "ReadNoiseLaw",
    "advise",
    "age",
    "calibrate",
    "convert",
    "equalize",
    "evaluate",
    "finetune",
    "get_ep_name",
    "get_ep_names",
    "get_library_path",
    "inference_cost",
    "inspect",
    "write_statistics",
]

# A checkout's rimc_onnx/ finds the passes and the native library of an installed package.
__path__ = pkgutil.extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    # Loaded at first use: rimc-onnx --help must import neither onnxruntime nor the passes.
    if name in __all__:
        return getattr(importlib.import_module("rimc_onnx.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
