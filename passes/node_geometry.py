# SPDX-License-Identifier: Apache-2.0
"""The geometry of a node, read off its attributes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
from rimc_onnx.ops.geometry import NodeGeometry

__all__ = ["node_geometry"]


def node_geometry(node: ir.Node, weight_shape: Sequence[int]) -> NodeGeometry:
    """Geometry of a MatMul or a Conv, as a standard operator or on a crossbar.

    ``weight_shape`` is [K, N] or [M, C / group, *kernel]. SAME padding is not looked at.

    Raises:
        ModelError: the attributes contradict each other or the weight.
    """
    shape = tuple(weight_shape)
    if node.op_type in {"MatMul", schema.RRAM_MATMUL}:
        return NodeGeometry(weight_shape=shape)
    kernel = shape[2:]
    spatial = len(kernel)
    where = f"node '{node.name}' ({node.op_type})"
    if spatial < 1:
        raise ModelError(f"{where}: the weight has shape {list(shape)}, no kernel axes")
    given = node.attributes.get_ints("kernel_shape", kernel)
    if tuple(given) != kernel:
        raise ModelError(
            f"{where}: kernel_shape is {list(given)}, but the weight has shape {list(shape)}"
        )
    try:
        return NodeGeometry(
            weight_shape=shape,
            strides=tuple(node.attributes.get_ints("strides", (1,) * spatial)),
            pads=tuple(node.attributes.get_ints("pads", (0,) * (2 * spatial))),
            dilations=tuple(node.attributes.get_ints("dilations", (1,) * spatial)),
            group=node.attributes.get_int("group", 1),
        )
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error
