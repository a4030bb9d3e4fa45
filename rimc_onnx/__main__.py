# SPDX-License-Identifier: Apache-2.0
"""``python -m rimc_onnx`` is the command ``rimc-onnx``."""

from __future__ import annotations

from rimc_onnx.cli.entry import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
