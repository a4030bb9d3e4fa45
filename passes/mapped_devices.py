# SPDX-License-Identifier: Apache-2.0
"""Scaling and clipping of every node of a model, where a conversion is asked to choose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.crossbar.mapping_choice import choose_mapping
from rimc_onnx.passes.rram_unit import RramUnit

__all__ = ["with_mapping"]

_HELD_FRAC = 0.0125
"""Share of the cells that a calibration with the default SRAM keeps for what the mapping gets
wrong: 5 % of the weights, three quarters of it sparse cells of 1.5 bytes, half of these. The others
hold errors that only a calibration sees."""


def with_mapping(
    config: ConvertConfig,
    units: Sequence[RramUnit],
    input_power: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> ConvertConfig:
    """``config`` with a device for each of ``units`` whose mapping it leaves open.

    ``input_power`` has E[x_i^2] of the word lines of a node, group by group, by its name; nodes
    that are not in it are chosen for by their weights alone.
    """
    if not config.is_mapping_open:
        return config
    chosen = {
        unit.name: choose_mapping(
            unit.weight.float32(),
            config=config,
            column_axis=unit.geometry.column_axis,
            held_frac=0.0 if config.uncalibrated else _HELD_FRAC,
            num_nodes=len(units),
            input_power=(input_power or {}).get(unit.name),
        )
        for unit in units
        if unit.name not in config.node_devices
    }
    return replace(config, node_devices={**config.node_devices, **chosen})
