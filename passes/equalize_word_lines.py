# SPDX-License-Identifier: Apache-2.0
"""Word lines of one node brought to the same range of weights, for inputs of unequal strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.passes._graph import PASS_KEY, Names, add_initializer, lazy_tensor, remove_dead
from rimc_onnx.passes.constants import Constant, find_constant

__all__ = [
    "UNEQUAL_SHARE",
    "EqualizeWordLinesPass",
    "EqualizedNode",
    "equalized_share",
    "word_line_scale",
    "word_line_scales",
]

Array = npt.NDArray[np.generic]
F64 = npt.NDArray[np.float64]

UNEQUAL_SHARE = 0.25
"""Of the error that equal word lines would leave, up to which users are told of them."""
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
        made: dict[tuple[object, ...], _Scaled | None] = {}
        for node in list(model.graph):
            lines = None if self._skip(node.name or "") else _lines_of(node)
            if lines is None:
                continue
            x, w = lines.x, lines.w
            key = (w, node.op_type, *lines.key)
            if key not in made:
                made[key] = _scaled(model.graph, lines, names)
            scaled = made[key]
            if scaled is None:
                continue
            base = node.name or scaled.weight.name or node.op_type
            mul = ir.node(
                "Mul",
                [x, scaled.scale],
                name=names.node(f"{base}/word_lines"),
                metadata_props=dict(_METADATA),
            )
            mul.outputs[0].name = names.value(f"{base}/word_lines")
            mul.outputs[0].shape, mul.outputs[0].type = x.shape, x.type
            model.graph.insert_before(node, mul)
            node.replace_input_with(0, mul.outputs[0])
            node.replace_input_with(1, scaled.weight)
            remove_dead([w])
            self.equalized.append(
                EqualizedNode(
                    name=base,
                    op_type=node.op_type,
                    channels=scaled.channels,
                    error_share=scaled.error_share,
                )
            )
        return ir.passes.PassResult(model, bool(self.equalized))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lines:
    """How a weight lies: as [groups, columns, channels of a group, positions], in parts."""

    x: ir.Value
    w: ir.Value
    weight: Constant
    """What ``w`` holds."""
    shape: tuple[int, int, int, int]
    channel_axis: int
    """Of that shape; the axis of the columns is the other one of 1 and 2."""
    spatial: int
    """Axes of the input behind its channels."""

    @property
    def key(self) -> tuple[object, ...]:
        return self.shape, self.channel_axis, self.spatial

    def scale(self) -> F64:
        """A power of two for each input channel, [groups * channels]."""
        array = np.asarray(self.weight.numpy()).reshape(self.shape)
        axes = (3 - self.channel_axis, 3)
        largest = np.maximum(array.max(axis=axes), -array.min(axis=axes)).astype("f8").reshape(-1)
        return word_line_scale(largest, _LEAST_EXPONENT[self.weight.dtype])

    def over(self, scale: F64) -> Array:
        """The weight over the scale of its channel."""
        array = np.asarray(self.weight.numpy())
        shape = [self.shape[0], 1, 1, 1]
        shape[self.channel_axis] = self.shape[self.channel_axis]
        divided = array.reshape(self.shape) / scale.reshape(shape).astype(array.dtype)
        return np.asarray(divided.reshape(array.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaled:
    """Initializers of a scaled weight, and what they are worth."""

    scale: ir.Value
    weight: ir.Value
    channels: int
    error_share: float


def _lines_of(node: ir.Node) -> _Lines | None:
    """How the constant matrix of a product lies; ``None`` of what is none."""
    if node.domain != "" or len(node.inputs) < 2:
        return None
    x, w = node.inputs[:2]
    weight = find_constant(w)
    if x is None or w is None or weight is None:
        return None
    if weight.dtype not in _LEAST_EXPONENT or 0 in weight.shape:
        return None
    shape = weight.shape
    if node.op_type in ("Conv", "ConvTranspose") and len(shape) > 2:
        group = node.attributes.get_int("group", 1)
        if group < 1 or shape[0] % group:
            return None
        return _Lines(
            x=x,
            w=w,
            weight=weight,
            shape=(group, shape[0] // group, shape[1], math.prod(shape[2:])),
            channel_axis=2 if node.op_type == "Conv" else 1,
            spatial=len(shape) - 2,
        )
    is_gemm = node.op_type == "Gemm" and not node.attributes.get_int("transA", 0)
    if len(shape) != 2 or not (is_gemm or node.op_type == "MatMul"):
        return None
    return _Lines(
        x=x,
        w=w,
        weight=weight,
        shape=(1, *shape, 1),
        channel_axis=2 if is_gemm and node.attributes.get_int("transB", 0) else 1,
        spatial=0,
    )


def word_line_scales(model: ir.Model) -> set[str]:
    """Names of the initializers by which :class:`EqualizeWordLinesPass` scaled inputs."""
    name = _METADATA[PASS_KEY]
    scaled = [node for node in model.graph if node.metadata_props.get(PASS_KEY) == name]
    return {str(node.inputs[1].name) for node in scaled if node.inputs[1] is not None}


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


def _error_share(scale: F64) -> float:
    return float(np.square(scale).mean())


def _scaled(graph: ir.Graph, lines: _Lines, names: Names) -> _Scaled | None:
    """Initializers for the scale and for the weight; ``None`` where they gain little."""
    dtype, scale = lines.weight.dtype, lines.scale()
    error_share = _error_share(scale)
    if error_share > _MOST_SHARE:
        return None
    scale_name = names.value(f"{lines.w.name}/scale")
    weight_name = names.value(f"{lines.w.name}/equalized")
    values = scale.reshape((scale.size,) + (1,) * lines.spatial).astype(dtype.numpy())
    tensor = lazy_tensor(
        lambda: lines.over(scale), name=weight_name, dtype=dtype, shape=lines.weight.shape
    )
    return _Scaled(
        scale=add_initializer(graph, scale_name, ir.tensor(values, name=scale_name)),
        weight=add_initializer(graph, weight_name, tensor),
        channels=scale.size,
        error_share=error_share,
    )


def equalized_share(node: ir.Node) -> float:
    """What :class:`EqualizeWordLinesPass` would leave of the error, 1 where it has no say."""
    lines = _lines_of(node)
    return 1.0 if lines is None else _error_share(lines.scale())
