# SPDX-License-Identifier: Apache-2.0
"""What is known before a model runs: initializers, Constant nodes and views of them.

A :class:`Constant` holds no data, only where the data is and how to look at it. An external tensor
stays on disk until :meth:`Constant.numpy` maps it into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnxscript import ir

__all__ = ["Constant", "explain_variable", "find_constant"]

Array = npt.NDArray[np.generic]

_CHUNK = 1 << 24
"""Values that are looked at together where a whole weight must not be copied."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """A constant value: its tensor and the views that the graph takes of it."""

    source: ir.Value
    """The initializer, or the output of the Constant node, that holds the data."""
    tensor: ir.TensorProtocol
    """The data as it was when the constant was found."""
    shape: tuple[int, ...]
    dtype: ir.DataType
    views: tuple[Callable[[Array], Array], ...] = ()
    """Steps from ``tensor`` to the value, first one first."""

    def numpy(self) -> Array:
        """The value, of ``shape``; evaluated anew at each call, a view of the data if possible."""
        array: Array = self.tensor.numpy()
        for view in self.views:
            array = view(array)
        return array

    def float32(self) -> npt.NDArray[np.float32]:
        """The value as float32, C-contiguous."""
        return np.ascontiguousarray(self.numpy(), np.float32).reshape(self.shape)

    def is_finite(self) -> bool:
        """True if no element is NaN or infinite; temporaries stay small for any size."""
        flat = self.numpy().reshape(-1)
        starts = range(0, flat.size, _CHUNK)
        return all(bool(np.isfinite(flat[i : i + _CHUNK]).all()) for i in starts)

    def view(self, step: Callable[[Array], Array], shape: tuple[int, ...]) -> Constant:
        """The same data seen through one more ``step``."""
        return Constant(
            source=self.source,
            tensor=self.tensor,
            shape=shape,
            dtype=self.dtype,
            views=(*self.views, step),
        )


def find_constant(value: ir.Value | None) -> Constant | None:
    """The constant behind ``value``, or None (:func:`explain_variable` says why).

    1. An initializer. One that is a graph input too may be overridden: not a constant.
    2. The output of a Constant node with any ``value*`` attribute but ``sparse_value``, or of a
       ConstantOfShape whose shape is constant.
    3. Identity, Transpose, Reshape, Flatten, Squeeze or Unsqueeze of a constant, where shape and
       axes are constants as well. Nothing that changes a value, such as Cast.
    """
    if value is None:
        return None
    if value.is_initializer():
        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            return None
        return _from_tensor(value, tensor)
    node = value.producer()
    if node is None or node.domain != "" or value.index() != 0:
        return None
    if node.op_type == "Constant":
        tensor = _constant_tensor(node)
        return None if tensor is None else _from_tensor(value, tensor)
    if node.op_type == "ConstantOfShape":
        tensor = _filled_tensor(node)
        return None if tensor is None else _from_tensor(value, tensor)
    see = _VIEWS.get(node.op_type)
    if see is None:
        return None
    base = find_constant(node.inputs[0])
    return None if base is None else see(node, base)


def explain_variable(value: ir.Value | None) -> str:
    """Why :func:`find_constant` gives None for ``value``, to follow "... is"."""
    if value is None:
        return "missing"
    if value.is_initializer() and value.is_graph_input():
        return "an overridable initializer (it is a graph input too)"
    node = value.producer()
    if node is None:
        return "an input"
    return f"computed by node '{node.name}' ({node.op_type})"


def _from_tensor(value: ir.Value, tensor: ir.TensorProtocol) -> Constant:
    return Constant(
        source=value, tensor=tensor, shape=tuple(tensor.shape.numpy()), dtype=tensor.dtype
    )


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in {"value_float", "value_floats"}:
            return ir.tensor(np.asarray(attribute.value, np.float32))
        if name in {"value_int", "value_ints"}:
            return ir.tensor(np.asarray(attribute.value, np.int64))
        if name in {"value_string", "value_strings"}:
            strings = [attribute.value] if name == "value_string" else list(attribute.value)
            shape = ir.Shape([] if name == "value_string" else [len(strings)])
            return ir.StringTensor([s.encode("utf-8") for s in strings], shape=shape)
    return None


def _filled_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a ConstantOfShape of a constant shape gives; made when it is read."""
    target = find_constant(node.inputs[0])
    if target is None:
        return None
    shape = tuple(int(d) for d in target.numpy().reshape(-1))
    given = node.attributes.get("value")
    fill = ir.tensor(np.zeros(1, np.float32)) if given is None else given.as_tensor()
    return ir.LazyTensor(
        lambda: ir.tensor(np.broadcast_to(fill.numpy().reshape(()), shape), dtype=fill.dtype),
        dtype=fill.dtype,
        shape=ir.Shape(shape),
    )


def _identity(node: ir.Node, base: Constant) -> Constant:  # noqa: ARG001 - one of the views
    return base


def _transpose(node: ir.Node, base: Constant) -> Constant:
    perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(len(base.shape))))))
    shape = tuple(base.shape[axis] for axis in perm)
    return base.view(lambda array: array.transpose(perm), shape)


def _reshape(node: ir.Node, base: Constant) -> Constant | None:
    target = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None:
        return None
    allow_zero = node.attributes.get_int("allowzero", 0)
    shape = [int(d) for d in target.numpy().reshape(-1)]
    if not allow_zero:
        shape = [base.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    if -1 in shape:
        known = int(np.prod([d for d in shape if d != -1]))
        shape[shape.index(-1)] = int(np.prod(base.shape)) // known if known else 0
    return _as_shape(base, tuple(shape))


def _flatten(node: ir.Node, base: Constant) -> Constant:
    axis = node.attributes.get_int("axis", 1)
    axis += len(base.shape) if axis < 0 else 0
    rows, columns = int(np.prod(base.shape[:axis])), int(np.prod(base.shape[axis:]))
    return _as_shape(base, (rows, columns))


def _axes(node: ir.Node) -> list[int] | None:
    """Axes of a Squeeze or Unsqueeze: an attribute up to opset 12, then an input."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return []
    axes = find_constant(node.inputs[1])
    return None if axes is None else [int(a) for a in axes.numpy().reshape(-1)]


def _squeeze(node: ir.Node, base: Constant) -> Constant | None:
    axes = _axes(node)
    if axes is None:
        return None
    rank = len(base.shape)
    gone = {a % rank for a in axes} if axes else {i for i, d in enumerate(base.shape) if d == 1}
    return _as_shape(base, tuple(d for i, d in enumerate(base.shape) if i not in gone))


def _unsqueeze(node: ir.Node, base: Constant) -> Constant | None:
    axes = _axes(node)
    if axes is None:
        return None
    rank = len(base.shape) + len(axes)
    new = {a % rank for a in axes}
    old = iter(base.shape)
    return _as_shape(base, tuple(1 if i in new else next(old) for i in range(rank)))


def _as_shape(base: Constant, shape: tuple[int, ...]) -> Constant:
    return base.view(lambda array: array.reshape(shape), shape)


_VIEWS: dict[str, Callable[[ir.Node, Constant], Constant | None]] = {
    "Flatten": _flatten,
    "Identity": _identity,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
