# SPDX-License-Identifier: Apache-2.0
"""The cost of one inference of a converted model: node by node, part by part, with its range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from rimc_onnx.cost import energy
from rimc_onnx.cost.constants import Constant, Constants
from rimc_onnx.cost.counts import (
    ArrayCounts,
    BranchCounts,
    DigitalCounts,
    array_counts,
    branch_counts,
    digital_counts,
)
from rimc_onnx.cost.shapes import Shapes
from rimc_onnx.ops import schema
from rimc_onnx.passes import rram_branches

__all__ = ["TANG_SRAM_FRAC", "CostReport", "NodeCost", "PartCost", "model_cost"]

TANG_SRAM_FRAC = 0.02
"""SRAM beside 3D RRAM in Tang et al. 2025: 2 %."""


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """What one part of the hardware takes."""

    name: str
    energy_nj: float
    """Of one inference."""
    energy_low_nj: float
    """With every constant at the low end of its range."""
    energy_high_nj: float
    area_mm2: float


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """One node in one inference."""

    name: str
    op_type: str
    activations: int
    """Input vectors of its arrays; 0 for a digital node."""
    macs: int
    devices: int
    adcs: int
    sram_bytes: int
    energy_nj: float
    latency_us: float


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Energy, latency and area of one inference."""

    energy_nj: float
    energy_low_nj: float
    """With every constant at the low end of its range; no confidence interval."""
    energy_high_nj: float
    latency_us: float
    """Node after node."""
    latency_low_us: float
    latency_high_us: float
    interval_us: float
    """From one inference to the next, where all nodes work at once: the slowest node's time."""
    area_mm2: float
    """Arrays, converters, adapters and buffers; multipliers, vector unit and wires are not in."""
    area_low_mm2: float
    area_high_mm2: float
    macs: int
    """In arrays, of one inference."""
    tops_per_w: float
    """Two operations a MAC in arrays, over all energy."""
    parts: list[PartCost]
    nodes: list[NodeCost]
    """In graph order."""
    sram_bytes: int
    """Of all adapters."""
    sram_frac: float
    """The same over a byte for every weight in RRAM."""
    tang_sram_frac: float
    """What Tang et al. 2025 have: 0.02."""
    int8_nj: float
    """The same model in int8 with its weights in SRAM, on the same assumptions."""
    int8_dram_nj: float
    """The same with weights that are read from DRAM once in an inference."""
    assumed: dict[str, float]
    """Sizes and bits that the file leaves open."""
    not_counted: list[str]
    """Nodes whose bodies (If, Loop, Scan) are not counted."""
    constants: list[Constant] | None = None
    """Where they were asked for."""


@dataclass(frozen=True, kw_only=True)
class _Counted:
    node: ir.Node
    name: str
    arrays: ArrayCounts | None = None
    branch: BranchCounts | None = None
    digital: DigitalCounts | None = None


def model_cost(
    model: ir.Model,
    shapes: Shapes,
    constants: Constants,
    *,
    complete: bool = False,
    explain: bool = False,
) -> CostReport:
    """Cost of one inference of a converted or calibrated model.

    Args:
        model: with ``ai.rimc`` nodes.
        shapes: of its values in one inference.
        constants: energies, times, areas.
        complete: ``shapes`` has every value that has a shape.
        explain: put the constants into the report.

    Raises:
        ModelError: the model is not converted, or a shape that counts is not known.
    """
    values = constants.values()
    nodes = list(_counted(model, shapes, values, complete))
    at = {"": values, "low": constants.lowest(), "high": constants.highest()}
    by_end = {end: _parts_pj(nodes, found) for end, found in at.items()}
    totals = {end: sum(parts.values()) / 1e3 for end, parts in by_end.items()}
    areas = {end: _areas_um2(nodes, shapes, found) for end, found in at.items()}
    times = {end: [_ns(n, found) for n in nodes] for end, found in at.items()}
    in_arrays = [n for n in nodes if n.arrays is not None]
    weights = sum(n.arrays.weights for n in in_arrays if n.arrays)
    macs = sum(n.arrays.macs for n in in_arrays if n.arrays)
    sram = sum(n.branch.sram_bytes for n in in_arrays if n.branch)
    rest_pj = by_end[""]["digital rest"]
    int8 = {
        in_dram: rest_pj
        + sum(energy.int8_pj(n.arrays, values, in_dram=in_dram) for n in in_arrays if n.arrays)
        for in_dram in (False, True)
    }
    return CostReport(
        energy_nj=totals[""],
        energy_low_nj=totals["low"],
        energy_high_nj=totals["high"],
        latency_us=sum(times[""]) / 1e3,
        latency_low_us=sum(times["low"]) / 1e3,
        latency_high_us=sum(times["high"]) / 1e3,
        interval_us=max(times[""]) / 1e3,
        area_mm2=sum(areas[""].values()) / 1e6,
        area_low_mm2=sum(areas["low"].values()) / 1e6,
        area_high_mm2=sum(areas["high"].values()) / 1e6,
        macs=macs,
        tops_per_w=2 * macs / (1e3 * totals[""]) if totals[""] else 0.0,
        parts=[
            PartCost(
                name=part,
                energy_nj=by_end[""][part] / 1e3,
                energy_low_nj=by_end["low"][part] / 1e3,
                energy_high_nj=by_end["high"][part] / 1e3,
                area_mm2=areas[""].get(part, 0.0) / 1e6,
            )
            for part in energy.PARTS
        ],
        nodes=[_node_cost(n, values, ns) for n, ns in zip(nodes, times[""], strict=True)],
        sram_bytes=sram,
        sram_frac=sram / weights,
        tang_sram_frac=TANG_SRAM_FRAC,
        int8_nj=int8[False] / 1e3,
        int8_dram_nj=int8[True] / 1e3,
        assumed=_assumed(model, constants),
        not_counted=[n.name or n.op_type for n in model.graph if _has_body(n)],
        constants=constants.all() if explain else None,
    )


