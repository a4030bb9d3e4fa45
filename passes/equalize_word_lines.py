# SPDX-License-Identifier: Apache-2.0
"""Word lines of one node brought to the same range of weights, for inputs of unequal strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.passes._graph import PASS_KEY, Names, add_initializer, lazy_tensor, remove_dead
from rimc_onnx.passes.constants import Constant, find_constant

__all__ = ["EqualizeWordLinesPass", "EqualizedNode", "equalized_share", "word_line_scale"]

Array = npt.NDArray[np.generic]
F64 = npt.NDArray[np.float64]

_MOST_SHARE = 0.5
"""Error that has to be left at most, or the node stays as it is."""
_MOST_EXPONENT = 30
_LEAST_EXPONENT = {ir.DataType.FLOAT: -_MOST_EXPONENT, ir.DataType.FLOAT16: -6}
"""Inputs are divided by 2^30 at most, of float16 by 2^6, whose normal numbers end at 2^-14."""
_METADATA = {PASS_KEY: "EqualizeWordLinesPass"}


@dataclass(frozen=True, kw_only=True)
class EqualizedNode:
    """A node whose inputs are scaled."""

    name: str
    op_type: str
    channels: int
    """Channels of the input, each with a power of two of its own."""
    error_share: float
    """What is left of the power of an error that all cells have alike, for channels of one power:
    the mean of the squared scales."""


class EqualizeWordLinesPass(ir.passes.InPlacePass):
    """Scale each input channel of a product by a power of two, and its weights by the inverse.

    The largest weight of every channel (the word lines of a convolution's window positions go
    together) comes to lie between half of W_max and W_max. A device's error is a share of W_max,
    whatever the weight: a channel whose largest weight is W_max / r has it multiplied by its whole
    input, here by 1 / r of it. No channel errs more than before. Powers of two leave the results in
    fp32 as they are, bit by bit; in hardware they are shifts. Compare the migration of SmoothQuant
    (Xiao et al. 2023), which goes by the inputs, and cross-layer equalization (Nagel et al. 2019).

    1. Conv, ConvTranspose, Gemm (``transA`` 0) and MatMul with a constant matrix, float32 or
       float16, on the right, groups and depthwise ones included: a Mul ``<node>/word_lines`` in
       front. Nodes of one weight have one scaled weight.
    2. A node on which that leaves more than half of the error: left alone, as is everything else,
       bodies of control flow included, and what ``skip`` takes by its name.

    After the call :attr:`equalized` lists the nodes.
    """

    def __init__(self, skip: Callable[[str], bool] = lambda _: False) -> None:
        self._skip = skip
        self.equalized: list[EqualizedNode] = []

    def __str__(self) -> str:
        return "EqualizeWordLinesPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        names = Names(model)
        self.equalized = []
        made: dict[tuple[object, ...], tuple[F64, ir.Value, ir.Value] | None] = {}
        for node in list(model.graph):
            lines = None if self._skip(node.name or "") else _lines_of(node)
            x, w = (*node.inputs[:2], None, None)[:2]
            if lines is None or x is None or w is None:
                continue
            key = (w, node.op_type, *lines.key)
            if key not in made:
                made[key] = _scaled(model.graph, node, lines, names)
            found = made[key]
            if found is None:
                continue
            scale, scale_value, weight = found
            base = node.name or weight.name or node.op_type
            mul = ir.node(
                "Mul",
                [x, scale_value],
                name=names.node(f"{base}/word_lines"),
                metadata_props=dict(_METADATA),
            )
            mul.outputs[0].name = names.value(f"{base}/word_lines")
            mul.outputs[0].shape, mul.outputs[0].type = x.shape, x.type
            model.graph.insert_before(node, mul)
            node.replace_input_with(0, mul.outputs[0])
            node.replace_input_with(1, weight)
            remove_dead([w])
            self.equalized.append(
                EqualizedNode(
                    name=base,
                    op_type=node.op_type,
                    channels=scale.size,
                    error_share=float(np.square(scale).mean()),
                )
            )
        return ir.passes.PassResult(model, bool(self.equalized))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lines:
    """How a weight lies: as [groups, columns, channels of a group, positions], in parts."""

    weight: Constant
    shape: tuple[int, int, int, int]
    channel_axis: int
    """Of that shape; the axis of the columns is the other one of 1 and 2."""
    spatial: int
    """Axes of the input behind its channels."""

    @property
    def key(self) -> tuple[object, ...]:
        return self.shape, self.channel_axis, self.spatial

    def largest(self) -> F64:
        """The largest magnitude of each input channel, [groups * channels]."""
        array = np.asarray(self.weight.numpy()).reshape(self.shape)
        axes = (3 - self.channel_axis, 3)
        return np.maximum(array.max(axis=axes), -array.min(axis=axes)).astype("f8").reshape(-1)

    def over(self, scale: F64) -> Array:
        """The weight over the scale of its channel."""
        array = np.asarray(self.weight.numpy())
        shape = [self.shape[0], 1, 1, 1]
        shape[self.channel_axis] = self.shape[self.channel_axis]
        divided = array.reshape(self.shape) / scale.reshape(shape).astype(array.dtype)
        return np.asarray(divided.reshape(array.shape))


def _lines_of(node: ir.Node) -> _Lines | None:
    """How the constant matrix of a product lies; ``None`` of what is none."""
    if node.domain != "" or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    weight = find_constant(node.inputs[1])
    if weight is None or weight.dtype not in _LEAST_EXPONENT or 0 in weight.shape:
        return None
    shape = weight.shape

    def attribute(name: str) -> int:
        found = node.attributes.get(name)
        return (1 if name == "group" else 0) if found is None else found.as_int()

    if node.op_type in ("Conv", "ConvTranspose") and len(shape) > 2:
        group, rest = attribute("group"), int(np.prod(shape[2:]))
        if group < 1 or shape[0] % group:
            return None
        return _Lines(
            weight=weight,
            shape=(group, shape[0] // group, shape[1], rest),
            channel_axis=2 if node.op_type == "Conv" else 1,
            spatial=len(shape) - 2,
        )
    is_gemm = node.op_type == "Gemm" and not attribute("transA")
    if len(shape) != 2 or not (is_gemm or node.op_type == "MatMul"):
        return None
    return _Lines(
        weight=weight,
        shape=(1, *shape, 1),
        channel_axis=2 if is_gemm and attribute("transB") else 1,
        spatial=0,
    )


def word_line_scale(largest: F64, least_exponent: int = -_MOST_EXPONENT) -> F64:
    """Powers of two, from a channel's share of the largest weight up to twice of it.

    Args:
        largest: magnitude of the largest weight of every channel, [channels].
        least_exponent: of the scale of channels with next to no weight.
    """
    whole = largest.max(initial=0.0)
    if not (np.isfinite(whole) and whole > 0):
        return np.ones(largest.shape)
    with np.errstate(divide="ignore"):  # a channel without weights
        exponent = np.ceil(np.log2(largest / whole))
    return np.asarray(np.exp2(np.maximum(exponent, least_exponent)), np.float64)


def _scaled(
    graph: ir.Graph, node: ir.Node, lines: _Lines, names: Names
) -> tuple[F64, ir.Value, ir.Value] | None:
    """The scale, and initializers for it and for the weight; ``None`` where it gains little."""
    dtype = lines.weight.dtype
    scale = word_line_scale(lines.largest(), _LEAST_EXPONENT[dtype])
    if np.square(scale).mean() > _MOST_SHARE:
        return None
    w = node.inputs[1]
    base = (None if w is None else w.name) or node.name or node.op_type
    shape = (scale.size,) + (1,) * lines.spatial
    values = scale.reshape(shape).astype(dtype.numpy())
    scale_name, weight_name = names.value(f"{base}/scale"), names.value(f"{base}/equalized")
    scale_value = add_initializer(graph, scale_name, ir.tensor(values, name=scale_name))
    tensor = lazy_tensor(
        lambda: lines.over(scale),
        name=weight_name,
        dtype=dtype,
        shape=tuple(map(int, lines.weight.shape)),
    )
    return scale, scale_value, add_initializer(graph, weight_name, tensor)


def equalized_share(node: ir.Node) -> float:
    """What :class:`EqualizeWordLinesPass` would leave of the error, 1 where it has no say."""
    lines = _lines_of(node)
    if lines is None:
        return 1.0
    scale = word_line_scale(lines.largest(), _LEAST_EXPONENT[lines.weight.dtype])
    return float(np.square(scale).mean())
