# SPDX-License-Identifier: Apache-2.0
"""What is moved on the student's own inputs: gains and biases, each as far as samples agree.

A node's output has few samples and many bit lines, so what samples say of a line is shrunk by its
own standard error, towards what all lines together say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.moments import limited_rows
from rimc_onnx.execution.feed import Feed

__all__ = ["SampleMoments", "bias_shift", "gain_change", "in_both"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_TINY = np.finfo(np.float64).tiny
_MOST_LOG_GAIN = 0.7
"""A gain moves by a factor of two at most."""
_SILENT_FRAC = 1e-12
"""Variance, as a share of the loudest line's, below which a bit line has no gain to be told."""
_LEAST_SCALE_FRAC = 1e-3
"""Standard deviation that every bit line has at least, as a share of the largest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleMoments:
    """Of a node's output, over the positions of each sample."""

    mean: F64
    """[n, m]"""
    variance: F64
    """[n, m], about the sample's own mean."""
    row_limit: float = math.inf
    """Power of a position beyond which it was scaled down (:mod:`.sensitivity`)."""

    @classmethod
    def of(
        cls,
        chunks: Sequence[npt.NDArray[Any]],
        feeds: Sequence[Feed],
        channel_axis: int,
        row_limit: float = math.inf,
    ) -> SampleMoments:
        """Of one chunk a run; ``channel_axis`` of a chunk counts bit lines.

        A run of several samples has them in turn on axis 0; where a value can't be shared out
        among them, they count as one. A sample without a position is NaN. Positions of more power
        than ``row_limit`` are scaled down to it.
        """
        means, variances = [], []
        for chunk, feed in zip(chunks, feeds, strict=True):
            count = feed.num_samples if len(chunk) % feed.num_samples == 0 else 1
            output = np.asarray(chunk, np.float32)
            output = output.reshape(count, len(chunk) // count, *chunk.shape[1:])
            channel = channel_axis + 1 if channel_axis >= 0 else output.ndim + channel_axis
            if not output.size:
                nothing = np.full((count, output.shape[channel]), np.nan)
                means.append(nothing)
                variances.append(nothing)
                continue
            (output,) = limited_rows((output,), output, channel, row_limit)
            axes = tuple(axis for axis in range(1, output.ndim) if axis != channel)
            mean = output.mean(axis=axes, dtype=np.float64, keepdims=True)
            with np.errstate(invalid="ignore"):  # infinity less infinity
                off = np.square(output - mean.astype(np.float32)).mean(axis=axes, dtype=np.float64)
            means.append(mean.reshape(off.shape))
            variances.append(off)
        return cls(
            mean=np.concatenate(means), variance=np.concatenate(variances), row_limit=row_limit
        )

    def total_variance(self) -> F64:
        """Of all samples together, per bit line, [m]."""
        if not len(self.mean):
            return np.zeros(self.mean.shape[1])
        return self.variance.mean(axis=0) + self.mean.var(axis=0)

    def without_each(self) -> F64:
        """The total variance that is left without one of the samples, [n, m]."""
        others = len(self.mean) - 1
        rest = (self.mean.sum(axis=0) - self.mean) / others
        square = np.square(self.mean) + self.variance
        return np.maximum((square.sum(axis=0) - square) / others - np.square(rest), 0)


def in_both(teacher: SampleMoments, student: SampleMoments) -> tuple[SampleMoments, SampleMoments]:
    """Without the samples that have no position, or a value that is not finite, in either."""
    if len(teacher.mean) != len(student.mean):  # shared out among samples in one of them only
        nothing = np.zeros((0, teacher.mean.shape[1]))
        return (SampleMoments(mean=nothing, variance=nothing),) * 2
    arrays = (teacher.mean, teacher.variance, student.mean, student.variance)
    known = np.logical_and.reduce([np.isfinite(a).all(axis=1) for a in arrays])
    return (
        SampleMoments(mean=teacher.mean[known], variance=teacher.variance[known]),
        SampleMoments(mean=student.mean[known], variance=student.variance[known]),
    )


def gain_change(teacher: SampleMoments, student: SampleMoments, *, per_line: bool) -> F64:
    """Factors [m] by which the student's output, biases apart, is as loud as the teacher's.

    The logarithm of a line's gain is l_j = ln(sd teacher / sd student), of all lines together l.
    Jackknife variances over the samples say what l_j and l are worth (Efron and Stein, 1981): l is
    taken where it is larger than its standard error, and l_j - l is shrunk by tau^2 / (tau^2 + v_j)
    with tau^2 the variance of true gains over bit lines (James and Stein; Efron and Morris, 1973).

    ``per_line`` False gives all lines the factor of l. One sample has no gain, nor have two of one
    row each; silent lines keep theirs.
    """
    num_samples, num_lines = teacher.mean.shape
    if num_samples < 2:
        return np.ones(num_lines)
    powers = teacher.total_variance(), student.total_variance()
    heard = np.logical_and(*(p > _SILENT_FRAC * p.max(initial=0.0) for p in powers))
    if not heard.any():
        return np.ones(num_lines)
    left_out = teacher.without_each()[:, heard], student.without_each()[:, heard]
    # What varies between samples alone is constant without one of two: nothing tells its worth.
    told = np.logical_and(
        *((r > _SILENT_FRAC * p[heard]).all(axis=0) for r, p in zip(left_out, powers, strict=True))
    )
    if not told.any():
        return np.ones(num_lines)
    node = _half_log_ratio(*(p[heard].sum() for p in powers))
    node_variance = _jackknife(_half_log_ratio(*(p.sum(axis=1) for p in left_out)))
    common = node * max(1 - float(node_variance) / max(float(node) ** 2, _TINY), 0.0)
    change = np.zeros(heard.shape)
    change[heard] = common
    if per_line:
        lines = np.flatnonzero(heard)[told]
        off = _half_log_ratio(*(p[lines] for p in powers)) - node
        variance = _jackknife(_half_log_ratio(*(p[:, told] for p in left_out)))
        change[lines] += off * _shrunk(np.square(off), variance)
    return np.exp(np.clip(change, -_MOST_LOG_GAIN, _MOST_LOG_GAIN))


def bias_shift(lacking: F64, scale: F64, *, prior_samples: float) -> F32:
    """What to add to a bias, from what the mean output of each sample lacks, [n, m].

    The mean over samples, shrunk on each bit line by how far samples disagree there: tau^2 /
    (tau^2 + s^2 / n) with tau^2 the variance of true shifts over bit lines, both in units of the
    line's standard deviation ``scale`` [m]. One sample can't disagree: it counts 1 / (1 +
    prior_samples).
    """
    num_samples, num_lines = lacking.shape
    if num_samples == 0:
        return np.zeros(num_lines, np.float32)
    mean = lacking.mean(axis=0)
    if num_samples == 1:
        return np.asarray(mean / (1 + prior_samples), np.float32)
    unit = np.maximum(scale, max(_LEAST_SCALE_FRAC * scale.max(initial=0.0), _TINY**0.5))
    noise = lacking.var(axis=0, ddof=1) / num_samples
    weight = _shrunk(np.square(mean / unit), noise / np.square(unit))
    return np.asarray(weight * mean, np.float32)


def _half_log_ratio(above: Any, below: Any) -> Any:
    return 0.5 * np.log(np.maximum(above, _TINY) / np.maximum(below, _TINY))


def _jackknife(left_out: F64) -> Any:
    """Variance of an estimate from its values [n, ...] with each sample left out."""
    num_samples = len(left_out)
    return (num_samples - 1) * np.square(left_out - left_out.mean(axis=0)).mean(axis=0)


def _shrunk(square: F64, variance: F64) -> F64:
    """Share of each estimate that is kept, from its square and its own variance, [m]."""
    spread = max(float((square - variance).mean()), 0.0)
    return spread / np.maximum(spread + variance, _TINY)
