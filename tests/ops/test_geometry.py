# SPDX-License-Identifier: Apache-2.0
"""What a node's weight and windows are, counted and multiplied out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rimc_onnx import reference
from rimc_onnx.ops.geometry import NodeGeometry

FC = NodeGeometry(weight_shape=(7, 3))
CONV = NodeGeometry(
    weight_shape=(6, 2, 3, 2), strides=(2, 1), pads=(1, 0, 0, 2), dilations=(1, 2), group=3
)


def test_counts_of_a_matrix_and_of_a_convolution() -> None:
    # Bit lines of all groups for those of one, kernel positions counted as channels.
    found = [(g.columns, g.group_columns, g.depth, g.steps, g.window) for g in (FC, CONV)]
    assert found == [(3, 3, 7, 7, 1), (6, 2, 12, 2, 6)]
    assert (FC.channel_shape, CONV.channel_shape) == ((-1,), (-1, 1, 1))
    assert (FC.num_weights, CONV.num_weights) == (21, 72)
    assert [g.clamp_rank(3) for g in (FC, CONV)] == [3, 2]
    assert CONV.extent == (3, 3)


def test_tiles_take_whole_windows() -> None:
    # A tile that ends inside a window: its sums are those of no channel.
    assert (FC.num_tiles(3), FC.tile_depth(3)) == (3, 3)
    assert (CONV.num_tiles(11), CONV.tile_depth(2)) == (2, 6)
    assert CONV.num_tiles(None) == 1
    with pytest.raises(ValueError, match="6 word lines do not fit in a tile of 5"):
        CONV.num_tiles(5)


@pytest.mark.parametrize("geometry", [FC, CONV], ids=["matmul", "conv"])
def test_matrices_and_weight_are_inverse(geometry: NodeGeometry) -> None:
    # Groups, bit lines and word lines in another order than the rows of windows have.
    weight = np.arange(geometry.num_weights, dtype=np.float32).reshape(geometry.weight_shape)
    matrices = geometry.matrices(weight)
    assert matrices.shape == (geometry.group, geometry.depth, geometry.group_columns)
    for column in range(geometry.columns):
        g, m = divmod(column, geometry.group_columns)
        line = weight[column].reshape(-1) if geometry.is_conv else weight[:, column]
        assert np.array_equal(matrices[g, :, m], line)
    assert np.array_equal(geometry.weight(matrices), weight)


def test_windows_times_matrices_are_the_convolution() -> None:
    # Pads at the wrong end, strides for dilations: against the oracle's own windows.
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (2, 6, 5, 8)).astype(np.float32)
    weight = rng.integers(-4, 5, CONV.weight_shape).astype(np.float32)
    windows = CONV.windows(x)
    rows = windows.reshape(-1, CONV.group, CONV.depth)
    y = np.einsum("pgd,gdm->pgm", rows, CONV.matrices(weight))
    found = np.moveaxis(y.reshape(*windows.shape[:3], CONV.columns), -1, 1)
    want = reference.rram_conv(x, weight, num_tiles=1, **CONV.attributes)
    assert np.array_equal(found, want)  # integers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (1,)}, r"strides must have 2 values, got \[1\]"),
        ({"pads": (1, 1)}, r"pads must have 4 values, got \[1, 1\]"),
        ({"group": 4}, "6 output channels can't be split in 4 groups"),
        ({"group": 0}, "6 output channels can't be split in 0 groups"),
    ],
)
def test_contradicting_attributes_are_refused(change: dict[str, object], message: str) -> None:
    # Windows of another rank than the kernel, or a group that is cut in half.
    with pytest.raises(ValueError, match=message):
        replace(CONV, **change)
    with pytest.raises(ValueError, match=r"strides must have 0 values"):
        replace(FC, strides=(1,))
