# SPDX-License-Identifier: Apache-2.0
"""What an error of each node costs at the model's outputs: what SRAM should be spent on.

A node's error is of the kind that drift makes: each weight off by a share of itself, the mean
output put right. Run on to the end of the teacher, it moves the outputs by some power; the quotient
is the node's sensitivity. No gradient is needed, so any model that ONNX Runtime runs has them.
(Gradients give the same weight in IO-SVD and BRECQ, as the diagonal of a Fisher matrix.)

In a transformer a few rows (tokens) hold nearly all power of some nodes ("massive activations", Sun
et al., 2024), and a normalisation behind them makes their errors cost no more than other rows'.
Least squares would fit these rows alone. Where such rows are seen, errors of all rows and of the
others are run on; if the outputs tell that rows cost alike, they are scaled down to a limit in all
that is learned from samples (a Winsorized loss, as Huber's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto, helper

from rimc_onnx.device import Purpose, standard_normals
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.outputs import telling_values
from rimc_onnx.execution.parallel import for_parts
from rimc_onnx.execution.sessions import Session, SessionFactory
from rimc_onnx.execution.taps import changed_runs
from rimc_onnx.passes import RramUnit

__all__ = ["NodeSensitivity", "Sensitivities", "measure_sensitivities", "row_limit"]

Array = npt.NDArray[Any]

_ERROR_FRAC = 0.2
"""Error of the weights, as a share of themselves."""
_DRAWN = 1 << 16
"""Test errors drawn at once, as the processor's caches hold them; what is drawn does not depend on
it."""
_NODE_RUNS = 128
"""Nodes * samples that are run to the end of the model."""
_LOUD = 4.0
"""A row is loud beyond so many times the mean power of the rows, loud ones counted as this."""
_LOUD_FRAC = 0.5
"""Rows matter where those that are loud hold more of a node's power than this."""
_LIMIT_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class NodeSensitivity:
    """What a node's errors cost at the outputs."""

    power: float | None
    """Error power there for a unit of error power here; ``None`` is not known."""
    row_limit: float = math.inf
    """Power of the node's output on one row (token, position) beyond which its errors cost no more:
    rows beyond it count as scaled down to it."""


class Sensitivities(dict[str, NodeSensitivity]):
    """Of nodes, by name; nothing is known of a node that is not there."""

    def __missing__(self, _name: str) -> NodeSensitivity:
        return NodeSensitivity(power=None)


@dataclass(kw_only=True)
class _Sums:
    """Of one node, over feeds."""

    unit: RramUnit
    limits: list[float]
    """A feed's row limit; infinite where the feed has no loud row."""
    power: float = 0.0
    """Of the outputs."""
    limited_power: float = 0.0
    node_error: float = 0.0
    limited_error: float = 0.0
    quiet_error: float = 0.0
    """Error power at the node: of all rows, of rows scaled down to the limit, and of the others."""
    output_error: float = 0.0
    """Error power at the model's outputs, of errors in all rows."""
    quiet_output_error: float = 0.0

    @property
    def has_loud_rows(self) -> bool:
        return self.limited_power < _LOUD_FRAC * self.power

    def found(self) -> NodeSensitivity:
        """The quotients; with a limit where that tells the outputs' error better than none."""
        error, limit = self.node_error, math.inf
        if self.has_loud_rows and self.quiet_error > 0:
            cost = self.quiet_output_error / self.quiet_error
            if self.output_error**2 < cost**2 * self.node_error * self.limited_error:
                error = self.limited_error
                limit = float(np.mean([limit for limit in self.limits if limit < math.inf]))
        return NodeSensitivity(
            power=self.output_error / error if error > 0 else 0.0, row_limit=limit
        )


