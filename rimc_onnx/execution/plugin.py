# SPDX-License-Identifier: Apache-2.0
"""What an application asks a package of a plugin provider: where its library is, and its name.

Packages of ONNX Runtime's plugin providers have these three functions; neither needs ONNX Runtime.
"""

from __future__ import annotations

from rimc_onnx.runtime import library_path
from rimc_onnx.runtime.provider import PROVIDER_NAME

__all__ = ["get_ep_name", "get_ep_names", "get_library_path"]


def get_library_path() -> str:
    """Path of the library for ``onnxruntime.register_execution_provider_library``.

    Raises:
        NativeLibraryError: it was not built or not installed.
    """
    return str(library_path())


def get_ep_name() -> str:
    """Name of the execution provider in the library."""
    return PROVIDER_NAME


def get_ep_names() -> list[str]:
    """Names of all execution providers in the library: one."""
    return [PROVIDER_NAME]
