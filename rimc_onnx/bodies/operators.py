# SPDX-License-Identifier: Apache-2.0
"""Function bodies of every ``ai.rimc`` operator, in standard ONNX operators.

A converted file carries these as model-local functions, so an ONNX Runtime without the native
library inlines them and computes the same numbers. Features that are off sit behind an ``If`` on
a constant, which ONNX Runtime folds away when it loads the model. The meaning of every attribute
is written in :mod:`rimc_onnx.ops.schema`; the plain numpy version is :mod:`rimc_onnx.reference`.

They use what is the same from opset 13 to the newest: ONNX Runtime reads a body in the opset of
the model that carries it; :mod:`rimc_onnx.passes` writes them out for one.
"""

from collections.abc import Sequence

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset17 as op
from onnxscript.onnx_types import FLOAT, INT8, INT64

from rimc_onnx.bodies.word_lines import (
    BitLines,
    IvShare,
    LargestTerm,
    ReadCells,
    WordLines,
    rimc,
)

__all__ = ["FUNCTION_OPSET_VERSION", "function_protos"]

FUNCTION_OPSET_VERSION = 17
"""Version of the default domain that the bodies are written in here."""

_ONE = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
_ONE_INT = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])


@script(rimc, default_opset=op)
def RramMatMul(
    x: FLOAT[...],
    w: FLOAT["K", "N"],
    tile_rows: int,
    num_tiles: int,
    dac_bits: int,
    dac_range: float,
    dac_signed: int,
    dac_serial_bits: int,
    iv_sinh: float,
    input_shrink: float,
    iv_square: Sequence[float],
    iv_cube: Sequence[float],
    adc_bits: int,
    adc_range: Sequence[float],
    adc_gain: Sequence[float],
    adc_offset: Sequence[float],
    read_noise: float,
    read_noise_relative: int,
    read_noise_curve: Sequence[float],
    read_key: int,
    node: str,
    device: str,
    device_config: str,
    seed: int,
    time_s: float,
    wire_ohm: float,
    g_max_us: float,
    w_max: Sequence[float],
) -> FLOAT[...]:
    lines, full_scale = rimc.WordLines(
        x,
        dac_bits=dac_bits,
        dac_range=dac_range,
        dac_signed=dac_signed,
        dac_serial_bits=dac_serial_bits,
        iv_sinh=iv_sinh,
        input_shrink=input_shrink,
        iv_square=iv_square,
        iv_cube=iv_cube,
    )
    bits = op.Constant(value_int=adc_bits)
    serial = op.Constant(value_int=dac_serial_bits)
    magnitude_bits = op.Constant(value_int=dac_bits) - op.Constant(value_int=dac_signed)
    noise = op.Constant(value_float=read_noise)
    # What is known at load stays outside the If: ONNX Runtime 1.24 to 1.27 loses large constants of
    # an If that it folds (microsoft/onnxruntime issue 29071).
    tiles = op.Reshape(op.Constant(value_int=num_tiles), [1])
    w_shape = op.Shape(w)
    depth = w_shape[0:1]
    columns = w_shape[1:2]
    rows = (depth + tiles - 1) / tiles
    pad = rows * tiles - depth
    top = op.Pow(op.Constant(value_float=2.0), op.Cast(bits - 1, to=1)) - 1.0
    adc = op.Constant(value_floats=adc_range)
    # One gain and offset, or one of every tile and bit line.
    gains = op.Constant(value_floats=adc_gain)
    offsets = op.Constant(value_floats=adc_offset)
    one = op.Size(gains) == 1
    gain_shape = op.Concat(op.Where(one, [1], tiles), [1], op.Where(one, [1], columns), axis=0)
    gain = (top / adc) * op.Reshape(gains, gain_shape)
    one_offset = op.Size(offsets) == 1
    offset_shape = op.Concat(
        op.Where(one_offset, [1], tiles), [1], op.Where(one_offset, [1], columns), axis=0
    )
    offset = op.Reshape(offsets, offset_shape) * top
    largest_offset = op.ReduceMax(op.Abs(offsets), keepdims=0)
    back = adc / top
    w_padded = op.Pad(w, op.Concat([0, 0], pad, [0], axis=0))
    w_tiles = op.Reshape(w_padded, op.Concat(tiles, rows, columns, axis=0))
    relative = op.Constant(value_int=read_noise_relative)
    knots = op.Constant(value_floats=read_noise_curve)
    follows_curve = op.Size(knots) > 1
    deviation = op.Constant(value_floats=w_max) * (noise * 1.4142135381698608)
    limit = op.Max(op.Constant(value_floats=w_max), 1e-30)
    largest_term = rimc.LargestTerm(iv_square=iv_square, iv_cube=iv_cube)
    follows = op.Cast(largest_term > 0.0, to=7)
    stored = bits + serial + op.Cast(noise > 0.0, to=7) + follows
    if stored > 0:
        x_shape = op.Shape(x)
        x_rows = op.Reshape(lines, op.Concat([-1], depth, axis=0))
        x_padded = op.Pad(x_rows, op.Concat([0, 0, 0], pad, axis=0))
        x_tiles = op.Transpose(
            op.Reshape(x_padded, op.Concat([-1], tiles, rows, axis=0)), perm=[1, 0, 2]
        )
        straight = op.MatMul(x_tiles, w_tiles)
        if follows > 0:
            # Cells made in every run: as constants they would cost memory at load where it is off.
            cells = w_tiles * op.Cast(op.Size(lines) >= 0, to=1)
            t = op.Min(op.Abs(cells) / limit, 1.0)
            u = x_tiles / full_scale
            x_square = x_tiles * u
            square = op.MatMul(x_square, cells * rimc.IvShare(t, coefficients=iv_square))
            cube = op.MatMul(x_square * u, cells * rimc.IvShare(t, coefficients=iv_cube))
            partial = straight + square + cube
        else:
            partial = op.Identity(straight)
        if noise > 0.0:
            x_squares = x_tiles * x_tiles
            if relative > 0:
                # Squared in every run: as a constant it would cost memory at load where it is off.
                unit = op.Cast(op.Size(lines) >= 0, to=1)
                spread = op.Sqrt(op.MatMul(x_squares, w_tiles * (w_tiles * unit))) * noise
            elif follows_curve:
                noisy_cells = w_tiles * op.Cast(op.Size(lines) >= 0, to=1)
                noise_at = op.Min(op.Abs(noisy_cells) / limit, 1.0)
                q = rimc.ReadCells(noise_at, knots) * limit
                spread = op.Sqrt(op.MatMul(x_squares, q * q)) * noise
            else:
                spread = op.Sqrt(op.ReduceSum(x_squares, [2], keepdims=1)) * deviation
            sums = partial + op.RandomNormalLike(partial) * spread
        else:
            sums = op.Identity(partial)
        read = rimc.BitLines(
            sums, [0], gain, offset, largest_offset, back, bits, serial, magnitude_bits
        )
        y = op.Reshape(read, op.Concat(x_shape[:-1], columns, axis=0))
    else:
        y = op.MatMul(lines, w)
    return y


