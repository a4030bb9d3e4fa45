# SPDX-License-Identifier: Apache-2.0
"""Plots of pages; that of a report: error and SRAM of every node."""

from __future__ import annotations

import base64
import io
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rimc_onnx.calibration.report.record import NodeRecord

__all__ = ["plot_nodes", "rendered"]

# Okabe and Ito's colours, which people with any colour vision tell apart.
_GREY, _BLUE, _ORANGE, _GREEN, _RED = "#8a8f98", "#0072b2", "#e69f00", "#009e73", "#d55e00"
_MOST_LABEL_CHARS = 44
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_ROW_INCHES = 0.235
_FRAME_INCHES = 1.1
_WIDTH_INCHES = 11.0


def plot_nodes(nodes: Sequence[NodeRecord]) -> str:
    """Error and SRAM side by side, one row a node; a data URI of an SVG. Needs matplotlib."""
    height = _FRAME_INCHES + _ROW_INCHES * max(len(nodes), 3)
    svg = rendered(_WIDTH_INCHES, height, lambda figure: _plot(figure, nodes))
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def rendered(
    width_inches: float, height_inches: float, draw: Callable[[Any], None], **settings: Any
) -> bytes:
    """What ``draw`` puts on a figure of matplotlib, as an SVG; the same bytes every time.

    Args:
        width_inches: of the figure.
        height_inches: of the figure.
        draw: called with the figure.
        settings: of ``savefig``, in place of those of an SVG.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with (
        mpl.rc_context({"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "rimc-onnx"}),
        warnings.catch_warnings(),
    ):
        # A node's name may hold letters that the plot's font lacks; the table shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, **(settings or {"format": "svg", "metadata": {"Date": None}}))
    return buffer.getvalue()


def _plot(figure: Any, nodes: Sequence[NodeRecord]) -> None:
    panels = [_plot_errors]
    if any(node.sram_bytes for node in nodes):
        panels.append(_plot_sram)
    found = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    rows = range(len(nodes))
    # No mathtext: a "$" in a name is a "$".
    found[0].set_yticks(rows, _labels([node.name for node in nodes]), parse_math=False)
    found[0].set_ylim(len(nodes) - 0.4, -0.6)
    for panel, axes in zip(panels, found, strict=True):
        panel(axes, nodes)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e3e7ec", linewidth=0.8)
        for row in rows:
            if row % 2:
                axes.axhspan(row - 0.5, row + 0.5, color="#f6f7f9", zorder=0)


def _plot_errors(axes: Any, nodes: Sequence[NodeRecord]) -> None:
    """Two dots a node and a line between them, orange where the node got worse."""
    positive = [e for n in nodes for e in (n.error_before, n.error_after) if e > 0]
    # No logarithm of 0: such dots stand left of all others.
    floor = min(positive) / 10 if positive else 0.1
    before = [n.error_before or floor for n in nodes]
    after = [n.error_after or floor for n in nodes]
    worse = [n.is_worse for n in nodes]
    for row, (b, a, w) in enumerate(zip(before, after, worse, strict=True)):
        color = _RED if w else "#b9d3e6"
        axes.plot([b, a], [row, row], color=color, linewidth=2, solid_capstyle="butt", zorder=2)
    rows = range(len(nodes))
    axes.scatter(before, rows, s=30, color="white", edgecolor=_GREY, linewidth=1.4, zorder=3)
    axes.scatter(after, rows, s=32, color=[_RED if w else _BLUE for w in worse], zorder=4)
    axes.set_xscale("log")
    # Whole decades: each has a label, whatever the errors.
    low, high = min(before + after) / 1.2, max(before + after) * 1.2
    axes.set_xlim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
    axes.xaxis.set_minor_formatter("")
    zeros = any(0 in (n.error_before, n.error_after) for n in nodes)
    axes.set_xlabel("error" + " (leftmost dots: 0)" * zeros)
    entries = [("before", "white", _GREY), ("after", _BLUE, _BLUE)]
    entries += [("after, worse than before", _RED, _RED)] if any(worse) else []
    handles = [
        axes.scatter([], [], s=32, color=face, edgecolor=edge, linewidth=1.4, label=label)
        for label, face, edge in entries
    ]
    _legend(axes, handles)


def _plot_sram(axes: Any, nodes: Sequence[NodeRecord]) -> None:
    parts = [
        ("low rank (A, B)", _BLUE, [n.low_rank_bytes for n in nodes]),
        ("magnitude (M)", _ORANGE, [n.magnitude_bytes for n in nodes]),
        ("sparse cells", _GREEN, [n.sparse_bytes for n in nodes]),
    ]
    start = [0] * len(nodes)
    handles = []
    for label, color, sizes in parts:
        if not any(sizes):
            continue
        handles.append(
            axes.barh(range(len(nodes)), sizes, left=start, height=0.62, color=color, label=label)
        )
        start = [s + size for s, size in zip(start, sizes, strict=True)]
    axes.xaxis.get_major_locator().set_params(nbins=5, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("SRAM, bytes")
    _legend(axes, handles)


def _legend(axes: Any, handles: Sequence[Any]) -> None:
    # Above the rows, so that it can't lie on one.
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def _labels(names: Sequence[str]) -> list[str]:
    """Numbers and names that fit beside the plot; the table has them whole.

    If one is too long, all lose the path they begin with; the middle goes from what is still so.
    """
    # Control characters would break the SVG.
    clean = ["".join(c if c.isprintable() else "?" for c in name) for name in names]
    if max(map(len, clean)) > _MOST_LABEL_CHARS:
        # What the first and the last in order have in common, all have.
        pairs = zip(min(clean), max(clean), strict=False)
        common = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        cut = next((c for c in "/.:_" if c in common), None)
        common = common[: common.rfind(cut) + 1] if cut else ""
        if len(clean) > 1 and common:
            clean = [_ELLIPSIS + name[len(common) :] for name in clean]
    half = _MOST_LABEL_CHARS // 2
    return [
        f"{number}  {n if len(n) <= _MOST_LABEL_CHARS else n[:half] + _ELLIPSIS + n[1 - half :]}"
        for number, n in enumerate(clean, start=1)
    ]
