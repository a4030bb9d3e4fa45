# SPDX-License-Identifier: Apache-2.0
"""Reports of the API as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rimc_onnx.cli.cost_tables import show_cost
from rimc_onnx.cli.field_options import in_options

if TYPE_CHECKING:
    from rimc_onnx.cli.console import Console
    from rimc_onnx.device import DeviceDescription
    from rimc_onnx.jobs.advise import AdviceOption, AdviseReport
    from rimc_onnx.jobs.evaluate import EvaluationReport
    from rimc_onnx.jobs.reports import (
        AgeReport,
        CalibrateReport,
        ConvertReport,
        EqualizeReport,
        FinetuneReport,
        InspectReport,
        NodeRangesReport,
        NodeReport,
        OutputsReport,
    )
    from rimc_onnx.studies.recovery import RecoveryReport, Spread
    from rimc_onnx.studies.study import StudyReport

__all__ = [
    "show_advice",
    "show_ageing",
    "show_calibration",
    "show_conversion",
    "show_device",
    "show_devices",
    "show_equalizing",
    "show_evaluation",
    "show_finetuning",
    "show_inspection",
    "show_recovery",
    "show_study",
]


def _show_nodes(console: Console, nodes: list[NodeReport]) -> None:
    console.table(
        ["node", "op type", "where", "W_max", "reason"],
        [
            [
                *(n.name, n.op_type, "RRAM" if n.mapped else "digital"),
                *(_w_max(n), in_options(n.reason or "")),
            ]
            for n in nodes
        ],
    )


def _w_max(node: NodeReport) -> str:
    """``column, 2.5 sigma``: what a W_max is of, and where weights are clipped."""
    clip = "" if node.clip_sigma is None else f", {node.clip_sigma:g} sigma"
    return f"{node.scaling or ''}{clip}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def show_conversion(console: Console, report: ConvertReport) -> None:
    """Where every node went and why, then the totals."""
    _show_nodes(console, report.nodes)
    console.line(
        f"{_nodes(report.mapped)} in RRAM ({report.rram_weights} weights), "
        f"{report.digital} digital; {report.device}{_at(report.time_s)}, seed {report.seed}, "
        f"{report.seconds:.1f} s"
    )
    if reads := _reads(report.read_noise_frac, report.read_noise_law, report.iv_curve):
        origin = (
            f" (from {report.device}; --ideal-reads leaves them out)"
            if report.reads_of_device
            else ""
        )
        console.line(f"reads: {reads}{origin}")
    console.line(f"data of a calibration: {in_options(report.data)}")
    if report.clipped and not report.uncalibrated:
        console.line(
            f"{report.clipped} of {_nodes(report.mapped)} are clipped, for a calibration whose "
            "sparse cells hold what is cut; for use without one convert with --uncalibrated"
        )
    console.line(f"wrote {report.output}" if report.output else "dry run: nothing was written")


def show_finetuning(console: Console, report: FinetuneReport) -> None:
    """Every validation, and the state that was written."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    is_calibrated = report.best.calibrated_loss is not None
    judged = ["on devices", *(["calibrated"] if is_calibrated else [])]
    console.table(
        ["step", "loss", *judged, "right", *judged, ""],
        [
            [
                str(v.step),
                f"{v.clean_loss:.4g}",
                f"{v.device_loss:.4g}",
                *([number(v.calibrated_loss)] if is_calibrated else []),
                share(v.clean_hits),
                share(v.device_hits),
                *([share(v.calibrated_hits)] if is_calibrated else []),
                "written" if v == report.best else "",
            ]
            for v in report.validations
        ],
    )
    console.line(
        f"{report.trained_weights} weights in {report.trained} "
        f"{'initializers' if report.sram_bytes is None else 'parts of adapters'} trained for "
        f"{report.device}{_at(report.time_s)} on {report.samples} samples, "
        f"{report.validation_samples} held out; {report.steps} steps, {report.seconds:.1f} s on "
        f"{report.runs_on}{_peak(report.peak_rss_bytes)}"
    )
    if not report.changed:
        worse = " and no worse once calibrated" if is_calibrated else ""
        console.line(
            f"no state was better on devices{worse} than the file: its weights are unchanged"
        )
    if report.adapter_file is not None:
        console.line(f"wrote {report.adapter_file}")
    console.line(f"wrote {report.output}")


def _peak(peak_rss_bytes: int | None) -> str:
    return "" if peak_rss_bytes is None else f", peak memory {peak_rss_bytes / 2**20:.0f} MiB"


def _reads(noise_frac: float | None, noise_law: str | None, iv_curve: str | None) -> str:
    """``noise 1 %, I-V polynomial``, ``noise up to 3.68 %``; nothing where both are ideal."""
    noise = ""
    if noise_frac is not None:
        largest = "up to " if noise_law == "curve" else ""
        noise = f"noise {largest}{100 * noise_frac:.3g} %"
    return ", ".join(part for part in (noise, iv_curve and f"I-V {iv_curve}") if part)


