# SPDX-License-Identifier: Apache-2.0
"""Calibration of a converted model, from what is known of its arrays to adapters in its graph.

1. What each node's array lacks is found (:mod:`.problem`): from its answers to the teacher's inputs
   (black box), or from a read-out and the teacher's statistics.
2. The SRAM is shared out (:mod:`.allocate`) and all adapters are fitted and rounded to int8.
3. The calibrated student is walked once and each node's digital bias moved, so that its mean output
   meets the teacher's on the inputs that the student really has there. Where the arrays were read
   out and no sample came from the field, a model of the measured arrays is walked instead.

Every part of each graph runs at most twice. As a black box, RRAM weights are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnxscript import ir

from rimc_onnx.calibration.allocate import Share, allocate, uniform
from rimc_onnx.calibration.array_read_out import read_out
from rimc_onnx.calibration.config import CalibrateConfig, Propagate
from rimc_onnx.calibration.moments import Features, Geometry
from rimc_onnx.calibration.problem import (
    NodeProblem,
    TeacherKnowledge,
    matrix_of,
    problem_from_device,
)
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.sensitivity import measure_sensitivities
from rimc_onnx.calibration.solvers.closed_form import (
    Adapter,
    Draft,
    draft,
    mean_error,
    squared_error,
)
from rimc_onnx.calibration.solvers.registry import NodeSolver, NodeTask, solver_of
from rimc_onnx.calibration.walk import (
    Feeds,
    Pair,
    Sessions,
    holding,
    lockstep,
    move_biases,
    pairs_of,
    sample_means,
    teacher_features,
    teacher_means,
)
from rimc_onnx.errors import CalibrationError, UsageError
from rimc_onnx.execution.parallel import beside_each_other, one_blas_thread
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.schema import RANK_KEY
from rimc_onnx.passes import AttachAdaptersPass, RramUnit

__all__ = ["CalibratedNode", "fit_adapters"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedNode:
    """One node's adapter and its error before and after, relative to the teacher's variance."""

    name: str
    adapter: QuantizedAdapter
    rank: int
    num_weights: int
    error_before: float
    error_after: float
    mean_error: F32
    """What the node's mean output lacks on the teacher's inputs, per bit line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """What :func:`fit_adapters` was given."""

    student: ir.Model
    teacher: ir.Model
    pairs: Sequence[Pair]
    feeds: Feeds
    num_samples: int
    config: CalibrateConfig
    sessions: Sessions
    known: TeacherKnowledge | None
    progress: Progress

    @property
    def units(self) -> list[RramUnit]:
        """The teacher's nodes, in graph order."""
        return [pair.unit for pair in self.pairs]

    @property
    def solver(self) -> NodeSolver:
        """What finds adapters."""
        return solver_of(self.config.solver)

    @property
    def exact(self) -> bool:
        """True where statistics of many samples meet measured arrays.

        They are taken as exact; what is estimated from a few samples is shrunk.
        """
        return self.config.read_out and self.known is not None

    @property
    def bias_frac(self) -> float:
        """Share of a wrong mean output that the bias will take away."""
        if self.exact:
            return 1.0
        return self.num_samples / (self.num_samples + self.config.closed_form.bias_prior_samples)


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
) -> list[CalibratedNode]:
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
    """
    if config.propagate is Propagate.STUDENT and (known is not None or not feeds):
        raise UsageError(
            "--propagate student fits on the student's own samples: give samples and no statistics."
        )
    job = _Job(
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
    nodes, shares, means = _fit_nodes(job)
    if job.exact:
        nodes = [_exact_bias(p, n) for p, n in zip(job.pairs, nodes, strict=True)]
    _attach(student, nodes)
    if config.propagate is Propagate.STUDENT:
        nodes = _refit_on_student(job, shares)
    return _settle_biases(job, nodes, means)


def _fit_nodes(job: _Job) -> tuple[list[CalibratedNode], list[Share], dict[str, F64]]:
    """Every adapter and its share of the SRAM; the teacher's mean outputs for each sample."""
    sensitivities = _sensitivities(job)
    shares = _ranks(job)
    given = dict(zip((p.branch.node for p in job.pairs), shares, strict=False))
    means: dict[str, F64] = {}

    def study(item: tuple[Pair, Features | None]) -> Draft | CalibratedNode:
        pair, features = item
        problem = _problem(job, sensitivities, pair, features)
        if features is not None:
            y = sample_means(features.y, conv=pair.geometry.conv)
            means[pair.branch.node] = y + pair.unit.bias
        drafted = _draft(job, problem, exact=job.exact)
        share = given.get(pair.branch.node)
        return drafted if share is None else _finished(job, pair, drafted, share, features)

    walk = beside_each_other(study, _walk(job), workers=job.solver.num_workers)
    drafts, nodes = [], []
    for done, found in enumerate(walk):
        if isinstance(found, Draft):
            drafts.append(found)
        else:
            nodes.append(found)
        job.progress("teacher", done + 1, len(job.pairs))
    if drafts:
        shares = _shares(drafts, job.config, job.student.metadata_props.get(RANK_KEY))
        drafted = zip(job.pairs, drafts, shares, strict=True)
        nodes = list(beside_each_other(lambda item: _finished(job, *item), drafted))
    return nodes, shares, means


