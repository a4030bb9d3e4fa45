# SPDX-License-Identifier: Apache-2.0
"""Operators that work value by value, broadcasting as numpy does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.training.node_spec import NodeSpec, Operator, Table

__all__ = ["TABLE"]


def _plain(function: Callable[..., Tensor]) -> Callable[[NodeSpec], Operator]:
    """An operator without attributes."""
    return lambda _: function


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[NodeSpec], Operator]:
    """An operator of one or more operands."""
    return lambda _: lambda *values: functools.reduce(function, values)


def _round(x: Tensor) -> Tensor:
    return torch.round(x)  # ties to even, as ONNX


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y.to(x.dtype) if x.is_floating_point() else y).to(x.dtype)


def _mod(spec: NodeSpec) -> Operator:
    return torch.fmod if spec.get("fmod", 0) else torch.remainder


def _mean(_: NodeSpec) -> Operator:
    return lambda *values: functools.reduce(torch.add, values) / len(values)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


def _clip(spec: NodeSpec) -> Operator:
    low, high = spec.get("min"), spec.get("max")

    def clip(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
        # min(max(x, low), high): where low > high the result is high, as in ONNX.
        least, most = low if least is None else least, high if most is None else most
        if least is not None:
            x = torch.maximum(x, torch.as_tensor(least, dtype=x.dtype, device=x.device))
        if most is not None:
            x = torch.minimum(x, torch.as_tensor(most, dtype=x.dtype, device=x.device))
        return x

    return clip


def _gelu(spec: NodeSpec) -> Operator:
    approximate = spec.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def _leaky(spec: NodeSpec) -> Operator:
    alpha = spec.get("alpha", 0.01)
    return lambda x: torch.where(x < 0, x * alpha, x)


def _elu(spec: NodeSpec) -> Operator:
    alpha = spec.get("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _celu(spec: NodeSpec) -> Operator:
    alpha = spec.get("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


def _selu(spec: NodeSpec) -> Operator:
    alpha = spec.get("alpha", 1.67326319217681884765625)
    gamma = spec.get("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


def _hard_sigmoid(spec: NodeSpec) -> Operator:
    alpha, beta = spec.get("alpha", 0.2), spec.get("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


def _swish(spec: NodeSpec) -> Operator:
    alpha = spec.get("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _thresholded(spec: NodeSpec) -> Operator:
    alpha = spec.get("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _shrink(spec: NodeSpec) -> Operator:
    bias, limit = spec.get("bias", 0.0), spec.get("lambd", 0.5)

    def shrink(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))

    return shrink


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _is_inf(spec: NodeSpec) -> Operator:
    negative, positive = spec.get("detect_negative", 1), spec.get("detect_positive", 1)

    def is_inf(x: Tensor) -> Tensor:
        found = torch.zeros_like(x, dtype=torch.bool)
        if positive:
            found = found | (x == math.inf)
        if negative:
            found = found | (x == -math.inf)
        return found

    return is_inf


def _bit_shift(spec: NodeSpec) -> Operator:
    left = spec.get("direction") == "LEFT"
    return torch.bitwise_left_shift if left else torch.bitwise_right_shift


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": _hard_swish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": _round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": _softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": _prelu,
    "Pow": _power,
    "Sub": torch.sub,
    "Where": _where,
    "Xor": torch.logical_xor,
}
TABLE: Table = {
    **{name: _plain(function) for name, function in (_UNARY | _BINARY).items()},
    "BitShift": _bit_shift,
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky,
    "Max": _folded(torch.maximum),
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mod": _mod,
    "Selu": _selu,
    "Shrink": _shrink,
    "Sum": _folded(torch.add),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded,
}
