# SPDX-License-Identifier: Apache-2.0
"""Normalisations, dropout and what quantised graphs need.

A batch normalisation always uses the file's statistics: ONNX's inference form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.training.node_spec import NodeSpec, Operator, Table

__all__ = ["TABLE"]


def _channel(x: Tensor, vector: Tensor) -> Tensor:
    """A vector [C] as it goes with x [N, C, *S]."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _batch_norm(spec: NodeSpec) -> Operator:
    epsilon = spec.get("epsilon", 1e-5)
    if spec.get("training_mode", 0):
        raise spec.refuse("it is in training mode. Export the model for inference.")

    def batch_norm(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if x.ndim == 1:
            return functional.batch_norm(x[:, None], mean, var, scale, shift, eps=epsilon)[:, 0]
        return functional.batch_norm(x, mean, var, scale, shift, eps=epsilon)

    return batch_norm


def _instance_norm(spec: NodeSpec) -> Operator:
    epsilon = spec.get("epsilon", 1e-5)

    def instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        axes = list(range(2, x.ndim))
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + epsilon) * _channel(x, scale) + _channel(x, shift)

    return instance_norm


def _layer_norm(spec: NodeSpec) -> Operator:
    axis, epsilon = spec.get("axis", -1), spec.get("epsilon", 1e-5)

    def layer_norm(
        x: Tensor, scale: Tensor, shift: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        axes = list(range(axis % x.ndim, x.ndim))
        if spec.num_outputs == 1 and scale.shape == x.shape[axes[0] :]:
            return functional.layer_norm(x, list(scale.shape), scale, shift, epsilon)
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        inverse = torch.rsqrt(var + epsilon)
        y = (x - mean) * inverse * scale
        y = y if shift is None else y + shift
        return y if spec.num_outputs == 1 else (y, mean, inverse)

    return layer_norm


def _rms_norm(spec: NodeSpec) -> Operator:
    axis, epsilon = spec.get("axis", -1), spec.get("epsilon", 1e-5)

    def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.ndim, x.ndim))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    if spec.num_outputs > 1:
        raise spec.refuse("its further outputs are not supported.")
    return rms_norm


def _group_norm(spec: NodeSpec) -> Operator:
    groups, epsilon = spec.get("num_groups"), spec.get("epsilon", 1e-5)

    def group_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], groups, -1)
        var, mean = torch.var_mean(y, -1, correction=0, keepdim=True)
        y = (y - mean) * torch.rsqrt(var + epsilon)
        if scale.numel() == groups != x.shape[1]:  # opset 18: a value a group
            return (y * scale[:, None] + shift[:, None]).reshape(x.shape)
        return y.reshape(x.shape) * _channel(x, scale) + _channel(x, shift)

    return group_norm


def _lrn(spec: NodeSpec) -> Operator:
    size, alpha = spec.get("size"), spec.get("alpha", 1e-4)
    beta, bias = spec.get("beta", 0.75), spec.get("bias", 1.0)

    def lrn(x: Tensor) -> Tensor:
        square = (x * x).reshape(x.shape[0], 1, x.shape[1], -1)
        begin = (size - 1) // 2
        square = functional.pad(square, [0, 0, begin, size - 1 - begin])
        total = functional.avg_pool2d(square, (size, 1), stride=1) * size
        return x / (bias + alpha / size * total.reshape(x.shape)) ** beta

    return lrn


