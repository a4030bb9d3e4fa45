# SPDX-License-Identifier: Apache-2.0
"""Values with tables as the native library reads them: a device that is compiled, or its law.

========= =================================================================
bytes     content
========= =================================================================
0 .. 7    ``rimc-dev``
8 .. 11   version of the format
12 .. 15  H, the length of the header
16 ..     header: JSON, UTF-8, spaces at its end; ``values``, in which
          ``{"table": i}`` stands for a table, and ``tables``, their lengths
16 + H .. tables one after the other, float64
last 32   SHA-256 of all bytes before
========= =================================================================

All numbers are little-endian. The library refuses another version and bytes that were changed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["VERSION", "table_file"]

VERSION = 1
"""Changes with the format, and with the meaning of any value."""

_MAGIC = b"rimc-dev"
_ALIGNMENT = 8


def table_file(values: Mapping[str, Any]) -> bytes:
    """The file of plain values; arrays among them, one-dimensional and float64, are its tables."""
    tables: list[np.ndarray[Any, Any]] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.ndim != 1 or value.dtype != np.float64:
                raise ValueError(f"a table must be float64 [n], got {value.dtype} {value.shape}")
            tables.append(value)
            return {"table": len(tables) - 1}
        if isinstance(value, Mapping):
            return {name: plain(v) for name, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    header = {"values": plain(values), "tables": [table.size for table in tables]}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    parts = [_MAGIC, struct.pack("<II", VERSION, len(text)), text]
    content = b"".join([*parts, *(table.astype("<f8").tobytes() for table in tables)])
    return content + hashlib.sha256(content).digest()
