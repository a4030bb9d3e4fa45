# SPDX-License-Identifier: Apache-2.0
"""What the rooms of the native library may include, read off the sources (docs/native.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "runtime" / "src"

ORDER = [
    "base",
    "kernels",
    "ort",
    "crossbar",
    "adapter",
    "conv",
    "matmul",
    "ops",
    "device",
    "program",
    "provider/fusion",
    "provider",
]
"""A room includes itself and rooms before it."""
APART = {("matmul", "conv")} | {
    (room, other) for room in ("device", "program") for other in ("crossbar", "conv", "matmul")
}
"""(room, other): rooms before it that a room does not include all the same."""
C_HEADERS = {"arm_neon.h", "immintrin.h", "math.h", "stddef.h", "stdint.h", "string.h"}
"""A standard inline function compiled for a newer instruction set could be the copy that the linker
keeps for everyone."""

FILES = sorted(p for p in SOURCES.rglob("*") if p.suffix in (".h", ".cc", ".inc"))


def room_of(path: str) -> str:
    """The room that a path from src/ on lies in."""
    return max((room for room in ORDER if path.startswith(f"{room}/")), key=len)


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include ["<]([^">]+)[">]', path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCES)))
def test_file_includes_what_its_room_may(path: Path) -> None:
    # A kernel that needs ONNX Runtime can't be tested without it; a plan that needs an operator
    # can't be read without it.
    name = str(path.relative_to(SOURCES))
    room = room_of(name)
    for included in includes(path):
        if included.startswith("rimc/"):
            assert room in ("ort", "ops", "program", "provider", "provider/fusion"), included
        elif (SOURCES / included).is_file():
            other = room_of(included)
            assert ORDER.index(other) <= ORDER.index(room), included
            assert (room, other) not in APART, included
        else:
            assert included.startswith("sys/") or "/" not in included, f"{included} is no file"
        if room == "kernels" and not path.name.startswith("dispatch."):
            assert included in C_HEADERS or included.startswith("kernels/"), included


def test_rooms_are_those_of_the_table() -> None:
    # A folder without a row would be free to include anything.
    folders = {str(p.parent.relative_to(SOURCES)) for p in FILES}
    assert folders == set(ORDER)