@script(rimc, default_opset=op)
def RramConv(
    x: FLOAT[...],
    w: FLOAT[...],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    tile_rows: int,
    num_tiles: int,
    dac_bits: int,
    dac_range: float,
    dac_signed: int,
    dac_serial_bits: int,
    iv_sinh: float,
    input_shrink: float,
    iv_square: Sequence[float],
    iv_cube: Sequence[float],
    adc_bits: int,
    adc_range: Sequence[float],
    adc_gain: Sequence[float],
    adc_offset: Sequence[float],
    read_noise: float,
    read_noise_relative: int,
    read_noise_curve: Sequence[float],
    read_key: int,
    tile_group: int,
    node: str,
    device: str,
    device_config: str,
    seed: int,
    time_s: float,
    wire_ohm: float,
    g_max_us: float,
    w_max: Sequence[float],
) -> FLOAT[...]:
    lines, full_scale = rimc.WordLines(
        x,
        dac_bits=dac_bits,
        dac_range=dac_range,
        dac_signed=dac_signed,
        dac_serial_bits=dac_serial_bits,
        iv_sinh=iv_sinh,
        input_shrink=input_shrink,
        iv_square=iv_square,
        iv_cube=iv_cube,
    )
    bits = op.Constant(value_int=adc_bits)
    serial = op.Constant(value_int=dac_serial_bits)
    magnitude_bits = op.Constant(value_int=dac_bits) - op.Constant(value_int=dac_signed)
    noise = op.Constant(value_float=read_noise)
    # What is known at load stays outside the If, as in RramMatMul. Whole input channels go to a
    # tile, so a tiled convolution is a grouped one: group g of the model becomes num_tiles groups,
    # whose outputs are the partial sums of the tiles.
    tiles = op.Reshape(op.Constant(value_int=num_tiles), [1])
    groups = op.Reshape(op.Constant(value_int=group), [1])
    w_shape = op.Shape(w)
    columns = w_shape[0:1]
    depth = w_shape[1:2]
    kernel = w_shape[2:]
    columns_g = columns / groups
    rows = (depth + tiles - 1) / tiles
    pad = rows * tiles - depth
    top = op.Pow(op.Constant(value_float=2.0), op.Cast(bits - 1, to=1)) - 1.0
    by_column = op.Concat([1], groups, [1], columns_g, [1], axis=0)
    adc = op.Reshape(op.Expand(op.Constant(value_floats=adc_range), columns), by_column)
    # One gain and offset, or one of every tile and bit line.
    gains = op.Constant(value_floats=adc_gain)
    offsets = op.Constant(value_floats=adc_offset)
    every = op.Concat(tiles, groups, columns_g, axis=0)
    gain_shape = op.Where(op.Size(gains) == 1, [1, 1, 1], every)
    gains_g = op.Transpose(op.Reshape(gains, gain_shape), perm=[1, 0, 2])
    gain = (top / adc) * op.Unsqueeze(gains_g, [0, 4])
    offset_shape = op.Where(op.Size(offsets) == 1, [1, 1, 1], every)
    offsets_g = op.Transpose(op.Reshape(offsets, offset_shape), perm=[1, 0, 2])
    offset = op.Unsqueeze(offsets_g, [0, 4]) * top
    largest_offset = op.ReduceMax(op.Abs(offsets), keepdims=0)
    back = op.Squeeze(adc / top, [2])
    w_rows = op.Reshape(w, op.Concat(columns, depth, [-1], axis=0))
    w_padded = op.Pad(w_rows, op.Concat([0, 0, 0, 0], pad, [0], axis=0))
    w_split = op.Reshape(w_padded, op.Concat(groups, columns_g, tiles, [-1], axis=0))
    w_tiles = op.Reshape(
        op.Transpose(w_split, perm=[0, 2, 1, 3]),
        op.Concat(columns * tiles, rows, kernel, axis=0),
    )
    ones = op.ConstantOfShape(op.Concat(groups * tiles, rows, kernel, axis=0), value=_ONE)
    relative = op.Constant(value_int=read_noise_relative)
    knots = op.Constant(value_floats=read_noise_curve)
    follows_curve = op.Size(knots) > 1
    deviations = op.Constant(value_floats=w_max) * (noise * 1.4142135381698608)
    deviation = op.Reshape(op.Expand(deviations, columns), by_column)
    largest_term = rimc.LargestTerm(iv_square=iv_square, iv_cube=iv_cube)
    follows = op.Cast(largest_term > 0.0, to=7)
    w_max_g = op.Reshape(
        op.Expand(op.Max(op.Constant(value_floats=w_max), 1e-30), columns),
        op.Concat(groups, [1], columns_g, axis=0),
    )
    w_max_tiles = op.Reshape(
        op.Expand(w_max_g, op.Concat(groups, tiles, columns_g, axis=0)),
        op.Concat([-1], op.ConstantOfShape(op.Shape(w_shape[1:]), value=_ONE_INT), axis=0),
    )
    stored = bits + serial + op.Cast(noise > 0.0, to=7) + follows
    if stored > 0:
        x_shape = op.Shape(lines)
        batch = x_shape[0:1]
        spatial = x_shape[2:]
        x_split = op.Reshape(
            lines, op.Concat(batch, groups, depth, op.ReduceProd(spatial, keepdims=1), axis=0)
        )
        x_padded = op.Pad(x_split, op.Concat([0, 0, 0, 0, 0, 0], pad, [0], axis=0))
        x_tiles = op.Reshape(x_padded, op.Concat(batch, groups * tiles * rows, spatial, axis=0))
        straight = op.Conv(
            x_tiles, w_tiles, strides=strides, pads=pads, dilations=dilations, group=tile_group
        )
        if follows > 0:
            # Cells made in every run, as in RramMatMul.
            cells = w_tiles * op.Cast(op.Size(lines) >= 0, to=1)
            t = op.Min(op.Abs(cells) / w_max_tiles, 1.0)
            u = x_tiles / full_scale
            x_square = x_tiles * u
            square = op.Conv(
                x_square,
                cells * rimc.IvShare(t, coefficients=iv_square),
                strides=strides,
                pads=pads,
                dilations=dilations,
                group=tile_group,
            )
            cube = op.Conv(
                x_square * u,
                cells * rimc.IvShare(t, coefficients=iv_cube),
                strides=strides,
                pads=pads,
                dilations=dilations,
                group=tile_group,
            )
            partial = straight + square + cube
        else:
            partial = op.Identity(straight)
        out_spatial = op.Shape(partial)[2:]
        volume = op.ReduceProd(out_spatial, keepdims=1)
        split = op.Reshape(partial, op.Concat(batch, groups, tiles, columns_g, volume, axis=0))
        if noise > 0.0:
            x_squares = x_tiles * x_tiles
            if relative > 0:
                # Squared in every run, as in RramMatMul.
                unit = op.Cast(op.Size(lines) >= 0, to=1)
                variance = op.Conv(
                    x_squares,
                    w_tiles * (w_tiles * unit),
                    strides=strides,
                    pads=pads,
                    dilations=dilations,
                    group=tile_group,
                )
                spread = op.Sqrt(op.Reshape(variance, op.Shape(split))) * noise
            elif follows_curve:
                noisy_cells = w_tiles * op.Cast(op.Size(lines) >= 0, to=1)
                noise_at = op.Min(op.Abs(noisy_cells) / w_max_tiles, 1.0)
                q = rimc.ReadCells(noise_at, knots) * w_max_tiles
                curve_variance = op.Conv(
                    x_squares,
                    q * q,
                    strides=strides,
                    pads=pads,
                    dilations=dilations,
                    group=tile_group,
                )
                spread = op.Sqrt(op.Reshape(curve_variance, op.Shape(split))) * noise
            else:
                power = op.Conv(
                    x_squares,
                    ones,
                    strides=strides,
                    pads=pads,
                    dilations=dilations,
                    group=tile_group,
                )
                by_tile = op.Concat(batch, groups, tiles, [1], volume, axis=0)
                spread = op.Sqrt(op.Reshape(power, by_tile)) * deviation
            sums = split + op.RandomNormalLike(split) * spread
        else:
            sums = op.Identity(split)
        read = rimc.BitLines(
            sums, [2], gain, offset, largest_offset, back, bits, serial, magnitude_bits
        )
        y = op.Reshape(read, op.Concat([-1], columns, out_spatial, axis=0))
    else:
        y = op.Conv(lines, w, strides=strides, pads=pads, dilations=dilations, group=group)
    return y


