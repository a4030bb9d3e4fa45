# SPDX-License-Identifier: Apache-2.0
"""Is a converted model what the operators need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnxscript import ir

from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
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
    for name in spec.attributes.keys() ^ node.attributes.keys():
        state = "lacks" if name in spec.attributes else "has the unknown"
        raise node_error(node, f"{state} attribute '{name}': convert the model again")
    for name, kind in spec.attributes.items():
        if node.attributes[name].type != _KINDS[kind]:
            raise node_error(node, f"attribute '{name}' must be of type {kind}")


def _check_rram(node: ir.Node) -> None:
    shape = initializer_shape(node, 1)
    weight = node.inputs[1]
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        raise node_error(node, "the weight must be float32")
    attributes = node.attributes
    depth, columns, rows = _crossbar(node, shape)
    tile_rows = attributes["tile_rows"].as_int()
    if tile_rows < 0:
        raise node_error(node, f"tile_rows must be 0 (untiled) or more, got {tile_rows}")
    try:
        tiles = schema.num_tiles(depth, rows, tile_rows or None)
    except ValueError as error:
        raise node_error(node, str(error)) from error
    if attributes["num_tiles"].as_int() != tiles:
        raise node_error(node, f"num_tiles must be {tiles}, got {attributes['num_tiles'].as_int()}")
    if node.op_type == schema.RRAM_CONV:
        tile_group = attributes["group"].as_int() * tiles
        if attributes["tile_group"].as_int() != tile_group:
            raise node_error(node, f"tile_group must be {tile_group}")
    counts = {"adc_range": columns, "w_max": columns}
    counts |= dict.fromkeys(("adc_gain", "adc_offset"), tiles * columns)
    for name, count in counts.items():
        got = len(attributes[name].as_floats())
        if got not in {1, count}:
            raise node_error(node, f"{name} must have 1 or {count} values, got {got}")
    _check_periphery(node)


def _crossbar(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Steps of a bit line, bit lines, and word lines of a step."""
    if 0 in shape:
        raise node_error(node, f"the weight is empty, its shape is {list(shape)}")
    if node.op_type == schema.RRAM_MATMUL:
        if len(shape) != 2:
            raise node_error(node, f"the weight must be a matrix, got shape {list(shape)}")
        return shape[0], shape[1], 1
    if not 3 <= len(shape) <= 5:
        raise node_error(node, f"the weight must have 3 to 5 axes, got shape {list(shape)}")
    columns, depth, *kernel = shape
    _check_geometry(node, len(kernel), columns)
    return depth, columns, math.prod(kernel)


def _check_periphery(node: ir.Node) -> None:
    """Values that the operators do not take: as the native kernels see them."""
    floats: dict[str, tuple[float, float]] = {
        "iv_sinh": (0.0, schema.MAX_IV_SINH),
        "input_shrink": (float(np.finfo(np.float32).tiny), 1.0),
        "read_noise": (0.0, 1.0),
        "wire_ohm": (0.0, np.inf),
    }
    for name, (low, high) in floats.items():
        got = node.attributes[name].as_float()
        if not low <= got <= high:
            raise node_error(node, f"{name} must lie in {low:g}..{high:g}, got {got:g}")
    dac_bits, signed, serial, relative, adc_bits = (
        node.attributes[name].as_int()
        for name in ("dac_bits", "dac_signed", "dac_serial_bits", "read_noise_relative", "adc_bits")
    )
    for name, flag in (("dac_signed", signed), ("read_noise_relative", relative)):
        if flag not in {0, 1}:
            raise node_error(node, f"{name} must be 0 or 1, got {flag}")
    for name, bits, least in (("dac_bits", dac_bits, 1 + signed), ("adc_bits", adc_bits, 2)):
        if bits != 0 and not least <= bits <= schema.MAX_BITS:
            raise node_error(node, f"{name} must be 0 or {least}..{schema.MAX_BITS}, got {bits}")
    most = max(dac_bits - signed, 0)
    if not 0 <= serial <= most:
        raise node_error(node, f"dac_serial_bits must lie in 0..{most}, got {serial}")
    for name in ("iv_square", "iv_cube"):
        values = node.attributes[name].as_floats()
        if len(values) != schema.IV_TERMS or not np.isfinite(values).all():
            raise node_error(
                node, f"{name} must have {schema.IV_TERMS} finite values, got {values}"
            )
    _check_read_noise_curve(node, relative)
    _check_ranges(node, dac_bits - signed, adc_bits)


def _check_read_noise_curve(node: ir.Node, relative: int) -> None:
    curve = np.asarray(node.attributes["read_noise_curve"].as_floats(), np.float32)
    if curve.size != schema.NOISE_KNOTS and curve.tolist() != [0.0]:
        raise node_error(
            node,
            f"read_noise_curve must be one 0 or {schema.NOISE_KNOTS} values, got {curve.size}",
        )
    if not ((curve >= 0) & (curve <= 1)).all():
        raise node_error(node, "read_noise_curve must lie in 0..1")
    if curve.size > 1 and relative:
        raise node_error(node, "read_noise_relative must be 0 with a read_noise_curve")


