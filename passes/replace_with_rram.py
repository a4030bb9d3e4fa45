# SPDX-License-Identifier: Apache-2.0
"""Accepted nodes become programmed crossbars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rimc_onnx.crossbar import ConvertConfig, NodeRanges, attribute_types
from rimc_onnx.device import CellProgrammer, DeviceConfig, largest_weight
from rimc_onnx.errors import NodeMappingError
from rimc_onnx.ops import schema
from rimc_onnx.passes._bodies import write_bodies
from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    Shapes,
    add_initializer,
    is_derived,
    is_private,
    remove_dead,
    take_over,
)
from rimc_onnx.passes.mapped_devices import with_mapping
from rimc_onnx.passes.programmed_tensor import programmed_tensor
from rimc_onnx.passes.rram_unit import RramUnit, unit_periphery
from rimc_onnx.passes.select_rram_nodes import MappingDecision

__all__ = ["ReplaceWithRramPass"]

_METADATA = {PASS_KEY: "ReplaceWithRramPass"}


class ReplaceWithRramPass(ir.passes.InPlacePass):
    """Replace every accepted unit by a crossbar that holds its realised weight.

    1. Conv, or MatMul: ``RramConv`` / ``RramMatMul`` named ``<node>/rram``. The weight is
       programmed when the file is written, one node at a time, and never kept in memory.
    2. A bias: an Add named ``<node>/bias`` behind it, in float32.
    3. float16 units: Cast to float32 in front and back behind.
    4. A weight that nothing else reads and that is in the crossbar's layout keeps its initializer's
       name; any other one is ``<node>/rram/w``, and what only made the old one is removed.
    5. Scaling and clipping that the configuration leaves open: chosen for every node by its weight.
    6. Decisions that are refused, and nodes without a decision: left alone.

    The bodies of the operators come along as model-local functions.

    Raises:
        NodeMappingError: a converter is not ideal and ``ranges`` has none for a node, or one that
            fits neither one nor all bit lines; or the periphery does not fit the device or the
            arrays. What wires lose is found when the file is written.
    """

    def __init__(
        self,
        decisions: Sequence[MappingDecision],
        config: ConvertConfig,
        ranges: Mapping[str, NodeRanges] | None = None,
        *,
        programmer: CellProgrammer | None = None,
    ) -> None:
        self._units = [d.unit for d in decisions if d.accepted and d.unit is not None]
        self._config = config
        self._ranges = ranges or {}
        self._programmer = programmer

    def __str__(self) -> str:
        return f"ReplaceWithRramPass({len(self._units)} nodes)"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace in place; units that were replaced before are left alone."""
        units = [unit for unit in self._units if unit.node.graph is model.graph]
        if not units:
            return ir.passes.PassResult(model, False)
        self._config = with_mapping(self._config, units)
        shapes = Shapes(model)
        # All before the first edit: ONNX infers no shapes through operators of our domain, a weight
        # that two nodes share is nobody's own, and an error leaves the model as it was.
        plans = [
            _Plan(
                unit=unit,
                attributes=self._attributes(unit),
                keeps_name=_keeps_name(unit),
                x_shape=shapes.shape(unit.x),
                y_shape=shapes.shape(unit.y),
            )
            for unit in units
        ]
        names = Names(model)
        for plan in plans:
            _replace(model.graph, plan, self._config, names, self._programmer)
        write_bodies(model)
        time_s = self._config.device.resolve_time(self._config.time_s)
        model.metadata_props[schema.TIME_KEY] = f"{time_s:.9g}"
        return ir.passes.PassResult(model, True)

    def _attributes(self, unit: RramUnit) -> list[ir.Attr]:
        config, device = self._config, self._config.device_of(unit.name)
        values = {
            **unit_periphery(unit, config, self._ranges.get(unit.name)).values(),
            "node": unit.name,
            "device": device.preset,
            "device_config": device.to_json(),
            "seed": config.seed,
            "time_s": device.resolve_time(config.time_s),
            "wire_ohm": _wire_ohm(config) or 0.0,
            "g_max_us": device.g_max_us,
            "w_max": _w_max(unit, device),
            **unit.geometry.attributes,
            "tile_group": unit.geometry.group * unit.num_tiles,
        }
        types = attribute_types(unit.op_type)
        return [_ATTRIBUTE[kind](name, values[name]) for name, kind in types.items()]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One unit, and what has to be known of it before the graph changes."""

    unit: RramUnit
    attributes: list[ir.Attr]
    keeps_name: bool
    x_shape: ir.Shape | None
    y_shape: ir.Shape | None


_ATTRIBUTE: dict[str, Callable[..., ir.Attr]] = {
    "int": ir.AttrInt64,
    "ints": ir.AttrInt64s,
    "float": ir.AttrFloat32,
    "floats": ir.AttrFloat32s,
    "string": ir.AttrString,
}


def _w_max(unit: RramUnit, device: DeviceConfig) -> tuple[float, ...]:
    w_max = largest_weight(unit.weight.float32(), device, unit.geometry.column_axis)
    if not np.isfinite(w_max).all():
        raise NodeMappingError(
            f"node '{unit.name}': the weight has NaN or infinite values, no conductance can hold "
            f"them. Repair the model or leave the node digital."
        )
    return tuple(float(w) for w in w_max)


def _keeps_name(unit: RramUnit) -> bool:
    """True if the user's initializer can hold the realised weight under its own name."""
    old = unit.node.inputs[1]
    return (
        old is not None
        and old.is_initializer()
        and is_private(old)
        and not is_derived(old)
        and unit.cast_from is None
    )