def _draft(job: _Job, problem: NodeProblem, *, exact: bool) -> Draft:
    return draft(
        problem,
        magnitude=job.config.kinds.magnitude,
        num_samples=0 if exact else job.num_samples,
        config=job.config.closed_form,
    )


def _finished(
    job: _Job, pair: Pair, node: Draft, share: Share, features: Features | None = None
) -> CalibratedNode:
    task = NodeTask(
        draft=node,
        features=features if job.solver.needs_features else None,
        magnitude=job.config.kinds.magnitude,
        seed=job.config.solver_seed,
    )
    return _coded(pair, node.problem, job.solver.fit(task, share), share)


def _settle_biases(
    job: _Job, nodes: list[CalibratedNode], means: Mapping[str, F64]
) -> list[CalibratedNode]:
    """Move every bias on the samples, or on those of the file with a model of the arrays.

    ``means`` are the teacher's on the samples. Of the very same samples, always: the mean of others
    would add their difference.
    """
    feeds, device = job.feeds, job.sessions.device
    measured: dict[str, F32] = {}
    if job.known is not None and not feeds:
        feeds, device = job.known.reference, job.sessions.digital
        measured = {p.branch.node: _read_out(p, job.config) for p in job.pairs} if feeds else {}
    if not feeds:
        return nodes
    if not job.feeds:
        means = teacher_means(job.teacher, job.units, feeds, device)
    with holding(job.pairs, measured):
        biases = move_biases(
            job.student,
            job.pairs,
            means,
            feeds,
            job.config.closed_form.bias_prior_samples,
            device,
            lambda done, total: job.progress("student", done, total),
        )
    nodes = [replace(n, adapter=replace(n.adapter, bias=biases[n.name])) for n in nodes]
    _attach(job.student, nodes)
    return nodes


def _attach(model: ir.Model, nodes: Sequence[CalibratedNode]) -> None:
    AttachAdaptersPass({n.name: n.adapter for n in nodes})(model)


def _walk(job: _Job) -> Iterator[tuple[Pair, Features | None]]:
    """The nodes in graph order, with features where there are samples to ask the device with."""
    if job.feeds:
        yield from teacher_features(job.student, job.teacher, job.pairs, job.feeds, job.sessions)
    else:
        yield from ((pair, None) for pair in job.pairs)


def _sensitivities(job: _Job) -> dict[str, float]:
    """Sensitivity of each node; with one rank for all there is nothing to share out."""
    if job.known is not None or job.config.rank is not None:
        return {}
    return measure_sensitivities(
        job.teacher, job.units, job.feeds, job.sessions.digital, seed=job.config.sensitivity_seed
    )


def _problem(
    job: _Job, sensitivities: Mapping[str, float], pair: Pair, features: Features | None
) -> NodeProblem:
    """What a node lacks."""
    config, name = job.config, pair.branch.node
    if features is None:
        assert job.known is not None, "no samples, then a statistics file"
        target = _target(pair)
        return NodeProblem(
            name=name,
            geometry=pair.geometry,
            statistics=job.known.statistics[name],
            target=target,
            error=target - _measured(pair, config),
            bias_frac=job.bias_frac,
        )
    problem = problem_from_device(
        name,
        features.moments(pair.geometry),
        _target(pair),
        bias_frac=job.bias_frac,
        sensitivity=sensitivities.get(name),
        measured=_measured(pair, config) if config.read_out else None,
        noise_frac=config.read_out_noise_frac,
    )
    if job.known is not None:
        problem = replace(problem, statistics=job.known.statistics[name])
    return problem


