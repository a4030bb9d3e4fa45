# SPDX-License-Identifier: Apache-2.0
"""The job ``convert``: from a trained model to a file with RRAM nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.calibration.converter_ranges import measure_ranges
from rimc_onnx.calibration.input_power import measure_input_power
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import DeviceConfig, DriftLaw, Scaling
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.feeds import data_needed, feeds_of, graph_inputs, range_data, range_samples
from rimc_onnx.io.model_files import (
    blame_model,
    files_of,
    load_model,
    save_model,
    sha256_of,
)
from rimc_onnx.io.outputs import check_output, output_of
from rimc_onnx.io.samples import Data, SampleArrays, files_of_data
from rimc_onnx.jobs.input_ranges import recorded_ranges
from rimc_onnx.jobs.reports import ConvertReport, NodeReport
from rimc_onnx.jobs.teacher import (
    NODES,
    TEACHER_PATH,
    TEACHER_SHA256,
    VERSION,
    nodes_text,
    package_version,
    recorded_path,
)
from rimc_onnx.runtime.programming import native_programmer

__all__ = ["convert", "inputs_of", "node_report", "num_unequal", "takes_samples", "with_mapping"]


def convert(
    model: str | Path,
    output: str | Path | None = None,
    *,
    config: ConvertConfig | None = None,
    data: Data | None = None,
    reads: Sequence[str | Path] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ConvertReport:
    """Rewrite an ONNX model into RRAM nodes with SRAM branches and program the arrays.

    Args:
        model: the teacher, an .onnx file.
        output: default ``<model>.rimc.onnx`` beside the model.
        config: device, seed, rank, periphery; default: 20 % relative drift, ideal converters.
        data: samples that set the ranges of converters and word lines, needed with DAC or ADC bits
            or an I-V curve; default is ``calibration.npz`` beside the model. Where they are given,
            scaling and clipping are chosen for the inputs that they bring, too.
        reads: files that ``config`` was made of, which the output must not replace either.
        force: replace an existing output.
        dry_run: decide, write nothing.
        progress: called with (nodes done, nodes in all).

    Raises:
        RimcError: see the subclasses; nothing is written then.
    """
    start = time.perf_counter()
    config = config or ConvertConfig()
    source = Path(model)
    graph = load_model(source)
    target = output_of(source, output, ".rimc.onnx")
    if not dry_run:
        used = range_data(source, data) if takes_samples(config, data) else None
        given = [*files_of(source), *files_of_data(used), *map(Path, reads)]
        check_output(target, force=force, reads=given)
    digest = sha256_of(source)
    inputs = graph_inputs(graph)
    with blame_model(source):
        passes.prepare_pipeline(keep_digital=config.keep_digital)(graph)
        decisions = passes.select_rram_nodes(graph, config)
    if not dry_run:
        passes.require_mapped(decisions)
    units = [d.unit for d in decisions if d.unit]
    with blame_model(source):
        feeds = [] if dry_run else inputs_of(graph, source, data, config)
        config = with_mapping(config, graph, units, feeds)
    report = _report(
        decisions,
        config,
        output=None if dry_run else str(target),
        digest=digest,
        data=data_needed(inputs, data),
    )
    if dry_run:
        return _timed(report, start)
    ranges = {}
    if config.needs_ranges:
        with blame_model(source):
            ranges = measure_ranges(
                graph,
                units,
                feeds,
                digital_session,
                config=config,
                input_ranges=recorded_ranges(graph),
                progress=progress,
            )
    with blame_model(source):
        passes.convert_pipeline(decisions, config, ranges, programmer=native_programmer())(graph)
        passes.check_rimc_model(graph)
    graph.metadata_props.update(
        {
            TEACHER_SHA256: digest,
            TEACHER_PATH: recorded_path(source, target),
            VERSION: package_version(),
            NODES: nodes_text(report.nodes),
        }
    )
    save_model(graph, target, force=force)
    return _timed(report, start)


def inputs_of(
    graph: ir.Model, source: Path, data: Data | None, config: ConvertConfig
) -> list[Feed]:
    """Samples for ranges and mapping; none where they are neither needed nor given."""
    return feeds_of(range_samples(graph, source, data)) if takes_samples(config, data) else []


def takes_samples(config: ConvertConfig, data: Data | None) -> bool:
    """True where ranges need samples, or the mapping is open and some are given."""
    is_given = data is not None and not (isinstance(data, SampleArrays) and data.arrays is None)
    return config.needs_ranges or (config.is_mapping_open and is_given)


def with_mapping(
    config: ConvertConfig,
    graph: ir.Model,
    units: Sequence[passes.RramUnit],
    feeds: Sequence[Feed],
) -> ConvertConfig:
    """``config`` with scaling and clipping of every node."""
    if not (config.is_mapping_open and feeds):
        return passes.with_mapping(config, units)
    power = measure_input_power(
        graph, units, feeds, digital_session, about_mean=not config.uncalibrated
    )
    return passes.with_mapping(config, units, power)


def node_report(name: str, op_type: str, device: DeviceConfig) -> NodeReport:
    """A node in RRAM and how its weight lies on its devices."""
    return NodeReport(
        name=name,
        op_type=op_type,
        mapped=True,
        reason=None,
        scaling=(device.scaling or Scaling.NODE).value,
        clip_sigma=device.clip_sigma if device.clips else None,
    )


def _report(
    decisions: Sequence[passes.MappingDecision],
    config: ConvertConfig,
    *,
    output: str | None,
    digest: str,
    data: str,
) -> ConvertReport:
    """What the decisions and the configuration say; the time taken is still to come."""
    nodes = [
        node_report(d.name, d.op_type, config.device_of(d.name))
        if d.accepted
        else NodeReport(name=d.name, op_type=d.op_type, mapped=False, reason=d.reason)
        for d in decisions
    ]
    table = config.read_noise_table()
    return ConvertReport(
        output=output,
        nodes=nodes,
        mapped=sum(n.mapped for n in nodes),
        digital=sum(not n.mapped for n in nodes),
        rram_weights=sum(int(np.prod(d.unit.weight.shape)) for d in decisions if d.unit),
        device=config.device.preset,
        seed=config.seed,
        time_s=config.device.resolve_time(config.time_s) if config.device.time_law else None,
        teacher_sha256=digest,
        data=data,
        seconds=0.0,
        read_noise_frac=table.top_frac if table else config.reads.read_noise_frac,
        read_noise_law=config.read_noise_law,
        iv_curve=config.iv_curve,
        reads_of_device=config.reads_of_device,
        clipped=sum(n.clip_sigma is not None for n in nodes),
        uncalibrated=config.uncalibrated,
        unequal=num_unequal(decisions, config),
    )


def num_unequal(decisions: Sequence[passes.MappingDecision], config: ConvertConfig) -> int:
    """Nodes that have far less error with equal word lines."""
    if config.device.law is DriftLaw.GAUSSIAN_RELATIVE and config.periphery.dac_bits is None:
        return 0
    units = [decision.unit for decision in decisions if decision.unit is not None]
    return sum(passes.equalized_share(unit.node) <= passes.UNEQUAL_SHARE for unit in units)


def _timed(report: ConvertReport, start: float) -> ConvertReport:
    return replace(report, seconds=time.perf_counter() - start)
