# SPDX-License-Identifier: Apache-2.0
"""Large models in one file, read and written without holding all their weights.

A parsed protobuf holds every weight in memory as long as any part of it is used. So the bytes of
large initializers are left out before it is parsed, as if they were external data of the very
file, and mapped where they are used. Written, they are put back where that place is named, one
after the other.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from rimc_onnx.execution.external_data import forget_pages
from rimc_onnx.execution.wire_format import Field, fields, header

__all__ = ["keep_in_file", "read_proto", "write_inline"]

_LARGE_FILE_BYTES = 64 << 20
"""Smaller files are read whole."""
_LARGE_TENSOR_BYTES = 1 << 16

# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_RAW, _TENSOR_EXTERNAL = 9, 13
_IS_EXTERNAL = bytes([14 << 3, onnx.TensorProto.EXTERNAL])
"""The field ``data_location``, behind those of the place."""
_FORGET_BYTES = 64 << 20
"""So much is written from mapped files before their memory is given back."""
_Data = mmap.mmap | bytes


def read_proto(path: Path) -> onnx.ModelProto:
    """The model in a file; external data is not read, and neither are large initializers.

    Those say that they lie in the file itself: :func:`keep_in_file` makes tensors of them.

    Raises:
        DecodeError, ValueError: not an ONNX model.
        OSError: the file can't be read.
    """
    if path.stat().st_size > _LARGE_FILE_BYTES:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            light = _light_model(data, path.name)
        if light is not None:
            return onnx.load_from_string(light)
    return onnx.load(path, load_external_data=False)


def keep_in_file(model: ir.Model, path: Path) -> int:
    """Map the initializers that :func:`read_proto` left in ``path``, and give their number.

    Their file is open as long as they are used: it may be replaced by another, not written into.
    """
    kept = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == path.name:
            # Without a folder: what is refused of data files, a link, is none of a model's.
            value.const_value = ir.ExternalTensor(
                str(path.resolve()),
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
            kept += 1
    return kept


def _light_model(data: _Data, location: str) -> bytes | None:
    """``None`` where there is nothing to leave out, and of what is no protobuf."""

    def graph(field: Field) -> bytes | None:
        return _changed(data, field.start, field.stop, _GRAPH_INITIALIZER, tensor)

    def tensor(field: Field) -> bytes | None:
        return _light_tensor(data, field, location)

    try:
        return _changed(data, 0, len(data), _MODEL_GRAPH, graph)
    except ValueError:
        return None


def _changed(
    data: _Data, start: int, stop: int, number: int, change: Callable[[Field], bytes | None]
) -> bytes | None:
    """A message whose fields of a number are others; ``None`` where ``change`` gives no other."""
    parts, is_changed = [], False
    for part in _split(data, start, stop, number):
        if isinstance(part, bytes):
            parts.append(part)
        elif (new := change(part)) is None:
            parts.append(data[part.first : part.stop])
        else:
            parts += [header(number, len(new)), new]
            is_changed = True
    return b"".join(parts) if is_changed else None


def _light_tensor(data: _Data, field: Field, location: str) -> bytes | None:
    """The tensor as if its raw data were external; ``None`` where it is small, or has none."""
    inside = list(fields(data, field.start, field.stop))
    raw = [f for f in inside if f.number == _TENSOR_RAW]
    is_external = any(f.number == _TENSOR_EXTERNAL for f in inside)
    if is_external or len(raw) != 1 or raw[0].stop - raw[0].start < _LARGE_TENSOR_BYTES:
        return None
    (place,) = raw
    left = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (
        ("location", location),
        ("offset", place.start),
        ("length", place.stop - place.start),
    ):
        left.external_data.add(key=key, value=str(value))
    before, after = data[field.start : place.first], data[place.stop : field.stop]
    return before + after + left.SerializeToString()


def write_inline(model: ir.Model, path: Path) -> None:
    """Write a model with all weights in one file; lazy ones are made one at a time.

    The bytes are those of :func:`onnx_ir.save`, but for weights that a file had number by number.

    Raises:
        OSError: the disk refuses.
        RimcError: a lazy tensor can't be made.
    """
    large = [
        (value, value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None and _is_large(value.const_value)
    ]
    try:
        for index, (value, tensor) in enumerate(large):
            value.const_value = _stub(tensor, str(index), value.name or "")
        light = ir.to_proto(model).SerializeToString()
    finally:
        for value, tensor in large:
            value.const_value = tensor
    waiting = iter([tensor for _, tensor in large])
    read_bytes = 0
    with path.open("wb") as file:
        for part in _whole(light):
            if isinstance(part, bytes):
                file.write(part)
                continue
            content = next(waiting).tobytes()
            if len(content) != part:
                raise AssertionError(f"a weight of {part} bytes has {len(content)}")
            file.write(content)
            read_bytes += part
            if read_bytes > _FORGET_BYTES:
                forget_pages(model)
                read_bytes = 0
    forget_pages(model)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= _LARGE_TENSOR_BYTES and tensor.dtype != ir.DataType.STRING


def _stub(tensor: ir.TensorProtocol, location: str, name: str) -> ir.ExternalTensor:
    """Stands for ``tensor`` while the graph is written."""
    return ir.ExternalTensor(
        location,
        0,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _whole(light: bytes) -> Iterator[bytes | int]:
    """The bytes of a model whose stubs are large weights again, each given as its size."""
    for model_part in _split(light, 0, len(light), _MODEL_GRAPH):
        if isinstance(model_part, bytes):
            yield model_part
            continue
        parts: list[bytes | int] = []
        for part in _split(light, model_part.start, model_part.stop, _GRAPH_INITIALIZER):
            parts += [part] if isinstance(part, bytes) else _whole_tensor(light, part)
        yield header(_MODEL_GRAPH, _size(parts))
        yield from parts


def _whole_tensor(light: bytes, field: Field) -> list[bytes | int]:
    inside = list(fields(light, field.start, field.stop))
    place = [f for f in inside if f.number == _TENSOR_EXTERNAL]
    if not place:
        return [light[field.first : field.stop]]
    tensor = onnx.TensorProto.FromString(light[field.start : field.stop])
    length = onnx.external_data_helper.ExternalDataInfo(tensor).length or 0
    # Fields in the order of their numbers, as protobuf writes them.
    raw = next(f.first for f in inside if f.number > _TENSOR_RAW)
    rest = place[-1].stop + len(_IS_EXTERNAL)
    assert light[place[-1].stop : rest] == _IS_EXTERNAL
    parts: list[bytes | int] = [
        light[field.start : raw] + header(_TENSOR_RAW, length),
        length,
        light[raw : place[0].first] + light[rest : field.stop],
    ]
    return [header(_GRAPH_INITIALIZER, _size(parts)), *parts]


def _size(parts: Iterable[bytes | int]) -> int:
    return sum(part if isinstance(part, int) else len(part) for part in parts)


def _split(data: _Data, start: int, stop: int, number: int) -> Iterator[bytes | Field]:
    """A message as fields of a number, and the bytes between them."""
    at = start
    for field in fields(data, start, stop):
        if field.number == number:
            yield data[at : field.first]
            yield field
            at = field.stop
    yield data[at:stop]
