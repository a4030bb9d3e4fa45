# SPDX-License-Identifier: Apache-2.0
"""What a calibration as a black box would leave of every node's error, before there is a device.

Arrays are programmed as a conversion does it, with draws of their own. What they would answer to
the samples follows from the teacher's moments, X'(Y - H) = X'X E, so no student is run: adapters
are fitted in closed form to what those answers tell and rounded to their codes. They are judged by
what is then known exactly, the error E of the arrays, on other samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.calibration.allocate import Kinds, allocate
from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import (
    CellPrior,
    NodeProblem,
    Statistics,
    problem_from_device,
)
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.sensitivity import measure_sensitivities
from rimc_onnx.calibration.solvers.closed_form import (
    Adapter,
    ClosedFormConfig,
    Draft,
    draft,
    finish,
    squared_error,
)
from rimc_onnx.calibration.walk import Feeds, teacher_moments
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.crossbar.read_noise import read_variance
from rimc_onnx.device import CellProgrammer, largest_weight, program
from rimc_onnx.device.pair_error import KNOTS, expected_array
from rimc_onnx.execution.parallel import beside_each_other
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes import RramUnit, folded_weight, rram_branches

__all__ = [
    "NodeForecast",
    "TeacherNode",
    "forecast",
    "measured_nodes",
    "true_errors",
    "weighed_nodes",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherNode:
    """A node before it is mapped, and what is known of its inputs."""

    unit: RramUnit
    moments: SecondMoments | None
    """Of the samples that it would be calibrated from; ``None``: white inputs, known exactly."""
    statistics: Statistics
    """Of the samples that errors are judged on."""

    @property
    def geometry(self) -> NodeGeometry:
        """The node's matrix and windows."""
        return self.unit.geometry

    def matrices(self, weight: F32) -> F32:
        """A weight of the node's shape as matrices [G, d, m]."""
        return np.ascontiguousarray(self.geometry.matrices(weight))


@dataclass(frozen=True, kw_only=True)
class NodeForecast:
    """Errors of a node's output relative to the power of the teacher's."""

    name: str
    error_before: float
    error_after: float


def measured_nodes(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Feeds,
    judged_on: Feeds,
    factory: SessionFactory,
    *,
    seed: int,
) -> list[TeacherNode]:
    """The nodes with moments of the teacher on ``feeds``, to be judged on other samples."""
    found = measure_sensitivities(teacher, units, feeds, factory, seed=seed)
    judged = {
        unit.name: Statistics.of(moments)
        for unit, moments in teacher_moments(
            teacher, units, judged_on, factory, sensitivities=found
        )
    }
    return [
        TeacherNode(
            unit=unit,
            moments=moments,
            statistics=replace(
                judged[unit.name],
                sensitivity=found[unit.name].power,
            ),
        )
        for unit, moments in teacher_moments(teacher, units, feeds, factory, sensitivities=found)
    ]


def weighed_nodes(units: Sequence[RramUnit]) -> list[TeacherNode]:
    """The nodes by their weights alone: inputs of one power, of mean zero and not correlated."""
    nodes = []
    for unit in units:
        target = unit.geometry.matrices(unit.weight.float32())
        group, _, columns = target.shape
        statistics = Statistics(
            x_mean=np.zeros(target.shape[:2], np.float32),
            x_cov=Gram(ridge=np.ones(group, np.float32)),
            y_mean=np.zeros((group, columns), np.float32),
            y_variance=np.square(target).sum(axis=1),
            x_abs_max=1.0,
        )
        nodes.append(TeacherNode(unit=unit, moments=None, statistics=statistics))
    return nodes


def forecast(
    nodes: Sequence[TeacherNode],
    config: ConvertConfig,
    *,
    num_samples: int,
    budget_bytes: int,
    programmer: CellProgrammer | None = None,
) -> list[NodeForecast]:
    """Errors of all nodes under a conversion whose mapping is complete, and one SRAM budget."""
    closed_form = ClosedFormConfig()
    has_samples = all(node.moments is not None for node in nodes)
    # White inputs have no direction that a rank would serve more than another.
    kinds = Kinds(low_rank=has_samples, magnitude=True, sparse=True)

    def study(node: TeacherNode) -> tuple[Draft, F32]:
        error = _array_error(node, config, programmer)
        problem = _problem(node, config, error, num_samples, closed_form)
        count = num_samples if has_samples else 0
        return draft(problem, magnitude=True, num_samples=count, config=closed_form), error

    studied = list(beside_each_other(study, nodes))
    drafts = [drafted for drafted, _ in studied]
    shares = allocate(drafts, budget_bytes, kinds, closed_form.sparse_frac)
    found = []
    for node, (drafted, error), share in zip(nodes, studied, shares, strict=True):
        fitted = drafted if share.magnitude else drafted.without_magnitude()
        adapter = finish(fitted, rank=share.rank, s=share.kept(fitted.need))
        bias = np.zeros(node.geometry.columns, np.float32)
        _, adapter = quantize(adapter, fitted.problem, bias, dense=share.dense)
        judged = replace(drafted.problem, error=error, statistics=node.statistics)
        found.append(
            NodeForecast(
                name=node.unit.name,
                error_before=squared_error(judged, None) + _read_error(node, config, None),
                error_after=squared_error(judged, adapter) + _read_error(node, config, adapter),
            )
        )
    return found


