# SPDX-License-Identifier: Apache-2.0
"""Walks over the teacher and the student, node by node, a piece of the graph at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.calibration.gains import SampleMoments, in_both
from rimc_onnx.calibration.moments import Features, SecondMoments
from rimc_onnx.calibration.sensitivity import Sensitivities
from rimc_onnx.errors import CalibrationError
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.outputs import telling_values
from rimc_onnx.execution.parallel import beside_each_other
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.execution.taps import (
    PIECE_WEIGHT_BYTES,
    Chunks,
    StagedRun,
    nodes_session,
    run_chunks,
)
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes import RramBranch, RramUnit, find_units, rram_branches

__all__ = [
    "GainRule",
    "Pair",
    "Sessions",
    "ShiftRule",
    "holding",
    "lockstep",
    "model_outputs",
    "pairs_of",
    "sample_moments",
    "settle",
    "teacher_features",
    "teacher_moments",
    "teacher_run",
]

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Feeds = Sequence[Feed]
GainRule = Callable[[SampleMoments, SampleMoments, QuantizedAdapter], F64]
"""(teacher's outputs, student's, the node's adapter) -> factors of its bit lines, [m]."""
ShiftRule = Callable[[F64, F64], F32]
"""(what the mean output of each sample lacks [n, m], the teacher's standard deviations [m]) -> what
to add to the bias, [m]."""

_TOGETHER_BYTES = 32 << 20
"""Values of small nodes are held for several at once: a session takes longer than their run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A node of the converted model and the same node of the prepared teacher."""

    branch: RramBranch
    unit: RramUnit

    @property
    def geometry(self) -> NodeGeometry:
        """The node's matrix and windows."""
        return self.unit.geometry


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
                "Give the model this one was converted from with `teacher`."
            )
        held, given = branch.geometry.weight_shape, unit.geometry.weight_shape
        if held != given:
            raise CalibrationError(
                f"node {branch.node!r} has a weight of {list(held)}, the teacher's is "
                f"{list(given)}. "
                "Give the model this one was converted from with `teacher`."
            )
        pairs.append(Pair(branch=branch, unit=unit))
    return pairs


def teacher_run(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Feeds,
    factory: SessionFactory,
    *,
    outputs: dict[str, Chunks] | None = None,
) -> Iterator[tuple[RramUnit, Chunks, Chunks]]:
    """Every unit with its inputs and its outputs without bias, in fp32, in graph order.

    The run goes on to the end of the graph where it has to fill ``outputs``.
    """
    by_output = {unit.y.name or "": unit for unit in units}
    ends = set() if outputs is None else set(telling_values(teacher))
    run = StagedRun(
        teacher,
        [dict(f) for f in feeds],
        list(dict.fromkeys([*by_output, *ends])),
        factory,
        keep={unit.y.name or "": unit.x.name or "" for unit in units},
        together_bytes=_TOGETHER_BYTES,
    )
    for name, chunks in run:
        if outputs is not None and name in ends:
            outputs[name] = chunks
        if (unit := by_output.get(name)) is None:
            continue
        bias = unit.bias.reshape(unit.geometry.channel_shape)
        x = [np.asarray(c, np.float32) for c in run.values[unit.x.name or ""]]
        yield unit, x, [np.asarray(c, np.float32) - bias for c in chunks]


def model_outputs(model: ir.Model, feeds: Feeds, factory: SessionFactory) -> dict[str, Chunks]:
    """What a converted model gives, a piece of its graph at a time."""
    stops = [branch.dora.outputs[0].name or "" for branch in rram_branches(model)]
    ends = telling_values(model)
    run = StagedRun(
        model,
        [dict(f) for f in feeds],
        list(dict.fromkeys([*stops, *ends])),
        factory,
        together_bytes=_TOGETHER_BYTES,
    )
    return {name: chunks for name, chunks in run if name in ends}


def teacher_moments(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Feeds,
    factory: SessionFactory,
    sensitivities: Sensitivities | None = None,
) -> Iterator[tuple[RramUnit, SecondMoments]]:
    """Moments of the teacher alone, in graph order; rows beyond a node's limit are scaled down."""
    known = sensitivities or Sensitivities()

    def summed(run: tuple[RramUnit, Chunks, Chunks]) -> tuple[RramUnit, SecondMoments]:
        unit, x_chunks, y_chunks = run
        moments = SecondMoments(unit.geometry, known[unit.name].row_limit)
        for x, y in zip(x_chunks, y_chunks, strict=True):
            moments.update(x, y)
        return unit, moments

    # One node's sums beside the next node's run: samples are many here, and few nodes fit.
    yield from beside_each_other(summed, teacher_run(teacher, units, feeds, factory), workers=1)


def sample_moments(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Feeds,
    factory: SessionFactory,
    *,
    outputs: dict[str, Chunks],
    sensitivities: Sensitivities | None = None,
) -> dict[str, SampleMoments]:
    """Moments of every unit's output for each sample, without bias, by node name."""
    known = sensitivities or Sensitivities()
    return {
        unit.name: SampleMoments.of(
            y, feeds, unit.geometry.channel_axis, known[unit.name].row_limit
        )
        for unit, _, y in teacher_run(teacher, units, feeds, factory, outputs=outputs)
    }


@contextmanager
def holding(pairs: Sequence[Pair], weights: Mapping[str, F32]) -> Iterator[None]:
    """While it lasts, the student's arrays hold ``weights`` (by node name)."""
    values = {p.branch.node: p.branch.rram.inputs[1] for p in pairs if p.branch.node in weights}
    before = {}
    for node, value in values.items():
        if value is not None:
            before[node] = value.const_value
            value.const_value = ir.tensor(weights[node], name=value.name)
    try:
        yield
    finally:
        for node, tensor in before.items():
            value = values[node]
            assert value is not None
            value.const_value = tensor


