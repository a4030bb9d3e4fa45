# SPDX-License-Identifier: Apache-2.0
"""A digital twin: crossbars and their adapters as plain dense weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    add_initializer,
    is_private,
    lazy_tensor,
    remove_dead,
    take_over,
)
from rimc_onnx.passes.make_adapters_swappable import adapter_values
from rimc_onnx.passes.rram_branch import RramBranch, rram_branches

__all__ = ["FoldAdaptersPass", "folded_weight"]

Array = npt.NDArray[np.float32]

_METADATA = {PASS_KEY: "FoldAdaptersPass"}


class FoldAdaptersPass(ir.passes.InPlacePass):
    """Replace every crossbar and its adapter by one standard operator with a dense fp32 weight.

    1. ``RramConv`` and ``DoraConv``: a Conv with bias, named as the teacher's node.
    2. ``RramMatMul`` and ``DoraMatMul``: a MatMul, named as the teacher's node, and an Add
       ``<node>/bias``.
    3. Everything else: left alone. Values keep their names. The bodies and the import of
       ``ai.rimc`` go.

    The weight is (W_r + A B + S) o M, computed when the file is written, one node at a time. What
    a matrix can't hold is left out: DAC, ADC and I-V curve are ideal, reads have no noise, and X
    and X A are not rounded to int8 codes, nor saturate. With an ideal periphery the twin is the
    calibrated model up to that rounding.

    Raises:
        ModelError: the model is not converted, or something else reads a crossbar's output.
    """

    def __str__(self) -> str:
        return "FoldAdaptersPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place; an error leaves the model as it was."""
        branches = rram_branches(model)
        inside = {node for b in branches for node in (b.rram, b.dora)}
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.domain == schema.DOMAIN and node not in inside:
                raise ModelError(
                    f"node '{node.name}' ({node.op_type}): belongs to no crossbar of the main "
                    "graph and can't be folded. Convert again."
                )
        for branch in branches:
            if not is_private(branch.h):
                raise ModelError(
                    f"node '{branch.rram.name}' ({branch.rram.op_type}): its output is read by "
                    "more than its adapter, so it can't be folded. Convert again."
                )
        names = Names(model)
        for branch in branches:
            _fold(model.graph, branch, names)
        for key in [key for key in model.functions if key[0] == schema.DOMAIN]:
            del model.functions[key]
        model.opset_imports.pop(schema.DOMAIN, None)
        return ir.passes.PassResult(model, True)


def folded_weight(w: Array, adapter: QuantizedAdapter, geometry: NodeGeometry) -> Array:
    """(W_r + A B + S) o M in the layout of ``w``.

    A B and S are in real numbers: the codes' scales are divided out of and multiplied into them.
    """
    x_scale = np.float64(adapter.x_scale[0])
    steps = adapter.rank_step.astype(np.float64) * x_scale
    columns, group = geometry.columns, geometry.group
    b_scale = np.broadcast_to(adapter.lora_b_scale, columns)
    s_scale = np.broadcast_to(adapter.sparse_scale / x_scale, columns)
    m = adapter.magnitude * adapter.magnitude_scale
    if not geometry.is_conv:
        total = (adapter.lora_a / steps).astype(np.float32) @ (adapter.lora_b * b_scale)
        column_of_cell = adapter.sparse_index % columns
        channel: tuple[int, ...] = (columns,)
    else:
        ranks, depth = adapter.lora_b.shape[1], geometry.depth
        a = adapter.lora_a.reshape(group, ranks, depth) / steps.reshape(group, ranks, 1)
        b = adapter.lora_b.reshape(columns, ranks) * b_scale[:, None]
        total = b.reshape(group, columns // group, ranks) @ a.astype(np.float32)
        total = total.reshape(w.shape)
        column_of_cell = adapter.sparse_index // depth
        channel = (columns, *[1] * (w.ndim - 1))
    total += w
    cells = total.reshape(-1)
    cells[adapter.sparse_index] += adapter.sparse_values * s_scale[column_of_cell]
    total *= m.reshape(channel)
    return total


def _fold(graph: ir.Graph, branch: RramBranch, names: Names) -> None:
    rram, dora, geometry = branch.rram, branch.dora, branch.geometry
    base, y_name = branch.node, str(branch.y.name)
    # Not branch.x: where that was the output of another branch, this is what replaced it.
    x, old_w = rram.inputs[0], rram.inputs[1]
    if x is None or old_w is None:
        raise ValueError(f"node '{rram.name}' has no input")
    adapter = branch.adapter()
    parts = list(adapter_values(branch).values())
    w = _weight(graph, branch, old_w, adapter, names)
    name = names.value(f"{base}/bias")
    bias = add_initializer(graph, name, ir.tensor(adapter.bias, name=name))

    node_name = names.node(base)
    if not geometry.is_conv:
        matmul = ir.Node("", "MatMul", [x, w], name=node_name, metadata_props=dict(_METADATA))
        product = matmul.outputs[0]
        product.name = names.value(f"{y_name}/matmul")
        product.type = ir.TensorType(ir.DataType.FLOAT)
        product.shape = None if branch.y.shape is None else branch.y.shape.copy()
        add = ir.Node(
            "",
            "Add",
            [product, bias],
            name=names.node(f"{base}/bias"),
            metadata_props=dict(_METADATA),
        )
        nodes = [matmul, add]
    else:
        attributes = [rram.attributes[key] for key in geometry.attributes]
        kernel = ir.AttrInt64s("kernel_shape", geometry.kernel)
        nodes = [
            ir.Node(
                "",
                "Conv",
                [x, w, bias],
                [kernel, *attributes],
                name=node_name,
                metadata_props=dict(_METADATA),
            )
        ]
    take_over(branch.y, nodes[-1].outputs[0])
    graph.insert_after(dora, nodes)
    graph.remove([dora, rram], safe=True)
    for value in parts:
        if value in graph.inputs and not value.uses():
            graph.inputs.remove(value)
    remove_dead([*parts, old_w])


def _weight(
    graph: ir.Graph,
    branch: RramBranch,
    old: ir.Value,
    adapter: QuantizedAdapter,
    names: Names,
) -> ir.Value:
    """The dense weight's initializer: the crossbar's own, or a new one where that is shared."""
    tensor = old.const_value
    if tensor is None:
        raise ValueError(f"node '{branch.rram.name}' has no weight")
    keeps_name = is_private(old) and old.name != f"{branch.node}/rram/w"
    name = str(old.name) if keeps_name else names.value(f"{branch.node}/w")
    geometry = branch.geometry
    folded = lazy_tensor(
        lambda: folded_weight(tensor.numpy(), adapter, geometry),
        name=name,
        dtype=ir.DataType.FLOAT,
        shape=geometry.weight_shape,
    )
    if keeps_name:
        old.const_value = folded
        return old
    return add_initializer(graph, name, folded)
