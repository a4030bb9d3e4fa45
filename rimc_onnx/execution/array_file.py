# SPDX-License-Identifier: Apache-2.0
"""Arrays that wait in a temporary file without a name, where memory has no room for them."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import CalibrationError
from rimc_onnx.execution.parallel import PART

__all__ = ["ArrayFile", "Place", "forget_arrays", "power"]

Array = npt.NDArray[Any]

_HELD_BYTES = 128 << 20
"""Arrays up to here, together, stay in memory."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """An array in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class ArrayFile:
    """The file is made when there is something for it. Threads may write and read at once."""

    def __init__(self) -> None:
        """Empty."""
        self._file: Any = None
        self._lock = threading.Lock()

    def write(self, array: Array) -> Place:
        """Append an array.

        Raises:
            CalibrationError: the folder for temporary files has no room.
        """
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        try:
            with self._lock:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="rimc-")  # noqa: SIM115
                offset = self._file.seek(0, os.SEEK_END)
                self._file.write(data)
        except OSError as error:
            raise CalibrationError(
                f"no room in {tempfile.gettempdir()} for values of a large model "
                f"({error.strerror}). Set TMPDIR to a folder on a larger disk."
            ) from error
        return Place(offset=offset, shape=array.shape, dtype=array.dtype)

    def read(self, place: Place) -> Array:
        """A copy of an array."""
        array = np.empty(place.shape, place.dtype)
        with self._lock:
            self._file.seek(place.offset)
            self._file.readinto(array.reshape(-1).view(np.uint8).data)
        return array

    def map(self, place: Place) -> Array:
        """An array that is read where it is used, also after :meth:`close`."""
        with self._lock:
            self._file.flush()
            return np.memmap(
                self._file, place.dtype, mode="r", offset=place.offset, shape=place.shape
            )

    def put(self, value: Any) -> Any:
        """The place of an array, written; other values (sequences, texts) as they are.

        Raises:
            CalibrationError: the folder for temporary files has no room.
        """
        return self.write(value) if _is_plain(value) else value

    def take(self, value: Any) -> Any:
        """What :meth:`put` was given."""
        return self.read(value) if isinstance(value, Place) else value

    def keep(self, value: Any, count: int) -> Any:
        """One of ``count`` values like it: an array is mapped where together they are large.

        Raises:
            CalibrationError: the folder for temporary files has no room.
        """
        if not _is_plain(value) or value.nbytes * count <= _HELD_BYTES:
            return value
        return self.map(self.write(value))

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not value.dtype.hasobject


def forget_arrays(arrays: Iterable[Any]) -> None:
    """Give back the memory of those that :meth:`ArrayFile.keep` mapped; they stay valid."""
    if not hasattr(mmap, "MADV_DONTNEED"):  # a system that takes pages back on its own
        return
    for array in arrays:
        pages = getattr(array, "_mmap", None)
        if isinstance(pages, mmap.mmap):
            pages.madvise(mmap.MADV_DONTNEED)


def power(array: Array, beside: Array | None = None) -> float:
    """Sum of squares, or of those of the differences; in float64, which holds a part at a time."""
    values = array.reshape(-1)
    others = None if beside is None else beside.reshape(-1)
    total = 0.0
    for start in range(0, values.size, PART):
        part = values[start : start + PART].astype(np.float64)
        if others is not None:
            part -= others[start : start + PART]
        total += float(np.square(part).sum())
        forget_arrays([array] if beside is None else [array, beside])
    return total
