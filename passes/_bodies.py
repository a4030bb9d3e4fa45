# SPDX-License-Identifier: Apache-2.0
"""Bodies of the operators, written into a model for what its nodes use."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from rimc_onnx.bodies.operators import body_of
from rimc_onnx.bodies.uses import Uses, common_uses, uses_of
from rimc_onnx.ops import schema

__all__ = ["write_bodies"]

_USES = "rimc_onnx.uses"
"""Key of ``ir.Function.meta``, in memory only: what the body was written for."""


def write_bodies(model: ir.Model) -> bool:
    """Write the body of every ``ai.rimc`` operator of the model for what its nodes use.

    A part that only some nodes of an operator use sits behind an ``If``; adapters that a live
    session can change use everything. An operator that the model has no node of, and a function of
    the domain that is no operator, is dropped; one that was written for the same is left alone.
    Whatever changes attributes, or what adapters are made of, calls this behind it. True if
    anything changed.

    Bodies import the model's opset: ONNX Runtime reads them in that whatever they import (1.17 to
    1.32), and the ONNX checker refuses two versions of one operator in a file.
    """
    found: dict[str, list[Uses]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == schema.DOMAIN and node.op_type in schema.OPS:
            found.setdefault(node.op_type, []).append(_uses(node))
    # In the order of the operator set, whatever the order of the nodes.
    wanted = {op: common_uses(found[op]) for op in schema.OPS if op in found}
    modified = False
    for key in [key for key in model.functions if key[0] == schema.DOMAIN]:
        if key[1] not in wanted:
            del model.functions[key]
            modified = True
    for op_type, uses in wanted.items():
        key = (schema.DOMAIN, op_type, "")
        opset = model.opset_imports[""]
        if key in model.functions and model.functions[key].meta.get(_USES) == (opset, uses):
            continue
        function = body_of(op_type, uses, opset=opset)
        function.meta[_USES] = (opset, uses)
        model.functions[key] = function
        modified = True
    if wanted:
        model.opset_imports[schema.DOMAIN] = schema.VERSION
    return modified


def _uses(node: ir.Node) -> Uses:
    spec = schema.OPS[node.op_type]
    attributes: dict[str, Any] = {
        name: attribute.value for name, attribute in node.attributes.items()
    }
    shapes = {
        name: _constant_shape(value) for name, value in zip(spec.inputs, node.inputs, strict=False)
    }
    return uses_of(node.op_type, attributes, shapes)


def _constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of an initializer that no feed can replace."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return tuple(value.const_value.shape.numpy())
