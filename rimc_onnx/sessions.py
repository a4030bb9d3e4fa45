# SPDX-License-Identifier: Apache-2.0
"""Sessions of ONNX Runtime, with errors of one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rimc_onnx import runtime
from rimc_onnx.errors import ModelError

__all__ = ["digital_session", "native_session", "open_session"]


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
        return runtime.make_session(model, native=native, options=options)
    except ModelError:
        raise
    except Exception as error:
        name = model if isinstance(model, Path) else "a piece of the model"
        raise ModelError(
            f"{name}: ONNX Runtime can't load it ({' '.join(str(error).split())[:300]})."
        ) from error


class _Simulator:
    has_kernels = True

    def __call__(self, content: bytes) -> Any:
        return open_session(content, native=True, options=_PIECE_OPTIONS)


native_session: Final = _Simulator()
"""A piece of a model on the simulator: RRAM nodes run on the crossbar library."""


def digital_session(content: bytes) -> Any:
    """A piece of a model in stock ONNX Runtime."""
    return open_session(content, native=False, options=_PIECE_OPTIONS)
