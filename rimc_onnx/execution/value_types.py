# SPDX-License-Identifier: Apache-2.0
"""Types of a graph's values, as ONNX infers them."""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["value_types"]

_SMALL_BYTES = 1024
"""Initializers up to here are shown to shape inference: shapes, axes, counts."""


def value_types(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """Of the values of the main graph, by name; values that inference does not reach are left out.

    Large initializers are inputs to it, so no weight is copied.
    """
    copy = model.clone()
    for value in list(copy.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL_BYTES and not value.is_graph_input():
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            del copy.graph.initializers[value.name or ""]
            value.const_value = None
            copy.graph.inputs.append(value)
    graph = onnx.shape_inference.infer_shapes(ir.to_proto(copy)).graph
    found = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        tensor_type = onnx.TypeProto.Tensor(elem_type=tensor.data_type)
        found.setdefault(tensor.name, onnx.TypeProto(tensor_type=tensor_type))
    return found
