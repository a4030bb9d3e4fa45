# SPDX-License-Identifier: Apache-2.0
"""A lifetime as JSON, plot and page; the last two need jinja2 and matplotlib."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from rimc_onnx.calibration.report.page import markup, page_environment, page_style
from rimc_onnx.device import format_time
from rimc_onnx.errors import OutputError
from rimc_onnx.io.outputs import Outputs, check_outputs
from rimc_onnx.io.report_files import require_page_modules
from rimc_onnx.studies.lifetime import LifetimePoint, LifetimePolicy, LifetimeReport
from rimc_onnx.studies.plots import COLORS, MARKERS, on_page, on_white

__all__ = ["check_folder", "point_rows", "policy_rows", "write_lifetime"]

_FILES = ("lifetime.json", "lifetime.png", "lifetime.html")
_GOAL_FRAC = 0.98
_SIZE_INCHES = (10.0, 4.4)
_HOUR_S, _DAY_S, _YEAR_S = 3600.0, 86400.0, 365.25 * 86400.0
_TICKS = {
    1.0: "1 s",
    60.0: "1 min",
    _HOUR_S: "1 h",
    _DAY_S: "1 d",
    30 * _DAY_S: "30 d",
    _YEAR_S: "1 y",
    10 * _YEAR_S: "10 y",
}


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse early what :func:`write_lifetime` would refuse.

    Raises:
        OutputError: it is no folder, or has one of the files and ``force`` is False.
        CalibrationError: jinja2 or matplotlib is missing.
    """
    require_page_modules()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is no folder. Name one with `folder`.")
    if folder.is_dir():
        check_outputs([folder / name for name in _FILES], force=force, reads=[])


