# SPDX-License-Identifier: Apache-2.0
"""The attributes of a convolution, written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxscript import ir

from rimc_onnx.errors import ModelError

__all__ = ["ConvGeometry", "read_geometry"]


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """Attributes of an ONNX Conv at full length; ``pads`` is begin of all axes, then end."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int

    @property
    def is_padded(self) -> bool:
        """True if the input is padded anywhere."""
        return any(self.pads)


def read_geometry(node: ir.Node, weight_shape: Sequence[int]) -> ConvGeometry:
    """Geometry of a Conv with weight [M, C / group, *kernel] and no SAME padding.

    Raises:
        ModelError: the attributes contradict each other or the weight.
    """
    kernel = tuple(weight_shape[2:])
    rank = len(kernel)
    where = f"node '{node.name}' ({node.op_type})"
    if rank < 1:
        raise ModelError(f"{where}: the weight has shape {list(weight_shape)}, no kernel axes")
    given = node.attributes.get_ints("kernel_shape", kernel)
    if tuple(given) != kernel:
        raise ModelError(
            f"{where}: kernel_shape is {list(given)}, but the weight has shape {list(weight_shape)}"
        )
    geometry = ConvGeometry(
        strides=tuple(node.attributes.get_ints("strides", (1,) * rank)),
        pads=tuple(node.attributes.get_ints("pads", (0,) * (2 * rank))),
        dilations=tuple(node.attributes.get_ints("dilations", (1,) * rank)),
        group=node.attributes.get_int("group", 1),
    )
    for name, length in (("strides", rank), ("pads", 2 * rank), ("dilations", rank)):
        got = getattr(geometry, name)
        if len(got) != length:
            raise ModelError(f"{where}: {name} must have {length} values, got {list(got)}")
    if geometry.group < 1 or weight_shape[0] % geometry.group:
        raise ModelError(
            f"{where}: {weight_shape[0]} output channels can't be split in {geometry.group} groups"
        )
    return geometry