def _measured(pair: Pair, config: CalibrateConfig) -> F32:
    return matrix_of(_read_out(pair, config), pair.geometry)


def _read_out(pair: Pair, config: CalibrateConfig) -> F32:
    """The node's arrays as they are measured: the same draw however often it is asked."""
    return read_out(
        pair.branch.weight(),
        node=pair.branch.node,
        seed=config.read_out_seed,
        noise_frac=config.read_out_noise_frac,
    )


def _target(pair: Pair) -> F32:
    return matrix_of(pair.unit.weight.float32(), pair.geometry)


def _ranks(job: _Job) -> list[Share]:
    """The share of every node where all have one rank; else none."""
    if job.config.rank is None:
        return []
    rank = job.config.rank if job.config.kinds.low_rank else 0
    return uniform([pair.geometry for pair in job.pairs], rank)


def _shares(drafts: Sequence[Draft], config: CalibrateConfig, reserved: str | None) -> list[Share]:
    magnitudes = sum(d.m.size for d in drafts) if config.kinds.magnitude else 0
    if config.sram_budget_frac is not None:
        budget = int(config.sram_budget_frac * sum(d.need.size for d in drafts))
    elif config.sram_budget_bytes is not None:
        budget = config.sram_budget_bytes
    elif reserved is not None:
        budget = sum(_reserved_bytes(d.problem.geometry, int(reserved)) for d in drafts)
    else:
        raise CalibrationError(
            "the model does not say how much SRAM it was converted for. "
            "Give --sram-budget or --rank."
        )
    if budget < magnitudes:
        raise CalibrationError(
            f"the SRAM budget of {budget} bytes does not hold the {magnitudes} bytes of the "
            "magnitudes. Give a larger one, or --adapter without a magnitude (sparse, lora)."
        )
    return allocate(drafts, budget - magnitudes, config.kinds, config.closed_form.sparse_frac)


def _reserved_bytes(geometry: Geometry, rank: int) -> int:
    """SRAM of a branch of the rank that the model was converted with, magnitude included."""
    group, depth, columns = geometry.group, geometry.depth, geometry.columns
    return group * (min(rank, depth, columns) * (depth + columns) + columns)


def _coded(pair: Pair, problem: NodeProblem, fitted: Adapter, share: Share) -> CalibratedNode:
    codes, stored = quantize(fitted, problem, pair.unit.bias.astype(np.float32), dense=share.dense)
    return CalibratedNode(
        name=pair.branch.node,
        adapter=codes,
        rank=fitted.a.shape[2],
        num_weights=problem.target.size,
        error_before=squared_error(problem, None),
        error_after=squared_error(problem, stored),
        mean_error=mean_error(problem, stored).reshape(-1),
    )


def _exact_bias(pair: Pair, node: CalibratedNode) -> CalibratedNode:
    """The bias that makes the mean output right on the teacher's inputs."""
    bias = (pair.unit.bias + node.mean_error).astype(np.float32)
    return replace(node, adapter=replace(node.adapter, bias=bias))


def _refit_on_student(job: _Job, shares: Sequence[Share]) -> list[CalibratedNode]:
    """The same shares of SRAM, fitted on the inputs that the calibrated student has."""
    by_name = {p.branch.node: s for p, s in zip(job.pairs, shares, strict=True)}
    nodes = []

    def refit(pair: Pair, features: Features) -> None:
        problem = problem_from_device(
            pair.branch.node,
            features.moments(pair.geometry),
            _target(pair),
            bias_frac=job.bias_frac,
        )
        node = _draft(job, problem, exact=False)
        share = by_name[pair.branch.node]
        s = None if share.s is None else np.where(share.s != 0, node.need, np.float32(0))
        nodes.append(_finished(job, pair, node, replace(share, s=s)))
        _attach(job.student, nodes[-1:])

    with one_blas_thread():
        lockstep(job.student, job.teacher, job.pairs, job.feeds, job.sessions, refit)
    return nodes