def teacher_features(
    student: ir.Model,
    teacher: ir.Model,
    pairs: Sequence[Pair],
    feeds: Feeds,
    sessions: Sessions,
    *,
    outputs: dict[str, Chunks],
) -> Iterator[tuple[Pair, Features]]:
    """The device's answers to the teacher's inputs, node by node in graph order.

    ``outputs`` is filled with the teacher's outputs.
    """
    by_name = {pair.unit.name: pair for pair in pairs}
    asked: list[tuple[Pair, Chunks, Chunks]] = []
    held_bytes = weight_bytes = 0
    units = [pair.unit for pair in pairs]
    for unit, x, y in teacher_run(teacher, units, feeds, sessions.digital, outputs=outputs):
        node_bytes = sum(chunk.nbytes for chunk in (*x, *y))
        node_weights = 4 * int(np.prod(unit.weight.shape))
        full = held_bytes + node_bytes > _TOGETHER_BYTES
        if full or weight_bytes + node_weights > PIECE_WEIGHT_BYTES:
            yield from _answers(student, asked, sessions.device)
            asked, held_bytes, weight_bytes = [], 0, 0
        asked.append((by_name[unit.name], x, y))
        held_bytes += node_bytes
        weight_bytes += node_weights
    yield from _answers(student, asked, sessions.device)


def _answers(
    student: ir.Model, asked: Sequence[tuple[Pair, Chunks, Chunks]], factory: SessionFactory
) -> Iterator[tuple[Pair, Features]]:
    """What the device answers each node's inputs, beside the teacher's outputs."""
    if not asked:
        return
    nodes: dict[str, list[ir.Node]] = {}
    inputs = {}
    for pair, x, _ in asked:
        name = pair.branch.x.name or ""
        nodes.setdefault(name, []).append(pair.branch.rram)
        inputs[name] = x
    session = nodes_session(student, nodes, factory)
    wanted = [pair.branch.h.name or "" for pair, _, _ in asked]
    answers = run_chunks(session, wanted, inputs, len(asked[0][1]))
    for (pair, x, y), h in zip(asked, answers, strict=True):
        yield pair, Features(x=x, y=y, h=h)


def lockstep(
    student: ir.Model,
    teacher: ir.Model,
    pairs: Sequence[Pair],
    feeds: Feeds,
    sessions: Sessions,
    refit: Callable[[Pair, Features], None],
) -> None:
    """Walk student and teacher together; ``refit`` changes a node before later nodes see it."""
    by_name = {pair.unit.name: pair for pair in pairs}
    by_h = {pair.branch.h.name or "": pair for pair in pairs}
    run = StagedRun(
        student,
        [dict(f) for f in feeds],
        list(by_h),
        sessions.device,
        keep={pair.branch.h.name or "": pair.branch.x.name or "" for pair in pairs},
    )
    units = [pair.unit for pair in pairs]
    walk = zip(teacher_run(teacher, units, feeds, sessions.digital), run, strict=True)
    for (unit, _, y), (h_name, h) in walk:
        pair = by_h[h_name]
        if pair is not by_name[unit.name]:
            raise CalibrationError(
                f"node {pair.branch.node!r} comes before {unit.name!r} in the teacher and after it "
                "in the converted model. Convert the model again."
            )
        refit(pair, Features(x=run.values[pair.branch.x.name or ""], y=y, h=h))


def settle(
    student: ir.Model,
    pairs: Sequence[Pair],
    teacher: Mapping[str, SampleMoments],
    feeds: Feeds,
    factory: SessionFactory,
    *,
    gain_rule: GainRule,
    shift_rule: ShiftRule,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[dict[str, QuantizedAdapter], dict[str, Chunks]]:
    """Walk the student and move each node's gain and bias towards the teacher's output.

    ``teacher`` are moments of the teacher's outputs on the same feeds, without bias; the rules say
    how far a node is moved. Later nodes see the moved outputs. Gives the adapter of every node, by
    name, and the outputs of the model that has them.
    """
    by_output = {pair.branch.dora.outputs[0].name or "": pair for pair in pairs}
    ends = set(telling_values(student))
    stops = list(dict.fromkeys([*by_output, *ends]))
    run = StagedRun(student, [dict(f) for f in feeds], stops, factory)
    found: dict[str, QuantizedAdapter] = {}
    outputs: dict[str, Chunks] = {}
    for name, chunks in run:
        pair = by_output.get(name)
        if pair is None:
            outputs[name] = chunks
            continue
        node, geometry = pair.branch.node, pair.geometry
        adapter = pair.branch.adapter()
        answered = SampleMoments.of(chunks, feeds, geometry.channel_axis, teacher[node].row_limit)
        wanted, answered = in_both(teacher[node], answered)
        louder, gain = adapter.louder(gain_rule(wanted, answered, adapter))
        lacking = wanted.mean + pair.unit.bias - (answered.mean - adapter.bias) * gain
        scale = np.sqrt(wanted.total_variance())
        shift = shift_rule(lacking - adapter.bias, scale)
        found[node] = replace(louder, bias=adapter.bias + shift)
        factor = gain.astype(np.float32).reshape(geometry.channel_shape)
        moved = (shift + (1 - gain) * adapter.bias).reshape(geometry.channel_shape)
        run.values[name] = [(c * factor + moved).astype(c.dtype, copy=False) for c in chunks]
        if name in ends:
            outputs[name] = run.values[name]
        progress(len(found), len(pairs))
    return found, outputs
