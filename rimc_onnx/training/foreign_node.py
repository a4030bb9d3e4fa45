# SPDX-License-Identifier: Apache-2.0
"""Nodes that are not in the operator table, run by ONNX Runtime: no gradient passes them."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir
import torch
from onnx import helper
from torch import Tensor

from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.training.node_spec import Operator
from rimc_onnx.training.operators.shapes import tensor_of

__all__ = ["foreign_operator"]


def foreign_operator(node: ir.Node, model: ir.Model) -> tuple[Operator, list[str | None]]:
    """A model of one node, and the names of all that it reads, captured values included."""
    proto = ir.to_proto(node)
    inner = {o for body in _bodies(proto) for o in _made(body)}
    captured = [n for body in _bodies(proto) for n in _read(body) if n and n not in inner]
    names = list(dict.fromkeys([n for n in proto.input if n] + captured))
    outputs = [v for v in node.outputs if v.name]
    imports = [helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]

    @functools.cache
    def session(dtypes: tuple[int, ...]) -> object:
        # The shapes of a node's inputs and outputs are found when it runs.
        graph = helper.make_graph(
            [proto],
            "node",
            [helper.make_tensor_value_info(n, d, None) for n, d in zip(names, dtypes, strict=True)],
            [onnx.ValueInfoProto(name=str(v.name)) for v in outputs],
        )
        one = helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
        return digital_session(one.SerializeToString())

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        arrays = [v.detach().cpu().numpy() for v in values]
        dtypes = tuple(helper.np_dtype_to_tensor_dtype(a.dtype) for a in arrays)
        feeds = dict(zip(names, arrays, strict=True))
        found = session(dtypes).run(None, feeds)  # type: ignore[attr-defined]
        device = values[0].device if values else torch.device("cpu")
        by_name = dict(zip([str(v.name) for v in outputs], map(tensor_of, found), strict=True))
        return tuple(
            by_name[str(v.name)].to(device) if v.name else None  # type: ignore[misc]
            for v in node.outputs
        )

    return run, list(names)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Bodies of a node, and of the nodes in them."""
    found = []
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for body in [*graphs, *attribute.graphs]:
            found += [body, *(b for inner in body.node for b in _bodies(inner))]
    return found


def _made(body: onnx.GraphProto) -> list[str]:
    made = [o for n in body.node for o in n.output]
    return made + [i.name for i in body.input] + [t.name for t in body.initializer]


def _read(body: onnx.GraphProto) -> list[str]:
    return [i for n in body.node for i in n.input] + [o.name for o in body.output]
