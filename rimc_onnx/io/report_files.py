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
from rimc_onnx.io.model_files import check_output, output_folder

__all__ = ["check_report", "write_report"]


def check_report(path_json: Path | None, path_html: Path | None, *, force: bool) -> None:
    """Refuse early what :func:`write_report` would refuse after the work is done.

    Raises:
        CalibrationError: a page is asked for and jinja2 or matplotlib is missing.
        OutputError: a file exists and ``force`` is False, or its folder is missing.
    """
    for path in (path_json, path_html):
        if path is not None:
            check_output(path, force=force)
    if path_html is not None:
        _require_page_modules()


def write_report(
    path_json: Path | None,
    path_html: Path | None,
    record: CalibrationRecord,
    *,
    force: bool,
) -> None:
    """Write the JSON and the page, each whole or not at all; ``None`` leaves one out.

    Both are made before the first is written.

    Raises:
        CalibrationError: a page is asked for and jinja2 or matplotlib is missing.
        OutputError: a file exists and ``force`` is False, or the disk refuses.
    """
    check_report(path_json, path_html, force=force)
    texts = []
    if path_json is not None:
        text = json.dumps(record.to_dict(), indent=1, allow_nan=False, default=str)
        texts.append((path_json, text + "\n"))
    if path_html is not None:
        from rimc_onnx.calibration.report.page import render_page

        texts.append((path_html, render_page(record)))
    for path, text in texts:
        with output_folder(path, force=force) as folder:
            (folder / path.name).write_text(text, encoding="utf-8", newline="\n")


def _require_page_modules() -> None:
    for module in ("jinja2", "matplotlib.figure"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CalibrationError(
                f"the page of the report needs {module.partition('.')[0]}, which can't be imported "
                f"here ({' '.join(str(error).split())}). Run pip install 'rimc-onnx[report]', or "
                "do without the page: the JSON report needs nothing."
            ) from error
