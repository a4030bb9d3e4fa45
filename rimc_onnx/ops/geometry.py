# SPDX-License-Identifier: Apache-2.0
"""How the weight of a node lies in arrays, and how its input becomes what the word lines carry.

A convolution is a product of matrices, too: of its windows (im2col) and of one matrix for each
group. Letters: N batch, C input channels, M output channels, S spatial; of one group d word lines
and m bit lines; G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rimc_onnx.ops import schema

__all__ = ["NodeGeometry"]

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class NodeGeometry:
    """Shape of a node's weight and, of a convolution, the attributes of its windows.

    Raises:
        ValueError: attributes that contradict the weight.
    """

    weight_shape: tuple[int, ...]
    """[K, N] of a MatMul, [M, C / group, *kernel] of a convolution."""
    strides: tuple[int, ...] = ()
    """One for each kernel axis; empty for a MatMul."""
    pads: tuple[int, ...] = ()
    """Begin of all axes, then end."""
    dilations: tuple[int, ...] = ()
    group: int = 1

    def __post_init__(self) -> None:
        spatial = len(self.kernel)
        lengths = {"strides": spatial, "pads": 2 * spatial, "dilations": spatial}
        for name, length in lengths.items():
            got = getattr(self, name)
            if len(got) != length:
                raise ValueError(f"{name} must have {length} values, got {list(got)}")
        if self.group < 1 or self.columns % self.group:
            raise ValueError(
                f"{self.columns} output channels can't be split in {self.group} groups"
            )

    @property
    def is_conv(self) -> bool:
        """True for a convolution, False for a MatMul."""
        return len(self.weight_shape) > 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel's axes; empty for a MatMul."""
        return self.weight_shape[2:]

    @property
    def column_axis(self) -> int:
        """Axis of the weight that counts bit lines."""
        return 0 if self.is_conv else 1

    @property
    def columns(self) -> int:
        """Bit lines of all groups: output channels M, or N."""
        return self.weight_shape[self.column_axis]

    @property
    def group_columns(self) -> int:
        """m, the bit lines of one group."""
        return self.columns // self.group

    @property
    def steps(self) -> int:
        """What a bit line is divided in by tiles: input channels of a group, or K."""
        return self.weight_shape[1 if self.is_conv else 0]

    @property
    def window(self) -> int:
        """Word lines of a step."""
        return prod(self.kernel)

    @property
    def depth(self) -> int:
        """d, the word lines of one group."""
        return self.steps * self.window

    @property
    def num_weights(self) -> int:
        """Cells of the matrices of all groups."""
        return prod(self.weight_shape)

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions that a window spans on each axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_padded(self) -> bool:
        """True if the input is padded anywhere."""
        return any(self.pads)

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of ``RramConv`` and ``DoraConv``; none for a MatMul."""
        if not self.is_conv:
            return {}
        names = ("strides", "pads", "dilations", "group")
        return {name: getattr(self, name) for name in names}

    @property
    def channel_shape(self) -> tuple[int, ...]:
        """What a value per bit line is reshaped to, to go with the node's output."""
        return (-1, *[1] * len(self.kernel))

    @property
    def channel_axis(self) -> int:
        """Axis of the node's output that counts bit lines."""
        return 1 if self.is_conv else -1

    def num_tiles(self, tile_rows: int | None) -> int:
        """Row tiles of at most ``tile_rows`` word lines; as :func:`.schema.num_tiles`."""
        return schema.num_tiles(self.steps, self.window, tile_rows)

    def tile_depth(self, num_tiles: int) -> int:
        """Word lines of one of ``num_tiles`` row tiles (the last has what is left)."""
        return -(-self.steps // num_tiles) * self.window

    def clamp_rank(self, rank: int) -> int:
        """``rank``, but never more than the matrix of one group has."""
        return min(rank, self.depth, self.group_columns)

    def matrices(self, weight: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """The weight as matrices [G, d, m]; a view."""
        if not self.is_conv:
            return weight[np.newaxis]
        by_group = weight.reshape(self.group, self.group_columns, self.depth)
        return by_group.transpose(0, 2, 1)

    def weight(self, matrices: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """The inverse of :meth:`matrices`."""
        if self.is_conv:
            matrices = matrices.transpose(0, 2, 1)
        return matrices.reshape(self.weight_shape)

    def windows(self, x: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Windows of a convolution: x [N, C, *S] gives [N, *S_out, C, *kernel]."""
        spatial = len(self.kernel)
        ends = zip(self.pads[:spatial], self.pads[spatial:], strict=True)
        padded = np.pad(x, [(0, 0), (0, 0), *ends])
        axes = tuple(range(2, 2 + spatial))
        view = np.lib.stride_tricks.sliding_window_view(padded, self.extent, axis=axes)
        steps = (1, 1, *self.strides, *self.dilations)
        return np.moveaxis(view[tuple(slice(None, None, step) for step in steps)], 1, 1 + spatial)
