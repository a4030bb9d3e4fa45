# SPDX-License-Identifier: Apache-2.0
"""What reading a graph lets pass, and what no reader can hold: refused before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.message import Message
from onnx import numpy_helper

from rimc_onnx.errors import ModelError
from rimc_onnx.passes.constants import find_constant

__all__ = ["check_external_data", "check_graph", "check_tensors", "check_text", "make_dense"]

_MOST_DENSE_BYTES = 1 << 30
"""Of a sparse tensor, once its zeros are written."""
_MOST_MADE_BYTES = 1 << 31
"""Of a value that a node makes of a shape that the file holds."""
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
_MOST_NODES = 200_000
"""Of a model whose functions are inlined, as ONNX Runtime does when it loads it."""


def check_graph(model: ir.Model, path: Path) -> None:
    """Refuse inputs that nobody makes, attributes of no type, and what explodes in memory.

    Raises:
        ModelError: the first fault, with its node.
    """
    _check_calls(model, path)
    for output in model.graph.outputs:
        if output.producer() is None and not (output.is_graph_input() or output.is_initializer()):
            raise ModelError(
                f"{path}: nothing makes the output '{output.name}'. Export the model again."
            )
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            where = f"{path}: node '{node.name}' ({node.op_type})"
            for value in node.inputs:
                if value is None or value.producer() is not None:
                    continue
                if not (value.is_graph_input() or value.is_initializer()):
                    raise ModelError(
                        f"{where}: nothing makes its input '{value.name}'. Export the model again."
                    )
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.UNDEFINED:
                    raise ModelError(
                        f"{where}: attribute '{attribute.name}' has no type. Export it again."
                    )
                is_bytes = isinstance(attribute.value, bytes) and node.op_type != "Constant"
                if is_bytes and node.domain == "":
                    raise ModelError(
                        f"{where}: attribute '{attribute.name}' is no text ("
                        f"{attribute.value[:20]!r}). Export it again."
                    )
            size = _made_bytes(node)
            if size > _MOST_MADE_BYTES:
                raise ModelError(
                    f"{where}: makes a value of {size} bytes, more than {_MOST_MADE_BYTES}, of a "
                    "shape in the file. Is the file meant? Export the model again."
                )


def _made_bytes(node: ir.Node) -> int:
    """Bytes of what a node makes of a constant shape; 0 where it is none of those that do."""
    if node.domain != "" or not node.inputs or node.op_type not in {"ConstantOfShape", "Expand"}:
        return 0
    shape = find_constant(node.inputs[-1])
    if shape is None or shape.dtype != ir.DataType.INT64:
        return 0
    return 4 * int(np.prod([max(int(d), 0) for d in shape.numpy().reshape(-1)], dtype=object))


def _check_calls(model: ir.Model, path: Path) -> None:
    """Refuse functions that call each other more often than anyone can inline."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(key: ir.OperatorIdentifier, callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        if key in callers or len(callers) > len(model.functions):
            raise ModelError(f"{path}: function '{key[1]}' calls itself. Export the model again.")
        if key not in sizes:
            nodes = ir.traversal.RecursiveGraphIterator(model.functions[key])
            sizes[key] = sum(inlined(node, (*callers, key)) for node in nodes)
        return sizes[key]

    def inlined(node: ir.Node, callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        key = node.op_identifier()
        return size(key, callers) if key in model.functions else 1

    if not model.functions:
        return
    try:
        nodes = ir.traversal.RecursiveGraphIterator(model.graph)
        total = sum(inlined(node, ()) for node in nodes)
    except RecursionError as error:
        raise ModelError(
            f"{path}: its functions are nested too deeply. Export it again."
        ) from error
    if total > _MOST_NODES:
        raise ModelError(
            f"{path}: has {total} nodes once its functions are inlined, more than {_MOST_NODES}. "
            "Is the file meant? Export the model again."
        )


def check_text(message: Message, path: Path) -> None:
    """Refuse names that are no text: protobuf reads them as bytes, and can't write them again."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                check_text(part, path)
        elif field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise ModelError(
                        f"{path}: the {field.name} {text[:80]!r} is not UTF-8: the file is "
                        "damaged. Export or copy it again."
                    )


def check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse weights that lie at no place of a file that is there.

    Raises:
        ModelError: the first such initializer.
    """
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        try:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
        except ValueError as error:
            raise _bad_place(tensor, path) from error
        if (info.offset or 0) < 0 or (info.length or 0) < 0 or "\0" in info.location:
            raise _bad_place(tensor, path)
        data = path.parent / info.location
        try:
            size = data.stat().st_size if data.is_file() else None
        except OSError:  # a name too long, links in a circle
            size = None
        if size is None:
            raise ModelError(
                f"{path}: initializer {tensor.name!r} lies in {info.location!r}, which is missing "
                f"beside the model. Copy the data file there too."
            )
        end = (info.offset or 0) + (info.length or 0)
        if end > size:
            raise ModelError(
                f"{path}: initializer {tensor.name!r} ends at byte {end} of {info.location!r}, "
                f"which has {size}. Copy the data file again."
            )


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse weights whose shape is not that of the numbers they hold.

    Raises:
        ModelError: the first such initializer or constant.
    """
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        where = f"{path}: initializer {tensor.name!r}"
        shape = list(tensor.dims)
        if min(shape, default=0) < 0:
            raise ModelError(f"{where} has the shape {shape}. Export the model again.")
        count = int(np.prod(shape, dtype=object))
        try:
            bits = int(ir.DataType(tensor.data_type).bitwidth)
        except (ValueError, TypeError):  # no type, text, or one that is newer than this reader
            bits = 0
        if bits == 0:
            held, wanted, what = len(tensor.string_data), count, "strings"
            if tensor.data_type == onnx.TensorProto.UNDEFINED:
                raise ModelError(f"{where} has no data type. Export the model again.")
            if tensor.data_type != onnx.TensorProto.STRING:
                continue
        elif onnx.external_data_helper.uses_external_data(tensor):
            length = onnx.external_data_helper.ExternalDataInfo(tensor).length
            held, wanted, what = length or 0, -(-count * bits // 8), "bytes"
            if not length:  # then it's the rest of the file, or what the shape needs
                continue
        elif tensor.HasField("raw_data"):
            held, wanted, what = len(tensor.raw_data), -(-count * bits // 8), "bytes"
        else:
            field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
            is_complex = tensor.data_type in _COMPLEX
            wanted = -(-count * bits // 8) if bits < 8 else count * (2 if is_complex else 1)
            held, what = len(getattr(tensor, field)), "numbers"
        if held != wanted:
            raise ModelError(
                f"{where} of shape {shape} holds {held} {what}, not {wanted}: the file is damaged. "
                "Export or copy it again."
            )


def _bad_place(tensor: onnx.TensorProto, path: Path) -> ModelError:
    entries = ", ".join(f"{e.key}={e.value}" for e in tensor.external_data)
    return ModelError(
        f"{path}: initializer {tensor.name!r} lies at no place of a file ({entries[:200]}). "
        "Export the model again."
    )


def make_dense(proto: onnx.ModelProto, path: Path) -> None:
    """Write the zeros of sparse initializers and constants, in place: they are read as dense.

    Raises:
        ModelError: a sparse tensor contradicts itself, or would have more than a GiB.
    """
    for graph in _graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name, path))
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    name = node.output[0] if node.output else ""
                    value = _dense(attribute.sparse_tensor, name, path)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", value))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for body in attribute.graphs:
                yield from _graphs(body)


def _dense(sparse: onnx.SparseTensorProto, name: str, path: Path) -> onnx.TensorProto:
    where = f"{path}: sparse initializer {name!r}"
    shape = tuple(sparse.dims)
    try:
        values = numpy_helper.to_array(sparse.values)
        indices = numpy_helper.to_array(sparse.indices)
        size = int(np.prod(shape, dtype=object)) * values.dtype.itemsize
        if min(shape, default=0) < 0 or size > _MOST_DENSE_BYTES:
            raise ModelError(
                f"{where} of shape {list(shape)} has {size} bytes, more than {_MOST_DENSE_BYTES}."
                " Store it as a dense one."
            )
        dense: npt.NDArray[Any] = np.zeros(shape, values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(
            f"{where} contradicts itself ({error}). Export the model again."
        ) from error
    return numpy_helper.from_array(dense, name)
