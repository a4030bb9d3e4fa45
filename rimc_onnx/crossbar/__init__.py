# SPDX-License-Identifier: Apache-2.0
"""What surrounds the cells of a node: converters, word lines, wires, the integer grid."""

from __future__ import annotations

from rimc_onnx.crossbar.compiled_device import DEVICE_SUFFIX, compiled_device
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.crossbar.integer_grid import CODED_BITS, CURVE_STEPS, on_grid
from rimc_onnx.crossbar.periphery import (
    NodePeriphery,
    NodeRanges,
    PeripheryConfig,
    ReadNoiseLaw,
    attribute_types,
    node_periphery,
)
from rimc_onnx.crossbar.wires import ArrayLayout, apply_ir_drop, wire_loss

__all__ = [
    "CODED_BITS",
    "CURVE_STEPS",
    "DEVICE_SUFFIX",
    "ArrayLayout",
    "ConvertConfig",
    "NodePeriphery",
    "NodeRanges",
    "PeripheryConfig",
    "ReadNoiseLaw",
    "apply_ir_drop",
    "attribute_types",
    "compiled_device",
    "node_periphery",
    "on_grid",
    "wire_loss",
]
