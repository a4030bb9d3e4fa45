# SPDX-License-Identifier: Apache-2.0
"""Plots of a study, as SVG for its page and as PNG."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rimc_onnx.calibration.report.plot import rendered
from rimc_onnx.studies.tables import Curve, PlotSpec

__all__ = ["COLORS", "MARKERS", "PaperDots", "draw_png", "draw_svg", "on_page", "on_white"]

# Okabe and Ito's colours, which people with any colour vision tell apart, on light and on dark.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a8f98")
MARKERS = "osD^vPX"
_INK = "#123456"
"""Stands for the colour of the page's text in an SVG."""
_SIZE_INCHES = (5.6, 3.9)

PaperDots = Sequence[tuple[str, float, float]]
"""Of a paper: series of ours that it is the like of, x, y."""


def draw_svg(spec: PlotSpec, curves: Sequence[Curve], dots: PaperDots = ()) -> str:
    """The plot as :func:`on_page` gives it."""
    return on_page(_SIZE_INCHES, lambda figure, ink: _draw(figure, spec, curves, dots, ink))


def on_page(size_inches: tuple[float, float], draw: Callable[[Any, str], None]) -> str:
    """An ``<svg>`` element whose text has the colour of the page's.

    ``draw`` is called with the figure and the colour of its text.
    """

    def drawn(figure: Any) -> None:
        figure.patch.set_alpha(0.0)
        draw(figure, _INK)
        for axes in figure.axes:
            axes.patch.set_alpha(0.0)

    svg = rendered(*size_inches, drawn)
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Width and height are the page's to say.
    return re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*" ([^>]*?)(?:width|height)="[^"]*"',
                  r"<svg \1\2", text, count=1)  # fmt: skip


def draw_png(spec: PlotSpec, curves: Sequence[Curve], dots: PaperDots = ()) -> bytes:
    """The same plot on white."""
    return on_white(_SIZE_INCHES, lambda figure, ink: _draw(figure, spec, curves, dots, ink))


def on_white(size_inches: tuple[float, float], draw: Callable[[Any, str], None]) -> bytes:
    """A PNG; ``draw`` as of :func:`on_page`."""
    return rendered(
        *size_inches,
        lambda figure: draw(figure, "#1c2430"),
        format="png",
        dpi=160,
        metadata={"Software": None},
    )


def _draw(figure: Any, spec: PlotSpec, curves: Sequence[Curve], dots: PaperDots, ink: str) -> None:
    axes = figure.subplots()
    for index, curve in enumerate(curves):
        color = COLORS[index % len(COLORS)]
        x, y, spread = (list(values) for values in zip(*curve.points, strict=True))
        marker = MARKERS[index % len(MARKERS)]
        axes.errorbar(
            x, y, yerr=spread if any(spread) else None, color=color, marker=marker, markersize=4.5,
            linewidth=1.5, capsize=2.5, elinewidth=1.0, label=curve.name or None,
        )  # fmt: skip
        mine = [(a, b) for name, a, b in dots if name == curve.name]
        if mine:
            axes.scatter(
                *zip(*mine, strict=True), s=46, facecolor="none", edgecolor=color, linewidth=1.6,
                marker=marker, zorder=5,
            )  # fmt: skip
    if dots:
        axes.scatter([], [], s=46, facecolor="none", edgecolor=ink, linewidth=1.6,
                     label="the paper's (hollow)")  # fmt: skip
    if spec.log_x:
        axes.set_xscale("log")
        ticks = sorted({x for curve in curves for x, _, _ in curve.points})
        if len(ticks) <= 10:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
    axes.set_xlabel(spec.x_label or spec.x, color=ink, parse_math=False)
    axes.set_ylabel(spec.y_label or f"{spec.y}, %", color=ink, parse_math=False)
    axes.tick_params(colors=ink, which="both")
    for side in ("bottom", "left"):
        axes.spines[side].set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=ink, alpha=0.14, linewidth=0.8)
    if spec.series or dots:
        axes.legend(frameon=False, labelcolor=ink, fontsize=8)
