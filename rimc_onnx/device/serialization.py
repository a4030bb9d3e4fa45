# SPDX-License-Identifier: Apache-2.0
"""Device parameters as plain values (JSON, TOML) and back, strict about names, units and types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rimc_onnx.errors import ConfigError, suggest

__all__ = ["check_keys", "check_number", "check_numbers", "from_plain", "to_plain"]

Record = TypeVar("Record")

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


def from_plain(
    where: str, record: type[Record], values: Any, *, required: Iterable[str] | None = None
) -> Record:
    """The dataclass of a table of plain values, the inverse of :func:`to_plain`.

    Fields of dataclasses and enums are read by their annotations, tuples of them from lists. Of
    several dataclasses the table names one by its ``kind``; where one of them has a ``constant``, a
    number is that one. Numbers and names are checked by the dataclass itself. ``required`` are the
    fields without a default where it is not given.

    Raises:
        ConfigError: not a table, a kind or field that is not known or missing, or a value out of
            range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a table, got {values!r}")
    known = fields(record)  # type: ignore[arg-type]
    if required is None:
        has_default = (f.default is not MISSING or f.default_factory is not MISSING for f in known)
        required = [f.name for f, given in zip(known, has_default, strict=True) if not given]
    check_keys(where, values, [f.name for f in known], required)
    hints = get_type_hints(record)
    return record(**{k: _read(f"{where}: {k}", hints[k], value) for k, value in values.items()})


def _read(where: str, hint: Any, value: Any) -> Any:
    """A field's value of the type that its annotation names."""
    if get_origin(hint) is tuple:
        return _read_tuple(where, get_args(hint), value)
    kinds = get_args(hint) or (hint,)
    if value is None and NoneType in kinds:
        return None
    records = [kind for kind in kinds if is_dataclass(kind)]
    if records:
        return _read_record(where, records, value)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum) and not isinstance(value, kind):
            known = [member.value for member in kind]
            if value not in known:
                what = f"{where} '{value}' is not known"
                raise ConfigError(f"{what}. {suggest(str(value), known)}")
            return kind(value)
    if str in kinds and not isinstance(value, str):
        raise ConfigError(f"{where} must be a name, got {value!r}")
    return value


def _read_tuple(where: str, kinds: tuple[Any, ...], value: Any) -> Any:
    """A tuple of dataclasses; one of numbers is checked by the dataclass that has it."""
    if not any(is_dataclass(kind) for kind in get_args(kinds[0])):
        return value
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    return tuple(_read(f"{where}[{i}]", kinds[0], v) for i, v in enumerate(value))


def _read_record(where: str, records: list[Any], value: Any) -> Any:
    """One dataclass, or the one of several that the table names."""
    if len(records) == 1 and not hasattr(records[0], "kind"):
        return from_plain(where, records[0], value)
    constants = [record for record in records if hasattr(record, "constant")]
    if constants and isinstance(value, int | float) and not isinstance(value, bool):
        return constants[0].constant(check_number("device", where, value))
    if not isinstance(value, Mapping):
        number = ", or a number" if constants else ""
        raise ConfigError(f"{where} must be a table with a kind{number}; got {value!r}")
    by_kind = {record.kind: record for record in records}
    kind = value.get("kind")
    if kind not in by_kind:
        raise ConfigError(f"{where}: kind {kind!r} is not known. {suggest(str(kind), by_kind)}")
    rest = {name: v for name, v in value.items() if name != "kind"}
    return from_plain(f"{where} ({kind})", by_kind[kind], rest)


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
