# SPDX-License-Identifier: Apache-2.0
"""Initializers of files from before IR version 4 become constants."""

from __future__ import annotations

from onnxscript import ir

__all__ = ["DropInitializerInputsPass"]

_CONSTANT_INITIALIZERS = 4
"""IR version from which an initializer need not be an input, and from which one that is an input
may be overridden."""


class DropInitializerInputsPass(ir.passes.InPlacePass):
    """Take initializers off the inputs where the file format forced them there.

    1. IR version below 4: every initializer is an input by rule, and none can be overridden. They
       leave the inputs, and the IR version becomes 4.
    2. IR version 4 and later: left alone; an initializer that is an input may be overridden.
    """

    def __str__(self) -> str:
        return "DropInitializerInputsPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the inputs in place."""
        if model.ir_version >= _CONSTANT_INITIALIZERS:
            return ir.passes.PassResult(model, False)
        inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        model.ir_version = _CONSTANT_INITIALIZERS
        return ir.passes.PassResult(model, True)
