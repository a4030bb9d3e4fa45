# SPDX-License-Identifier: Apache-2.0
"""Calibration of a converted model: one pass over the teacher, one over the student.

Pass 1 walks the teacher. At every RRAM node it asks the device for its answer to the teacher's
input and keeps second moments. Then the SRAM budget is spent and all adapters are fitted. Pass 2
walks the calibrated student and moves each node's digital bias so that its mean output meets the
teacher's, on the inputs that the student really has there. Every part of each graph runs at most
twice; as a black box, RRAM weights are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxscript import ir

from rimc_onnx.adapter import QuantizedAdapter
from rimc_onnx.calibration.allocate import Share, allocate, uniform
from rimc_onnx.calibration.closed_form import Adapter, Draft, draft, finish, squared_error
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import NodeProblem, matrix_of, problem_from_device
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.ranges import geometry_of
from rimc_onnx.calibration.taps import SessionFactory, StagedRun, node_session
from rimc_onnx.errors import CalibrationError
from rimc_onnx.passes import AttachAdaptersPass, RramBranch, RramUnit, find_units, rram_branches

__all__ = ["CalibratedNode", "Pair", "fit_adapters", "pairs_of"]

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Feeds = Sequence[Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A node of the converted model and the same node of the prepared teacher."""

    branch: RramBranch
    unit: RramUnit


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedNode:
    """One node's adapter and its error before and after, relative to the teacher's variance."""

    name: str
    adapter: QuantizedAdapter
    rank: int
    num_weights: int
    error_before: float
    error_after: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Sessions:
    """How RRAM nodes and digital nodes are run."""

    device: SessionFactory
    digital: SessionFactory


def pairs_of(student: ir.Model, teacher: ir.Model) -> list[Pair]:
    """Every RRAM node with its teacher, in graph order.

    Raises:
        CalibrationError: the teacher has no such node, or one of another shape.
    """
    units = find_units(teacher)
    pairs = []
    for branch in rram_branches(student):
        unit = units.get(branch.node)
        if unit is None:
            raise CalibrationError(
                f"node {branch.node!r} is not in the teacher. "
                "Give the model this one was converted from with --teacher."
            )
        if tuple(unit.weight.shape) != branch.weight_shape:
            raise CalibrationError(
                f"node {branch.node!r} has a weight of {list(branch.weight_shape)}, the teacher's "
                f"is {list(unit.weight.shape)}. "
                "Give the model this one was converted from with --teacher."
            )
        pairs.append(Pair(branch=branch, unit=unit))
    return pairs


