# SPDX-License-Identifier: Apache-2.0
"""Reports of the API as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rimc_onnx._console import Console
    from rimc_onnx.api import CalibrateReport, ConvertReport, InspectReport, NodeReport
    from rimc_onnx.evaluation import EvaluationReport

__all__ = ["show_calibration", "show_conversion", "show_evaluation", "show_inspection"]


def _show_nodes(console: Console, nodes: list[NodeReport]) -> None:
    console.table(
        ["node", "op type", "where", "reason"],
        [[n.name, n.op_type, "RRAM" if n.mapped else "digital", n.reason or ""] for n in nodes],
    )


def show_conversion(console: Console, report: ConvertReport) -> None:
    _show_nodes(console, report.nodes)
    console.line(
        f"{report.mapped} nodes in RRAM ({report.rram_weights} weights), {report.digital} digital; "
        f"{report.device}, seed {report.seed}, {report.seconds:.1f} s"
    )
    console.line(f"wrote {report.output}" if report.output else "dry run: nothing was written")


def show_inspection(console: Console, report: InspectReport) -> None:
    _show_nodes(console, report.nodes)
    state = "converted" if report.converted else "not converted; as convert would map it"
    console.line(
        f"{state}: {report.mapped} nodes in RRAM ({report.rram_weights} weights), "
        f"{report.digital} digital"
    )
    for name, value in (report.device or {}).items():
        console.line(f"  {name} = {value}")
    if report.converted:
        console.line(f"  seed = {report.seed}")
        console.line(f"  SRAM = {report.sram_bytes} bytes of adapters")
        console.line(f"  teacher sha256 = {report.teacher_sha256}")


def show_evaluation(console: Console, report: EvaluationReport) -> None:
    rows = [["samples", str(report.samples)]]
    for name, value in (
        ("top-1", report.top1),
        ("top-5", report.top5),
        ("agreement with teacher", report.agreement),
    ):
        if value is not None:
            rows.append([name, f"{100 * value:.2f} %"])
    for name, db in (report.sqnr_db or {}).items():
        rows.append([f"SQNR of {name}", "no error" if db is None else f"{db:.1f} dB"])
    rows += [[name, f"{value:.4f}"] for name, value in report.metrics.items()]
    rows.append(["time in session", f"{report.seconds:.2f} s"])
    console.table(["figure", "value"], rows)


def show_calibration(console: Console, report: CalibrateReport) -> None:
    """Every node's adapter and error, then the totals."""
    console.table(
        ["node", "rank", "SRAM bytes", "error before", "after"],
        [
            [
                n.name,
                str(n.rank),
                str(n.sram_bytes),
                f"{n.error_before:.4f}",
                f"{n.error_after:.4f}",
            ]
            for n in report.nodes
        ],
    )
    console.line(
        f"{report.samples} samples, {report.solver}, {report.sram_bytes} bytes of SRAM "
        f"({100 * report.gamma:.2f} % of the weights), {report.seconds:.1f} s"
    )
    console.line(f"wrote {report.output}")
