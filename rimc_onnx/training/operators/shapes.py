# SPDX-License-Identifier: Apache-2.0
"""Operators that move values, make them, or tell their shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.training.node_spec import NodeSpec, Operator, Table

__all__ = ["TABLE", "dtype_of", "tensor_of"]

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # float16 and bfloat16 are computed in float32
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.float32,
}
"""By TensorProto.DataType."""


def dtype_of(spec: NodeSpec, number: int) -> torch.dtype:
    """The torch type of an ONNX data type.

    Raises:
        ModelError: torch has none.
    """
    if number not in _DTYPES:
        raise spec.refuse(f"data type {number} is not supported.")
    return _DTYPES[number]


def tensor_of(array: np.ndarray) -> Tensor:
    """A constant as a tensor of its own; 16-bit floats become float32."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.dtype == np.float16:
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array, order="C", copy=True))


def _shape(spec: NodeSpec) -> Operator:
    start, end = spec.get("start", 0), spec.get("end")

    def shape(x: Tensor) -> Tensor:
        return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)

    return shape


def _reshape(spec: NodeSpec) -> Operator:
    read, allow_zero = spec.ints(1, "shape"), bool(spec.get("allowzero", 0))

    def reshape(x: Tensor, *rest: Tensor | None) -> Tensor:
        wanted = read(x, *rest) or []
        if not allow_zero:
            wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
        if x.numel() == 0 and -1 in wanted:
            known = math.prod(d for d in wanted if d != -1)
            wanted = [(0 if known == 0 else x.numel() // known) if d == -1 else d for d in wanted]
        return x.reshape(wanted)

    return reshape


def _flatten(spec: NodeSpec) -> Operator:
    axis = spec.get("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return flatten


def _transpose(spec: NodeSpec) -> Operator:
    perm = spec.get("perm")
    return lambda x: x.permute(perm or list(range(x.ndim - 1, -1, -1)))


def _squeeze(spec: NodeSpec) -> Operator:
    read = spec.ints(1, "axes")

    def squeeze(x: Tensor, *rest: Tensor | None) -> Tensor:
        axes = read(x, *rest)
        return x.squeeze() if axes is None else x.squeeze(axes)

    return squeeze


def _unsqueeze(spec: NodeSpec) -> Operator:
    read = spec.ints(1, "axes")

    def unsqueeze(x: Tensor, *rest: Tensor | None) -> Tensor:
        axes = read(x, *rest) or []
        for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _concat(spec: NodeSpec) -> Operator:
    axis = spec.get("axis", 0)
    return lambda *values: torch.cat(values, axis)


def _split(spec: NodeSpec) -> Operator:
    axis, read = spec.get("axis", 0), spec.ints(1, "split")

    def split(x: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        sizes = read(x, *rest)
        if sizes is None:
            length, parts = x.shape[axis], spec.num_outputs
            step = -(-length // parts)
            sizes = [max(min(step, length - i * step), 0) for i in range(parts)]
        return torch.split(x, sizes, axis)

    return split


def _slice(spec: NodeSpec) -> Operator:
    starts, ends = spec.ints(1, "starts"), spec.ints(2, "ends")
    read_axes, read_steps = spec.ints(3, "axes"), spec.ints(4)

    def part(x: Tensor, *rest: Tensor | None) -> Tensor:
        first, last = starts(x, *rest) or [], ends(x, *rest) or []
        axes = read_axes(x, *rest) or list(range(len(first)))
        steps = read_steps(x, *rest) or [1] * len(first)
        for axis, begin, end, step in zip(axes, first, last, steps, strict=True):
            chosen = range(*slice(begin, end, step).indices(x.shape[axis]))
            if not chosen:
                x = x.narrow(axis, 0, 0)
            elif step > 0:
                x = _strided(x, axis, chosen)
            else:
                index = torch.tensor(list(chosen), dtype=torch.int64, device=x.device)
                x = x.index_select(axis, index)
        return x

    return part


def _strided(x: Tensor, axis: int, chosen: range) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(chosen.start, chosen[-1] + 1, chosen.step)
    return x[tuple(index)]


def _positive(index: Tensor, length: int) -> Tensor:
    """Indices from the end made indices from the start."""
    return torch.where(index < 0, index + length, index).long()


def _gather(spec: NodeSpec) -> Operator:
    axis = spec.get("axis", 0)

    def gather(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.ndim
        flat = x.index_select(at, _positive(index, x.shape[at]).reshape(-1))
        return flat.reshape([*x.shape[:at], *index.shape, *x.shape[at + 1 :]])

    return gather


def _gather_elements(spec: NodeSpec) -> Operator:
    axis = spec.get("axis", 0)
    return lambda x, index: torch.gather(x, axis, _positive(index, x.shape[axis]))


def _gather_nd(spec: NodeSpec) -> Operator:
    batch = spec.get("batch_dims", 0)

    def gather_nd(x: Tensor, index: Tensor) -> Tensor:
        depth, lead = index.shape[-1], x.shape[:batch]
        rows = x.reshape(math.prod(lead), *x.shape[batch:])
        columns = index.reshape(rows.shape[0], -1, depth)
        at = [torch.arange(rows.shape[0], device=x.device)[:, None]]
        at += [_positive(columns[..., i], x.shape[batch + i]) for i in range(depth)]
        return rows[tuple(at)].reshape([*index.shape[:-1], *x.shape[batch + depth :]])

    return gather_nd


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(spec: NodeSpec) -> Operator:
    axis, how = spec.get("axis", 0), spec.get("reduction", "none")

    def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        at = _positive(index, x.shape[axis])
        if how == "none":
            return x.scatter(axis, at, updates)
        return x.scatter_reduce(axis, at, updates, _SCATTER[how])

    return scatter


def _scatter_nd(spec: NodeSpec) -> Operator:
    how = spec.get("reduction", "none")

    def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        depth = index.shape[-1]
        tail = x.shape[depth:]
        rows, flat = x.reshape(-1, *tail), torch.zeros_like(index[..., 0]).long()
        for i in range(depth):
            flat = flat * x.shape[i] + _positive(index[..., i], x.shape[i])
        flat, values = flat.reshape(-1), updates.reshape(-1, *tail)
        if how == "none":
            return rows.index_put((flat,), values).reshape(x.shape)
        wide = flat.reshape(-1, *[1] * len(tail)).expand_as(values)
        return rows.scatter_reduce(0, wide, values, _SCATTER[how]).reshape(x.shape)

    return scatter


def _expand(spec: NodeSpec) -> Operator:
    read = spec.ints(1)

    def expand(x: Tensor, *rest: Tensor | None) -> Tensor:
        shape = np.broadcast_shapes(x.shape, tuple(read(x, *rest) or []))
        return x.expand(shape)

    return expand


def _tile(spec: NodeSpec) -> Operator:
    read = spec.ints(1)
    return lambda x, *rest: x.repeat(read(x, *rest) or [])


def _pad(spec: NodeSpec) -> Operator:
    read, read_axes = spec.ints(1, "pads"), spec.ints(3)
    mode, fixed = spec.get("mode", "constant"), spec.get("value", 0.0)

    def pad(x: Tensor, *rest: Tensor | None) -> Tensor:
        given = read(x, *rest) or []
        axes = read_axes(x, *rest) or list(range(len(given) // 2))
        fill = rest[1] if len(rest) > 1 and rest[1] is not None else None
        value = fixed if fill is None else fill.reshape(()).item()
        half = len(given) // 2
        for i, axis in enumerate(axes):
            x = _pad_axis(x, axis % x.ndim, given[i], given[half + i], mode, value)
        return x

    return pad


def _pad_axis(x: Tensor, axis: int, begin: int, end: int, mode: str, value: float) -> Tensor:
    """One axis; negative pads cut."""
    cut_begin, cut_end = max(-begin, 0), max(-end, 0)
    x = x.narrow(axis, cut_begin, x.shape[axis] - cut_begin - cut_end)
    begin, end = max(begin, 0), max(end, 0)
    if not (begin or end):
        return x
    length = x.shape[axis]
    if mode == "constant":
        pads = [0, 0] * (x.ndim - 1 - axis) + [begin, end]
        return functional.pad(x, pads, value=value)
    at = torch.arange(-begin, length + end, device=x.device)
    if mode == "edge":
        at = at.clamp(0, length - 1)
    elif mode == "wrap":
        at = at % length
    else:  # reflect, without the edge twice
        period = max(2 * (length - 1), 1)
        at = at.abs() % period
        at = torch.where(at >= length, period - at, at)
    return x.index_select(axis, at)


def _cast(spec: NodeSpec) -> Operator:
    to = dtype_of(spec, spec.get("to"))
    return lambda x: x.to(to)


def _cast_like(_: NodeSpec) -> Operator:
    return lambda x, like: x.to(like.dtype)


def _constant_of_shape(spec: NodeSpec) -> Operator:
    read = spec.ints(0)
    value = tensor_of(spec.get("value", np.zeros(1, np.float32)))
    fill, dtype = value.reshape(()).item(), value.dtype

    def make(*inputs: Tensor) -> Tensor:
        return torch.full(read(*inputs) or [], fill, dtype=dtype, device=inputs[0].device)

    return make


def _range(spec: NodeSpec) -> Operator:
    def make(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        first, last, step = (v.reshape(()).item() for v in (start, limit, delta))
        count = max(math.ceil((last - first) / step), 0)
        steps = torch.arange(count, dtype=start.dtype, device=start.device)
        return start.reshape(()) + steps * delta.reshape(())

    if spec.num_inputs != 3:
        raise spec.refuse("start, limit and delta are needed.")
    return make


def _one_hot(spec: NodeSpec) -> Operator:
    axis = spec.get("axis", -1)

    def one_hot(index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        count = int(depth.reshape(-1)[0].item())
        steps = torch.arange(count, device=index.device)
        at = torch.where(index < 0, index + count, index)
        hot = at.unsqueeze(-1).to(torch.float64) == steps.to(torch.float64)
        return torch.where(hot, values[1], values[0]).movedim(-1, axis)

    return one_hot


def _eye_like(spec: NodeSpec) -> Operator:
    number, k = spec.get("dtype"), spec.get("k", 0)

    def eye(x: Tensor) -> Tensor:
        dtype = x.dtype if number is None else dtype_of(spec, number)
        return torch.ones_like(x, dtype=dtype).triu(k).tril(k)

    return eye


def _trilu(spec: NodeSpec) -> Operator:
    read, upper = spec.ints(1), bool(spec.get("upper", 1))

    def trilu(x: Tensor, *rest: Tensor | None) -> Tensor:
        (k,) = read(x, *rest) or [0]
        return torch.triu(x, k) if upper else torch.tril(x, k)

    return trilu


def _depth_to_space(spec: NodeSpec) -> Operator:
    size, mode = spec.get("blocksize"), spec.get("mode", "DCR")

    def depth_to_space(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            y = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            y = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // size**2, h * size, w * size)

    return depth_to_space


def _space_to_depth(spec: NodeSpec) -> Operator:
    size, order = spec.get("blocksize"), (0, 3, 5, 1, 2, 4)
    if spec.get("mode", "DCR") == "CRD":
        order = (0, 1, 3, 5, 2, 4)

    def space_to_depth(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // size, size, w // size, size).permute(order)
        return y.reshape(n, c * size**2, h // size, w // size)

    return space_to_depth


def _compress(spec: NodeSpec) -> Operator:
    axis = spec.get("axis")

    def compress(x: Tensor, condition: Tensor) -> Tensor:
        along = x.reshape(-1) if axis is None else x
        return along.index_select(axis or 0, torch.nonzero(condition).reshape(-1))

    return compress


def _reverse_sequence(spec: NodeSpec) -> Operator:
    batch, time = spec.get("batch_axis", 1), spec.get("time_axis", 0)

    def reverse(x: Tensor, lengths: Tensor) -> Tensor:
        y = x.movedim((batch, time), (0, 1))
        steps = torch.arange(y.shape[1], device=x.device)[None, :]
        ends = lengths.reshape(-1, 1)
        at = torch.where(steps < ends, ends - 1 - steps, steps)
        rows = torch.arange(y.shape[0], device=x.device)[:, None]
        return y[rows, at].movedim((0, 1), (batch, time))

    return reverse


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


TABLE: Table = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Compress": _compress,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": lambda _: lambda x: torch.nonzero(x).t(),
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda _: _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