def fit_adapters(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Feeds,
    *,
    num_samples: int,
    config: CalibrateConfig,
    device: SessionFactory,
    digital: SessionFactory,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[CalibratedNode]:
    """Fit every adapter of ``student`` and put the codes into its graph.

    Args:
        student: the converted model; its adapters are replaced.
        teacher: the prepared teacher (:func:`rimc_onnx.passes.prepare_pipeline`).
        feeds: runs, ``num_samples`` samples in all.
        num_samples: samples in ``feeds``.
        config: adapters, budget and regularisation.
        device: makes the sessions that run RRAM nodes.
        digital: makes the sessions that run the teacher.
        progress: called with (pass, nodes done, nodes in all).
    """
    pairs = pairs_of(student, teacher)
    sessions = Sessions(device=device, digital=digital)
    drafts = []
    for done, (pair, moments) in enumerate(
        _teacher_moments(student, teacher, pairs, feeds, sessions)
    ):
        target = matrix_of(pair.unit.weight.float32(), moments.geometry)
        problem = problem_from_device(pair.branch.node, moments, target)
        drafts.append(
            draft(
                problem,
                magnitude=config.kinds.magnitude,
                num_samples=num_samples,
                config=config.closed_form,
            )
        )
        progress("teacher", done + 1, len(pairs))
    shares = _shares(pairs, drafts, config)
    nodes = [
        _fitted(pair, node, share) for pair, node, share in zip(pairs, drafts, shares, strict=True)
    ]
    _attach(student, nodes)
    means = {
        p.branch.node: d.problem.statistics.y_mean.reshape(-1) + p.unit.bias
        for p, d in zip(pairs, drafts, strict=True)
    }
    weight = num_samples / (num_samples + config.closed_form.prior_samples)
    biases = _student_biases(student, pairs, means, feeds, weight, sessions, progress)
    nodes = [replace(n, adapter=replace(n.adapter, bias=biases[n.name])) for n in nodes]
    _attach(student, nodes)
    return nodes


def _attach(model: ir.Model, nodes: Sequence[CalibratedNode]) -> None:
    AttachAdaptersPass({n.name: n.adapter for n in nodes})(model)


def _teacher_moments(
    student: ir.Model,
    teacher: ir.Model,
    pairs: Sequence[Pair],
    feeds: Feeds,
    sessions: Sessions,
) -> Iterator[tuple[Pair, SecondMoments]]:
    """Pass 1: moments of every node on the teacher's inputs, in graph order."""
    by_output = {pair.unit.y.name or "": pair for pair in pairs}
    run = StagedRun(
        teacher,
        [dict(f) for f in feeds],
        list(by_output),
        sessions.digital,
        keep=[pair.unit.x.name or "" for pair in pairs],
    )
    for name, y_chunks in run:
        pair = by_output[name]
        x_name = pair.branch.x.name or ""
        session = node_session(student, pair.branch.rram, [x_name], sessions.device)
        moments = SecondMoments(geometry_of(pair.unit))
        bias = _per_channel(pair.unit.bias, y_chunks[0].ndim, pair.branch.group is not None)
        for x, y in zip(run.values[pair.unit.x.name or ""], y_chunks, strict=True):
            x_f32 = np.asarray(x, np.float32)
            (h,) = session.run(None, {x_name: x_f32})
            moments.update(x_f32, np.asarray(y, np.float32) - bias, h)
        yield pair, moments


def _shares(pairs: Sequence[Pair], drafts: Sequence[Draft], config: CalibrateConfig) -> list[Share]:
    if config.rank is not None:
        rank = config.rank if config.kinds.low_rank else 0
        return uniform(drafts, [rank] * len(drafts))
    magnitudes = sum(d.m.size for d in drafts) if config.kinds.magnitude else 0
    if config.sram_budget_frac is not None:
        weights = sum(d.need.size for d in drafts)
        budget = int(config.sram_budget_frac * weights)
    elif config.sram_budget_bytes is not None:
        budget = config.sram_budget_bytes
    else:
        budget = sum(_reserved_bytes(pair.branch) for pair in pairs)
    if budget < magnitudes:
        raise CalibrationError(
            f"the SRAM budget of {budget} bytes does not hold the {magnitudes} bytes of the "
            "magnitudes. Give a larger one, or --adapter without a magnitude (sparse, lora)."
        )
    return allocate(drafts, budget - magnitudes, config.kinds, config.closed_form.sparse_frac)


def _reserved_bytes(branch: RramBranch) -> int:
    """SRAM of a branch of the rank that the model was converted with, magnitude included."""
    adapter = branch.adapter()
    return adapter.lora_a.size + adapter.lora_b.size + adapter.magnitude.size


def _fitted(pair: Pair, node: Draft, share: Share) -> CalibratedNode:
    fitted = finish(node, rank=share.rank, s=share.s)
    return _coded(pair, node.problem, fitted, dense=share.dense)


def _coded(
    pair: Pair, problem: NodeProblem, fitted: Adapter, *, dense: bool = False
) -> CalibratedNode:
    codes, stored = quantize(fitted, problem, pair.unit.bias.astype(np.float32), dense=dense)
    return CalibratedNode(
        name=pair.branch.node,
        adapter=codes,
        rank=fitted.a.shape[2],
        num_weights=problem.target.size,
        error_before=squared_error(problem, None),
        error_after=squared_error(problem, stored),
    )


def _student_biases(
    student: ir.Model,
    pairs: Sequence[Pair],
    means: Mapping[str, F32],
    feeds: Feeds,
    weight: float,
    sessions: Sessions,
    progress: Progress,
) -> dict[str, F32]:
    """Pass 2: bias of every node, ``weight`` of the way to where its mean meets the teacher's."""
    by_output = {pair.branch.dora.outputs[0].name or "": pair.branch for pair in pairs}
    run = StagedRun(student, [dict(f) for f in feeds], list(by_output), sessions.device)
    biases = {}
    for done, (name, chunks) in enumerate(run):
        branch = by_output[name]
        conv = branch.group is not None
        rows = sum(c.size for c in chunks) // branch.columns
        axes = tuple(i for i in range(chunks[0].ndim) if i != (1 if conv else chunks[0].ndim - 1))
        total = sum(c.sum(axis=axes, dtype=np.float64) for c in chunks)
        shift = np.asarray(weight * (means[branch.node] - total / max(rows, 1)), np.float32)
        biases[branch.node] = branch.adapter().bias + shift
        moved = _per_channel(shift, chunks[0].ndim, conv)
        run.values[name] = [c + moved for c in chunks]
        progress("student", done + 1, len(pairs))
    return biases


def _per_channel(vector: F32, ndim: int, conv: bool) -> F32:
    return vector.reshape(-1, *[1] * (ndim - 2)) if conv else vector
