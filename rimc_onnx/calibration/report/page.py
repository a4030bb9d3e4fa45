# SPDX-License-Identifier: Apache-2.0
"""The page of a calibration's report: one HTML file that needs neither network nor scripts.

The template is ``page.html.jinja`` beside this file; here is what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from rimc_onnx.calibration.report.plot import plot_nodes
from rimc_onnx.calibration.report.record import CalibrationRecord, NodeRecord
from rimc_onnx.device import format_time

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

__all__ = ["markup", "page_environment", "page_style", "render_page"]


def page_environment() -> jinja2.Environment:
    """What templates of pages are filled by, with the filters that they share."""
    import jinja2

    page = jinja2.Environment(
        autoescape=True,
        keep_trailing_newline=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (_breakable, _count, _error, _percent, _removed, _said)
    page.filters |= {found.__name__[1:]: found for found in filters}
    return page


def page_style() -> Markup:
    """The style sheet of all pages; its colours are variables."""
    return markup((resources.files(__package__) / "page.css").read_text("utf-8"))


def markup(text: str) -> Markup:
    """``text`` as a template puts it into a page without escaping it: never a user's."""
    from markupsafe import Markup

    return Markup(text)


def render_page(record: CalibrationRecord) -> str:
    """The page as HTML; needs jinja2 and matplotlib."""
    text = (resources.files(__package__) / "page.html.jinja").read_text("utf-8")
    nodes = record.nodes
    return (
        page_environment()
        .from_string(text)
        .render(
            style=page_style(),
            name=record.model.replace("\\", "/").rpartition("/")[2],
            counts=_counts(record),
            worst=max(nodes, key=lambda node: node.error_after),
            cards=_cards(record),
            plot=plot_nodes(nodes),
            nodes=nodes,
            worst_first=sorted(enumerate(nodes, start=1), key=lambda item: -item[1].error_after),
            tables=_tables(record),
            versions={"rimc-onnx": "", **record.versions},
            output=record.result.get("output", ""),
        )
    )


def _counts(record: CalibrationRecord) -> str:
    worse = sum(node.is_worse for node in record.nodes)
    same = sum(node.is_same for node in record.nodes)
    better = len(record.nodes) - worse - same
    parts = [f"{better} of {len(record.nodes)} nodes err less than before"]
    parts += [f"{worse} err more"] if worse else []
    parts += [f"{same} are unchanged"] if same else []
    return ", ".join(parts)


def _output_cards(record: CalibrationRecord) -> list[tuple[str, str, str]]:
    """Error and agreement at the model's outputs, where samples told."""
    drifted, calibrated = record.result["drifted"], record.result["calibrated"]
    if drifted is None or calibrated is None:
        return []
    cards = []
    if calibrated["error"] is not None:
        before = "not finite" if drifted["error"] is None else _error(drifted["error"])
        note = f"{before} drifted, of the teacher's variance"
        cards.append(("Error at the outputs", _error(calibrated["error"]), note))
    if calibrated["agreement"] is not None:
        note = f"{100 * drifted['agreement']:.0f} % drifted, on the samples"
        cards.append(("Agreement", f"{100 * calibrated['agreement']:.0f} %", note))
    if record.result["taken_back"] is not None:
        cards.append(("Taken back", record.result["taken_back"], "outputs are nearer without"))
    return cards


def _cards(record: CalibrationRecord) -> list[tuple[str, str, str]]:
    result, nodes = record.result, record.nodes
    weights = sum(n.num_weights for n in nodes)
    sram = int(result["sram_bytes"])
    peak = record.result["peak_rss_bytes"]
    return [
        ("Samples", f"{result['samples']}", f"drawn with seed {record.sample_seed}"),
        ("Solver", str(result["solver"]), str(record.config.get("propagate", "")) + " inputs"),
        ("New parameters", f"{100 * result['gamma']:.2f} %", "of the weights (gamma, eq. 7)"),
        ("SRAM", f"{sram:,}", f"bytes, for {weights:,} weights in RRAM"),
        *_output_cards(record),
        *_cost_cards(record),
        ("Time", f"{result['seconds']:.1f} s", "of the calibration"),
        (
            "Peak memory",
            "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
            "of the process",
        ),
    ]


def _cost_cards(record: CalibrationRecord) -> list[tuple[str, str, str]]:
    """Energy and latency of an inference, where shapes or a sample told."""
    cost = record.result.get("cost")
    if cost is None:
        return []
    low, high = (cost[f"energy_{end}_nj"] / 1e3 for end in ("low", "high"))
    tang = f"of the weights' bytes; Tang et al. have {100 * cost['tang_sram_frac']:g} %"
    return [
        ("Energy", f"{cost['energy_nj'] / 1e3:.3g} uJ", f"an inference; {low:.3g} to {high:.3g}"),
        ("int8 digital", f"{cost['int8_nj'] / 1e3:.3g} uJ", "the same model, weights in SRAM"),
        ("Latency", f"{cost['latency_us']:.3g} us", f"area {cost['area_mm2']:.3g} mm\u00b2"),
        ("SRAM share", f"{100 * cost['sram_frac']:.2f} %", tang),
    ]


def _cost_table(record: CalibrationRecord) -> list[tuple[str, Mapping[str, Any]]]:
    cost = record.result.get("cost")
    if cost is None:
        return []
    parts = {
        p["name"]: f"{p['energy_nj']:.3g} nJ ({100 * p['energy_nj'] / cost['energy_nj']:.1f} %)"
        for p in cost["parts"]
    }
    return [("Energy of an inference", parts)]


def _tables(record: CalibrationRecord) -> list[tuple[str, dict[str, Any]]]:
    seeds = {"programming and drift": record.device_seed, "draw of samples": record.sample_seed}
    device = dict(record.device)
    if record.device_time_s is not None:
        device["time since programming"] = format_time(record.device_time_s)
    files = {
        "converted model": record.model,
        "calibrated model": record.result.get("output"),
        "teacher, sha256": record.teacher_sha256,
    }
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("Calibration", record.config),
        ("Device", {**device, "runs on": record.runs_on}),
        ("Periphery", {k: "ideal" if v is None else v for k, v in record.periphery.items()}),
        *_cost_table(record),
        ("Seeds", seeds),
        ("Versions", record.versions),
        ("Files", files),
    ]
    return [(title, _flat(facts)) for title, facts in tables]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _breakable(name: str) -> Markup:
    """A path breaks after its slashes first, a field's name between its words."""
    from markupsafe import Markup, escape

    text = str(escape(name))
    return Markup(text.replace("/", "/<wbr>").replace("_", "_<wbr>").replace(".", ".<wbr>"))


def _count(number: int) -> str:
    return f"{number:,}"


def _error(error: float) -> str:
    if error == 0:
        return "0"
    return f"{error:.4f}" if error >= 0.001 else f"{error:.1e}"


def _percent(frac: float) -> str:
    text = f"{100 * frac:.1f} %"
    # 99.97 % is not all of it.
    return "> 99.9 %" if text == "100.0 %" and frac < 1 else text


def _removed(node: NodeRecord) -> str:
    """Share of its error that a node has lost."""
    if node.is_worse:
        return "worse"
    kept = node.error_before == 0 or node.is_same
    return _percent(0.0 if kept else 1 - node.error_after / node.error_before)


def _said(value: Any) -> str:
    if value is None or value == "":
        return "not given"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_said(part)}" for name, part in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
