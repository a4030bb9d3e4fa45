# SPDX-License-Identifier: Apache-2.0
"""The main job on the shipped sample: what a new user sees first."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rimc_onnx.errors import OutputError
from rimc_onnx.io.outputs import Outputs, check_output
from rimc_onnx.jobs.calibrate import calibrate
from rimc_onnx.jobs.convert import convert
from rimc_onnx.jobs.evaluate import evaluate
from rimc_onnx.jobs.quickstart_page import NUM_POINTS, quickstart_page

__all__ = ["QuickstartReport", "QuickstartRow", "quickstart"]

_FILES = ("model.onnx", "calibration.npz", "test.npz")


@dataclass(frozen=True, kw_only=True)
class QuickstartRow:
    """One state of the network."""

    state: str
    file: str
    top1: float
    """Accuracy with the native library."""
    top1_stock: float
    """Accuracy of the same file in an ONNX Runtime that knows nothing of RRAM."""


@dataclass(frozen=True, kw_only=True)
class QuickstartReport:
    """Clean, drifted and calibrated accuracy of the digits sample."""

    folder: str
    rows: list[QuickstartRow]
    samples: int
    sram_bytes: int
    gamma: float
    page: str | None = None
    """The page to play with."""


def quickstart(
    folder: Path,
    *,
    page: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> QuickstartReport:
    """Copy the sample to ``folder``, convert it at 20 % drift, calibrate from 10 samples, compare.

    ``page`` makes ``quickstart.html`` there, too: the same over drift and over time, to play with.

    Raises:
        OutputError: the folder holds one of the files already and ``force`` is False.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made ({error.strerror}).") from error
    # By its full name: the parts of the package may lie in several folders.
    sample = importlib.resources.files("rimc_onnx.samples.digits")
    page_file = folder / "quickstart.html"
    if page:
        check_output(page_file, force=force)
    with Outputs(force=force) as out:
        for name in _FILES:
            (out.folder(folder / name) / name).write_bytes((sample / name).read_bytes())
    steps = 5 + (NUM_POINTS if page else 0)
    model = folder / "model.onnx"
    converted = convert(model, force=force)
    progress(1, steps)
    calibrated = calibrate(str(converted.output), force=force)
    progress(2, steps)
    rows = []
    files = {"clean": str(model), "drifted": str(converted.output), "calibrated": calibrated.output}
    for done, (state, file) in enumerate(files.items()):
        native, stock = (
            evaluate(file, data=str(folder / "test.npz"), native=native).top1
            for native in (True, False)
        )
        rows.append(
            QuickstartRow(
                state=state, file=Path(file).name, top1=native or 0.0, top1_stock=stock or 0.0
            )
        )
        progress(3 + done, steps)
    if page:
        text = quickstart_page(folder, progress=lambda done: progress(5 + done, steps))
        with Outputs(force=force) as out:
            made = out.folder(page_file) / page_file.name
            made.write_text(text, encoding="utf-8", newline="\n")
    return QuickstartReport(
        folder=str(folder),
        rows=rows,
        samples=calibrated.samples,
        sram_bytes=calibrated.sram_bytes,
        gamma=calibrated.gamma,
        page=str(page_file) if page else None,
    )
