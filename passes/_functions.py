# SPDX-License-Identifier: Apache-2.0
"""Bodies of the operators, put into a model."""

from __future__ import annotations

from onnxscript import ir

from rimc_onnx.bodies.operators import function_protos
from rimc_onnx.ops import schema

__all__ = ["add_functions"]


def add_functions(model: ir.Model) -> None:
    """Add the body of every ``ai.rimc`` operator and import the domain.

    ONNX Runtime reads a body in the model's opset whatever the body imports (1.17 to 1.32), and
    the ONNX checker refuses two versions of one operator in a file: so bodies import the model's.
    """
    for proto in function_protos():
        function = ir.serde.deserialize_function(proto)
        function.opset_imports[""] = model.opset_imports[""]
        for node in ir.traversal.RecursiveGraphIterator(function.graph):
            _drop_cast_like(node)
            for value in node.outputs:
                # Types inside a function would be written among the values of the main graph.
                value.type = None
        model.functions[function.identifier()] = function
    model.opset_imports[schema.DOMAIN] = schema.VERSION


def _drop_cast_like(node: ir.Node) -> None:
    """CastLike came with opset 15. The bodies cast literals that have the type already."""
    if node.domain == "" and node.op_type == "CastLike":
        node.op_type = "Identity"
        node.resize_inputs(1)
