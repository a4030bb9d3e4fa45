# SPDX-License-Identifier: Apache-2.0
"""Nodes that are not in the operator table, run by ONNX Runtime: no gradient passes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import helper
from torch import Tensor

from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.training.node_spec import Operator
from rimc_onnx.training.operators.shapes import tensor_of

__all__ = ["foreign_operator"]


def foreign_operator(
    node: ir.Node, model: ir.Model, types: Mapping[str, onnx.TypeProto]
) -> tuple[Operator, list[str | None]]:
    """A model of one node, and the names of all that it reads, captured values included.

    ``types`` are those of the file's values, as :func:`.value_types` finds them: the module has
    float32 for 16-bit floats, and lists of tensors for sequences.
    """
    proto = ir.to_proto(node)
    inner = {o for body in _bodies(proto) for o in _made(body)}
    captured = [n for body in _bodies(proto) for n in _read(body) if n and n not in inner]
    names = list(dict.fromkeys([n for n in proto.input if n] + captured))
    outputs = [v for v in node.outputs if v.name]
    imports = [helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
    of_file = [_without_shape(types.get(name)) for name in names]

    @functools.cache
    def session(dtypes: tuple[int, ...]) -> object:
        # The shapes of a node's inputs and outputs are found when it runs.
        infos = [
            helper.make_tensor_value_info(name, dtype, None)
            if known is None
            else onnx.ValueInfoProto(name=name, type=known)
            for name, dtype, known in zip(names, dtypes, of_file, strict=True)
        ]
        given = [onnx.ValueInfoProto(name=str(v.name)) for v in outputs]
        graph = helper.make_graph([proto], "node", infos, given)
        one = helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
        return digital_session(one.SerializeToString())

    def run(*values: Any) -> tuple[Any, ...]:
        arrays = [_array_of(v, known) for v, known in zip(values, of_file, strict=True)]
        dtypes = tuple(
            0 if isinstance(a, list) else helper.np_dtype_to_tensor_dtype(a.dtype) for a in arrays
        )
        feeds = dict(zip(names, arrays, strict=True))
        found = session(dtypes).run(None, feeds)  # type: ignore[attr-defined]
        device = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
        by_name = dict(zip([str(v.name) for v in outputs], found, strict=True))
        return tuple(
            _value_of(by_name[str(v.name)], device) if v.name else None for v in node.outputs
        )

    return run, list(names)


def _without_shape(known: onnx.TypeProto | None) -> onnx.TypeProto | None:
    """The type alone; ``None`` where it is not known."""
    if known is None or not known.HasField("tensor_type"):
        return known
    elem_type = known.tensor_type.elem_type
    return onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=elem_type))


def _array_of(value: Any, known: onnx.TypeProto | None) -> Any:
    """A tensor, or a list of them, as arrays of the file's type."""
    if isinstance(value, list):
        known = None if known is None else known.sequence_type.elem_type
        return [_array_of(part, known) for part in value]
    array = value.detach().cpu().numpy()
    elem_type = 0 if known is None else known.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(elem_type) if elem_type else array.dtype
    return array.astype(dtype, copy=False)


def _value_of(found: Any, device: torch.device) -> Any:
    if isinstance(found, list):
        return [_value_of(part, device) for part in found]
    return tensor_of(found).to(device)


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
