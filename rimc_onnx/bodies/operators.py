# SPDX-License-Identifier: Apache-2.0
"""Function bodies of every ``ai.rimc`` operator, in standard ONNX operators.

A converted file carries these as model-local functions, so an ONNX Runtime without the native
library inlines them and computes the same numbers. A body holds what the nodes of its file use
(:mod:`.uses`); where only some of them use a part, it sits behind an ``If`` on a constant, which
ONNX Runtime folds away when it loads the model. The meaning of every attribute is written in
:mod:`rimc_onnx.ops.schema`; the plain numpy version is :mod:`rimc_onnx.reference`.

They are written for the opset of the model that carries them, 13 or later: ONNX Runtime reads a
body in that, whatever the body imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import onnx
import onnx_ir as ir

from rimc_onnx.bodies.adapters import dora_conv, dora_matmul
from rimc_onnx.bodies.builder import Body, Term
from rimc_onnx.bodies.crossbars import rram_conv, rram_matmul
from rimc_onnx.bodies.uses import Uses
from rimc_onnx.crossbar import attribute_types
from rimc_onnx.ops import schema

__all__ = ["FUNCTION_OPSET_VERSION", "body_of", "function_protos"]

FUNCTION_OPSET_VERSION: Final = 17
"""Version of the default domain that bodies import unless they are told another."""

_BODIES: Final[Mapping[str, Callable[[Body], Term]]] = {
    schema.RRAM_MATMUL: rram_matmul,
    schema.RRAM_CONV: rram_conv,
    schema.DORA_MATMUL: dora_matmul,
    schema.DORA_CONV: dora_conv,
}


def body_of(op_type: str, uses: Uses, *, opset: int = FUNCTION_OPSET_VERSION) -> ir.Function:
    """The body of an operator for nodes with ``uses``; what these leave out is optional in it."""
    body = Body(schema.OPS[op_type].inputs, attribute_types(op_type), uses, opset=opset)
    result = _BODIES[op_type](body)
    return body.function(schema.DOMAIN, op_type, result)


def function_protos(uses: Mapping[str, Uses] | None = None) -> list[onnx.FunctionProto]:
    """The bodies of all operators, or of those in ``uses``, as a file has them."""
    wanted: Mapping[str, Uses] = {op: {} for op in schema.OPS} if uses is None else uses
    return [ir.serde.serialize_function(body_of(op, of)) for op, of in wanted.items()]
