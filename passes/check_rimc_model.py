# SPDX-License-Identifier: Apache-2.0
"""Is a converted model what the operators need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from rimc_onnx.crossbar import NodePeriphery, attribute_types
from rimc_onnx.device import DeviceConfig
from rimc_onnx.errors import ConfigError, ModelError
from rimc_onnx.ops import schema
from rimc_onnx.ops.adapter import lora_shapes
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes.node_geometry import node_geometry
from rimc_onnx.passes.rram_branch import (
    RramBranch,
    initializer_shape,
    node_error,
    rram_branches,
)

__all__ = ["check_rimc_model"]

_RRAM = (schema.RRAM_CONV, schema.RRAM_MATMUL)
_KINDS = {
    "int": ir.AttributeType.INT,
    "ints": ir.AttributeType.INTS,
    "float": ir.AttributeType.FLOAT,
    "floats": ir.AttributeType.FLOATS,
    "string": ir.AttributeType.STRING,
}
_CODE_TYPES = {
    "lora_a": ir.DataType.INT8,
    "lora_b": ir.DataType.INT8,
    "magnitude": ir.DataType.INT8,
    "sparse_values": ir.DataType.INT8,
    "sparse_index": ir.DataType.INT64,
}


def check_rimc_model(model: ir.Model) -> None:
    """Check every ``ai.rimc`` node against the operator set: inputs, attributes, types, shapes.

    Raises:
        ModelError: the first fault, with its node; or the model is not converted.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == schema.DOMAIN:
            _check_signature(node)
            if node.op_type in _RRAM:
                _check_rram(node)
            else:
                _check_dora(node)
    names: set[str] = set()
    for branch in rram_branches(model):
        if branch.node in names:
            raise node_error(
                branch.rram, f"is the second one of the teacher's node '{branch.node}'"
            )
        names.add(branch.node)
        _check_adapter(branch)
    if model.opset_imports.get(schema.DOMAIN) != schema.VERSION:
        raise ModelError(f"the model does not import {schema.DOMAIN} version {schema.VERSION}")


def _check_signature(node: ir.Node) -> None:
    spec = schema.OPS.get(node.op_type)
    if spec is None:
        raise node_error(node, f"{schema.DOMAIN} has no such operator")
    if len(node.inputs) != len(spec.inputs) or any(i is None for i in node.inputs):
        raise node_error(node, f"needs the inputs {', '.join(spec.inputs)}")
    if len(node.outputs) != 1:
        raise node_error(node, f"has one output, got {len(node.outputs)}")
    types = attribute_types(node.op_type)
    for name in types.keys() ^ node.attributes.keys():
        state = "lacks" if name in types else "has the unknown"
        raise node_error(node, f"{state} attribute '{name}': convert the model again")
    for name, kind in types.items():
        if node.attributes[name].type != _KINDS[kind]:
            raise node_error(node, f"attribute '{name}' must be of type {kind}")
        if kind == "string" and not isinstance(node.attributes[name].value, str):
            raise node_error(node, f"attribute '{name}' is no UTF-8 text: convert the model again")


def _check_rram(node: ir.Node) -> None:
    geometry = _geometry(node)
    weight = node.inputs[1]
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        raise node_error(node, "the weight must be float32")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    periphery = NodePeriphery.read(attributes)
    try:
        periphery.check(geometry, attributes["w_max"])
    except ValueError as error:
        raise node_error(node, str(error)) from error
    if node.op_type == schema.RRAM_CONV:
        tile_group = geometry.group * periphery.num_tiles
        if attributes["tile_group"] != tile_group:
            raise node_error(node, f"tile_group must be {tile_group}")
    if not attributes["wire_ohm"] >= 0.0:
        raise node_error(node, f"wire_ohm must lie in 0..inf, got {attributes['wire_ohm']:g}")
    if not 0.0 <= attributes["time_s"] < math.inf:
        raise node_error(node, f"time_s must lie in 0..inf, got {attributes['time_s']:g}")
    if fault := _fault_of_device(attributes["device_config"]):
        raise node_error(node, f"{fault}: convert the model again")


