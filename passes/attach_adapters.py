# SPDX-License-Identifier: Apache-2.0
"""Fitted adapters put into a converted model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from rimc_onnx.errors import ModelError, suggest
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.passes._bodies import write_bodies
from rimc_onnx.passes.rram_branch import rram_branches

__all__ = ["AttachAdaptersPass"]


class AttachAdaptersPass(ir.passes.InPlacePass):
    """Give the named nodes their adapters; the crossbars' weights are not touched.

    1. Node in ``adapters``: its adapter's initializers hold the new values, of whatever rank.
    2. Node that is not in ``adapters``: left alone.

    ``modified`` is False where every value was there before.

    Raises:
        ModelError: a name in ``adapters`` is no node of the model.
    """

    def __init__(self, adapters: Mapping[str, QuantizedAdapter]) -> None:
        self._adapters = dict(adapters)

    def __str__(self) -> str:
        return f"AttachAdaptersPass({len(self._adapters)} adapters)"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach in place."""
        branches = {branch.node: branch for branch in rram_branches(model)}
        for name in self._adapters:
            if name not in branches:
                raise ModelError(f"no RRAM node is named '{name}'. {suggest(name, branches)}")
        modified = False
        for name, adapter in self._adapters.items():
            dora = branches[name].dora
            for value, array in zip(dora.inputs[2:], adapter.tensors().values(), strict=True):
                if value is None or value.const_value is None:
                    raise ModelError(f"node '{dora.name}' ({dora.op_type}) has no initializers")
                if np.array_equal(value.const_value.numpy(), array):
                    continue
                tensor = ir.tensor(array, name=value.name)
                value.const_value, value.shape = tensor, ir.Shape(array.shape)
                value.dtype = tensor.dtype
                modified = True
        if modified:
            write_bodies(model)
        return ir.passes.PassResult(model, modified)
