# SPDX-License-Identifier: Apache-2.0
"""Model files: read with clear errors, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from rimc_onnx import passes
from rimc_onnx.errors import ModelError, RimcError, is_of_memory, one_line
from rimc_onnx.execution.external_data import remember_external
from rimc_onnx.io.light_model import keep_in_file, read_proto, write_inline
from rimc_onnx.io.model_checks import (
    check_external_data,
    check_graph,
    check_tensors,
    check_text,
    make_dense,
)
from rimc_onnx.io.outputs import Outputs

__all__ = [
    "blame_model",
    "data_files",
    "files_of",
    "load_model",
    "model_bytes",
    "put_model",
    "save_model",
    "sha256_of",
]

EXTERNAL_DATA_BYTES = 1 << 30
"""Weights beyond this go to a second file: a protobuf holds at most 2 GiB."""

_MOST_PROTOBUF_BYTES = (1 << 31) - (1 << 20)

_DATA = "weights.data"
"""Name of a file of weights while it is written."""
_DIGITS = 16
_MOST_NAME_BYTES = 255
"""Of a file, in the file systems of today."""

_CAME_EXTERNAL = "rimc_onnx.came_external"
"""Key of ``ir.Model.meta``, in memory only: the file had weights in other files."""


def load_model(path: Path) -> ir.Model:
    """Read an ONNX file; weights in external files stay on disk until they are used.

    Raises:
        ModelError: no such file, not an ONNX model, truncated, or external data is missing.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path}: is a folder. Give the path of an .onnx file in it.")
        if not path.is_file():
            what = "is no regular file" if path.exists() else "no such file"
            raise ModelError(f"{path}: {what}. Give the path of an .onnx file.")
        if path.stat().st_size == 0:
            raise ModelError(
                f"{path}: the file is empty, not an ONNX model. Export the model again."
            )
        proto = read_proto(path)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{path}: not an ONNX model, or truncated ({one_line(error)}). "
            "Export or copy the file again."
        ) from error
    except OSError as error:
        raise ModelError(
            f"{path}: can't be read ({error.strerror or error}). Give the path of an .onnx file."
        ) from error
    if not proto.HasField("graph") or not proto.graph.node or not proto.opset_import:
        raise ModelError(
            f"{path}: holds no ONNX graph with nodes and an opset. Is it another kind of file?"
        )
    check_text(proto, path)
    check_external_data(proto, path)
    check_tensors(proto, path)
    make_dense(proto, path)
    _check_types(proto, path)
    try:
        # Tensors in files are mapped, not read.
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise ModelError(
            f"{path}: the graph can't be read ({one_line(error)}). "
            "Check the file with onnx.checker."
        ) from error
    check_graph(model, path)
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    kept = keep_in_file(model, path)
    model.meta[_CAME_EXTERNAL] = remember_external(model) > kept
    return model


def model_bytes(path: Path) -> bytes:
    """A file that :func:`load_model` reads, as one protobuf with the weights of other files in it.

    Raises:
        ModelError: the weights are more than a protobuf holds.
    """
    proto = onnx.load(path, load_external_data=False)
    tensors = list(onnx.external_data_helper._get_all_tensors(proto))
    external = [t for t in tensors if onnx.external_data_helper.uses_external_data(t)]
    if not external:
        return path.read_bytes()
    infos = [onnx.external_data_helper.ExternalDataInfo(t) for t in external]
    if path.stat().st_size + sum(i.length or 0 for i in infos) >= _MOST_PROTOBUF_BYTES:
        raise ModelError(
            f"{path}: its weights are more than the 2 GiB that one protobuf holds, and a device "
            "gets a model as one."
        )
    onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
    content: bytes = proto.SerializeToString()
    return content


@contextlib.contextmanager
def blame_model(path: Path) -> Iterator[None]:
    """Where the body fails on a model that ONNX calls invalid, say that instead.

    The checker is not asked first: it refuses models that ONNX Runtime runs.

    Raises:
        ModelError: ``path`` is not a valid model.
    """
    try:
        yield
    except RimcError:
        raise
    except Exception as error:
        # The checker needs memory, too, and may end the process without. A factorization that
        # fails is no fault of a file.
        if is_of_memory(error) or isinstance(error, np.linalg.LinAlgError):
            raise
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as fault:  # what is raised differs from version to version
            raise ModelError(
                f"{path}: not a valid ONNX model ({one_line(fault)}; here it fails with "
                f"{one_line(_root_cause(error))}). Export it again."
            ) from error
        raise


