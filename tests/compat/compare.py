# SPDX-License-Identifier: Apache-2.0
"""Compare what the runtimes of ``run.sh`` gave: one line each, exit code 1 where one disagrees.

Usage: compare.py FOLDER. Predictions are compared with those of the first runtime; the last column
is the largest difference of a logit, in units of the largest logit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> int:
    """Print the table; the number of runtimes that disagree."""
    labels = np.array(json.loads((folder / "labels.json").read_text()))
    runtimes = sorted((folder / "outputs").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    disagreeing = set()
    for model in json.loads((folder / "models.json").read_text()):
        expected = None
        for runtime in runtimes:
            logits = np.fromfile(runtime / f"{model}.bin", "<f4").reshape(len(labels), -1)
            if expected is None:
                expected = logits
            predictions = logits.argmax(axis=1)
            different = int((predictions != expected.argmax(axis=1)).sum())
            spread = np.abs(logits - expected).max() / np.abs(expected).max()
            if different or not np.isfinite(spread):
                disagreeing.add(runtime.name)
            accuracy = 100 * (predictions == labels).mean()
            print(
                f"{model:8} {runtime.name:28} accuracy {accuracy:5.1f} %"
                f"  {different} other predictions  largest difference {spread:.1e}"
            )
    return len(disagreeing)


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
