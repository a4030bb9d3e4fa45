# SPDX-License-Identifier: Apache-2.0
"""What surrounds the arrays of a node, read off its RRAM operator for people and reports."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnxscript import ir

from rimc_onnx.crossbar.config import ReadNoiseLaw

__all__ = ["node_ranges", "read_periphery"]

_INTS = ("tile_rows", "dac_bits", "adc_bits", "dac_serial_bits")
_FLOATS = ("iv_sinh", "input_shrink", "read_noise", "wire_ohm")


def read_periphery(attributes: Mapping[str, ir.Attr]) -> dict[str, float | bool | str | None]:
    """Converters, reads and wires by name; ``None`` is ideal.

    In the file 0 is an ideal part, a shrink of 1 none. ``read_noise_law`` says what ``read_noise``
    is: a fraction of G_max (``absolute``), of the device's conductance (``relative``), or the
    largest of a table over the conductance (``curve``). ``iv_polynomial`` and ``adc_errors`` are
    True where the file has such numbers.
    """
    found: dict[str, float | bool | str | None] = {
        name: attributes[name].as_int() or None for name in _INTS
    }
    for name in _FLOATS:
        ideal = 1.0 if name == "input_shrink" else 0.0
        value = attributes[name].as_float()
        found[name] = None if value == ideal else _as_typed(value)
    found["read_noise_law"] = None if found["read_noise"] is None else _law(attributes)
    terms = [*attributes["iv_square"].as_floats(), *attributes["iv_cube"].as_floats()]
    found["iv_polynomial"] = True if any(terms) else None
    gain, offset = (list(attributes[name].as_floats()) for name in ("adc_gain", "adc_offset"))
    found["adc_errors"] = None if gain == [1.0] and offset == [0.0] else True
    return found


def node_ranges(
    attributes: Mapping[str, ir.Attr],
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """What goes into the word lines, lowest and highest, and the ADCs' smallest and largest range.

    The first in units of x: without a DAC the range of a bent current, ``None`` where nothing has a
    range. The second in units of y, ``None`` for an ideal ADC; a node has one range or one for
    every bit line.
    """
    word_lines = adcs = None
    bends = attributes["iv_sinh"].as_float() != 0.0 or any(
        (*attributes["iv_square"].as_floats(), *attributes["iv_cube"].as_floats())
    )
    if attributes["dac_bits"].as_int() or bends:
        top = _as_typed(attributes["dac_range"].as_float())
        word_lines = (-top if attributes["dac_signed"].as_int() else 0.0, top)
    if attributes["adc_bits"].as_int():
        ranges = attributes["adc_range"].as_floats()
        adcs = (_as_typed(min(ranges)), _as_typed(max(ranges)))
    return word_lines, adcs


def _law(attributes: Mapping[str, ir.Attr]) -> str:
    if len(attributes["read_noise_curve"].as_floats()) > 1:
        return "curve"
    relative = bool(attributes["read_noise_relative"].as_int())
    return (ReadNoiseLaw.RELATIVE if relative else ReadNoiseLaw.ABSOLUTE).value


def _as_typed(value: float) -> float:
    """A file holds the nearest float32 of what was typed."""
    return float(str(np.float32(value)))
