# SPDX-License-Identifier: Apache-2.0
"""Models of an opset that the operators' bodies can't be read in."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from rimc_onnx.errors import ModelError

__all__ = ["MIN_OPSET", "RaiseOpsetPass"]

_ALIAS = "ai.onnx"
MIN_OPSET = 13
"""ONNX Runtime reads function bodies in the opset of the model. Ours take the axes of ReduceSum as
an input, which came with 13."""
_OLDEST = 7
"""Opset 7 brought the broadcasting of today; ONNX Runtime reads none before it."""
_SMALL_BYTES = 1024
"""Initializers up to here are given to the converter, which looks into shapes, axes and scales."""


class RaiseOpsetPass(ir.passes.InPlacePass):
    """Raise the default opset to 13 with ONNX's own converter, if it is lower.

    1. Opset 7 to 12: converted. Node and value names stay; large initializers are not read.
    2. Opset 13 and later: left alone.
    3. An import under the domain's other name, ``ai.onnx``: renamed.
    4. Opset 1 to 6, an operator that ONNX can't convert, or subgraphs, which its converter passes
       over: refused.

    Raises:
        ModelError: case 4.
    """

    def __str__(self) -> str:
        return f"RaiseOpsetPass({MIN_OPSET})"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert in place."""
        imports = model.opset_imports
        is_alias = _ALIAS in imports
        if is_alias:
            imports.setdefault("", imports.pop(_ALIAS))
        version = imports.get("")
        if version is None:
            raise ModelError(
                "the model imports no opset of the ONNX domain: it has no ONNX operator"
            )
        if version >= MIN_OPSET:
            return ir.passes.PassResult(model, is_alias)
        advice = f"Export the model with opset {MIN_OPSET} or later"
        if version < _OLDEST:
            raise ModelError(
                f"the model's opset is {version}, at least {_OLDEST} is needed. {advice}."
            )
        if len(list(model.graphs())) > 1:
            raise ModelError(
                f"the model's opset is {version}, and a model with subgraphs can't be raised to "
                f"{MIN_OPSET}. {advice}."
            )
        tensors = {v.name: v.const_value for v in model.graph.initializers.values()}
        try:
            proto = onnx.version_converter.convert_version(_skeleton(model), MIN_OPSET)
            onnx.checker.check_model(proto)
        except Exception as error:  # the converter has no error class of its own
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"the model's opset is {version}, and ONNX can't raise it to {MIN_OPSET}: "
                f"{lines[0]}. {advice}."
            ) from error
        num_inputs = len(model.graph.inputs)
        raised = ir.from_proto(proto)
        model.graph = raised.graph
        for value in list(model.graph.inputs)[num_inputs:]:
            model.graph.inputs.remove(value)
            value.const_value = tensors[value.name]
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, True)


def _skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model with its large initializers as further inputs."""
    copy = model.clone()
    for value in list(copy.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.name is None:
            raise ModelError(f"initializer '{value.name}' has no data")
        if tensor.nbytes > _SMALL_BYTES and not value.is_graph_input():
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            del copy.graph.initializers[value.name]
            value.const_value = None
            copy.graph.inputs.append(value)
    return ir.to_proto(copy)
