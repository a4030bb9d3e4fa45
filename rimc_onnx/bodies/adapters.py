# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the adapters' operators: Y = M o (H + (X A) B + X S) + bias.

Codes are floating-point numbers here, exactly (decision 0002). What is known at load stays outside
an ``If``, as in :mod:`.crossbars`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rimc_onnx.bodies.builder import Body, Term

__all__ = ["dora_conv", "dora_matmul"]


def dora_matmul(b: Body) -> Term:
    """X [..., K], h [..., N]."""
    lora_a, lora_b, h = b.input("lora_a"), b.input("lora_b"), b.input("h")
    factor_a, factor_b = b.op("Cast", lora_a, to=1), b.op("Cast", lora_b, to=1)
    columns = b.op("Shape", lora_b).part(1, 2)
    depth = b.op("Shape", lora_a).part(0, 1)
    s = _cells(b, depth * columns, b.op("Concat", [-1], columns, axis=0))
    x_codes = _codes(b, b.input("x") / b.input("x_scale"))

    def corrected() -> Term:
        u_codes = _codes(b, b.op("MatMul", x_codes, factor_a) / b.input("rank_step"))
        return h + b.op("MatMul", u_codes, factor_b) * b.input("lora_b_scale")

    low_rank = b.choose("low_rank", lambda: _is_filled(b, lora_b), corrected, lambda: h)
    y = b.choose(
        "sparse",
        lambda: _is_filled(b, b.input("sparse_values")),
        lambda: low_rank + b.op("MatMul", x_codes, s) * b.input("sparse_scale"),
        lambda: low_rank,
    )
    magnitude = b.op("Cast", b.input("magnitude"), to=1) * b.input("magnitude_scale")
    return y * magnitude + b.input("bias")


def dora_conv(b: Body) -> Term:
    """X [N, C, *S], h [N, M, *S_out]; A and S are convolutions, B one with a kernel of 1."""
    lora_a, lora_b, h = b.input("lora_a"), b.input("lora_b"), b.input("h")
    spatial = b.uses("spatial")
    # lora_b is a 1 x 1 kernel, so its trailing ones shape a per-channel vector.
    channel: Term | list[int]
    if spatial is None:
        channel = b.op("Concat", [-1], b.op("Shape", lora_b).part(2), axis=0)
    else:
        channel = [-1, *[1] * spatial]

    def by_channel(values: Term) -> Term:
        return b.op("Reshape", values, channel)

    factor_a, factor_b = b.op("Cast", lora_a, to=1), b.op("Cast", lora_b, to=1)
    window = b.op("Shape", lora_a).part(1)
    size = b.op("Shape", lora_b).part(0, 1) * b.op("ReduceProd", window, keepdims=1)
    s = _cells(b, size, b.op("Concat", [-1], window, axis=0))
    step, b_scale = by_channel(b.input("rank_step")), by_channel(b.input("lora_b_scale"))
    s_scale = by_channel(b.input("sparse_scale"))
    m = by_channel(b.op("Cast", b.input("magnitude"), to=1) * b.input("magnitude_scale"))
    x_codes = _codes(b, b.input("x") / b.input("x_scale"))
    geometry = {name: b.reference(name) for name in ("strides", "pads", "dilations", "group")}

    def correction() -> Term:
        u = b.op("Conv", x_codes, factor_a, **geometry)
        u_codes = _codes(b, u / step)
        return b.op("Conv", u_codes, factor_b, group=b.reference("group")) * b_scale

    if b.uses("low_rank") is False:
        low_rank = h
    else:
        # The sum is outside an If: ONNX Runtime 1.20 to 1.22 aborts on a Conv that only that reads.
        low_rank = h + b.choose(
            "low_rank", lambda: _is_filled(b, lora_b), correction, lambda: b.constant(0.0)
        )
    y = b.choose(
        "sparse",
        lambda: _is_filled(b, b.input("sparse_values")),
        lambda: low_rank + b.op("Conv", x_codes, s, **geometry) * s_scale,
        lambda: low_rank,
    )
    return y * m + by_channel(b.input("bias"))


def _codes(b: Body, x: Term) -> Term:
    return b.op("Clip", b.op("Round", x), -127.0, 127.0)


def _is_filled(b: Body, values: Term) -> Term:
    return b.op("Size", values) > 0


def _cells(b: Body, size: Term, shape: Term) -> Term:
    """The sparse cells among zeros; where only some nodes have any, empty without.

    In int8 as long as they can be: what is made at load is as large as the weight.
    """
    values = b.input("sparse_values")
    if b.uses("sparse") is None:
        size = size * b.op("Min", b.op("Size", values), 1)
    zeros = b.op("ConstantOfShape", size, value=ir.tensor(np.zeros(1, np.int8)))
    cells = b.op("ScatterElements", zeros, b.input("sparse_index"), values)
    return b.op("Cast", b.op("Reshape", cells, shape), to=1)
