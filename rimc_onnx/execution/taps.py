# SPDX-License-Identifier: Apache-2.0
"""Runs a model in pieces, so that values between its nodes can be read and changed.

A piece ends where a watched value is made, or, where nothing is changed, at the last of a few whose
values fit in memory together. Every piece runs once for every chunk of samples; a value is freed
after the last stage that reads it. Nothing is known of how a session computes its nodes: a session
factory decides that (the simulator, stock ONNX Runtime, a vendor's provider).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper

from rimc_onnx.execution.array_file import ArrayFile, forget_arrays
from rimc_onnx.execution.external_data import forget_pages
from rimc_onnx.execution.model_bytes import bytes_with_initializers
from rimc_onnx.execution.sessions import Session, SessionFactory, run_session
from rimc_onnx.execution.value_types import value_types
from rimc_onnx.ops.schema import DOMAIN

__all__ = [
    "PIECE_WEIGHT_BYTES",
    "Chunks",
    "StagedRun",
    "changed_runs",
    "initializer_bytes",
    "nodes_session",
    "run_chunks",
]

Array = npt.NDArray[Any]
PIECE_WEIGHT_BYTES = 64 << 20
"""Most weights of a piece, unless one stage alone has more: a session holds them up to three times,
in its bytes, as initializers and packed."""

_PIECE = "a piece of the model"
_MAKES_CONTAINER = re.compile("Sequence|Optional")
"""Operators that make a sequence or an optional, whichever they are."""
Chunks = list[Array]
"""One value for every chunk of samples, in order."""


def nodes_session(
    model: ir.Model, nodes: Mapping[str, Sequence[ir.Node]], factory: SessionFactory
) -> Session:
    """A session of nodes beside each other, by the input through which they are fed.

    Their other inputs are initializers; none reads what another writes.
    """
    fed = []
    for name, readers in nodes.items():
        value = next(i for i in readers[0].inputs if i is not None and i.name == name)
        dtype = value.dtype or ir.DataType.FLOAT
        fed.append(helper.make_tensor_value_info(name, int(dtype), None))
    inside = [node for readers in nodes.values() for node in readers]
    given = [output.name or "" for node in inside for output in node.outputs]
    return _session(model, inside, fed, given, factory)


def run_chunks(
    session: Session, outputs: Sequence[str], inputs: Mapping[str, Chunks], num_chunks: int
) -> list[Chunks]:
    """Every output's chunks, of one run for each chunk of the inputs; large ones lie in a file."""
    found: list[Chunks] = [[] for _ in outputs]
    file = ArrayFile()
    for chunk in range(num_chunks):
        feed = {name: chunks[chunk] for name, chunks in inputs.items()}
        for chunks, value in zip(found, run_session(session, outputs, feed, _PIECE), strict=True):
            chunks.append(file.keep(value, num_chunks))
        forget_arrays(feed.values())
    file.close()
    return found


@dataclass(frozen=True)
class _Stage:
    nodes: list[ir.Node]
    inputs: list[str]
    outputs: list[str]
    freed: list[str]
    """Values that no later stage reads or ends with."""
    weight_bytes: int = 0
    """Of the initializers that the nodes read."""


