# SPDX-License-Identifier: Apache-2.0
"""Matrix products, convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.training.node_spec import Factory, NodeSpec, Operator, Table

__all__ = ["TABLE", "convolve", "pad_windows"]

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVG_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def pad_windows(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """``x`` [N, C, *S] with ONNX's pads (all begins, then all ends) put on."""
    rank = len(pads) // 2
    # torch counts axes from the last one.
    pairs = zip(pads[:rank][::-1], pads[rank:][::-1], strict=True)
    return functional.pad(x, [pad for pair in pairs for pad in pair], value=value)


def _even(pads: Sequence[int]) -> list[int] | None:
    """One pad an axis, where both ends have the same."""
    rank = len(pads) // 2
    return list(pads[:rank]) if list(pads[:rank]) == list(pads[rank:]) else None


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Tensor:
    """Conv: x [N, C, *S], weight [M, C / group, *kernel], bias [M] or None; pads as in ONNX."""
    even = _even(pads)
    if even is None:
        x, even = pad_windows(x, pads), [0] * (len(pads) // 2)
    conv = _CONV[weight.ndim - 3]
    return conv(x, weight, bias, list(strides), even, list(dilations), group)


def _same_pads(
    sizes: Sequence[int],
    extent: Sequence[int],
    strides: Sequence[int],
    mode: str,
) -> list[int]:
    """Pads of auto_pad SAME_UPPER or SAME_LOWER."""
    begin, end = [], []
    for size, reach, stride in zip(sizes, extent, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def _extent(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]


def _conv(spec: NodeSpec) -> Operator:
    given_pads, mode = spec.get("pads"), spec.get("auto_pad", "NOTSET")
    given_strides, given_dilations = spec.get("strides"), spec.get("dilations")
    group = spec.get("group", 1)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        if not 1 <= rank <= len(_CONV):
            raise spec.refuse(f"a convolution over {rank} axes is not supported, 1 to 3 are.")
        ones = [1] * rank
        strides, dilations = given_strides or ones, given_dilations or ones
        pads = given_pads or [0] * (2 * rank)
        if mode.startswith("SAME"):
            pads = _same_pads(x.shape[2:], _extent(weight.shape[2:], dilations), strides, mode)
        elif mode == "VALID":
            pads = [0] * (2 * rank)
        return convolve(
            x, weight, bias, strides=strides, pads=pads, dilations=dilations, group=group
        )

    return conv


def _conv_transpose(spec: NodeSpec) -> Operator:
    given_pads, mode = spec.get("pads"), spec.get("auto_pad", "NOTSET")
    given_strides, given_dilations = spec.get("strides"), spec.get("dilations")
    group, output_shape = spec.get("group", 1), spec.get("output_shape")
    given_output_padding = spec.get("output_padding")

    def conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        if not 1 <= rank <= len(_CONV_TRANSPOSE):
            raise spec.refuse(f"a convolution over {rank} axes is not supported, 1 to 3 are.")
        ones = [1] * rank
        strides, dilations = given_strides or ones, given_dilations or ones
        extra = list(given_output_padding or [0] * rank)
        begin = list((given_pads or [0] * (2 * rank))[:rank])
        end = list((given_pads or [0] * (2 * rank))[rank:])
        full = [
            s * (n - 1) + e + o
            for s, n, e, o in zip(
                strides, x.shape[2:], _extent(weight.shape[2:], dilations), extra, strict=True
            )
        ]
        wanted = output_shape
        if wanted is None and mode.startswith("SAME"):
            wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        if wanted is not None:
            wanted = list(wanted)[-rank:]
            extra = [o + max(w - f, 0) for o, f, w in zip(extra, full, wanted, strict=True)]
            full = [max(f, w) for f, w in zip(full, wanted, strict=True)]
            total = [f - w for f, w in zip(full, wanted, strict=True)]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            begin, end = (small, large) if mode == "SAME_UPPER" else (large, small)
        # Without pads first: torch's pads are even and its output padding is below the stride.
        y = _CONV_TRANSPOSE[rank - 1](x, weight, None, strides, 0, 0, group, dilations)
        y = pad_windows(y, [0] * rank + extra)
        for axis in range(rank):
            length = full[axis] - begin[axis] - end[axis]
            y = y.narrow(2 + axis, begin[axis], length)
        return y if bias is None else y + bias.reshape(-1, *ones)

    return conv_transpose


def _gemm(spec: NodeSpec) -> Operator:
    alpha, beta = spec.get("alpha", 1.0), spec.get("beta", 1.0)
    trans_a, trans_b = spec.get("transA", 0), spec.get("transB", 0)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if trans_a else a, b.t() if trans_b else b
        y = a @ b
        if alpha != 1.0:
            y = y * alpha
        if c is None or beta == 0.0:
            return y
        return y + (c if beta == 1.0 else c * beta)

    return gemm


def _einsum(spec: NodeSpec) -> Operator:
    equation = spec.get("equation").replace(" ", "")
    return lambda *values: torch.einsum(equation, *values)


def _ceil_pads(
    sizes: Sequence[int], extent: Sequence[int], strides: Sequence[int], pads: Sequence[int]
) -> list[int]:
    """What the last window of every axis reaches beyond the padded input with ceil_mode."""
    rank = len(extent)
    more = []
    for axis in range(rank):
        begin = pads[axis]
        length = sizes[axis] + begin + pads[rank + axis]
        steps = -(-(length - extent[axis]) // strides[axis])
        if steps * strides[axis] >= sizes[axis] + begin:
            steps -= 1  # a window that starts in the end pad is left out
        more.append(max(steps * strides[axis] + extent[axis] - length, 0))
    return more


def _window(
    spec: NodeSpec,
) -> Callable[[Tensor], tuple[list[int], list[int], list[int], list[int], list[int]]]:
    """Kernel, strides, pads, dilations and the ceil mode's pads of a pooling node."""
    kernel = list(spec.get("kernel_shape"))
    rank = len(kernel)
    strides = list(spec.get("strides") or [1] * rank)
    dilations = list(spec.get("dilations") or [1] * rank)
    given_pads, mode = spec.get("pads"), spec.get("auto_pad", "NOTSET")
    ceil = bool(spec.get("ceil_mode", 0))
    extent = _extent(kernel, dilations)
    if not 1 <= rank <= len(_MAX_POOL):
        raise spec.refuse(f"a pool over {rank} axes is not supported, 1 to 3 are.")

    def window(x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
        pads = list(given_pads or [0] * (2 * rank))
        if mode.startswith("SAME"):
            pads = _same_pads(x.shape[2:], extent, strides, mode)
        elif mode == "VALID":
            pads = [0] * (2 * rank)
        more = _ceil_pads(x.shape[2:], extent, strides, pads) if ceil else [0] * rank
        return kernel, strides, pads, dilations, more

    return window


def _max_pool(spec: NodeSpec) -> Operator:
    window = _window(spec)
    if spec.num_outputs > 1:
        raise spec.refuse("the output Indices is not supported.")

    def max_pool(x: Tensor) -> Tensor:
        kernel, strides, pads, dilations, more = window(x)
        rank = len(kernel)
        lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        whole = x if x.is_floating_point() else x.double()
        padded = pad_windows(whole, [*pads[:rank], *_sum(pads[rank:], more)], float(lowest))
        return _MAX_POOL[rank - 1](padded, kernel, strides, 0, dilations).to(x.dtype)

    return max_pool


def _sum(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _average_pool(spec: NodeSpec) -> Operator:
    window = _window(spec)
    count_pads = bool(spec.get("count_include_pad", 0))

    def average_pool(x: Tensor) -> Tensor:
        kernel, strides, pads, dilations, more = window(x)
        rank = len(kernel)
        wide = [*pads[:rank], *_sum(pads[rank:], more)]
        if not any(wide) and all(d == 1 for d in dilations):
            return _AVG_POOL[rank - 1](x, kernel, strides)
        # Sums over windows by a convolution with ones, for dilations and uneven pads.
        ones = x.new_ones(1, 1, *kernel)
        total = _pool_sum(pad_windows(x, wide), ones, strides, dilations)
        counted = x.new_ones(1, 1, *x.shape[2:])
        if count_pads:
            counted = pad_windows(counted, pads, 1.0)
            counted = pad_windows(counted, [0] * rank + more)
        else:
            counted = pad_windows(counted, wide)
        return total / _pool_sum(counted, ones, strides, dilations)

    return average_pool


def _pool_sum(x: Tensor, ones: Tensor, strides: list[int], dilations: list[int]) -> Tensor:
    flat = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[ones.ndim - 3](flat, ones, None, strides, 0, dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def _lp_pool(spec: NodeSpec) -> Operator:
    window, p = _window(spec), float(spec.get("p", 2))

    def lp_pool(x: Tensor) -> Tensor:
        kernel, strides, pads, dilations, more = window(x)
        rank = len(kernel)
        powers = pad_windows(x.abs() ** p, [*pads[:rank], *_sum(pads[rank:], more)])
        return _pool_sum(powers, x.new_ones(1, 1, *kernel), strides, dilations) ** (1 / p)

    return lp_pool


def _global(function: Callable[[Tensor, list[int]], Tensor]) -> Factory:
    return lambda _: lambda x: function(x, list(range(2, x.ndim)))


def _global_lp(spec: NodeSpec) -> Operator:
    p = float(spec.get("p", 2))
    return lambda x: torch.linalg.vector_norm(x, p, list(range(2, x.ndim)), keepdim=True)


TABLE: Table = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalLpPool": _global_lp,
    "GlobalMaxPool": _global(lambda x, axes: x.amax(axes, keepdim=True)),
    "LpPool": _lp_pool,
    "MatMul": lambda _: torch.matmul,
    "MaxPool": _max_pool,
}
