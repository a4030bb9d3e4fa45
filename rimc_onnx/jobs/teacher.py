# SPDX-License-Identifier: Apache-2.0
"""What a converted model records of where it came from: its teacher and the version."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from rimc_onnx.errors import ModelError
from rimc_onnx.io.model_files import sha256_of
from rimc_onnx.jobs.reports import NodeReport
from rimc_onnx.ops.schema import RANK_KEY
from rimc_onnx.passes import is_converted

__all__ = [
    "NODES",
    "TEACHER_PATH",
    "TEACHER_SHA256",
    "VERSION",
    "check_converted",
    "digital_nodes",
    "nodes_text",
    "package_version",
    "recorded_path",
    "teacher_of",
]

TEACHER_SHA256 = "rimc.teacher_sha256"
TEACHER_PATH = "rimc.teacher_path"
VERSION = "rimc.version"
NODES = "rimc.nodes"
"""Metadata of a converted model; the path is relative to its folder."""
_OF_DIGITAL_NODES = ("name", "op_type", "mapped", "reason")


def check_converted(graph: ir.Model, source: Path) -> None:
    """Refuse a model that is not converted, or by a later version than this.

    Raises:
        ModelError: it is either.
    """
    if not is_converted(graph):
        raise ModelError(f"{source}: not a converted model. Run rimc-onnx convert first.")
    _refuse_newer(graph, source)
    for name, is_right in _METADATA.items():
        text = graph.metadata_props.get(name)
        if text is not None and not is_right(text):
            raise ModelError(
                f"{source}: its metadata {name} is {text!r}, which no conversion writes. Convert "
                "the model again."
            )


def digital_nodes(graph: ir.Model) -> list[NodeReport]:
    """Nodes that stayed digital, as the conversion recorded them."""
    return [NodeReport(**n) for n in json.loads(graph.metadata_props.get(NODES, "[]"))]


def nodes_text(nodes: Sequence[NodeReport]) -> str:
    """What the file records of the digital ones of ``nodes``."""
    rows = [{name: getattr(n, name) for name in _OF_DIGITAL_NODES} for n in nodes if not n.mapped]
    return json.dumps(rows, sort_keys=True)


def _is_list_of_nodes(text: str) -> bool:
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        return False
    keys = set(_OF_DIGITAL_NODES)
    return isinstance(nodes, list) and all(isinstance(n, dict) and n.keys() == keys for n in nodes)


def _is_rank(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0


def _refuse_newer(graph: ir.Model, source: Path) -> None:
    """A later version may mean something else by the same names."""
    written = graph.metadata_props.get(VERSION, "")
    own = package_version()
    if _release(written) > _release(own):
        raise ModelError(
            f"{source}: converted by rimc-onnx {written[:40]}, which is newer than this one "
            f"({own}). Update rimc-onnx, or convert the model again."
        )


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 2, 1) of 0.2.1rc1."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def package_version() -> str:
    """Of this package, as it is installed."""
    return importlib.metadata.version("rimc-onnx")


def recorded_path(teacher: Path, target: Path) -> str:
    """What a model that is written to ``target`` records of where its teacher is.

    The file takes the place of a link there, so the folder of the link is the one that counts.
    """
    return os.path.relpath(teacher.resolve(), target.parent.resolve())


def teacher_of(student: ir.Model, source: Path, given: str | Path | None, *, force: bool) -> Path:
    """The file that ``source`` was converted from, or ``given``, its sha256 checked.

    Args:
        student: the converted model in ``source``.
        source: its file; the recorded path is relative to it.
        given: what a user names in place of the recorded file.
        force: accept a file with another sha256.

    Raises:
        ModelError: no teacher is recorded, it is not there, or it is another one.
    """
    recorded = student.metadata_props.get(TEACHER_PATH)
    if given is not None:
        path = Path(given)
    elif recorded is not None:
        path = source.parent / recorded
        if not os.path.isfile(path):
            raise ModelError(f"{source}: its teacher {path} is not there. Give it with `teacher`.")
    else:
        raise ModelError(f"{source}: records no teacher. Give it with `teacher`.")
    want = student.metadata_props.get(TEACHER_SHA256)
    if not force and want is not None and os.path.isfile(path) and sha256_of(path) != want:
        raise ModelError(
            f"{path}: is not the file that {source.name} was converted from (its sha256 differs). "
            "Give that one with `teacher`, or `force` to use this one."
        )
    return path


_METADATA: dict[str, Callable[[str], bool]] = {
    NODES: _is_list_of_nodes,
    RANK_KEY: _is_rank,
    TEACHER_PATH: lambda text: "\0" not in text and len(text) < 4096,
}
"""What can be read of the metadata that is read."""
