# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the crossbar operators.

Word lines are split into row tiles, each read by an ADC of its own: a tiled MatMul is one batched
MatMul, a tiled convolution one grouped convolution, and the sum over tiles comes behind the ADC.
What is known at load stays outside an ``If``: ONNX Runtime 1.24 to 1.27 loses large constants of an
``If`` that it folds (decision 0010).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rimc_onnx.bodies.builder import Body, Term
from rimc_onnx.bodies.uses import VALUE
from rimc_onnx.bodies.word_lines import (
    adc_top,
    bit_lines,
    iv_share,
    read_cells,
    sums_condition,
    terms_condition,
    word_lines,
)

__all__ = ["rram_conv", "rram_matmul"]

_ROOT_2 = 1.4142135381698608


def rram_matmul(b: Body) -> Term:
    """X [..., K] times the crossbar w [K, N]."""
    x, w = b.input("x"), b.input("w")
    lines, full_scale = word_lines(b, x)
    read = _MatMulRead(b, lines, full_scale)
    return b.choose(
        "sums",
        lambda: sums_condition(b),
        lambda: read.result(x),
        lambda: b.op("MatMul", lines, w),
    )


def rram_conv(b: Body) -> Term:
    """X [N, C, *S] through the crossbar w [M, C / group, *kernel]."""
    lines, full_scale = word_lines(b, b.input("x"))
    read = _ConvRead(b, lines, full_scale)
    return b.choose(
        "sums",
        lambda: sums_condition(b),
        read.result,
        lambda: _conv(b, lines, b.input("w"), group="group"),
    )


def _conv(b: Body, x: Term, w: Term, *, group: str) -> Term:
    geometry = [b.reference(name) for name in ("strides", "pads", "dilations")]
    attributes = {a.name: a for a in (*geometry, b.reference("group", group))}
    return b.op("Conv", x, w, **attributes)


def _tiles(b: Body) -> Term:
    return b.op("Reshape", b.attribute("num_tiles"), [1])


def _rows(b: Body, depth: Term, tiles: Term) -> Term:
    """Word lines, or input channels, of a tile."""
    whole = b.uses("padded") is False
    return (depth if whole else depth + (tiles - 1)) / tiles


def _in_every_run(b: Body, lines: Term, w: Term) -> Term:
    """``w``, so that what is made of it is made in every run: at load it would cost memory."""
    return w * b.op("Cast", b.op("Size", lines) > -1, to=1)


def _by_law(
    b: Body,
    relative: Callable[[], Term],
    on_curve: Callable[[], Term],
    absolute: Callable[[], Term],
) -> Term:
    """The law of the read noise."""
    return b.choose(
        "noise_relative",
        lambda: b.attribute("read_noise_relative") > 0,
        relative,
        lambda: b.choose(
            "noise_curve",
            lambda: b.op("Size", b.attribute("read_noise_curve")) > 1,
            on_curve,
            absolute,
        ),
    )


