# SPDX-License-Identifier: Apache-2.0
"""What surrounds the arrays of a node, as attributes of its RRAM operator."""

from __future__ import annotations

import math

import numpy as np

from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import (
    DeviceConfig,
    DriftLaw,
    Purpose,
    pair_shares,
    read_key,
    sinh,
    standard_normals,
)
from rimc_onnx.errors import NodeMappingError
from rimc_onnx.passes.rram_unit import RramUnit

__all__ = ["periphery_attributes"]


def periphery_attributes(
    unit: RramUnit, config: ConvertConfig, ranges: NodeRanges | None
) -> dict[str, object]:
    """Values of the attributes, by name; what is off has its neutral value.

    Raises:
        NodeMappingError: a converter or the word lines need a range and have none, or one that fits
            neither one nor all bit lines; or read noise follows conductances that can't be told
            from the weight.
    """
    periphery = config.reads
    if ranges is None:
        if config.needs_ranges:
            raise NodeMappingError(
                f"node '{unit.name}' ({unit.node.op_type}): its converters have no range. "
                f"Give one, or calibration data, or use ideal converters."
            )
        ranges = NodeRanges()
    adc_range = (1.0,) if periphery.adc_bits is None else ranges.adc_range
    if len(adc_range) not in {1, unit.columns}:
        raise NodeMappingError(
            f"node '{unit.name}' ({unit.node.op_type}): the ADC needs 1 range or "
            f"{unit.columns}, got {len(adc_range)}"
        )
    square, cube = config.iv_curves
    has_dac = periphery.dac_bits is not None
    bends = periphery.iv_sinh is not None or config.iv_polynomial is not None
    if periphery.adc_bits is not None:
        # The ADC keeps its full scale, in amperes, when the inputs shrink.
        shrunk = _current_frac(periphery.iv_sinh, periphery.input_shrink)
        adc_range = tuple(float(np.float32(r / shrunk)) for r in adc_range)
    return {
        "tile_rows": periphery.tile_rows or 0,
        "num_tiles": unit.num_tiles,
        "dac_bits": periphery.dac_bits or 0,
        "dac_range": ranges.dac_range if has_dac or bends else 1.0,
        "dac_signed": int(ranges.dac_signed) if has_dac else 1,
        "dac_serial_bits": _serial_bits(periphery, ranges),
        "iv_sinh": periphery.iv_sinh or 0.0,
        "input_shrink": periphery.input_shrink,
        "iv_square": square,
        "iv_cube": cube,
        "adc_bits": periphery.adc_bits or 0,
        "adc_range": adc_range,
        "adc_gain": _converter_errors(
            unit, config.seed, Purpose.ADC_GAIN, 1.0, periphery.adc_gain_error_frac
        ),
        "adc_offset": _converter_errors(
            unit, config.seed, Purpose.ADC_OFFSET, 0.0, periphery.adc_offset_error_frac
        ),
        **_read_noise(unit, config),
    }


def _current_frac(iv_sinh: float | None, shrink: float) -> float:
    """Current at the end of the shrunk input range, of that at the end of the whole one.

    Of a curve that follows the conductance, that of its straight part.
    """
    if shrink == 1.0:
        return 1.0
    return shrink if iv_sinh is None else sinh(iv_sinh * shrink) / sinh(iv_sinh)


def _serial_bits(periphery: PeripheryConfig, ranges: NodeRanges) -> int:
    if periphery.dac_bits is None or periphery.dac_serial_bits is None:
        return 0
    # A signed DAC has one magnitude bit less; all of them at once are one plane.
    return min(periphery.dac_serial_bits, periphery.dac_bits - int(ranges.dac_signed))


def _converter_errors(
    unit: RramUnit, seed: int, purpose: Purpose, middle: float, sigma_frac: float | None
) -> tuple[float, ...]:
    """A draw for every tile and bit line, bit lines of a tile together; one value if none errs."""
    if sigma_frac is None:
        return (middle,)
    z = standard_normals(
        seed=seed,
        node=unit.name,
        device=0,
        purpose=purpose,
        start=0,
        count=unit.num_tiles * unit.columns,
    )
    return tuple((middle + sigma_frac * z).astype(np.float32).tolist())


def _read_noise(unit: RramUnit, config: ConvertConfig) -> dict[str, object]:
    periphery, device = config.reads, config.device
    neutral = {"read_noise_relative": 0, "read_noise_curve": (0.0,)}
    table = config.read_noise_table()
    if table is not None:
        return neutral | {
            "read_noise": table.read_noise,
            "read_noise_curve": table.knots,
            "read_key": read_key(seed=config.seed, node=unit.name),
        }
    relative = periphery.read_noise_law is ReadNoiseLaw.RELATIVE
    if periphery.read_noise_frac is None:
        return neutral | {"read_noise": 0.0, "read_key": 0}
    if relative and not _weight_tells_conductances(device):
        raise NodeMappingError(
            f"node '{unit.name}' ({unit.node.op_type}): relative read noise needs both "
            f"conductances of a pair, and the weight tells them only with g_min_us 0, the law "
            f"{DriftLaw.GAUSSIAN_RELATIVE.value}, one pair a weight and no faults; got g_min_us "
            f"{device.g_min_us} and {device.law.value}. Use the law absolute."
        )
    # Pairs that share a weight add their variances: sum of share^2.
    shares = pair_shares(device)
    return neutral | {
        "read_noise": periphery.read_noise_frac * math.sqrt(sum(s * s for s in shares)),
        "read_noise_relative": int(relative),
        "read_key": read_key(seed=config.seed, node=unit.name),
    }


def _weight_tells_conductances(device: DeviceConfig) -> bool:
    """True where sum x^2 (G+^2 + G-^2) is sum x^2 w^2: one device of every pair is at zero."""
    return (
        device.g_min_us == 0.0
        and len(pair_shares(device)) == 1
        and device.time_law is None
        and device.programming_sigma_us is None
        and not (device.stuck_min_frac or device.stuck_max_frac)
        and (
            device.law is DriftLaw.GAUSSIAN_RELATIVE
            or (device.drift_frac == 0.0 and device.drift_mean_frac == 0.0)
        )
    )