def measure_sensitivities(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Sequence[Feed],
    factory: SessionFactory,
    *,
    seed: int,
    loud_only: bool = False,
) -> Sensitivities:
    """What errors of each node cost, by node name.

    The power at a node is the sum over its bit lines of the mean square over rows; at the outputs,
    that of the change over that of the outputs themselves. Empty where no output can tell.
    Some samples are enough; the first few of ``feeds`` are used. ``loud_only`` leaves out
    nodes that have no row far beyond the others, and their time.
    """
    sums = {unit.y.name or "": _Sums(unit=unit, limits=[]) for unit in units}
    inputs = {unit.y.name or "": unit.x.name or "" for unit in units}
    rows: dict[str, int] = {}
    products: dict[bytes, Session] = {}

    def product(unit: RramUnit) -> Session:
        """Nodes of the same attributes share one."""
        content = _product(unit)
        if content not in products:
            products[content] = factory(content)
        return products[content]

    def wrong(name: str, values: Mapping[str, Array]) -> list[Array]:
        node, y = sums[name], values[name]
        unit = node.unit
        power = _row_powers(unit, y)
        limit = row_limit(power)
        share = np.minimum(1, limit / np.maximum(power, np.finfo(np.float32).tiny))
        whole, limited = float(power.sum()), float((power * share).sum())
        has_loud_rows = limited < _LOUD_FRAC * whole
        if loud_only and not has_loud_rows:
            return []
        error = _error(unit, values[inputs[name]], product(unit), seed)
        channel = unit.geometry.channel_axis % error.ndim
        rows[name] = len(y)
        per_size = len(y) * unit.geometry.columns / max(error.size, 1)
        errors = np.square(error, dtype=np.float64).sum(axis=channel) * per_size
        node.limits.append(limit)
        node.power += whole
        node.limited_power += limited
        node.node_error += float(errors.sum())
        node.limited_error += float((errors * share).sum())
        changed = [error]
        if has_loud_rows:
            is_quiet = share == 1
            node.quiet_error += float((errors * is_quiet).sum())
            changed.append(error * np.expand_dims(is_quiet, channel))
        return [np.asarray((y + e).astype(y.dtype)) for e in changed]

    outputs = telling_values(teacher)
    for feed in _few(feeds, max(1, _NODE_RUNS // max(1, len(units)))):
        change: dict[tuple[str, int], float] = {}
        for name, index, _, before, after in changed_runs(
            teacher, feed, list(sums), factory, wrong, outputs=outputs, keep=inputs
        ):
            change[name, index] = change.get((name, index), 0.0) + _change(before, after)
        for (name, index), power in change.items():
            if not np.isfinite(power):
                continue
            if index == 0:
                sums[name].output_error += power * rows[name]
            else:
                sums[name].quiet_output_error += power * rows[name]
    if not any(node.output_error for node in sums.values()):
        return Sensitivities()
    return Sensitivities((s.unit.name, s.found()) for s in sums.values() if s.limits)


def row_limit(power: Array) -> float:
    """The power beyond which rows are loud: a multiple of what rows have that count so at most.

    Infinite where none is, and where loud rows are too many to be told from the others.
    """
    power = power[power > 0].astype(np.float64)
    limit = math.inf
    for _ in range(_LIMIT_STEPS):
        before, limit = limit, _LOUD * float(np.minimum(power, limit).mean()) if power.size else 0.0
        if limit >= before * (1 - 1e-6):
            break
    return limit if power.size and (power > limit).any() else math.inf


def _row_powers(unit: RramUnit, y: Array) -> Array:
    """Of every row of an output, its bias apart."""
    y = np.asarray(y, np.float32) - unit.bias.reshape(unit.geometry.channel_shape)
    power = np.square(y, dtype=np.float64).sum(axis=unit.geometry.channel_axis)
    return np.where(np.isfinite(power), power, 0.0)


def _few(feeds: Sequence[Feed], samples: int) -> list[Feed]:
    """The first ``samples`` samples; more where a run can't be cut."""
    picked = []
    for feed in feeds:
        if samples <= 0:
            break
        picked.append(feed.first(samples))
        samples -= picked[-1].num_samples
    return picked


def _error(unit: RramUnit, x: Array, product: Session, seed: int) -> Array:
    """What the node gets wrong if its weights are off, mean error taken away."""
    weight = unit.weight.float32()
    flat = weight.reshape(-1)
    off = np.empty_like(flat)
    for start in range(0, flat.size, _DRAWN):
        part = np.s_[start : start + _DRAWN]
        z = standard_normals(
            seed=seed,
            node=unit.name,
            device=0,
            purpose=Purpose.SENSITIVITY,
            start=start,
            count=flat[part].size,
        )
        off[part] = flat[part] * (_ERROR_FRAC * z)
    given = {"x": np.asarray(x, np.float32), "w": off.reshape(weight.shape)}
    error = product.run(None, given)[0]
    error = np.where(np.isfinite(error), error, np.float32(0))
    channel = unit.geometry.channel_axis % error.ndim
    axes = tuple(axis for axis in range(error.ndim) if axis != channel)
    rows = error.size // max(unit.geometry.columns, 1)
    # A single row is all mean: taking it away would leave nothing.
    return error - error.mean(axis=axes, keepdims=True) if rows > 1 else error


def _product(unit: RramUnit) -> bytes:
    """A model of the unit's product alone: x and w give x w."""
    op_type = "Conv" if unit.geometry.is_conv else "MatMul"
    node = helper.make_node(op_type, ["x", "w"], ["y"], **unit.geometry.attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "w")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "product", inputs, [output])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    content: bytes = model.SerializeToString()
    return content


def _change(before: Any, after: Any) -> float:
    """Power of the change of an output over its own; 0 of what is no floating-point number."""
    # A sequence or an optional is no array; what depends on a value's size may change shape.
    if not (isinstance(before, np.ndarray) and isinstance(after, np.ndarray)):
        return 0.0
    if before.shape != after.shape or not np.issubdtype(before.dtype, np.floating):
        return 0.0
    if not before.size:
        return 0.0
    powers: dict[int, tuple[float, float]] = {}
    flat = before.reshape(-1), after.reshape(-1)

    def add(part: slice) -> None:
        was, now = flat[0][part], flat[1][part]
        known = np.isfinite(was) & np.isfinite(now)
        if not known.all():
            was, now = was[known], now[known]
        was, now = was.astype(np.float64), now.astype(np.float64)
        powers[part.start] = float(np.square(now - was).sum()), float(np.square(was).sum())

    for_parts(add, flat[0].size, 1)
    changed, whole = (
        sum(part) for part in zip(*(powers[at] for at in sorted(powers)), strict=True)
    )
    return changed / (whole or 1.0)