class _MatMulRead:
    """Sums of the tiles of a matrix; what is known at load is written when this is made."""

    def __init__(self, b: Body, lines: Term, full_scale: Term) -> None:
        self.b, self.lines, self.full_scale = b, lines, full_scale
        w = b.input("w")
        self.tiles = _tiles(b)
        w_shape = b.op("Shape", w)
        self.depth, self.columns = w_shape.part(0, 1), w_shape.part(1, 2)
        self.rows = _rows(b, self.depth, self.tiles)
        self.pad = self.rows * self.tiles - self.depth
        top, adc = adc_top(b), b.attribute("adc_range")
        self.gain = top / adc
        if b.uses("adc_errors") is not False:
            self.gain = self.gain * self._by_tile("adc_gain")
        self.offset = self._by_tile("adc_offset") * top
        self.back = adc / top
        w_padded = w
        if b.uses("padded") is not False:
            w_padded = b.op("Pad", w, b.op("Concat", [0, 0], self.pad, [0], axis=0))
        self.w_tiles = b.op(
            "Reshape", w_padded, b.op("Concat", self.tiles, self.rows, self.columns, axis=0)
        )
        self.deviation = b.attribute("w_max") * (b.attribute("read_noise") * _ROOT_2)
        self.limit = b.op("Max", b.attribute("w_max"), 1e-30)

    def _by_tile(self, name: str) -> Term:
        """One number, or one of every tile and bit line, [T or 1, 1, N or 1]."""
        b, values = self.b, self.b.attribute(name)
        one = b.op("Equal", b.op("Size", values), 1)
        tiles, columns = (b.op("Where", one, [1], n) for n in (self.tiles, self.columns))
        return b.op("Reshape", values, b.op("Concat", tiles, [1], columns, axis=0))

    def result(self, x: Term) -> Term:
        b = self.b
        x_tiles = self._x_tiles()
        sums = self._sums(x_tiles)
        sums = b.choose(
            "noise",
            lambda: b.attribute("read_noise") > 0.0,
            lambda: sums + b.op("RandomNormalLike", sums) * self._spread(x_tiles),
            lambda: sums,
        )
        read = bit_lines(b, sums, [0, 1], self.gain, self.offset, self.back)
        lead = b.op("Shape", x).part(0, -1)
        return b.reshape(read, b.op("Concat", lead, self.columns, axis=0))

    def _x_tiles(self) -> Term:
        """What enters the tiles, [1, T, P, rows].

        ONNX Runtime fuses a Transpose of [P, T, rows] into the MatMul behind it, and what it makes
        (FusedMatMul with transBatchA, in 1.17 and 1.20) divides by P, which may be 0.
        """
        b = self.b
        x_rows = self.lines
        if b.uses("padded") is not False:
            x_rows = b.op("Reshape", self.lines, b.op("Concat", [-1], self.depth, axis=0))
            x_rows = b.op("Pad", x_rows, b.op("Concat", [0, 0, 0], self.pad, axis=0))
        shape = b.op("Concat", [1, -1], self.tiles, self.rows, axis=0)
        return b.op("Transpose", b.op("Reshape", x_rows, shape), perm=[0, 2, 1, 3])

    def _sums(self, x_tiles: Term) -> Term:
        """Sums of the currents, [1, T, P, N]."""
        b, limit = self.b, self.limit
        straight = b.op("MatMul", x_tiles, self.w_tiles)

        def bent() -> Term:
            cells = _in_every_run(b, self.lines, self.w_tiles)
            t = b.op("Min", b.op("Abs", cells) / limit, 1.0)
            u = x_tiles / self.full_scale
            x_square = x_tiles * u
            square = b.op("MatMul", x_square, cells * iv_share(b, t, "iv_square"))
            cube = b.op("MatMul", x_square * u, cells * iv_share(b, t, "iv_cube"))
            return straight + square + cube

        return b.choose("terms", lambda: terms_condition(b), bent, lambda: straight)

    def _spread(self, x_tiles: Term) -> Term:
        """Standard deviation of the read noise of every sum."""
        b, limit = self.b, self.limit
        noise = b.attribute("read_noise")
        x_squares = x_tiles * x_tiles

        def relative() -> Term:
            squares = self.w_tiles * _in_every_run(b, self.lines, self.w_tiles)
            return b.op("Sqrt", b.op("MatMul", x_squares, squares)) * noise

        def on_curve() -> Term:
            cells = _in_every_run(b, self.lines, self.w_tiles)
            q = read_cells(b, b.op("Min", b.op("Abs", cells) / limit, 1.0)) * limit
            return b.op("Sqrt", b.op("MatMul", x_squares, q * q)) * noise

        return _by_law(
            b,
            relative,
            on_curve,
            lambda: b.op("Sqrt", b.op("ReduceSum", x_squares, [3], keepdims=1)) * self.deviation,
        )


