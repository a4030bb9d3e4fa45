# SPDX-License-Identifier: Apache-2.0
"""Writes presets.inc, the device models of the native library, from the presets of rimc_onnx.

Run where rimc_onnx is installed: python runtime/src/device/make_presets.py > presets.inc
"""

from __future__ import annotations

from rimc_onnx.device import list_presets

_LINE = 92


def presets_inc() -> str:
    """The file: a raw string for each preset, cut into lines that a compiler takes."""
    lines = ["// SPDX-License-Identifier: Apache-2.0", "// Made by make_presets.py."]
    for preset in list_presets().values():
        text = preset.config.to_json()
        parts = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
        lines += [f'R"({part})"' for part in parts]
        lines[-1] += ","
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(presets_inc(), end="")