def _check_ranges(node: ir.Node, dac_bits: int, adc_bits: int) -> None:
    """Ranges of the converters and of the noise: in float32 their steps and codes are finite."""
    ranges, gains, offsets, w_max = (
        np.asarray(node.attributes[name].as_floats(), np.float32)
        for name in ("adc_range", "adc_gain", "adc_offset", "w_max")
    )
    dac_range = np.float32(node.attributes["dac_range"].as_float())
    for name, values in (("dac_range", dac_range), ("adc_range", ranges)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise node_error(node, f"{name} must be positive and finite")
    if not (np.isfinite(gains) & (gains > 0)).all() or not np.isfinite(offsets).all():
        raise node_error(node, "adc_gain must be above 0 and adc_offset finite")
    if not (np.isfinite(w_max) & (w_max >= 0)).all():
        raise node_error(node, "w_max must be 0 or more and finite")
    with np.errstate(over="ignore", under="ignore"):
        if dac_bits > 0 and dac_range / np.float32(2**dac_bits - 1) < np.finfo(np.float32).tiny:
            raise node_error(node, f"dac_range {dac_range:g} is too small for its bits")
        top = np.float32(2 ** max(adc_bits - 1, 0) - 1)
        gain = (top / ranges).max() * gains.max()
        if adc_bits and not (np.isfinite(gain) and np.isfinite(offsets * top).all()):
            raise node_error(node, "adc_range, adc_gain and adc_offset must give finite codes")
        noise = np.float32(np.sqrt(2.0)) * np.float32(node.attributes["read_noise"].as_float())
        if not np.isfinite(noise * w_max.max()):
            raise node_error(node, "read_noise * w_max must be finite")


def _check_geometry(node: ir.Node, spatial: int, columns: int) -> None:
    for name, length in (("strides", spatial), ("pads", 2 * spatial), ("dilations", spatial)):
        values = node.attributes[name].as_ints()
        if len(values) != length:
            raise node_error(node, f"{name} must have {length} values, got {len(values)}")
        least = 0 if name == "pads" else 1
        if not all(least <= value <= schema.MAX_GEOMETRY for value in values):
            raise node_error(
                node, f"{name} must lie in {least}..{schema.MAX_GEOMETRY}, got {list(values)}"
            )
    group = node.attributes["group"].as_int()
    if group < 1 or columns % group:
        raise node_error(node, f"{columns} output channels can't be split in its groups")


def _check_dora(node: ir.Node) -> None:
    for index, name in enumerate(schema.OPS[node.op_type].inputs[2:], start=2):
        wanted = _CODE_TYPES.get(name, ir.DataType.FLOAT)
        initializer_shape(node, index)
        value = node.inputs[index]
        if value is None or value.dtype != wanted:
            raise node_error(node, f"input '{name}' must be {wanted.name.lower()}")


def _check_adapter(branch: RramBranch) -> None:
    weight, group = branch.weight_shape, branch.group
    names = schema.OPS[branch.dora.op_type].inputs
    shapes = {name: initializer_shape(branch.dora, i) for i, name in enumerate(names) if i > 1}
    lora_a = shapes["lora_a"]
    if len(lora_a) != len(weight):
        what = f"input 'lora_a' must have {len(weight)} axes, got {list(lora_a)}"
        raise node_error(branch.dora, what)
    wanted: dict[str, Sequence[tuple[int, ...]]]
    if group is None:
        depth, columns = weight
        ranks = rank = lora_a[-1]
        wanted = {"lora_a": [(depth, rank)], "lora_b": [(rank, columns)]}
    else:
        columns, depth, *kernel = weight
        ranks = lora_a[0]
        rank = ranks // group
        ones = (1,) * len(kernel)
        wanted = {
            "lora_a": [(group * rank, depth, *kernel)],
            "lora_b": [(columns, rank, *ones)],
        }
        for name in schema.OPS[branch.dora.op_type].attributes:
            if branch.dora.attributes[name].value != branch.rram.attributes[name].value:
                raise node_error(branch.dora, f"attribute '{name}' is not that of its crossbar")
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
    for name in ("x_scale", "rank_step", "lora_b_scale", "magnitude_scale", "sparse_scale"):
        values = getattr(adapter, name)
        has_sign = name not in {"x_scale", "rank_step"}
        if not (np.isfinite(values) & (has_sign | (values > 0))).all():
            what = "finite" if has_sign else "positive and finite"
            raise node_error(branch.dora, f"input '{name}' must be {what}")