def true_errors(
    calibrated: ir.Model, nodes: Sequence[TeacherNode], *, num_samples: int
) -> dict[str, float]:
    """Errors of a calibrated model's nodes, reads and converters apart, by node name.

    Of what its arrays and adapters really hold, which only a simulation knows.
    """
    branches = {branch.node: branch for branch in rram_branches(calibrated)}
    errors = {}
    for node in nodes:
        branch = branches[node.unit.name]
        held = folded_weight(branch.weight(), branch.adapter(), node.geometry)
        target = node.matrices(node.unit.weight.float32())
        problem = NodeProblem(
            name=node.unit.name,
            geometry=node.geometry,
            statistics=node.statistics,
            target=target,
            error=target - node.matrices(held),
            bias_frac=_bias_frac(num_samples, ClosedFormConfig()),
        )
        errors[node.unit.name] = squared_error(problem, None)
    return errors


def _bias_frac(num_samples: int, closed_form: ClosedFormConfig) -> float:
    """Share of a wrong mean output that a calibration's bias takes away."""
    return num_samples / (num_samples + closed_form.bias_prior_samples)


def _array_error(
    node: TeacherNode, config: ConvertConfig, programmer: CellProgrammer | None
) -> F32:
    """W_t - W_r, [G, d, m]."""
    unit, weight = node.unit, node.unit.weight.float32()
    realised = program(
        weight,
        node=unit.name,
        seed=config.seed,
        config=config.device_of(unit.name),
        column_axis=node.geometry.column_axis,
        time_s=config.time_s,
        programmer=programmer,
    ).w_realised
    return node.matrices(weight - realised)


def _problem(
    node: TeacherNode,
    config: ConvertConfig,
    error: F32,
    num_samples: int,
    closed_form: ClosedFormConfig,
) -> NodeProblem:
    """What a calibration would know of the node."""
    target = node.matrices(node.unit.weight.float32())
    if node.moments is None:
        return NodeProblem(
            name=node.unit.name,
            geometry=node.geometry,
            statistics=node.statistics,
            target=target,
            error=error,
            bias_frac=1.0,
        )
    weight, device = node.unit.weight.float32(), config.device_of(node.unit.name)
    axis = node.geometry.column_axis
    expected = expected_array(
        weight,
        device,
        device.resolve_time(config.time_s),
        largest_weight(weight, device, axis),
        axis,
        read_variance(config),
    )
    answered = copy.copy(node.moments)
    answered.x_e = node.moments.gram @ error.astype(np.float64)
    return problem_from_device(
        node.unit.name,
        answered,
        target,
        bias_frac=_bias_frac(num_samples, closed_form),
        prior=CellPrior(
            error=node.matrices(expected.error),
            variance=node.matrices(expected.variance),
            read_variance=None
            if expected.read_variance is None
            else node.matrices(expected.read_variance),
        ),
        sensitivity=node.statistics.sensitivity,
    )


def _read_error(node: TeacherNode, config: ConvertConfig, adapter: Adapter | None) -> float:
    """Power of the reads' noise at the output, over the power of the teacher's."""
    table = read_variance(config)
    if table is None:
        return 0.0
    unit, device = node.unit, config.device_of(node.unit.name)
    weight = unit.weight.float32()
    axis = node.geometry.column_axis
    w_max = largest_weight(weight, device, axis)
    shape = [1] * weight.ndim
    shape[axis] = -1
    c = w_max.reshape(shape) if w_max.size > 1 else w_max.reshape([1] * weight.ndim)
    u = np.minimum(np.divide(np.abs(weight), c, out=np.zeros_like(weight), where=c > 0), 1)
    variance = table[np.rint(u * (KNOTS - 1)).astype(np.int64)] * np.square(c, dtype=np.float64)
    cells = node.matrices(variance.astype(np.float32))
    loud = node.statistics.x_x.diagonal()[:, :, None]
    power = (cells * loud).sum(axis=1, dtype=np.float64)
    gain = 1.0 if adapter is None else np.square(adapter.m, dtype=np.float64)
    return float((power * gain).sum()) / max(float(node.statistics.y_variance.sum()), 1e-30)