def _at(time_s: float | None) -> str:
    """``, 1 d after programming``; nothing for a device without a time axis."""
    from rimc_onnx.device import format_time

    return "" if time_s is None else f", {format_time(time_s)} after programming"


def show_ageing(console: Console, report: AgeReport) -> None:
    """What was aged, from when to when."""
    from rimc_onnx.device import format_time

    console.line(
        f"{_nodes(report.nodes)} in RRAM ({report.rram_weights} weights) from "
        f"{format_time(report.time_s_before)} to {format_time(report.time_s)} after programming; "
        f"{report.device}, seed {report.seed}, {report.seconds:.1f} s"
    )
    console.line(f"wrote {report.output}")


def show_equalizing(console: Console, report: EqualizeReport) -> None:
    """Which nodes gain, and by how much."""
    if not report.nodes:
        console.line("no node gains: the largest weights of its word lines are much alike")
    else:
        console.table(
            ["node", "op type", "input channels", "error left, %"],
            [
                [n.name, n.op_type, str(n.channels), f"{100 * n.error_share:.2g}"]
                for n in report.nodes
            ],
        )
    console.line(f"wrote {report.output}")


def _show_parameters(console: Console, values: Mapping[str, Any], prefix: str = "") -> None:
    """One line a parameter; those of a law under its name: ``time_law.t0_s = 1.0``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _show_parameters(console, value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            for i, one in enumerate(value):
                _show_parameters(console, one, f"{prefix}{name}[{i}].")
        else:
            console.line(f"  {prefix}{name} = {value}")


def _range(values: tuple[float, float] | None, unit: str) -> str:
    return "" if values is None else f"{values[0]:g} .. {values[1]:g} {unit}"


def _time_range(device: DeviceDescription) -> str:
    from rimc_onnx.device import format_time

    if device.time_range_s is None:
        return "no time axis"
    first, last = map(format_time, device.time_range_s)
    return first if first == last else f"{first} .. {last}"


def show_devices(console: Console, devices: list[DeviceDescription]) -> None:
    """One line a preset."""
    console.table(
        ["preset", "time", "reads", "what it is"],
        [
            [
                *(d.name, _time_range(d)),
                _reads(d.read_noise_frac, d.read_noise_law, d.iv_curve) or "ideal",
                d.summary,
            ]
            for d in devices
        ],
    )


def show_device(console: Console, device: DeviceDescription) -> None:
    """Everything about one device model."""
    console.line(f"{device.name}: {device.summary}")
    console.line(f"  valid time = {_time_range(device)}")
    if device.g_range_us is not None:
        console.line(f"  valid conductance = {_range(device.g_range_us, 'uS')}")
    reads = _reads(device.read_noise_frac, device.read_noise_law, device.iv_curve)
    console.line(f"  reads = {reads or 'ideal'}")
    _show_parameters(console, device.parameters)
    console.line(f"  source: {device.source}")


def show_inspection(console: Console, report: InspectReport) -> None:
    """As a conversion; of a converted model the device, its age and the SRAM too."""
    _show_nodes(console, report.nodes)
    _show_ranges(console, report.ranges or [])
    state = "converted" if report.converted else "not converted; as convert would map it"
    console.line(
        f"{state}: {_nodes(report.mapped)} in RRAM ({report.rram_weights} weights), "
        f"{report.digital} digital"
    )
    shown_with_nodes = {"scaling", "clip_sigma"}
    device = {k: v for k, v in (report.device or {}).items() if k not in shown_with_nodes}
    _show_parameters(console, device)
    if report.converted:
        console.line(f"  seed = {report.seed}")
        if report.time_s is not None:
            console.line(f"  time_s = {report.time_s:g}{_at(report.time_s)}")
        given = {k: v for k, v in (report.periphery or {}).items() if v is not None}
        _show_parameters(console, given or {"converters and reads": "ideal"})
        swappable = ", swappable" if report.swappable else ""
        console.line(
            f"  SRAM = {report.sram_bytes} bytes of adapters, {report.adapters} of {report.mapped} "
            f"fitted{swappable}"
        )
        console.line(f"  teacher sha256 = {report.teacher_sha256}")
    if report.cost is not None:
        show_cost(console, report.cost)


def _show_ranges(console: Console, ranges: list[NodeRangesReport]) -> None:
    """Tiles and ranges of every node; nothing where all are whole and ideal."""

    def text(span: tuple[float, float] | None) -> str:
        if span is None:
            return "ideal"
        low, high = (f"{value:.4g}" for value in span)
        return low if low == high else f"{low} .. {high}"

    rows = [[r.name, str(r.num_tiles), text(r.dac_range), text(r.adc_range)] for r in ranges]
    if any(row[1:] != ["1", "ideal", "ideal"] for row in rows):
        console.table(["node", "tiles", "inputs", "ADC ranges"], rows)


def _mapping(option: AdviceOption) -> str:
    """``node, clip 2.5``, ``equalized, auto, 4 pairs``: what is not said is the default."""
    clip = "" if option.clip_sigma == option.scaling else f", clip {option.clip_sigma}"
    pairs = option.devices_per_weight
    slices = option.num_slices
    return (
        f"{'equalized, ' if option.equalized else ''}{option.scaling}{clip}"
        f"{f', {pairs} pairs' if pairs > 1 else ''}{f', {slices} slices' if slices > 1 else ''}"
    )


def show_advice(
    console: Console, report: AdviseReport, options: Sequence[Mapping[str, Any]]
) -> None:
    """One line an option, the cheapest first, then the commands of each."""
    console.table(
        ["", "mapping", "devices", "SRAM", "node error", "calibrated", "outputs"],
        [
            [
                *(str(i), _mapping(o), str(o.num_devices)),
                f"{o.sram_bytes} ({100 * o.sram_frac:g} %)",
                *(f"{o.node_error_uncalibrated:.4f}", f"{o.node_error:.4f}"),
                "" if o.output_error is None else f"{o.output_error:.4f}",
            ]
            for i, o in enumerate(report.options, 1)
        ],
    )
    for i, option in enumerate(options, 1):
        console.line(f"{i}: {' && '.join(option['commands'])}")
    told = "by weights alone" if report.samples is None else f"from {report.samples} samples"
    console.line(
        f"expected on {report.device}, {told}, {report.seconds:.1f} s; errors are powers, of nodes "
        "the median"
    )


def show_evaluation(console: Console, report: EvaluationReport) -> None:
    """Every figure that the data allows."""
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
    _show_outputs(console, report)
    console.line(
        f"{report.samples} samples, {report.solver}, {report.sram_bytes} bytes of SRAM "
        f"(gamma {100 * report.gamma:.2f} %), {report.seconds:.1f} s"
    )
    for path in (report.report, report.page, report.adapter_file, report.twin, report.output):
        if path is not None:
            console.line(f"wrote {path}")


def _show_outputs(console: Console, report: CalibrateReport) -> None:
    """The model's outputs on the samples, without and with the adapters."""
    if report.drifted is None or report.calibrated is None:
        console.line("outputs: not compared with the teacher's, for want of a sample to run")
        return

    def row(name: str, outputs: OutputsReport) -> list[str]:
        error = "" if outputs.error is None else f"{outputs.error:.4f}"
        agreement = "" if outputs.agreement is None else f"{100 * outputs.agreement:.1f} %"
        sqnr = ", ".join("" if db is None else f"{db:.1f}" for db in outputs.sqnr_db.values())
        return [name, error, agreement, sqnr]

    console.table(
        ["outputs on the samples", "error", "agreement with the teacher", "SQNR, dB"],
        [row("drifted", report.drifted), row("calibrated", report.calibrated)],
    )
    if report.taken_back is not None:
        console.line(f"taken back, since outputs are nearer without: {report.taken_back}")


