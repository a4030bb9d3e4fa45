# SPDX-License-Identifier: Apache-2.0
"""Input ranges that a training found, as a float model's file records them."""

from __future__ import annotations

import json
import math

import onnx_ir as ir

from rimc_onnx.errors import ModelError

__all__ = ["INPUT_RANGES", "ranges_text", "recorded_ranges"]

INPUT_RANGES = "rimc.input_ranges"
"""Metadata: node -> range of its DAC and word lines, as JSON."""


def recorded_ranges(model: ir.Model) -> dict[str, float]:
    """Input ranges by node; empty where none were trained.

    Raises:
        ModelError: the entry holds something else.
    """
    text = model.metadata_props.get(INPUT_RANGES)
    if text is None:
        return {}
    try:
        found = json.loads(text)
        ranges = {str(node): float(value) for node, value in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        ranges = {"": math.nan}
    if not all(math.isfinite(value) and value > 0 for value in ranges.values()):
        raise ModelError(
            f"the metadata {INPUT_RANGES} holds no ranges of nodes. Remove the entry, or train the "
            "model again."
        )
    return ranges


def ranges_text(ranges: dict[str, float]) -> str:
    """What the file records."""
    return json.dumps(ranges, sort_keys=True)
