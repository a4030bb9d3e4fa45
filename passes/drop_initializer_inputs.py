# SPDX-License-Identifier: Apache-2.0
"""Initializers that an exporter listed among the inputs become constants."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["DropInitializerInputsPass"]

_CONSTANT_INITIALIZERS = 4
"""IR version from which an initializer need not be an input, and from which one that is an input
may be overridden."""

_BY_HABIT = 8
"""Where so many initializers, and all of them, are inputs, an exporter lists every one."""


class DropInitializerInputsPass(ir.passes.InPlacePass):
    """Take initializers off the inputs where the file format forced them there.

    1. IR version below 4: every initializer is an input by rule, and none can be overridden. They
       leave the inputs, and the IR version becomes 4.
    2. IR version 4 and later, every initializer is an input, and there are more than a few: the
       habit of old exporters, since nobody feeds all weights of a network. They leave the inputs.
    3. Other files of IR version 4 and later: left alone; an initializer that is an input may be
       overridden.
    """

    def __str__(self) -> str:
        return "DropInitializerInputsPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the inputs in place."""
        by_rule = model.ir_version < _CONSTANT_INITIALIZERS
        values = model.graph.initializers.values()
        by_habit = len(values) >= _BY_HABIT and all(v.is_graph_input() for v in values)
        if not (by_rule or by_habit):
            return ir.passes.PassResult(model, False)
        inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        model.ir_version = max(model.ir_version or 0, _CONSTANT_INITIALIZERS)
        return ir.passes.PassResult(model, True)