def _weight(
    graph: ir.Graph,
    plan: _Plan,
    config: ConvertConfig,
    names: Names,
    programmer: CellProgrammer | None,
) -> ir.Value:
    """The initializer of the realised weight, computed when it is read."""
    unit = plan.unit
    old = unit.node.inputs[1]
    if old is None:
        raise ValueError(f"node '{unit.name}' has no weight")
    name = str(old.name) if plan.keeps_name else names.value(f"{unit.name}/rram/w")
    tensor = programmed_tensor(
        unit,
        name=name,
        device=config.device_of(unit.name),
        seed=config.seed,
        time_s=config.time_s,
        wire_ohm=_wire_ohm(config),
        num_tiles=unit.num_tiles,
        tile_rows=config.periphery.tile_rows,
        dac_bits=config.reads.dac_bits or 0,
        programmer=programmer,
    )
    if plan.keeps_name:
        old.const_value = tensor
        return old
    return add_initializer(graph, name, tensor)


def _wire_ohm(config: ConvertConfig) -> float | None:
    """As the node records it, in float32: arrays that are made again have the same wires."""
    wire_ohm = config.periphery.wire_ohm
    return None if wire_ohm is None else float(np.float32(wire_ohm))


def _replace(
    graph: ir.Graph,
    plan: _Plan,
    config: ConvertConfig,
    names: Names,
    programmer: CellProgrammer | None,
) -> None:
    unit = plan.unit
    nodes: list[ir.Node] = []
    # Not unit.x: where that was the output of another unit, this is what replaced it.
    x_in = unit.node.inputs[0]
    if x_in is None:
        raise ValueError(f"node '{unit.name}' has no input")

    def node(
        op_type: str, suffix: str, *inputs: ir.Value, attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        new = ir.Node(
            schema.DOMAIN if op_type in schema.OPS else "",
            op_type,
            inputs,
            attributes,
            name=names.node(f"{unit.name}/{suffix}"),
            metadata_props=dict(_METADATA),
        )
        nodes.append(new)
        return new.outputs[0]

    def cast(value: ir.Value, suffix: str, to: ir.DataType) -> ir.Value:
        return node("Cast", suffix, value, attributes=[ir.AttrInt64("to", to)])

    w = _weight(graph, plan, config, names, programmer)
    x = x_in
    if unit.cast_from is not None:
        x = cast(x, "rram/cast", ir.DataType.FLOAT)
        _describe(x, names.value(f"{unit.name}/rram/x"), plan.x_shape)
    y_name = str(unit.y.name)
    y = node(unit.op_type, "rram", x, w, attributes=plan.attributes)
    if unit.add is not None or unit.bias.any():
        _describe(y, names.value(f"{y_name}/rram"), plan.y_shape)
        y = node("Add", "bias", y, _bias(graph, unit, names))
    if unit.cast_from is not None:
        _describe(y, names.value(f"{y_name}/float32"), plan.y_shape)
        y = cast(y, "dora/cast", unit.cast_from)

    old = [n for n in (unit.add, unit.node) if n is not None]
    inputs = [i for n in old for i in n.inputs if i is not None]
    take_over(unit.y, y)
    if y.type is None:
        y.type = ir.TensorType(unit.cast_from or ir.DataType.FLOAT)
    if y.shape is None and plan.y_shape is not None:
        y.shape = plan.y_shape.copy()
    # At the Conv or MatMul, not at its Add: crossbars stay in the order of the teacher's nodes.
    graph.insert_before(unit.node, nodes)
    graph.remove(old, safe=True)
    remove_dead(i for i in inputs if i is not w and i is not x_in)


def _describe(value: ir.Value, name: str, shape: ir.Shape | None) -> None:
    value.name = name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = None if shape is None else shape.copy()


def _bias(graph: ir.Graph, unit: RramUnit, names: Names) -> ir.Value:
    """[N] of a MatMul, [M, 1...] of a Conv: per channel in front of the spatial axes."""
    name = names.value(f"{unit.name}/bias")
    bias = np.ascontiguousarray(unit.bias, np.float32).reshape(unit.geometry.channel_shape)
    return add_initializer(graph, name, ir.tensor(bias, name=name))
