# SPDX-License-Identifier: Apache-2.0
"""Shapes of a model's values in one inference: inferred, or seen in a run of one sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.execution.taps import StagedRun
from rimc_onnx.ops import schema

__all__ = ["Shapes", "inferred_shapes", "seen_shapes", "zero_feed"]

Shapes = Mapping[str, tuple[int, ...]]
"""By value; those that are not known are not in it."""

_SMALL_BYTES = 1024
"""Initializers up to here are shown to shape inference: shapes, axes, counts."""
_TOGETHER_BYTES = 256 << 20
"""Values of a run that are held together."""
_STANDARD = {schema.RRAM_CONV: "Conv", schema.RRAM_MATMUL: "MatMul"}


def inferred_shapes(model: ir.Model) -> Shapes:
    """Shapes for one sample: a free first axis of an input is 1, other free axes stay unknown."""
    graph = onnx.GraphProto(name="shapes")
    one = set(_batch_symbols(model))
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers:
            graph.input.append(_input(value, one))
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes > _SMALL_BYTES:
            shape = list(tensor.shape.numpy())
            graph.input.append(helper.make_tensor_value_info(name, int(tensor.dtype), shape))
        else:
            proto = ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype))
            proto.name = name
            graph.initializer.append(proto)
    graph.node.extend(_nodes(model))
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.graph.outputs)
    proto = helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=[
            helper.make_opsetid(d, v) for d, v in model.opset_imports.items() if d != schema.DOMAIN
        ],
    )
    proto.functions.extend(
        ir.serde.serialize_function(f)
        for key, f in model.functions.items()
        if key[0] != schema.DOMAIN
    )
    try:
        found = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        found = proto.graph  # what it gets wrong, a sample tells
    shapes = dict(_stated_shapes(model, one))
    for info in (*found.input, *found.value_info, *found.output):
        tensor = info.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[info.name] = tuple(d.dim_value for d in tensor.shape.dim)
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in found.initializer}
    return shapes


def seen_shapes(model: ir.Model, feed: Feed, factory: SessionFactory) -> Shapes:
    """Shapes in a run of ``feed``; sequences and optionals have none."""
    made = [o.name for node in model.graph for o in node.outputs if o.name]
    run = StagedRun(model, [feed], made, factory, together_bytes=_TOGETHER_BYTES)
    shapes = {name: tuple(array.shape) for name, array in feed.items() if hasattr(array, "shape")}
    for name, chunks in run:
        if hasattr(chunks[0], "shape"):
            shapes[name] = tuple(chunks[0].shape)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(value.const_value.shape.numpy())
    return shapes


def zero_feed(model: ir.Model) -> Feed | None:
    """A sample of zeros; ``None`` where an axis of an input is free, the first one apart."""
    one, feed = set(_batch_symbols(model)), {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        tensor = _input(value, one).type.tensor_type
        # A size below 0 says nothing either.
        sizes = [
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None
            for d in tensor.shape.dim
        ]
        if value.dtype is None or not tensor.HasField("shape") or None in sizes:
            return None
        feed[value.name or ""] = np.zeros([s or 0 for s in sizes], value.dtype.numpy())
    return Feed(feed)


def _batch_symbols(model: ir.Model) -> Iterator[str]:
    """Names of the first axes that an input leaves free."""
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            symbol = value.shape[0].value
            if symbol:
                yield symbol


def _stated_shapes(model: ir.Model, one: set[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the file says of the values that nodes make; inference may not get as far."""
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.shape is not None:
                sizes = [
                    size if isinstance(size, int) else 1 if size.value in one else None
                    for size in value.shape
                ]
                if all(size is not None and size >= 0 for size in sizes):
                    yield value.name, tuple(size for size in sizes if size is not None)


def _input(value: ir.Value, one: set[str]) -> onnx.ValueInfoProto:
    proto = ir.serde.serialize_value(value)
    if not proto.type.HasField("tensor_type"):
        return proto
    for axis, dim in enumerate(proto.type.tensor_type.shape.dim):
        is_free = not dim.HasField("dim_value") or dim.dim_value < 0
        if is_free and (axis == 0 or dim.dim_param in one):
            dim.dim_value = 1
    return proto


def _nodes(model: ir.Model) -> Iterator[onnx.NodeProto]:
    """Crossbars as the operators whose shapes they have, adapters as what passes them through."""
    for node in model.graph:
        proto = ir.serde.serialize_node(node)
        if node.domain == schema.DOMAIN:
            standard = _STANDARD.get(node.op_type)
            proto.domain = ""
            if standard is None:
                h = proto.input[1]
                del proto.input[:], proto.attribute[:]
                proto.op_type = "Identity"
                proto.input.append(h)
            else:
                proto.op_type = standard
                kept = [
                    a for a in proto.attribute if a.name in schema.GEOMETRY and standard == "Conv"
                ]
                del proto.attribute[:]
                proto.attribute.extend(kept)
        yield proto
