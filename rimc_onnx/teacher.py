# SPDX-License-Identifier: Apache-2.0
"""The teacher of a converted model: recorded by path and digest, found again."""

from __future__ import annotations

from pathlib import Path

from onnxscript import ir

from rimc_onnx.errors import ModelError
from rimc_onnx.files import sha256_of

__all__ = ["TEACHER_PATH", "TEACHER_SHA256", "teacher_of"]

TEACHER_SHA256 = "rimc.teacher_sha256"
TEACHER_PATH = "rimc.teacher_path"
"""Metadata of a converted model; the path is relative to its folder."""


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
        if not path.is_file():
            raise ModelError(f"{source}: its teacher {path} is not there. Give it with --teacher.")
    else:
        raise ModelError(f"{source}: records no teacher. Give it with --teacher.")
    want = student.metadata_props.get(TEACHER_SHA256)
    if not force and want is not None and path.is_file() and sha256_of(path) != want:
        raise ModelError(
            f"{path}: is not the file that {source.name} was converted from (its sha256 differs). "
            "Give that one with --teacher, or --force to use this one."
        )
    return path
