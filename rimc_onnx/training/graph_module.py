# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph as a torch module whose parameters have the names of the file's initializers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from rimc_onnx.errors import ModelError, RimcError, UsageError, suggest
from rimc_onnx.execution.value_types import value_types
from rimc_onnx.passes import find_constant
from rimc_onnx.training.foreign_node import foreign_operator
from rimc_onnx.training.node_spec import NodeSpec, Operator
from rimc_onnx.training.operators import OPERATORS
from rimc_onnx.training.operators.shapes import tensor_of

__all__ = ["GraphModule", "node_spec"]

Array = npt.NDArray[Any]

_NO_WEIGHT = {
    "BatchNormalization": {3, 4},
    "Clip": {1, 2},
    "DequantizeLinear": {1, 2},
    "GridSample": {1},
    "OneHot": {2},
    "Pad": {2},
    "Pow": {1},
    "QuantizeLinear": {1, 2},
    "Resize": {1, 2},
    "RotaryEmbedding": {1, 2},
}
"""Inputs that hold statistics, bounds or tables: what they are given is never trained."""

Layer = tuple[nn.Module, Sequence[str | None]]
"""What is called in the stead of a node, and the values that it is called with."""

_DRAWS = {"RandomNormalLike", "RandomUniformLike"}
"""Nodes that read the shape of their input alone."""
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Nodes whose constant input 1 can go to RRAM."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """One node: what is called, with what, and which values nobody reads afterwards."""

    name: str
    op_type: str
    operator: Operator
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    free: tuple[str, ...]


class GraphModule(nn.Module):
    """A graph without its folds, node by node.

    Parameters are the float initializers, and Constant nodes, of more than one value, by the names
    they have in the file; one that several nodes share is one parameter. Statistics, bounds and
    whole numbers are buffers. 16-bit floats are computed in float32. Values are freed after their
    last use.

    ``forward`` takes the graph's inputs in order, or by name, and gives its output, or a tuple of
    them. Outputs of strings, and what only they need, are left out.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str] | None = None,
        layers: Mapping[str, Layer] | None = None,
    ) -> None:
        """``model`` has been through ``structure_pipeline``.

        ``outputs`` are all that hold numbers where ``None``.

        ``layers`` are called in the stead of nodes, by node name.

        Raises:
            ModelError: an operator that gradients have to pass is not in the table, or an output
                needs strings.
            UsageError: no such output.
        """
        super().__init__()
        graph = model.graph
        known = [str(v.name) for v in graph.outputs]
        for name in outputs or []:
            if name not in known:
                raise UsageError(f"output {name!r}: the graph has none. {suggest(name, known)}")
        self.input_names = tuple(
            str(v.name) for v in graph.inputs if v.name not in graph.initializers
        )
        self.output_names = tuple(outputs or _outputs_of_numbers(graph))
        self.dtypes: dict[str, np.dtype[Any]] = {}
        """Of every parameter, as the file has it."""
        self.layers = nn.ModuleList(layer for layer, _ in (layers or {}).values())
        """What is called in the stead of nodes."""
        self._read(model, layers or {})

    # --- reading ------------------------------------------------------------------------------

    def _read(self, model: ir.Model, layers: Mapping[str, Layer]) -> None:
        opset = model.opset_imports.get("", 0)
        nodes = _needed(model.graph, self.output_names)
        behind_weights = _behind_weights(nodes, layers, model.opset_imports)
        types: dict[str, onnx.TypeProto] | None = None
        steps: list[_Step] = []
        foreign: list[ir.Node] = []
        for node in nodes:
            if node.op_type == "Constant" and node.domain == "":
                continue
            if any(map(_is_text, (*node.inputs, *node.outputs))):
                raise _refusal_of_text(node)
            spec = node_spec(node, opset)
            make = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            given = layers.get(str(node.name))
            operator: Operator
            names: Sequence[str | None]
            if given is not None:
                operator, names = given
            elif make is not None:
                operator, names = (
                    make(spec),
                    [None if v is None else str(v.name) for v in node.inputs],
                )
            else:
                is_reached = any(v in behind_weights for v in _reads(node))
                if is_reached and any(v in behind_weights for v in node.outputs):
                    raise _refusal(node)
                foreign.append(node)
                types = value_types(model) if types is None else types
                operator, names = foreign_operator(node, model, types)
            steps.append(
                _Step(
                    name=str(node.name),
                    op_type=node.op_type,
                    operator=operator,
                    inputs=tuple(names),
                    outputs=tuple(str(v.name) if v.name else None for v in node.outputs),
                    free=(),
                )
            )
        self._steps = _with_last_uses(steps, self.output_names)
        self._hold_constants(model.graph, foreign)

    def _hold_constants(self, graph: ir.Graph, foreign: Sequence[ir.Node]) -> None:
        """Parameters and buffers of everything that the steps read and no step makes."""
        made = {name for step in self._steps for name in step.outputs} | set(self.input_names)
        uses = _uses(self._steps)
        opaque = {v.name for node in foreign for v in _reads(node)}
        for name in [*dict.fromkeys([*uses, *self.output_names])]:
            if name in made:
                continue
            array = _constant_array(graph, name)
            tensor = tensor_of(array)
            places = uses.get(name, [])
            is_weight = (
                tensor.is_floating_point()
                and tensor.numel() > 1
                and name not in opaque
                and all(i not in _NO_WEIGHT.get(op, ()) for op, i in places)
                and bool(torch.isfinite(tensor).all())
            )
            # Names hold dots and slashes, which register_parameter refuses.
            if is_weight:
                self._parameters[name] = nn.Parameter(tensor)
                self.dtypes[name] = np.asarray(array).dtype
            else:
                self._buffers[name] = tensor

    # --- running ------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for the graph's inputs, in order or by name."""
        feeds = dict(zip(self.input_names, inputs, strict=False)) | named
        found = self.run(feeds)
        values = tuple(found[name] for name in self.output_names)
        return values[0] if len(values) == 1 else values

    def run(self, feeds: Mapping[str, Tensor], taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs, and the values named by ``taps``, by name.

        Raises:
            UsageError: an input is missing.
            ModelError: a node fails; with its name.
        """
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise UsageError(
                f"input {missing[0]!r} is missing. The graph has {', '.join(self.input_names)}."
            )
        values: dict[str, Tensor | None] = {**self._parameters, **self._buffers}
        for name in self.input_names:
            x = feeds[name]
            values[name] = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        kept = {*self.output_names, *taps}
        for step in self._steps:
            arguments = [None if name is None else values[name] for name in step.inputs]
            try:
                result = step.operator(*arguments)
            except (RimcError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
                text = " ".join(str(error).split())[:200]
                raise ModelError(f"node '{step.name}' ({step.op_type}) fails: {text}") from error
            results = result if isinstance(result, tuple) else (result,)
            for output, value in zip(step.outputs, results, strict=False):
                if output is not None:
                    values[output] = value
            for name in step.free:
                if name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in kept if values.get(name) is not None}  # type: ignore[misc]

    # --- hooks --------------------------------------------------------------------------------

    def replace(self, node: str, layer: nn.Module, *, first_input: str | None = None) -> None:
        """``layer`` is called in a node's stead, with the values of its inputs.

        ``first_input`` is read in place of its first one.

        Raises:
            UsageError: no such node.
        """
        if not self.has_node(node):
            raise UsageError(f"node {node!r}: {suggest(node, [s.name for s in self._steps])}")
        self.layers.append(layer)
        steps = [
            replace(
                step,
                operator=layer,
                inputs=(first_input or step.inputs[0], *step.inputs[1:]),
            )
            if step.name == node
            else step
            for step in self._steps
        ]
        self._steps = _with_last_uses(steps, self.output_names)

    def has_node(self, node: str) -> bool:
        """False where no output needs it."""
        return any(step.name == node for step in self._steps)

    def value_of(self, name: str) -> Tensor:
        """A value that follows from parameters alone, such as a weight behind a Transpose."""
        parameter = self._parameters.get(name)
        held = self._buffers.get(name) if parameter is None else parameter
        if held is not None:
            return held
        step = next(s for s in self._steps if name in s.outputs)
        inputs = [None if i is None else self.value_of(i) for i in step.inputs]
        result = step.operator(*inputs)
        found = result[step.outputs.index(name)] if isinstance(result, tuple) else result
        assert isinstance(found, Tensor)
        return found

    def inputs_of(self, node: str) -> tuple[str | None, ...]:
        """Names of the values that a node reads."""
        return next(step.inputs for step in self._steps if step.name == node)

    def outputs_of(self, nodes: Iterable[str]) -> dict[str, str]:
        """First output of every node, by node."""
        wanted = set(nodes)
        return {s.name: str(s.outputs[0]) for s in self._steps if s.name in wanted}

    def names_at(self, op_type: str, index: int) -> set[str]:
        """Values that nodes of ``op_type`` read as input ``index``."""
        found = [s.inputs[index] for s in self._steps if s.op_type == op_type]
        return {name for name in found if name is not None}

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Those of the file, without the layers'."""
        return {n: p for n, p in self._parameters.items() if p is not None}

    def parameter(self, name: str) -> nn.Parameter | None:
        """A parameter by its name in the file; ``None`` where there is none."""
        return self._parameters.get(name)

    def weights(self) -> dict[str, Array]:
        """Parameters as arrays of the file's types, by name: what is written back."""
        return {
            name: parameter.detach().cpu().numpy().astype(self.dtypes[name])
            for name, parameter in self.own_parameters().items()
        }


def _refusal(node: ir.Node) -> ModelError:
    kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return ModelError(
        f"node '{node.name}' ({kind}): the importer has no such operator, and gradients of weights "
        f"have to pass it. Export the model without it, or ask for outputs that don't need it."
    )


def _refusal_of_text(node: ir.Node) -> ModelError:
    return ModelError(
        f"node '{node.name}' ({node.op_type}): takes or gives strings, which torch does not have. "
        "Export the model without it, or with an output of numbers before it."
    )


def _is_text(value: ir.Value | None) -> bool:
    """True where the file says that ``value`` holds strings."""
    known = find_constant(value) or value
    return known is not None and known.dtype == ir.DataType.STRING


def _outputs_of_numbers(graph: ir.Graph) -> list[str]:
    """Names of the outputs without those of strings.

    Raises:
        ModelError: there are no others.
    """
    names = [str(v.name) for v in graph.outputs if not _is_text(v)]
    text = next((v.producer() for v in graph.outputs if v.producer() is not None), None)
    if not names and text is not None:
        raise _refusal_of_text(text)
    return names


def _needed(graph: ir.Graph, outputs: Sequence[str]) -> list[ir.Node]:
    """Nodes that the outputs depend on, in the graph's order."""
    pending = [v for v in graph.outputs if v.name in outputs]
    wanted: set[ir.Node] = set()
    while pending:
        producer = pending.pop().producer()
        if producer is not None and producer not in wanted and producer.graph is graph:
            wanted.add(producer)
            pending += _reads(producer)
    return [node for node in graph if node in wanted]


def _reads(node: ir.Node) -> list[ir.Value]:
    """Inputs of a node and what its bodies capture."""
    found = [v for v in node.inputs if v is not None]
    for attribute in node.attributes.values():
        bodies: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        for body in bodies:
            for inner in ir.traversal.RecursiveGraphIterator(body):
                found += [v for v in inner.inputs if v is not None and v.graph is node.graph]
            found += [v for v in body.outputs if v.graph is node.graph]
    return found


def _behind_weights(
    nodes: Sequence[ir.Node], layers: Collection[str], opsets: Mapping[str, int]
) -> set[ir.Value]:
    """Values that a gradient of a weight can reach which can go to RRAM, or of ``layers``."""
    found: set[ir.Value] = set()
    for node in nodes:
        is_product = node.name in layers or (
            node.op_type in _PRODUCTS and find_constant(node.inputs[1]) is not None
        )
        if is_product or any(v in found for v in _reads(node)):
            found.update(_differentiable(node, opsets))
    return found


def _differentiable(node: ir.Node, opsets: Mapping[str, int]) -> list[ir.Value]:
    """Outputs that may be floats and follow their inputs' values, not indices, truth or draws."""
    if node.op_type in _DRAWS and node.domain == "":
        return []
    if node.op_type == "Cast" and node.domain == "":
        dtype = ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT))
        return list(node.outputs) if dtype.is_floating_point() else []
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return list(node.outputs)
    last = len(schema.outputs) - 1  # of an operator with any number of outputs
    may_be = [schema.outputs[min(i, last)].types for i in range(len(node.outputs))]
    return [
        value
        for value, kinds in zip(node.outputs, may_be, strict=True)
        if any("float" in kind or "double" in kind for kind in kinds)
    ]


