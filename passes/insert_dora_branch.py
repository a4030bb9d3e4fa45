# SPDX-License-Identifier: Apache-2.0
"""An adapter branch beside every crossbar."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.ops import schema
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes._bodies import write_bodies
from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    add_initializer,
    constant_add,
    remove_dead,
    take_over,
)
from rimc_onnx.passes.node_geometry import node_geometry
from rimc_onnx.passes.replace_with_rram import ReplaceWithRramPass

__all__ = ["InsertDoraBranchPass"]

_DORA = {schema.RRAM_CONV: schema.DORA_CONV, schema.RRAM_MATMUL: schema.DORA_MATMUL}


class InsertDoraBranchPass(ir.passes.InPlacePass):
    """Put an adapter that adds nothing behind every crossbar, ready for calibration.

    1. ``RramConv`` / ``RramMatMul`` that no adapter follows: a ``DoraConv`` / ``DoraMatMul`` named
       ``<node>/dora`` whose initializers are ``<node>/dora/<input>``. It has the name of the
       crossbar's output, which is ``<output>/rram`` from then on.
    2. The Add of the bias that ReplaceWithRramPass put behind the crossbar: becomes the adapter's
       bias. An Add of the model's own is never taken.
    3. A crossbar with an adapter: left alone, so the pass is idempotent.

    The bodies of the operators come along as model-local functions.

    Y = M o (H + (X A) B) + bias (Dong et al., Alg. 2) with A = B = 0, M = 1: bit for bit
    Y = H + bias.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __str__(self) -> str:
        return f"InsertDoraBranchPass(rank={self._rank})"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert in place."""
        names = Names(model)
        modified = False
        for node in list(model.graph):
            if node.domain == schema.DOMAIN and node.op_type in _DORA and not _has_adapter(node):
                _insert(model.graph, node, self._rank, names)
                model.metadata_props[schema.RANK_KEY] = str(self._rank)
                modified = True
        if modified:
            write_bodies(model)
        return ir.passes.PassResult(model, modified)


def _has_adapter(rram: ir.Node) -> bool:
    return any(
        use.idx == 1 and use.node.domain == schema.DOMAIN and use.node.op_type in _DORA.values()
        for use in rram.outputs[0].uses()
    )


def _insert(graph: ir.Graph, rram: ir.Node, rank: int, names: Names) -> None:
    x, w = rram.inputs
    if x is None or w is None or w.const_value is None:
        raise ValueError(f"node '{rram.name}' ({rram.op_type}) has no weight")
    geometry = node_geometry(rram, w.const_value.shape.numpy())
    h = rram.outputs[0]
    add, bias = _bias_after(rram, geometry)
    adapter = QuantizedAdapter.identity(geometry=geometry, rank=rank, bias=bias)

    base = rram.attributes["node"].as_string()
    inputs = []
    for name, array in adapter.tensors().items():
        full = names.value(f"{base}/dora/{name}")
        inputs.append(add_initializer(graph, full, ir.tensor(array, name=full)))
    y = ir.Value()
    old = h if add is None else add.outputs[0]
    take_over(old, y)
    if y.type is None:
        y.type = ir.TensorType(ir.DataType.FLOAT)
    if add is None:
        h.name = names.value(f"{y.name}/rram")
    dora = ir.Node(
        schema.DOMAIN,
        _DORA[rram.op_type],
        [x, h, *inputs],
        [rram.attributes[name] for name in geometry.attributes],
        outputs=[y],
        name=names.node(f"{base}/dora"),
        metadata_props={PASS_KEY: "InsertDoraBranchPass"},
    )
    graph.insert_after(rram, dora)
    if add is not None:
        addends = list(add.inputs)
        graph.remove(add, safe=True)
        remove_dead(v for v in addends if v is not h)


def _bias_after(
    rram: ir.Node, geometry: NodeGeometry
) -> tuple[ir.Node | None, npt.NDArray[np.float32]]:
    """The Add of one constant per bit line behind ``rram``, and that constant; else zeros."""
    none = None, np.zeros(geometry.columns, np.float32)
    if (found := constant_add(rram.outputs[0])) is None:
        return none
    add, constant = found
    if add.metadata_props.get(PASS_KEY) != ReplaceWithRramPass.__name__:
        return none
    if constant.shape != (geometry.columns, *geometry.channel_shape[1:]):
        return none
    return add, constant.float32().reshape(geometry.columns)
