# SPDX-License-Identifier: Apache-2.0
"""Writes the body of a function node by node, in standard ONNX operators.

What a body computes is written once, as Python that calls operators. Parts of it are optional;
:meth:`Body.choose` writes the part that the nodes of a file use, or an ``If`` where only some do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.bodies.uses import VALUE, Uses

__all__ = ["Body", "Term"]

_Literal = float | int | list[int] | list[float]

Known = npt.NDArray[np.generic]
"""float32 or int64, of no axes or one."""
_DRAWS = {"RandomNormalLike"}
_CASTS: dict[object, type] = {1: np.float32, 7: np.int64}
_FOLDED: dict[str, Callable[..., Known]] = {
    "Add": lambda a, b: np.asarray(a + b),
    "Sub": lambda a, b: np.asarray(a - b),
    "Mul": lambda a, b: np.asarray(a * b),
    "Div": lambda a, b: np.asarray(a / b),
    "Neg": lambda a: np.asarray(-a),
    "Pow": lambda a, b: np.asarray(a**b),
}
"""Exact or rounded once, so the same in numpy and in ONNX Runtime; powers are of 2."""
_END = 2**63 - 1
_SHAPE_OF_PART = 15
"""The opset from which on a Shape gives a part of the dimensions, and is one node for a Slice."""
_ZERO_IN_SHAPE = 14
"""The opset from which on a Reshape can be told that 0 is a number of elements."""
_KINDS = {
    "int": ir.AttributeType.INT,
    "ints": ir.AttributeType.INTS,
    "float": ir.AttributeType.FLOAT,
    "floats": ir.AttributeType.FLOATS,
    "string": ir.AttributeType.STRING,
}


class Term:
    """A value in a body; ``+ - * /`` write the operators.

    A number that is known when the body is written has no node before something reads it.
    """

    def __init__(self, body: Body, value: ir.Value | None, known: Known | None = None) -> None:
        self._body = body
        self._value = value
        self.known = known

    @property
    def value(self) -> ir.Value:
        """The value that nodes read."""
        if self._value is None:
            assert self.known is not None, "a term is a value or a number"
            self._value = self._body.written(self.known)
        return self._value

    def __add__(self, other: Term | _Literal) -> Term:
        return self._body.op("Add", self, other)

    def __sub__(self, other: Term | _Literal) -> Term:
        return self._body.op("Sub", self, other)

    def __mul__(self, other: Term | _Literal) -> Term:
        return self._body.op("Mul", self, other)

    def __truediv__(self, other: Term | _Literal) -> Term:
        return self._body.op("Div", self, other)

    def __gt__(self, other: Term | _Literal) -> Term:
        return self._body.op("Greater", self, other)

    def part(self, start: int, end: int = _END) -> Term:
        """Elements ``start`` to before ``end`` of a vector."""
        made_by = None if self._value is None else self._value.producer()
        whole_shape = made_by is not None and made_by.op_type == "Shape" and not made_by.attributes
        if made_by is not None and whole_shape and self._body.opset >= _SHAPE_OF_PART:
            until = {} if end == _END else {"end": end}
            (of,) = made_by.inputs
            return self._body.op("Shape", Term(self._body, of), start=start, **until)
        return self._body.op("Slice", self, [start], [end])


class Body:
    """One function of the domain ``ai.rimc``, while it is written."""

    def __init__(
        self, inputs: Sequence[str], attributes: Mapping[str, str], uses: Uses, *, opset: int
    ) -> None:
        """``attributes``: names and types. What ``uses`` does not name is optional."""
        self.opset = opset
        self._inputs = {name: ir.Value(name=name) for name in inputs}
        self._attributes = dict(attributes)
        self._uses = uses
        self._constants: dict[object, ir.Node] = {}
        self._scopes: list[list[ir.Node]] = [[]]
        self._made: list[dict[object, ir.Value]] = [{}]
        self._num_values = 0

    def input(self, name: str) -> Term:
        """An input of the operator."""
        return Term(self, self._inputs[name])

    def attribute(self, name: str) -> Term:
        """The value of an attribute of the operator: a scalar, or a vector."""
        kind = self._attributes[name]
        common = self.uses(f"{VALUE}{name}")
        if common is not None:
            return Term(self, None, np.asarray(common, np.int64))
        reference = self.reference(f"value_{kind}", name)
        return self._constant(("attribute", name), reference)

    def constant(self, value: _Literal) -> Term:
        """A number, or a vector of them."""
        return self._term(value)

    def reference(self, name: str, attribute: str | None = None) -> ir.Attr:
        """Attribute ``name`` of a node in the body, with the value of one of the operator's."""
        attribute = attribute or name
        return ir.RefAttr(name, attribute, _KINDS[self._attributes[attribute]])

    def uses(self, name: str) -> bool | int | None:
        """See :data:`Uses`."""
        return self._uses.get(name)

    def op(
        self,
        op_type: str,
        *inputs: Term | _Literal | None,
        **attributes: int | list[int] | ir.Attr | ir.TensorProtocol,
    ) -> Term:
        """A node with one output; numbers become constants, an ``int`` one of int64.

        Of numbers that are known it is what the operator gives, and no node.
        """
        terms = [None if i is None else self._term(i) for i in inputs]
        known = [t.known for t in terms if t is not None and t.known is not None]
        if terms and len(known) == len(terms) and (made := _folded(op_type, known, attributes)):
            return Term(self, None, made[0])
        if op_type in {"Mul", "Div"} and terms[0] is not None and _is_one(terms[1]):
            return terms[0]
        values = [None if t is None else t.value for t in terms]
        attrs = [
            a if isinstance(a, ir.Attr) else _attribute(name, a) for name, a in attributes.items()
        ]
        # One node for what is written twice: where both are, so that no branch reads another's.
        key = (op_type, *values, *((a.name, str(a)) for a in attrs))
        made_before = self._made[-1]
        if op_type in _DRAWS or any(a.type == ir.AttributeType.GRAPH for a in attrs):
            made_before = {}
        if key not in made_before:
            node = ir.Node("", op_type, values, attrs, outputs=[self._new_value()])
            self._scopes[-1].append(node)
            made_before[key] = node.outputs[0]
        return Term(self, made_before[key])

    def reshape(self, values: Term, shape: Term) -> Term:
        """A Reshape to what other values have: 0 in ``shape`` is an axis without rows."""
        if self.opset >= _ZERO_IN_SHAPE:
            return self.op("Reshape", values, shape, allowzero=1)
        # 0 is "as it is in the input" there: an axis without rows is what is left over.
        return self.op(
            "Reshape", values, self.op("Where", self.op("Equal", shape, [0]), [-1], shape)
        )

    def choose(
        self,
        use: str,
        condition: Callable[[], Term],
        then: Callable[[], Term],
        otherwise: Callable[[], Term],
    ) -> Term:
        """``then()`` or ``otherwise()``; both in an ``If`` where nodes differ in ``use``."""
        chosen = self.uses(use)
        if chosen is not None:
            return then() if chosen else otherwise()
        test = condition()
        graphs = {"then_branch": self._branch(then), "else_branch": self._branch(otherwise)}
        attrs = {name: ir.AttrGraph(name, graph) for name, graph in graphs.items()}
        return self.op("If", test, **attrs)

    def function(self, domain: str, name: str, result: Term) -> ir.Function:
        """The function that gives ``result``, without nodes that nobody reads."""
        # What a function is given may be an output of it only through a node.
        if result.value in self._inputs.values():
            result = self.op("Identity", result)
        result.value.name = "y"
        nodes = [*self._constants.values(), *self._scopes[0]]
        graph = ir.Graph(
            inputs=list(self._inputs.values()),
            outputs=[result.value],
            nodes=_read(nodes, result.value),
            opset_imports={"": self.opset},
            name=name,
        )
        attributes = [ir.Attr(name, _KINDS[kind], None) for name, kind in self._attributes.items()]
        return ir.Function(domain, name, graph=graph, attributes=attributes)

    def _branch(self, write: Callable[[], Term]) -> ir.Graph:
        self._scopes.append([])
        self._made.append({})
        result = write()
        made = {output for node in self._scopes[-1] for output in node.outputs}
        if result.value not in made:
            result = self.op("Identity", result)
        nodes = self._scopes.pop()
        self._made.pop()
        return ir.Graph(
            inputs=[], outputs=[result.value], nodes=_read(nodes, result.value), name="g"
        )

    def _term(self, operand: Term | _Literal) -> Term:
        if isinstance(operand, Term):
            return operand
        numbers = operand if isinstance(operand, list) else [operand]
        is_whole = all(isinstance(n, int) for n in numbers)
        return Term(self, None, np.asarray(operand, np.int64 if is_whole else np.float32))

    def written(self, known: Known) -> ir.Value:
        """The Constant of a number or a vector."""
        kind = "int" if known.dtype == np.int64 else "float"
        name = f"value_{kind}{'s' if known.ndim else ''}"
        numbers = known.tolist()
        key = (name, tuple(numbers) if known.ndim else numbers)
        return self._constant(key, _attribute(name, numbers)).value

    def _constant(self, key: object, attribute: ir.Attr) -> Term:
        """One node for each, in front of all others, so that branches may read it too."""
        if key not in self._constants:
            self._constants[key] = ir.Node(
                "", "Constant", [], [attribute], outputs=[self._new_value()]
            )
        return Term(self, self._constants[key].outputs[0])

    def _new_value(self) -> ir.Value:
        self._num_values += 1
        return ir.Value(name=f"v{self._num_values}")


