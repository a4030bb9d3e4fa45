# SPDX-License-Identifier: Apache-2.0
"""Model files: read with clear errors, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnxscript import ir

from rimc_onnx.errors import ModelError, OutputError, RimcError, UsageError

__all__ = [
    "blame_model",
    "check_output",
    "load_model",
    "model_bytes",
    "output_folder",
    "output_of",
    "save_model",
    "sha256_of",
]

EXTERNAL_DATA_BYTES = 1 << 30
"""Weights beyond this go to a second file: a protobuf holds at most 2 GiB."""

_MOST_PROTOBUF_BYTES = (1 << 31) - (1 << 20)

_CAME_EXTERNAL = "rimc_onnx.came_external"
"""Key of ``ir.Model.meta``, in memory only: the file had weights in other files."""


def load_model(path: Path) -> ir.Model:
    """Read an ONNX file; weights in external files stay on disk until they are used.

    Raises:
        ModelError: no such file, not an ONNX model, truncated, or external data is missing.
    """
    if path.is_dir():
        raise ModelError(f"{path}: is a folder. Give the path of an .onnx file in it.")
    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give the path of an .onnx file.")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the file is empty, not an ONNX model. Export the model again.")
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{path}: not an ONNX model, or truncated ({_one_line(error)}). "
            "Export or copy the file again."
        ) from error
    if not proto.HasField("graph") or not proto.graph.node or not proto.opset_import:
        raise ModelError(
            f"{path}: holds no ONNX graph with nodes and an opset. Is it another kind of file?"
        )
    _check_text(proto, path)
    _check_external_data(proto, path)
    try:
        # The protobuf stays inline; tensors in other files are mapped, not read.
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise ModelError(
            f"{path}: the graph can't be read ({_one_line(error)}). "
            "Check the file with onnx.checker."
        ) from error
    _check_nodes(model, path)
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    tensors = [v.const_value for v in model.graph.initializers.values()]
    model.meta[_CAME_EXTERNAL] = any(isinstance(t, ir.ExternalTensor) for t in tensors)
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
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as fault:  # what is raised differs from version to version
            raise ModelError(
                f"{path}: not a valid ONNX model ({_one_line(fault)}; here it fails with "
                f"{_one_line(_root_cause(error))}). Export it again."
            ) from error
        raise


def _check_nodes(model: ir.Model, path: Path) -> None:
    """Refuse what reading a graph lets pass: inputs that nobody makes, attributes of no type."""
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


def _check_text(message: Message, path: Path) -> None:
    """Refuse names that are no text: protobuf reads them as bytes, and can't write them again."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                _check_text(part, path)
        elif field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise ModelError(
                        f"{path}: the {field.name} {text[:80]!r} is not UTF-8: the file is "
                        "damaged. Export or copy it again."
                    )


def _check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        try:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
        except ValueError as error:
            raise _bad_place(tensor, path) from error
        if (info.offset or 0) < 0 or (info.length or 0) < 0:
            raise _bad_place(tensor, path)
        data = path.parent / info.location
        if not data.is_file():
            raise ModelError(
                f"{path}: initializer {tensor.name!r} lies in {info.location!r}, which is missing "
                f"beside the model. Copy the data file there too."
            )
        end = (info.offset or 0) + (info.length or 0)
        if end > data.stat().st_size:
            raise ModelError(
                f"{path}: initializer {tensor.name!r} ends at byte {end} of {info.location!r}, "
                f"which has {data.stat().st_size}. Copy the data file again."
            )


def _bad_place(tensor: onnx.TensorProto, path: Path) -> ModelError:
    entries = ", ".join(f"{e.key}={e.value}" for e in tensor.external_data)
    return ModelError(
        f"{path}: initializer {tensor.name!r} lies at no place of a file ({entries[:200]}). "
        "Export the model again."
    )


def save_model(
    model: ir.Model,
    path: Path,
    *,
    force: bool,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Write ``path`` (and ``path.data`` for large models), whole or not at all.

    Lazy tensors are evaluated one at a time while they are written. A model that came with
    external data leaves with external data.

    Raises:
        OutputError: the file exists and ``force`` is False, or the disk refuses.
        RimcError: a lazy tensor can't be made.
    """
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value]
    external = sum(t.nbytes for t in tensors) > external_data_bytes or bool(
        model.meta.get(_CAME_EXTERNAL)
    )
    with output_folder(path, force=force) as folder:
        data = f"{path.name}.data" if external else None
        try:
            ir.save(model, folder / path.name, external_data=data)
        except Exception as error:
            # What a lazy tensor found wrong, without what it passed through.
            cause = _root_cause(error)
            if isinstance(cause, RimcError):
                raise cause from None
            raise


def output_of(source: Path, output: str | Path | None, suffix: str) -> Path:
    """The file to write: ``output``, or ``source`` with another suffix.

    Raises:
        UsageError: that is ``source`` itself.
    """
    target = Path(output) if output else source.with_suffix(suffix)
    if target.resolve() == source.resolve():
        raise UsageError(f"{target}: is the model itself. Give another file with -o.")
    return target


def check_output(path: Path, *, force: bool, reads: Sequence[Path] = ()) -> None:
    """Refuse early what :func:`save_model` would refuse after the work is done.

    Raises:
        OutputError: ``path`` can't be a file, or is one and ``force`` is False.
        UsageError: it is one of ``reads``, files that the job reads; ``force`` does not help.
    """
    if any(path.resolve() == read.resolve() for read in reads):
        raise UsageError(f"{path}: is read by this job and can't be written by it. Name another.")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder. Give a file name with -o.")
    if path.exists() and not path.is_file():  # renaming over a device would take it away
        raise OutputError(f"{path}: is a device or pipe. Give the name of a file.")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already. Give `force` to replace it, or another name.")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}. Make it first.")


@contextlib.contextmanager
def output_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder beside ``path``; what the body leaves in it is renamed into place at the end."""
    check_output(path, force=force)
    # Named before it is made: an interrupt right after that has to find it, too.
    folder = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
        # The model file last: it must never name a data file that is not there yet.
        for made in sorted(folder.iterdir(), key=lambda p: p.name == path.name):
            os.replace(made, path.parent / made.name)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OutputError(f"{path}: can't be written ({reason}). Nothing was changed.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
