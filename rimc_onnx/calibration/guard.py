# SPDX-License-Identifier: Apache-2.0
"""A calibration that looks at what it did: the model's outputs, drifted and calibrated.

1. All nodes are fitted on the teacher's inputs (:mod:`.fit`).
2. The calibrated student is walked once and each node's gain and digital bias moved, so that spread
   and mean of its output meet the teacher's on the inputs that the student really has there. Where
   the arrays were read out and no sample came from the field, a model of the measured arrays is
   walked instead.
3. Drifted and calibrated model are run on the same samples as the teacher was. Nodes that each err
   less than before may still make a model that errs more: where the calibrated one is far from its
   teacher, or farther than the drifted one, steps of the calibration are taken back one at a time
   and what errs least is kept.

As a black box, RRAM weights are never read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.calibration.config import CalibrateConfig, Propagate
from rimc_onnx.calibration.fit import (
    CalibratedNode,
    Fitted,
    fit_nodes,
    refit_on_student,
    sensitivities_of,
)
from rimc_onnx.calibration.gains import SampleMoments, bias_shift, gain_change
from rimc_onnx.calibration.job import CalibrationJob, Progress
from rimc_onnx.calibration.output_error import OutputFigures, output_figures
from rimc_onnx.calibration.problem import TeacherKnowledge
from rimc_onnx.calibration.sensitivity import Sensitivities
from rimc_onnx.calibration.solvers.registry import Solver
from rimc_onnx.calibration.walk import (
    Feeds,
    Pair,
    Sessions,
    model_outputs,
    pairs_of,
    sample_moments,
    settle,
)
from rimc_onnx.errors import CalibrationError, UsageError
from rimc_onnx.execution.taps import Chunks
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.passes import UNEQUAL_SHARE, AttachAdaptersPass

__all__ = ["Calibration", "fit_adapters"]

_FAR_ERROR = 0.25
"""Up to here all networks that were tried are right again (docs/calibration.md)."""
_WARN_ERROR = 0.5
"""From here on a rise of the agreement is no sign that all is well."""
_ELSEWHERE_FRAC = 0.1
"""Where the nodes' errors together are less of the outputs', converters and reads make it."""
_NEGLIGIBLE_ERROR = 1e-3
"""Rounding to int8 and read noise make such differences where drift took nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What :func:`fit_adapters` found."""

    nodes: list[CalibratedNode]
    """In graph order."""
    drifted: OutputFigures | None
    """``None`` without a sample to run."""
    calibrated: OutputFigures | None
    taken_back: str | None
    """The step that made the outputs worse and was left out; ``None`` where none did."""
    is_identity: bool
    """True where no step helped, so that the adapters do nothing."""

    @property
    def warning(self) -> str | None:
        """One line where the outputs are far from the teacher's; ``None`` where they are not."""
        found = self.calibrated
        if found is None or found.error is None or found.error < _FAR_ERROR:
            return None
        before = None if self.drifted is None else self.drifted.agreement
        is_nearer = found.agreement is not None and before is not None and found.agreement > before
        if is_nearer and found.error < _WARN_ERROR:
            return None
        text = (
            "the calibrated model is far from its teacher: error power at its outputs "
            f"{found.error:.2f} of what they vary by over the samples."
        )
        if sum(node.error_after for node in self.nodes) < _ELSEWHERE_FRAC * found.error:
            return (
                f"{text} It is not in what its arrays hold, but in how they are read: give "
                "converters more bits (`dac_bits`, `adc_bits`) or smaller tiles, or a device with "
                "less read noise or a straighter I-V curve."
            )
        worst = max(self.nodes, key=lambda node: node.error_after)
        way = "keep it digital (`keep_digital`)"
        if worst.equalized_share < UNEQUAL_SHARE:
            way = f"its inputs are of unequal strength; equalize the teacher first, or {way}"
        return (
            f"{text} Node '{worst.name}' errs "
            f"most ({worst.error_after:.2g}): {way}, or give more samples, more SRAM or a device "
            "that is less far off."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Attempt:
    """Nodes that were fitted and settled, and the outputs that they make."""

    fitted: Fitted
    nodes: list[CalibratedNode]
    figures: OutputFigures | None
    taken_back: str | None = None

    @property
    def error(self) -> float:
        """At the outputs; infinite where nothing tells."""
        error = None if self.figures is None else self.figures.error
        return math.inf if error is None else error


def fit_adapters(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Feeds,
    *,
    num_samples: int,
    config: CalibrateConfig,
    sessions: Sessions,
    known: TeacherKnowledge | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Calibration:
    """Fit every adapter of ``student`` and put the codes into its graph.

    Args:
        student: the converted model; its adapters are replaced.
        teacher: the prepared teacher (:func:`rimc_onnx.passes.prepare_pipeline`).
        feeds: runs, ``num_samples`` samples in all; none where ``known`` is enough.
        num_samples: samples in ``feeds``.
        config: adapters, budget, solver, knowledge.
        sessions: how the device and the teacher are run.
        known: what a statistics file says of the teacher.
        progress: called with (pass, nodes done, nodes in all).

    Raises:
        CalibrationError: no step brings the outputs nearer to the teacher's, and
            ``config.allow_identity`` is False.
    """
    if config.propagate is Propagate.STUDENT and (known is not None or not feeds):
        raise UsageError(
            "`propagate=student` fits on the student's own samples: give samples and no statistics."
        )
    job = CalibrationJob(
        student=student,
        teacher=teacher,
        pairs=pairs_of(student, teacher),
        feeds=feeds,
        num_samples=num_samples,
        config=config,
        sessions=sessions,
        known=known,
        progress=progress,
    )
    identity = {pair.branch.node: _identity(pair) for pair in job.pairs}
    first = _attempt(job, sensitivities_of(job))
    drifted = None
    if first.figures is not None:
        # Not before: outputs may be larger than the model.
        drifted = output_figures(first.fitted.outputs, _outputs(job, identity))
    if drifted is None or drifted.error is None:
        return _kept(job, first, drifted)
    worse = max(drifted.error, _NEGLIGIBLE_ERROR)
    attempts = [first]
    if first.error >= _FAR_ERROR or first.error > worse:
        attempts += _with_less(job, first)
    best = min(attempts, key=lambda attempt: attempt.error)
    if best.error <= worse:
        return _kept(job, best, drifted)
    if not config.allow_identity:
        raise CalibrationError(
            f"calibration does not help: error {best.error:.3g} at the model's outputs, "
            f"{drifted.error:.3g} without it. Give more samples or more SRAM, or take the model "
            "without adapters (`allow_identity`)."
        )
    nodes = [
        replace(node, adapter=identity[node.name], rank=0, error_after=node.error_before)
        for node in first.nodes
    ]
    nothing = replace(first, nodes=nodes, figures=drifted, taken_back="everything")
    return replace(_kept(job, nothing, drifted), is_identity=True)


def _kept(job: CalibrationJob, attempt: _Attempt, drifted: OutputFigures | None) -> Calibration:
    _attach(job, attempt.nodes)
    return Calibration(
        nodes=attempt.nodes,
        drifted=drifted,
        calibrated=attempt.figures,
        taken_back=attempt.taken_back,
        is_identity=False,
    )


def _attach(job: CalibrationJob, nodes: Sequence[CalibratedNode]) -> None:
    AttachAdaptersPass({node.name: node.adapter for node in nodes})(job.student)


def _attempt(job: CalibrationJob, sensitivities: Sensitivities) -> _Attempt:
    """Fit all nodes, settle them on the student's inputs, and look at the outputs."""
    fitted = fit_nodes(job, sensitivities)
    _attach(job, fitted.nodes)
    if job.config.propagate is Propagate.STUDENT:
        fitted = replace(fitted, nodes=refit_on_student(job, fitted))
    with job.trial() as trial:
        if trial is None:
            return _Attempt(fitted=fitted, nodes=fitted.nodes, figures=None)
        moments = fitted.moments or sample_moments(
            job.teacher,
            job.units,
            trial.feeds,
            trial.device,
            outputs=fitted.outputs,
            sensitivities=fitted.sensitivities,
        )
        settled, outputs = settle(
            job.student,
            job.pairs,
            moments,
            trial.feeds,
            trial.device,
            gain_rule=_gain,
            shift_rule=functools.partial(
                bias_shift, prior_samples=job.config.closed_form.bias_prior_samples
            ),
            progress=lambda done, total: job.progress("student", done, total),
        )
    nodes = [replace(node, adapter=settled[node.name]) for node in fitted.nodes]
    return _Attempt(fitted=fitted, nodes=nodes, figures=output_figures(fitted.outputs, outputs))


def _gain(
    wanted: SampleMoments, answered: SampleMoments, adapter: QuantizedAdapter
) -> npt.NDArray[np.float64]:
    """Where an adapter has no magnitude, one digital scale for the node."""
    return gain_change(wanted, answered, per_line=adapter.has_magnitude)


def _with_less(job: CalibrationJob, first: _Attempt) -> Iterator[_Attempt]:
    """The calibration without one of its steps, or without all but the bias."""
    fitted = first.fitted
    yield replace(
        first,
        nodes=fitted.nodes,
        figures=_figures(job, fitted, fitted.nodes),
        taken_back="gains and biases of the student's inputs",
    )
    for words, adapter in _lesser_adapters(job.config):
        solver = job.config.solver if "lora" in adapter else Solver.CLOSED_FORM
        config = replace(job.config, adapter=adapter, solver=solver)
        attempt = _attempt(replace(job, config=config), fitted.sensitivities)
        # The teacher's outputs were compared; the first attempt holds them, too.
        yield replace(attempt, taken_back=words, fitted=replace(attempt.fitted, outputs={}))


def _lesser_adapters(config: CalibrateConfig) -> Iterator[tuple[str, str]]:
    """What is left out, and the adapter that is left."""
    kinds = config.kinds
    parts = {
        "low rank": ("lora", kinds.low_rank),
        "sparse cells": ("sparse", kinds.sparse),
        "dense nodes": ("dense", kinds.dense),
    }
    present = {words: name for words, (name, there) in parts.items() if there}
    correction = " and ".join(present)
    if present and kinds.magnitude:
        yield "magnitude", "+".join(present.values())
        yield correction, "magnitude"
    if present or kinds.magnitude:
        yield " and ".join([*present, *(["magnitude"] if kinds.magnitude else [])]), "bias"


def _figures(job: CalibrationJob, fitted: Fitted, nodes: Sequence[CalibratedNode]) -> OutputFigures:
    adapters = {node.name: node.adapter for node in nodes}
    return output_figures(fitted.outputs, _outputs(job, adapters))


def _outputs(job: CalibrationJob, adapters: dict[str, QuantizedAdapter]) -> dict[str, Chunks]:
    """The student's outputs with ``adapters``, which stay in it; nothing without a sample."""
    AttachAdaptersPass(adapters)(job.student)
    with job.trial() as trial:
        return {} if trial is None else model_outputs(job.student, trial.feeds, trial.device)


def _identity(pair: Pair) -> QuantizedAdapter:
    return QuantizedAdapter.identity(
        geometry=pair.geometry, rank=0, bias=pair.unit.bias.astype(np.float32)
    )