def _is_one(term: Term | None) -> bool:
    """True of the count 1, a vector of one element as counts of shapes are."""
    known = None if term is None else term.known
    return known is not None and known.dtype == np.int64 and known.tolist() == [1]


def _folded(
    op_type: str, inputs: Sequence[Known], attributes: Mapping[str, object]
) -> tuple[Known] | None:
    """What an operator gives for numbers, in the arithmetic of ONNX; none for other operators."""
    if op_type == "Cast" and attributes["to"] in _CASTS:
        return (inputs[0].astype(_CASTS[attributes["to"]]),)
    if op_type == "Concat" and all(i.ndim == 1 for i in inputs):
        return (np.concatenate(inputs),)
    if op_type == "Reshape":
        shape = inputs[1].tolist()
        return (inputs[0].reshape(shape),) if len(shape) <= 1 else None
    if op_type == "Div" and inputs[0].dtype == np.int64:
        return None  # it is rounded towards zero, and nobody needs it
    return (_FOLDED[op_type](*inputs),) if op_type in _FOLDED else None


def _read(nodes: Sequence[ir.Node], result: ir.Value) -> list[ir.Node]:
    """The nodes that ``result`` is made of, in their order; others are taken off their inputs."""
    wanted, found = {result}, []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.outputs):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
            continue
        found.append(node)
        wanted.update(_inputs(node))
    return found[::-1]


def _inputs(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, its branches included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            graph = attribute.as_graph()
            yield from graph.outputs
            for inside in graph:
                yield from _inputs(inside)


def _attribute(name: str, value: _Literal | ir.TensorProtocol) -> ir.Attr:
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if not isinstance(value, list):
        return ir.AttrTensor(name, value)
    whole = [n for n in value if isinstance(n, int)]
    return ir.AttrInt64s(name, whole) if len(whole) == len(value) else ir.AttrFloat32s(name, value)
