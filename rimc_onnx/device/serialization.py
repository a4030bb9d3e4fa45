# SPDX-License-Identifier: Apache-2.0
"""Device parameters as plain values (JSON, TOML) and back, strict about names, units and types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from rimc_onnx.errors import ConfigError, suggest

__all__ = ["check_keys", "check_number", "check_numbers", "required_fields", "to_plain"]

_UNITS = {
    "us": "microsiemens",
    "s": "seconds",
    "frac": "a fraction, 20 % is 0.2",
    "bits": "bits",
    "ln": "per unit of ln t",
    "sigma": "standard deviations",
    "v": "volts",
}
_FOREIGN = {
    *("ns", "ms", "percent", "pct", "h", "d", "min", "y", "na", "ua", "mv", "siemens", "seconds"),
}
"""Endings that are taken for units too, wrong ones."""


def check_number(where: str, name: str, value: Any) -> float:
    """``value`` as a finite float; ``where`` and ``name`` are for the error.

    Raises:
        ConfigError: not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {name} must be a finite number, got {value!r}")
    return float(value) + 0.0  # one spelling of zero


def check_numbers(where: str, name: str, values: Any) -> tuple[float, ...]:
    """``values``, a list or tuple, as finite floats.

    Raises:
        ConfigError: not a list, or not of finite numbers.
    """
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{where}: {name} must be a list of numbers, got {values!r}")
    return tuple(check_number(where, f"{name}[{i}]", v) for i, v in enumerate(values))


def _stem(name: str) -> tuple[str, str | None]:
    stem, _, last = name.rpartition("_")
    known = last in _UNITS or last in _FOREIGN
    return (stem, last) if stem and known else (name, None)


def check_keys(
    where: str, values: Mapping[str, Any], known: Iterable[str], required: Iterable[str]
) -> None:
    """Refuse names that are not known, saying which unit was meant, and names that are missing.

    Raises:
        ConfigError: the first fault.
    """
    known = list(known)
    for name in sorted(values.keys() - set(known)):
        stem, _ = _stem(name)
        for other in known:
            same, unit = _stem(other)
            if unit is not None and same == stem:
                raise ConfigError(
                    f"{where} has no field '{name}': its unit is _{unit} ({_UNITS[unit]}), "
                    f"write '{other}'"
                )
        raise ConfigError(f"{where} has no field '{name}'. {suggest(name, known)}")
    if missing := sorted(set(required) - values.keys()):
        raise ConfigError(f"{where} lacks {', '.join(missing)}")


def required_fields(record: type[Any]) -> list[str]:
    """Names of the fields without a default."""
    return [f.name for f in fields(record) if f.default is MISSING and f.default_factory is MISSING]


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts (without None, with their ``kind``, if any), enums by value."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        values = {f.name: getattr(value, f.name) for f in fields(value)}
        found = {name: to_plain(v) for name, v in values.items() if v is not None}
        kind = getattr(value, "kind", None)
        return found if kind is None else {"kind": kind, **found}
    return value
