# SPDX-License-Identifier: Apache-2.0
"""What surrounds the arrays of a node, differentiable: word lines, tiles, read noise, converters.

The same steps as :mod:`rimc_onnx.reference`. Rounding is straight-through: codes forward, the slope
of the unrounded value backward, none where a value saturates. Curves have their own slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rimc_onnx.crossbar import CODED_BITS, CURVE_STEPS, NodePeriphery
from rimc_onnx.device import read_normals, sinh_curve

__all__ = ["ArrayReads", "rounded"]

Multiply = Callable[[Tensor, Tensor, int, int], Tensor]
"""(values on the word lines, cells, first and last step of a tile) -> sums."""


def rounded(x: Tensor) -> Tensor:
    """Round ties to even; the slope is 1."""
    return x + (torch.round(x) - x).detach()


@dataclass(frozen=True, kw_only=True)
class ArrayReads(NodePeriphery):
    """The reads of one node."""

    column_axis: int = 0
    """Of the weight; that of the outputs is 1 of a convolution and the last one of a matrix."""

    @property
    def is_ideal(self) -> bool:
        """True where a read is one product."""
        return self.is_ideal_but_for_noise and not self.read_noise

    @property
    def is_ideal_but_for_noise(self) -> bool:
        """True where a read is one product, and read noise where there is any."""
        return not (self.dac_bits or self.bends or self.adc_bits)

    # --- word lines ---------------------------------------------------------------------------

    def word_lines(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """(weight, values) of every plane of the inputs."""
        planes = [(1.0, x)]
        if self.dac_bits:
            top = float(2 ** (self.dac_bits - self.dac_signed) - 1)
            step = self.dac_range / top
            exact = torch.clamp(x / step, -top * self.dac_signed, top)
            planes = self._planes(exact, step)
        if self.iv_sinh:
            curve = [float(c) for c in sinh_curve(self.iv_sinh * self.input_shrink)]
            planes = [(weight, self._bent(v, curve)) for weight, v in planes]
        elif self.follows_weight:
            full = self.line_range
            planes = [(weight, torch.clamp(v / full, -1.0, 1.0) * full) for weight, v in planes]
        return planes

    def _planes(self, exact: Tensor, step: float) -> list[tuple[float, Tensor]]:
        if not self.dac_serial_bits:
            return [(1.0, rounded(exact) * step)]
        codes = torch.round(exact.detach())
        sizes, base = codes.abs(), float(2**self.dac_serial_bits)
        shifts = range(0, self.dac_bits - self.dac_signed, self.dac_serial_bits)
        planes = []
        for shift in shifts:
            upper = torch.floor(sizes * 2.0 ** -(shift + self.dac_serial_bits))
            digit = torch.floor(sizes * 2.0**-shift) - base * upper
            # Every plane gets its part of the slope, so that the weighted sum has slope 1.
            smooth = exact * (2.0**-shift / len(shifts))
            digit = smooth + (torch.copysign(digit, codes) - smooth).detach()
            planes.append((2.0**shift, digit * step))
        return planes

    @property
    def line_range(self) -> float:
        """What stands for u = 1 on the word lines."""
        if not (self.dac_bits and self.dac_serial_bits):
            return self.dac_range
        step = self.dac_range / (2 ** (self.dac_bits - self.dac_signed) - 1)
        return (2**self.dac_serial_bits - 1) * step

    def _bent(self, v: Tensor, curve: Sequence[float]) -> Tensor:
        full = self.line_range
        u = torch.clamp(v / full, -1.0, 1.0)
        square = u * u
        total = torch.full_like(u, curve[-1])
        for coefficient in curve[-2::-1]:
            total = total * square + coefficient
        if 0 < self.dac_bits <= CODED_BITS:
            return rounded(u * total * CURVE_STEPS) * (full / CURVE_STEPS)
        return u * total * full

    # --- cells --------------------------------------------------------------------------------

    def _iv_products(self, v: Tensor, w: Tensor, w_max: Tensor) -> list[tuple[Tensor, Tensor]]:
        if not self.follows_weight:
            return [(v, w)]
        t = (w.abs() / w_max.clamp_min(1e-30)).clamp_max(1.0)
        u = v / self.line_range
        square = v * u
        return [
            (v, w),
            (square, w * _polynomial(self.iv_square, t)),
            (square * u, w * _polynomial(self.iv_cube, t)),
        ]

    def noise_variance(self, w: Tensor, w_max: Tensor) -> Tensor:
        """Variance of a cell from one read to the next, in units of squared weights."""
        if self.read_noise_relative:
            return (self.read_noise * w).square()
        if len(self.read_noise_curve) == 1:
            return (2.0 * self.read_noise**2 * w_max.square()).expand_as(w)
        curve = torch.tensor(self.read_noise_curve, dtype=w.dtype, device=w.device)
        limit = w_max.clamp_min(1e-30)
        at = (w.abs() / limit).clamp_max(1.0).sqrt() * (curve.numel() - 1)
        knot = at.detach().floor().clamp_max(curve.numel() - 2)
        i = knot.long()
        q = (curve[i] + (curve[i + 1] - curve[i]) * (at - knot)) * limit
        return (self.read_noise * q).square()

    # --- reads --------------------------------------------------------------------------------

    def read_all(
        self,
        x: Tensor,
        w: Tensor,
        w_max: Tensor,
        *,
        steps: int,
        multiply: Multiply,
        run: int | None,
    ) -> Tensor:
        """All reads of a node and their digital sum.

        ``steps`` are the rows of w, or its input channels, that tiles share out; ``run`` is the
        number of the run that read noise is drawn for, ``None`` leaves it out. ``w_max`` goes with
        w by broadcasting.
        """
        reads = self.num_tiles if self.adc_bits else 1
        tile = -(-steps // reads)
        total = None
        for plane, (weight, v) in enumerate(self.word_lines(x)):
            products = self._iv_products(v, w, w_max)
            for t in range(reads):
                first, last = t * tile, min((t + 1) * tile, steps)
                value = sum(multiply(lines, cells, first, last) for lines, cells in products)
                assert isinstance(value, Tensor)
                if self.read_noise and run is not None:
                    variance = multiply(v * v, self.noise_variance(w, w_max), first, last)
                    z = self._normals(value, run, plane * reads + t)
                    value = value + variance.clamp_min(0.0).sqrt() * z
                if self.adc_bits:
                    value = self._codes(value, t)
                part = value if weight == 1.0 else value * weight
                total = part if total is None else total + part
        assert total is not None
        return (
            total * (self._of_bit_lines(self.adc_range, total) / self._top)
            if (self.adc_bits)
            else total
        )

    @property
    def _top(self) -> float:
        return float(2 ** (self.adc_bits - 1) - 1)

    def _of_bit_lines(self, values: Sequence[float], y: Tensor) -> Tensor:
        """[1] or [M] as it goes with outputs."""
        found = torch.tensor(values, dtype=y.dtype, device=y.device)
        if found.numel() == 1 or self.column_axis == 1:
            return found
        return found.reshape(-1, *[1] * (y.ndim - 2))

    def _codes(self, value: Tensor, tile: int) -> Tensor:
        columns = value.shape[1] if self.column_axis == 0 else value.shape[-1]

        def of_tile(values: Sequence[float]) -> Tensor:
            own = values if len(values) == 1 else values[tile * columns : (tile + 1) * columns]
            return self._of_bit_lines(own, value)

        slope = self._top / self._of_bit_lines(self.adc_range, value) * of_tile(self.adc_gain)
        exact = value * slope + of_tile(self.adc_offset) * self._top
        return rounded(exact.clamp(-self._top, self._top))

    def _normals(self, value: Tensor, run: int, stream: int) -> Tensor:
        """The draws that the kernels make: of a convolution their rows are channels."""
        if self.column_axis == 0:
            channels = value.shape[1]
            z = read_normals(
                key=self.read_key,
                run=run,
                stream=stream,
                rows=channels,
                columns=value.numel() // channels,
            )
            shape = (channels, value.shape[0], *value.shape[2:])
            return torch.from_numpy(z).to(value).reshape(shape).transpose(0, 1)
        columns = value.shape[-1]
        rows = value.numel() // columns
        z = read_normals(key=self.read_key, run=run, stream=stream, rows=rows, columns=columns)
        return torch.from_numpy(z).to(value).reshape(value.shape)


def _polynomial(coefficients: Sequence[float], t: Tensor) -> Tensor:
    total = torch.full_like(t, coefficients[-1])
    for coefficient in list(coefficients)[-2::-1]:
        total = total * t + coefficient
    return total
