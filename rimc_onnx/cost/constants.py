# SPDX-License-Identifier: Apache-2.0
"""The constants of the cost model: ``constants.toml`` beside this file, and files of one's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rimc_onnx.device import read_toml
from rimc_onnx.errors import ConfigError, suggest

__all__ = ["Constant", "Constants", "Values", "default_constants", "load_constants"]

Values = Mapping[str, float]
"""One number for every constant."""

_STRUCTURE = "structure."
_FIELDS = {"value", "range", "node_nm", "year", "source"}


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One number and where it comes from."""

    name: str
    """``adc.energy_pj_per_bit``: part, and quantity with its unit."""
    value: float
    low: float
    """Lowest published figure."""
    high: float
    """Highest published figure."""
    node_nm: float | None
    """Technology of ``value``; ``None`` where it has none, or nobody says."""
    year: int | None
    source: str


class Constants:
    """Every constant of the model.

    A higher constant never makes anything cheaper or faster, so all low ends together give the
    lowest cost. What ``structure`` holds (sizes of arrays, bits) has no range.
    """

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        """``constants`` by name."""
        self._constants = dict(constants)

    def all(self) -> list[Constant]:
        """In the order of the file."""
        return list(self._constants.values())

    def values(self) -> Values:
        """The values."""
        return {name: c.value for name, c in self._constants.items()}

    def lowest(self) -> Values:
        """The low ends of all ranges."""
        return {name: c.low for name, c in self._constants.items()}

    def highest(self) -> Values:
        """The high ends of all ranges."""
        return {name: c.high for name, c in self._constants.items()}

    def replaced(self, tables: Mapping[str, Any], origin: str) -> Constants:
        """With the constants of a file of one's own.

        Args:
            tables: part -> quantity -> a number, or a table of ``value`` and, where they are known,
                ``range``, ``node_nm``, ``year`` and ``source``.
            origin: the file, for errors and as the source of plain numbers.

        Raises:
            ConfigError: an unknown constant, or one that is no number above zero (zero may be an
                energy).
        """
        found = dict(self._constants)
        for part, entries in tables.items():
            if not isinstance(entries, Mapping):
                raise ConfigError(
                    f"{origin}: {part} = {entries!r} is no table. Write [{part}] and constants "
                    "below it."
                )
            for quantity, given in entries.items():
                name = f"{part}.{quantity}"
                if name not in self._constants:
                    known = suggest(name, self._constants)
                    raise ConfigError(f"{origin}: unknown constant {name!r}. {known}")
                found[name] = _constant(name, given, origin)
        return Constants(found)


def load_constants(path: Path | None) -> Constants:
    """The package's constants, with those of a TOML file in their place; ``None`` is no file.

    Raises:
        ConfigError: the file can't be read, or has a constant that is wrong.
    """
    constants = default_constants()
    return constants if path is None else constants.replaced(read_toml(path), str(path))


@functools.cache
def default_constants() -> Constants:
    """Those that come with the package."""
    with resources.as_file(resources.files(__package__) / "constants.toml") as path:
        tables = read_toml(path)
    return Constants(
        {
            f"{part}.{quantity}": _constant(f"{part}.{quantity}", given, "constants.toml")
            for part, entries in tables.items()
            for quantity, given in entries.items()
        }
    )


def _constant(name: str, given: Any, origin: str) -> Constant:
    fields = given if isinstance(given, Mapping) else {"value": given}
    for field in fields:
        if field not in _FIELDS:
            raise ConfigError(
                f"{origin}: {name}: unknown field {field!r}. {suggest(field, _FIELDS)}"
            )
    if "value" not in fields:
        raise ConfigError(f"{origin}: {name} has no value. Give a number, or `value` in its table.")
    value = _number(name, fields["value"], origin)
    span = fields.get("range", [value, value])
    if not isinstance(span, list) or len(span) != 2:
        raise ConfigError(f"{origin}: {name}: range must be [lowest, highest], got {span!r}.")
    low, high = (_number(name, end, origin) for end in span)
    if not low <= value <= high:
        raise ConfigError(f"{origin}: {name}: {value:g} is not in its range {low:g} .. {high:g}.")
    if name.startswith(_STRUCTURE):
        if value < 1 or value != int(value):
            raise ConfigError(
                f"{origin}: {name} must be a whole number of 1 or more, got {value:g}."
            )
        low = high = value
    return Constant(
        name=name,
        value=value,
        low=low,
        high=high,
        node_nm=fields.get("node_nm") or None,
        year=fields.get("year"),
        source=str(fields.get("source", f"given in {origin}")),
    )


def _number(name: str, given: Any, origin: str) -> float:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not 0 <= given < float("inf"):
        raise ConfigError(f"{origin}: {name} must be a finite number, not negative; got {given!r}.")
    return float(given)
