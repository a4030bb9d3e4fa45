# SPDX-License-Identifier: Apache-2.0
"""The realised weight of a crossbar as a tensor that is computed when it is read."""

from __future__ import annotations

from onnxscript import ir

from rimc_onnx.device import DeviceConfig, Realise, program
from rimc_onnx.passes._graph import lazy_tensor
from rimc_onnx.passes.rram_unit import RramUnit

__all__ = ["programmed_tensor"]


def programmed_tensor(
    unit: RramUnit,
    *,
    name: str,
    device: DeviceConfig,
    seed: int,
    time_s: float | None,
    realise: Realise | None = None,
) -> ir.LazyTensor:
    """What the arrays of ``unit`` hold ``time_s`` seconds after programming; never kept.

    ``realise`` programs the cells instead of numpy, with the same bits.
    """
    weight, key, axis = unit.weight, unit.name, unit.column_axis
    return lazy_tensor(
        lambda: (
            program(
                weight.float32(),
                node=key,
                seed=seed,
                config=device,
                column_axis=axis,
                time_s=time_s,
                realise=realise,
            ).w_realised
        ),
        name=name,
        dtype=ir.DataType.FLOAT,
        shape=weight.shape,
    )