def node_spec(node: ir.Node, opset: int) -> NodeSpec:
    """What the operator table is told of a node."""
    constants: list[Array | None] = []
    for value in node.inputs:
        constant = find_constant(value)
        is_small = constant is not None and int(np.prod(constant.shape)) <= 64
        constants.append(constant.numpy() if constant is not None and is_small else None)
    used = [i for i, v in enumerate(node.outputs) if v.uses() or v.is_graph_output()]
    return NodeSpec(
        name=str(node.name),
        op_type=node.op_type,
        opset=opset,
        attributes={a.name: _plain(a) for a in node.attributes.values()},
        constants=constants,
        num_inputs=len(node.inputs),
        num_outputs=len(node.outputs) if node.op_type == "Split" else max(used, default=0) + 1,
    )


def _plain(attribute: ir.Attr) -> Any:
    kinds = ir.AttributeType
    if attribute.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
        return list(attribute.value)
    if attribute.type == kinds.TENSOR:
        return attribute.as_tensor().numpy()
    return attribute.value


def _uses(steps: Sequence[_Step]) -> dict[str, list[tuple[str, int]]]:
    """Value -> (op type, input index) of all that read it."""
    found: dict[str, list[tuple[str, int]]] = {}
    for step in steps:
        for index, name in enumerate(step.inputs):
            if name is not None:
                found.setdefault(name, []).append((step.op_type, index))
    return found


def _with_last_uses(steps: Sequence[_Step], outputs: Sequence[str]) -> list[_Step]:
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        for name in (*step.inputs, *step.outputs):
            if name is not None:
                last[name] = i
    free: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in outputs:
            free.setdefault(i, []).append(name)
    return [replace(step, free=tuple(free.get(i, ()))) for i, step in enumerate(steps)]


def _constant_array(graph: ir.Graph, name: str) -> Array:
    value = graph.initializers.get(name)
    if value is None:
        value = next((v for node in graph for v in node.outputs if v.name == name), None)
    constant = find_constant(value)
    if constant is None and value is not None and value.const_value is not None:
        return value.const_value.numpy()
    if constant is None:
        raise ModelError(f"value '{name}' has no data. Export the model again.")
    return constant.numpy()
