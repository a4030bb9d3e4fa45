# SPDX-License-Identifier: Apache-2.0
"""Programming of crossbars by the native library: the bits of the numpy code, only sooner.

The numpy code in ``rimc_onnx.device`` says what is right; a test holds the two together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rimc_onnx.device import table_file
from rimc_onnx.runtime import NativeLibraryError, _library, library_path

__all__ = ["native_programmer", "program_cells"]

Float32Array = npt.NDArray[np.float32]


Law = Mapping[str, npt.NDArray[np.float64] | float | None]


class _Job(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("size", ctypes.c_uint32),
        ("max_threads", ctypes.c_int32),
        ("w", ctypes.c_void_p),
        ("w_realised", ctypes.c_void_p),
        ("first_cell", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("w_max", ctypes.c_void_p),
        ("num_columns", ctypes.c_int64),
        ("run", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("node", ctypes.c_char_p),
        ("law", ctypes.c_char_p),
        ("law_size", ctypes.c_uint64),
    ]


def program_cells(
    w_target: Float32Array,
    *,
    w_max: Float32Array,
    run: int,
    node: str,
    seed: int,
    law: Law,
    first_cell: int = 0,
    max_threads: int | None = None,
) -> Float32Array:
    """Realised weights [cells] of the cells from ``first_cell`` on.

    Args:
        w_target: finite target weights [cells], contiguous.
        w_max: largest weight of each column, [1] or [columns].
        run: cells from one column to the next.
        node: the node's name, key of its draws.
        seed: 0..2^64-1.
        law: fields of a ``rimc_onnx.device.CellLaw``; of columns, knots [4097], a number or None.
        first_cell: index of the first cell within the node.
        max_threads: ``None`` is as many as the machine has.

    Raises:
        NativeLibraryError: the library can't be used or refuses the job.
    """
    w_target, w_max = _contiguous(w_target), _contiguous(w_max)
    file = table_file(law)
    w_realised = np.empty_like(w_target)
    job = _Job(
        size=ctypes.sizeof(_Job),
        max_threads=max_threads or 0,
        w=w_target.ctypes.data,
        w_realised=w_realised.ctypes.data,
        first_cell=first_cell,
        count=w_target.size,
        w_max=w_max.ctypes.data,
        num_columns=w_max.size,
        run=run,
        seed=seed,
        node=node.encode("utf-8"),
        law=file,
        law_size=len(file),
    )
    refusal = _library().RimcProgramCells(ctypes.byref(job))
    if refusal is not None:
        raise NativeLibraryError(refusal.decode("utf-8"))
    return w_realised


def native_programmer() -> Callable[..., Float32Array] | None:
    """:func:`program_cells`, or ``None`` where the library was not built: numpy then does it."""
    try:
        library_path()
    except NativeLibraryError:
        return None
    return program_cells


def _contiguous(array: Float32Array) -> Float32Array:
    return np.ascontiguousarray(array, dtype=np.float32)
