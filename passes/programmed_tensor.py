# SPDX-License-Identifier: Apache-2.0
"""The weight that a crossbar answers with, as a tensor that is computed when it is read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.crossbar import CODED_BITS, ArrayLayout, apply_ir_drop, on_grid
from rimc_onnx.device import CellProgrammer, DeviceConfig, program
from rimc_onnx.errors import NodeMappingError
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
    wire_ohm: float | None,
    num_tiles: int,
    tile_rows: int | None,
    dac_bits: int,
    programmer: CellProgrammer | None = None,
) -> ir.LazyTensor:
    """What the arrays of ``unit`` hold ``time_s`` seconds after programming; never kept.

    With ``wire_ohm``, seen through the wires of ``num_tiles`` row tiles (those of the node, which
    need not be the unit's) with at most ``tile_rows`` bit lines each. ``programmer`` programs the
    cells instead of numpy, with the same bits. Behind a DAC of 1 .. 8 ``dac_bits`` cells lie on a
    grid.
    """
    is_coded = 0 < dac_bits <= CODED_BITS
    columns = tile_rows or unit.geometry.columns
    layout = ArrayLayout(geometry=unit.geometry, num_tiles=num_tiles, tile_columns=columns)
    return lazy_tensor(
        lambda: _realised(unit, device, seed, time_s, wire_ohm, layout, is_coded, programmer),
        name=name,
        dtype=ir.DataType.FLOAT,
        shape=unit.weight.shape,
    )


def _realised(
    unit: RramUnit,
    device: DeviceConfig,
    seed: int,
    time_s: float | None,
    wire_ohm: float | None,
    layout: ArrayLayout,
    is_coded: bool,
    programmer: CellProgrammer | None,
) -> npt.NDArray[np.float32]:
    programmed = program(
        unit.weight.float32(),
        node=unit.name,
        seed=seed,
        config=device,
        column_axis=unit.geometry.column_axis,
        time_s=time_s,
        programmer=programmer,
        keep_conductances=wire_ohm is not None,
    )
    w = programmed.w_realised
    if wire_ohm is not None:
        w = apply_ir_drop(
            programmed, node=unit.name, g_max_us=device.g_max_us, wire_ohm=wire_ohm, layout=layout
        )
    w = on_grid(w, programmed.w_max, unit.geometry.column_axis) if is_coded else w
    if not np.isfinite(w).all():
        raise NodeMappingError(
            f"node '{unit.name}': its programmed weight would hold NaN or infinite values. Leave "
            "the node digital, or take another device model."
        )
    return w
