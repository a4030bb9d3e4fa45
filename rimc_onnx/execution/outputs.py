# SPDX-License-Identifier: Apache-2.0
"""Which values tell how far a model is from another one, and where they have their classes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["classes_axis", "telling_values"]

_MAKE_NO_FLOAT = frozenset(
    {
        *("And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"),
        *("Less", "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "Or", "Shape", "Size"),
        *("Xor", "ZipMap"),
    }
)
"""Operators whose output is no floating-point tensor, for graphs that don't say so."""


def classes_axis(shape: Sequence[int]) -> int | None:
    """The last axis that is longer than 1, of an image-shaped output the one after the samples.

    None where there is none behind the samples: a regression has no classes.
    """
    ndim = len(shape)
    while ndim > 2 and shape[ndim - 1] == 1:
        ndim -= 1
    axis = 1 if ndim > 3 else ndim - 1
    return axis if axis > 0 and shape[axis] > 1 else None


def telling_values(model: ir.Model) -> list[str]:
    """Names of the outputs that nodes make, or of the floating-point values behind them.

    The latter where no output is a floating-point tensor (labels, detections, sequences of maps):
    what a node errs by moves a label only where it moves it across a border, so labels of a few
    samples tell nothing of most errors.
    """
    outputs = [o for o in model.graph.outputs if o.producer() is not None]
    if any(_is_float(output) for output in outputs):
        return [output.name or "" for output in outputs]
    names: dict[str, None] = {}
    seen: set[ir.Value] = set()
    waiting = list(reversed(outputs))
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in seen or node is None or node.op_type == "Constant":
            continue
        seen.add(value)
        if _is_float(value):
            names[value.name or ""] = None
        else:
            waiting.extend(v for v in reversed(node.inputs) if v is not None)
    return list(names) or [output.name or "" for output in outputs]


def _is_float(value: ir.Value) -> bool:
    """True for floating-point tensors, and for values of which the graph says nothing."""
    if value.type is not None:
        return isinstance(value.type, ir.TensorType) and value.type.dtype.is_floating_point()
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int()).is_floating_point()
    indices = node.op_type == "TopK" and value.index() == 1
    return not indices and node.op_type not in _MAKE_NO_FLOAT
