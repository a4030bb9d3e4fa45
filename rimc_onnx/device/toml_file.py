# SPDX-License-Identifier: Apache-2.0
"""TOML files of a user's own, with errors of one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rimc_onnx.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["parse_toml", "read_toml"]

_MOST_BYTES = 1 << 20
"""Of a file; the curves of all presets together have less."""


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ConfigError: no such file, too large a one, or not TOML; with the name of the file.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no regular file. Give a TOML file.")
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: has more than {_MOST_BYTES} bytes. Give a TOML file.")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: can't be read ({reason}). Give a TOML file.") from error
    return parse_toml(text, str(path))


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """What TOML says; ``name`` is that of where it stands.

    Raises:
        ConfigError: it is no TOML; with the name.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML ({error}).") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: its arrays or tables are nested too deeply.") from error