@script(rimc, default_opset=op)
def DoraMatMul(
    x: FLOAT[...],
    h: FLOAT[...],
    lora_a: INT8["K", "R"],
    lora_b: INT8["R", "N"],
    magnitude: INT8["N"],
    x_scale: FLOAT[1],
    rank_step: FLOAT["R"],
    lora_b_scale: FLOAT[...],
    magnitude_scale: FLOAT[1],
    bias: FLOAT["N"],
    sparse_values: INT8["E"],
    sparse_index: INT64["E"],
    sparse_scale: FLOAT[...],
) -> FLOAT[...]:
    # What is known at load stays outside the If, as in RramMatMul. Without sparse cells the matrix
    # of them has no rows.
    a = op.Cast(lora_a, to=1)
    b = op.Cast(lora_b, to=1)
    num_cells = op.Size(sparse_values)
    columns = op.Shape(lora_b)[1:2]
    size = op.Shape(lora_a)[0:1] * columns * op.Min(num_cells, 1)
    cells = op.ScatterElements(op.ConstantOfShape(size), sparse_index, op.Cast(sparse_values, to=1))
    s = op.Reshape(cells, op.Concat([-1], columns, axis=0))
    x_codes = op.Clip(op.Round(x / x_scale), -127.0, 127.0)
    if op.Size(lora_b) > 0:
        u_codes = op.Clip(op.Round(op.MatMul(x_codes, a) / rank_step), -127.0, 127.0)
        low_rank = h + op.MatMul(u_codes, b) * lora_b_scale
    else:
        low_rank = op.Identity(h)
    if num_cells > 0:
        y = low_rank + op.MatMul(x_codes, s) * sparse_scale
    else:
        y = op.Identity(low_rank)
    return y * (op.Cast(magnitude, to=1) * magnitude_scale) + bias


