# SPDX-License-Identifier: Apache-2.0
"""The page of a calibration's report: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import base64
import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rimc_onnx.calibration.report.record import CalibrationRecord, NodeRecord
from rimc_onnx.device import format_time

__all__ = ["render_page"]

# Okabe and Ito's colours, which people with any colour vision tell apart.
_GREY, _BLUE, _ORANGE, _GREEN, _RED = "#8a8f98", "#0072b2", "#e69f00", "#009e73", "#d55e00"
_MOST_LABEL_CHARS = 44
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_ROW_INCHES = 0.235
_FRAME_INCHES = 1.1
_WIDTH_INCHES = 11.0
_SAME_FRAC = 1e-3
"""Errors nearer than this are one error: both are sums in fp32."""

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1c2430;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 2px; }
p { margin: 0 0 10px; max-width: 90ch; }
.note { color: #566070; }
section, .cards > div { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; }
section { padding: 18px 20px; margin-top: 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin-top: 18px; }
.cards > div { padding: 12px 14px; }
.cards dt { color: #566070; font-size: 13px; }
.cards dd { margin: 0; font-size: 20px; font-weight: 600; white-space: nowrap; }
.cards small { color: #566070; font-size: 13px; }
img { display: block; width: 100%; min-width: 760px; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 4px 8px; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e8ebef; }
thead th { border-bottom: 2px solid #c9d0d8; vertical-align: bottom; }
tfoot td { border-top: 2px solid #c9d0d8; border-bottom: 0; font-weight: 600; }
tbody tr:nth-child(even) { background: #fafbfc; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.name { overflow-wrap: anywhere; min-width: 180px; width: 30%; }
.plain { white-space: nowrap; }
.worse td { color: #a33c00; font-weight: 600; }
.facts { columns: 3 300px; column-gap: 32px; }
.facts div { break-inside: avoid; padding-top: 10px; }
.facts h3 { font-size: 15px; margin: 0 0 2px; }
.facts table { table-layout: fixed; }
.facts th { font-weight: normal; color: #566070; width: 48%; }
.facts th, .facts td { overflow-wrap: break-word; }
@media print { body { background: #fff; } section { break-inside: avoid-page; } }
"""


def render_page(record: CalibrationRecord) -> str:
    """The page as HTML; needs matplotlib."""
    name = record.model.replace("\\", "/").rpartition("/")[2]
    result = record.result
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Calibration of {escape(name)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>Calibration of {escape(name)}</h1>\n"
        f'<p class="note">{_summary(record)}</p>\n'
        f"{_cards(record)}\n"
        "<section>\n<h2>Nodes in graph order</h2>\n"
        '<p class="note">Error: mean squared error of the node&rsquo;s output on the samples, over '
        "the variance of the teacher&rsquo;s output, the digital bias apart. SRAM: bytes of the "
        "node&rsquo;s adapter.</p>\n"
        '<div class="wide"><img alt="Error of every node before and after calibration, and its '
        "bytes of SRAM; the "
        f'table below holds the numbers." src="{_plot(record.nodes)}"></div>\n</section>\n'
        f"{_table(record.nodes)}\n"
        f"<section>\n<h2>How it was made</h2>\n{_facts(record)}\n</section>\n"
        f'<p class="note" style="margin-top: 14px">Written by rimc-onnx '
        f"{escape(record.versions.get('rimc-onnx', ''))}; model: "
        f"{escape(str(result.get('output', '')))}</p>\n</main>\n</body>\n</html>\n"
    )


def _summary(record: CalibrationRecord) -> str:
    worse = sum(map(_is_worse, record.nodes))
    same = sum(map(_is_same, record.nodes))
    better = len(record.nodes) - worse - same
    worst = max(record.nodes, key=lambda n: n.error_after)
    parts = [f"{better} of {len(record.nodes)} nodes err less than before"]
    parts += [f"{worse} err more"] if worse else []
    parts += [f"{same} are unchanged"] if same else []
    return (
        f"{', '.join(parts)}. The largest error left is {_short(worst.error_after)}, at "
        f"<b>{escape(worst.name)}</b>."
    )


def _output_cards(record: CalibrationRecord) -> list[tuple[str, str, str]]:
    """Error and agreement at the model's outputs, where samples told."""
    drifted, calibrated = record.result["drifted"], record.result["calibrated"]
    if drifted is None or calibrated is None:
        return []
    cards = []
    if calibrated["error"] is not None:
        before = "not finite" if drifted["error"] is None else _short(drifted["error"])
        note = f"{before} drifted, of the teacher's variance"
        cards.append(("Error at the outputs", _short(calibrated["error"]), note))
    if calibrated["agreement"] is not None:
        note = f"{100 * drifted['agreement']:.0f} % drifted, on the samples"
        cards.append(("Agreement", f"{100 * calibrated['agreement']:.0f} %", note))
    if record.result["taken_back"] is not None:
        cards.append(("Taken back", record.result["taken_back"], "outputs are nearer without"))
    return cards


def _cards(record: CalibrationRecord) -> str:
    result, nodes = record.result, record.nodes
    weights = sum(n.num_weights for n in nodes)
    sram = int(result["sram_bytes"])
    peak = record.result["peak_rss_bytes"]
    cards = [
        ("Samples", f"{result['samples']}", f"drawn with seed {record.sample_seed}"),
        ("Solver", str(result["solver"]), str(record.config.get("propagate", "")) + " inputs"),
        ("New parameters", f"{100 * result['gamma']:.2f} %", "of the weights (gamma, eq. 7)"),
        ("SRAM", f"{sram:,}", f"bytes, for {weights:,} weights in RRAM"),
        *_output_cards(record),
        ("Time", f"{result['seconds']:.1f} s", "of the calibration"),
        (
            "Peak memory",
            "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
            "of the process",
        ),
    ]
    return (
        '<dl class="cards">\n'
        + "\n".join(
            f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd><small>{escape(note)}</small>"
            "</div>"
            for title, value, note in cards
        )
        + "\n</dl>"
    )


