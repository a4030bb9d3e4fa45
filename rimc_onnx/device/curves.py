# SPDX-License-Identifier: Apache-2.0
"""Quantities that depend on a device's conductance: the laws that publications fit.

A value has the unit that the name of the curve's field ends in (``programming_sigma_us``:
microsiemens; ``nu_mean``: none).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.device.reproducible_math import exp, log
from rimc_onnx.device.serialization import check_number, check_numbers
from rimc_onnx.errors import ConfigError

__all__ = ["Curve", "Logarithmic", "Points", "Polynomial", "Power", "Saturating"]


def _positive(kind: str, name: str, value: float) -> float:
    value = check_number(f"{kind} curve", name, value)
    if not value > 0:
        raise ConfigError(f"{kind} curve: {name} must be above 0, got {value}")
    return value


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """Sum over i of coefficients[i] * (G / g_ref_us)^i."""

    kind: ClassVar[str] = "polynomial"
    coefficients: tuple[float, ...]
    """Lowest power first, in the unit of the value."""
    g_ref_us: float = 1.0
    """Conductance that the fit was normalised by, microsiemens: part of the fit."""

    def __post_init__(self) -> None:
        values = check_numbers("polynomial curve", "coefficients", self.coefficients)
        if not values:
            raise ConfigError("polynomial curve: coefficients must have 1 value or more")
        object.__setattr__(self, "coefficients", values)
        object.__setattr__(self, "g_ref_us", _positive(self.kind, "g_ref_us", self.g_ref_us))

    @classmethod
    def constant(cls, value: float) -> Polynomial:
        """The same value at every conductance."""
        return cls(coefficients=(value,))

    def at(self, g_us: Float64Array) -> Float64Array:
        """Values at conductances [n] in microsiemens, [n]."""
        x = g_us / self.g_ref_us
        value = np.zeros_like(x)
        for coefficient in self.coefficients[::-1]:
            value *= x
            value += coefficient
        return value


@dataclass(frozen=True, kw_only=True)
class Saturating:
    """amplitude * (1 - exp(-G / g_scale_us)), 0 below zero conductance."""

    kind: ClassVar[str] = "saturating"
    amplitude: float
    """In the unit of the value."""
    g_scale_us: float
    """Microsiemens."""

    def __post_init__(self) -> None:
        amplitude = check_number("saturating curve", "amplitude", self.amplitude)
        object.__setattr__(self, "amplitude", amplitude)
        object.__setattr__(self, "g_scale_us", _positive(self.kind, "g_scale_us", self.g_scale_us))

    def at(self, g_us: Float64Array) -> Float64Array:
        """Values at conductances [n] in microsiemens, [n]."""
        x = np.minimum(np.maximum(g_us, 0.0) / self.g_scale_us, 700.0)
        return self.amplitude - self.amplitude * exp(-x)


@dataclass(frozen=True, kw_only=True)
class Logarithmic:
    """offset + slope * ln(G / g_ref_us), held between low and high."""

    kind: ClassVar[str] = "logarithmic"
    offset: float
    slope: float
    low: float
    high: float
    """All four in the unit of the value."""
    g_ref_us: float = 1.0
    """Microsiemens."""

    def __post_init__(self) -> None:
        for name in ("offset", "slope", "low", "high"):
            value = check_number("logarithmic curve", name, getattr(self, name))
            object.__setattr__(self, name, value)
        if not self.low <= self.high:
            raise ConfigError(
                f"logarithmic curve: need low <= high, got {self.low} and {self.high}"
            )
        object.__setattr__(self, "g_ref_us", _positive(self.kind, "g_ref_us", self.g_ref_us))

    def at(self, g_us: Float64Array) -> Float64Array:
        """Values at conductances [n] in microsiemens, [n]; at and below 0 that of 1e-12 g_ref."""
        x = np.maximum(g_us / self.g_ref_us, 1e-12)
        value = self.offset + self.slope * log(x)
        return np.minimum(np.maximum(value, self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Power:
    """amplitude * (G / g_ref_us)^exponent, held between low and high."""

    kind: ClassVar[str] = "power"
    amplitude: float
    """In the unit of the value."""
    exponent: float
    """-8 to 8."""
    low: float
    high: float
    """Both in the unit of the value."""
    g_ref_us: float = 1.0
    """Microsiemens."""

    def __post_init__(self) -> None:
        for name in ("amplitude", "exponent", "low", "high"):
            value = check_number("power curve", name, getattr(self, name))
            object.__setattr__(self, name, value)
        if not -8.0 <= self.exponent <= 8.0:
            raise ConfigError(f"power curve: need -8 <= exponent <= 8, got {self.exponent}")
        if not self.low <= self.high:
            raise ConfigError(f"power curve: need low <= high, got {self.low} and {self.high}")
        object.__setattr__(self, "g_ref_us", _positive(self.kind, "g_ref_us", self.g_ref_us))

    def at(self, g_us: Float64Array) -> Float64Array:
        """Values at conductances [n] in microsiemens, [n]; at and below 0 that of 1e-12 g_ref."""
        x = np.minimum(np.maximum(g_us / self.g_ref_us, 1e-12), 1e12)
        value = self.amplitude * exp(self.exponent * log(x))
        return np.minimum(np.maximum(value, self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Straight lines between measured points; the end points' values beyond them."""

    kind: ClassVar[str] = "points"
    g_us: tuple[float, ...]
    """Rising conductances, microsiemens."""
    values: tuple[float, ...]
    """A value for each."""

    def __post_init__(self) -> None:
        for name in ("g_us", "values"):
            object.__setattr__(self, name, check_numbers("points curve", name, getattr(self, name)))
        if len(self.g_us) != len(self.values) or not self.g_us:
            raise ConfigError(
                f"points curve: need as many g_us as values, got {len(self.g_us)} and "
                f"{len(self.values)}"
            )
        if any(a >= b for a, b in pairwise(self.g_us)):
            raise ConfigError(f"points curve: g_us must rise, got {list(self.g_us)}")

    def at(self, g_us: Float64Array) -> Float64Array:
        """Values at conductances [n] in microsiemens, [n]."""
        value = np.zeros_like(g_us) + self.values[0]
        for i, (a, b) in enumerate(pairwise(self.g_us)):
            share = np.minimum(np.maximum((g_us - a) / (b - a), 0.0), 1.0)
            value += share * (self.values[i + 1] - self.values[i])
        return value


Curve = Polynomial | Saturating | Logarithmic | Power | Points