def _counted(
    model: ir.Model, shapes: Shapes, values: Mapping[str, float], complete: bool
) -> Iterable[_Counted]:
    branches = {id(b.rram): b for b in rram_branches(model)}
    for node in model.graph:
        if branch := branches.get(id(node)):
            arrays = array_counts(branch, shapes, values)
            yield _Counted(
                node=node,
                name=branch.node,
                arrays=arrays,
                branch=branch_counts(branch, arrays.activations),
            )
        elif node.domain != schema.DOMAIN:
            digital = digital_counts(node, shapes, complete=complete)
            yield _Counted(node=node, name=node.name or "", digital=digital)


def _node_parts_pj(node: _Counted, at: Mapping[str, float]) -> dict[str, float]:
    if node.arrays is not None and node.branch is not None:
        return energy.node_pj(node.arrays, node.branch, at)
    return {} if node.digital is None else {"digital rest": energy.digital_pj(node.digital, at)}


def _parts_pj(nodes: Iterable[_Counted], at: Mapping[str, float]) -> dict[str, float]:
    total = dict.fromkeys(energy.PARTS, 0.0)
    for node in nodes:
        for part, found in _node_parts_pj(node, at).items():
            total[part] += found
    return total


def _ns(node: _Counted, at: Mapping[str, float]) -> float:
    if node.arrays is not None and node.branch is not None:
        return max(energy.array_ns(node.arrays, at), energy.branch_ns(node.branch, at))
    return 0.0 if node.digital is None else energy.digital_ns(node.digital, at)


def _areas_um2(
    nodes: Iterable[_Counted], shapes: Shapes, at: Mapping[str, float]
) -> dict[str, float]:
    """By part; buffers hold what the node with the largest inputs and outputs reads and writes."""
    total: dict[str, float] = {}
    largest = 0
    for node in nodes:
        if node.arrays is not None:
            for part, found in energy.array_area_um2(node.arrays, at).items():
                total[part] = total.get(part, 0.0) + found
        if node.branch is not None:
            sram = node.branch.sram_bytes * at["sram.area_um2_per_byte"]
            total["SRAM branch"] = total.get("SRAM branch", 0.0) + sram
        values = {v.name for v in (*node.node.inputs, *node.node.outputs) if v is not None}
        names = {v.name for v in node.node.inputs if v is not None and v.const_value is not None}
        held = 0
        for name in values - names:
            elements = 1
            for size in shapes.get(name or "", (0,)):
                elements *= size
            held += elements
        largest = max(largest, held)
    return {**total, "buffers": largest * at["sram.area_um2_per_byte"]}


def _node_cost(node: _Counted, at: Mapping[str, float], ns: float) -> NodeCost:
    arrays, digital = node.arrays, node.digital
    return NodeCost(
        name=node.name,
        op_type=node.node.op_type,
        activations=arrays.activations if arrays else 0,
        macs=arrays.macs if arrays else digital.macs if digital else 0,
        devices=arrays.devices if arrays else 0,
        adcs=arrays.adcs if arrays else 0,
        sram_bytes=node.branch.sram_bytes if node.branch else 0,
        energy_nj=sum(_node_parts_pj(node, at).values()) / 1e3,
        latency_us=ns / 1e3,
    )


def _assumed(model: ir.Model, constants: Constants) -> dict[str, float]:
    """What the first node leaves open, by its attribute, and what it is counted as."""
    attributes = rram_branches(model)[0].rram.attributes
    values = constants.values()
    of = {
        "tile_rows": "structure.rows",
        "dac_bits": "structure.dac_bits",
        "adc_bits": "structure.adc_bits",
    }
    return {
        name: values[constant] for name, constant in of.items() if not attributes[name].as_int()
    }


def _has_body(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(isinstance(a, ir.Attr) and a.type in kinds for a in node.attributes.values())
