# SPDX-License-Identifier: Apache-2.0
"""The job ``inspect``: which nodes of a model are in RRAM, or would be, and why."""

from __future__ import annotations

import json
from pathlib import Path

from rimc_onnx import passes
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import DeviceConfig
from rimc_onnx.io.model_files import load_model
from rimc_onnx.jobs.convert import convert, node_report
from rimc_onnx.jobs.reports import InspectReport, NodeRangesReport
from rimc_onnx.jobs.teacher import TEACHER_SHA256, check_converted, digital_nodes

__all__ = ["inspect"]


def inspect(model: str | Path, *, config: ConvertConfig | None = None) -> InspectReport:
    """What is in RRAM and what is not, and why; a plain model as ``convert`` would map it."""
    source = Path(model)
    graph = load_model(source)
    if not passes.is_converted(graph):
        report = convert(source, config=config, dry_run=True)
        return InspectReport(
            model=str(source),
            converted=False,
            nodes=report.nodes,
            mapped=report.mapped,
            digital=report.digital,
            rram_weights=report.rram_weights,
            sram_bytes=None,
            device=None,
            seed=None,
            time_s=None,
            teacher_sha256=None,
        )
    check_converted(graph, source)
    passes.check_rimc_model(graph)
    branches = passes.rram_branches(graph)
    nodes = [node_report(b.node, b.rram.op_type, _device(b)) for b in branches]
    digital = digital_nodes(graph)
    first = branches[0].rram.attributes
    device = json.loads(_device(branches[0]).to_json())
    adapters = [b.adapter() for b in branches]
    return InspectReport(
        model=str(source),
        converted=True,
        nodes=nodes + digital,
        mapped=len(nodes),
        digital=len(digital),
        rram_weights=sum(b.geometry.num_weights for b in branches),
        sram_bytes=sum(adapter.sram_bytes for adapter in adapters),
        device=device,
        seed=first["seed"].as_int(),
        time_s=first["time_s"].as_float() if "time_law" in device else None,
        teacher_sha256=graph.metadata_props.get(TEACHER_SHA256),
        periphery=passes.read_periphery(first),
        ranges=[_ranges_report(b) for b in branches],
        adapters=sum(not adapter.is_identity for adapter in adapters),
        swappable=passes.is_swappable(graph),
    )


def _device(branch: passes.RramBranch) -> DeviceConfig:
    return DeviceConfig.from_json(branch.rram.attributes["device_config"].as_string())


def _ranges_report(branch: passes.RramBranch) -> NodeRangesReport:
    attributes = branch.rram.attributes
    dac_range, adc_range = passes.node_ranges(attributes)
    return NodeRangesReport(
        name=branch.node,
        num_tiles=attributes["num_tiles"].as_int(),
        dac_range=dac_range,
        adc_range=adc_range,
    )
