# SPDX-License-Identifier: Apache-2.0
"""Weights in files: read where they are needed, given back when they were."""

from __future__ import annotations

import mmap

import onnx_ir as ir

__all__ = ["forget_pages", "remember_external"]

_EXTERNAL = "rimc_onnx.external"
"""Key of ``ir.Model.meta``, in memory only: the tensors that lie in files."""


def remember_external(model: ir.Model) -> int:
    """Note the tensors of ``model`` that lie in files, and give their number.

    Passes replace initializers by tensors that are computed from these when they are read.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    model.meta[_EXTERNAL] = [t for t in tensors if isinstance(t, ir.ExternalTensor)]
    return len(model.meta[_EXTERNAL])


def forget_pages(model: ir.Model) -> None:
    """Give back the memory of weights that were read from files.

    They stay mapped, and arrays on them valid: whoever reads on gets them from the file again.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):  # a system that takes pages back on its own
        return
    for tensor in model.meta.get(_EXTERNAL, ()):
        if isinstance(tensor.raw, mmap.mmap):
            tensor.raw.madvise(mmap.MADV_DONTNEED)
