# SPDX-License-Identifier: Apache-2.0
"""The operator set ``ai.rimc``: names, inputs, attributes of the device, and limits.

Every attribute is written on every node, because a native kernel does not see the defaults of a
function; :func:`rimc_onnx.crossbar.attribute_types` has them all. ``docs/ops/`` has a page per
operator; :mod:`rimc_onnx.reference` is its meaning in numpy.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "DEVICE_STATE",
    "DOMAIN",
    "DORA_CONV",
    "DORA_MATMUL",
    "GEOMETRY",
    "IV_TERMS",
    "MAX_BITS",
    "MAX_CODE_SUM",
    "MAX_GEOMETRY",
    "MAX_IV_SINH",
    "MAX_RANK",
    "NOISE_KNOTS",
    "OPS",
    "RANK_KEY",
    "RRAM_CONV",
    "RRAM_MATMUL",
    "TIME_KEY",
    "VERSION",
    "OpSpec",
    "has_rimc_node",
    "num_tiles",
]

DOMAIN: Final = "ai.rimc"
VERSION: Final = 1

RRAM_CONV: Final = "RramConv"
RRAM_MATMUL: Final = "RramMatMul"
DORA_CONV: Final = "DoraConv"
DORA_MATMUL: Final = "DoraMatMul"

MAX_CODE_SUM: Final = 2**24 // 127
"""Largest sum of |lora_a| over one rank, and of |sparse_values| over one bit line: below it every
int32 partial sum of the branch is exact in fp32 too, so the function body may use floating-point
operators and give the same integers."""

MAX_BITS: Final = 24
"""Most bits of a converter: codes of more are not exact in float32."""

MAX_GEOMETRY: Final = 2**20
"""Largest stride, pad or dilation: no product of sizes overflows."""

MAX_RANK: Final = 2**24 // (127 * 128)
"""Largest rank of a branch, for the same reason."""

MAX_IV_SINH: Final = 6.0
"""Largest ``iv_sinh``: up to it the 14 terms of the kernels' curve are exact in float32."""

IV_TERMS: Final = 8
"""Coefficients of ``iv_square`` and of ``iv_cube``."""

NOISE_KNOTS: Final = 65
"""Values of ``read_noise_curve``, at |w| = w_max (i / 64)^2: closest where most weights are."""

RANK_KEY: Final = "rimc.rank"
"""Metadata of a converted model: the rank that its branches were given room for."""

TIME_KEY: Final = "rimc.time_s"
"""Metadata of a converted model: seconds since programming, as on its RRAM nodes."""

DEVICE_STATE: Final = {
    "node": "string",
    "device": "string",
    "device_config": "string",
    "seed": "int",
    "time_s": "float",
    "wire_ohm": "float",
    "g_max_us": "float",
    "w_max": "floats",
}
"""Attributes of a crossbar that say how its weight came to be, and their types."""

GEOMETRY: Final = {"strides": "ints", "pads": "ints", "dilations": "ints", "group": "int"}
"""Attributes of both operators of a convolution, and their types."""

_DORA_INPUTS = (
    "x",
    "h",
    "lora_a",
    "lora_b",
    "magnitude",
    "x_scale",
    "rank_step",
    "lora_b_scale",
    "magnitude_scale",
    "bias",
    "sparse_values",
    "sparse_index",
    "sparse_scale",
)


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """Name and inputs of one operator."""

    name: str
    inputs: tuple[str, ...]


OPS: Final = {
    spec.name: spec
    for spec in (
        OpSpec(name=RRAM_MATMUL, inputs=("x", "w")),
        OpSpec(name=RRAM_CONV, inputs=("x", "w")),
        OpSpec(name=DORA_MATMUL, inputs=_DORA_INPUTS),
        OpSpec(name=DORA_CONV, inputs=_DORA_INPUTS),
    )
}


def num_tiles(depth: int, rows_per_step: int, tile_rows: int | None) -> int:
    """Number of row tiles of a crossbar column.

    ``depth`` steps of ``rows_per_step`` word lines each (a MatMul: K steps of 1 row; a convolution:
    C / group steps of one kernel window) go to tiles of at most ``tile_rows`` word lines. Tiles are
    balanced: each takes ceil(depth / num_tiles) steps, the last one what is left. ``None`` is one
    tile of any height.

    Raises:
        ValueError: one step alone has more word lines than a tile.
    """
    if tile_rows is None:
        return 1
    steps = tile_rows // rows_per_step
    if steps == 0:
        raise ValueError(f"{rows_per_step} word lines do not fit in a tile of {tile_rows}")
    return -(-depth // steps)


def has_rimc_node(model: Path | bytes, ops: Iterable[str] = OPS) -> bool:
    """Whether a file, or its bytes, has a node of one of ``ops``."""
    # A NodeProto writes its op type as field 4: tag, length, name.
    marks = [b"\x22" + bytes([len(op)]) + op.encode() for op in ops]
    if isinstance(model, bytes):
        return any(mark in model for mark in marks)
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(mark) >= 0 for mark in marks)
