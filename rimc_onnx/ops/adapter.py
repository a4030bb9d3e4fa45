# SPDX-License-Identifier: Apache-2.0
"""The SRAM adapter of one RRAM node, as it is stored: codes of A, B, M and S with their scales."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.schema import MAX_CODE_SUM, MAX_RANK

__all__ = [
    "IDENTITY_CODE",
    "SPARSE_CODES",
    "QuantizedAdapter",
    "lora_shapes",
    "magnitude_codes",
]

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Int8Array = npt.NDArray[np.int8]

IDENTITY_CODE = 64
"""Code of a magnitude of 1 at identity; its scale 1/64 makes the product exact."""
_MOST_CODE = 127
SPARSE_CODES = 7
"""Largest code of a sparse cell that takes 4 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedAdapter:
    """Inputs 2.. of ``DoraMatMul`` / ``DoraConv`` in their order; shapes in ``docs/ops/``.

    In real numbers A = lora_a * x_scale^-1 * rank_step^-1 up to the rounding of the codes in
    between, B = lora_b * lora_b_scale, S = sparse_values * sparse_scale / x_scale and
    M = magnitude * magnitude_scale. A part that is empty, or M at 1, takes no SRAM.

    Raises:
        ValueError: a rank, a sum of codes or a place that the operators do not take.
    """

    lora_a: Int8Array
    lora_b: Int8Array
    magnitude: Int8Array
    x_scale: Array
    rank_step: Array
    lora_b_scale: Array
    magnitude_scale: Array
    bias: Array
    sparse_values: Int8Array
    sparse_index: npt.NDArray[np.int64]
    sparse_scale: Array

    def __post_init__(self) -> None:
        if self.lora_a.ndim < 2 or self.lora_b.ndim != self.lora_a.ndim or not self.magnitude.size:
            raise ValueError(
                f"lora_a and lora_b must be matrices or kernels of one number of axes, got shapes "
                f"{list(self.lora_a.shape)} and {list(self.lora_b.shape)}"
            )
        rank = self.lora_b.shape[0 if self.lora_b.ndim == 2 else 1]
        if rank > MAX_RANK:
            raise ValueError(f"the rank is {rank}, at most {MAX_RANK}")
        a = np.abs(self.lora_a.astype(np.int64))
        per_rank = a.sum(axis=0 if a.ndim == 2 else tuple(range(1, a.ndim)))
        if per_rank.size and per_rank.max() > MAX_CODE_SUM:
            raise ValueError(f"sum of |lora_a| is {per_rank.max()}, at most {MAX_CODE_SUM}")
        if self.sparse_values.size or self.sparse_index.size:
            self._check_sparse()

    def _check_sparse(self) -> None:
        values, index, cells = self.sparse_values, self.sparse_index, _cells(self)
        if values.ndim != 1 or values.shape != index.shape:
            raise ValueError(
                f"sparse_values and sparse_index must be rows of one length, got shapes "
                f"{list(values.shape)} and {list(index.shape)}"
            )
        if index.min() < 0 or index.max() >= cells:
            raise ValueError(
                f"sparse_index must lie in 0..{cells - 1}, got {index.min()}..{index.max()}"
            )
        if (np.diff(index) <= 0).any() and len(np.unique(index)) != index.size:
            raise ValueError("sparse_index names a cell twice")
        columns = len(self.magnitude)
        is_conv = self.lora_a.ndim > 2
        line = index // (cells // columns) if is_conv else index % columns
        sums = np.bincount(line, np.abs(values.astype(np.float64)))
        if sums.max() > MAX_CODE_SUM:
            raise ValueError(
                f"sum of |sparse_values| is {sums.max():.0f} on a bit line, at most {MAX_CODE_SUM}"
            )

    @classmethod
    def identity(cls, *, geometry: NodeGeometry, rank: int, bias: Array) -> QuantizedAdapter:
        """The adapter that adds nothing: Y = H + bias; ``rank`` where the matrix has as much."""
        a_shape, b_shape, ranks = lora_shapes(geometry, geometry.clamp_rank(rank))
        one = np.ones(1, np.float32)
        return cls(
            lora_a=np.zeros(a_shape, np.int8),
            lora_b=np.zeros(b_shape, np.int8),
            magnitude=np.full(len(bias), IDENTITY_CODE, np.int8),
            x_scale=one,
            rank_step=np.ones(ranks, np.float32),
            lora_b_scale=one,
            magnitude_scale=np.full(1, 1 / IDENTITY_CODE, np.float32),
            bias=np.asarray(bias, np.float32),
            sparse_values=np.zeros(0, np.int8),
            sparse_index=np.zeros(0, np.int64),
            sparse_scale=one,
        )

    @property
    def sram_bytes(self) -> int:
        """Bytes in SRAM: int8 A, B and M, and :attr:`sparse_bytes`.

        Scales and the digital bias are not counted.
        """
        magnitude = self.magnitude.size if self.has_magnitude else 0
        return self.lora_a.size + self.lora_b.size + magnitude + self.sparse_bytes

    @property
    def has_magnitude(self) -> bool:
        """True where bit lines have gains of their own."""
        return bool((self.magnitude != IDENTITY_CODE).any())

    @property
    def sparse_bytes(self) -> int:
        """A code and an 8-bit relative index per sparse value.

        The code takes 4 bits where all of the node's do. All cells of the matrix kept are int8 and
        need no index.
        """
        codes = self.sparse_values.size
        if codes == _cells(self):
            return codes
        bits = 4 if (np.abs(self.sparse_values.astype(np.int16)) <= SPARSE_CODES).all() else 8
        return -(-codes * (8 + bits) // 8)

    @property
    def is_identity(self) -> bool:
        """True where Y = H + bias whatever the input: A B and S are zero, M is one."""
        low_rank = self.lora_a.any() and self.lora_b.any()
        scaled = (self.magnitude * self.magnitude_scale != 1.0).any()
        return not (low_rank or self.sparse_values.any() or scaled)

    def louder(self, gain: npt.NDArray[np.float64]) -> tuple[QuantizedAdapter, Array64]:
        """With every magnitude times ``gain`` [m], and the factors that the codes stand for.

        One gain for all bit lines changes the scale alone and takes no SRAM.
        """
        before = self.magnitude * np.float64(self.magnitude_scale[0])
        if (gain == gain[0]).all():
            codes, scale = self.magnitude, np.float32(self.magnitude_scale[0] * gain[0])
        else:
            codes, scale = magnitude_codes(before * gain)
        after = codes * np.float64(scale)
        factor = np.where(before == 0, 1.0, after / np.where(before == 0, 1.0, before))
        scales = np.array([scale], np.float32)
        return replace(self, magnitude=codes, magnitude_scale=scales), factor

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Input name -> tensor, in the order of the operator's inputs."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def magnitude_codes(magnitude: npt.NDArray[Any]) -> tuple[Int8Array, np.float32]:
    """Codes [m] and their scale; one gain for all bit lines is in the scale alone."""
    first = magnitude.flat[0]
    if (magnitude == first).all():
        return np.full(magnitude.size, IDENTITY_CODE, np.int8), np.float32(first / IDENTITY_CODE)
    scale = np.float32(magnitude.max() / _MOST_CODE)
    return np.rint(magnitude.reshape(-1) / np.float64(scale)).astype(np.int8), scale


def lora_shapes(geometry: NodeGeometry, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shapes of ``lora_a`` and ``lora_b`` and the ranks of all groups together."""
    ranks = geometry.group * rank
    if not geometry.is_conv:
        return (geometry.depth, rank), (rank, geometry.columns), ranks
    ones = [1] * len(geometry.kernel)
    return (ranks, *geometry.weight_shape[1:]), (geometry.columns, rank, *ones), ranks


def _cells(adapter: QuantizedAdapter) -> int:
    """Cells of the matrix that the adapter corrects."""
    a, b = adapter.lora_a.shape, adapter.lora_b.shape
    return a[0] * b[1] if len(a) == 2 else b[0] * int(np.prod(a[1:]))
