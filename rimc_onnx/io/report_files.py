# SPDX-License-Identifier: Apache-2.0
"""Writes the record of a calibration as JSON and as a page.

The page is :mod:`rimc_onnx.calibration.report.page` and needs jinja2 and matplotlib
(extra ``report``); the JSON needs nothing.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from rimc_onnx.calibration.report.record import CalibrationRecord
from rimc_onnx.errors import CalibrationError
from rimc_onnx.io.outputs import Outputs

__all__ = ["put_report", "require_page_modules"]


def put_report(
    path_json: Path | None, path_html: Path | None, record: CalibrationRecord, out: Outputs
) -> None:
    """Make the JSON and the page files of a job; ``None`` leaves one out.

    Raises:
        CalibrationError: a page is asked for and jinja2 or matplotlib is missing.
        OutputError: see :class:`Outputs`.
    """
    texts = []
    if path_json is not None:
        text = json.dumps(record.to_dict(), indent=1, allow_nan=False, default=str)
        texts.append((path_json, text + "\n"))
    if path_html is not None:
        require_page_modules()
        from rimc_onnx.calibration.report.page import render_page

        texts.append((path_html, render_page(record)))
    for path, text in texts:
        (out.folder(path) / path.name).write_text(text, encoding="utf-8", newline="\n")


def require_page_modules() -> None:
    """Refuse early what a page would fail for.

    Raises:
        CalibrationError: jinja2 or matplotlib is missing.
    """
    for module in ("jinja2", "matplotlib.figure"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CalibrationError(
                f"the page of the report needs {module.partition('.')[0]}, which can't be imported "
                f"here ({' '.join(str(error).split())}). Run pip install 'rimc-onnx[report]', or "
                "do without the page: the JSON report needs nothing."
            ) from error
