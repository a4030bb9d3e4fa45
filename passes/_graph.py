# SPDX-License-Identifier: Apache-2.0
"""Small edits of a graph that several passes need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from rimc_onnx.passes.constants import Constant, find_constant

__all__ = [
    "PASS_KEY",
    "Names",
    "Shapes",
    "add_initializer",
    "constant_add",
    "derived_initializer",
    "float_products",
    "is_derived",
    "is_private",
    "lazy_tensor",
    "remove_dead",
    "take_over",
    "weight_source",
]

PASS_KEY = "pkg.rimc_onnx.pass"
"""Metadata key that names the pass a node comes from."""

_SOURCE = "rimc_onnx.source"
"""Metadata key, in memory only: the user's initializer that a new one was computed from."""


class Names:
    """Names in use anywhere in a model, to make new ones that don't clash."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str | None] = set()
        self._nodes: set[str | None] = set()
        for graph in model.graphs():
            self._values.update(v.name for v in (*graph.inputs, *graph.initializers.values()))
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            self._nodes.add(node.name)
            self._values.update(v.name for v in node.outputs)

    def value(self, base: str) -> str:
        """``base``, or ``base_1`` and so on where a value has that name; taken from now on."""
        return _fresh(base, self._values)

    def node(self, base: str) -> str:
        """As :meth:`value`, for a node."""
        return _fresh(base, self._nodes)


def _fresh(base: str, taken: set[str | None]) -> str:
    name, i = base, 0
    while name in taken:
        i += 1
        name = f"{base}_{i}"
    taken.add(name)
    return name


class Shapes:
    """Shapes of values: what the file says, else what ONNX infers, without touching the model.

    Inference runs once, on a copy without its large initializers, when a shape is missing.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred: dict[str | None, ir.Value] | None = None

    def shape(self, value: ir.Value) -> ir.Shape | None:
        """Shape of ``value``, or None if not even the rank is known."""
        if value.shape is not None:
            return value.shape
        inferred = self._lookup(value)
        return None if inferred is None else inferred.shape

    def rank(self, value: ir.Value) -> int | None:
        """Rank of ``value``, or None."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def _lookup(self, value: ir.Value) -> ir.Value | None:
        if self._inferred is None:
            copy = self._model.clone()
            ShapeInferencePass(check_type=False, strict_mode=False)(copy)
            self._inferred = {v.name: v for v in copy.graph.inputs}
            for node in copy.graph:
                self._inferred.update((v.name, v) for v in node.outputs)
        return self._inferred.get(value.name)


def is_private(value: ir.Value) -> bool:
    """True if exactly one node input reads ``value`` and nothing outside the graph does."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def lazy_tensor(
    compute: Callable[[], npt.NDArray[np.generic]],
    *,
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
) -> ir.LazyTensor:
    """A tensor that is computed each time it is read and never kept, so memory stays small."""
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(compute()).reshape(shape), dtype=dtype, name=name),
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
    )


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of ``graph``."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def derived_initializer(
    graph: ir.Graph, name: str, tensor: ir.TensorProtocol, origin: ir.Value
) -> ir.Value:
    """A new initializer computed from ``origin``, which :func:`weight_source` leads back to."""
    value = add_initializer(graph, name, tensor)
    value.meta[_SOURCE] = weight_source(origin)
    return value


def is_derived(value: ir.Value) -> bool:
    """True for what :func:`derived_initializer` made: not the user's, whatever its name."""
    return _SOURCE in value.meta


def weight_source(value: ir.Value) -> str:
    """Name of the user's initializer (or Constant output) that ``value`` is made of."""
    constant = find_constant(value)
    root = value if constant is None else constant.source
    return str(root.meta.get(_SOURCE, root.name))


def float_products(
    model: ir.Model, op_type: str, skip: Callable[[str], bool]
) -> Iterator[tuple[ir.Node, Constant]]:
    """Nodes of ``op_type`` with a constant of floats as input 1, which may be rewritten meanwhile.

    Left out: nodes in subgraphs, and those whose name ``skip`` takes.
    """
    for node in list(model.graph):
        if node.domain != "" or node.op_type != op_type or skip(node.name or ""):
            continue
        weight = find_constant(node.inputs[1])
        if weight is not None and weight.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            yield node, weight


def constant_add(product: ir.Value) -> tuple[ir.Node, Constant] | None:
    """The Add of a constant that alone reads ``product``, and that constant.

    Not of one with infinities, as masks of classes have them: no bias of a node is infinite.
    """
    if not is_private(product):
        return None
    (use,) = product.uses()
    add = use.node
    if add.op_type != "Add" or add.domain != "" or add.graph is not product.graph:
        return None
    constant = find_constant(add.inputs[1 - use.idx])
    return (add, constant) if constant is not None and constant.is_finite() else None


def take_over(old: ir.Value, new: ir.Value) -> None:
    """``new`` gets every use, the place among the graph's outputs, and the name of ``old``."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name
    if old.type is not None:
        new.type = old.type
    if old.shape is not None:
        new.shape = old.shape.copy()
    new.metadata_props.update(old.metadata_props)


def remove_dead(values: Iterable[ir.Value | None]) -> None:
    """Remove the nodes and initializers that only made ``values``, none of which is read any more.

    1. An initializer that nothing reads: removed, unless it is an input or output of the graph.
    2. A node whose outputs nothing reads: removed, then the same for its inputs.
    3. Anything that is still read: left alone.
    """
    pending = [value for value in values if value is not None]
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        if value.is_initializer():
            graph = value.graph
            if graph is not None and value.name is not None:
                del graph.initializers[value.name]
            continue
        node = value.producer()
        if node is None or node.graph is None:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        pending += [i for i in node.inputs if i is not None]
        node.graph.remove(node, safe=True)
