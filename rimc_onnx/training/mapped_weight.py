# SPDX-License-Identifier: Apache-2.0
"""From the weight that a file's node has to the weight that its arrays are programmed to.

A conversion lays a weight out for its arrays and folds batch normalisations into it: the weight of
the arrays is layout(W) * rows * columns. Training changes W; statistics and scales of the folds are
those of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from rimc_onnx.errors import ModelError
from rimc_onnx.passes import RramUnit, find_constant

__all__ = ["MappedWeight", "mapped_weight"]

Array = npt.NDArray[Any]

_AGREEMENT = 1e-4
"""Of layout, rows and columns with what the passes made, of the largest weight."""


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Shapes of a weight in the file and in the arrays."""

    op_type: str
    shape: tuple[int, ...]
    """In the file."""
    group: int
    transposed: bool

    def to_arrays(self, w: Tensor) -> Tensor:
        """[M, C / group, *kernel] of a convolution, [K, N] of a matrix."""
        if self.op_type == "ConvTranspose":
            channels, columns, *kernel = self.shape
            taps = int(np.prod(kernel))
            w = w.reshape(self.group, channels // self.group, columns * taps).transpose(1, 2)
            return w.reshape(
                self.group * columns * taps, channels // self.group, *[1] * len(kernel)
            )
        if self.op_type == "MatMul":
            return w.reshape(self.shape[-2:])
        return w.t() if self.transposed else w

    def with_axes_of_weight(self, x: Tensor) -> Tensor:
        """``x`` with those that a MatMul's product has of a weight [1, ..., 1, K, N]."""
        missing = len(self.shape) - max(x.ndim, 2) if self.op_type == "MatMul" else 0
        return x.reshape(*[1] * missing, *x.shape)

    def to_file(self, w: Tensor) -> Tensor:
        """The inverse of :meth:`to_arrays`."""
        if self.op_type == "ConvTranspose":
            channels, columns, *kernel = self.shape
            taps = int(np.prod(kernel))
            w = w.reshape(self.group, columns * taps, channels // self.group).transpose(1, 2)
        return w.t() if self.transposed else w.reshape(self.shape)


class MappedWeight(nn.Module):
    """The arrays' weight as a function of the file's, and back."""

    rows: Tensor | None
    columns: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        layout: _Layout,
        rows: Tensor | None,
        columns: Tensor | None,
        shift: Tensor | None,
    ) -> None:
        """``rows`` and ``columns`` go with the arrays' weight, ``shift`` with the file's inputs."""
        super().__init__()
        self.layout = layout
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("shift", shift)

    def to_arrays(self, w: Tensor) -> Tensor:
        """What the arrays are programmed to."""
        w = self.layout.to_arrays(w)
        w = w if self.rows is None else w * self.rows
        return w if self.columns is None else w * self.columns

    def squares_to_arrays(self, squares: Tensor) -> Tensor:
        """Squared slopes over the file's weight as those over the arrays'."""
        found = self.layout.to_arrays(squares)
        for factor in (self.rows, self.columns):
            if factor is not None:
                square = factor.square()
                found = torch.where(square > 0, found / square.clamp_min(1e-30), 0.0)
        return found

    def limits_of_file(self, limit: Tensor) -> Tensor:
        """Largest |W| in the file's layout for the largest weight of the arrays, ``limit``."""
        scale = torch.ones(1, device=limit.device)
        for factor in (self.rows, self.columns):
            scale = scale if factor is None else scale * factor.abs()
        whole = self.layout.to_arrays(torch.zeros(self.layout.shape, device=limit.device))
        whole = whole + torch.where(scale > 0, limit / scale.clamp_min(1e-30), torch.inf)
        return self.layout.to_file(whole).contiguous()

    def shift_of_outputs(self, w: Tensor) -> Tensor | None:
        """What a batch normalisation in front adds to every output, [M], in the file's units."""
        if self.shift is None:
            return None
        product = self.layout.to_arrays(w) * self.shift
        axes = list(range(1, product.ndim)) if self.layout.op_type == "Conv" else [0]
        return product.sum(axes)


def mapped_weight(node: ir.Node, unit: RramUnit) -> tuple[MappedWeight, str]:
    """The weight of ``unit`` from that of ``node``, and the name of the value its arrays read.

    ``node`` is the unit's in the graph that ``structure_pipeline`` gives.

    Raises:
        ModelError: the weight of the arrays is not that of the file with scales.
    """
    constant = find_constant(node.inputs[1])
    if constant is None:
        raise ModelError(f"node '{node.name}' ({node.op_type}): its weight is no constant.")
    file_weight = torch.from_numpy(constant.float32().copy())
    layout = _Layout(
        op_type=node.op_type,
        shape=tuple(constant.shape),
        group=node.attributes.get_int("group", 1),
        transposed=node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)),
    )
    plain = layout.to_arrays(file_weight)
    arrays = torch.from_numpy(unit.weight.float32().copy())
    rows = shift = None
    x_name = str(node.inputs[0].name if node.inputs[0] is not None else "")
    norm = _norm_in_front(node, unit)
    if norm is not None:
        rows, shift = (_per_row(layout, plain.shape, v) for v in _affine(norm))
        x_name = str(unit.x.name)
    scaled = plain if rows is None else plain * rows
    columns = _columns(scaled, arrays, unit.geometry.column_axis)
    exact = scaled if columns is None else scaled * columns
    worst = float((exact - arrays).abs().max()) if arrays.numel() else 0.0
    if not worst <= _AGREEMENT * float(arrays.abs().max()):
        raise ModelError(
            f"node '{node.name}' ({node.op_type}): the weight of its arrays is not that of the "
            f"file with a scale for every row and column. Keep it digital to train the others."
        )
    return MappedWeight(layout, rows, columns, shift), x_name


