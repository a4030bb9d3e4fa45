# SPDX-License-Identifier: Apache-2.0
"""Trained weights put into a copy of their file, every other byte as it was.

A tensor's bytes have the same length after training, so they are replaced where they lie; the
protobuf is walked, never written anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from rimc_onnx.errors import ModelError
from rimc_onnx.execution.wire_format import fields
from rimc_onnx.io.model_files import files_of
from rimc_onnx.io.outputs import Outputs, check_output

__all__ = ["write_back"]

Array = npt.NDArray[Any]

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 2, 4, 5
_ATTRIBUTE_TENSOR = 5
_TENSOR_NAME, _TENSOR_FLOATS, _TENSOR_RAW, _TENSOR_DOUBLES = 8, 4, 9, 10


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the values of a tensor lie in the file."""

    start: int
    stop: int


def write_back(
    model: str | Path,
    output: str | Path,
    weights: Mapping[str, Array],
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> list[str]:
    """Write ``output``: the file ``model`` with other weights. Gives the names that changed.

    ``weights`` are arrays by the names of initializers, or of outputs of Constant nodes, with
    their shapes and types. Graph, names and metadata stay byte for byte; where nothing changed, so
    does the file. ``metadata`` are entries to add or to replace. Weights in external files go to
    ``<output>.<their file>``.

    Raises:
        ModelError: the model has no such tensor, or one of another shape or type, or one whose
            values lie in the file number by number.
        OutputError: the output exists and ``force`` is False.
    """
    source, target = Path(model), Path(output)
    check_output(target, force=force, reads=files_of(source))
    proto = onnx.load(source, load_external_data=False)
    tensors = _tensors(proto)
    data = bytearray(source.read_bytes())
    places = _places(data)
    changed: list[str] = []
    external: dict[str, list[tuple[int, bytes]]] = {}
    for name, array in weights.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelError(f"{source}: has no initializer '{name}' to write back.")
        new = _bytes_of(source, tensor, array)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
            with (source.parent / info.location).open("rb") as file:
                file.seek(info.offset or 0)
                is_same = file.read(len(new)) == new
            external.setdefault(info.location, [])
            if not is_same:
                external[info.location].append((info.offset or 0, new))
                changed.append(name)
            continue
        place = places.get(name)
        if place is None or place.stop - place.start != len(new):
            if np.array_equal(numpy_helper.to_array(tensor), array):
                continue
            raise ModelError(
                f"{source}: the values of initializer '{name}' are not stored as plain bytes. "
                "Load and save the model with onnx, which stores them so."
            )
        if data[place.start : place.stop] != new:
            data[place.start : place.stop] = new
            changed.append(name)
    _write(source, target, _with_metadata(bytes(data), metadata or {}), external, force=force)
    return changed


def _with_metadata(data: bytes, entries: Mapping[str, str]) -> bytes:
    """Entries at the end of a model's bytes: repeated fields of two messages in a row are joined.

    A model that has one of them is written anew, as an entry must not be there twice.
    """
    if not entries:
        return data
    model = onnx.ModelProto.FromString(data)
    if any(entry.key in entries for entry in model.metadata_props):
        kept = [(e.key, e.value) for e in model.metadata_props if e.key not in entries]
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {**dict(kept), **entries})
        return model.SerializeToString()
    more = onnx.ModelProto()
    onnx.helper.set_model_props(more, dict(entries))
    return data + more.SerializeToString()


def _tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found[node.output[0]] = attribute.t
    return found


def _bytes_of(source: Path, tensor: onnx.TensorProto, array: Array) -> bytes:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if list(tensor.dims) != list(array.shape) or array.dtype != dtype:
        raise ModelError(
            f"{source}: initializer '{tensor.name}' is {dtype} {list(tensor.dims)}, and can't be "
            f"given {array.dtype} {list(array.shape)}."
        )
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def _write(
    source: Path,
    target: Path,
    data: bytes,
    external: Mapping[str, list[tuple[int, bytes]]],
    *,
    force: bool,
) -> None:
    """The model and, where it has any, its external files under names of their own."""
    used = onnx.load_from_string(data) if external else None
    with Outputs(force=force) as out:
        folder = out.folder(target)
        if used is None:
            (folder / target.name).write_bytes(data)
            return
        for tensor in onnx.external_data_helper._get_all_tensors(used):
            if onnx.external_data_helper.uses_external_data(tensor):
                for entry in tensor.external_data:
                    if entry.key == "location":
                        external.setdefault(entry.value, [])  # type: ignore[attr-defined]
                        entry.value = _renamed(target, entry.value)
        for location, patches in external.items():
            copy = folder / _renamed(target, location)
            shutil.copyfile(source.parent / location, copy)
            with copy.open("r+b") as file:
                for offset, new in patches:
                    file.seek(offset)
                    file.write(new)
        (folder / target.name).write_bytes(used.SerializeToString())


def _renamed(target: Path, location: str) -> str:
    return f"{target.name}.{Path(location).name}"


def _places(data: bytearray) -> dict[str, _Place]:
    """Where initializers and Constant nodes of the main graph have their values."""
    found: dict[str, _Place] = {}
    for number, _, start, stop in fields(data, 0, len(data)):
        if number != _MODEL_GRAPH:
            continue
        for part, _, first, last in fields(data, start, stop):
            if part == _GRAPH_INITIALIZER:
                name, place = _tensor_place(data, first, last)
                if place is not None:
                    found[name] = place
            elif part == _GRAPH_NODE:
                found |= _constant_place(data, first, last)
    return found


def _tensor_place(data: bytearray, start: int, stop: int) -> tuple[str, _Place | None]:
    name, place = "", None
    for number, _, first, last in fields(data, start, stop):
        if number == _TENSOR_NAME:
            name = data[first:last].decode()
        elif number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES):
            place = _Place(start=first, stop=last)
    return name, place


def _constant_place(data: bytearray, start: int, stop: int) -> dict[str, _Place]:
    output, op_type, place = "", b"", None
    for number, _, first, last in fields(data, start, stop):
        if number == _NODE_OUTPUT:
            output = data[first:last].decode()
        elif number == _NODE_OP_TYPE:
            op_type = bytes(data[first:last])
        elif number == _NODE_ATTRIBUTE:
            for part, _, begin, end in fields(data, first, last):
                if part == _ATTRIBUTE_TENSOR:
                    place = _tensor_place(data, begin, end)[1]
    return {output: place} if op_type == b"Constant" and place is not None else {}
