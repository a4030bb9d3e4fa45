# SPDX-License-Identifier: Apache-2.0
"""Numpy oracle of every ``ai.rimc`` operator: the meaning that function bodies and kernels share.

Sums over word lines are taken in float64 and rounded to float32 once; every other step is the
float32 operation that the kernels do, in the same order. So results agree with a kernel to the
rounding of its sum, and to one ADC code where such a sum lies on a rounding tie.

Letters: N batch or rows, K reduction depth, M output channels, C input channels, R rank, S spatial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.crossbar import CODED_BITS, CURVE_STEPS, NodePeriphery
from rimc_onnx.device import read_normals, sinh_curve

__all__ = [
    "Periphery",
    "dac_quantize",
    "dora_conv",
    "dora_matmul",
    "im2col",
    "iv_terms",
    "line_range",
    "noise_cells",
    "read_noise",
    "rram_conv",
    "rram_matmul",
    "word_lines",
]

Array = npt.NDArray[Any]
Int8Array = npt.NDArray[np.int8]
_F32 = np.float32


@dataclass(frozen=True, kw_only=True)
class Periphery(NodePeriphery):
    """The attributes of an RRAM node that the oracle reads, each switched off by default."""

    w_max: Sequence[float] = (1.0,)
    """[1] or [M]."""


def dac_quantize(x: Array, *, dac_bits: int, dac_range: float, dac_signed: int) -> Array:
    """Round ``x`` to the word-line voltages a DAC can make; ``dac_bits`` 0 is an ideal DAC.

    Codes are -(2^(b-1)-1) .. 2^(b-1)-1 (signed) or 0 .. 2^b-1, the largest one stands for
    ``dac_range``; ties go to even; values beyond the range saturate.
    """
    if dac_bits == 0:
        return x
    codes, step = _dac_codes(x, dac_bits, dac_range, dac_signed)
    return (codes * step).astype(_F32)


def _dac_codes(x: Array, dac_bits: int, dac_range: float, dac_signed: int) -> tuple[Array, _F32]:
    top = _F32(2 ** (dac_bits - dac_signed) - 1)
    step = _F32(dac_range) / top
    return np.clip(np.rint(x / step), -top * _F32(dac_signed), top).astype(_F32), step


def _bend(
    v: Array, curve: Sequence[np.float32], full_scale: np.float32, *, is_coded: bool = False
) -> Array:
    """The current that a voltage drives, in units of v, equal at both ends of the range.

    Of codes, on a grid.
    """
    u = np.clip(v / full_scale, _F32(-1.0), _F32(1.0))
    square = u * u
    total = np.full_like(u, curve[-1])
    for coefficient in curve[-2::-1]:
        total = total * square + coefficient
    if is_coded:
        steps = _F32(CURVE_STEPS)
        return (np.rint((u * total) * steps) * (full_scale / steps)).astype(_F32)
    return (u * total * full_scale).astype(_F32)


def word_lines(x: Array, periphery: Periphery) -> list[tuple[np.float32, Array]]:
    """What the word lines carry for ``x``: (weight, values) of every plane of a bit-serial input.

    A plane holds ``dac_serial_bits`` bits of the magnitude of the codes, lowest first, with the
    sign of the code; its weight is 2 to the number of bits below it. Parallel inputs are one plane.
    The current of a device is sinh(K u) / sinh(K) of its voltage u, K = iv_sinh * input_shrink. A
    curve that follows the weight leaves u as it is, inside -1 .. 1; see :func:`iv_terms`.
    """
    p = periphery
    full_scale = line_range(p)
    planes = [(_F32(1.0), np.asarray(x, _F32))]
    if p.dac_bits and p.dac_serial_bits:
        codes, step = _dac_codes(x, p.dac_bits, p.dac_range, p.dac_signed)
        base = _F32(2**p.dac_serial_bits)
        planes = []
        for shift in range(0, p.dac_bits - p.dac_signed, p.dac_serial_bits):
            upper = np.floor(np.abs(codes) * _F32(2.0 ** -(shift + p.dac_serial_bits)))
            digit = np.floor(np.abs(codes) * _F32(2.0**-shift)) - base * upper
            planes.append((_F32(2.0**shift), (np.copysign(digit, codes) * step).astype(_F32)))
    elif p.dac_bits:
        quantized = dac_quantize(
            x, dac_bits=p.dac_bits, dac_range=p.dac_range, dac_signed=p.dac_signed
        )
        planes = [(_F32(1.0), quantized)]
    if p.iv_sinh:
        curve = sinh_curve(float(_F32(p.iv_sinh)) * float(_F32(p.input_shrink)))
        is_coded = 0 < p.dac_bits <= CODED_BITS
        planes = [(weight, _bend(v, curve, full_scale, is_coded=is_coded)) for weight, v in planes]
    elif p.follows_weight:
        planes = [(weight, _bend(v, (_F32(1.0),), full_scale)) for weight, v in planes]
    return planes


def line_range(periphery: Periphery) -> np.float32:
    """What stands for u = 1 on the word lines: ``dac_range``, or the largest digit of a plane."""
    p = periphery
    if not (p.dac_bits and p.dac_serial_bits):
        return _F32(p.dac_range)
    step = _F32(p.dac_range) / _F32(2 ** (p.dac_bits - p.dac_signed) - 1)
    return _F32(2**p.dac_serial_bits - 1) * step


def iv_terms(
    v: Array, w: Array, periphery: Periphery, column_axis: int
) -> list[tuple[Array, Array]]:
    """(values on the word lines, cells) of u^2 and u^3 for values ``v`` and the crossbar ``w``."""
    if not periphery.follows_weight:
        return []
    t = np.minimum(np.abs(w) / _limit(w, periphery, column_axis), _F32(1.0))

    def cells(coefficients: Sequence[float]) -> Array:
        share = np.full_like(w, _F32(coefficients[-1]))
        for coefficient in coefficients[-2::-1]:
            share = share * t + _F32(coefficient)
        return (w * share).astype(_F32)

    u = v / line_range(periphery)
    square = (v * u).astype(_F32)
    cube = (square * u).astype(_F32)
    return [(square, cells(periphery.iv_square)), (cube, cells(periphery.iv_cube))]


def noise_cells(w: Array, periphery: Periphery, column_axis: int) -> Array:
    """What x^2 is multiplied by: 1 (absolute law), w^2, or q^2 with q(|w|) of the curve."""
    if periphery.read_noise_relative:
        return np.square(w, dtype=_F32)
    if len(periphery.read_noise_curve) == 1:
        return np.ones_like(w)
    curve = np.asarray(periphery.read_noise_curve, _F32)
    limit = _limit(w, periphery, column_axis)
    at = np.sqrt(np.minimum(np.abs(w) / limit, _F32(1.0))) * _F32(curve.size - 1)
    knot = np.minimum(np.floor(at), _F32(curve.size - 2))
    i = knot.astype(np.int64)
    q = (curve[i] + (curve[i + 1] - curve[i]) * (at - knot)) * limit
    return np.square(q, dtype=_F32)


def _limit(w: Array, periphery: Periphery, column_axis: int) -> Array:
    """W_max of every bit line, above 0, as it goes with ``w``."""
    columns = [1] * w.ndim
    columns[column_axis] = -1
    return np.maximum(np.asarray(periphery.w_max, _F32), _F32(1e-30)).reshape(columns)


def _deviation(periphery: Periphery) -> Array:
    """Read noise of y in units of the root of sum x^2 times ``noise_cells``: [1] or [M]."""
    frac = _F32(periphery.read_noise)
    if periphery.read_noise_relative or len(periphery.read_noise_curve) > 1:
        return np.asarray([frac], _F32)
    return (np.sqrt(_F32(2.0)) * frac) * np.asarray(periphery.w_max, _F32)


Multiply = Callable[[Array, Array, slice], Array]
"""(values on the word lines, cells, steps of a tile) -> sums [outputs, M], float64."""


def _read(
    x: Array,
    w: Array,
    *,
    steps: int,
    run: int,
    periphery: Periphery,
    multiply: Multiply,
    column_axis: int,
) -> Array:
    """All reads of a node and their digital sum: [outputs, M], float32.

    ``multiply`` is the array; the bit lines are axis ``column_axis`` of w.
    """
    p = periphery
    reads = p.num_tiles if p.adc_bits else 1
    tile = -(-steps // reads)
    columns = 0
    total = None
    for plane, (weight, v) in enumerate(word_lines(x, p)):
        products = [(v, w), *iv_terms(v, w, p, column_axis)]
        for t in range(reads):
            part = slice(t * tile, (t + 1) * tile)
            sums = [multiply(lines, cells, part) for lines, cells in products]
            value: Array = np.sum(sums, axis=0).astype(_F32)
            columns = value.shape[1]
            if p.read_noise:
                cells = noise_cells(w, p, column_axis)
                variance = multiply(np.square(v, dtype=_F32), cells, part).astype(_F32)
                stream = plane * reads + t
                z = read_noise(p, run=run, stream=stream, shape=value.shape, by_channel=w.ndim > 2)
                value = value + (np.sqrt(variance) * _deviation(p)) * z
            if p.adc_bits:
                value = _adc_codes(value, p, t, columns)
            read = value * weight
            total = read if total is None else total + read
    if total is None:
        raise ValueError("a node without planes or tiles")
    if p.adc_bits:
        total = total * (np.asarray(p.adc_range, _F32) / _adc_top(p))
    return total.astype(_F32)


def read_noise(
    periphery: Periphery, *, run: int, stream: int, shape: Sequence[int], by_channel: bool
) -> Array:
    """Draws [outputs, M] of one read: of a convolution (``by_channel``) their rows are channels."""
    rows, columns = reversed(shape) if by_channel else shape
    z = read_normals(key=periphery.read_key, run=run, stream=stream, rows=rows, columns=columns)
    return z.T if by_channel else z


def _adc_top(periphery: Periphery) -> np.float32:
    return _F32(2 ** (periphery.adc_bits - 1) - 1)


def _adc_codes(value: Array, periphery: Periphery, tile: int, columns: int) -> Array:
    """What the converters of a tile make of its sums [outputs, M]."""
    p, top = periphery, _adc_top(periphery)

    def of_tile(values: Sequence[float]) -> Array:
        every = np.asarray(values, _F32)
        return every if every.size == 1 else every[tile * columns : (tile + 1) * columns]

    scaled = value * ((top / np.asarray(p.adc_range, _F32)) * of_tile(p.adc_gain))
    offset = of_tile(p.adc_offset) * top
    return np.clip(np.rint(scaled + offset), -top, top)


def rram_matmul(x: Array, w: Array, *, run: int = 0, **periphery: Any) -> Array:
    """``RramMatMul``: x [..., K] times the crossbar w [K, N] gives [..., N].

    Word lines are split into ``num_tiles`` tiles of ceil(K / num_tiles) rows. ``periphery``: fields
    of :class:`Periphery`. ``run``: how many runs the session has made before, for read noise.
    """
    depth, columns = w.shape

    def multiply(v: Array, cells: Array, part: slice) -> Array:
        rows = v.reshape(-1, depth)[:, part].astype(np.float64)
        return rows @ cells[part].astype(np.float64)

    y = _read(
        x,
        w,
        steps=depth,
        run=run,
        periphery=Periphery(**periphery),
        multiply=multiply,
        column_axis=1,
    )
    return y.reshape(*x.shape[:-1], columns)


def im2col(
    x: npt.NDArray[np.generic],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> npt.NDArray[np.generic]:
    """Windows of a convolution: x [N, C, *S] gives [N, *S_out, C, *kernel]; pads as in ONNX."""
    rank = len(kernel)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=tuple(range(2, 2 + rank)))
    index = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    return np.moveaxis(windows[index], 1, 1 + rank)


def rram_conv(
    x: Array,
    w: Array,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    run: int = 0,
    **periphery: Any,
) -> Array:
    """``RramConv``: x [N, C, *S], crossbar w [M, C / group, *kernel], gives [N, M, *S_out].

    Whole input channels are split into ``num_tiles`` tiles of ceil(C / group / num_tiles) channels.
    ``periphery`` and ``run`` as in :func:`rram_matmul`.
    """
    columns, depth, *kernel = w.shape
    image = im2col(x, kernel, strides, pads, dilations).shape[: 1 + len(kernel)]

    def multiply(v: Array, cells: Array, part: slice) -> Array:
        windows = im2col(v, kernel, strides, pads, dilations)
        rows = windows.reshape(-1, group, depth, int(np.prod(kernel))).astype(np.float64)
        weights = cells.reshape(group, columns // group, depth, -1).astype(np.float64)
        sums = np.einsum("pgck,gmck->pgm", rows[:, :, part], weights[:, :, part], optimize=True)
        return sums.reshape(-1, columns)

    y = _read(
        x,
        w,
        steps=depth,
        run=run,
        periphery=Periphery(**periphery),
        multiply=multiply,
        column_axis=0,
    )
    return np.ascontiguousarray(np.moveaxis(y.reshape(*image, columns), -1, 1))


def _codes(x: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    return np.clip(np.rint(x), -127, 127).astype(np.int64)


def _merge(
    corrected: Array,
    magnitude: Int8Array,
    magnitude_scale: Array,
    bias: Array,
    channel: tuple[int, ...],
) -> Array:
    m = magnitude.astype(_F32) * magnitude_scale
    return (corrected * m.reshape(channel) + bias.reshape(channel)).astype(_F32)


def _sparse_cells(
    sparse_values: Int8Array, sparse_index: npt.NDArray[np.int64], shape: Sequence[int]
) -> npt.NDArray[np.int64]:
    cells = np.zeros(int(np.prod(shape)), np.int64)
    cells[sparse_index] = sparse_values
    return cells.reshape(shape)


def dora_matmul(
    x: Array,
    h: Array,
    lora_a: Int8Array,
    lora_b: Int8Array,
    magnitude: Int8Array,
    x_scale: Array,
    rank_step: Array,
    lora_b_scale: Array,
    magnitude_scale: Array,
    bias: Array,
    sparse_values: Int8Array,
    sparse_index: npt.NDArray[np.int64],
    sparse_scale: Array,
) -> Array:
    """``DoraMatMul``: Y = M o (H + (X A) B + X S) + bias, int8 X, A, B, S, M and int32 sums.

    x [..., K], h [..., N], lora_a [K, R], lora_b [R, N], magnitude [N], x_scale [1], rank_step [R],
    lora_b_scale [1] or [N], magnitude_scale [1], bias [N], sparse_values [E], sparse_index [E]
    (C-order index in [K, N], each at most once), sparse_scale [1] or [N]. R and E may be 0.
    Dong et al., Alg. 2.
    """
    codes = _codes(x / x_scale)
    u = _codes((codes @ lora_a.astype(np.int64)).astype(_F32) / rank_step)
    y = h
    if lora_b.size:
        y = y + (u @ lora_b.astype(np.int64)).astype(_F32) * lora_b_scale
    if sparse_values.size:
        cells = _sparse_cells(sparse_values, sparse_index, (lora_a.shape[0], lora_b.shape[1]))
        y = y + (codes @ cells).astype(_F32) * sparse_scale
    return _merge(y, magnitude, magnitude_scale, bias, (-1,))


def dora_conv(
    x: Array,
    h: Array,
    lora_a: Int8Array,
    lora_b: Int8Array,
    magnitude: Int8Array,
    x_scale: Array,
    rank_step: Array,
    lora_b_scale: Array,
    magnitude_scale: Array,
    bias: Array,
    sparse_values: Int8Array,
    sparse_index: npt.NDArray[np.int64],
    sparse_scale: Array,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """``DoraConv``: as :func:`dora_matmul` with A and S convolutions and B a 1 x 1 convolution.

    x [N, C, *S], h [N, M, *S_out], lora_a [group * R, C / group, *kernel],
    lora_b [M, R, *ones], rank_step [group * R], sparse_index in [M, C / group, *kernel], the rest
    per output channel.
    """
    depth, *kernel = lora_a.shape[1:]
    ranks, columns = lora_b.shape[1], lora_b.shape[0]
    steps = depth * int(np.prod(kernel))
    windows = im2col(_codes(x / x_scale), kernel, strides, pads, dilations)
    batch, *spatial = windows.shape[: 1 + len(kernel)]
    rows = windows.reshape(-1, group, steps).astype(np.int64, copy=False)
    channel = (-1, *[1] * len(kernel))

    def on_outputs(acc: npt.NDArray[np.int64], scale: Array) -> Array:
        image = np.moveaxis(acc.reshape(batch, *spatial, columns), -1, 1)
        return np.asarray(image.astype(_F32) * scale.reshape(channel), _F32)

    y: Array = h
    if lora_b.size:
        cells = lora_a.reshape(group, ranks, steps).astype(np.int64)
        u = np.einsum("pgk,grk->pgr", rows, cells)
        codes = _codes(u.astype(_F32) / rank_step.reshape(group, -1))
        b = lora_b.reshape(group, columns // group, ranks).astype(np.int64)
        y = y + on_outputs(np.einsum("pgr,gmr->pgm", codes, b), lora_b_scale)
    if sparse_values.size:
        sparse = _sparse_cells(sparse_values, sparse_index, (group, columns // group, steps))
        y = y + on_outputs(np.einsum("pgk,gmk->pgm", rows, sparse), sparse_scale)
    return _merge(y, magnitude, magnitude_scale, bias, channel)
