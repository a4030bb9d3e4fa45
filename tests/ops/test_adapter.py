# SPDX-License-Identifier: Apache-2.0
"""What an adapter may hold, whoever makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx.ops.adapter import QuantizedAdapter
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