@script(rimc, default_opset=op)
def DoraConv(
    x: FLOAT[...],
    h: FLOAT[...],
    lora_a: INT8[...],
    lora_b: INT8[...],
    magnitude: INT8["M"],
    x_scale: FLOAT[1],
    rank_step: FLOAT[...],
    lora_b_scale: FLOAT[...],
    magnitude_scale: FLOAT[1],
    bias: FLOAT["M"],
    sparse_values: INT8["E"],
    sparse_index: INT64["E"],
    sparse_scale: FLOAT[...],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> FLOAT[...]:
    # lora_b is a 1 x 1 kernel, so its trailing ones shape a per-channel vector.
    channel = op.Concat([-1], op.Shape(lora_b)[2:], axis=0)
    # What is known at load stays outside the If, as in RramMatMul. Without sparse cells the kernel
    # of them has no channels.
    a = op.Cast(lora_a, to=1)
    b = op.Cast(lora_b, to=1)
    num_cells = op.Size(sparse_values)
    window = op.Shape(lora_a)[1:]
    size = op.Shape(lora_b)[0:1] * op.ReduceProd(window, keepdims=1) * op.Min(num_cells, 1)
    cells = op.ScatterElements(op.ConstantOfShape(size), sparse_index, op.Cast(sparse_values, to=1))
    s = op.Reshape(cells, op.Concat([-1], window, axis=0))
    step = op.Reshape(rank_step, channel)
    b_scale = op.Reshape(lora_b_scale, channel)
    s_scale = op.Reshape(sparse_scale, channel)
    m = op.Reshape(op.Cast(magnitude, to=1) * magnitude_scale, channel)
    x_codes = op.Clip(op.Round(x / x_scale), -127.0, 127.0)
    # The sum is outside the If: ONNX Runtime 1.20 to 1.22 aborts on a Conv that only an If reads.
    if op.Size(lora_b) > 0:
        u = op.Conv(x_codes, a, strides=strides, pads=pads, dilations=dilations, group=group)
        u_codes = op.Clip(op.Round(u / step), -127.0, 127.0)
        correction = op.Conv(u_codes, b, group=group) * b_scale
    else:
        correction = op.Constant(value_float=0.0)
    low_rank = h + correction
    if num_cells > 0:
        corrected = op.Conv(
            x_codes, s, strides=strides, pads=pads, dilations=dilations, group=group
        )
        y = low_rank + corrected * s_scale
    else:
        y = op.Identity(low_rank)
    return y * m + op.Reshape(bias, channel)


def function_protos() -> list[onnx.FunctionProto]:
    """Every function of the domain, callees first, as they are written into a converted file."""
    return [f.to_function_proto() for f in _BODIES]


_BODIES = (
    *(LargestTerm, WordLines, IvShare, ReadCells, BitLines),
    *(RramMatMul, RramConv, DoraMatMul, DoraConv),
)
