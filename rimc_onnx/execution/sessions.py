# SPDX-License-Identifier: Apache-2.0
"""What the package needs of a session, and sessions of ONNX Runtime with errors of one line."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy.typing as npt

from rimc_onnx import runtime
from rimc_onnx.errors import ModelError, RimcError, one_line
from rimc_onnx.execution.parallel import session_threads

__all__ = [
    "Session",
    "SessionFactory",
    "digital_session",
    "native_session",
    "open_session",
    "return_free_memory",
    "run_session",
]

Array = npt.NDArray[Any]


class Session(Protocol):
    """What the package needs of ``onnxruntime.InferenceSession``."""

    def run(self, output_names: Sequence[str] | None, feeds: dict[str, Array]) -> list[Array]:
        """Outputs in the order of their names."""


SessionFactory = Callable[[bytes], Session]
"""Makes a session of a model's bytes. One that says ``has_kernels`` (an attribute that is true) has
them for every ``ai.rimc`` node and gets no functions of that domain, which take time to read."""


_PIECE_OPTIONS = {"session.intra_op.allow_spinning": "0"}
"""Pieces of a model are many and run once: the threads of one must not spin beside the next."""


def open_session(
    model: Path | bytes, *, native: bool, options: Mapping[str, str] | None = None
) -> Any:
    """A session of a file or its bytes, RRAM nodes on the crossbar library if ``native``.

    Raises:
        ModelError: ONNX Runtime can't load it.
    """
    try:
        return runtime.make_session(
            model, native=native, options=options, num_threads=session_threads(), quiet=True
        )
    except ModelError:
        raise
    except Exception as error:
        name = model if isinstance(model, Path) else "a piece of the model"
        raise ModelError(
            f"{name}: ONNX Runtime can't load it ({one_line(error)[:300]})."
        ) from error


def run_session(
    session: Session, outputs: Sequence[str] | None, feeds: dict[str, Any], name: object
) -> list[Any]:
    """``session.run``; ``name`` is the model's in the error.

    Raises:
        ModelError: it fails, for whatever reason of its own.
    """
    try:
        return session.run(outputs, feeds)
    except (RimcError, MemoryError):
        raise
    except Exception as error:  # the bindings, and a user's device, have no common base class
        raise ModelError(
            f"{name}: fails in a run ({one_line(error)[:300]}). Do the samples fit the model?"
        ) from error


def return_free_memory() -> None:
    """Give the system back what closed sessions leave free in the heap, where glibc keeps it.

    Weights of a few megabytes lie in the heap, whose free pages glibc would keep for the process.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class _Simulator:
    has_kernels = True

    def __call__(self, content: bytes) -> Any:
        return open_session(content, native=True, options=_PIECE_OPTIONS)


native_session: Final = _Simulator()
"""A piece of a model on the simulator: RRAM nodes run on the crossbar library."""


def digital_session(content: bytes) -> Any:
    """A piece of a model in stock ONNX Runtime."""
    return open_session(content, native=False, options=_PIECE_OPTIONS)
