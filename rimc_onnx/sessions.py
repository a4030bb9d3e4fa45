# SPDX-License-Identifier: Apache-2.0
"""Sessions of ONNX Runtime, with errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rimc_onnx import runtime
from rimc_onnx.errors import ModelError

__all__ = ["digital_session", "native_session", "open_session"]


def open_session(model: Path | bytes, *, native: bool) -> Any:
    """A session of a file or its bytes, RRAM nodes on the crossbar library if ``native``.

    Raises:
        ModelError: ONNX Runtime can't load it.
    """
    try:
        return runtime.make_session(model, native=native)
    except ModelError:
        raise
    except Exception as error:
        name = model if isinstance(model, Path) else "a piece of the model"
        raise ModelError(
            f"{name}: ONNX Runtime can't load it ({' '.join(str(error).split())[:300]})."
        ) from error


def native_session(content: bytes) -> Any:
    """The simulator: RRAM nodes run on the crossbar library."""
    return open_session(content, native=True)


def digital_session(content: bytes) -> Any:
    """Stock ONNX Runtime."""
    return open_session(content, native=False)
