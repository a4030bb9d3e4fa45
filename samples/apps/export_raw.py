# SPDX-License-Identifier: Apache-2.0
"""Write the arrays of an .npz file for programs without numpy.

Usage: export_raw.py DATA.npz FOLDER. Leaves ``images.f32`` ([N, 1, 8, 8] float32) and ``labels.u8``
([N] bytes) in FOLDER, little-endian, without a header.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main(data: Path, folder: Path) -> None:
    """Write both files."""
    with np.load(data) as arrays:
        arrays["input"].astype("<f4").tofile(folder / "images.f32")
        arrays["labels"].astype("u1").tofile(folder / "labels.u8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
