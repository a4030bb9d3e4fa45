# SPDX-License-Identifier: Apache-2.0
"""Parts that the bodies of both crossbar operators call: word lines, I-V curves and bit lines.

In standard ONNX operators and of the domain ``ai.rimc`` themselves; see
:mod:`rimc_onnx.bodies.operators`.
"""

from collections.abc import Sequence

import onnxscript
from onnxscript import script
from onnxscript.onnx_opset import opset17 as op
from onnxscript.onnx_types import FLOAT, INT64

from rimc_onnx.ops import schema

__all__ = ["BitLines", "IvShare", "LargestTerm", "ReadCells", "WordLines"]

rimc = onnxscript.values.Opset(schema.DOMAIN, schema.VERSION)


@script(rimc, default_opset=op)
def LargestTerm(iv_square: Sequence[float], iv_cube: Sequence[float]) -> FLOAT[...]:
    # Zero where the current follows the input without terms of an I-V polynomial.
    terms = op.Concat(
        op.Constant(value_floats=iv_square), op.Constant(value_floats=iv_cube), axis=0
    )
    return op.ReduceMax(op.Abs(terms), keepdims=0)


@script(rimc, default_opset=op)
def WordLines(
    x: FLOAT[...],
    dac_bits: int,
    dac_range: float,
    dac_signed: int,
    dac_serial_bits: int,
    iv_sinh: float,
    input_shrink: float,
    iv_square: Sequence[float],
    iv_cube: Sequence[float],
) -> tuple[FLOAT[...], FLOAT[...]]:
    # What the word lines carry, and what stands for u = 1 on them. Planes of a bit-serial input
    # come one after the other along axis 0.
    bits = op.Constant(value_int=dac_bits)
    signed = op.Constant(value_int=dac_signed)
    serial = op.Constant(value_int=dac_serial_bits)
    scale = op.Constant(value_float=dac_range)
    top = op.Pow(op.Constant(value_float=2.0), op.Cast(bits - signed, to=1)) - 1.0
    bottom = op.Neg(top) * op.Cast(signed, to=1)
    step = scale / top
    base = op.Pow(op.Constant(value_float=2.0), op.Cast(serial, to=1))
    # Nothing is computed outside an If that only one branch reads: ONNX Runtime 1.17 mixes up the
    # memory of a value that nobody reads from the second run on.
    if serial > 0:
        codes = op.Clip(op.Round(x / step), bottom, top)
        shifts = op.Reshape(op.Cast(op.Range(0, bits - signed, op.Max(serial, 1)), to=1), [-1, 1])
        magnitude = op.Reshape(op.Abs(codes), [1, -1])
        lower = op.Floor(magnitude / op.Pow(op.Constant(value_float=2.0), shifts))
        upper = op.Floor(magnitude / (op.Pow(op.Constant(value_float=2.0), shifts) * base))
        digits = (lower - base * upper) * op.Reshape(op.Sign(codes), [1, -1])
        lines = op.Reshape(digits * step, op.Concat([-1], op.Shape(x)[1:], axis=0))
    elif bits > 0:
        lines = op.Clip(op.Round(x / step), bottom, top) * step
    else:
        lines = op.Identity(x)
    bend = op.Constant(value_float=iv_sinh)
    k = bend * op.Constant(value_float=input_shrink)
    full_scale = op.Where(serial > 0, (base - 1.0) * step, scale)
    largest_term = rimc.LargestTerm(iv_square=iv_square, iv_cube=iv_cube)
    if op.And(bend > 0.0, op.And(bits > 0, bits <= 8)):
        u = op.Clip(lines / full_scale, -1.0, 1.0)
        y = op.Round(op.Sinh(u * k) * (2048.0 / op.Sinh(k))) * (full_scale / 2048.0)
    elif bend > 0.0:
        u = op.Clip(lines / full_scale, -1.0, 1.0)
        y = op.Sinh(u * k) * (full_scale / op.Sinh(k))
    elif largest_term > 0.0:
        y = op.Clip(lines / full_scale, -1.0, 1.0) * full_scale
    else:
        y = op.Identity(lines)
    return y, full_scale


@script(rimc, default_opset=op)
def IvShare(t: FLOAT[...], coefficients: Sequence[float]) -> FLOAT[...]:
    # A polynomial in t by Horner's rule; schema.IV_TERMS coefficients, lowest power first.
    c = op.Constant(value_floats=coefficients)
    share = ((c[7:8] * t + c[6:7]) * t + c[5:6]) * t + c[4:5]
    return (((share * t + c[3:4]) * t + c[2:3]) * t + c[1:2]) * t + c[0:1]


@script(rimc, default_opset=op)
def ReadCells(t: FLOAT[...], knots: FLOAT[...]) -> FLOAT[...]:
    # Read noise of pairs at t = abs w / w_max: straight lines between knots at t = (i / 64)^2.
    last = op.Cast(op.Size(knots) - 1, to=1)
    at = op.Sqrt(t) * last
    knot = op.Min(op.Floor(at), last - 1.0)
    i = op.Cast(knot, to=7)
    left = op.Gather(knots, i)
    return left + (op.Gather(knots, i + 1) - left) * (at - knot)


@script(rimc, default_opset=op)
def BitLines(
    sums: FLOAT[...],
    tile_axis: INT64[1],
    gain: FLOAT[...],
    offset: FLOAT[...],
    largest_offset: FLOAT[...],
    back: FLOAT[...],
    bits: INT64,
    serial: INT64,
    magnitude_bits: INT64,
) -> FLOAT[...]:
    # The ADC of every tile, then the digital sum over tiles and over planes, which come one after
    # the other along axis 0 of what is left. Inputs hold what is known at load (decision 0010).
    if bits > 0:
        top = op.Pow(op.Constant(value_float=2.0), op.Cast(bits - 1, to=1)) - 1.0
        if largest_offset > 0.0:
            scaled = sums * gain + offset
        else:
            scaled = sums * gain
        codes = op.Clip(op.Round(scaled), op.Neg(top), top)
    else:
        codes = op.Identity(sums)
    total = op.ReduceSum(codes, tile_axis, keepdims=0)
    if serial > 0:
        shifts = op.Range(0, magnitude_bits, op.Max(serial, 1))
        weights = op.Pow(op.Constant(value_float=2.0), op.Cast(shifts, to=1))
        by_plane = op.Reshape(total, op.Concat(op.Shape(weights), [-1], axis=0))
        joined = op.ReduceSum(by_plane * op.Reshape(weights, [-1, 1]), [0], keepdims=0)
        whole = op.Reshape(joined, op.Concat([-1], op.Shape(total)[1:], axis=0))
    else:
        whole = op.Identity(total)
    if bits > 0:
        y = whole * back
    else:
        y = op.Identity(whole)
    return y
