# SPDX-License-Identifier: Apache-2.0
"""I-V curves of devices: the sinh family, and polynomials whose terms follow the conductance.

I = G0 sinh(k V) / k, G0 the slope at zero. V is the voltage of a word line, so the curve is a
function of the input in front of the array. With u = V / V_max and K = k V_max it is
sinh(K u) / sinh(K), equal to u at both ends. Inputs that use the share a of the voltage range see
K a. The error against the tangent is about (K a u)^2 / 6.

I = G V + N2(G) V^2 + N3(G) V^3 is no function of the input alone. Of a pair (G_min + g, G_min), the
current is g V + (N2(G_min + g) - N2(G_min)) V^2 + .. V^3: three products, with cells that the
weight tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from rimc_onnx.device.reproducible_math import scalar_log
from rimc_onnx.device.serialization import check_number, check_numbers
from rimc_onnx.errors import ConfigError
from rimc_onnx.ops.schema import IV_TERMS

__all__ = ["CURVE_TERMS", "IvPolynomial", "sinh", "sinh_curve"]

CURVE_TERMS = 14
"""Terms of the series: for K up to ``opset.MAX_IV_SINH`` what is left out is below float32."""


def _terms(k: float) -> tuple[list[float], float]:
    """Terms of the series of sinh(k), and their sum, in float64 and in this order."""
    terms = [k]
    total = 0.0 + k
    for n in range(1, CURVE_TERMS):
        terms.append(terms[-1] * (k * k) / float(2 * n * (2 * n + 1)))
        total = total + terms[-1]
    return terms, total


def sinh(k: float) -> float:
    """Hyperbolic sine of 0 <= k <= ``opset.MAX_IV_SINH``, the same bits on every machine."""
    return _terms(k)[1]


def sinh_curve(k: float) -> list[np.float32]:
    """sinh(K u) / (u sinh(K)) as powers of u^2, lowest first."""
    terms, total = _terms(k)
    return [np.float32(term / total) for term in terms]


_LN_10 = 2.302585092994046
# (1 - cos((2 i + 1) pi / 16)) / 2: where a polynomial of degree 7 meets a curve on 0 .. 1 best
_NODES: Final = (
    *(0.009607359798384785, 0.08426519384872738, 0.2222148834901989, 0.40245483899193585),
    *(0.5975451610080641, 0.7777851165098011, 0.9157348061512727, 0.9903926402016152),
)


@dataclass(frozen=True, kw_only=True)
class IvPolynomial:
    """I = G V + N2 V^2 + N3 V^3, N2 and N3 polynomials in L = log10(G in siemens)."""

    v_max_v: float
    """Voltage at the end of the input range; inputs go from -v_max_v to v_max_v."""
    square: tuple[float, ...]
    """N2 in amperes over square volts: coefficients of the powers of L, lowest first."""
    cube: tuple[float, ...]
    """N3 in amperes over cubic volts, the same."""
    g_range_us: tuple[float, float]
    """Conductances that the curve is known for."""

    def __post_init__(self) -> None:
        where = "I-V polynomial"
        object.__setattr__(self, "v_max_v", check_number(where, "v_max_v", self.v_max_v))
        if not 0.0 < self.v_max_v <= 10.0:
            raise ConfigError(f"{where}: need 0 < v_max_v <= 10, got {self.v_max_v} (volts)")
        for name in ("square", "cube", "g_range_us"):
            object.__setattr__(self, name, check_numbers(where, name, getattr(self, name)))
        low_high = self.g_range_us
        if len(low_high) != 2 or not 0.0 < low_high[0] < low_high[1]:
            raise ConfigError(
                f"{where}: g_range_us must be two rising numbers above 0, got {list(low_high)}"
            )

    def current_a(self, g_us: float, v_v: float) -> float:
        """Current in amperes of a device of ``g_us`` microsiemens at ``v_v`` volts."""
        square, cube = self._terms(g_us)
        return g_us * 1e-6 * v_v + square * (v_v * v_v) + cube * (v_v * v_v * v_v)

    def weight_curves(
        self, *, g_min_us: float, g_max_us: float
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """``iv_square`` and ``iv_cube`` of a node: powers of t = |w| / W_max, lowest first.

        A cell adds w P(t) u^2 and w Q(t) u^3 to its w u, u = V / V_max from -1 to 1:
        P = V (N2(G_min + g) - N2(G_min)) / g with g = G_max t and V = v_max_v, Q the same of N3
        with V^2. Meets both at eight values of t, in between within 1e-3. Inputs that use the share
        a of the voltage range have a P and a^2 Q.
        """
        volts = self.v_max_v
        bottom = self._terms(g_min_us)
        values: tuple[list[float], list[float]] = ([], [])
        for t in _NODES:
            g_us = g_max_us * t
            top = self._terms(g_min_us + g_us)
            for i, factor in enumerate((volts, volts * volts)):
                values[i].append(factor * (top[i] - bottom[i]) / (g_us * 1e-6))
        return _interpolate(values[0]), _interpolate(values[1])

    def _terms(self, g_us: float) -> tuple[float, float]:
        """N2 and N3 at a conductance."""
        log_g = scalar_log(g_us * 1e-6) / _LN_10
        return _horner(self.square, log_g), _horner(self.cube, log_g)


def _horner(coefficients: tuple[float, ...], x: float) -> float:
    value = 0.0
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def _interpolate(values: list[float]) -> tuple[float, ...]:
    """Powers of t of the polynomial with ``values`` at the nodes, by divided differences."""
    difference = list(values)
    for order in range(1, IV_TERMS):
        for i in range(IV_TERMS - 1, order - 1, -1):
            step = _NODES[i] - _NODES[i - order]
            difference[i] = (difference[i] - difference[i - 1]) / step
    powers = [0.0] * IV_TERMS
    for i in range(IV_TERMS - 1, -1, -1):
        # powers * (t - node) + difference
        shifted = [0.0, *powers[:-1]]
        powers = [s - _NODES[i] * p for s, p in zip(shifted, powers, strict=True)]
        powers[0] += difference[i]
    return tuple(powers)
