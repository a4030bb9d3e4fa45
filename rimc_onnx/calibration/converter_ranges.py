# SPDX-License-Identifier: Apache-2.0
"""Full scale of every DAC and ADC, from what the teacher's nodes carry on real samples.

A percentile, not the maximum: one outlier must not cost all other values a bit. Where word lines
bend their inputs or take them bit by bit, the ADC's range is that of the sums that it then reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.moments import rows_of
from rimc_onnx.calibration.walk import teacher_run
from rimc_onnx.crossbar import ConvertConfig, NodePeriphery, NodeRanges
from rimc_onnx.crossbar.word_lines import Product, word_line_reads
from rimc_onnx.device import largest_weight
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import SessionFactory

if TYPE_CHECKING:
    import onnx_ir as ir

    from rimc_onnx.passes import RramUnit

__all__ = ["measure_ranges"]

Array = npt.NDArray[Any]


def measure_ranges(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Sequence[Feed],
    factory: SessionFactory,
    *,
    config: ConvertConfig,
    input_ranges: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, NodeRanges]:
    """Ranges of every unit, by node name; the ADC's is that of one tile's partial sums.

    ``input_ranges`` are known ones, which inputs beyond saturate at.
    """
    ranges: dict[str, NodeRanges] = {}
    for unit, x, _ in teacher_run(teacher, units, feeds, factory):
        ranges[unit.name] = _unit_ranges(unit, x, config, (input_ranges or {}).get(unit.name))
        progress(len(ranges), len(units))
    return ranges


def _unit_ranges(
    unit: RramUnit, chunks: Sequence[Array], config: ConvertConfig, known: float | None
) -> NodeRanges:
    filled = [x if known is None else np.clip(x, -known, known) for x in chunks if x.size]
    percentile = config.periphery.range_percentile
    dac = max((_percentile(x, percentile) for x in filled), default=0.0)
    lowest = min((float(np.min(x, where=np.isfinite(x), initial=0.0)) for x in filled), default=0.0)
    # A node that saw nothing but zeros gets any range: its outputs are zeros.
    dac_range = float(np.float32(dac if known is None else known)) or 1.0
    lines = _lines(config, dac_range, lowest < 0)
    weight, geometry = unit.weight.float32(), unit.geometry
    w_max = largest_weight(weight, config.device_of(unit.name), geometry.column_axis)
    adc = 0.0
    for x in filled:
        reads = word_line_reads(x, weight, periphery=lines, w_max=w_max, geometry=geometry)
        for products in reads:
            adc = max(adc, _largest_sum(unit, products, percentile))
    return NodeRanges(
        dac_range=dac_range,
        dac_signed=lowest < 0,
        adc_range=(float(np.float32(adc)) or 1.0,),
    )


def _lines(config: ConvertConfig, dac_range: float, signed: bool) -> NodePeriphery:
    """Word lines that bend or split their inputs; a DAC alone changes no range."""
    periphery = config.reads
    is_serial = periphery.dac_serial_bits is not None
    square, cube = config.iv_curves
    return NodePeriphery(
        dac_bits=periphery.dac_bits or 0 if is_serial else 0,
        dac_range=dac_range,
        dac_signed=int(signed),
        dac_serial_bits=periphery.dac_serial_bits or 0,
        iv_sinh=periphery.iv_sinh or 0.0,
        input_shrink=periphery.input_shrink,
        iv_square=square,
        iv_cube=cube,
    )


def _largest_sum(unit: RramUnit, products: Sequence[Product], percentile: float) -> float:
    """Percentile of the partial sums of every tile over all (inputs, cells), the largest one."""
    geometry = unit.geometry
    cells = [geometry.matrices(weight) for _, weight in products]
    tile = geometry.tile_depth(unit.num_tiles)
    largest = 0.0
    for rows in zip(*(rows_of(geometry, x) for x, _ in products), strict=True):
        by_group = [np.moveaxis(one, 1, 0) for (one,) in rows]
        for start in range(0, geometry.depth, tile):
            part = slice(start, start + tile)
            with np.errstate(invalid="ignore"):  # rows with an infinite value are left out below
                partial = by_group[0][:, :, part] @ cells[0][:, part]
                for inputs, more in zip(by_group[1:], cells[1:], strict=True):
                    partial = partial + inputs[:, :, part] @ more[:, part]
            if partial.size:
                largest = max(largest, _percentile(partial, percentile))
    return largest


def _percentile(values: Array, percentile: float) -> float:
    """Of the magnitudes of the values that are finite; 0 where none is."""
    sizes = np.abs(values, dtype=np.float32)
    sizes = sizes[np.isfinite(sizes)]
    return float(np.percentile(sizes, percentile, method="higher")) if sizes.size else 0.0
