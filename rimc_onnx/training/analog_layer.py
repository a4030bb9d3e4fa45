# SPDX-License-Identifier: Apache-2.0
"""A node on crossbars as a torch layer: drawn devices in training, one device in a test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from rimc_onnx.crossbar import ConvertConfig, NodeRanges
from rimc_onnx.device import CellProgrammer, Scaling, largest_weight
from rimc_onnx.device.pair_error import KNOTS, pair_error
from rimc_onnx.passes import Constant, RramUnit
from rimc_onnx.passes.programmed_tensor import programmed_tensor
from rimc_onnx.passes.rram_unit import unit_periphery
from rimc_onnx.training.array_reads import ArrayReads, rounded
from rimc_onnx.training.mapped_weight import MappedWeight
from rimc_onnx.training.operators.products import convolve

__all__ = ["AnalogLayer", "Cells", "Draw"]

_INTERVALS = KNOTS - 1
"""Of the tables of a pair's error."""
_LEAST_GAIN = 0.05
"""Of arrays that have lost more there is nothing to scale up."""


class Cells(Enum):
    """What the arrays of a layer hold."""

    FILE = auto()
    """The weight of the file as it is."""
    IDEAL = auto()
    """The weight, cut at its limit and rounded to levels where the device has these."""
    DRAWN = auto()
    """The weight with deviations of the device's law, drawn anew for every :class:`Draw`."""
    DEVICE = auto()
    """One device, as :meth:`AnalogLayer.program` made it."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The key of the deviations of one step."""

    seed: int
    step: int
    scale: float = 1.0
    """Of the standard deviation and the mean shift."""
    time_index: int = 0
    """Of the layer's times."""


