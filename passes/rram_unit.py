# SPDX-License-Identifier: Apache-2.0
"""One matrix of the model that can go to RRAM, with everything that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.crossbar import ConvertConfig, NodePeriphery, NodeRanges, node_periphery
from rimc_onnx.errors import ModelError, NodeMappingError
from rimc_onnx.ops import schema
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.passes._graph import Shapes, constant_add
from rimc_onnx.passes.constants import Constant, explain_variable, find_constant
from rimc_onnx.passes.node_geometry import node_geometry

__all__ = ["RramUnit", "checked_weight", "conv_unit", "matmul_unit", "unit_periphery"]

_CAST_FROM = {ir.DataType.FLOAT: None, ir.DataType.FLOAT16: ir.DataType.FLOAT16}


@dataclass(frozen=True, kw_only=True, eq=False)
class RramUnit:
    """A Conv, or a MatMul with the Add of its bias, as a crossbar and its digital bias."""

    name: str
    """The teacher's node: key of draws, ranges and adapters."""
    node: ir.Node
    """The Conv or MatMul."""
    add: ir.Node | None
    """The Add that is the bias of a MatMul."""
    x: ir.Value
    """What enters the crossbar: [N, C, *S] of a Conv, [..., K] of a MatMul."""
    y: ir.Value
    """What leaves the unit, bias included: [N, M, *S_out] or [..., N]."""
    weight: Constant
    """Target weight in crossbar layout, [M, C / group, *kernel] or [K, N]; ``weight.float32()``."""
    bias: npt.NDArray[np.float32]
    """[M] or [N]; zeros if the model has none."""
    geometry: NodeGeometry
    num_tiles: int
    """Row tiles of a crossbar column."""
    cast_from: ir.DataType | None
    """Type of x and y where it is not float32."""

    @property
    def op_type(self) -> str:
        """``schema.RRAM_CONV`` or ``schema.RRAM_MATMUL``."""
        return schema.RRAM_CONV if self.geometry.is_conv else schema.RRAM_MATMUL


def checked_weight(node: ir.Node) -> Constant | str:
    """The weight (input 1), or why it is none: what all operators have in common."""
    value = node.inputs[1]
    weight = find_constant(value)
    if weight is None:
        return Refusal.NOT_STORED.of(getattr(value, "name", ""), explain_variable(value))
    if weight.dtype not in _CAST_FROM:
        return Refusal.DTYPE.of(weight.dtype.name.lower())
    if 0 in weight.shape:
        return Refusal.EMPTY.of(list(weight.shape))
    return weight


def conv_unit(node: ir.Node, tile_rows: int | None) -> RramUnit | str:
    """The unit of a Conv, or why there is none.

    Raises:
        ModelError: the attributes contradict the weight.
    """
    weight = checked_weight(node)
    if isinstance(weight, str):
        return weight
    x = node.inputs[0]
    if x is None:
        return Refusal.OPERAND_MISSING.of()
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad not in {"NOTSET", "VALID"}:
        return Refusal.AUTO_PAD.of(auto_pad)
    geometry = node_geometry(node, weight.shape)
    columns = geometry.columns
    bias = np.zeros(columns, np.float32)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        constant = find_constant(given)
        if constant is None:
            return Refusal.BIAS_NOT_STORED.of(given.name, explain_variable(given))
        if constant.shape != (columns,):
            raise ModelError(
                f"node '{node.name}' (Conv): the bias has shape {list(constant.shape)}, but the "
                f"weight has {columns} output channels"
            )
        bias = constant.float32().reshape(columns)
    try:
        tiles = geometry.num_tiles(tile_rows)
    except ValueError:
        return Refusal.WINDOW.of(geometry.window, tile_rows)
    return RramUnit(
        name=str(node.name),
        node=node,
        add=None,
        x=x,
        y=node.outputs[0],
        weight=weight,
        bias=bias,
        geometry=geometry,
        num_tiles=tiles,
        cast_from=_CAST_FROM[weight.dtype],
    )


def matmul_unit(node: ir.Node, tile_rows: int | None, shapes: Shapes) -> RramUnit | str:
    """The unit of a MatMul and the Add behind it, or why there is none."""
    weight = checked_weight(node)
    if isinstance(weight, str):
        return weight
    x = node.inputs[0]
    if x is None:
        return Refusal.OPERAND_MISSING.of()
    rank = len(weight.shape)
    if rank == 1:
        return Refusal.VECTOR.of()
    if rank > 2:
        return Refusal.BATCHED.of(rank)
    if shapes.rank(x) == 1:
        return Refusal.LEFT_VECTOR.of()
    geometry = node_geometry(node, weight.shape)
    add, bias = _bias_add(node, geometry.columns, shapes)
    return RramUnit(
        name=str(node.name),
        node=node,
        add=add,
        x=x,
        y=node.outputs[0] if add is None else add.outputs[0],
        weight=weight,
        bias=bias,
        geometry=geometry,
        num_tiles=geometry.num_tiles(tile_rows),
        cast_from=_CAST_FROM[weight.dtype],
    )


def _bias_add(
    matmul: ir.Node, columns: int, shapes: Shapes
) -> tuple[ir.Node | None, npt.NDArray[np.float32]]:
    """The Add of one constant per column behind ``matmul`` and that constant [N], else zeros."""
    none = None, np.zeros(columns, np.float32)
    product = matmul.outputs[0]
    if (found := constant_add(product)) is None:
        return none
    add, constant = found
    size, shape = int(np.prod(constant.shape)), constant.shape
    if size != 1 and (size != columns or shape[-1] != columns):
        return none
    # A constant of more axes than the product would give the sum more axes, too.
    rank = shapes.rank(product)
    if len(shape) > 1 and (rank is None or len(shape) > rank):
        return none
    return add, np.array(np.broadcast_to(constant.float32().reshape(-1), (columns,)))


def unit_periphery(
    unit: RramUnit, config: ConvertConfig, ranges: NodeRanges | None
) -> NodePeriphery:
    """What a conversion puts around the arrays of a unit.

    Raises:
        NodeMappingError: as :func:`~rimc_onnx.crossbar.node_periphery` says, with the node.
    """
    try:
        return node_periphery(
            config, ranges, node=unit.name, columns=unit.geometry.columns, num_tiles=unit.num_tiles
        )
    except ValueError as error:
        raise NodeMappingError(f"node '{unit.name}' ({unit.node.op_type}): {error}") from error