def _lp_norm(spec: NodeSpec) -> Operator:
    axis, p = spec.get("axis", -1), spec.get("p", 2)

    def lp_norm(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return lp_norm


def _mean_variance(spec: NodeSpec) -> Operator:
    axes = spec.get("axes", [0, 2, 3])

    def normalise(x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (var.sqrt() + 1e-9)

    return normalise


def _dropout(spec: NodeSpec) -> Operator:
    def dropout(
        x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if training is not None and bool(training):
            raise spec.refuse("it is in training mode. Export the model for inference.")
        return x if spec.num_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))

    return dropout


def _by_axis(x: Tensor, value: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point as it goes with x: one, one a channel, or one a block."""
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


def _dequantize(spec: NodeSpec) -> Operator:
    axis, block = spec.get("axis", 1), spec.get("block_size", 0)

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = x.to(scale.dtype)
        if zero is not None:
            y = y - _by_axis(x, zero.to(scale.dtype), axis, block)
        return y * _by_axis(x, scale, axis, block)

    return dequantize


def _quantize(spec: NodeSpec) -> Operator:
    axis, block, wanted = spec.get("axis", 1), spec.get("block_size", 0), spec.get("output_dtype")
    by_number = {2: torch.uint8, 3: torch.int8}
    if wanted and wanted not in by_number:
        raise spec.refuse(f"codes of data type {wanted} are not supported, int8 and uint8 are.")

    def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        dtype = by_number.get(wanted, torch.uint8) if zero is None else zero.dtype
        limits = torch.iinfo(dtype)
        y = torch.round(x / _by_axis(x, scale, axis, block))
        if zero is not None:
            y = y + _by_axis(x, zero.to(y.dtype), axis, block)
        return y.clamp(limits.min, limits.max).to(dtype)

    return quantize


def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / safe).clamp(0, 255)
    codes = (torch.round(x / safe) + zero).clamp(0, 255)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def _attention_scale(width: int, scale: float | None) -> float:
    return 1 / math.sqrt(width) if scale is None else scale


def _heads(x: Tensor, count: int) -> Tensor:
    """[N, L, heads * d] as [N, heads, L, d]; 4 axes are left alone."""
    if x.ndim == 4:
        return x
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _attention(spec: NodeSpec) -> Operator:
    q_heads, kv_heads = spec.get("q_num_heads", 0), spec.get("kv_num_heads", 0)
    scale, causal = spec.get("scale"), bool(spec.get("is_causal", 0))
    cap = spec.get("softcap", 0.0)
    if spec.num_inputs > 4 or spec.num_outputs > 1:
        raise spec.refuse("keys and values of the past are not supported.")
    windows = {n: spec.get(n) for n in spec.attributes if "window" in n}
    if spec.get("qk_matmul_output_mode", 0) or any(w != -1 for w in windows.values()):
        raise spec.refuse("windows and outputs of its products are not supported.")

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        is_flat = q.ndim == 3
        q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
        share = q.shape[1] // k.shape[1]
        if share > 1:
            k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = q @ k.transpose(-1, -2) * _attention_scale(q.shape[-1], scale)
        if cap:
            scores = cap * torch.tanh(scores / cap)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        if mask is not None:
            missing = scores.shape[-1] - mask.shape[-1]
            fill = False if mask.dtype == torch.bool else -math.inf
            mask = functional.pad(mask, [0, missing], value=fill) if missing else mask
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -math.inf)
            else:
                scores = scores + mask
        # A row without any key gives zeros, and no slope that is NaN.
        none = (scores == -math.inf).all(-1, keepdim=True)
        shares = torch.softmax(scores.masked_fill(none, 0.0), -1).masked_fill(none, 0.0)
        y = shares @ v
        return y.transpose(1, 2).flatten(2) if is_flat else y

    return attention


def _rotary(spec: NodeSpec) -> Operator:
    heads, interleaved = spec.get("num_heads", 0), bool(spec.get("interleaved", 0))
    width = spec.get("rotary_embedding_dim", 0)

    def rotary(x: Tensor, cos: Tensor, sin: Tensor, position: Tensor | None = None) -> Tensor:
        is_flat = x.ndim == 3
        y = x.reshape(*x.shape[:2], heads, -1) if is_flat else x.transpose(1, 2)
        turned = width or y.shape[-1]
        rest = y[..., turned:]
        if position is not None:
            cos, sin = cos[position], sin[position]
        cos, sin = (t[..., : turned // 2].unsqueeze(2) for t in (cos, sin))
        if interleaved:
            a, b = y[..., 0:turned:2], y[..., 1:turned:2]
        else:
            a, b = y[..., : turned // 2], y[..., turned // 2 : turned]
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        if interleaved:
            y = torch.stack((real, imaginary), -1).flatten(-2)
        else:
            y = torch.cat((real, imaginary), -1)
        y = torch.cat((y, rest), -1)
        return y.reshape(x.shape) if is_flat else y.transpose(1, 2)

    return rotary


TABLE: Table = {
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "DequantizeLinear": _dequantize,
    "Dropout": _dropout,
    "DynamicQuantizeLinear": lambda _: _dynamic_quantize,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "QuantizeLinear": _quantize,
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotary,
    "SimplifiedLayerNormalization": _rms_norm,
}
