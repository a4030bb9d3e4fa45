# SPDX-License-Identifier: Apache-2.0
"""What the word lines of a node carry for an input, and which cells they meet.

Every step is the float32 operation that the kernels do, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rimc_onnx.crossbar.integer_grid import CODED_BITS, CURVE_STEPS
from rimc_onnx.crossbar.periphery import NodePeriphery
from rimc_onnx.device import sinh_curve
from rimc_onnx.ops.geometry import NodeGeometry

__all__ = ["Product", "word_line_reads"]

F32 = npt.NDArray[np.float32]
Product = tuple[F32, F32]
"""Values on the word lines, in the shape of x, and the cells that multiply them, in that of w."""


def word_line_reads(
    x: F32, w: F32, *, periphery: NodePeriphery, w_max: F32, geometry: NodeGeometry
) -> Iterator[list[Product]]:
    """The products that add up to what a bit line answers, for every plane of a bit-serial input.

    Parallel inputs are one plane. Beside the straight part there are products for the square and
    the cube of the voltage where the I-V curve follows the conductance. ``w_max`` is [1] or [M].
    """
    voltages, full_scale = _voltages(x, periphery)
    terms = _curve_cells(w, periphery, w_max, geometry) if periphery.follows_weight else []
    for v in voltages:
        carried = v
        if periphery.iv_sinh or terms:
            u = np.clip(v / full_scale, np.float32(-1), np.float32(1))
            carried = _bent(u, periphery, full_scale) if periphery.iv_sinh else u * full_scale
        products = [(carried, w)]
        power = carried
        for cells in terms:
            power = power * (carried / full_scale)
            products.append((power, cells))
        yield products


def _voltages(x: F32, periphery: NodePeriphery) -> tuple[list[F32], np.float32]:
    """What the drivers put out, plane by plane, lowest bits first, and what stands for u = 1."""
    p, full_scale = periphery, np.float32(periphery.dac_range)
    if not p.dac_bits:
        return [np.asarray(x, np.float32)], full_scale
    bits = p.dac_bits - p.dac_signed
    top = np.float32(2**bits - 1)
    step = full_scale / top
    codes = np.clip(np.rint(x / step), -top if p.dac_signed else np.float32(0), top)
    if not p.dac_serial_bits:
        return [(codes * step).astype(np.float32)], full_scale
    magnitude, largest = np.abs(codes).astype(np.int64), 2**p.dac_serial_bits - 1
    digits = [magnitude >> shift & largest for shift in range(0, bits, p.dac_serial_bits)]
    planes = [np.copysign(d.astype(np.float32), codes) * step for d in digits]
    return planes, np.float32(largest) * step


def _bent(u: F32, periphery: NodePeriphery, full_scale: np.float32) -> F32:
    """The current sinh(K u) / sinh(K) in units of the voltage; of whole numbers, on a grid."""
    k = float(np.float32(periphery.iv_sinh)) * float(np.float32(periphery.input_shrink))
    square: F32 = np.square(u)
    current: F32 = u * _polynomial(sinh_curve(k), square)
    if 0 < periphery.dac_bits <= CODED_BITS:
        steps = np.float32(CURVE_STEPS)
        return np.asarray(np.rint(current * steps) * (full_scale / steps), np.float32)
    return np.asarray(current * full_scale, np.float32)


def _curve_cells(w: F32, periphery: NodePeriphery, w_max: F32, geometry: NodeGeometry) -> list[F32]:
    """What multiplies u^2 and u^3, as they go with ``w``."""
    shape = [1] * w.ndim
    shape[geometry.column_axis] = -1
    limit = np.maximum(np.asarray(w_max, np.float32), np.float32(1e-30)).reshape(shape)
    share = np.minimum(np.abs(w) / limit, np.float32(1))
    return [w * _polynomial(c, share) for c in (periphery.iv_square, periphery.iv_cube)]


def _polynomial(coefficients: Sequence[float | np.float32], x: F32) -> F32:
    """Powers of x, lowest first, by Horner's rule in float32."""
    return np.asarray(np.polyval(np.asarray(coefficients, np.float32)[::-1], x), np.float32)
