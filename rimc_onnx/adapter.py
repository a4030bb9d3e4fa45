# SPDX-License-Identifier: Apache-2.0
"""The SRAM adapter of one RRAM node, as it is stored: int8 A, B, M with their scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rimc_onnx.opset import MAX_LORA_A_L1

__all__ = ["QuantizedAdapter", "adapter_rank"]

Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]


def adapter_rank(rank: int, weight_shape: Sequence[int], group: int | None) -> int:
    """Rank of one branch: ``rank``, but never more than the matrix of one group has.

    ``weight_shape`` is [K, N] for a MatMul (``group`` None), [M, C / group, *kernel] for a Conv.
    """
    if group is None:
        depth, columns = weight_shape
    else:
        depth, columns = int(np.prod(weight_shape[1:])), weight_shape[0] // group
    return min(rank, depth, columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedAdapter:
    """Inputs 2.. of ``DoraMatMul`` / ``DoraConv`` in their order; shapes in ``docs/ops/``.

    In real numbers A = lora_a * x_scale^-1 * rank_step^-1 up to the rounding of the codes in
    between, and B = lora_b * lora_b_scale; M = magnitude * magnitude_scale.
    """

    lora_a: Int8Array
    lora_b: Int8Array
    magnitude: Int8Array
    x_scale: Array
    rank_step: Array
    lora_b_scale: Array
    magnitude_scale: Array
    bias: Array

    def __post_init__(self) -> None:
        per_rank = np.abs(self.lora_a.astype(np.int64))
        per_rank = (
            per_rank.sum(axis=0)
            if per_rank.ndim == 2
            else per_rank.reshape(len(per_rank), -1).sum(axis=1)
        )
        if per_rank.size and per_rank.max() > MAX_LORA_A_L1:
            raise ValueError(f"sum of |lora_a| is {per_rank.max()}, at most {MAX_LORA_A_L1}")

    @classmethod
    def identity(
        cls, *, weight_shape: Sequence[int], group: int | None, rank: int, bias: Array
    ) -> QuantizedAdapter:
        """The adapter that adds nothing: Y = H + bias. Shapes as in :func:`adapter_rank`."""
        rank = adapter_rank(rank, weight_shape, group)
        if group is None:
            depth, columns = weight_shape
            a_shape: tuple[int, ...] = (depth, rank)
            b_shape: tuple[int, ...] = (rank, columns)
            ranks = rank
        else:
            columns = weight_shape[0]
            ranks = group * rank
            a_shape = (ranks, *weight_shape[1:])
            b_shape = (columns, rank, *[1] * (len(weight_shape) - 2))
        one = np.ones(1, np.float32)
        return cls(
            lora_a=np.zeros(a_shape, np.int8),
            lora_b=np.zeros(b_shape, np.int8),
            magnitude=np.full(columns, 64, np.int8),
            x_scale=one,
            rank_step=np.ones(ranks, np.float32),
            lora_b_scale=one,
            magnitude_scale=np.full(1, 1 / 64, np.float32),
            bias=np.asarray(bias, np.float32),
        )

    @property
    def sram_bytes(self) -> int:
        """Bytes of A, B and M in SRAM (int8); scales and the digital bias are not counted."""
        return self.lora_a.size + self.lora_b.size + self.magnitude.size

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Input name -> tensor, in the order of the operator's inputs."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