class StagedRun:
    """One pass through a model's main graph, stopping at each of ``watched``.

    Iterating gives ``(name, chunks)`` for every watched value in the order they are made.
    ``self.values`` holds every live value, the last read of a watched value's stage included, until
    the iteration moves on; assigning to it changes what later pieces read. With ``together_bytes``
    a piece spans so many stages that what it gives is likely to take no more than that (one stage
    at least): their sizes are those of the piece before. Weights of a piece are bounded, too
    (:data:`PIECE_WEIGHT_BYTES`).
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[dict[str, Array]],
        watched: Sequence[str],
        factory: SessionFactory,
        *,
        keep: Mapping[str, str] | None = None,
        together_bytes: int = 0,
    ) -> None:
        """``keep`` names a value for some watched ones: alive, too, when the watched one is given.

        A node may read it long before: two products stand before the Add of either.
        """
        self._model = model
        self._factory = factory
        self._watched = list(watched)
        self.values: dict[str, Chunks] = {
            name: [feed[name] for feed in feeds] for name in (feeds[0] if feeds else {})
        }
        self._num_chunks = len(feeds)
        self._together_bytes = together_bytes
        kept = dict(keep or {})
        for name, array in _initial_values(model, kept.values(), self.values):
            self.values[name] = [array] * self._num_chunks
        self._stages = _stages(model, self._watched, kept)
        self._types = _container_types(model)

    def __iter__(self) -> Iterator[tuple[str, Chunks]]:
        """Run piece by piece."""
        names = self._watched_in_order()
        first, count = 0, 1
        while first < len(self._stages):
            piece = self._within_weights(self._stages[first : first + count])
            given_bytes = self._run(_joined(piece))
            for name, stage in zip(names[first : first + len(piece)], piece, strict=True):
                yield name, self.values[name]
                for freed in stage.freed:
                    self.values.pop(freed, None)
            first += len(piece)
            fitting = self._together_bytes * len(piece) // max(given_bytes, 1)
            count = max(1, min(fitting, 2 * count))

    @staticmethod
    def _within_weights(stages: list[_Stage]) -> list[_Stage]:
        """The first of ``stages`` whose weights fit in a session together, one at least."""
        total = 0
        for index, stage in enumerate(stages):
            total += stage.weight_bytes
            if index and total > PIECE_WEIGHT_BYTES:
                return stages[:index]
        return stages

    def _watched_in_order(self) -> list[str]:
        made = [o.name for s in self._stages for n in s.nodes for o in n.outputs]
        return sorted(self._watched, key=made.index)

    def _run(self, stage: _Stage) -> int:
        """Bytes of what it gave."""
        if not stage.nodes:
            return 0
        session = _stage_session(self._model, stage, self.values, self._factory, self._types)
        inputs = {name: self.values[name] for name in stage.inputs}
        found = run_chunks(session, stage.outputs, inputs, self._num_chunks)
        self.values |= zip(stage.outputs, found, strict=True)
        return sum(_nbytes(value) for chunks in found for value in chunks)


def changed_runs(
    model: ir.Model,
    feed: dict[str, Array],
    watched: Sequence[str],
    factory: SessionFactory,
    change: Callable[[str, Mapping[str, Array]], Sequence[Array]],
    *,
    outputs: Sequence[str],
    keep: Mapping[str, str],
) -> Iterator[tuple[str, int, str, Array, Array]]:
    """One chunk's pass through a model, and beside it passes with each of ``watched`` changed.

    ``change`` is called with the name of a watched value and all values that are alive, and gives
    others in its place, for a pass each. Yields (watched, index of the other value, output, the
    output as it is, as it is then) for every one of ``outputs`` that the change reaches. All
    passes go through a piece before the next one is opened, so one piece's weights are held; of
    each pass the values that later pieces read. ``keep`` names a value for each watched one that
    has to be there when that is changed.
    """
    values: dict[str, Any] = dict(feed)
    values |= _initial_values(model, [*keep.values(), *outputs], values)
    changed: dict[tuple[str, int], dict[str, Any]] = {}
    types = _container_types(model)
    for stage in _stages(model, [*watched, *outputs], keep):
        if stage.nodes:
            chunks = {
                name: [value, *(own[name] for own in changed.values() if name in own)]
                for name, value in values.items()
            }
            session = _stage_session(model, stage, chunks, factory, types)
            values |= _run_once(stage, session, values)
            for key, own in changed.items():
                if own.keys().isdisjoint(stage.inputs):
                    continue
                found = _run_once(stage, session, {**values, **own})
                for output in outputs:
                    if output in found:
                        yield *key, output, values[output], found[output]
                own |= {n: v for n, v in found.items() if n not in stage.freed}
        for name in watched:
            others = change(name, values) if name in stage.outputs else ()
            for index, other in enumerate(others):
                changed[name, index] = {name: other}
                if name in outputs:
                    yield name, index, name, values[name], other
        for freed in stage.freed:
            for held in (values, *changed.values()):
                held.pop(freed, None)


def _run_once(stage: _Stage, session: Session, values: dict[str, Array]) -> dict[str, Array]:
    feed = {name: values[name] for name in stage.inputs}
    found = run_session(session, stage.outputs, feed, _PIECE)
    return dict(zip(stage.outputs, found, strict=True))


def _joined(stages: Sequence[_Stage]) -> _Stage:
    """The stages as one, all that each gives included."""
    outputs = {name for stage in stages for name in stage.outputs}
    return _Stage(
        nodes=[node for stage in stages for node in stage.nodes],
        inputs=sorted({name for stage in stages for name in stage.inputs} - outputs),
        outputs=sorted(outputs),
        freed=[name for stage in stages for name in stage.freed],
        weight_bytes=sum(stage.weight_bytes for stage in stages),
    )


def _initial_values(
    model: ir.Model, names: Iterable[str], fed: Mapping[str, Any]
) -> Iterator[tuple[str, Array]]:
    """The initializers among ``names``: no node makes them."""
    for name in names:
        value = model.graph.initializers.get(name)
        if name not in fed and value is not None and value.const_value is not None:
            yield name, value.const_value.numpy()


def _container_types(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """Types of the values that are sequences or optionals: their arrays do not tell."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    inside = (n for f in model.functions.values() for n in ir.traversal.RecursiveGraphIterator(f))
    is_plain = all(isinstance(v.type, ir.TensorType | None) for v in model.graph.inputs)
    if is_plain and not any(_MAKES_CONTAINER.search(n.op_type) for n in (*nodes, *inside)):
        return {}
    return {
        name: found
        for name, found in value_types(model).items()
        if found.WhichOneof("value") in ("sequence_type", "optional_type")
    }


def _nbytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(_nbytes(part) for part in value)
    return int(getattr(value, "nbytes", 0))


def initializer_bytes(model: ir.Model, name: str) -> int:
    """Size of an initializer."""
    value = model.graph.initializers.get(name)
    tensor = None if value is None else value.const_value
    return 0 if tensor is None else tensor.nbytes


