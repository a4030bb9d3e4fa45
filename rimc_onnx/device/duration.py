# SPDX-License-Identifier: Apache-2.0
"""Seconds since programming, as people write them."""

from __future__ import annotations

import math
import re

import numpy as np

from rimc_onnx.errors import ConfigError

__all__ = ["DAY_S", "YEAR_S", "format_time", "parse_time", "round_time"]

DAY_S = 86400.0
YEAR_S = 365.25 * DAY_S

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": DAY_S, "y": YEAR_S}
_MAX_S = 1e12


def parse_time(text: str) -> float:
    """Seconds of ``1s``, ``10min``, ``1h``, ``1d``, ``30d``, ``10y`` (of 365.25 d); alone: seconds.

    Raises:
        ConfigError: neither, negative, or beyond 1e12 s.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    try:
        if match is None:
            raise ValueError
        value = float(match[1])
    except ValueError:
        raise ConfigError(
            f"time {text!r} is not a time since programming. Write 1s, 10min, 1h, 30d, 10y, or "
            f"seconds."
        ) from None
    if match[2] and match[2] not in _UNITS:
        raise ConfigError(
            f"time {text!r}: the unit {match[2]!r} is not known. Known: {', '.join(_UNITS)}."
        )
    return round_time(value * _UNITS[match[2] or "s"])


def round_time(time_s: float) -> float:
    """The time as files hold it: the nearest float32.

    Raises:
        ConfigError: not a finite number in 0..1e12.
    """
    if not (math.isfinite(time_s) and 0.0 <= time_s <= _MAX_S):
        raise ConfigError(f"time_s must lie in 0..1e12 seconds since programming, got {time_s}")
    return float(np.float32(time_s)) + 0.0


def format_time(time_s: float) -> str:
    """Short text in the largest unit that gives 1 or more: ``1 d``, ``10 y``, ``1.5 h``."""
    name, unit = "s", 1.0
    for other, seconds in _UNITS.items():
        if time_s >= seconds * (1 - 1e-6):
            name, unit = other, seconds
    return f"{time_s / unit:.4g} {name}"
