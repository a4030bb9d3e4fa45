# SPDX-License-Identifier: Apache-2.0
"""From what is known of a converted model's arrays to the adapters of its nodes.

1. What each node's array lacks is found (:mod:`.problem`): from its answers to the teacher's inputs
   (black box), or from a read-out and the teacher's statistics.
2. The SRAM is shared out (:mod:`.allocate`) and all adapters are fitted and rounded to int8.

What follows, on the student's own inputs and at the model's outputs, is in :mod:`.guard`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.allocate import LARGE_NODE_WEIGHTS, Share, allocate, uniform
from rimc_onnx.calibration.gains import SampleMoments
from rimc_onnx.calibration.job import CalibrationJob, prior_of, problem_of, target_of
from rimc_onnx.calibration.moments import Features
from rimc_onnx.calibration.problem import (
    NodeProblem,
    problem_from_device,
)
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.sensitivity import NodeSensitivity, Sensitivities, measure_sensitivities
from rimc_onnx.calibration.shelf import Shelf
from rimc_onnx.calibration.solvers.closed_form import (
    Adapter,
    Draft,
    draft,
    mean_error,
    squared_error,
)
from rimc_onnx.calibration.solvers.registry import NodeTask
from rimc_onnx.calibration.walk import Pair, lockstep, teacher_features
from rimc_onnx.errors import CalibrationError
from rimc_onnx.execution.external_data import forget_pages
from rimc_onnx.execution.parallel import beside_each_other, one_blas_thread
from rimc_onnx.execution.taps import Chunks
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.passes import AttachAdaptersPass, word_line_scale

__all__ = ["CalibratedNode", "Fitted", "fit_nodes", "refit_on_student", "sensitivities_of"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedNode:
    """One node's adapter and its error before and after, relative to the teacher's variance."""

    name: str
    adapter: QuantizedAdapter
    rank: int
    num_weights: int
    error_before: float
    error_after: float
    equalized_share: float
    """What equal word lines (``equalize``) would leave of an error that all cells have alike, for
    the inputs that the teacher gives it."""
    mean_error: F32
    """What the node's mean output lacks on the teacher's inputs, per bit line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Every node as it was fitted on the teacher's inputs, and what the teacher gave."""

    nodes: list[CalibratedNode]
    shares: list[Share]
    moments: dict[str, SampleMoments]
    """Of the teacher's output of every node on the samples; empty without samples."""
    outputs: dict[str, Chunks]
    """The teacher's outputs on the samples; empty without samples."""
    sensitivities: Sensitivities


def _check_known(job: CalibrationJob) -> None:
    """Refuse statistics that lack a node, or have it with another shape."""
    if job.known is None:
        return
    for pair in job.pairs:
        found = job.known.statistics.get(pair.branch.node)
        group, depth = pair.geometry.group, pair.geometry.depth
        columns = pair.geometry.group_columns
        if (
            found is None
            or found.x_mean.shape != (group, depth)
            or found.y_mean.shape != (group, columns)
            or found.y_variance.shape != (group, columns)
        ):
            raise CalibrationError(
                f"node {pair.branch.node!r} is not in the statistics, or with another shape. "
                "Write them again with rimc-onnx statistics."
            )


def fit_nodes(job: CalibrationJob, sensitivities: Sensitivities) -> Fitted:
    """Every adapter, with the share of the SRAM that its node has."""
    _check_known(job)
    shares = _ranks(job)
    given = dict(zip((p.branch.node for p in job.pairs), shares, strict=False))
    moments: dict[str, SampleMoments] = {}
    outputs: dict[str, Chunks] = {}

    def forget() -> None:
        forget_pages(job.teacher)
        forget_pages(job.student)

    with Shelf(job.pairs, forget=forget) as drafts:

        def study(item: tuple[Pair, Features | None]) -> CalibratedNode | None:
            pair, features = item
            problem = problem_of(job, sensitivities, pair, features)
            if features is not None:
                moments[pair.branch.node] = SampleMoments.of(
                    features.y,
                    job.feeds,
                    pair.geometry.channel_axis,
                    sensitivities[pair.branch.node].row_limit,
                )
            drafted = _draft(job, problem, exact=job.exact)
            share = given.get(pair.branch.node)
            if share is not None:
                return _finished(job, pair, drafted, share, features)
            drafts.put(pair, drafted.without_products())
            return None

        walk = beside_each_other(study, _walk(job, outputs), workers=_workers(job))
        nodes = []
        for done, node in enumerate(walk):
            nodes += [] if node is None else [node]
            job.progress("teacher", done + 1, len(job.pairs))
        if not shares:
            shares = _shares(drafts, job)

            def finished(index: int) -> CalibratedNode:
                return _finished(job, job.pairs[index], drafts[index], shares[index])

            nodes = list(beside_each_other(finished, range(len(drafts)), workers=_workers(job)))
    forget()
    if job.exact:
        nodes = [_exact_bias(p, n) for p, n in zip(job.pairs, nodes, strict=True)]
    return Fitted(
        nodes=nodes, shares=shares, moments=moments, outputs=outputs, sensitivities=sensitivities
    )