class _ConvRead:
    """Sums of the tiles of a convolution; what is known at load is written when this is made.

    Whole input channels go to a tile: group g of the model becomes num_tiles groups, whose outputs
    are the partial sums of the tiles.
    """

    def __init__(self, b: Body, lines: Term, full_scale: Term) -> None:
        self.b, self.lines, self.full_scale = b, lines, full_scale
        w_shape = b.op("Shape", b.input("w"))
        self.tiles = _tiles(b)
        self.groups = b.op("Reshape", b.attribute("group"), [1])
        self.columns, self.depth = w_shape.part(0, 1), w_shape.part(1, 2)
        self.kernel = w_shape.part(2)
        self.columns_g = self.columns / self.groups
        self.is_one_group = b.uses(f"{VALUE}group") == 1
        self.by_group = [] if self.is_one_group else [self.groups]
        spatial = b.uses("spatial")
        self.has_axes = spatial is not None
        self.ones = [1] * (spatial or 1)
        self.rows = _rows(b, self.depth, self.tiles)
        self.pad = self.rows * self.tiles - self.depth
        top, adc = adc_top(b), self._by_bit_line(b.attribute("adc_range"))
        self.gain = top / adc
        if b.uses("adc_errors") is not False:
            self.gain = self.gain * self._by_tile("adc_gain")
        self.offset = self._by_tile("adc_offset") * top
        self.back = adc / top
        if not self.is_one_group:
            self.back = b.op("Squeeze", self.back, [1])
        self.is_tiled = b.uses("tiles") is not False or b.uses("padded") is not False
        self.w_tiles = self._w_tiles()
        deviations = b.attribute("w_max") * (b.attribute("read_noise") * _ROOT_2)
        self.deviation = self._by_bit_line(deviations)
        self.limit = self._limit(w_shape)
        self.all_ones = b.op(
            "ConstantOfShape",
            b.op("Concat", self.groups * self.tiles, self.rows, self.kernel, axis=0),
            value=ir.tensor(np.ones(1, np.float32)),
        )

    def _by_bit_line(self, values: Term) -> Term:
        """One number, or one of every bit line, [G, 1, M / G, *ones] or [M, *ones]."""
        b = self.b
        if self.is_one_group:
            return b.op("Reshape", values, [-1, *self.ones])
        by_column = b.op("Concat", self.groups, [1], self.columns_g, self.ones, axis=0)
        return b.op("Reshape", b.op("Expand", values, self.columns), by_column)

    def _by_tile(self, name: str) -> Term:
        """One number, or one of every tile and bit line, [G, T, M / G, *ones] or [T, M, *ones]."""
        b, values = self.b, self.b.attribute(name)
        every = b.op("Concat", self.tiles, *self.by_group, self.columns_g, self.ones, axis=0)
        one = b.op("Equal", b.op("Size", values), 1)
        shaped = b.op("Reshape", values, b.op("Where", one, [1], every))
        if self.is_one_group:
            return shaped
        return b.op("Transpose", shaped, perm=[1, 0, *range(2, 3 + len(self.ones))])

    def _w_tiles(self) -> Term:
        b, w = self.b, self.b.input("w")
        if not self.is_tiled:
            return w
        if b.uses("padded") is not False:
            w_rows = b.op("Reshape", w, b.op("Concat", self.columns, self.depth, [-1], axis=0))
            pads = b.op("Concat", [0, 0, 0, 0], self.pad, [0], axis=0)
            w = b.op("Pad", w_rows, pads)
        shape = b.op("Concat", [-1], self.rows, self.kernel, axis=0)
        if self.is_one_group:
            split = b.op("Concat", [0], self.tiles, [-1], axis=0)
            by_tile = b.op("Transpose", b.op("Reshape", w, split), perm=[1, 0, 2])
        else:
            split = b.op("Concat", self.groups, self.columns_g, self.tiles, [-1], axis=0)
            by_tile = b.op("Transpose", b.op("Reshape", w, split), perm=[0, 2, 1, 3])
        return b.op("Reshape", by_tile, shape)

    def _limit(self, w_shape: Term) -> Term:
        """W_max of every bit line, as it goes with the tiles of the weight."""
        b = self.b
        largest = b.op("Expand", b.op("Max", b.attribute("w_max"), 1e-30), self.columns)
        grouped = b.op("Concat", self.groups, [1], self.columns_g, axis=0)
        every = b.op("Concat", self.groups, self.tiles, self.columns_g, axis=0)
        repeated = b.op("Expand", b.op("Reshape", largest, grouped), every)
        one = ir.tensor(np.ones(1, np.int64))
        ones = b.op("ConstantOfShape", b.op("Shape", w_shape.part(1)), value=one)
        return b.op("Reshape", repeated, b.op("Concat", [-1], ones, axis=0))

    def result(self) -> Term:
        b = self.b
        x_shape = b.op("Shape", self.lines)
        batch = x_shape.part(0, 1)
        x_tiles = self._x_tiles(batch, x_shape.part(2))
        partial = self._sums(x_tiles)
        out_spatial = b.op("Shape", partial).part(2)
        # Axes of which no number is known when this is written become one.
        space = out_spatial if self.has_axes else b.op("ReduceProd", out_spatial, keepdims=1)
        # With [0] in place of the batch ONNX Runtime takes -1 for the volume, which a value without
        # rows does not have.
        lead = [batch, *self.by_group, self.tiles]
        split = b.op("Reshape", partial, b.op("Concat", *lead, self.columns_g, space, axis=0))
        of_rows = b.op("Concat", *lead, [1], space, axis=0)
        sums = b.choose(
            "noise",
            lambda: b.attribute("read_noise") > 0.0,
            lambda: split + b.op("RandomNormalLike", split) * self._spread(x_tiles, split, of_rows),
            lambda: split,
        )
        tile_axis = len(lead) - 1
        read = bit_lines(b, sums, [tile_axis], self.gain, self.offset, self.back)
        if self.is_one_group and self.has_axes:
            return read
        return b.op("Reshape", read, b.op("Concat", [-1], self.columns, out_spatial, axis=0))

    def _x_tiles(self, batch: Term, spatial: Term) -> Term:
        """What enters the tiles, [N, G * T * rows, *S]."""
        b = self.b
        if not self.is_tiled or b.uses("padded") is False:
            return self.lines
        volume = b.op("ReduceProd", spatial, keepdims=1)
        split = b.op("Concat", batch, self.groups, self.depth, volume, axis=0)
        pads = b.op("Concat", [0, 0, 0, 0, 0, 0], self.pad, [0], axis=0)
        padded = b.op("Pad", b.op("Reshape", self.lines, split), pads)
        channels = self.groups * self.tiles * self.rows
        return b.op("Reshape", padded, b.op("Concat", batch, channels, spatial, axis=0))

    def _conv(self, x: Term, w: Term) -> Term:
        return _conv(self.b, x, w, group="tile_group")

    def _sums(self, x_tiles: Term) -> Term:
        """Sums of the currents, [N, G * T * M / G, *S_out]."""
        b = self.b
        straight = self._conv(x_tiles, self.w_tiles)

        def bent() -> Term:
            cells = _in_every_run(b, self.lines, self.w_tiles)
            t = b.op("Min", b.op("Abs", cells) / self.limit, 1.0)
            u = x_tiles / self.full_scale
            x_square = x_tiles * u
            square = self._conv(x_square, cells * iv_share(b, t, "iv_square"))
            cube = self._conv(x_square * u, cells * iv_share(b, t, "iv_cube"))
            return straight + square + cube

        return b.choose("terms", lambda: terms_condition(b), bent, lambda: straight)

    def _spread(self, x_tiles: Term, split: Term, of_rows: Term) -> Term:
        """Standard deviation of the read noise of every sum."""
        b = self.b
        noise = b.attribute("read_noise")
        x_squares = x_tiles * x_tiles

        def by_cell(squares: Term) -> Term:
            variance = self._conv(x_squares, squares)
            return b.op("Sqrt", b.op("Reshape", variance, b.op("Shape", split))) * noise

        def relative() -> Term:
            return by_cell(self.w_tiles * _in_every_run(b, self.lines, self.w_tiles))

        def on_curve() -> Term:
            cells = _in_every_run(b, self.lines, self.w_tiles)
            q = read_cells(b, b.op("Min", b.op("Abs", cells) / self.limit, 1.0)) * self.limit
            return by_cell(q * q)

        def absolute() -> Term:
            power = b.op("Reshape", self._conv(x_squares, self.all_ones), of_rows)
            return b.op("Sqrt", power) * self.deviation

        return _by_law(b, relative, on_curve, absolute)