def write_lifetime(
    report: LifetimeReport, folder: Path, *, command: str = "", force: bool = False
) -> LifetimeReport:
    """Write ``lifetime.json``, ``lifetime.png`` and ``lifetime.html``, all or none.

    Args:
        report: what to write.
        folder: made if need be.
        command: what the page says makes it again.
        force: replace existing files.

    Raises:
        OutputError: see :func:`check_folder`.
        CalibrationError: jinja2 or matplotlib is missing.
    """
    check_folder(folder, force=force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be a folder ({error.strerror}).") from error
    report = replace(report, folder=str(folder))

    def draw(figure: Any, ink: str) -> None:
        _draw(figure, report, ink)

    contents = {
        "lifetime.json": (json.dumps(asdict(report), indent=1, allow_nan=False) + "\n").encode(),
        "lifetime.png": on_white(_SIZE_INCHES, draw),
        "lifetime.html": _page(report, command, on_page(_SIZE_INCHES, draw)).encode(),
    }
    with Outputs(force=force) as out:
        for name, content in contents.items():
            (out.folder(folder / name) / name).write_bytes(content)
    return report


def policy_rows(report: LifetimeReport) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of policies."""
    heads = ["policy", "lowest", "at the end", "calibrations", "SRAM, bytes", "SRAM written"]
    heads += ["RRAM written", "SRAM life left", "RRAM life left", "energy, uJ", "device time"]
    heads += ["host time"]
    return heads, [_policy_row(p) for p in report.policies]


def _policy_row(p: LifetimePolicy) -> list[str]:
    return [
        p.policy,
        f"{100 * p.lowest_frac:.1f} %",
        f"{100 * p.last_frac:.1f} %",
        f"{p.calibrations}",
        f"{p.sram_bytes:,}",
        f"{p.sram_writes:,}",
        f"{p.rram_writes:,}",
        _left(p.sram_endurance_left_frac),
        _left(p.rram_endurance_left_frac),
        f"{p.energy_uj:.4g}",
        _seconds(p.device_seconds),
        _seconds(p.host_seconds),
    ]


def point_rows(report: LifetimeReport) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of checkpoints."""
    heads = ["policy", "age", report.figure, "of the clean", "before a fit", "probe agrees"]
    heads += ["probe error"]
    return heads, [_point_row(p) for p in report.points]


def _point_row(p: LifetimePoint) -> list[str]:
    return [
        p.policy,
        _age(p.time_s),
        f"{p.value:.4f}",
        f"{100 * p.frac_of_clean:.1f} %",
        "" if p.before is None else f"{p.before:.4f}",
        "" if p.agreement is None else f"{100 * p.agreement:.1f} %",
        "" if p.probe_error is None else f"{p.probe_error:.4f}",
    ]


def _left(frac: float) -> str:
    used = 1 - frac
    return "all" if used <= 0 else f"1 - {used:.0e}" if used < 1e-3 else f"{100 * frac:.1f} %"


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _age(time_s: float) -> str:
    """``3.2 h``: checkpoints are no round times."""
    for unit, size in (("y", _YEAR_S), ("d", _DAY_S), ("h", _HOUR_S), ("min", 60.0)):
        if time_s >= size:
            return f"{time_s / size:.3g} {unit}"
    return f"{time_s:.3g} s"


def _page(report: LifetimeReport, command: str, plot: str) -> str:
    template = (resources.files(__package__) / "lifetime.html.jinja").read_text("utf-8")
    low = [p.lowest_frac < _GOAL_FRAC for p in report.policies]
    low_points = [p.frac_of_clean < _GOAL_FRAC for p in report.points]
    policies, points = policy_rows(report), point_rows(report)
    ages = [p.time_s for p in report.points]
    return (
        page_environment()
        .from_string(template)
        .render(
            style=page_style(),
            name=Path(report.model).name,
            report=report,
            first=format_time(min(ages)),
            last=format_time(max(ages)),
            verdict=_verdict(report),
            cards=_cards(report),
            plot=markup(plot),
            policies=(policies[0], list(zip(policies[1], low, strict=True))),
            points=(points[0], list(zip(points[1], low_points, strict=True))),
            command=command,
            tables=_tables(report),
        )
    )


def _verdict(report: LifetimeReport) -> str:
    kept = [p.policy for p in report.policies if p.lowest_frac >= _GOAL_FRAC]
    lost = [p.policy for p in report.policies if p.lowest_frac < _GOAL_FRAC]
    parts = []
    if kept:
        parts.append(f"At least 98 % of the clean accuracy all along: {', '.join(kept)}.")
    if lost:
        parts.append(f"Less somewhere: {', '.join(lost)}.")
    return " ".join(parts)


def _cards(report: LifetimeReport) -> list[tuple[str, str, str]]:
    cost = report.costs
    return [
        ("Clean", f"{100 * report.clean:.1f} %", f"{report.figure}, {report.test_samples} samples"),
        ("Calibration", f"{report.samples} samples", f"probe: {report.probe_samples or 'none'}"),
        ("Inference", f"{cost.inference_uj:.3g} uJ", "by the constants of the cost"),
        ("A calibration", f"{cost.device_uj:.3g} uJ", f"device; fit on a host {cost.fit_uj:.3g}"),
        ("Its writes", f"{cost.write_uj:.2g} uJ", f"SRAM, {_seconds(cost.write_seconds)}"),
        (
            "All arrays anew",
            f"{cost.rewrite_uj:.3g} uJ",
            f"in {_seconds(cost.rewrite_seconds)}, in its place",
        ),
    ]


def _tables(report: LifetimeReport) -> list[tuple[str, dict[str, Any]]]:
    versions = {
        "rimc-onnx": importlib.metadata.version("rimc-onnx"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")},
    }
    of = {
        "model": report.model,
        "device": report.device,
        "seed of the device": report.seed,
        "schedule": report.schedule,
        "seconds taken": f"{report.seconds:.1f}",
    }
    numbers = {name: f"{value:.4g}" for name, value in asdict(report.costs).items()}
    return [("Device", of), ("Costs", numbers), ("Versions", versions)]


def _draw(figure: Any, report: LifetimeReport, ink: str) -> None:
    axes = figure.subplots()
    for index, policy in enumerate(report.policies):
        points = [p for p in report.points if p.policy == policy.policy]
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        times = [p.time_s for p in points]
        shares = [100 * p.frac_of_clean for p in points]
        axes.plot(times, shares, color=color, marker=marker, markersize=5, label=policy.policy)
        before = [(p.time_s, 100 * p.before / report.clean) for p in points if p.before is not None]
        if before:
            axes.scatter(
                *zip(*before, strict=True), s=40, facecolor="none", edgecolor=color, marker=marker
            )
    axes.axhline(100 * _GOAL_FRAC, color=ink, linewidth=0.9, linestyle="dashed", alpha=0.6)
    axes.set_xscale("log")
    _ticks(axes, [p.time_s for p in report.points])
    axes.set_xlabel("time since programming", color=ink)
    axes.set_ylabel(f"{report.figure}, % of the clean model's", color=ink, parse_math=False)
    axes.tick_params(colors=ink, which="both")
    for side in ("bottom", "left"):
        axes.spines[side].set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=ink, alpha=0.14, linewidth=0.8)
    # Above the curves, so that it can't lie on one.
    axes.legend(
        frameon=False,
        labelcolor=ink,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderaxespad=0.2,
    )


def _ticks(axes: Any, times: Sequence[float]) -> None:
    """Times that people say, where two of them lie in the plot; else powers of ten."""
    low, high = min(times) / 1.01, max(times) * 1.01
    ticks = [t for t in _TICKS if low <= t <= high]
    if len(ticks) > 1:
        axes.set_xticks(ticks, [_TICKS[t] for t in ticks])
        axes.set_xticks([], minor=True)