def show_recovery(console: Console, report: RecoveryReport) -> None:
    """Clean, uncalibrated and calibrated with their spread, and the worst nodes."""

    def row(name: str, spread: Spread) -> list[str]:
        std = "" if spread.std is None else f"{spread.std:.4f}"
        mean, low, high = (f"{value:.4f}" for value in (spread.mean, spread.min, spread.max))
        return [name, str(spread.count), mean, std, low, high]

    console.table(
        ["model", "runs", report.figure, "std", "lowest", "highest"],
        [
            ["clean", "1", f"{report.clean:.4f}", "", "", ""],
            row("uncalibrated", report.uncalibrated),
            row("calibrated", report.calibrated),
        ],
    )
    console.table(
        ["worst nodes", "error before", "after", "worst run"],
        [
            [n.name, f"{n.error_before:.4f}", f"{n.error_after:.4f}", f"{n.error_after_max:.4f}"]
            for n in report.nodes[:5]
        ],
    )
    if report.restored_frac is None:
        console.line("drift took nothing that calibration could give back")
    else:
        console.line(f"{100 * report.restored_frac:.1f} % of what drift took is restored")
    if report.draws_std is not None:
        console.line(f"standard deviation between draws for one device: {report.draws_std:.4f}")
    console.line(
        f"{report.samples} samples a calibration, {report.test_samples} a test, "
        f"{report.device}, {report.seconds:.1f} s"
    )


def show_study(console: Console, report: StudyReport) -> None:
    """Its tables, and where everything lies."""
    for table in report.tables:
        console.line(table["title"])
        console.table(table["header"], table["rows"])
    if report.worse:
        console.line(f"ours is worse than the paper at {report.worse} places")
    console.line(f"{report.trials} trials, {report.measured} of them now, {report.seconds:.1f} s")
    console.line(f"wrote {report.page}")
