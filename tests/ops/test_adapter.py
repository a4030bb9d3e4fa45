# SPDX-License-Identifier: Apache-2.0
"""What an adapter may hold, whoever makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx.ops.adapter import QuantizedAdapter, magnitude_codes
from rimc_onnx.ops.schema import MAX_CODE_SUM, MAX_RANK


def tensors(*, rank: int = 2, depth: int = 6, columns: int = 4) -> dict[str, Any]:
    one = np.ones(1, np.float32)
    return {
        "lora_a": np.ones((depth, rank), np.int8),
        "lora_b": np.ones((rank, columns), np.int8),
        "magnitude": np.ones(columns, np.int8),
        "x_scale": one,
        "rank_step": np.ones(rank, np.float32),
        "lora_b_scale": one,
        "magnitude_scale": one,
        "bias": np.zeros(columns, np.float32),
        "sparse_values": np.array([1, -2, 3], np.int8),
        "sparse_index": np.array([7, 0, 23], np.int64),
        "sparse_scale": one,
    }


def conv_tensors() -> dict[str, Any]:
    found = tensors()
    found["lora_a"] = np.ones((4, 2, 3, 1), np.int8)  # two groups of rank 2
    found["lora_b"] = np.ones((4, 2, 1, 1), np.int8)
    return found


@pytest.mark.parametrize("make", [tensors, conv_tensors])
def test_sound_adapter_is_taken(make: Any) -> None:
    assert QuantizedAdapter(**make()).sram_bytes > 0


def test_largest_rank_is_the_largest_that_kernels_take() -> None:
    # An adapter that is fitted, written and then refused by every session.
    QuantizedAdapter(**tensors(rank=MAX_RANK))
    with pytest.raises(ValueError, match=f"the rank is {MAX_RANK + 1}, at most {MAX_RANK}"):
        QuantizedAdapter(**tensors(rank=MAX_RANK + 1))


@pytest.mark.parametrize("make", [tensors, conv_tensors])
@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 1, 24], r"sparse_index must lie in 0\.\.23, got 0\.\.24"),
        ([0, -1, 2], r"sparse_index must lie in 0\.\.23, got -1\.\.2"),
        ([5, 1, 5], "sparse_index names a cell twice"),
        ([1, 2], r"rows of one length, got shapes \[3\] and \[2\]"),
        ([], r"rows of one length, got shapes \[3\] and \[0\]"),
    ],
)
def test_sparse_cells_outside_the_matrix_or_named_twice_are_refused(
    make: Any, index: list[int], message: str
) -> None:
    # A write beside the matrix where an adapter is folded; a cell that counts twice.
    with pytest.raises(ValueError, match=message):
        QuantizedAdapter(**{**make(), "sparse_index": np.array(index, np.int64)})


def test_matrices_of_other_axes_are_refused() -> None:
    # An IndexError in the middle of reading an adapter file.
    for name in ("lora_a", "lora_b"):
        with pytest.raises(ValueError, match="must be matrices or kernels of one number of axes"):
            QuantizedAdapter(**{**tensors(), name: np.ones(3, np.int8)})


def test_sums_of_codes_stay_exact() -> None:
    depth = MAX_CODE_SUM // 127 + 1
    wide = tensors(depth=depth, columns=1)
    wide |= {"sparse_values": np.zeros(0, np.int8), "sparse_index": np.zeros(0, np.int64)}
    QuantizedAdapter(**wide)
    with pytest.raises(ValueError, match=r"sum of \|lora_a\| is"):
        QuantizedAdapter(**{**wide, "lora_a": np.full((depth, 2), 127, np.int8)})
    full = {"sparse_values": np.full(depth, 127, np.int8), "sparse_index": np.arange(depth)}
    with pytest.raises(ValueError, match=r"sum of \|sparse_values\| is .* on a bit line"):
        QuantizedAdapter(**{**wide, **full})


@pytest.mark.parametrize(("largest", "expected"), [(7, 5), (8, 6)])
def test_sparse_cells_take_four_bits_where_all_of_them_fit(largest: int, expected: int) -> None:
    # Cells counted at four bits that need eight: 3 cells are 36 bits, or 48; 144 need no index.
    cells = {"sparse_values": np.array([1, -largest, 3], np.int8)}
    assert QuantizedAdapter(**{**tensors(), **cells}).sparse_bytes == expected
    cells = {"sparse_values": np.full(24, 3, np.int8), "sparse_index": np.arange(24)}
    assert QuantizedAdapter(**{**tensors(), **cells}).sparse_bytes == 24


def test_one_gain_for_all_bit_lines_takes_no_sram() -> None:
    # A byte for every bit line of a node that needs a single number.
    codes, scale = magnitude_codes(np.full((1, 4), 0.8))
    adapter = QuantizedAdapter(
        **{**tensors(), "magnitude": codes, "magnitude_scale": np.array([scale])}
    )
    assert not adapter.has_magnitude
    louder, factor = adapter.louder(np.full(4, 1.25))
    assert louder.sram_bytes == adapter.sram_bytes == 6 * 2 + 2 * 4 + 5
    np.testing.assert_allclose(factor, 1.25, rtol=1e-6)
    np.testing.assert_allclose(louder.magnitude * louder.magnitude_scale, 1.0, rtol=1e-6)


def test_factors_of_gains_are_those_of_the_codes() -> None:
    # What later nodes see while biases are settled is not what the file will do.
    codes, scale = magnitude_codes(np.array([0.5, 1.0, 1.5, 0.0]))
    before = QuantizedAdapter(
        **{**tensors(), "magnitude": codes, "magnitude_scale": np.array([scale])}
    )
    after, factor = before.louder(np.array([1.1, 0.9, 1.3, 2.0]))
    real = [a.magnitude * np.float64(a.magnitude_scale[0]) for a in (before, after)]
    np.testing.assert_array_equal(real[0] * factor, real[1])
    assert np.abs(real[1] - [0.55, 0.9, 1.95, 0]).max() < 1.95 / 127
    assert factor[3] == 1
