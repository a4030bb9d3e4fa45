# SPDX-License-Identifier: Apache-2.0
"""What a node uses of its operator, so that a body can leave out the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rimc_onnx.crossbar import CODED_BITS
from rimc_onnx.ops import schema

__all__ = ["VALUE", "Uses", "common_uses", "uses_of"]

Uses = Mapping[str, "bool | int | None"]
"""What nodes use, by name: the same for all of them, or ``None`` where they differ or where it
isn't known before the file is run."""
VALUE = "value of "
"""Before the name of an attribute: its value."""
_COMMON = ("dac_bits", "dac_signed", "dac_serial_bits", "adc_bits", "num_tiles", "group")
"""Attributes that most files have the same value of, with which much can be computed before."""


def uses_of(
    op_type: str, attributes: Mapping[str, Any], shapes: Mapping[str, Sequence[int] | None]
) -> Uses:
    """What a node uses; ``shapes``: of its constant inputs, ``None`` for what may change."""
    if op_type in (schema.RRAM_CONV, schema.RRAM_MATMUL):
        return _crossbar(attributes, shapes["w"])
    return _adapter(attributes, shapes)


def common_uses(nodes: Sequence[Uses]) -> Uses:
    """What all ``nodes`` have in common."""
    if not nodes:
        return {}
    return {
        name: value if all(node[name] == value for node in nodes) else None
        for name, value in nodes[0].items()
    }


def _crossbar(attributes: Mapping[str, Any], weight: Sequence[int] | None) -> Uses:
    bits, is_serial = attributes["dac_bits"], attributes["dac_serial_bits"] > 0
    bends = attributes["iv_sinh"] > 0
    terms = any((*attributes["iv_square"], *attributes["iv_cube"]))
    adc, noise = attributes["adc_bits"] > 0, attributes["read_noise"] > 0
    tiles = attributes["num_tiles"]
    padded = None
    if weight is not None:
        depth = weight[1 if "strides" in attributes else 0]
        padded = depth % tiles != 0
    return {
        "spatial": len(attributes.get("strides", ())),
        "dac": bits > 0,
        "serial": is_serial,
        "sinh": bends,
        "sinh_of_codes": bends and 0 < bits <= CODED_BITS,
        "terms": terms,
        "adc": adc,
        "adc_errors": list(attributes["adc_gain"]) != [1.0],
        "adc_offset": any(attributes["adc_offset"]),
        "noise": noise,
        "noise_relative": attributes["read_noise_relative"] > 0,
        "noise_curve": len(attributes["read_noise_curve"]) > 1,
        # Sums of tiles: with nothing between an array and its sum, tiles don't matter.
        "sums": adc or is_serial or noise or terms,
        "tiles": tiles > 1,
        "padded": padded,
        **{f"{VALUE}{name}": attributes[name] for name in _COMMON if name in attributes},
    }


def _adapter(attributes: Mapping[str, Any], shapes: Mapping[str, Sequence[int] | None]) -> Uses:
    low_rank, sparse = shapes["lora_b"], shapes["sparse_values"]
    return {
        "spatial": len(attributes.get("strides", ())),
        "low_rank": None if low_rank is None else 0 not in low_rank,
        "sparse": None if sparse is None else 0 not in sparse,
    }
