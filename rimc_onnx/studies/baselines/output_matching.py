# SPDX-License-Identifier: Apache-2.0
"""Baselines that give every bit line a gain or a bias, and nothing else.

1. :func:`batch_norm`: means and variances of every node's output are those of the teacher, on the
   student's own inputs (AdaBS: Joshi et al., Nature Communications 11, 2473, 2020, by which the
   statistics of batch normalisations are taken again on the device). Where a batch normalisation
   was folded into the weights, its mean and variance are the output's per channel, so gain and bias
   of the bit line do what new statistics would; nodes that had none get them as well.
2. :func:`bias_correction`: means alone (Nagel et al., ICCV 2019, section 4.2, with samples in place
   of the statistics of batch normalisations).
3. :func:`drift_compensation`: one gain for an array, or one for a bit line, from a read-out of the
   cells: sum |W_t| over sum |W_r| (global drift compensation, Ambrogio et al., IEDM 2019, and Joshi
   et al. 2020; the exact reference and the columns as in aihwkit). No samples.

Gains are 8-bit magnitudes, or one digital scale for a node, as adapters store them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.calibration.gains import SampleMoments
from rimc_onnx.calibration.walk import Pair, pairs_of, sample_moments, settle
from rimc_onnx.errors import UsageError
from rimc_onnx.execution.sessions import digital_session, native_session
from rimc_onnx.execution.taps import Chunks
from rimc_onnx.io.feeds import feeds_of, graph_inputs
from rimc_onnx.io.model_files import blame_model, files_of, load_model, save_model
from rimc_onnx.io.outputs import check_output
from rimc_onnx.io.samples import files_of_data, load_samples
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.passes import AttachAdaptersPass, prepare_pipeline
from rimc_onnx.studies.baselines.base import BaselineProblem, BaselineResult, chosen

__all__ = ["batch_norm", "bias_correction", "drift_compensation", "drift_compensation_column"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Adapters = dict[str, QuantizedAdapter]

_LEAST, _MOST = 0.25, 4.0
"""Gains that are believed of a few samples."""


def batch_norm(problem: BaselineProblem) -> BaselineResult:
    """Statistics of batch normalisations taken again. Options: ``num_samples`` (10)."""
    options = chosen(problem, {"num_samples": 10})
    return _written(problem, lambda s, t: _matched(problem, s, t, _spread_ratio, **options))


def bias_correction(problem: BaselineProblem) -> BaselineResult:
    """Means of the outputs. Options: ``num_samples`` (10)."""
    options = chosen(problem, {"num_samples": 10})
    return _written(problem, lambda s, t: _matched(problem, s, t, _no_gain, **options))


def drift_compensation(problem: BaselineProblem) -> BaselineResult:
    """One gain for an array, from a read-out. No options."""
    chosen(problem, {})
    return _written(problem, lambda s, t: _read_out_gains(s, t, by_column=False))


def drift_compensation_column(problem: BaselineProblem) -> BaselineResult:
    """One gain for a bit line, from a read-out. No options."""
    chosen(problem, {})
    return _written(problem, lambda s, t: _read_out_gains(s, t, by_column=True))


def _written(
    problem: BaselineProblem, fit: Callable[[ir.Model, ir.Model], Mapping[str, QuantizedAdapter]]
) -> BaselineResult:
    """The converted model with the adapters that ``fit`` finds for (student, prepared teacher)."""
    start = time.perf_counter()
    reads = [*files_of(problem.teacher), *files_of(problem.converted)]
    check_output(problem.out, force=False, reads=[*reads, *files_of_data(problem.data)])
    student, teacher = load_model(problem.converted), load_model(problem.teacher)
    with blame_model(problem.teacher), blame_model(problem.converted):
        prepare_pipeline()(teacher)
        adapters = dict(fit(student, teacher))
        AttachAdaptersPass(adapters)(student)
    save_model(student, problem.out, force=False)
    return BaselineResult(
        model=problem.out,
        sram_bytes=sum(a.sram_bytes for a in adapters.values()),
        rram_writes=0,
        seconds=time.perf_counter() - start,
    )


def _blank(pair: Pair) -> QuantizedAdapter:
    """No rank, no gain, the teacher's bias."""
    return QuantizedAdapter.identity(
        geometry=pair.geometry, rank=0, bias=pair.unit.bias.astype(np.float32)
    )


# --- on samples -------------------------------------------------------------------------------


def _matched(
    problem: BaselineProblem,
    student: ir.Model,
    teacher: ir.Model,
    gain_rule: Callable[[SampleMoments, SampleMoments, QuantizedAdapter], F64],
    *,
    num_samples: int,
) -> Adapters:
    """Node by node in graph order, on the inputs that the corrected student has there."""
    if num_samples < 1:
        raise UsageError(f"`num_samples` must be 1 or more, got {num_samples}.")
    samples = load_samples(problem.data, graph_inputs(student))
    feeds = feeds_of(samples.draw(num_samples, seed=problem.seed))
    pairs = pairs_of(student, teacher)
    AttachAdaptersPass({pair.branch.node: _blank(pair) for pair in pairs})(student)
    outputs: dict[str, Chunks] = {}
    wanted = sample_moments(
        teacher, [pair.unit for pair in pairs], feeds, digital_session, outputs=outputs
    )
    adapters, _ = settle(
        student, pairs, wanted, feeds, native_session, gain_rule=gain_rule, shift_rule=_mean_shift
    )
    return adapters


def _spread_ratio(wanted: SampleMoments, answered: SampleMoments, _: QuantizedAdapter) -> F64:
    """Ratio of standard deviations, bit line by bit line; silent ones stay."""
    above, below = wanted.total_variance(), answered.total_variance()
    heard = (above > 0) & (below > 0)
    ratio = np.sqrt(np.where(heard, above, 1.0) / np.where(heard, below, 1.0))
    return np.clip(ratio, _LEAST, _MOST)


def _no_gain(wanted: SampleMoments, _: SampleMoments, __: QuantizedAdapter) -> F64:
    return np.ones(wanted.mean.shape[1])


def _mean_shift(lacking: F64, _: F64) -> F32:
    if not len(lacking):
        return np.zeros(lacking.shape[1], np.float32)
    return np.asarray(lacking.mean(axis=0), np.float32)


# --- on a read-out ----------------------------------------------------------------------------


def _read_out_gains(student: ir.Model, teacher: ir.Model, *, by_column: bool) -> Adapters:
    found = {}
    for pair in pairs_of(student, teacher):
        wanted, held = (
            np.abs(pair.geometry.matrices(w).astype(np.float64)).sum(axis=1).reshape(-1)
            for w in (pair.unit.weight.float32(), pair.branch.weight())
        )
        if not by_column:
            wanted, held = (np.full(len(w), w.sum()) for w in (wanted, held))
        gain = np.where(held > 0, wanted / np.where(held > 0, held, 1.0), 1.0)
        found[pair.branch.node] = _blank(pair).louder(np.maximum(gain, _LEAST))[0]
    return found
