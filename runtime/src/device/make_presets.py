# SPDX-License-Identifier: Apache-2.0
"""Compiles the presets of rimc_onnx.device into presets/, which lies beside the library installed.

python runtime/src/device/make_presets.py
"""

from __future__ import annotations

from pathlib import Path

from rimc_onnx.crossbar import DEVICE_SUFFIX, compiled_device
from rimc_onnx.device import list_presets

FOLDER = Path(__file__).resolve().parent / "presets"


def compiled_presets() -> dict[str, bytes]:
    """Content of every file by its name; each preset at the first time of its law."""
    return {
        f"{name}{DEVICE_SUFFIX}": compiled_device(preset.config)
        for name, preset in list_presets().items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in compiled_presets().items():
        (FOLDER / name).write_bytes(content)