def _norm_in_front(node: ir.Node, unit: RramUnit) -> ir.Node | None:
    """The BatchNormalization whose input the arrays read."""
    value = _before_identities(node.inputs[0])
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "BatchNormalization":
        return None
    reads = _before_identities(producer.inputs[0])
    names = {None if v is None else v.name for v in (producer.inputs[0], reads)}
    return producer if unit.x.name in names else None


def _before_identities(value: ir.Value | None) -> ir.Value | None:
    while value is not None:
        producer = value.producer()
        if producer is None or producer.op_type != "Identity":
            return value
        value = producer.inputs[0]
    return None


def _affine(norm: ir.Node) -> tuple[Array, Array]:
    """BatchNormalization as a x + b, each [C]."""
    found = [find_constant(v) for v in norm.inputs[1:5]]
    scale, shift, mean, var = (
        np.zeros(1) if c is None else c.numpy().astype(np.float64).reshape(-1) for c in found
    )
    a = scale / np.sqrt(var + norm.attributes.get_float("epsilon", 1e-5))
    return a, shift - mean * a


def _per_row(layout: _Layout, shape: torch.Size, vector: Array) -> Tensor:
    """A value for every input channel as it goes with the arrays' weight."""
    values = torch.from_numpy(vector.astype(np.float32))
    if layout.op_type != "Conv":
        return values[:, None]
    outputs, depth = shape[0], shape[1]
    of_group = values.reshape(layout.group, 1, depth).expand(-1, outputs // layout.group, -1)
    return of_group.reshape(outputs, depth, *[1] * (len(shape) - 2)).contiguous()


def _columns(plain: Tensor, arrays: Tensor, column_axis: int) -> Tensor | None:
    """Scale of every bit line, as it goes with the weight; None where all are 1."""
    if torch.equal(plain, arrays):
        return None
    axes = [a for a in range(plain.ndim) if a != column_axis]
    power = plain.double().square().sum(axes, keepdim=True)
    shared = (plain.double() * arrays.double()).sum(axes, keepdim=True)
    # A bit line of zeros says nothing of its scale.
    return torch.where(power > 0, shared / power.clamp_min(1e-300), 1.0).float()
