# SPDX-License-Identifier: Apache-2.0
"""Arrays in .npz and .npy files: plain ones only, whole, and of a size that was meant."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import one_line

__all__ = ["MOST_BYTES", "ArraysError", "read_npy", "read_npz"]

Array = npt.NDArray[Any]

MOST_BYTES = 8 << 30
"""Of the arrays of one .npz, or of one reader: they are held in memory. Arrays in a folder of .npy
files are mapped, and may be larger."""
_MOST_HEADER_BYTES = 10_000
"""Of an array, as numpy has it."""


class ArraysError(Exception):
    """Why a file has no arrays, to follow its name."""


def read_npz(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, Array]:
    """The arrays of an .npz whose names are ``wanted``; no pickle is read.

    Raises:
        ArraysError: no regular file, no .npz, an array that is truncated or no plain one, or more
            than ``MOST_BYTES``.
    """
    if not os.path.isfile(path):
        raise ArraysError(_no_file(path))
    if not zipfile.is_zipfile(path):  # np.load would take an .npy, and anything else for a pickle
        raise ArraysError("not an .npz, or truncated")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                i.filename.removesuffix(".npy"): i
                for i in archive.infolist()
                if i.filename.endswith(".npy") and wanted(i.filename.removesuffix(".npy"))
            }
            total = sum(info.file_size for info in members.values())
            if total > MOST_BYTES:
                raise ArraysError(
                    f"its arrays have {total} bytes, more than {MOST_BYTES} are not read from an "
                    ".npz. Save them as .npy files in a folder, which are mapped"
                )
            return {n: _read_member(archive, info, n) for n, info in members.items()}
    except ArraysError:
        raise
    # A damaged file makes zipfile and numpy raise whatever its bytes lead them to.
    except Exception as error:
        raise ArraysError(f"not an .npz of plain arrays ({one_line(error)})") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    with archive.open(info) as file:
        shape, dtype, fortran = _header(file)
        # Before numpy makes room for what the header promises.
        size = dtype.itemsize * int(np.prod([int(d) for d in shape], dtype=object))
        if dtype.hasobject or min(shape, default=0) < 0 or size != info.file_size - file.tell():
            raise ArraysError(f"array {name!r} is truncated or no plain one")
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            if not (got := file.readinto(rest)):  # type: ignore[attr-defined]
                raise ArraysError(f"array {name!r} is truncated")
            rest = rest[got:]
    array: Array = np.ndarray(shape, dtype, content, order="F" if fortran else "C")
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    shape, fortran, dtype = read[version](file, max_header_size=_MOST_HEADER_BYTES)
    return shape, dtype, fortran


def read_npy(path: Path) -> Array:
    """The array of an .npy, mapped into memory.

    Raises:
        ArraysError: no regular file, or no plain array.
    """
    if not os.path.isfile(path):
        raise ArraysError(_no_file(path))
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # as above
        raise ArraysError(f"not a plain .npy array ({one_line(error)})") from error
    if not isinstance(array, np.ndarray):
        raise ArraysError("an archive, not an .npy array")
    return array


def _no_file(path: Path) -> str:
    return "is no regular file" if os.path.exists(path) else "no such file"