def _stage_session(
    model: ir.Model,
    stage: _Stage,
    values: dict[str, Chunks],
    factory: SessionFactory,
    types: Mapping[str, onnx.TypeProto],
) -> Session:
    fed = []
    for name in stage.inputs:
        if name in types:
            fed.append(onnx.ValueInfoProto(name=name, type=types[name]))
        else:
            arrays = [np.asarray(chunk) for chunk in values[name]]
            dtype = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
            fed.append(helper.make_tensor_value_info(name, dtype, _told_shape(arrays)))
    return _session(model, stage.nodes, fed, stage.outputs, factory)


def _told_shape(arrays: Sequence[Array]) -> tuple[int, ...] | None:
    """Of what may be a shape or a part of one: ONNX Runtime counts the axes of a Resize by it."""
    shape = arrays[0].shape
    is_part_of_shape = arrays[0].dtype.kind == "i" and len(shape) <= 1
    return shape if is_part_of_shape and all(a.shape == shape for a in arrays) else None


def _read_names(nodes: Sequence[ir.Node]) -> Iterator[str]:
    """Names the nodes read, those that their bodies capture from outside included."""
    for node in _with_bodies(nodes):
        for value in node.inputs:
            if value is not None and value.name:
                yield value.name


def _with_bodies(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    for node in nodes:
        yield node
        for attribute in node.attributes.values():
            if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
                yield from _with_bodies(list(attribute.as_graph()))
            elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
                for graph in attribute.as_graphs():
                    yield from _with_bodies(list(graph))


def _stages(model: ir.Model, watched: Sequence[str], keep: Mapping[str, str]) -> list[_Stage]:
    wanted = set(watched)
    groups: list[list[ir.Node]] = [[]]
    ordered: list[str | None] = []
    for node in model.graph:
        groups[-1].append(node)
        made = [o.name for o in node.outputs if o.name in wanted]
        ordered += made
        groups.extend([] for _ in made)
    # What comes after the last watched value is not needed.
    groups.pop()
    initializers = set(model.graph.initializers)
    produced_by = [{o.name for n in g for o in n.outputs} for g in groups]
    all_read = [set(_read_names(g)) for g in groups]
    read_by = [names - initializers for names in all_read]
    kept_by = [{keep[name]} if name is not None and name in keep else set() for name in ordered]
    stages = []
    for index, group in enumerate(groups):
        later = set().union(*read_by[index + 1 :], ordered[index + 1 :], *kept_by[index + 1 :])
        outputs = produced_by[index] & (later | wanted | kept_by[index])
        alive_before = set().union(*produced_by[:index], {i.name for i in model.graph.inputs})
        inputs = read_by[index] & alive_before
        freed = (alive_before | produced_by[index]) - later
        stages.append(
            _Stage(
                nodes=group,
                inputs=sorted(n for n in inputs if n),
                outputs=sorted(n for n in outputs if n),
                freed=sorted(n for n in freed if n),
                weight_bytes=sum(
                    initializer_bytes(model, name) for name in all_read[index] & initializers
                ),
            )
        )
    return stages


def _session(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    factory: SessionFactory,
) -> Session:
    fed = {i.name for i in inputs}
    names = dict.fromkeys(n for n in _read_names(nodes) if n not in fed)
    initializers = []
    for name in names:
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            initializers.append((name, value.const_value))
    graph = onnx.GraphProto(name="piece")
    graph.node.extend(ir.serde.serialize_node(n) for n in nodes)
    graph.input.extend(inputs)
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs)
    proto = helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=[helper.make_opsetid(d, v) for d, v in model.opset_imports.items()],
    )
    needless = {DOMAIN} if getattr(factory, "has_kernels", False) else set()
    proto.functions.extend(_functions(model, nodes, needless))
    content = bytes_with_initializers(proto, initializers)
    forget_pages(model)
    return factory(content)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Written:
    proto: onnx.FunctionProto
    calls: frozenset[ir.OperatorIdentifier]


_written: weakref.WeakKeyDictionary[ir.Function, _Written] = weakref.WeakKeyDictionary()
"""Functions as they were written before: many pieces carry the same, and none changes while a model
is run in pieces."""


def _functions(
    model: ir.Model, nodes: Sequence[ir.Node], needless: Collection[str]
) -> Iterator[onnx.FunctionProto]:
    """The model's functions that the nodes call, and those called by these.

    Those of ``needless`` domains are left out, and what only they call.
    """
    called: set[ir.OperatorIdentifier] = set()
    waiting = {node.op_identifier() for node in _with_bodies(nodes)}
    while waiting:
        found = {k for k in waiting if k in model.functions and k[0] not in needless}
        called |= found
        waiting = set().union(*(_function(model.functions[k]).calls for k in found)) - called
    return (_function(f).proto for key, f in model.functions.items() if key in called)


def _function(function: ir.Function) -> _Written:
    if function not in _written:
        _written[function] = _Written(
            proto=ir.serde.serialize_function(function),
            calls=frozenset(node.op_identifier() for node in _with_bodies(function)),
        )
    return _written[function]
