# SPDX-License-Identifier: Apache-2.0
"""Numpy oracle of every ``ai.rimc`` operator: the meaning that function bodies and kernels share.

Sums over word lines are taken in float64 and rounded to float32 once; every other step is the
float32 operation that the kernels do, in the same order. So results agree with a kernel to the
rounding of its sum, and to one ADC code where such a sum lies on a rounding tie.

Letters: N batch or rows, K reduction depth, M output channels, C input channels, R rank, S spatial.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["dac_quantize", "dora_conv", "dora_matmul", "im2col", "rram_conv", "rram_matmul"]

Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
_F32 = np.float32


def dac_quantize(x: Array, *, dac_bits: int, dac_range: float, dac_signed: int) -> Array:
    """Round ``x`` to the word-line voltages a DAC can make; ``dac_bits`` 0 is an ideal DAC.

    Codes are -(2^(b-1)-1) .. 2^(b-1)-1 (signed) or 0 .. 2^b-1, the largest one stands for
    ``dac_range``; ties go to even; values beyond the range saturate.
    """
    if dac_bits == 0:
        return x
    top = _F32(2 ** (dac_bits - dac_signed) - 1)
    step = _F32(dac_range) / top
    codes = np.clip(np.rint(x / step), -top * _F32(dac_signed), top)
    return (codes * step).astype(_F32)


def _adc_sum(partial: npt.NDArray[np.float64], axis: int, adc_bits: int, adc_range: Array) -> Array:
    """Read every tile's partial sum with an ADC and add the codes; ``adc_bits`` 0 is ideal."""
    if adc_bits == 0:
        return partial.sum(axis=axis).astype(_F32)
    top = _F32(2 ** (adc_bits - 1) - 1)
    codes = np.clip(np.rint(partial.astype(_F32) * (top / adc_range)), -top, top)
    total = codes.sum(axis=axis, keepdims=True) * (adc_range / top)
    return np.squeeze(total, axis=axis).astype(_F32)


def rram_matmul(
    x: Array,
    w: Array,
    *,
    num_tiles: int,
    dac_bits: int,
    dac_range: float,
    dac_signed: int,
    adc_bits: int,
    adc_range: Sequence[float],
) -> Array:
    """``RramMatMul``: x [..., K] times the crossbar w [K, N] gives [..., N].

    Word lines are split into ``num_tiles`` tiles of ceil(K / num_tiles) rows. ``adc_range`` has one
    value, or one per bit line.
    """
    x_dac = dac_quantize(x, dac_bits=dac_bits, dac_range=dac_range, dac_signed=dac_signed)
    depth, columns = w.shape
    rows = x_dac.reshape(-1, depth).astype(np.float64)
    tile = -(-depth // num_tiles)
    partial = np.stack(
        [
            rows[:, t * tile : (t + 1) * tile] @ w[t * tile : (t + 1) * tile].astype(np.float64)
            for t in range(num_tiles)
        ]
    )
    y = _adc_sum(partial, 0, adc_bits, np.asarray(adc_range, _F32))
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
    num_tiles: int,
    dac_bits: int,
    dac_range: float,
    dac_signed: int,
    adc_bits: int,
    adc_range: Sequence[float],
) -> Array:
    """``RramConv``: x [N, C, *S], crossbar w [M, C / group, *kernel], gives [N, M, *S_out].

    Whole input channels are split into ``num_tiles`` tiles of ceil(C / group / num_tiles) channels.
    """
    x_dac = dac_quantize(x, dac_bits=dac_bits, dac_range=dac_range, dac_signed=dac_signed)
    columns, depth, *kernel = w.shape
    windows = im2col(x_dac, kernel, strides, pads, dilations)
    batch, *spatial = windows.shape[: 1 + len(kernel)]
    rows = windows.reshape(-1, group, depth, int(np.prod(kernel))).astype(np.float64)
    cells = w.reshape(group, columns // group, depth, -1).astype(np.float64)
    tile = -(-depth // num_tiles)
    partial = np.stack(
        [
            np.einsum(
                "pgck,gmck->pgm",
                rows[:, :, t * tile : (t + 1) * tile],
                cells[:, :, t * tile : (t + 1) * tile],
                optimize=True,
            ).reshape(-1, columns)
            for t in range(num_tiles)
        ]
    )
    y = _adc_sum(partial, 0, adc_bits, np.asarray(adc_range, _F32))
    return np.ascontiguousarray(np.moveaxis(y.reshape(batch, *spatial, columns), -1, 1))


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
    SPEC section 4 (Dong et al., Alg. 2).
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
