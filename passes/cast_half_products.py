# SPDX-License-Identifier: Apache-2.0
"""Products of float16 in float32, for an execution provider that takes no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    add_initializer,
    derived_initializer,
    lazy_tensor,
    remove_dead,
    take_over,
)
from rimc_onnx.passes.constants import find_constant
from rimc_onnx.passes.rram_unit import RramUnit

__all__ = ["CastHalfProductsPass"]

_METADATA = {PASS_KEY: "CastHalfProductsPass"}


class CastHalfProductsPass(ir.passes.InPlacePass):
    """Give the Conv or MatMul of every float16 unit a float32 weight, and a Cast on either side.

    1. A unit of float16: Cast, the same node with the same name, Cast back. The bias of a Conv is
       float32 too; an Add behind a MatMul stays as it is.
    2. A unit of float32: left alone.
    """

    def __init__(self, units: Sequence[RramUnit]) -> None:
        self._units = units

    def __str__(self) -> str:
        return f"CastHalfProductsPass({len(self._units)} units)"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        names = Names(model)
        half = [unit for unit in self._units if unit.cast_from is not None]
        for unit in half:
            _rewrite(model.graph, unit, names)
        return ir.passes.PassResult(model, bool(half))


def _rewrite(graph: ir.Graph, unit: RramUnit, names: Names) -> None:
    old = unit.node
    x, w = old.inputs[0], old.inputs[1]
    assert x is not None, "a unit has operands"
    assert w is not None, "a unit has operands"

    def node(op_type: str, name: str, *inputs: ir.Value, attributes: Sequence[ir.Attr]) -> ir.Node:
        return ir.Node("", op_type, inputs, attributes, name=name, metadata_props=dict(_METADATA))

    def cast(value: ir.Value, suffix: str, to: ir.DataType) -> ir.Node:
        name = names.node(f"{unit.name}/{suffix}")
        return node("Cast", name, value, attributes=[ir.AttrInt64("to", to)])

    before = cast(x, "float32", ir.DataType.FLOAT)
    before.outputs[0].name = names.value(f"{unit.name}/float32/x")
    before.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    name = names.value(f"{unit.name}/float32/w")
    shape = tuple(map(int, unit.weight.shape))
    tensor = lazy_tensor(unit.weight.float32, name=name, dtype=ir.DataType.FLOAT, shape=shape)
    inputs = [before.outputs[0], derived_initializer(graph, name, tensor, w)]
    constant = find_constant(old.inputs[2]) if len(old.inputs) > 2 else None
    if constant is not None:
        name = names.value(f"{unit.name}/float32/b")
        bias = np.ascontiguousarray(constant.float32())
        inputs.append(add_initializer(graph, name, ir.tensor(bias, name=name)))
    product = node(old.op_type, str(old.name), *inputs, attributes=list(old.attributes.values()))
    product.outputs[0].name = names.value(f"{unit.name}/float32/y")
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    product.outputs[0].shape = None if old.outputs[0].shape is None else old.outputs[0].shape.copy()
    assert unit.cast_from is not None, "a unit of another type"
    after = cast(product.outputs[0], "float16", unit.cast_from)
    read = [i for i in old.inputs if i is not None and i is not x]
    take_over(old.outputs[0], after.outputs[0])
    if after.outputs[0].type is None:
        after.outputs[0].type = ir.TensorType(unit.cast_from)
    graph.insert_before(old, [before, product, after])
    graph.remove(old, safe=True)
    remove_dead(read)
