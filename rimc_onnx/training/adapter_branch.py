# SPDX-License-Identifier: Apache-2.0
"""The digital branch beside an array, as a torch layer that is trained in real numbers."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rimc_onnx.ops.adapter import QuantizedAdapter, lora_shapes
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.training.operators.products import convolve

__all__ = ["AdapterBranch", "VeraBranch", "array_product", "vera_projections"]

F32 = npt.NDArray[np.float32]

_LEAST_GAIN = 1e-3
"""A magnitude is a gain: int8 codes hold no bit line that answers with the wrong sign."""


def array_product(geometry: NodeGeometry, x: Tensor, w: Tensor) -> Tensor:
    """``x`` through ``w`` with the windows of a node: [..., K] x [K, N], or a convolution."""
    if not geometry.is_conv:
        return x @ w
    return convolve(
        x,
        w,
        None,
        strides=geometry.strides,
        pads=geometry.pads,
        dilations=geometry.dilations,
        group=geometry.group,
    )


class AdapterBranch(nn.Module):
    """Y = M o (H + X (A B + S)) + bias, A, B, M and the bias trained; S stays as it is.

    A and B lie as in the operator (docs/ops): A [K, R] or [G R, C / G, *kernel], B [R, N] or
    [M, R, 1 ...]. Codes are made of the trained numbers afterwards.
    """

    trained: tuple[str, ...] = ("lora_a", "lora_b", "magnitude", "bias")
    """Names of the parameters that training changes."""
    sparse: Tensor | None

    def __init__(
        self,
        geometry: NodeGeometry,
        *,
        lora_a: F32,
        lora_b: F32,
        magnitude: F32,
        bias: F32,
        sparse: F32 | None = None,
    ) -> None:
        """``sparse`` has the shape of the node's weight."""
        super().__init__()
        self.geometry = geometry
        self.lora_a = nn.Parameter(torch.from_numpy(lora_a))
        self.lora_b = nn.Parameter(torch.from_numpy(lora_b))
        self.magnitude = nn.Parameter(torch.from_numpy(magnitude))
        self.bias = nn.Parameter(torch.from_numpy(bias))
        self.register_buffer("sparse", None if sparse is None else torch.from_numpy(sparse))

    @classmethod
    def fresh(cls, geometry: NodeGeometry, *, rank: int, node: str, seed: int) -> AdapterBranch:
        """Adds nothing yet: A is drawn with variance 1 / d, B and the bias are 0, M is 1."""
        a_shape, b_shape, _ = lora_shapes(geometry, geometry.clamp_rank(rank))
        return cls(
            geometry,
            lora_a=_drawn(a_shape, f"{node}\0lora", seed) / np.float32(math.sqrt(geometry.depth)),
            lora_b=np.zeros(b_shape, np.float32),
            magnitude=np.ones(geometry.columns, np.float32),
            bias=np.zeros(geometry.columns, np.float32),
        )

    @classmethod
    def of(
        cls, adapter: QuantizedAdapter, geometry: NodeGeometry, *, node: str, seed: int
    ) -> AdapterBranch:
        """What a file holds, in real numbers. Where A B is nothing, A is drawn anew."""
        x_scale = np.float64(adapter.x_scale[0])
        steps = adapter.rank_step.astype(np.float64) * x_scale
        along = steps.reshape(-1, *[1] * (adapter.lora_a.ndim - 1)) if geometry.is_conv else steps
        columns = geometry.columns
        b_scale = np.broadcast_to(adapter.lora_b_scale, columns)
        lora_b = adapter.lora_b * (_rows(b_scale, adapter.lora_b) if geometry.is_conv else b_scale)
        lora_a = (adapter.lora_a / along).astype(np.float32)
        if not (adapter.lora_a.any() and adapter.lora_b.any()):
            start = _drawn(lora_a.shape, f"{node}\0lora", seed)
            lora_a, lora_b = start / np.float32(math.sqrt(geometry.depth)), np.zeros_like(lora_b)
        return cls(
            geometry,
            lora_a=lora_a,
            lora_b=lora_b.astype(np.float32),
            magnitude=(adapter.magnitude * adapter.magnitude_scale).astype(np.float32),
            bias=adapter.bias.astype(np.float32),
            sparse=_cells(adapter, geometry) if adapter.sparse_values.size else None,
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.lora_a, self.lora_b

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The node's output for its input and what the array answered."""
        a, b = self.factors()
        y = h
        if b.numel():
            u = array_product(self.geometry, x, a)
            if not self.geometry.is_conv:
                y = y + u @ b
            else:
                ones = [1] * len(self.geometry.kernel)
                y = y + convolve(
                    u,
                    b,
                    None,
                    strides=ones,
                    pads=[0] * (2 * len(ones)),
                    dilations=ones,
                    group=self.geometry.group,
                )
        if self.sparse is not None:
            y = y + array_product(self.geometry, x, self.sparse)
        channel = (-1, *[1] * len(self.geometry.kernel))
        return y * self.magnitude.reshape(channel) + self.bias.reshape(channel)

    def matrices(self) -> tuple[F32, F32, F32, F32 | None, F32]:
        """A [G, d, R], B [G, R, m], M [G, m], S [G, d, m] or ``None``, and the bias [M]."""
        geometry = self.geometry
        a, b = (np.array(t.detach().cpu().numpy()) for t in self.factors())
        m, bias = (t.detach().cpu().numpy().copy() for t in (self.magnitude, self.bias))
        m = np.maximum(m, _LEAST_GAIN)
        s = None
        if self.sparse is not None:
            s = np.ascontiguousarray(geometry.matrices(self.sparse.cpu().numpy()))
        if geometry.is_conv:
            g, ranks = geometry.group, b.shape[1]
            a = a.reshape(g, ranks, geometry.depth).transpose(0, 2, 1)
            b = b.reshape(g, geometry.group_columns, ranks).transpose(0, 2, 1)
        else:
            a, b = a[None], b[None]
        return (
            np.ascontiguousarray(a),
            np.ascontiguousarray(b),
            m.reshape(geometry.group, -1),
            s,
            bias,
        )


class VeraBranch(AdapterBranch):
    """A and B are parts of projections that all nodes share and nothing trains.

    A = P diag(d), B = Q diag(b): two vectors for a node (VeRA: Kopiczko et al., ICLR 2024; over a
    drifting array VeRA+, arXiv 2603.26016).
    """

    trained = ("d", "b")

    def __init__(self, geometry: NodeGeometry, projections: tuple[F32, F32]) -> None:
        """``projections`` are P [depth, R] and Q [R, columns] with what the largest node needs.

        d starts at 0.1 as in VeRA, b at 0.
        """
        rank = geometry.clamp_rank(projections[0].shape[1])
        a_shape, b_shape, ranks = lora_shapes(geometry, rank)
        a, b = projections[0][: geometry.depth, :rank], projections[1][:rank, : geometry.columns]
        if geometry.is_conv:
            a, b = np.tile(a.T, (geometry.group, 1)), b.T
        super().__init__(
            geometry,
            lora_a=np.array(a).reshape(a_shape),
            lora_b=np.array(b).reshape(b_shape),
            magnitude=np.ones(geometry.columns, np.float32),
            bias=np.zeros(geometry.columns, np.float32),
        )
        self.d = nn.Parameter(torch.full((ranks,), 0.1))
        self.b = nn.Parameter(torch.zeros(geometry.columns))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Scaled projections."""
        ones = [1] * (self.lora_a.ndim - 1) if self.geometry.is_conv else []
        return self.lora_a * self.d.reshape(-1, *ones), self.lora_b * self.b.reshape(-1, *ones)


def vera_projections(depth: int, columns: int, rank: int, seed: int) -> tuple[F32, F32]:
    """P [depth, R] and Q [R, columns], normal with variances 1 / depth and 1 / R."""
    p = _drawn((depth, rank), "vera\0p", seed) / np.float32(math.sqrt(depth))
    q = _drawn((rank, columns), "vera\0q", seed) / np.float32(math.sqrt(rank))
    return p, q


def _drawn(shape: tuple[int, ...], name: str, seed: int) -> F32:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return rng.standard_normal(shape, np.float32)


def _rows(vector: npt.NDArray[np.float32], like: npt.NDArray[np.int8]) -> F32:
    return vector.reshape(-1, *[1] * (like.ndim - 1))


def _cells(adapter: QuantizedAdapter, geometry: NodeGeometry) -> F32:
    """S in the layout of the weight."""
    columns = geometry.columns
    scale = np.broadcast_to(adapter.sparse_scale / adapter.x_scale[0], columns)
    index = adapter.sparse_index
    line = index // geometry.depth if geometry.is_conv else index % columns
    cells = np.zeros(geometry.num_weights, np.float32)
    cells[index] = adapter.sparse_values * scale[line]
    return cells.reshape(geometry.weight_shape)
