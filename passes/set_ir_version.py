# SPDX-License-Identifier: Apache-2.0
"""The IR version of a converted file."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["SetIrVersionPass"]

_FUNCTIONS = 8
"""IR version that brought model-local functions."""
_WANTED = 9
"""Newest IR version that ONNX Runtime 1.17 reads."""

_NEW_TYPES = {"FLOAT4E2M1", "FLOAT8E8M0", "INT2", "INT4", "UINT2", "UINT4"}
"""Types that came with IR version 10 or later."""


class SetIrVersionPass(ir.passes.InPlacePass):
    """Make the IR version one that ONNX Runtime 1.17 reads and that has functions.

    1. Below 8: 8, which brought functions.
    2. Above 9: 9, unless the model uses what came later (types of 2 and 4 bits, float8e8m0, or
       device configurations). Metadata of nodes, of IR 10, stays: older readers skip it.
    3. 8 or 9: left alone.
    """

    def __str__(self) -> str:
        return "SetIrVersionPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set in place."""
        version = model.ir_version
        if version < _FUNCTIONS:
            model.ir_version = _FUNCTIONS
        elif version > _WANTED and not _needs_more(model):
            model.ir_version = _WANTED
        return ir.passes.PassResult(model, model.ir_version != version)


def _needs_more(model: ir.Model) -> bool:
    if getattr(model, "device_configurations", ()):
        return True
    return any(dtype is not None and dtype.name in _NEW_TYPES for dtype in _types(model))


def _types(model: ir.Model) -> Iterator[ir.DataType | None]:
    for graph in model.graphs():
        yield from (v.dtype for v in graph.inputs)
        yield from (v.dtype for v in graph.initializers.values())
        for node in graph:
            yield from (v.dtype for v in node.outputs)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor().dtype
                elif node.op_type == "Cast" and attribute.name == "to":
                    yield ir.DataType(attribute.as_int())
