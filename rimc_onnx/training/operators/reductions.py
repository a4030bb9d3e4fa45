# SPDX-License-Identifier: Apache-2.0
"""Operators that reduce, order or accumulate along axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rimc_onnx.training.node_spec import Factory, NodeSpec, Operator, Table

__all__ = ["TABLE"]

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: Reduce) -> Factory:
    """A reduction whose axes are an attribute or, from opset 13 or 18 on, an input."""

    def make(spec: NodeSpec) -> Operator:
        keep = bool(spec.get("keepdims", 1))
        read_axes = spec.ints(1, "axes")
        empty_is_none = bool(spec.get("noop_with_empty_axes", 0))

        def reduce(x: Tensor, *rest: Tensor | None) -> Tensor:
            axes = read_axes(x, *rest)
            if not axes:
                if empty_is_none:
                    # Element-wise parts of a reduction (square, abs, log) are still taken.
                    return function(x.unsqueeze(0), [0], False)
                axes = list(range(x.ndim))
            return function(x, axes, keep) if x.ndim else function(x.reshape(1), [0], False)

        return reduce

    return make


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).to(x.dtype)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype == torch.bool:
        return x.to(torch.uint8).amax(axes, keepdim=keep).bool()
    return x.amax(axes, keepdim=keep)


def _least(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype == torch.bool:
        return x.to(torch.uint8).amin(axes, keepdim=keep).bool()
    return x.amin(axes, keepdim=keep)


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, dim=axes, keepdim=keep)
    return _sum_square(x.double(), axes, keep).sqrt().to(x.dtype)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _arg(find_largest: bool) -> Factory:
    def make(spec: NodeSpec) -> Operator:
        axis, keep = spec.get("axis", 0), bool(spec.get("keepdims", 1))
        last = bool(spec.get("select_last_index", 0))
        find = torch.argmax if find_largest else torch.argmin

        def arg(x: Tensor) -> Tensor:
            if not last:
                return find(x, dim=axis, keepdim=keep)
            return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=keep)

        return arg

    return make


def _top_k(spec: NodeSpec) -> Operator:
    axis, largest = spec.get("axis", -1), bool(spec.get("largest", 1))
    read_k = spec.ints(1, "k")

    def top_k(x: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
        counts = read_k(x, *rest)
        if counts is None:
            raise spec.refuse("k is missing")
        # A stable order: equal values keep the order of their indices, as ONNX wants it.
        index = torch.sort(x, dim=axis, descending=largest, stable=True).indices
        index = index.narrow(axis, 0, counts[0])
        return torch.gather(x, axis, index), index

    return top_k


def _cum_sum(spec: NodeSpec) -> Operator:
    exclusive, reverse = bool(spec.get("exclusive", 0)), bool(spec.get("reverse", 0))
    read_axis = spec.ints(1)

    def cum_sum(x: Tensor, *rest: Tensor | None) -> Tensor:
        (axis,) = read_axis(x, *rest) or [0]
        y = x.flip(axis) if reverse else x
        y = y.cumsum(axis, dtype=x.dtype) - (y if exclusive else 0)
        return y.flip(axis) if reverse else y

    return cum_sum


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Factory:
    def make(spec: NodeSpec) -> Operator:
        axis = spec.get("axis", -1)
        return lambda x: function(x, axis)

    return make


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


TABLE: Table = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "CumSum": _cum_sum,
    "Hardmax": _softmax(_hardmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "ReduceL1": _reduce(_l1),
    "ReduceL2": _reduce(_l2),
    "ReduceLogSum": _reduce(_log_sum),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_largest),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_least),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(_sum_square),
    "Softmax": _softmax(torch.softmax),
    "TopK": _top_k,
}
