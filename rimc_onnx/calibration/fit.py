# SPDX-License-Identifier: Apache-2.0
"""Calibration of a converted model: one pass over the teacher, one over the student.

Pass 1 walks the teacher. At every RRAM node it asks the device for its answer to the teacher's
input and fits A, B and M from second moments. Pass 2 walks the calibrated student and moves each
node's digital bias so that its mean output meets the teacher's, on the inputs that the student
really has there. Every part of each graph runs once; RRAM weights are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxscript import ir

from rimc_onnx.adapter import QuantizedAdapter, adapter_rank
from rimc_onnx.calibration.closed_form import ClosedFormConfig, solve, squared_error
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.ranges import geometry_of
from rimc_onnx.calibration.taps import SessionFactory, StagedRun, node_session
from rimc_onnx.errors import CalibrationError, ConfigError
from rimc_onnx.opset import MAX_RANK
from rimc_onnx.passes import AttachAdaptersPass, RramBranch, RramUnit, find_units, rram_branches

__all__ = ["CalibrateConfig", "CalibratedNode", "fit_adapters"]

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """What a calibration is asked to do."""

    num_samples: int = 10
    sample_seed: int = 0
    """Key of the draw of samples from the data."""
    rank: int | None = None
    """Rank of every branch; ``None`` keeps what the model was converted with."""
    solver: ClosedFormConfig = field(default_factory=ClosedFormConfig)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError(f"samples must be 1 or more, got {self.num_samples}")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"rank must lie in 1..{MAX_RANK}, got {self.rank}")


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedNode:
    """One node's adapter and its error before and after, relative to the teacher's power."""

    name: str
    adapter: QuantizedAdapter
    rank: int
    num_weights: int
    error_before: float
    error_after: float


def fit_adapters(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Sequence[Mapping[str, Array]],
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
        config: rank and regularisation.
        device: makes the sessions that run RRAM nodes.
        digital: makes the sessions that run the teacher.
        progress: called with (pass, nodes done, nodes in all).
    """
    branches = rram_branches(student)
    units = find_units(teacher)
    pairs = [(branch, _unit_of(branch, units)) for branch in branches]
    nodes, means = _fit_on_teacher(
        student, teacher, pairs, feeds, num_samples, config, device, digital, progress
    )
    _attach(student, nodes)
    biases = _fit_bias_on_student(
        student, branches, means, feeds, num_samples, config, device, progress
    )
    nodes = [replace(n, adapter=replace(n.adapter, bias=biases[n.name])) for n in nodes]
    _attach(student, nodes)
    return nodes


def _unit_of(branch: RramBranch, units: Mapping[str, RramUnit]) -> RramUnit:
    unit = units.get(branch.node)
    if unit is None:
        raise CalibrationError(
            f"node {branch.node!r} is not in the teacher. "
            "Give the model this one was converted from with --teacher."
        )
    if tuple(unit.weight.shape) != branch.weight_shape:
        raise CalibrationError(
            f"node {branch.node!r} has a weight of {list(branch.weight_shape)}, the teacher's is "
            f"{list(unit.weight.shape)}. Give the model this one was converted from with --teacher."
        )
    return unit


def _attach(model: ir.Model, nodes: Sequence[CalibratedNode]) -> None:
    AttachAdaptersPass({n.name: n.adapter for n in nodes})(model)


def _fit_on_teacher(
    student: ir.Model,
    teacher: ir.Model,
    pairs: Sequence[tuple[RramBranch, RramUnit]],
    feeds: Sequence[Mapping[str, Array]],
    num_samples: int,
    config: CalibrateConfig,
    device: SessionFactory,
    digital: SessionFactory,
    progress: Progress,
) -> tuple[list[CalibratedNode], dict[str, npt.NDArray[np.float64]]]:
    """Pass 1: adapters without bias correction, and the teacher's mean output of every node."""
    by_output = {unit.y.name or "": (branch, unit) for branch, unit in pairs}
    run = StagedRun(
        teacher,
        [dict(f) for f in feeds],
        list(by_output),
        digital,
        keep=[unit.x.name or "" for _, unit in pairs],
    )
    nodes, means = [], {}
    for done, (name, y_chunks) in enumerate(run):
        branch, unit = by_output[name]
        session = node_session(student, branch.rram, [branch.x.name or ""], device)
        moments = SecondMoments(geometry_of(unit))
        bias = _per_channel(unit.bias, y_chunks[0].ndim, unit.geometry is not None)
        for x, y in zip(run.values[unit.x.name or ""], y_chunks, strict=True):
            x_f32 = np.asarray(x, np.float32)
            (h,) = session.run(None, {branch.x.name or "": x_f32})
            moments.update(x_f32, np.asarray(y, np.float32) - bias, h)
        nodes.append(_fit_node(branch, unit, moments, num_samples, config))
        means[branch.node] = moments.y.reshape(-1) / max(moments.num_rows, 1) + unit.bias
        progress("teacher", done + 1, len(pairs))
    return nodes, means


def _fit_node(
    branch: RramBranch,
    unit: RramUnit,
    moments: SecondMoments,
    num_samples: int,
    config: CalibrateConfig,
) -> CalibratedNode:
    geometry = moments.geometry
    group = geometry.group if geometry.conv else None
    wanted = branch.rank if config.rank is None else config.rank
    rank = adapter_rank(wanted, geometry.weight_shape, group)
    fitted = solve(moments, rank=rank, num_samples=num_samples, config=config.solver)
    codes, stored = quantize(fitted, moments, unit.bias.astype(np.float32))
    power = float(moments.y_y.sum()) or 1.0
    return CalibratedNode(
        name=branch.node,
        adapter=codes,
        rank=rank,
        num_weights=int(np.prod(geometry.weight_shape)),
        error_before=squared_error(moments, None) / power,
        error_after=squared_error(moments, stored) / power,
    )


def _fit_bias_on_student(
    student: ir.Model,
    branches: Sequence[RramBranch],
    means: Mapping[str, npt.NDArray[np.float64]],
    feeds: Sequence[Mapping[str, Array]],
    num_samples: int,
    config: CalibrateConfig,
    device: SessionFactory,
    progress: Progress,
) -> dict[str, npt.NDArray[np.float32]]:
    """Pass 2: bias of every node, shrunk towards the bias it has."""
    weight = num_samples / (num_samples + config.solver.prior_samples)
    by_output = {branch.dora.outputs[0].name or "": branch for branch in branches}
    run = StagedRun(student, [dict(f) for f in feeds], list(by_output), device)
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
        progress("student", done + 1, len(branches))
    return biases


def _per_channel(vector: npt.NDArray[np.float32], ndim: int, conv: bool) -> npt.NDArray[np.float32]:
    return vector.reshape(-1, *[1] * (ndim - 2)) if conv else vector
