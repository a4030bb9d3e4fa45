# SPDX-License-Identifier: Apache-2.0
"""One crossbar of a converted model, with the adapter beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes.node_geometry import node_geometry

__all__ = ["RramBranch", "initializer_shape", "is_converted", "node_error", "rram_branches"]


def is_converted(model: ir.Model) -> bool:
    """True for a model with an ``ai.rimc`` node: an import alone may be ONNX Runtime's."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return any(node.domain == schema.DOMAIN for node in nodes)


_DORA = {schema.RRAM_CONV: schema.DORA_CONV, schema.RRAM_MATMUL: schema.DORA_MATMUL}


@dataclass(frozen=True, kw_only=True, eq=False)
class RramBranch:
    """A crossbar and the adapter beside it."""

    node: str
    """The teacher's node."""
    rram: ir.Node
    dora: ir.Node
    x: ir.Value
    """Input of both."""
    h: ir.Value
    """What the crossbar gives, without bias."""
    y: ir.Value
    """What the adapter gives, bias included."""

    @property
    def geometry(self) -> NodeGeometry:
        """How the weight lies in the arrays."""
        return node_geometry(self.rram, initializer_shape(self.rram, 1))

    @property
    def rank(self) -> int:
        """Rank of the adapter (of one group)."""
        return initializer_shape(self.dora, 3)[0 if self.dora.op_type == schema.DORA_MATMUL else 1]

    def weight(self) -> npt.NDArray[np.float32]:
        """What the arrays hold, W_r; only a read-out may look at it."""
        value = self.rram.inputs[1]
        if value is None or value.const_value is None:
            raise node_error(self.rram, "input 'w' must be an initializer")
        return value.const_value.numpy()

    def adapter(self) -> QuantizedAdapter:
        """The adapter in the graph."""
        names = schema.OPS[self.dora.op_type].inputs
        tensors = {
            name: value.const_value.numpy()
            for name, value in zip(names[2:], self.dora.inputs[2:], strict=True)
            if value is not None and value.const_value is not None
        }
        return QuantizedAdapter(**tensors)


def rram_branches(model: ir.Model) -> list[RramBranch]:
    """Every crossbar of a converted model with its adapter, in graph order.

    Raises:
        ModelError: the model has none, or a crossbar has no adapter.
    """
    branches = []
    for rram in model.graph:
        if rram.domain != schema.DOMAIN or rram.op_type not in _DORA:
            continue
        x, h = rram.inputs[0], rram.outputs[0]
        doras = [
            use.node
            for use in h.uses()
            if use.idx == 1
            and use.node.domain == schema.DOMAIN
            and use.node.op_type == _DORA[rram.op_type]
        ]
        if x is None or len(doras) != 1 or doras[0].inputs[0] is not x:
            raise node_error(rram, "has no adapter of its own on the same input. Convert again")
        branches.append(
            RramBranch(
                node=rram.attributes["node"].as_string(),
                rram=rram,
                dora=doras[0],
                x=x,
                h=h,
                y=doras[0].outputs[0],
            )
        )
    if not branches:
        raise ModelError("not a converted model: run rimc-onnx convert first")
    return branches


def initializer_shape(node: ir.Node, index: int) -> tuple[int, ...]:
    """Shape of an initializer input, which may be a graph input as well (swappable adapters)."""
    value = node.inputs[index]
    name = schema.OPS[node.op_type].inputs[index]
    if value is None or value.const_value is None:
        raise node_error(node, f"input '{name}' must be an initializer")
    return tuple(value.const_value.shape.numpy())


def node_error(node: ir.Node, what: str) -> ModelError:
    """What is wrong with ``node``, as one line."""
    return ModelError(f"node '{node.name}' ({node.op_type}): {what}.")
