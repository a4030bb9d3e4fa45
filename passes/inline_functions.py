# SPDX-License-Identifier: Apache-2.0
"""Model-local functions become plain nodes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema

__all__ = ["InlineFunctionsPass"]


class InlineFunctionsPass(ir.passes.InPlacePass):
    """Inline every call of a model-local function, so that the matrices inside can be mapped.

    1. A node that calls a function of the model, of any domain: replaced by the function's body.
    2. A function, called or not: dropped.
    3. A model with ``ai.rimc`` nodes or functions: refused, it has been converted before.

    Raises:
        ModelError: case 3, or functions that call each other in a circle or can't be inlined.
    """

    def __str__(self) -> str:
        return "InlineFunctionsPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline in place."""
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.domain == schema.DOMAIN:
                raise ModelError(
                    f"the model is already converted: node '{node.name}' is {schema.DOMAIN}:"
                    f"{node.op_type}. Give the original model."
                )
        had_functions = bool(model.functions)
        try:
            result = InlinePass()(model)
        except (ValueError, ir.passes.InvariantError) as error:
            raise ModelError(f"model-local functions can't be inlined: {error}") from error
        model.functions.clear()
        return ir.passes.PassResult(model, result.modified or had_functions)
