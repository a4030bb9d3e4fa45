# SPDX-License-Identifier: Apache-2.0
"""What surrounds the arrays of a node, read off its RRAM operator for people and reports."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from rimc_onnx.crossbar import NodePeriphery

__all__ = ["node_ranges", "read_periphery"]


def read_periphery(attributes: Mapping[str, ir.Attr]) -> dict[str, float | bool | str | None]:
    """Converters, reads and wires by name, as :meth:`NodePeriphery.summary` has them."""
    return _periphery(attributes).summary(wire_ohm=attributes["wire_ohm"].as_float())


def node_ranges(
    attributes: Mapping[str, ir.Attr],
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Ranges of word lines and of ADCs, as :meth:`NodePeriphery.ranges` has them."""
    return _periphery(attributes).ranges()


def _periphery(attributes: Mapping[str, ir.Attr]) -> NodePeriphery:
    return NodePeriphery.read({name: attribute.value for name, attribute in attributes.items()})
