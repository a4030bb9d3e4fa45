# SPDX-License-Identifier: Apache-2.0
"""How much an error of each node is felt at the model's outputs: what SRAM should be spent on.

A node's error is of the kind that drift makes: each weight off by a share of itself, the mean
output put right. Run on to the end of the teacher, it moves the outputs by some power; the quotient
is the node's sensitivity. No gradient is needed, so any model that ONNX Runtime runs has them.
(Gradients give the same weight in IO-SVD and BRECQ, as the diagonal of a Fisher matrix.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto, helper

from rimc_onnx.device import Purpose, standard_normals
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import Session, SessionFactory
from rimc_onnx.execution.taps import changed_runs
from rimc_onnx.passes import RramUnit

__all__ = ["measure_sensitivities"]

Array = npt.NDArray[Any]

_ERROR_FRAC = 0.2
"""Error of the weights, as a share of themselves."""
_DRAWN = 1 << 20
"""Test errors drawn at once; what is drawn does not depend on it."""
_NODE_RUNS = 128
"""Nodes * samples that are run to the end of the model."""


def measure_sensitivities(
    teacher: ir.Model,
    units: Sequence[RramUnit],
    feeds: Sequence[Feed],
    factory: SessionFactory,
    *,
    seed: int,
) -> dict[str, float]:
    """Error power at the outputs for a unit of error power at each node, by node name.

    The power at a node is the sum over its bit lines of the mean square over rows; at the outputs,
    that of the change over that of the outputs themselves. Empty where no output can tell (a model
    that ends in integers). Some samples are enough; the first few of ``feeds`` are used.
    """
    output_error_power = dict.fromkeys((unit.name for unit in units), 0.0)
    node_error_power = dict.fromkeys(output_error_power, 0.0)
    by_output = {unit.y.name or "": unit for unit in units}
    inputs = {unit.y.name or "": unit.x.name or "" for unit in units}
    rows: dict[str, int] = {}
    products: dict[bytes, Session] = {}

    def product(unit: RramUnit) -> Session:
        """Nodes of the same attributes share one."""
        content = _product(unit)
        if content not in products:
            products[content] = factory(content)
        return products[content]

    def wrong(name: str, values: Mapping[str, Array]) -> Array:
        unit, y = by_output[name], values[name]
        error = _error(unit, values[inputs[name]], product(unit), seed)
        rows[name] = len(y)
        node_error_power[unit.name] += float(np.square(error, dtype=np.float64).sum()) * (
            len(y) * unit.geometry.columns / max(error.size, 1)
        )
        return np.asarray((y + error).astype(y.dtype))

    for feed in _few(feeds, max(1, _NODE_RUNS // max(1, len(units)))):
        change = dict.fromkeys(by_output, 0.0)
        for name, _, before, after in changed_runs(
            teacher, feed, list(by_output), factory, wrong, keep=inputs
        ):
            change[name] += _change(before, after)
        for name, power in change.items():
            if np.isfinite(power):
                output_error_power[by_output[name].name] += power * rows[name]
    if not any(output_error_power.values()):
        return {}
    return {
        name: output_error_power[name] / power if power > 0 else 0.0
        for name, power in node_error_power.items()
    }


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
    known = np.isfinite(before) & np.isfinite(after)
    was, now = before[known].astype(np.float64), after[known].astype(np.float64)
    return float(np.square(now - was).sum()) / (float(np.square(was).sum()) or 1.0)
