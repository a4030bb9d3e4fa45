# SPDX-License-Identifier: Apache-2.0
"""The native operator library and sessions that use it.

One shared library holds the kernels of every ``ai.rimc`` operator for any ONNX Runtime from 1.17
on. Registered with a session's options, its kernels take the place of the function bodies that a
converted file carries; without it, the same file runs on those bodies.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rimc_onnx.errors import RimcError
from rimc_onnx.ops import schema

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "NativeLibraryError",
    "build_info",
    "kernels_created",
    "library_path",
    "make_session",
    "register",
]

_FILE_NAME: Final = {"win32": "rimc_ops.dll", "darwin": "librimc_ops.dylib"}.get(
    sys.platform, "librimc_ops.so"
)
_FATAL: Final = 4
"""Severity of ONNX Runtime's log; errors are raised, too."""
_REINSTALL: Final = (
    "Install rimc-onnx with pip (it builds the library), or make the session with native=False."
)


class NativeLibraryError(RimcError):
    """The native operator library is missing, can't be loaded or isn't used."""


def library_path() -> Path:
    """Where the native operator library is.

    Raises:
        NativeLibraryError: it was not built or not installed.
    """
    path = Path(str(importlib.resources.files(__name__).joinpath(_FILE_NAME)))
    if not path.is_file():
        raise NativeLibraryError(f"the operator library {path} does not exist. {_REINSTALL}")
    return path


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryError(f"can't load {path}: {error}. {_REINSTALL}") from error
    library.RimcBuildInfo.restype = ctypes.c_char_p
    library.RimcKernelsCreated.restype = ctypes.c_int64
    library.RimcProgramCells.restype = ctypes.c_char_p
    library.RimcLastMapping.restype = ctypes.c_char_p
    return library


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Make sessions with these options run the native kernels.

    Raises:
        NativeLibraryError: the library is missing, or ONNX Runtime refuses it (it is older than
            1.17, ``RIMC_ISA`` names an ISA that the machine lacks, or it is registered already).
    """
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # the bindings have no common base class for statuses
        raise NativeLibraryError(f"ONNX Runtime can't register {path}: {error}") from error


def kernels_created() -> int:
    """How many native kernels this thread has made so far, one per node of every session.

    The difference across the making of a session tells whether it runs kernels or function bodies.
    """
    return int(_library().RimcKernelsCreated())


def make_session(
    model: str | Path | bytes,
    *,
    native: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    num_threads: int | None = None,
    options: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a converted model (a file, or its bytes).

    Args:
        model: path of the file, or the serialised model.
        native: run the native kernels; ``False`` runs the function bodies in the file.
        providers: execution providers of ONNX Runtime, first choice first.
        num_threads: threads inside an operator; ``None`` leaves it to ONNX Runtime.
        options: session configuration entries of ONNX Runtime.
        quiet: print nothing on stderr beside what is raised.

    Raises:
        NativeLibraryError: ``native`` and the library can't be used, or the model has ``ai.rimc``
            nodes and none of them got a native kernel.
    """
    import onnxruntime  # here, since `rimc-onnx --help` must not load it

    session_options = onnxruntime.SessionOptions()
    if quiet:
        session_options.log_severity_level = _FATAL
    if num_threads is not None:
        session_options.intra_op_num_threads = num_threads
    for key, value in (options or {}).items():
        session_options.add_session_config_entry(key, value)
    source: Any = model if isinstance(model, bytes) else str(model)
    if not native:
        return onnxruntime.InferenceSession(source, session_options, providers=list(providers))

    register(session_options)
    before = kernels_created()
    session = onnxruntime.InferenceSession(source, session_options, providers=list(providers))
    if kernels_created() == before and schema.has_rimc_node(
        model if isinstance(model, bytes) else Path(model)
    ):
        name = "the model" if isinstance(model, bytes) else str(model)
        raise NativeLibraryError(
            f"{name} has {schema.DOMAIN} nodes but runs none on the native library. "
            "Make the session with native=False to run the function bodies."
        )
    return session


def build_info() -> dict[str, Any]:
    """Facts for a bug report: library path and version, ISA of the kernels, ONNX Runtime version.

    ``isa`` is empty where the environment variable ``RIMC_ISA`` names one that the machine lacks.
    """
    import onnxruntime  # here, since `rimc-onnx --help` must not load it

    return {
        "library": str(library_path()),
        **json.loads(_library().RimcBuildInfo().decode()),
        "onnxruntime": onnxruntime.__version__,
    }