def _workers(job: CalibrationJob) -> int | None:
    """One node at a time where one takes much memory, or where the solver wants that."""
    largest = max((pair.geometry.num_weights for pair in job.pairs), default=0)
    return 1 if largest > LARGE_NODE_WEIGHTS else job.solver.num_workers


def _draft(job: CalibrationJob, problem: NodeProblem, *, exact: bool) -> Draft:
    return draft(
        problem,
        magnitude=job.config.kinds.magnitude,
        num_samples=0 if exact else job.num_samples,
        config=job.config.closed_form,
    )


def _finished(
    job: CalibrationJob, pair: Pair, node: Draft, share: Share, features: Features | None = None
) -> CalibratedNode:
    task = NodeTask(
        draft=node if share.magnitude else node.without_magnitude(),
        features=features if job.solver.needs_features else None,
        chunk_samples=[feed.num_samples for feed in job.feeds],
        magnitude=job.config.kinds.magnitude,
        seed=job.config.solver_seed,
    )
    return _coded(pair, node.problem, job.solver.fit(task, share), share)


def _walk(
    job: CalibrationJob, outputs: dict[str, Chunks]
) -> Iterator[tuple[Pair, Features | None]]:
    """The nodes in graph order, with features where there are samples to ask the device with."""
    if job.feeds:
        yield from teacher_features(
            job.student, job.teacher, job.pairs, job.feeds, job.sessions, outputs=outputs
        )
    else:
        yield from ((pair, None) for pair in job.pairs)


def sensitivities_of(job: CalibrationJob) -> Sensitivities:
    """Sensitivity of each node; with one rank for all, only what tells how its rows count."""
    if job.known is not None:
        return Sensitivities(
            (name, NodeSensitivity(power=known.sensitivity, row_limit=known.row_limit))
            for name, known in job.known.statistics.items()
        )
    return measure_sensitivities(
        job.teacher,
        job.units,
        job.feeds,
        job.sessions.digital,
        seed=job.config.sensitivity_seed,
        loud_only=job.config.rank is not None,
    )


def _ranks(job: CalibrationJob) -> list[Share]:
    """The share of every node where all have one rank; else none."""
    if job.config.rank is None:
        return []
    rank = job.config.rank if job.config.kinds.low_rank else 0
    return uniform([pair.geometry for pair in job.pairs], rank)


def _shares(drafts: Sequence[Draft], job: CalibrationJob) -> list[Share]:
    config = job.config
    budget = config.budget_bytes(
        num_weights=sum(pair.geometry.num_weights for pair in job.pairs),
        num_lines=sum(pair.geometry.columns for pair in job.pairs),
    )
    return allocate(drafts, budget, config.kinds, config.closed_form.sparse_frac)


def _coded(pair: Pair, problem: NodeProblem, fitted: Adapter, share: Share) -> CalibratedNode:
    codes, stored = quantize(fitted, problem, pair.unit.bias.astype(np.float32), dense=share.dense)
    return CalibratedNode(
        name=pair.branch.node,
        adapter=codes,
        rank=fitted.a.shape[2],
        num_weights=problem.target.size,
        error_before=squared_error(problem, None),
        error_after=squared_error(problem, stored),
        equalized_share=_equalized_share(pair, problem),
        mean_error=mean_error(problem, stored).reshape(-1),
    )


def _equalized_share(pair: Pair, problem: NodeProblem) -> float:
    """Squared scales of the channels, weighed by the power of their inputs."""
    positions = math.prod(pair.geometry.kernel)
    target, statistics = problem.target, problem.statistics
    lines = np.maximum(target.max(axis=2), -target.min(axis=2)).astype(np.float64)
    scale = word_line_scale(lines.reshape(-1, positions).max(axis=1))
    line_power = statistics.x_cov.diagonal() + np.square(statistics.x_mean)
    power = line_power.reshape(-1, positions).sum(axis=1, dtype=np.float64)
    whole = power.sum()
    return float(np.square(scale) @ power / whole) if whole > 0 else 1.0


def _exact_bias(pair: Pair, node: CalibratedNode) -> CalibratedNode:
    """The bias that makes the mean output right on the teacher's inputs."""
    bias = (pair.unit.bias + node.mean_error).astype(np.float32)
    return replace(node, adapter=replace(node.adapter, bias=bias))


def refit_on_student(job: CalibrationJob, fitted: Fitted) -> list[CalibratedNode]:
    """The same shares of SRAM, fitted on the inputs that the calibrated student has."""
    by_name = {p.branch.node: s for p, s in zip(job.pairs, fitted.shares, strict=True)}
    nodes = []

    def refit(pair: Pair, features: Features) -> None:
        problem = problem_from_device(
            pair.branch.node,
            features.moments(pair.geometry, fitted.sensitivities[pair.branch.node].row_limit),
            target_of(pair),
            bias_frac=job.bias_frac,
            prior=prior_of(pair, job.config),
        )
        node = _draft(job, problem, exact=False)
        share = by_name[pair.branch.node]
        nodes.append(_finished(job, pair, node, share))
        AttachAdaptersPass({nodes[-1].name: nodes[-1].adapter})(job.student)

    with one_blas_thread():
        lockstep(job.student, job.teacher, job.pairs, job.feeds, job.sessions, refit)
    return nodes
