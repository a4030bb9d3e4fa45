# SPDX-License-Identifier: Apache-2.0
"""``auto_pad`` of convolutions, written out as ``pads``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from rimc_onnx.passes._graph import PASS_KEY, Names, Shapes, add_initializer
from rimc_onnx.passes.constants import find_constant
from rimc_onnx.passes.node_geometry import node_geometry

__all__ = ["MakePadsExplicitPass"]

_SAME = {"SAME_UPPER", "SAME_LOWER"}


class MakePadsExplicitPass(ir.passes.InPlacePass):
    """Write ``pads`` in place of ``auto_pad`` on every Conv with a constant weight.

    1. NOTSET or VALID: ``pads`` as given, or 0.
    2. SAME_UPPER, SAME_LOWER: the pads follow from the kernel on an axis of stride 1, from the
       input's size on any other one. All sizes known: ``pads``.
    3. SAME with a stride and a size that is known at run time only: the pads are computed by
       standard nodes and applied by a Pad in front of a Conv that pads nothing.
    4. Conv without ``auto_pad``, with a weight that is no constant, inside a subgraph or kept
       digital (``skip``): left alone.

    SAME, with e = dilation * (kernel - 1) + 1: total = max((ceil(in / stride) - 1) * stride + e -
    in, 0), of which the odd one goes to the end (UPPER) or to the begin (LOWER); ONNX Conv.

    Raises:
        ModelError: ``kernel_shape`` is not the weight's.
    """

    def __init__(self, skip: Callable[[str], bool] = lambda _: False) -> None:
        self._skip = skip

    def __str__(self) -> str:
        return "MakePadsExplicitPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        shapes, names = Shapes(model), Names(model)
        modified = False
        for node in list(model.graph):
            if node.domain != "" or node.op_type != "Conv" or "auto_pad" not in node.attributes:
                continue
            weight = find_constant(node.inputs[1])
            x = node.inputs[0]
            if weight is None or x is None or self._skip(node.name or ""):
                continue
            _rewrite(node, x, weight.shape, shapes, names)
            modified = True
        return ir.passes.PassResult(model, modified)


def _rewrite(
    node: ir.Node, x: ir.Value, weight_shape: tuple[int, ...], shapes: Shapes, names: Names
) -> None:
    mode = node.attributes.pop("auto_pad").as_string()
    if mode == "VALID":
        node.attributes.pop("pads", None)
    geometry = node_geometry(node, weight_shape)
    extent = geometry.extent
    pads: Sequence[int] | None = geometry.pads
    if mode in _SAME:
        shape = shapes.shape(x)
        sizes = [None] * len(extent) if shape is None else list(shape)[2:]
        pads = _same_pads(sizes, extent, geometry.strides, upper=mode == "SAME_UPPER")
    if pads is None:
        padded = _pad_at_run_time(node, x, extent, geometry.strides, mode, names)
        node.replace_input_with(0, padded)
        pads = [0] * (2 * len(extent))
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _same_pads(
    sizes: Sequence[object], extent: Sequence[int], strides: Sequence[int], *, upper: bool
) -> list[int] | None:
    """Pads of SAME, or None if a size that matters is not known."""
    begin, end = [], []
    for size, e, s in zip(sizes, extent, strides, strict=True):
        if s == 1:
            total = e - 1
        elif isinstance(size, int):
            total = max((-(-size // s) - 1) * s + e - size, 0)
        else:
            return None
        small, large = total // 2, total - total // 2
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return begin + end


def _pad_at_run_time(
    node: ir.Node,
    x: ir.Value,
    extent: Sequence[int],
    strides: Sequence[int],
    mode: str,
    names: Names,
) -> ir.Value:
    """Nodes in front of ``node`` that pad ``x`` as SAME does; gives the padded value."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"node '{node.name}' belongs to no graph")
    base = f"{node.name}/same_pads"

    def const(name: str, numbers: Sequence[int]) -> ir.Value:
        name = names.value(f"{base}/{name}")
        return add_initializer(graph, name, ir.tensor(np.asarray(numbers, np.int64), name=name))

    def op(op_type: str, name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        new = ir.Node(
            "",
            op_type,
            inputs,
            [ir.AttrInt64(k, v) for k, v in attributes.items()],
            name=names.node(f"{base}/{name}"),
            metadata_props={PASS_KEY: "MakePadsExplicitPass"},
        )
        new.outputs[0].name = names.value(f"{base}/{name}")
        new.outputs[0].dtype = ir.DataType.INT64
        graph.insert_before(node, new)
        return new.outputs[0]

    rank = len(extent)
    stride, zero, one = const("strides", strides), const("zero", [0]), const("one", [1])
    shape, first, stop = op("Shape", "shape", x), const("first", [2]), const("stop", [2 + rank])
    size = op("Slice", "size", shape, first, stop)
    # (ceil(in / stride) - 1) * stride = (in - 1) // stride * stride, as in >= 1
    last = op("Mul", "last", op("Div", "steps", op("Sub", "in_1", size, one), stride), stride)
    needed = op("Sub", "needed", op("Add", "reach", last, const("extent", extent)), size)
    total = op("Max", "total", needed, zero)
    small = op("Div", "small", total, const("two", [2]))
    large = op("Sub", "large", total, small)
    begin, end = (small, large) if mode == "SAME_UPPER" else (large, small)
    none = const("none", [0, 0])
    padded = op("Pad", "pad", x, op("Concat", "pads", none, begin, none, end, axis=0))
    padded.name = names.value(f"{node.name}/padded")
    padded.type = x.type
    return padded