class AnalogLayer(nn.Module):
    """Takes the inputs of the node it replaces: x, the weight of the file, and a bias.

    The output is the node's, in the file's units: what a conversion makes of the node, before its
    bias and folds.
    """

    means: Tensor
    variances: Tensor
    power: Tensor

    def __init__(
        self,
        unit: RramUnit,
        weight: MappedWeight,
        config: ConvertConfig,
        ranges: NodeRanges | None,
        *,
        times_s: Sequence[float | None] = (),
        alpha_beta: tuple[float, float] = (1.0, 1.0),
        trans_a: bool = False,
        overlap: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """``times_s`` are the ages that deviations are drawn for, the config's where empty.

        ``alpha_beta`` and ``trans_a`` are a Gemm's; ``overlap`` adds up what a ConvTranspose makes.
        """
        super().__init__()
        self.unit, self.config, self.ranges = unit, config, ranges
        self.device = config.device_of(unit.name)
        self.limit: Tensor | None = None
        """Of the arrays' weights, where the mapping clips: fixed, as it was at the start."""
        self.weight = weight
        (self.alpha, self.beta), self.trans_a = alpha_beta, trans_a
        self.overlap = overlap
        self.cells = Cells.IDEAL
        self.draw = Draw(seed=0, step=0)
        self.reads = self._reads(config)
        self.run: int | None = None
        """Number of the run that read noise is drawn for; ``None``: not in a product's outputs."""
        self.branch: nn.Module | None = None
        """The adapter beside the arrays, where one is trained: (x, what they answer) -> output."""
        self.log_range: nn.Parameter | None = None
        """Logarithm of the input range over the measured one, where it is trained."""
        self.corrects_gain = False
        """True where a digital scale makes up for what the law takes from all cells in common."""
        self.is_measuring = False
        self.sees_slopes = False
        """True while squared slopes of the weight are added up."""
        self._seen: Tensor | None = None
        self._squares: Tensor | None = None
        self._powers: list[Tensor] = []
        self._device_weight: Tensor | None = None
        self._device_w_max = torch.ones(1)
        self._gain = torch.ones(())
        means, variances = zip(*map(self._tables, times_s or [config.time_s]), strict=True)
        self.register_buffer("means", torch.stack(means))
        self.register_buffer("variances", torch.stack(variances))
        self.register_buffer("power", torch.ones(1))
        self.start_power = 1.0

    @property
    def name(self) -> str:
        """The node's."""
        return self.unit.name

    def _reads(self, config: ConvertConfig) -> ArrayReads:
        periphery = unit_periphery(self.unit, config, self.ranges)
        return ArrayReads(**periphery.values(), column_axis=self.unit.geometry.column_axis)

    def _tables(self, time_s: float | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of a weight's deviation over |w| / W_max, W_max being 1."""
        error = pair_error(self.device, self.device.resolve_time(time_s))
        reads = self._reads(replace(self.config, time_s=time_s))
        t = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
        variance = torch.from_numpy(error.variance)
        if reads.read_noise:
            variance = variance + reads.noise_variance(t, torch.ones(1, dtype=torch.float64))
        return torch.from_numpy(error.mean).float(), variance.float()

    # --- cells --------------------------------------------------------------------------------

    def shared_axes(self, w: Tensor) -> list[int]:
        """Axes of the arrays' weight over which one W_max holds."""
        axes = list(range(w.ndim))
        if self.device.scaling is Scaling.COLUMN:
            axes.remove(self.unit.geometry.column_axis)
        return axes

    def largest(self, w: Tensor) -> Tensor:
        """W_max as it goes with the arrays' weight."""
        w_max = w.abs().amax(self.shared_axes(w), keepdim=True)
        return w_max if self.limit is None else torch.minimum(w_max, self.limit)

    def fix_limit(self, w: Tensor) -> None:
        """Clip as the mapping of the arrays' weight ``w`` does, from now on.

        A limit that follows the weights, which shrink under it, would clip them away.
        """
        if self.device.clips and self.device.clip_sigma is not None:
            sigma = w.var(self.shared_axes(w), correction=0, keepdim=True).sqrt()
            self.limit = self.device.clip_sigma * sigma

    def _mapped(self, w: Tensor, w_max: Tensor) -> Tensor:
        """Clipped, and rounded to levels; drawn deviations have the rounding in them."""
        if self.limit is not None:
            w = torch.maximum(torch.minimum(w, w_max), -w_max)
        bits = self.device.level_bits
        if bits is None or self.cells is Cells.DRAWN:
            return w
        step = w_max.clamp_min(1e-30) / float((1 << bits * self.device.num_slices) - 1)
        return rounded(w / step) * step

    def _deviations(self, w: Tensor, w_max: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every cell at the draw's time; no slope."""
        index = self.draw.time_index
        mean_table, variances = self.means[index], self.variances[index]
        at = _knots(w, w_max)
        sigma = variances.sqrt()[at] * w_max
        return mean_table[at] * w.sign() * w_max, sigma

    def moments(self, w: Tensor, w_max: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of every cell at time ``index``, with slopes over w and W_max."""
        t = (w.abs() / w_max.clamp_min(1e-30)).clamp_max(1.0) * _INTERVALS
        at = t.detach().long().clamp_max(_INTERVALS - 1)
        share = t - at
        found = []
        for table in (self.means[index], self.variances[index]):
            low, high = table[at], table[at + 1]
            found.append(low + (high - low) * share)
        return found[0] * w.sign() * w_max, found[1] * w_max.square()

    def _drawn(self, w: Tensor, w_max: Tensor) -> Tensor:
        with torch.no_grad():
            mean, sigma = self._deviations(w.detach(), w_max.detach())
            if self.corrects_gain:
                self._gain = _expected_gain(w, self.draw.scale * mean)
            key = _key(self.draw.seed, self.draw.step, self.name)
            generator = torch.Generator(w.device).manual_seed(key)
            z = torch.randn(w.shape, generator=generator, device=w.device)
            deviation = mean.addcmul_(sigma, z).mul_(self.draw.scale)
        if not self.corrects_gain:
            return w + deviation
        # What is common to all cells has a slope: with the scale behind it that is 1.
        return w * self._gain + (deviation + w.detach() * (1 - self._gain))

    def unit_of(self, w: Tensor) -> RramUnit:
        """The unit that a conversion makes of the file's weight ``w``."""
        target = self.weight.to_arrays(w.detach()).cpu().contiguous()
        old = self.unit.weight
        constant = Constant(
            source=old.source,
            tensor=ir.tensor(target.numpy(), dtype=ir.DataType.FLOAT),
            shape=old.shape,
            dtype=ir.DataType.FLOAT,
        )
        return replace(self.unit, weight=constant)

    def program(self, w: Tensor, config: ConvertConfig, programmer: CellProgrammer | None) -> None:
        """Program one device with the file's weight ``w``, bit for bit as a conversion does.

        ``config`` is the layer's with another seed, time, or mapping.
        """
        self.unit = self.unit_of(w)
        target = torch.from_numpy(self.unit.weight.float32())
        self.reads = self._reads(config)
        device = config.device_of(self.name)
        axis = self.unit.geometry.column_axis
        shape = [-1 if a == axis else 1 for a in range(target.ndim)]
        w_max = torch.from_numpy(largest_weight(target.numpy(), device, axis))
        self._device_w_max = w_max.reshape(shape).to(w.device)
        wire_ohm = config.periphery.wire_ohm
        realised = programmed_tensor(
            self.unit,
            name=self.name,
            device=device,
            seed=config.seed,
            time_s=config.time_s,
            wire_ohm=None if wire_ohm is None else float(np.float32(wire_ohm)),
            num_tiles=self.unit.num_tiles,
            tile_rows=config.periphery.tile_rows,
            dac_bits=config.reads.dac_bits or 0,
            programmer=programmer,
        )
        self._device_weight = torch.from_numpy(np.array(realised.numpy())).to(w.device)
        if self.corrects_gain:
            limit = self._device_w_max.cpu()
            means = self._tables(config.time_s)[0]
            mean = means[_knots(target, limit)] * target.sign() * limit
            self._gain = _expected_gain(target, mean).to(w.device)
        self.cells = Cells.DEVICE

    def forget(self) -> None:
        """Let go of the device."""
        self._device_weight = None

    def penalty(self, w_file: Tensor, index: int) -> Tensor:
        """Expected square of what deviations add to the outputs, over the outputs' at the start.

        sum_ij (Var w_ij + (E w_ij shift)^2) E x_j^2 / sum_ij w_ij^2 E x_j^2, both devices of a pair
        and read noise included (after Lin 2026, reconstructed).
        """
        w = self.weight.to_arrays(w_file)
        w_max = self.largest(w)
        held = self._mapped(w, w_max)
        mean, variance = self.moments(held, w_max, index)
        if self.corrects_gain:
            gain = _expected_gain(held.detach(), mean.detach())
            mean, variance = (held + mean) / gain - held, variance / gain.square()
        return ((variance + mean.square()) * self.power).sum() / self.start_power

    # --- input power --------------------------------------------------------------------------

    def _measure(self, x: Tensor) -> None:
        axes = [a for a in range(x.ndim) if a != self.unit.geometry.channel_axis % x.ndim]
        self._powers.append(x.detach().double().square().mean(axes))

    def end_measuring(self, w_file: Tensor) -> None:
        """Keep the mean power of every word line seen while ``is_measuring``."""
        channel = torch.stack(self._powers).mean(0).float()
        self._powers, self.is_measuring = [], False
        w = self.weight.to_arrays(w_file.detach())
        if not self.unit.geometry.is_conv:
            power = channel[:, None]
        else:
            group, (outputs, depth) = self.unit.geometry.group, w.shape[:2]
            power = channel.reshape(group, 1, depth).expand(-1, outputs // group, -1)
            power = power.reshape(outputs, depth, *[1] * (w.ndim - 2))
        self.power = power.to(w.device)
        self.start_power = max(float((w.square() * self.power).sum()), 1e-30)

    def take_slopes(self, rows: int) -> None:
        """Add what one batch's mean of ``rows`` likelihoods says of the Fisher information."""
        if self._seen is None or self._seen.grad is None:
            return
        squares = self.weight.squares_to_arrays(self._seen.grad.square() * rows)
        self._squares = squares if self._squares is None else self._squares + squares
        self._seen = None

    def end_slopes(self, num_batches: int) -> None:
        """From now on the penalty is half the Fisher information times squared deviations."""
        self.sees_slopes = False
        if self._squares is not None:
            self.power, self.start_power = self._squares / num_batches, 2.0
        self._squares = None

    # --- running ------------------------------------------------------------------------------

    def _product(self, x: Tensor, w: Tensor, first: int, last: int) -> Tensor:
        """Rows, or input channels of every group, ``first`` to ``last`` of the arrays."""
        geometry = self.unit.geometry
        if not geometry.is_conv:
            whole = first == 0 and last == w.shape[0]
            return x @ w if whole else x[..., first:last] @ w[first:last]
        if last - first < w.shape[1]:
            n, c, *sizes = x.shape
            x = x.reshape(n, geometry.group, c // geometry.group, *sizes)[:, :, first:last]
            x, w = x.reshape(n, -1, *sizes), w[:, first:last]
        return convolve(
            x,
            w,
            None,
            strides=geometry.strides,
            pads=geometry.pads,
            dilations=geometry.dilations,
            group=geometry.group,
        )

    def forward(self, x: Tensor, w_file: Tensor, bias: Tensor | None = None) -> Tensor:
        """The node's output."""
        x = self.weight.layout.with_axes_of_weight(x.t() if self.trans_a else x)
        if self.is_measuring:
            self._measure(x)
        if self.sees_slopes:
            self._seen = w_file = w_file.detach().requires_grad_(True)
        y = self._converted(x, w_file)
        if self.branch is not None:
            y = self.branch(x, y)
        shift = self.weight.shift_of_outputs(w_file)
        if self.weight.columns is not None:
            scale = self.weight.columns
            inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale).flatten()
            y = y * (inverse if not self.unit.geometry.is_conv else _channels(inverse, y))
        if shift is not None:
            y = y + (shift if not self.unit.geometry.is_conv else _channels(shift, y))
        if self.alpha != 1.0:
            y = y * self.alpha
        if self.overlap is not None:
            y = self.overlap(y)
        if bias is None:
            return y
        if self.unit.geometry.is_conv:
            bias = _channels(bias, y)
        return y + (bias if self.beta == 1.0 else bias * self.beta)

    def _converted(self, x: Tensor, w_file: Tensor) -> Tensor:
        """What the arrays answer, in their units, behind the digital scale."""
        y = self._answered(x, w_file)
        is_off = self.corrects_gain and self.cells in (Cells.DRAWN, Cells.DEVICE)
        return y / self._gain if is_off else y

    def _answered(self, x: Tensor, w_file: Tensor) -> Tensor:
        if self.cells is Cells.DEVICE and self._device_weight is not None:
            w, w_max = self._device_weight, self._device_w_max
        else:
            arrays = self.weight.to_arrays(w_file)
            w_max = self.largest(arrays)
            w = arrays if self.cells is Cells.FILE else self._mapped(arrays, w_max)
            if self.cells is Cells.DRAWN:
                w = self._drawn(w, w_max)
        steps = self.unit.geometry.steps
        # Drawn cells have read noise in them.
        is_product = self.reads.is_ideal_but_for_noise
        if self.reads.is_ideal or (self.cells is not Cells.DEVICE and is_product):
            return self._product(x, w, 0, steps)
        run = self.run if self.cells is Cells.DEVICE else None
        # A range of s R is the range R for x / s: word lines see x over their range alone.
        s = torch.ones(()) if self.log_range is None else self.log_range.exp()
        y = self.reads.read_all(
            x if self.log_range is None else x / s,
            w,
            w_max,
            steps=steps,
            multiply=self._product,
            run=run,
        )
        return y if self.log_range is None else s * y

    @property
    def input_range(self) -> float | None:
        """What it was trained to; ``None`` where it was not."""
        if self.log_range is None:
            return None
        return self.reads.dac_range * float(self.log_range.detach().exp())


def _knots(w: Tensor, w_max: Tensor) -> Tensor:
    """Where every weight lies in the tables of a pair's error, the nearest place."""
    t = (w.abs() * (_INTERVALS / w_max.clamp_min(1e-30))).clamp_max_(_INTERVALS)
    return t.add_(0.5).int()


def _expected_gain(w: Tensor, mean: Tensor) -> Tensor:
    """Of arrays that hold w + mean where w is meant: what is common to all cells, by power."""
    power = w.square().sum()
    gain = 1 + (w * mean).sum() / power.clamp_min(1e-30)
    return gain.clamp_min(_LEAST_GAIN)


def _channels(vector: Tensor, y: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (y.ndim - 2))


def _key(seed: int, step: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{step}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
