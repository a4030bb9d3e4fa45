# SPDX-License-Identifier: Apache-2.0
"""Crossbars whose word lines and cells are whole numbers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rimc_onnx.crossbar import on_grid
from rimc_onnx.ops import schema

W_MAX = 1.0


def make(cases: ModuleType, op: str, *, on: bool = True, tile: int = 0, **extra: Any) -> Any:
    """A node behind a DAC of 8 bits; codes of its ADC of 24 bits are the sums themselves."""
    rng = np.random.default_rng(len(op) + tile)
    conv = op == schema.RRAM_CONV
    shape = (20, 57, 3, 3) if conv else (301, 37)
    w = rng.uniform(-W_MAX, W_MAX, shape).astype(np.float32)
    if on:
        w = on_grid(w, np.array([W_MAX], np.float32), 0 if conv else 1)
    x = rng.uniform(-1, 1, (2, 57, 9, 11) if conv else (13, 301)).astype(np.float32)
    steps = shape[1] if conv else shape[0]
    tiles = 1 if tile == 0 else -(-steps // tile)
    attributes: dict[str, Any] = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "tile_rows": tile * (9 if conv else 1),
        "num_tiles": tiles,
        "dac_bits": 8,
        "dac_range": 127.0,
        "dac_signed": 1,
        "adc_bits": 24,
        "adc_range": [float(2**23 - 1)],
        "w_max": [W_MAX],
    }
    # Sums of numbers are multiples of 2^-12, and so is a step of the ADC.
    attributes["adc_gain"] = [float(2**12)]
    x = np.rint(x * 3).astype(np.float32)  # sums of 24 bits
    if conv:
        attributes |= {"strides": [1, 2], "pads": [1, 0, 1, 1], "dilations": [1, 1], "group": 1}
        attributes["tile_group"] = tiles
    attributes |= extra
    return cases.Case(
        op=op,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=cases.rram_oracle(op, x, w, attributes),
        depth=steps * (9 if conv else 1),
    )


@pytest.mark.parametrize("tile", [0, 5, 14])
@pytest.mark.parametrize("op", [schema.RRAM_MATMUL, schema.RRAM_CONV])
def test_sums_are_exact(cases: ModuleType, op: str, tile: int) -> None:
    # A word line that goes with the wrong cell, in tiles of odd and even depth, or a scale that is
    # off: every code of 24 bits is that of the exact sum.
    case = make(cases, op, tile=tile)
    assert case.run(num_threads=2).tobytes() == case.oracle().tobytes()


@pytest.mark.parametrize("op", [schema.RRAM_MATMUL, schema.RRAM_CONV])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_nan_reaches_the_outputs_that_read_it(cases: ModuleType, op: str, noise: float) -> None:
    # A NaN that becomes a number: the run has to be done again in float32, with the same draws.
    extra = {"read_noise": noise, "iv_sinh": 2.0, "adc_bits": 8, "adc_gain": [1.0]}
    case = make(cases, op, tile=14, adc_range=[3000.0], **extra)
    whole = case.run(num_threads=2)
    x = case.feeds["x"].copy()
    x[0, 3] = np.nan
    broken = cases.Case(
        op=op,
        feeds={"x": x},
        constants=case.constants,
        attributes=case.attributes,
        oracle=cases.rram_oracle(op, x, case.constants["w"], case.attributes),
        depth=case.depth,
    )
    got, want = broken.run(num_threads=2), broken.oracle()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(got).any()
    assert not np.isnan(got).all()
    clean = ~np.isnan(got)
    assert np.mean(got[clean] != whole[clean]) < 1e-3  # but for ties of the ADC
