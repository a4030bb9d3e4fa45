# SPDX-License-Identifier: Apache-2.0
"""Operators that ONNX does not have."""

from __future__ import annotations

from typing import Final

import onnx
import onnx_ir as ir

from rimc_onnx.errors import ModelError, suggest

__all__ = ["CheckOperatorsPass"]

_ALIAS: Final = "ai.onnx"
_OF_ONNX_RUNTIME: Final = {"SimplifiedLayerNormalization", "LayerNormalization"}
"""ONNX Runtime has these in ONNX's own domain at every opset."""


class CheckOperatorsPass(ir.passes.InPlacePass):
    """Refuse nodes of ONNX's own domain that are no operators of the model's opset.

    ONNX Runtime would load neither the model nor what a conversion makes of it.

    1. A name that ONNX doesn't have, has from a later opset on, or dropped: refused.
    2. Another domain: left alone, whoever knows it. Functions of the model are inlined before.
    3. An opset beyond the installed ``onnx``: left alone, its operators aren't known.

    Raises:
        ModelError: case 1.
    """

    def __str__(self) -> str:
        return "CheckOperatorsPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every node, those of subgraphs included; change nothing."""
        opset = model.opset_imports.get("", model.opset_imports.get(_ALIAS))
        if opset is not None and opset <= onnx.defs.onnx_opset_version():
            for node in ir.traversal.RecursiveGraphIterator(model.graph):
                if node.domain in ("", _ALIAS) and node.op_type not in _OF_ONNX_RUNTIME:
                    _check(node, opset)
        return ir.passes.PassResult(model, False)


def _check(node: ir.Node, opset: int) -> None:
    where = f"node '{node.name}' ({node.op_type})"
    if not onnx.defs.has(node.op_type):
        known = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
        raise ModelError(
            f"{where}: ONNX has no such operator. {suggest(node.op_type, known)} An operator of "
            f"one's own needs a domain."
        )
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError as error:
        first = min(
            s.since_version
            for s in onnx.defs.get_all_schemas_with_history()
            if s.name == node.op_type and not s.domain
        )
        raise ModelError(
            f"{where}: ONNX has it from opset {first} on, and the model's is {opset}. Export the "
            f"model with opset {first} or later."
        ) from error
    if schema.deprecated:
        raise ModelError(
            f"{where}: ONNX dropped it with opset {schema.since_version}, and the model's is "
            f"{opset}. Export the model again."
        )
