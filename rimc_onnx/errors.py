# SPDX-License-Identifier: Apache-2.0
"""Everything that can be wrong with what a user gives: one line each, with an exit code.

Fields of configurations and arguments of functions stand in backticks, with a value that they
should have after "=": ``rimc_onnx.cli`` prints the options that set them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "ModelError",
    "NodeMappingError",
    "OutputError",
    "RimcError",
    "UsageError",
    "is_of_memory",
    "one_line",
    "suggest",
]

_OF_MEMORY = (
    "std::bad_alloc",
    "annot allocate memory",
    "failed to map segment",
    "Failed to allocate memory",
)
"""Of C++, of the system, of its loader, and of ONNX Runtime's arena."""
_MOST_WORD = 300
_MOST_TEXT = 4000
"""Characters that :func:`one_line` leaves."""


def is_of_memory(error: BaseException | None) -> bool:
    """True where memory ran out below, which libraries tell of in errors of their own."""
    seen: set[int] = set()  # an error that was raised again is its own context's cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or any(mark in str(error) for mark in _OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(text: object) -> str:
    """``text`` (a message, a name, another's error) as one line that a terminal can show.

    Space of any kind becomes one blank, what can't be printed its escape; words and lines that are
    too long lose their middle.
    """
    words = (
        _short("".join(c if c.isprintable() else ascii(c)[1:-1] for c in word), _MOST_WORD)
        for word in str(text)[: 64 * _MOST_TEXT].split()
    )
    return _short(" ".join(words), _MOST_TEXT)


def _short(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]}...({len(text)} characters)...{text[-most // 4 :]}"


class RimcError(Exception):
    """Root of all errors a user can cause. ``str()`` is one line: what, where, got, do."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        """Names of files, nodes and arrays in ``message`` may hold anything."""
        super().__init__(one_line(message))


class ModelError(RimcError):
    """The model file can't be read, checked or converted."""


class NodeMappingError(ModelError):
    """A node can't go to RRAM, or none can."""


class DataError(RimcError):
    """Samples, labels or a metric don't fit the model."""


class CalibrationError(RimcError):
    """The adapters can't be fitted."""


class OutputError(RimcError):
    """The output exists and may not be replaced, or it can't be written."""


class UsageError(RimcError):
    """The call itself is wrong: an unknown option value, or options that exclude each other."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is out of its range."""


_MOST_NAMES = 12


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the known names nearest to ``name``, or the first of all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return "Known: " + ", ".join(names[:_MOST_NAMES]) + more + "."