def _plot(nodes: Sequence[NodeRecord]) -> str:
    """Error and SRAM side by side, one row a node; a data URI of an SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with (
        mpl.rc_context({"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "rimc-onnx"}),
        warnings.catch_warnings(),
    ):
        # A node's name may hold letters that the plot's font lacks; the table shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        height = _FRAME_INCHES + _ROW_INCHES * max(len(nodes), 3)
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
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
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _plot_errors(axes: Any, nodes: Sequence[NodeRecord]) -> None:
    """Two dots a node and a line between them, orange where the node got worse."""
    positive = [e for n in nodes for e in (n.error_before, n.error_after) if e > 0]
    # No logarithm of 0: such dots stand left of all others.
    floor = min(positive) / 10 if positive else 0.1
    before = [n.error_before or floor for n in nodes]
    after = [n.error_after or floor for n in nodes]
    worse = [_is_worse(n) for n in nodes]
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


def _is_same(node: NodeRecord) -> bool:
    return math.isclose(node.error_after, node.error_before, rel_tol=_SAME_FRAC)


def _is_worse(node: NodeRecord) -> bool:
    return node.error_after > node.error_before and not _is_same(node)


def _table(nodes: Sequence[NodeRecord]) -> str:
    """Every node, the largest remaining error first."""
    order = sorted(enumerate(nodes, start=1), key=lambda item: -item[1].error_after)
    head = [
        ("no.", "number"), ("node", "name"), ("weight", "plain"), ("error before", "number"),
        ("error after", "number"), ("removed", "number"), ("adapter", "plain"),
        ("rank", "number"), ("sparse cells", "number"), ("SRAM bytes", "number"),
        ("of its weights", "number"),
    ]  # fmt: skip
    total = sum(n.sram_bytes for n in nodes)
    weights = sum(n.num_weights for n in nodes)
    foot = ["", "all nodes", "", "", "", "", "", "", f"{sum(n.sparse_cells for n in nodes):,}",
            f"{total:,}", _percent(total / weights)]  # fmt: skip
    body = "\n".join(
        _row([css for _, css in head], _cells(i, n), worse=_is_worse(n)) for i, n in order
    )
    return (
        "<section>\n<h2>Nodes, worst first</h2>\n"
        '<p class="note">Sorted by the error that is left. &ldquo;no.&rdquo; is the place in the '
        "graph and in the plot; &ldquo;of its weights&rdquo; is SRAM bytes over the number of the "
        "node&rsquo;s weights.</p>\n"
        '<div class="wide"><table>\n<thead><tr>'
        + "".join(f'<th class="{css}">{escape(title)}</th>' for title, css in head)
        + f"</tr></thead>\n<tbody>\n{body}\n</tbody>\n<tfoot>"
        + _row([css for _, css in head], foot, worse=False)
        + "</tfoot>\n</table></div>\n</section>"
    )


def _cells(number: int, node: NodeRecord) -> list[str]:
    kept = node.error_before == 0 or _is_same(node)
    removed = _percent(0.0 if kept else 1 - node.error_after / node.error_before)
    return [
        str(number),
        node.name,
        "\N{MULTIPLICATION SIGN}".join(map(str, node.weight_shape)),
        _short(node.error_before),
        _short(node.error_after),
        "worse" if _is_worse(node) else removed,
        node.adapter,
        str(node.rank),
        f"{node.sparse_cells:,}",
        f"{node.sram_bytes:,}",
        _percent(node.sram_bytes / node.num_weights),
    ]


def _row(classes: Sequence[str], cells: Sequence[str], *, worse: bool) -> str:
    inner = "".join(
        f'<td class="{css}">{_breakable(cell) if css == "name" else escape(cell)}</td>'
        for css, cell in zip(classes, cells, strict=True)
    )
    return f'<tr class="worse">{inner}</tr>' if worse else f"<tr>{inner}</tr>"


def _breakable(name: str) -> str:
    """A path breaks after its slashes first, a field's name between its words."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>").replace(".", ".<wbr>")


def _short(error: float) -> str:
    if error == 0:
        return "0"
    return f"{error:.4f}" if error >= 0.001 else f"{error:.1e}"


def _percent(frac: float) -> str:
    text = f"{100 * frac:.1f} %"
    # 99.97 % is not all of it.
    return "> 99.9 %" if text == "100.0 %" and frac < 1 else text


def _facts(record: CalibrationRecord) -> str:
    seeds = {"programming and drift": record.device_seed, "draw of samples": record.sample_seed}
    device = dict(record.device)
    if record.device_time_s is not None:
        device["time since programming"] = format_time(record.device_time_s)
    files = {
        "converted model": record.model,
        "calibrated model": record.result.get("output"),
        "teacher, sha256": record.teacher_sha256,
    }
    tables = [
        ("Calibration", record.config),
        ("Device", {**device, "runs on": record.runs_on}),
        ("Periphery", {k: "ideal" if v is None else v for k, v in record.periphery.items()}),
        ("Seeds", seeds),
        ("Versions", record.versions),
        ("Files", files),
    ]
    return (
        '<div class="facts">'
        + "\n".join(f"<div><h3>{title}</h3>{_fact_table(facts)}</div>" for title, facts in tables)
        + "</div>"
    )


def _fact_table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{_breakable(name)}</th><td>{escape(_said(value))}</td></tr>"
        for name, value in _flat(facts).items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _said(value: Any) -> str:
    if value is None or value == "":
        return "not given"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_said(part)}" for name, part in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
