# SPDX-License-Identifier: Apache-2.0
"""Why a node stays digital: every reason there is, with what to do.

A conversion and the execution provider say the same words: those that the provider knows stand in
``runtime/src/provider/refusals.h`` too, and a test compares. Each reads on from "node 'name' (op):"
and has what was found, a colon, and what to do about it.
"""

from __future__ import annotations

import enum
import re

__all__ = ["Refusal"]


class Refusal(enum.Enum):
    """A reason; ``{}`` is what was found."""

    # what a user chose, and where a node is
    KEPT_DIGITAL = "kept digital by the pattern '{}': leave the pattern out to map the node"
    IN_BODY = (
        "inside the body of {} node '{}': export the model unrolled, or with the branch that is "
        "taken"
    )
    SHARED = "weight is shared by nodes {}: `map_shared` gives each an array of its own"
    UNREAD = "nothing reads its output: take the node out of the model"

    # operators
    OPTIMIZED = (
        "an operator of ONNX Runtime's optimizer: give the model before ONNX Runtime's "
        "optimizations"
    )
    FOREIGN = "domain {} is not ours: export the model with operators of ONNX"
    INTEGER = "integer operator: convert the float model"
    ATTENTION = (
        "attention has no weight of its own: leave it digital, its projections are nodes of their "
        "own"
    )
    DEFORMABLE = (
        "a deformable convolution has no RRAM operator: leave it digital, or train a Conv in its "
        "place"
    )
    EINSUM = "Einsum has no RRAM operator: write it as MatMul"
    RECURRENT = "a recurrent operator holds its matrices inside: export its cell as MatMul"

    # operands
    OPERAND_MISSING = "an operand is missing: repair the model"
    BOTH_ACTIVATIONS = "both operands are activations: leave it digital, it has no weight"
    BOTH_CONSTANTS = "both operands are constants: export the model with its constants folded"
    LEFT_CONSTANT = (
        "the constant is the left operand: transpose the product, so that it is the right one"
    )
    OVERRIDABLE = "weight '{}' is an overridable initializer: take it off the graph's inputs"
    QUANTIZED = "its weight is quantized (DequantizeLinear): convert the float model"
    NOT_STORED = "weight '{}' is {}: store it in the file as a constant"
    BIAS_NOT_STORED = "bias '{}' is {}: store it in the file as a constant"

    # weights and geometry
    DTYPE = "dtype {}: RRAM operators compute in float32, export it so"
    EMPTY = "weight of shape {} is empty: take the node out of the model"
    NO_KERNEL = "weight of shape {} has no kernel: give it axes of one"
    VECTOR = "weight has rank 1: a vector is no matrix, write it as [K, 1]"
    BATCHED = "weight has rank {}: one array holds one matrix, so give each a MatMul"
    LEFT_VECTOR = "left-hand side has rank 1: give it an axis of rows"
    GEMM_C = "its C has more than two axes, which no Gemm takes: give it one or two"
    AUTO_PAD = "auto_pad {} is not written as pads: export with a fixed input size"
    WINDOW = "a kernel window of {} word lines does not fit in a tile of {}: take taller tiles"

    # of the provider alone: a conversion names and rewrites nodes, and refuses contradictions
    UNNAMED = "the node has no name, which its draws need as a key: name it"
    CONV_TRANSPOSE = "ConvTranspose: convert the model, which makes a Conv of it"
    TRANSPOSED = "transA is set: convert the model, which transposes the input beforehand"
    BIAS_NOT_A_ROW = "bias of shape {} is no row: convert the model, which adds it behind the node"
    CONTRADICTION = "{}: repair the model"

    def of(self, *found: object) -> str:
        """The reason with what was found."""
        return self.value.format(*found)

    def gave(self, reason: str) -> bool:
        """Whether ``reason`` is this one."""
        parts = (re.escape(part) for part in self.value.split("{}"))
        return re.fullmatch("(?s:.*)".join(parts), reason) is not None
