# SPDX-License-Identifier: Apache-2.0
"""The word lines of ranges are those of the oracle, which no code of the package uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx import reference
from rimc_onnx.crossbar import NodePeriphery
from rimc_onnx.crossbar.word_lines import word_line_reads
from rimc_onnx.ops.geometry import NodeGeometry

DRIVERS: dict[str, dict[str, Any]] = {
    "ideal": {},
    "codes": {"dac_bits": 8},
    "fine codes": {"dac_bits": 12, "dac_signed": 0},
    "planes of one bit": {"dac_bits": 6, "dac_serial_bits": 1},
    "uneven planes": {"dac_bits": 9, "dac_serial_bits": 3},
}
CURVES: dict[str, dict[str, Any]] = {
    "straight": {},
    "sinh": {"iv_sinh": 3.5, "input_shrink": 0.7},
    "by the weight": {
        "iv_square": (0.3, -0.2, *(0.1,) * 6),
        "iv_cube": (0.0, 0.4, *(-0.05,) * 6),
    },
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_word_lines_are_those_of_the_oracle(driver: dict[str, Any], curve: dict[str, Any]) -> None:
    # A plane too few, a digit without its sign, the range of the codes for that of a digit, a
    # coefficient of another power: ranges that fit other sums than those the converters read.
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 7), dtype=np.float32)
    w = rng.standard_normal((7, 3), dtype=np.float32)
    w_max = np.abs(w).max(axis=0) * np.float32([1.0, 0.5, 0.0])  # beyond it, and none at all
    values = {"dac_range": 1.3, **driver, **curve}
    oracle = reference.Periphery(**values, w_max=w_max.tolist())
    want = [
        [(v, w), *reference.iv_terms(v, w, oracle, 1)] for _, v in reference.word_lines(x, oracle)
    ]
    geometry = NodeGeometry(weight_shape=w.shape)
    found = list(
        word_line_reads(x, w, periphery=NodePeriphery(**values), w_max=w_max, geometry=geometry)
    )
    assert len(found) == len(want)
    for products, expected in zip(found, want, strict=True):
        for pair, exact in zip(products, expected, strict=True):
            assert [a.dtype for a in pair] == [np.float32, np.float32]
            for array, other in zip(pair, exact, strict=True):
                np.testing.assert_array_equal(array, other)


def test_cells_of_a_convolution_have_the_limit_of_their_channel() -> None:
    # The largest weight of a bit line broadcast along the kernel.
    rng = np.random.default_rng(2)
    w = rng.standard_normal((4, 2, 3, 3), dtype=np.float32)
    w_max = np.abs(w).max(axis=(1, 2, 3))
    x = rng.standard_normal((1, 2, 5, 5), dtype=np.float32)
    values: dict[str, Any] = CURVES["by the weight"]
    oracle = reference.Periphery(**values, w_max=w_max.tolist())
    geometry = NodeGeometry(weight_shape=w.shape, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
    (products,) = word_line_reads(
        x, w, periphery=NodePeriphery(**values), w_max=w_max, geometry=geometry
    )
    ((_, v),) = reference.word_lines(x, oracle)
    for (_, cells), (_, other) in zip(
        products[1:], reference.iv_terms(v, w, oracle, 0), strict=True
    ):
        np.testing.assert_array_equal(cells, other)
