# SPDX-License-Identifier: Apache-2.0
"""README's table of latencies, from what benchmarks.latency measured on each class of processor.

    python -m benchmarks.latency_table      # writes the table into README.md

``docs/figures/latency.json`` is a list of runs: ``processor``, ``isa`` of the native library,
``threads``, ``rounds``, ``onnxruntime``, and ``ratios[network, batch][kind, path]`` over the fp32
teacher.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[1]
FIGURES = _ROOT / "docs" / "figures" / "latency.json"
README = _ROOT / "README.md"
_BEGIN, _END = "<!-- latency -->\n", "<!-- end of latency -->\n"
_KINDS = ("ideal", "tiled", "all")
_PATHS = {"provider": "provider", "native": "operators"}


def main() -> None:
    """Write the table."""
    text = README.read_text("utf-8")
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    README.write_text(before + _BEGIN + table(read_runs()) + _END + after, "utf-8")


def read_runs(path: Path = FIGURES) -> list[Run]:
    """Runs of all processors, none where there is no file."""
    if not path.exists():
        return []
    runs: list[Run] = json.loads(path.read_text("utf-8"))
    return runs


def put_run(path: Path, run: Run) -> None:
    """Put a run into a file, where it takes the place of what the same processor measured before.

    Networks that ``run`` has not measured keep their ratios.
    """
    runs = read_runs(path)
    for i, old in enumerate(runs):
        if (old["processor"], old["threads"]) == (run["processor"], run["threads"]):
            runs[i] = run | {"ratios": old["ratios"] | run["ratios"]}
            break
    else:
        runs.append(run)
    path.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")


def table(runs: Sequence[Run]) -> str:
    """A row for each network and way to run it, a column for each run; ideal / 8 bits / all."""
    networks = list(dict.fromkeys(name for run in runs for name in run["ratios"]))
    head = [f"{run['processor']}, {_threads(run['threads'])}" for run in runs]
    lines = [
        f"| ideal / 8 bits / all | {' | '.join(head)} |",
        "|---" * (1 + len(runs)) + "|",
    ]
    for network in networks:
        for path, label in _PATHS.items():
            cells = [_cell(run["ratios"].get(network, {}), path) for run in runs]
            if any(cells):
                lines.append(f"| {network}, {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _cell(ratios: dict[str, float], path: str) -> str:
    values = [ratios.get(f"{kind}, {path}") for kind in _KINDS]
    if not any(values):
        return ""
    return " / ".join("-" if value is None else f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
