# SPDX-License-Identifier: Apache-2.0
"""Calibration of a converted model, from what is known of its arrays to adapters in its graph.

1. What each node's array lacks is found (:mod:`.problem`): from its answers to the teacher's inputs
   (black box), or from a read-out and the teacher's statistics.
2. The SRAM is shared out (:mod:`.allocate`) and all adapters are fitted and rounded to int8.
3. The calibrated student is walked once and each node's digital bias moved, so that its mean output
   meets the teacher's on the inputs that the student really has there.

Every part of each graph runs at most twice. As a black box, RRAM weights are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnxscript import ir

from rimc_onnx.adapter import QuantizedAdapter
from rimc_onnx.calibration.allocate import Share, allocate, uniform
from rimc_onnx.calibration.closed_form import (
    Adapter,
    Draft,
    draft,
    finish,
    mean_error,
    squared_error,
)
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.moments import Geometry
from rimc_onnx.calibration.problem import (
    NodeProblem,
    Statistics,
    matrix_of,
    problem_from_device,
)
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.walk import (
    Features,
    Feeds,
    Pair,
    Sessions,
    lockstep,
    move_biases,
    pairs_of,
    teacher_features,
    teacher_moments,
)
from rimc_onnx.device import read_out
from rimc_onnx.errors import CalibrationError, UsageError
from rimc_onnx.opset import RANK_KEY
from rimc_onnx.passes import AttachAdaptersPass

__all__ = ["CalibratedNode", "fit_adapters"]

F32 = npt.NDArray[np.float32]
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


def fit_adapters(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Feeds,
    *,
    num_samples: int,
    config: CalibrateConfig,
    sessions: Sessions,
    statistics: Mapping[str, Statistics] | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[CalibratedNode]:
    """Fit every adapter of ``student`` and put the codes into its graph.

    Args:
        student: the converted model; its adapters are replaced.
        teacher: the prepared teacher (:func:`rimc_onnx.passes.prepare_pipeline`).
        feeds: runs, ``num_samples`` samples in all; none with ``statistics`` alone.
        num_samples: samples in ``feeds``.
        config: adapters, budget, solver, knowledge.
        sessions: how the device and the teacher are run.
        statistics: the teacher's, by node name, where arrays are read out.
        progress: called with (pass, nodes done, nodes in all).
    """
    if config.propagate == "student" and (statistics is not None or not feeds):
        raise UsageError(
            "--propagate student fits on the student's own samples: give samples and no statistics."
        )
    pairs = pairs_of(student, teacher)
    # Statistics of many samples are taken as exact; those of a few shrink what they say.
    trusted = 0 if statistics is not None else num_samples
    bias_frac = 1.0 if statistics is not None else _bias_frac(num_samples, config)
    drafts = []
    nodes: list[CalibratedNode] = []
    for done, (pair, problem, features) in enumerate(
        _problems(student, teacher, pairs, feeds, config, sessions, statistics, bias_frac)
    ):
        if config.solver == "adam":
            nodes.append(_by_adam(pair, problem, features, config))
        drafts.append(
            draft(
                problem,
                magnitude=config.kinds.magnitude,
                num_samples=trusted,
                config=config.closed_form,
            )
        )
        progress("teacher", done + 1, len(pairs))
    if config.solver == "closed-form":
        shares = _shares(drafts, config, student.metadata_props.get(RANK_KEY))
        nodes = [
            _coded(pair, node.problem, finish(node, rank=share.rank, s=share.s), share)
            for pair, node, share in zip(pairs, drafts, shares, strict=True)
        ]
    if statistics is not None:
        nodes = [_exact_bias(p, n) for p, n in zip(pairs, nodes, strict=True)]
    _attach(student, nodes)
    if not feeds:
        return nodes
    if config.propagate == "student":
        nodes = _refit_on_student(
            student, teacher, pairs, feeds, num_samples, config, sessions, shares
        )
    means = {
        p.branch.node: d.problem.statistics.y_mean.reshape(-1) + p.unit.bias
        for p, d in zip(pairs, drafts, strict=True)
    }
    biases = move_biases(
        student,
        pairs,
        means,
        feeds,
        _bias_frac(num_samples, config),
        sessions.device,
        lambda done, total: progress("student", done, total),
    )
    nodes = [replace(n, adapter=replace(n.adapter, bias=biases[n.name])) for n in nodes]
    _attach(student, nodes)
    return nodes


def _bias_frac(num_samples: int, config: CalibrateConfig) -> float:
    """How far the bias is trusted to the samples."""
    return num_samples / (num_samples + config.closed_form.prior_samples)


def _attach(model: ir.Model, nodes: Sequence[CalibratedNode]) -> None:
    AttachAdaptersPass({n.name: n.adapter for n in nodes})(model)


def _problems(
    student: ir.Model,
    teacher: ir.Model,
    pairs: Sequence[Pair],
    feeds: Feeds,
    config: CalibrateConfig,
    sessions: Sessions,
    statistics: Mapping[str, Statistics] | None,
    bias_frac: float,
) -> Iterator[tuple[Pair, NodeProblem, Features | None]]:
    """What each node lacks, in graph order; features only where the device was asked."""
    if not config.read_out:
        for pair, features in teacher_features(student, teacher, pairs, feeds, sessions):
            moments = features.moments(pair.geometry)
            problem = problem_from_device(
                pair.branch.node, moments, _target(pair), bias_frac=bias_frac
            )
            if statistics is not None:
                problem = replace(problem, statistics=statistics[pair.branch.node])
            yield pair, problem, features
        return
    if statistics is None:
        units = [pair.unit for pair in pairs]
        statistics = {
            unit.name: Statistics.of(moments)
            for unit, moments in teacher_moments(teacher, units, feeds, sessions.digital)
        }
    for pair in pairs:
        target = _target(pair)
        measured = read_out(
            pair.branch.weight(),
            node=pair.branch.node,
            seed=config.sample_seed,
            noise_frac=config.read_out_noise_frac,
        )
        problem = NodeProblem(
            name=pair.branch.node,
            geometry=pair.geometry,
            statistics=statistics[pair.branch.node],
            target=target,
            error=target - matrix_of(measured, pair.geometry),
            bias_frac=bias_frac,
        )
        yield pair, problem, None


def _target(pair: Pair) -> F32:
    return matrix_of(pair.unit.weight.float32(), pair.geometry)


def _shares(drafts: Sequence[Draft], config: CalibrateConfig, reserved: str | None) -> list[Share]:
    if config.rank is not None:
        rank = config.rank if config.kinds.low_rank else 0
        return uniform([d.problem for d in drafts], rank)
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


def _by_adam(
    pair: Pair, problem: NodeProblem, features: Features | None, config: CalibrateConfig
) -> CalibratedNode:
    from rimc_onnx.calibration.adam import fit_adam

    if features is None or config.rank is None:
        raise CalibrationError("the solver adam needs the device's features and a rank")
    [share] = uniform([problem], config.rank)
    fitted = fit_adam(
        pair.geometry,
        features.x,
        features.h,
        features.y,
        problem.target,
        rank=share.rank,
        magnitude=config.kinds.magnitude,
        node=pair.branch.node,
        seed=config.sample_seed,
    )
    return _coded(pair, problem, fitted, share)


def _refit_on_student(
    student: ir.Model,
    teacher: ir.Model,
    pairs: Sequence[Pair],
    feeds: Feeds,
    num_samples: int,
    config: CalibrateConfig,
    sessions: Sessions,
    shares: Sequence[Share],
) -> list[CalibratedNode]:
    """The same shares of SRAM, fitted on the inputs that the calibrated student has."""
    by_name = {p.branch.node: s for p, s in zip(pairs, shares, strict=True)}
    nodes = []

    def refit(pair: Pair, features: Features) -> None:
        moments = features.moments(pair.geometry)
        problem = problem_from_device(
            pair.branch.node,
            moments,
            _target(pair),
            bias_frac=_bias_frac(num_samples, config),
        )
        node = draft(
            problem,
            magnitude=config.kinds.magnitude,
            num_samples=num_samples,
            config=config.closed_form,
        )
        share = by_name[pair.branch.node]
        s = None if share.s is None else np.where(share.s != 0, node.need, np.float32(0))
        nodes.append(_coded(pair, problem, finish(node, rank=share.rank, s=s), share))
        _attach(student, nodes[-1:])

    lockstep(student, teacher, pairs, feeds, sessions, refit)
    return nodes
