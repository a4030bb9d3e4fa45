# SPDX-License-Identifier: Apache-2.0
"""A study from its file to its folder: rows, tables, plots, one page."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rimc_onnx.calibration.report.page import markup, page_environment, page_style
from rimc_onnx.errors import OutputError
from rimc_onnx.io.outputs import Outputs
from rimc_onnx.io.report_files import require_page_modules
from rimc_onnx.studies.comparison import Comparison, compare, comparison_table
from rimc_onnx.studies.plots import PaperDots, draw_png, draw_svg
from rimc_onnx.studies.runner import Engine, run
from rimc_onnx.studies.study_file import Study
from rimc_onnx.studies.tables import Named, PlotSpec, Table, curves, make_table
from rimc_onnx.studies.trial import Row

__all__ = ["ROWS", "Shown", "StudyReport", "run_study", "study_folder", "write_study"]

ROWS = "rows.parquet"
_SHOWN: tuple[str, ...] = (
    "figure",
    "clean",
    "uncalibrated",
    "calibrated",
    "restored_frac",
    "sram_bytes",
)
_SHOWN += ("rram_writes", "calibration_seconds", "error")


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """What a study left in its folder."""

    title: str
    folder: str
    rows: str
    """Parquet file with a row for every trial."""
    page: str
    """HTML page."""
    plots: list[str]
    """PNG files."""
    trials: int
    """Different ones."""
    measured: int
    """Trials that this call ran; the others were there."""
    failed: int
    """Trials with an error in their row."""
    worse: int
    """Figures of a paper beside which ours is worse."""
    left_out: list[str]
    """Networks whose files are missing."""
    tables: list[dict[str, Any]]
    """``title``, ``header`` and ``rows`` of cells as text."""
    seconds: float


def run_study(
    study: Study,
    folder: str | Path,
    *,
    engine: Engine | None = None,
    command: str = "",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> StudyReport:
    """Run what is missing of a study, and write its page anew.

    Args:
        study: see :func:`rimc_onnx.studies.study_file.load_study`.
        folder: made if need be; a study that was stopped goes on there.
        engine: see :func:`rimc_onnx.studies.runner.run`.
        command: what the page says makes it again.
        progress: called with (steps done, steps in all).

    Raises:
        OutputError: the folder can't be had, or another study writes to it.
        CalibrationError: jinja2 or matplotlib is missing, of the extra ``study``.
    """
    start = time.perf_counter()
    folder = study_folder(folder)
    new: list[Row] = []
    trials = [point.trial for point in study.points]
    rows = run(trials, folder / ROWS, engine=engine, progress=progress, on_row=new.append)
    shown, pages = write_study(study, rows, folder, command)
    different = {row["key"]: row for row in rows}.values()
    return StudyReport(
        title=study.title,
        folder=str(folder),
        rows=str(folder / ROWS),
        page=str(folder / "study.html"),
        plots=[str(path) for path in pages if path.suffix == ".png"],
        trials=len(different),
        measured=len(new),
        failed=sum(row["error"] is not None for row in different),
        worse=sum(one.is_worse for one in shown.comparisons),
        left_out=list(study.left_out),
        tables=[
            {"title": t.title, "header": list(t.header), "rows": [list(r) for r in t.rows]}
            for t in shown.tables
        ],
        seconds=time.perf_counter() - start,
    )


def write_study(
    study: Study, rows: Sequence[Row], folder: Path, command: str
) -> tuple[Shown, list[Path]]:
    """Page, plots and tables of rows, one for every point of the study, in its order.

    Raises:
        OutputError: the folder can't be written to.
        CalibrationError: jinja2 or matplotlib is missing, of the extra ``study``.
    """
    named = [
        Named(sweep=p.sweep, names=p.names, row=row)
        for p, row in zip(study.points, rows, strict=True)
    ]
    shown = Shown(study, named)
    pages = [(folder / "study.html", shown.page(command).encode())]
    pages += [(folder / f"{name}.png", png) for name, png in shown.pngs()]
    pages += [(folder / "tables.md", shown.markdown().encode())]
    with Outputs(force=True) as out:
        for path, content in pages:
            (out.folder(path) / path.name).write_bytes(content)
    return shown, [path for path, _ in pages]


def study_folder(folder: str | Path) -> Path:
    """The folder of a study, made if need be.

    Raises:
        OutputError: it can't be had.
        CalibrationError: jinja2 or matplotlib is missing, of the extra ``study``.
    """
    require_page_modules()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be a folder ({error.strerror}).") from error
    return folder


class Shown:
    """Tables, plots and the page of rows."""

    def __init__(self, study: Study, rows: list[Named]) -> None:
        self._study, self._rows = study, rows
        self.comparisons: list[Comparison] = []
        tables = [make_table(spec, rows) for spec in study.tables]
        # Of a sweep that was left out there is nothing.
        self.tables = [table for table in tables if table.rows]
        if study.paper is not None:
            self.comparisons = compare(study.paper, rows)
            self.tables.insert(0, comparison_table(self.comparisons))
        if study.lifespan is not None:
            self.tables.append(study.lifespan.table(study.lifespan.updates()))

    def markdown(self) -> str:
        """All tables."""
        parts = [f"# {self._study.title}\n"]
        parts += [f"## {table.title}\n\n{table.markdown()}\n" for table in self.tables]
        return "\n".join(parts)

    def pngs(self) -> list[tuple[str, bytes]]:
        """Every plot with its name."""
        return [
            (f"plot-{number}", draw_png(spec, curves(spec, self._rows), self._dots(spec)))
            for number, spec in enumerate(self._study.plots, start=1)
            if curves(spec, self._rows)
        ]

    def page(self, command: str) -> str:
        """HTML; ``command`` makes it again."""
        template = (resources.files(__package__) / "page.html.jinja").read_text("utf-8")
        worse = {i for i, one in enumerate(self.comparisons) if one.is_worse}
        tables = [
            (table, worse if self.comparisons and i == 0 else set())
            for i, table in enumerate(self.tables)
        ]
        plots = [
            (spec.title, markup(draw_svg(spec, found, self._dots(spec))))
            for spec in self._study.plots
            if (found := curves(spec, self._rows))
        ]
        return page_environment().from_string(template).render(
            study=self._study,
            style=page_style(),
            cards=self._cards(),
            verdict=self._verdict(),
            plots=plots,
            tables=tables,
            trials=self._trials(),
            command=command,
            facts=self._facts(),
        )  # fmt: skip

    def _dots(self, spec: PlotSpec) -> PaperDots:
        if self._study.paper is None or spec.y != "calibrated":
            return []
        return [
            (str(p.at.get(spec.series or "", "")), float(p.at[spec.x]), 100 * p.value)
            for p in self._study.paper.points
            if p.sweep == spec.sweep
            and isinstance(p.at.get(spec.x), int | float)
            and all(p.at.get(axis) == place for axis, place in spec.at.items())
        ]

    def _cards(self) -> list[tuple[str, str, str]]:
        rows = {n.row["key"]: n.row for n in self._rows}.values()
        good = [row for row in rows if row["error"] is None]
        seconds = sum(row["seconds"] or 0.0 for row in good)
        failed = len(rows) - len(good)
        seeds = {row["seed"] for row in rows}
        cards = [
            ("Trials", f"{len(rows):,}", f"{failed} failed" if failed else "all without an error"),
            ("Devices", f"{len(seeds)}", "seeds of each kind"),
            ("Time", _duration(seconds), "of one thread, rows alone"),
        ]
        tests = sorted({row["test_samples"] for row in good})
        if tests:
            few = f"{tests[0]:,}" if len(tests) == 1 else f"{tests[0]:,} to {tests[-1]:,}"
            cards.append(("Test samples", few, "of a score; a dict of a reader is one"))
        if self.comparisons:
            ours = [one for one in self.comparisons if not one.is_redone]
            worse = sum(one.is_worse for one in ours)
            note = "places where ours gives back less"
            cards.append(("Worse than the paper", f"{worse} of {len(ours)}", note))
        return cards

    def _verdict(self) -> str:
        if self._study.paper is None:
            return ""
        source = self._study.paper.source
        ours = [one for one in self.comparisons if not one.is_redone]
        redone = [one for one in self.comparisons if one.is_redone and one.is_less]
        if not self.comparisons:
            return f"No row stands beside a figure of {source} yet."
        worse = [one for one in ours if one.is_worse]
        said = (
            f"Beside {source} ours gives back less of what drift took at: {_places(worse)}."
            if worse
            else f"Nowhere: at all {len(ours)} places ours gives back at least the share of what "
            f"drift took that {source} states."
        )
        if redone:
            said += (
                " Methods that are not ours, redone here, give back less than they state at: "
                f"{_places(redone)}."
            )
        return said

    def _trials(self) -> Table:
        axes = list(dict.fromkeys(name for n in self._rows for name in n.names))
        header = ("sweep", *axes, *_SHOWN)
        texts, numbers = [], []
        for n in self._rows:
            values = [n.sweep, *(n.names.get(a, "") for a in axes), *(n.row.get(s) for s in _SHOWN)]
            texts.append(tuple(_cell(value) for value in values))
            numbers.append(tuple(_sorts_by(value) for value in values))
        return Table(
            title="Every trial",
            header=header,
            rows=tuple(texts),
            numbers=tuple(numbers),
            num_names=1 + len(axes),
        )

    def _facts(self) -> list[tuple[str, dict[str, Any]]]:
        rows = [n.row for n in self._rows]
        versions = {
            "rimc-onnx": importlib.metadata.version("rimc-onnx"),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")},
        }
        return [
            (
                "Seeds",
                {
                    "devices": sorted({row["seed"] for row in rows}),
                    "draws of samples": sorted({row["draw"] for row in rows}),
                },
            ),
            (
                "Trials",
                {
                    "models": sorted({row["model"] for row in rows}),
                    "devices": sorted({row["device"] for row in rows}),
                    "methods": sorted({row["method"] for row in rows}),
                    "left out": list(self._study.left_out),
                },
            ),
            ("Versions", versions),
        ]


def _places(found: list[Comparison]) -> str:
    return "; ".join(f"{one.figure} {one.what} ({one.method})" for one in found)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _sorts_by(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