def save_model(
    model: ir.Model,
    path: Path,
    *,
    force: bool,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Write ``path`` alone (:func:`put_model`).

    Raises:
        OutputError: the file exists and ``force`` is False, or the disk refuses.
        RimcError: a lazy tensor can't be made.
    """
    with Outputs(force=force) as out:
        put_model(model, path, out, external_data_bytes=external_data_bytes)


def put_model(
    model: ir.Model,
    path: Path,
    out: Outputs,
    *,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Make a model one of a job's files, with a file of weights beside it where they are large.

    Lazy tensors are evaluated one at a time while they are written. A model that came with
    external data leaves with external data. That file's name has the first digits of its sha256
    (``net.rimc.onnx.0123456789abcdef.data``): no graph is ever beside the weights of another.

    Raises:
        ModelError: a converted model holds what its operators do not take, NaN or infinity too.
        OutputError: see :class:`Outputs`.
        RimcError: a lazy tensor can't be made.
    """
    if passes.is_converted(model):
        passes.check_rimc_model(model)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value]
    external = sum(t.nbytes for t in tensors) > external_data_bytes or bool(
        model.meta.get(_CAME_EXTERNAL)
    )
    folder = out.folder(path)
    try:
        if external:
            ir.save(model, folder / path.name, external_data=_DATA)
        else:
            write_inline(model, folder / path.name)
    except Exception as error:
        # What a lazy tensor found wrong, without what it passed through.
        cause = _root_cause(error)
        if isinstance(cause, RimcError):
            raise cause from None
        raise
    new = _name_data(folder, path) if (folder / _DATA).is_file() else ""
    for data in _own_data(path):
        if data.name != new:
            out.remove_after(data)


def _name_data(folder: Path, path: Path) -> str:
    """Give the file of weights its name, in the graph too."""
    suffix = f".{_digest([folder / _DATA])[:_DIGITS]}.data"
    stem = path.name.encode()[: _MOST_NAME_BYTES - len(suffix)].decode(errors="ignore")
    name = f"{stem}{suffix}"
    proto = onnx.load(folder / path.name, load_external_data=False)
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    (folder / path.name).write_bytes(proto.SerializeToString())
    (folder / _DATA).rename(folder / name)
    return name


def _own_data(path: Path) -> list[Path]:
    """Files of weights that the model in ``path`` alone can have: what goes when it is replaced."""
    own = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{{_DIGITS}}}\.data")
    return [p for p in files_of(path)[1:] if own.fullmatch(p.name) and p.parent == path.parent]


def data_files(path: Path) -> list[Path]:
    """Files with weights of the model in ``path``."""
    proto = read_proto(path)
    tensors = onnx.external_data_helper._get_all_tensors(proto)
    names = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    return [path.parent / name for name in sorted(names - {path.name})]


def files_of(path: Path) -> list[Path]:
    """A model's file and those of its weights: what a job that reads it must not replace."""
    try:
        return [path, *data_files(path)]
    except (OSError, DecodeError, ValueError):
        return [path]  # not there, or no model


def sha256_of(path: Path) -> str:
    """Hex digest of a model's file and of those that its weights lie in."""
    return _digest([part for part in files_of(path) if part.is_file()])


def _digest(paths: Sequence[Path]) -> str:
    """Of the bytes of files, one after the other, read in pieces."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _check_types(proto: onnx.ModelProto, path: Path) -> None:
    """No maps, which exporters of scikit-learn write for probabilities."""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        kind = value.type
        while kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        if kind.HasField("map_type"):
            raise ModelError(
                f"{path}: value {value.name!r} holds maps, which no crossbar reads or writes. "
                "Export the model with arrays in their place (skl2onnx: options={'zipmap': False})."
            )


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
