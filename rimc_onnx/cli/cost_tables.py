# SPDX-License-Identifier: Apache-2.0
"""The cost of an inference as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rimc_onnx.api import CostReport
    from rimc_onnx.cli.console import Console
    from rimc_onnx.studies.lifetime import LifetimeReport

__all__ = ["show_cost", "show_lifetime"]


def show_cost(console: Console, cost: CostReport) -> None:
    """Energy by part with its range, then latency, area, SRAM and int8 beside it."""
    console.table(
        ["part", "energy, nJ", "share", "lowest", "highest", "area, mm^2"],
        [
            [
                *(p.name, f"{p.energy_nj:.4g}", f"{100 * p.energy_nj / cost.energy_nj:.1f} %"),
                *(f"{p.energy_low_nj:.4g}", f"{p.energy_high_nj:.4g}"),
                f"{p.area_mm2:.4g}" if p.area_mm2 else "",
            ]
            for p in cost.parts
        ],
    )
    console.line(
        f"one inference: {_energy(cost.energy_nj)} ({_energy(cost.energy_low_nj)} .. "
        f"{_energy(cost.energy_high_nj)} by published constants), {cost.tops_per_w:.3g} TOPS/W, "
        f"{cost.macs:,} MACs in arrays"
    )
    console.line(
        f"latency {_time(cost.latency_us)} ({_time(cost.latency_low_us)} .. "
        f"{_time(cost.latency_high_us)}), {_time(cost.interval_us)} from one to the next; area "
        f"{cost.area_mm2:.3g} mm^2 ({cost.area_low_mm2:.3g} .. {cost.area_high_mm2:.3g})"
    )
    console.line(
        f"SRAM: {cost.sram_bytes} bytes, {100 * cost.sram_frac:.2f} % of the weights' "
        f"(Tang et al. 2025: {100 * cost.tang_sram_frac:g} %)"
    )
    console.line(
        f"int8 digital: {_energy(cost.int8_nj)} with weights in SRAM "
        f"({cost.int8_nj / cost.energy_nj:.2f} times), {_energy(cost.int8_dram_nj)} with weights "
        f"from DRAM ({cost.int8_dram_nj / cost.energy_nj:.2f} times)"
    )
    if cost.assumed:
        given = ", ".join(f"{name} {value:g}" for name, value in cost.assumed.items())
        console.line(f"counted as, where the file says ideal: {given}")
    if cost.not_counted:
        console.line(f"bodies not counted: {', '.join(cost.not_counted)}")
    for c in cost.constants or []:
        span = "" if c.low == c.high else f" ({c.low:g} .. {c.high:g})"
        facts = [f"{c.node_nm:g} nm"] if c.node_nm else []
        facts += [str(c.year)] if c.year else []
        console.line(f"{c.name} = {c.value:g}{span}{', ' * bool(facts)}{', '.join(facts)}")
        console.line(f"    {c.source}")


def show_lifetime(console: Console, report: LifetimeReport) -> None:
    """Checkpoints, policies, and what a calibration takes."""
    from rimc_onnx.studies.lifetime_page import point_rows, policy_rows

    console.table(*point_rows(report))
    heads, rows = policy_rows(report)
    # What is left of endurance is in the page and in the JSON.
    shown = [
        i for i, head in enumerate(heads) if not head.startswith("RRAM") and "left" not in head
    ]
    console.table([heads[i] for i in shown], [[row[i] for i in shown] for row in rows])
    cost = report.costs
    console.line(
        "RRAM is written at no time; endurance left of SRAM: "
        f"{min(p.sram_endurance_left_frac for p in report.policies):.6f} or more"
    )
    console.line(
        f"clean {report.figure} {report.clean:.4f}; {report.device}, seed {report.seed}, "
        f"{report.test_samples} test samples, {report.seconds:.1f} s"
    )
    console.line(
        f"a calibration: {cost.device_uj:.3g} uJ on the device ({report.samples} samples), "
        f"{cost.fit_uj:.3g} uJ of a fit in floating point, {cost.write_uj:.2g} uJ of writes; all "
        f"arrays anew: {cost.rewrite_uj:.3g} uJ in {cost.rewrite_seconds:.2g} s"
    )
    if report.folder is not None:
        console.line(f"wrote {report.folder}")


def _energy(nj: float) -> str:
    return f"{nj / 1e3:.3g} uJ" if nj >= 999.5 else f"{nj:.3g} nJ"


def _time(us: float) -> str:
    return f"{us / 1e3:.3g} ms" if us >= 999.5 else f"{us:.3g} us"
