# SPDX-License-Identifier: Apache-2.0
"""Resampling of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.training.node_spec import NodeSpec, Operator, Table

__all__ = ["TABLE"]

Where = Callable[[Tensor, float, int, int], Tensor]
"""(output positions, scale, input size, output size) -> input positions."""

_WHERE: dict[str, Where] = {
    "half_pixel": lambda i, s, _n, _m: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, s, _n, m: (i + 0.5) / s - 0.5 if m > 1 else i * 0,
    "half_pixel_symmetric": lambda i, s, n, m: n / 2 * (1 - m / (s * n)) + (i + 0.5) / s - 0.5,
    "asymmetric": lambda i, s, _n, _m: i / s,
    "align_corners": lambda i, _s, n, m: i * ((n - 1) / (m - 1)) if m > 1 else i * 0,
}
_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _resize(spec: NodeSpec) -> Operator:
    mode = spec.get("mode", "nearest")
    where = spec.get("coordinate_transformation_mode", "half_pixel")
    if where not in _WHERE or spec.get("antialias", 0) or spec.get("exclude_outside", 0):
        raise spec.refuse(
            f"{where}, antialias {spec.get('antialias', 0)}, exclude_outside "
            f"{spec.get('exclude_outside', 0)} is not supported. Resize with "
            f"{', '.join(_WHERE)} without the other two."
        )
    if spec.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise spec.refuse("keep_aspect_ratio_policy is not supported.")
    rounding = _NEAREST[spec.get("nearest_mode", "round_prefer_floor")]
    cubic = spec.get("cubic_coeff_a", -0.75)
    axes = spec.get("axes")
    read_sizes = spec.ints(3)

    def resize(x: Tensor, *rest: Tensor | None) -> Tensor:
        chosen = list(axes) if axes else list(range(x.ndim))
        scales = rest[1] if len(rest) > 1 else None
        sizes = read_sizes(x, *rest)
        for at, axis in enumerate(chosen):
            n = x.shape[axis]
            if sizes:
                m, scale = sizes[at], sizes[at] / n
            elif scales is not None:
                scale = float(scales[at])
                m = int(n * scale)
            else:
                raise spec.refuse("it has neither sizes nor scales.")
            if m == n and scale == 1.0:
                continue
            i = torch.arange(m, dtype=torch.float64, device=x.device)
            position = _WHERE[where](i, scale, n, m)
            x = _sample_axis(x, axis, position, mode, rounding, cubic)
        return x

    return resize


def _sample_axis(
    x: Tensor,
    axis: int,
    position: Tensor,
    mode: str,
    rounding: Callable[[Tensor], Tensor],
    cubic: float,
) -> Tensor:
    """``x`` at fractional positions of one axis; positions outside read the edge."""
    last = x.shape[axis] - 1
    if mode == "nearest":
        return x.index_select(axis, rounding(position).clamp(0, last).long())
    if mode == "linear":
        position = position.clamp(0, last)
    base = position.floor()
    share = position - base
    if mode == "linear":
        weights: Sequence[Tensor] = (1 - share, share)
        offsets: tuple[int, ...] = (0, 1)
    else:
        weights = [_cubic(share + 1, cubic), _cubic(share, cubic)]
        weights += [_cubic(1 - share, cubic), _cubic(2 - share, cubic)]
        offsets = (-1, 0, 1, 2)
    shape = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
    total = None
    for offset, weight in zip(offsets, weights, strict=True):
        part = x.index_select(axis, (base + offset).clamp(0, last).long())
        part = part * weight.to(x.dtype).reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


def _cubic(d: Tensor, a: float) -> Tensor:
    """Keys' kernel at distances below 2."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, far)


def _grid_sample(spec: NodeSpec) -> Operator:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = names.get(spec.get("mode", "linear"), spec.get("mode", "linear"))
    padding, align = spec.get("padding_mode", "zeros"), bool(spec.get("align_corners", 0))
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, align)


def _affine_grid(spec: NodeSpec) -> Operator:
    size, align = spec.ints(1), bool(spec.get("align_corners", 0))

    def affine_grid(theta: Tensor, *rest: Tensor) -> Tensor:
        dims = size(theta, *rest)
        assert dims is not None
        return functional.affine_grid(theta, dims, align)

    return affine_grid


TABLE: Table = {
    "AffineGrid": _affine_grid,
    "GridSample": _grid_sample,
    "Resize": _resize,
}
