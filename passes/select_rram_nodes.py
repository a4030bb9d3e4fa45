# SPDX-License-Identifier: Apache-2.0
"""Which nodes go to RRAM, and why the others stay digital."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import ModelError, NodeMappingError, UsageError, suggest
from rimc_onnx.ops import schema
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.passes._graph import Shapes, weight_source
from rimc_onnx.passes.canonicalize_conv_transpose import is_overlap_add
from rimc_onnx.passes.constants import find_constant
from rimc_onnx.passes.rram_unit import RramUnit, checked_weight, conv_unit, matmul_unit

__all__ = [
    "MappingDecision",
    "find_units",
    "is_kept_digital",
    "require_mapped",
    "select_rram_nodes",
]

_INTEGER = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
_NO_OPERATOR = {
    "Attention": Refusal.ATTENTION,
    "DeformConv": Refusal.DEFORMABLE,
    "Einsum": Refusal.EINSUM,
    "GRU": Refusal.RECURRENT,
    "LSTM": Refusal.RECURRENT,
    "RNN": Refusal.RECURRENT,
}
_OPTIMIZED = {"FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "NhwcFusedConv"}
"""Operators of com.microsoft that ONNX Runtime's optimizer makes of ONNX's."""
_QUANTIZED = {
    *("DynamicQuantizeMatMul", "MatMulBnb4", "MatMulIntegerToFloat", "MatMulNBits"),
    *("QAttention", "QGemm", "QLinearConv"),
}
"""Operators of com.microsoft with codes for weights."""
_FOREIGN = re.compile(r"Conv(?!ert)|MatMul|Gemm|Attention")
"""Names of operators of other domains that hold or multiply matrices."""

_MOST_MADE_BYTES = 2 << 30
"""Of all weights that no tensor of the file holds."""
_MAX_REASONS = 4
"""Reasons, or names, that one line lists."""


@dataclass(frozen=True, kw_only=True)
class MappingDecision:
    """What happens to one node that multiplies matrices."""

    name: str
    op_type: str
    """As in the model; ``domain:op_type`` outside the default domain."""
    accepted: bool
    reason: str | None
    """Why the node stays digital; None if it goes to RRAM."""
    unit: RramUnit | None
    """What goes to RRAM; None if nothing does."""


def is_kept_digital(name: str, patterns: Sequence[str]) -> str | None:
    """The first shell pattern that names ``name``, or None. A name is a pattern of itself."""
    return next((p for p in patterns if p == name or fnmatchcase(name, p)), None)


def select_rram_nodes(model: ir.Model, config: ConvertConfig) -> list[MappingDecision]:
    """Decide on every node that multiplies matrices, in graph order, bodies of subgraphs included.

    The model is one that ``prepare_pipeline`` has been through; it is not changed.

    Raises:
        ModelError: a weight that would go to RRAM has NaN or infinite values, or a node's
            attributes contradict its weight.
        UsageError: a pattern of ``config.keep_digital`` names no such node.
    """
    decisions = _decide(model, config)
    names = [d.name for d in decisions]
    for pattern in config.keep_digital:
        if not any(is_kept_digital(name, [pattern]) for name in names):
            raise UsageError(f"`keep_digital` '{pattern}' names no node. {suggest(pattern, names)}")
    made = sum(d.unit.weight.nbytes for d in decisions if d.unit and d.unit.weight.made)
    if made > _MOST_MADE_BYTES:
        raise ModelError(
            f"weights of {made} bytes are computed by nodes, more than {_MOST_MADE_BYTES}. Export "
            "the model with its constants folded."
        )
    for decision in decisions:
        _check_finite(decision)
    return decisions


def find_units(model: ir.Model) -> dict[str, RramUnit]:
    """Every unit that could be mapped, by node name in graph order, whatever a user chose.

    In the teacher that ``prepare_pipeline`` has been through, ``x`` and ``y`` of a unit are the
    teacher's features of the node of that name in the converted model.
    """
    decisions = _decide(model, ConvertConfig(map_shared=True))
    return {d.name: d.unit for d in decisions if d.unit is not None}


def require_mapped(decisions: Sequence[MappingDecision]) -> None:
    """Check that anything goes to RRAM.

    Raises:
        NodeMappingError: nothing does; with the most frequent reasons.
    """
    if any(d.accepted for d in decisions):
        return
    if not decisions:
        raise NodeMappingError("the model has no node that multiplies matrices: nothing to map")
    counts = Counter(d.reason for d in decisions)
    named = {d.reason: d.name for d in reversed(decisions)}
    reasons = [
        f"'{named[reason]}'{f' and {count - 1} more' if count > 1 else ''}: {reason}"
        for reason, count in counts.most_common(_MAX_REASONS)
    ]
    if len(counts) > _MAX_REASONS:
        reasons.append(f"{len(counts) - _MAX_REASONS} other reasons")
    raise NodeMappingError(
        f"none of {len(decisions)} nodes can go to RRAM ({'; '.join(reasons)}). "
        f"See every node with `dry_run`."
    )


def _decide(model: ir.Model, config: ConvertConfig) -> list[MappingDecision]:
    look = _Look(model, config)
    decisions = []
    for node, inside in _nodes_with_parents(model.graph):
        if not _multiplies(node):
            continue
        outcome = look.decide(node, inside)
        is_unit = isinstance(outcome, RramUnit)
        decisions.append(
            MappingDecision(
                name=str(node.name),
                op_type=f"{node.domain}:{node.op_type}" if node.domain else node.op_type,
                accepted=is_unit,
                reason=None if isinstance(outcome, RramUnit) else outcome,
                unit=outcome if isinstance(outcome, RramUnit) else None,
            )
        )
    return decisions if config.map_shared else _refuse_shared(decisions)


def _nodes_with_parents(
    graph: ir.Graph, parent: ir.Node | None = None
) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    """Every node with the node whose body it is in, if any."""
    for node in graph:
        yield node, parent
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _nodes_with_parents(attribute.as_graph(), node)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from _nodes_with_parents(body, node)


def _multiplies(node: ir.Node) -> bool:
    if node.domain == "":
        if node.op_type == "ConvTranspose":
            return not is_overlap_add(node)
        return node.op_type in {"Conv", "Gemm", "MatMul", *_INTEGER, *_NO_OPERATOR}
    return node.domain != schema.DOMAIN and bool(_FOREIGN.search(node.op_type))


class _Look:
    def __init__(self, model: ir.Model, config: ConvertConfig) -> None:
        self._config = config
        self._shapes = Shapes(model)
        self._fixed = _computed_from_constants(model.graph)

    def decide(self, node: ir.Node, inside: ir.Node | None) -> RramUnit | str:
        """The unit that ``node`` becomes, or why it stays digital."""
        pattern = is_kept_digital(str(node.name), self._config.keep_digital)
        if pattern is not None:
            return Refusal.KEPT_DIGITAL.of(pattern)
        if inside is not None:
            return Refusal.IN_BODY.of(inside.op_type, inside.name)
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            return Refusal.UNREAD.of()
        if refusal := _operator(node):
            return refusal
        if refusal := self._operands(node):
            return refusal
        tile_rows = self._config.periphery.tile_rows
        if node.op_type == "Conv":
            return conv_unit(node, tile_rows)
        if node.op_type == "MatMul":
            return matmul_unit(node, tile_rows, self._shapes)
        # A Gemm or ConvTranspose that was not rewritten.
        weight = checked_weight(node)
        if isinstance(weight, str):
            return weight
        if node.op_type == "Gemm" and len(weight.shape) == 2:
            return Refusal.GEMM_C.of()
        return Refusal.NO_KERNEL.of(list(weight.shape))

    def _operands(self, node: ir.Node) -> str | None:
        """Refuse products that have no weight on the right-hand side."""
        x, w = node.inputs[0], node.inputs[1]
        if x is None or w is None:
            return Refusal.OPERAND_MISSING.of()
        if w.is_initializer() and w.is_graph_input():
            return Refusal.OVERRIDABLE.of(w.name)
        x_fixed, w_fixed = self._is_fixed(x), self._is_fixed(w)
        if x_fixed and w_fixed:
            return Refusal.BOTH_CONSTANTS.of()
        if not w_fixed:
            return (Refusal.LEFT_CONSTANT if x_fixed else Refusal.BOTH_ACTIVATIONS).of()
        producer = w.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return Refusal.QUANTIZED.of()
        return None

    def _is_fixed(self, value: ir.Value) -> bool:
        return value in self._fixed or find_constant(value) is not None


def _operator(node: ir.Node) -> str | None:
    """Refuse operators that no crossbar has."""
    if node.domain == "com.microsoft" and node.op_type in _OPTIMIZED:
        return Refusal.OPTIMIZED.of()
    if node.domain == "com.microsoft" and node.op_type in _QUANTIZED:
        return Refusal.INTEGER.of()
    if node.domain != "":
        return Refusal.FOREIGN.of(node.domain)
    if node.op_type in _INTEGER:
        return Refusal.INTEGER.of()
    refusal = _NO_OPERATOR.get(node.op_type)
    return None if refusal is None else refusal.of()


def _computed_from_constants(graph: ir.Graph) -> set[ir.Value]:
    """Values of the main graph that no input reaches, so that a reason can name what they are."""
    fixed: set[ir.Value] = {v for v in graph.initializers.values() if not v.is_graph_input()}
    for node in graph:
        has_body = any(
            a.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            for a in node.attributes.values()
        )
        if (
            not has_body
            and not node.op_type.startswith("Random")
            and all(i is None or i in fixed for i in node.inputs)
        ):
            fixed.update(node.outputs)
    return fixed


def _refuse_shared(decisions: list[MappingDecision]) -> list[MappingDecision]:
    """One array holds one node's weight: nodes that share one stay digital, all of them."""
    users: dict[str, list[str]] = defaultdict(list)
    for d in decisions:
        if d.unit is not None and d.unit.node.inputs[1] is not None:
            users[weight_source(d.unit.node.inputs[1])].append(d.name)
    shared = {name: names for names in users.values() if len(names) > 1 for name in names}
    return [
        replace(
            d,
            accepted=False,
            unit=None,
            reason=Refusal.SHARED.of(_some(shared[d.name])),
        )
        if d.name in shared
        else d
        for d in decisions
    ]


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_REASONS
    return ", ".join(names[:_MAX_REASONS]) + (f" and {more} more" if more > 0 else "")


def _check_finite(decision: MappingDecision) -> None:
    unit = decision.unit
    if unit is None:
        return
    if not unit.weight.is_finite():
        what, value = "weight", unit.node.inputs[1]
    elif not np.isfinite(unit.bias).all():
        what, value = "bias", unit.node.inputs[2]
    else:
        return
    raise ModelError(
        f"node '{unit.name}' ({unit.node.op_type}): {what} '{getattr(value, 'name', '')}' holds "
        f"NaN or infinite values. Repair the model, or use `keep_digital` '{unit.name}'."
    )
