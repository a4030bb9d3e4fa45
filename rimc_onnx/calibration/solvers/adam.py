# SPDX-License-Identifier: Apache-2.0
"""The reference solver: gradient descent with Adam, one node at a time (Dong 2025, alg. 1 and 2).

Training form, DoRA (arXiv 2402.09353) on what the device answers:

    Y = M' o (H + X A B) / ||V||,    V = W + A B,    norms over the word lines of each bit line

Start: A random, B = 0, M' = ||W||, so Y = H. One sample at a time, all its output positions, until
the epochs are used up or the loss is small; then alg. 2, line 12: M = M' / ||V||. Where the paper
leaves a choice:

- Line 6 takes the norm of the output, which depends on the input and can't be merged into M. Here
  it is the norm of the weight, as in DoRA.
- The device is a black box, so the frozen W inside the norm is the teacher's target weight.
- B and M' are trained as shares of ||W||, bit line by bit line: Adam with a learning rate for each
  bit line. Folded batch norms make norms differ by a thousand, which no one rate would serve.
- The loss is counted in units of the teacher feature's mean square. Adam's steps do not depend on
  it; the threshold means the same at every node.

torch is imported when a node is fitted, not before. Nothing global is read or changed. The same
torch with the same number of threads gives the same adapter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.problem import nothing_finite
from rimc_onnx.calibration.solvers.closed_form import Adapter
from rimc_onnx.device import Purpose, standard_normals
from rimc_onnx.errors import CalibrationError, ConfigError
from rimc_onnx.ops.geometry import NodeGeometry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdamConfig", "fit_adam"]

F32 = npt.NDArray[np.float32]

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
"""Adam's own constants (arXiv 1412.6980, alg. 1)."""
_LEAST_GAIN = 1e-3
"""A magnitude is a gain: int8 codes hold no bit line that answers with the wrong sign."""


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """How long and how fast. The paper gives the epochs; the rest is chosen on ResNet-20."""

    epochs: int = 20
    """Most passes over the samples; one sample is one step."""
    loss_threshold_frac: float = 1e-6
    """A node is done when an epoch's mean loss is this share of its feature's mean square."""
    learning_rate: float = 0.01
    """Of the first step; it falls linearly to zero over all epochs."""

    def __post_init__(self) -> None:
        if not (self.epochs >= 1 and self.loss_threshold_frac >= 0 and self.learning_rate > 0):
            raise ConfigError(
                "need epochs >= 1, loss_threshold_frac >= 0 and learning_rate > 0, got "
                f"{self.epochs}, {self.loss_threshold_frac} and {self.learning_rate}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    """All positions of one sample."""

    x: Tensor
    """[1, C, *S], padded where the pads are uneven; [P, K] of a MatMul"""
    h: Tensor
    """[1, M, *S_out] or [P, M]"""
    y: Tensor


def fit_adam(
    geometry: NodeGeometry,
    x_chunks: Sequence[npt.NDArray[Any]],
    h_chunks: Sequence[npt.NDArray[Any]],
    y_chunks: Sequence[npt.NDArray[Any]],
    target: F32,
    *,
    rank: int,
    magnitude: bool,
    node: str,
    seed: int,
    config: AdamConfig | None = None,
    chunk_samples: Sequence[int] | None = None,
) -> Adapter:
    """Fit the adapter of one node.

    Args:
        geometry: of the node.
        x_chunks: the teacher's inputs as the node reads them.
        h_chunks: the device's answers to them.
        y_chunks: the teacher's features without bias.
        target: W_t, [G, d, m].
        rank: of each group; no more than the matrix has.
        magnitude: False is LoRA, Y = H + X A B, without magnitude and norm.
        node: name, key of the random start.
        seed: key of the random start.
        config: the default where ``None``.
        chunk_samples: samples in each chunk, where axis 0 counts something else (tokens).

    Raises:
        CalibrationError: torch is missing, or no sample or no loss is finite.
    """
    _check_torch()
    import torch

    config = config or AdamConfig()
    # Both guards: a caller inside no_grad or inference_mode gets the same adapter.
    with torch.inference_mode(False), torch.enable_grad():
        student = _Student(geometry, target, rank=rank, magnitude=magnitude)
        samples = _samples(geometry, x_chunks, h_chunks, y_chunks, chunk_samples)
        theta = student.start(node, seed)
        if not samples and any(h.size for h in h_chunks):
            raise nothing_finite(node)
        if samples:
            _descend(student, samples, theta, config, node)
        return student.merged(theta.detach())


def _check_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise CalibrationError(
            'the solver adam needs torch. Run pip install "rimc-onnx[torch]", or calibrate with '
            "the solver closed-form."
        ) from error


class _Student:
    """Training form of one node. Letters: G groups, d word lines, m bit lines, R rank.

    The parameters are one vector ``theta``: A [G, R, d], B / ||W|| [G, m, R] and, with a
    magnitude, M' / ||W|| [G, m].
    """

    def __init__(self, geometry: NodeGeometry, target: F32, *, rank: int, magnitude: bool) -> None:
        import torch

        group, depth, columns = target.shape
        self.geometry = geometry
        self.magnitude = magnitude
        self.a_shape, self.b_shape = (group, rank, depth), (group, columns, rank)
        sizes = [math.prod(self.a_shape), math.prod(self.b_shape)]
        self.sizes = [*sizes, group * columns] if magnitude else sizes
        self.weight = torch.from_numpy(np.array(target.transpose(0, 2, 1), np.float32, order="C"))
        self.norm = torch.linalg.vector_norm(self.weight, dim=2)
        self.dead = self.norm == 0

    def start(self, node: str, seed: int) -> Tensor:
        """A normal with variance 1 / d, B = 0, M' = ||W||."""
        import torch

        num_a, num_b, *num_m = self.sizes
        draws = standard_normals(
            seed=seed,
            node=node,
            device=0,
            purpose=Purpose.SOLVER_START,
            start=0,
            count=num_a,
        )
        a = draws / math.sqrt(self.a_shape[2])
        theta = np.concatenate([a, np.zeros(num_b), *(np.ones(n) for n in num_m)])
        return torch.from_numpy(theta.astype(np.float32)).requires_grad_()

    def _matrices(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """A [G, R, d], B [G, m, R] and M = M' / ||V|| [G, m]."""
        import torch

        a, b, *m = torch.split_with_sizes(theta, self.sizes)
        a = a.view(self.a_shape)
        b = b.view(self.b_shape) * self.norm[:, :, None]
        if not m:
            return a, b, None
        norm = torch.linalg.vector_norm(torch.baddbmm(self.weight, b, a), dim=2)
        # A bit line without weights has no direction: there M' is M.
        ratio = self.norm / norm.masked_fill(self.dead, 1.0)
        return a, b, m[0].view_as(self.norm) * ratio.masked_fill(self.dead, 1.0)

    def feature(self, theta: Tensor, x: Tensor, h: Tensor) -> Tensor:
        """Y of one sample."""
        from torch.nn import functional

        a, b, m = self._matrices(theta)
        if not self.geometry.is_conv:
            y = h + functional.linear(functional.linear(x, a[0]), b[0])
            return y if m is None else y * m[0]
        kernel, group = self.geometry.weight_shape[1:], self.geometry.group
        ones = [1] * len(self.geometry.kernel)
        conv = (functional.conv1d, functional.conv2d, functional.conv3d)[len(ones) - 1]
        pads = _even_pads(self.geometry) or (0,) * len(ones)
        strides, dilations = self.geometry.strides, self.geometry.dilations
        u = conv(x, a.reshape(-1, *kernel), None, strides, pads, dilations, group)
        y = h + conv(u, b.reshape(-1, b.shape[2], *ones), groups=group)
        return y if m is None else y * m.reshape(-1, *ones)

    def merged(self, theta: Tensor) -> Adapter:
        """The deployed form."""
        import torch

        a, b, m = self._matrices(theta)
        m = torch.ones_like(self.norm) if m is None else m.clamp_min(_LEAST_GAIN)
        return Adapter(
            a=np.ascontiguousarray(a.numpy().transpose(0, 2, 1)),
            b=np.ascontiguousarray(b.numpy().transpose(0, 2, 1)),
            m=m.numpy(),
            s=None,
        )


def _descend(
    student: _Student,
    samples: Sequence[_Sample],
    theta: Tensor,
    config: AdamConfig,
    node: str,
) -> None:
    """Algorithm 1, lines 5 to 10; ``theta`` is changed in place."""
    import torch
    from torch.nn import functional

    power = sum(float(s.y.square().mean()) for s in samples) / len(samples) or 1.0
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    num_steps = config.epochs * len(samples)
    step = 0
    for _ in range(config.epochs):
        losses = []
        for sample in samples:
            loss = functional.mse_loss(student.feature(theta, sample.x, sample.h), sample.y) / power
            (slope,) = torch.autograd.grad(loss, theta)
            losses.append(loss.detach())
            rate = config.learning_rate * (1 - step / num_steps)
            step += 1
            with torch.no_grad():
                first.lerp_(slope, 1 - _BETA_1)
                second.mul_(_BETA_2).addcmul_(slope, slope, value=1 - _BETA_2)
                size = (second / (1 - _BETA_2**step)).sqrt_().add_(_EPSILON)
                theta.addcdiv_(first, size, value=-rate / (1 - _BETA_1**step))
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise CalibrationError(
                f"node {node!r}: the loss of the solver adam is {mean}. Check the samples for "
                "values out of range, or calibrate with the solver closed-form."
            )
        if mean <= config.loss_threshold_frac:
            return


def _even_pads(geometry: NodeGeometry) -> tuple[int, ...] | None:
    """One pad an axis, where both ends have the same."""
    half = len(geometry.pads) // 2
    begin, end = geometry.pads[:half], geometry.pads[half:]
    return begin if begin == end else None


def _samples(
    geometry: NodeGeometry,
    x_chunks: Sequence[npt.NDArray[Any]],
    h_chunks: Sequence[npt.NDArray[Any]],
    y_chunks: Sequence[npt.NDArray[Any]],
    chunk_samples: Sequence[int] | None,
) -> list[_Sample]:
    """The samples one by one; views of the chunks, but for uneven pads."""
    samples = []
    counts = [None] * len(x_chunks) if chunk_samples is None else chunk_samples
    for *arrays, count in zip(x_chunks, h_chunks, y_chunks, counts, strict=True):
        x, h, y = (_tensor(a) for a in arrays)
        if not h.numel():
            continue
        if geometry.is_conv:
            x = _padded(geometry, x)
            lead = len(x)
        else:
            lead = 1 if x.ndim == 1 else len(x)
            x, h, y = (t.reshape(-1, t.shape[-1]) for t in (x, h, y))
        parts = min(count or lead, lead)
        ends = [len(x) // lead * (lead * i // parts) for i in range(parts + 1)]
        samples += [_Sample(x=x[i:j], h=h[i:j], y=y[i:j]) for i, j in itertools.pairwise(ends)]
    return [s for s in samples if all(bool(t.isfinite().all()) for t in (s.x, s.h, s.y))]


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    import torch

    # torch warns of arrays that can't be written and takes no negative strides.
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def _padded(geometry: NodeGeometry, x: Tensor) -> Tensor:
    """Uneven pads, which torch's convolutions do not take, put on beforehand."""
    from torch.nn import functional

    if _even_pads(geometry) is not None:
        return x
    half = len(geometry.pads) // 2
    # torch counts axes from the last one.
    pairs = zip(geometry.pads[:half][::-1], geometry.pads[half:][::-1], strict=True)
    return functional.pad(x, [pad for pair in pairs for pad in pair])
