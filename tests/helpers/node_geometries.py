# SPDX-License-Identifier: Apache-2.0
"""Shapes of every kind of node that a calibration meets, for the tests of its parts."""

from __future__ import annotations

import pytest

from rimc_onnx.ops.geometry import NodeGeometry

MATMUL = NodeGeometry(weight_shape=(12, 9))
CONV_1D = NodeGeometry(weight_shape=(4, 3, 3), strides=(2,), pads=(0, 1), dilations=(2,))
CONV_2D = NodeGeometry(
    weight_shape=(6, 2, 3, 2),
    group=2,
    strides=(1, 2),
    pads=(1, 0, 2, 1),
    dilations=(1, 3),
)
EVEN_PADS = NodeGeometry(
    weight_shape=(5, 3, 3, 3), strides=(2, 1), pads=(1, 2, 1, 2), dilations=(1, 1)
)
DEPTHWISE = NodeGeometry(
    weight_shape=(4, 1, 3, 3),
    group=4,
    strides=(1, 1),
    pads=(1, 1, 1, 1),
    dilations=(1, 1),
)
CONV_3D = NodeGeometry(
    weight_shape=(2, 2, 2, 1, 2),
    strides=(1, 2, 1),
    pads=(0, 0, 1, 0, 0, 1),
    dilations=(1, 1, 1),
)
_NODES = {
    "matmul": (MATMUL, (6, 12)),
    "matmul of rank 3": (MATMUL, (3, 4, 12)),
    "matmul of rank 4": (MATMUL, (3, 2, 2, 12)),
    "conv 1d": (CONV_1D, (3, 3, 9)),
    "conv 2d": (CONV_2D, (2, 4, 5, 9)),
    "even pads": (EVEN_PADS, (2, 3, 6, 5)),
    "depthwise": (DEPTHWISE, (2, 4, 5, 4)),
    "conv 3d": (CONV_3D, (2, 2, 3, 4, 3)),
}

by_node = pytest.mark.parametrize(("geometry", "x_shape"), _NODES.values(), ids=_NODES)
"""One test for each kind, and a shape of x."""
