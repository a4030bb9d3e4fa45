# SPDX-License-Identifier: Apache-2.0
"""What happens in one inference, counted: no constant and no energy here.

Of a node with G groups of d word lines and m bit lines, T row tiles, S slices and B blocks of
columns: every activation (one input vector, a position of a convolution) drives G d B word lines
and reads G T m S bit lines in each of its input cycles. A pair of devices is one bit line: the
difference is taken before the ADC. Devices in parallel add cells, not bit lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import onnx_ir as ir

from rimc_onnx.cost.constants import Values
from rimc_onnx.cost.shapes import Shapes
from rimc_onnx.device import DeviceConfig
from rimc_onnx.errors import ModelError
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes import RramBranch

__all__ = [
    "ArrayCounts",
    "BranchCounts",
    "DigitalCounts",
    "array_counts",
    "branch_counts",
    "digital_counts",
]

_FREE = {
    *("Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape"),
    *("Size", "Squeeze", "Unsqueeze"),
}
"""Nothing moves: other names for the same values."""
_MOVES = {
    *("Cast", "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "Pad"),
    *("Resize", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose", "Upsample"),
}
"""Values are read and written and not computed."""
_NONLINEAR = {
    *("BatchNormalization", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
    *(
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "Mish",
    ),
    *("Pow", "Reciprocal", "RMSNormalization", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt"),
    *("Swish", "Tanh", "GroupNormalization"),
}
"""More than an addition or a comparison for each element."""
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_WINDOWS = {"AveragePool", "MaxPool", "LpPool"}


@dataclass(frozen=True, kw_only=True)
class ArrayCounts:
    """Arrays of one node."""

    activations: int
    """Input vectors in one inference."""
    macs: int
    """Multiplications of weights in one inference."""
    columns: int
    """Outputs of an activation."""
    word_lines: int
    """Driven in every input cycle, all tiles and blocks."""
    bit_lines: int
    """Read and converted in every input cycle."""
    cycles: int
    """Input cycles of an activation."""
    pulses: int
    """Read pulses of an activation."""
    input_bits: int
    adc_bits: int
    """Of one conversion."""
    in_turn: int
    """Conversions that an ADC makes one after the other in a cycle."""
    adcs: int
    devices: int
    conductance_us: float
    """Of all devices together."""
    row_tiles: int
    """Partial sums of one output."""
    weights: int

    @property
    def vector_bytes(self) -> float:
        """Read from and written to buffers by an activation: inputs of all blocks, and outputs."""
        return (self.word_lines + self.columns) * self.input_bits / 8


@dataclass(frozen=True, kw_only=True)
class BranchCounts:
    """The SRAM adapter of one node."""

    macs: int
    """In one inference."""
    adds: int
    """Outputs that are added to those of the arrays, in one inference."""
    sram_bytes: int


@dataclass(frozen=True, kw_only=True)
class DigitalCounts:
    """A node outside of the arrays."""

    macs: int = 0
    elementwise: int = 0
    nonlinear: int = 0
    weight_bytes: int = 0
    """int8 weights, read once."""
    moved_bytes: int = 0
    """Read from and written to buffers, a byte for each element."""


def array_counts(branch: RramBranch, shapes: Shapes, structure: Values) -> ArrayCounts:
    """What the arrays of a node do in one inference.

    Args:
        branch: the node in a converted model.
        shapes: of the model's values.
        structure: sizes and bits for what the file leaves open.

    Raises:
        ModelError: the shape of the node's output is not known.
    """
    geometry, attributes = branch.geometry, branch.rram.attributes
    name = branch.h.name or ""
    if name not in shapes:
        raise _unknown_shape(branch.rram, name)
    config = DeviceConfig.from_json(attributes["device_config"].as_string())
    tiles = _row_tiles(geometry, attributes["tile_rows"].as_int(), structure)
    input_bits = attributes["dac_bits"].as_int() or int(structure["structure.dac_bits"])
    serial = attributes["dac_serial_bits"].as_int()
    lines = geometry.group_columns * config.num_slices
    blocks = ceil(lines / structure["structure.columns"])
    in_array = min(lines, int(structure["structure.columns"]))
    together = _groups_together(geometry, tiles, lines, structure)
    in_turn = min(in_array * together, int(structure["structure.columns_per_adc"]))
    copies = config.num_slices * config.devices_per_weight
    # The sign goes with the code and takes no cycle (docs/periphery.md).
    magnitude_bits = input_bits - attributes["dac_signed"].as_int()
    cycles = ceil(magnitude_bits / serial) if serial else 1
    activations = prod(shapes[name]) // geometry.columns
    return ArrayCounts(
        activations=activations,
        macs=activations * geometry.num_weights,
        columns=geometry.columns,
        word_lines=geometry.group * geometry.depth * blocks,
        bit_lines=geometry.group * tiles * lines,
        cycles=cycles,
        pulses=cycles,
        input_bits=input_bits,
        adc_bits=attributes["adc_bits"].as_int() or int(structure["structure.adc_bits"]),
        in_turn=in_turn,
        adcs=ceil(geometry.group / together)
        * (tiles * blocks * ceil(in_array * together / in_turn)),
        devices=2 * geometry.num_weights * copies,
        conductance_us=copies * _conductance_us(branch, config),
        row_tiles=tiles,
        weights=geometry.num_weights,
    )


def _groups_together(geometry: NodeGeometry, tiles: int, lines: int, structure: Values) -> int:
    """Groups whose matrices lie in one array, corner to corner, and share its ADCs."""
    if tiles > 1:
        return 1
    fitting = min(
        structure["structure.rows"] // geometry.depth, structure["structure.columns"] // lines
    )
    return max(1, min(int(fitting), geometry.group))


def _row_tiles(geometry: NodeGeometry, tile_rows: int, structure: Values) -> int:
    if tile_rows:
        return geometry.num_tiles(tile_rows)
    return ceil(geometry.depth / structure["structure.rows"])


def _conductance_us(branch: RramBranch, config: DeviceConfig) -> float:
    """Of the pairs of all weights as they are, in microsiemens.

    A slice or a device in parallel is taken to have the share of its range that the weight has.
    """
    w_max = np.asarray(branch.rram.attributes["w_max"].as_floats(), np.float64)
    weight = np.abs(branch.weight())
    if branch.geometry.is_conv:  # [1] or [M], against [M, C, *kernel]
        w_max = w_max.reshape(-1, *[1] * (weight.ndim - 1))
    share = weight / np.where(w_max > 0, w_max, 1.0)
    return float(config.g_max_us * share.sum() + 2 * config.g_min_us * weight.size)


def branch_counts(branch: RramBranch, activations: int) -> BranchCounts:
    """What the adapter does in one inference."""
    adapter, geometry = branch.adapter(), branch.geometry
    low_rank = adapter.lora_a.size + adapter.lora_b.size
    macs = low_rank + adapter.sparse_values.size
    macs += geometry.columns if adapter.has_magnitude else 0
    adds = geometry.columns if low_rank or adapter.sparse_values.size else 0
    return BranchCounts(
        macs=activations * macs, adds=activations * adds, sram_bytes=adapter.sram_bytes
    )


def digital_counts(node: ir.Node, shapes: Shapes, *, complete: bool) -> DigitalCounts:
    """What a standard node does in one inference.

    Args:
        node: outside of the arrays.
        shapes: of the model's values.
        complete: ``shapes`` has every value that has a shape at all; what is not there (a sequence)
            counts nothing.

    Raises:
        ModelError: a shape is not known.
    """
    if node.op_type in _FREE:
        return DigitalCounts()
    outputs = sum(_elements(node, v, shapes, complete) for v in node.outputs)
    inputs = [v for v in node.inputs if v is not None and v.const_value is None]
    read = sum(_elements(node, v, shapes, complete) for v in inputs)
    moved = read + outputs
    if node.op_type in _MOVES:
        # What is gathered is read; the table that it comes from is not read whole.
        return DigitalCounts(moved_bytes=min(moved, 2 * outputs))
    if node.op_type in _PRODUCTS:
        weights = [v for v in node.inputs[1:2] if v is not None and v.const_value is not None]
        return DigitalCounts(
            macs=_macs(node, outputs, shapes, complete),
            weight_bytes=sum(prod(v.const_value.shape.numpy()) for v in weights if v.const_value),
            moved_bytes=moved,
        )
    if node.op_type in _WINDOWS:
        window = prod(node.attributes.get_ints("kernel_shape", ()))
        return DigitalCounts(elementwise=window * outputs, moved_bytes=moved)
    if node.op_type.startswith(("Reduce", "Global", "Arg")):
        return DigitalCounts(elementwise=read, moved_bytes=moved)
    # Of one input: computed on the way out of what made it.
    moved = moved if len(inputs) > 1 or node.op_type.endswith("Normalization") else 0
    if node.op_type in _NONLINEAR or "Softmax" in node.op_type:
        return DigitalCounts(nonlinear=outputs, moved_bytes=moved)
    return DigitalCounts(elementwise=outputs, moved_bytes=moved)


def _macs(node: ir.Node, outputs: int, shapes: Shapes, complete: bool) -> int:
    """Multiplications of a product: each output takes as many as its weight or input is deep."""
    second = node.inputs[1]
    name = (second.name if second is not None else None) or ""
    if name not in shapes:
        if complete:
            return 0
        raise _unknown_shape(node, name)
    shape = shapes[name]
    if node.op_type == "Conv":
        return outputs * prod(shape[1:])
    if node.op_type == "ConvTranspose":
        first = node.inputs[0]
        read = 0 if first is None else _elements(node, first, shapes, complete)
        return read * prod(shape[1:])
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    depth = shape[-1] if transposed else shape[-2 if len(shape) > 1 else 0]
    return outputs * depth


def _elements(node: ir.Node, value: ir.Value, shapes: Shapes, complete: bool) -> int:
    if not value.name:
        return 0
    if value.name not in shapes:
        if complete:
            return 0
        raise _unknown_shape(node, value.name)
    return prod(shapes[value.name])


def _unknown_shape(node: ir.Node, value: str) -> ModelError:
    """How often a node works depends on it."""
    return ModelError(
        f"node '{node.name}' ({node.op_type}): the shape of '{value}' in one inference can't be "
        "inferred. Give `data` with a sample."
    )