@lru_cache(maxsize=4)  # most files have one device, and hundreds of nodes
def _fault_of_device(text: str) -> str:
    """What is wrong with a device's configuration, empty if nothing is."""
    try:
        DeviceConfig.from_json(text)
    except ConfigError as error:
        return str(error).rstrip(".")
    return ""


def _geometry(node: ir.Node) -> NodeGeometry:
    """Geometry of a crossbar that kernels take."""
    shape = initializer_shape(node, 1)
    if 0 in shape:
        raise node_error(node, f"the weight is empty, its shape is {list(shape)}")
    if node.op_type == schema.RRAM_MATMUL:
        if len(shape) != 2:
            raise node_error(node, f"the weight must be a matrix, got shape {list(shape)}")
    elif not 3 <= len(shape) <= 5:
        raise node_error(node, f"the weight must have 3 to 5 axes, got shape {list(shape)}")
    geometry = node_geometry(node, shape)
    for name in ("strides", "pads", "dilations"):
        values = getattr(geometry, name)
        least = 0 if name == "pads" else 1
        if not all(least <= value <= schema.MAX_GEOMETRY for value in values):
            what = f"{name} must lie in {least}..{schema.MAX_GEOMETRY}, got {list(values)}"
            raise node_error(node, what)
    return geometry


def _check_dora(node: ir.Node) -> None:
    for index, name in enumerate(schema.OPS[node.op_type].inputs[2:], start=2):
        wanted = _CODE_TYPES.get(name, ir.DataType.FLOAT)
        initializer_shape(node, index)
        value = node.inputs[index]
        if value is None or value.dtype != wanted:
            raise node_error(node, f"input '{name}' must be {wanted.name.lower()}")


def _check_adapter(branch: RramBranch) -> None:
    geometry = branch.geometry
    names = schema.OPS[branch.dora.op_type].inputs
    shapes = {name: initializer_shape(branch.dora, i) for i, name in enumerate(names) if i > 1}
    lora_a = shapes["lora_a"]
    axes = len(geometry.weight_shape)
    if len(lora_a) != axes:
        what = f"input 'lora_a' must have {axes} axes, got {list(lora_a)}"
        raise node_error(branch.dora, what)
    for name in geometry.attributes:
        if branch.dora.attributes[name].value != branch.rram.attributes[name].value:
            raise node_error(branch.dora, f"attribute '{name}' is not that of its crossbar")
    rank = lora_a[0] // geometry.group if geometry.is_conv else lora_a[1]
    a_shape, b_shape, ranks = lora_shapes(geometry, rank)
    columns = geometry.columns
    wanted: dict[str, Sequence[tuple[int, ...]]] = {"lora_a": [a_shape], "lora_b": [b_shape]}
    wanted |= {
        "magnitude": [(columns,)],
        "x_scale": [(1,)],
        "rank_step": [(ranks,)],
        "lora_b_scale": [(1,), (columns,)],
        "magnitude_scale": [(1,)],
        "bias": [(columns,)],
        "sparse_values": [(int(np.prod(shapes["sparse_values"])),)],
        "sparse_index": [shapes["sparse_values"]],
        "sparse_scale": [(1,), (columns,)],
    }
    for name, allowed in wanted.items():
        if shapes[name] not in allowed:
            either = " or ".join(str(list(s)) for s in allowed)
            raise node_error(
                branch.dora, f"input '{name}' must have shape {either}, got {list(shapes[name])}"
            )
    _check_adapter_values(branch)


def _check_adapter_values(branch: RramBranch) -> None:
    try:
        adapter = branch.adapter()
    except ValueError as error:
        raise node_error(branch.dora, str(error)) from error
    for name in ("x_scale", "rank_step", "lora_b_scale", "magnitude_scale", "sparse_scale", "bias"):
        values = getattr(adapter, name)
        has_sign = name not in {"x_scale", "rank_step"}
        if not (np.isfinite(values) & (has_sign | (values > 0))).all():
            what = "finite" if has_sign else "positive and finite"
            raise node_error(branch.dora, f"input '{name}' must be {what}")
