# SPDX-License-Identifier: Apache-2.0
"""Cells behind a DAC of few bits."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.crossbar import on_grid


@pytest.mark.parametrize(
    ("w_max", "step"), [(1.0, 2.0**-12), (0.999, 2.0**-13), (0.5, 2.0**-13), (3.0, 2.0**-11)]
)
def test_cells_are_multiples_of_a_power_of_two(w_max: float, step: float) -> None:
    # A step of the wrong binade is twice too coarse, or leaves numbers beyond 16 bits.
    w = np.random.default_rng(0).uniform(-w_max, w_max, (50, 7)).astype(np.float32)
    found = on_grid(w, np.array([w_max], np.float32), 1)
    assert found.dtype == np.float32
    numbers = found.astype(np.float64) / step
    assert np.array_equal(numbers, np.rint(numbers))
    assert np.abs(found - w).max() <= step / 2
    assert len(np.unique(numbers % 2)) == 2  # no coarser


@pytest.mark.parametrize("axis", [0, 1])
def test_every_column_has_its_own_step(axis: int) -> None:
    # The w_max of another column, or of the other axis.
    w = np.random.default_rng(1).standard_normal((4, 4, 3)).astype(np.float32)
    w_max = np.array([0.01, 1.5, 70.0, 3.0], np.float32)
    found = on_grid(w, w_max, axis)
    for column in range(4):
        one = np.take(w, [column], axis)
        alone = on_grid(one, w_max[column : column + 1], axis)
        assert np.array_equal(np.take(found, [column], axis), alone)


@pytest.mark.parametrize("w_max", [0.0, 1e-44])
def test_columns_without_a_step_are_left_alone(w_max: float) -> None:
    # 0 / 0, or an inverse beyond float32.
    w = np.array([[0.0, w_max, -w_max]], np.float32)
    limit = np.array([w_max], np.float32)
    found = on_grid(w, limit, 0)
    assert np.isfinite(found).all()
    assert np.abs(found - w).max() <= 2.0**-13
    assert np.array_equal(on_grid(found, limit, 0), found)


def test_cell_far_beyond_the_grid_is_left_alone() -> None:
    # More steps than float32 counts: an overflow that warns, or an infinite cell.
    w = np.array([[0.3, 1e38, -3e38]], np.float32)
    found = on_grid(w, np.array([1.0], np.float32), 0)
    assert np.array_equal(found[0, 1:], w[0, 1:])
