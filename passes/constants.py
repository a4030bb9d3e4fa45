# SPDX-License-Identifier: Apache-2.0
"""What is known before a model runs: initializers, Constant nodes and what is made of them alone.

A :class:`Constant` holds no data, only where the data is and how to look at it. An external tensor
stays on disk until :meth:`Constant.numpy` maps it into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx import helper

__all__ = ["MOST_MADE_BYTES", "Constant", "explain_variable", "find_constant"]

Array = npt.NDArray[np.generic]

_CHUNK = 1 << 24
"""Values that are looked at together where a whole weight must not be copied."""
_MOST_STEPS = 64
"""Nodes between a constant and what it is made of."""
_SMALL = 1024
"""Values of an input that shape inference is shown: shapes, axes, indices."""
MOST_MADE_BYTES = 1 << 30
"""Of a constant that no tensor of the file holds: a node can make any size out of a few bytes."""


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
    made: bool = False
    """True where nodes compute the data: no tensor of the file holds it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return math.ceil(math.prod(map(int, self.shape)) * self.dtype.itemsize)

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
            made=self.made,
        )


def find_constant(value: ir.Value | None) -> Constant | None:
    """The constant behind ``value``, or None (:func:`explain_variable` says why).

    1. An initializer. One that is a graph input too may be overridden: not a constant.
    2. The output of a Constant node with any ``value*`` attribute but ``sparse_value``, or of a
       ConstantOfShape whose shape is constant.
    3. Identity, Transpose, Reshape, Flatten, Squeeze or Unsqueeze of a constant, where shape and
       axes are constants as well.
    4. What an operator of ``_COMPUTED`` makes of constants alone (storage in fp16 and a Cast,
       weight normalisation, a scale), computed when it is read. Nothing random, quantized or with
       a body, and at most ``MOST_MADE_BYTES``.
    """
    return _find(value, {}, 0)


def _find(
    value: ir.Value | None, known: dict[ir.Value, Constant | None], depth: int
) -> Constant | None:
    """As :func:`find_constant`; ``known`` is what was found on the way: each is looked at once."""
    if value is None or depth > _MOST_STEPS:
        return None
    if value not in known:
        found = _look(value, known, depth + 1)
        if found is not None and found.made and found.nbytes > MOST_MADE_BYTES:
            found = None
        known[value] = found
    return known[value]


def _look(value: ir.Value, known: dict[ir.Value, Constant | None], depth: int) -> Constant | None:
    if value.is_initializer():
        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            return None
        return _from_tensor(value, tensor)
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in _COMPUTED:
        return _computed(node, value, known, depth)
    if value.index() != 0:
        return None
    if node.op_type == "Constant":
        tensor = _constant_tensor(node)
        return None if tensor is None else _from_tensor(value, tensor)
    if node.op_type == "ConstantOfShape":
        tensor = _filled_tensor(node)
        return None if tensor is None else _from_tensor(value, tensor, made=True)
    see = _VIEWS.get(node.op_type)
    if see is None:
        return None
    base = _find(node.inputs[0], known, depth)
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
    why = f"computed by node '{node.name}' ({node.op_type})"
    if node.op_type in {"ConstantOfShape", "Expand", "Tile"}:
        why += f"; a constant of more than {MOST_MADE_BYTES} bytes has to be stored in the file"
    return why


def _from_tensor(value: ir.Value, tensor: ir.TensorProtocol, *, made: bool = False) -> Constant:
    return Constant(
        source=value,
        tensor=tensor,
        shape=tuple(tensor.shape.numpy()),
        dtype=tensor.dtype,
        made=made,
    )


def _computed(
    node: ir.Node, value: ir.Value, known: dict[ir.Value, Constant | None], depth: int
) -> Constant | None:
    """What a node makes of constants, evaluated by ONNX's own reference when it is read."""
    given = {}
    for operand in node.inputs:
        if operand is not None:
            constant = _find(operand, known, depth)
            if constant is None:
                return None
            given[operand.name or ""] = constant
    if not given:
        return None
    proto = ir.serde.serialize_node(node)
    opset = helper.make_opsetid("", _opset(node))
    output = proto.output[value.index() or 0]
    inferred = _inferred(proto, given, opset)
    made = inferred.get(output)
    if made is None or not made.tensor_type.HasField("shape"):
        return None
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in made.tensor_type.shape.dim]
    if min(dims, default=0) < 0:
        return None

    def compute() -> ir.TensorProtocol:
        from onnx.reference import ReferenceEvaluator

        types = [
            helper.make_tensor_value_info(name, int(c.dtype), list(c.shape))
            for name, c in given.items()
        ]
        graph = helper.make_graph([proto], "constant", types, [onnx.ValueInfoProto(name=output)])
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        with np.errstate(all="ignore"):
            run = ReferenceEvaluator(model)
            (array,) = run.run([output], {name: c.numpy() for name, c in given.items()})
        return ir.tensor(np.asarray(array), dtype=dtype, name=value.name)

    dtype = ir.DataType(made.tensor_type.elem_type)
    tensor = ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(dims), name=value.name)
    return _from_tensor(value, tensor, made=True)


def _opset(node: ir.Node) -> int:
    """Version of the ONNX domain that the node's model imports."""
    graph = node.graph
    imports = {} if graph is None else graph.opset_imports
    return imports.get("", onnx.defs.onnx_opset_version())


def _inferred(
    node: onnx.NodeProto, given: Mapping[str, Constant], opset: onnx.OperatorSetIdProto
) -> dict[str, onnx.TypeProto]:
    """Types of the node's outputs, or nothing where ONNX can't tell."""
    types = {
        n: helper.make_tensor_type_proto(int(c.dtype), list(c.shape)) for n, c in given.items()
    }
    data = {
        name: onnx.numpy_helper.from_array(np.ascontiguousarray(c.numpy()))
        for name, c in given.items()
        if c.nbytes <= _SMALL and c.dtype != ir.DataType.STRING
    }
    try:
        operator = onnx.defs.get_schema(node.op_type, opset.version)
        return onnx.shape_inference.infer_node_outputs(
            operator, node, types, data, opset_imports=[opset], ir_version=8
        )
    except Exception:  # an operator that this onnx lacks, attributes that contradict the inputs
        return {}


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


_COMPUTED = frozenset(
    {
        "Abs", "Add", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Div", "Exp", "Expand", "Floor",
        "Gather", "Log", "LpNormalization", "MatMul", "Max", "Mean", "Min", "Mul", "Neg", "Pow",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare", "Round", "Shape", "Sigmoid", "Sign", "Slice", "Softplus",
        "Split", "Sqrt", "Sub", "Sum", "Tanh", "Tile", "Trilu", "Where",
    }
)  # fmt: skip
"""Operators without a body, a state or chance, of which a model makes weights of weights."""

_VIEWS: dict[str, Callable[[ir.Node, Constant], Constant | None]] = {
    "Flatten": _flatten,
    "Identity": _identity,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
