# SPDX-License-Identifier: Apache-2.0
"""Checks a wheel: one library, no file too many, nothing linked that the platform may lack.

Usage: ``python .github/check_wheel.py WHEEL...``; exits with 1 and a line for each fault.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

MAX_MIB = 20
LIBRARIES = ("librimc_ops.so", "librimc_ops.dylib", "rimc_ops.dll")
LINKED = re.compile(rb"(lib)?(python3[\d.]*|onnxruntime)[\w.-]*\.(so|dylib|dll)|_?Py(_|Init_)\w+")
"""Names that only a library linked against Python or ONNX Runtime holds."""

GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)")
NEEDED = re.compile(rb"\0(lib[\w.+-]+\.so[\d.]*|ld-[\w-]+\.so[\d.]*)(?=\0)")
EVERYWHERE = {
    "manylinux": re.compile(
        rb"lib(c\.so\.6|m\.so\.6|dl\.so\.2|pthread\.so\.0|rt\.so\.1|stdc\+\+\.so\.6|gcc_s\.so\.1)|ld-.*"
    ),
    "musllinux": re.compile(rb"libc\.(so|musl-\w+\.so\.1)|ld-musl-.*"),
}
"""Libraries that every system of a platform has."""


def linux_faults(platform: str, library: bytes, inside: set[str]) -> list[str]:
    """What a library needs that is not in the wheel, and that systems of its tag may not have."""
    found = []
    libraries = {n for n in NEEDED.findall(library) if n.decode() not in inside}
    known = EVERYWHERE[platform.partition("_")[0]]
    if foreign := sorted(n.decode() for n in libraries if not known.fullmatch(n)):
        found.append(f"needs {', '.join(foreign)}")
    if tag := re.match(r"manylinux_(\d+)_(\d+)_", platform):
        oldest = (int(tag[1]), int(tag[2]))
        newest = max(((int(a), int(b)) for a, b in GLIBC.findall(library)), default=(0, 0))
        if newest > oldest:
            found.append(f"needs glibc {newest[0]}.{newest[1]}, its tag says {tag[1]}.{tag[2]}")
    return found


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, a line each."""
    found = []
    if "-py3-none-" not in wheel.name:
        found.append("its tag is not py3-none-<platform>: the library is bound to no Python")
    if (size := wheel.stat().st_size / 2**20) > MAX_MIB:
        found.append(f"{size:.1f} MiB, more than {MAX_MIB}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        inside = {n.rpartition("/")[2] for n in names}
        libraries = [n for n in names if n.rpartition("/")[2] in LIBRARIES]
        if len(libraries) != 1:
            found.append(f"holds {len(libraries)} operator libraries, not 1")
        sources = [
            n
            for n in names
            if n.startswith("rimc_onnx/runtime/") and n.endswith((".cc", ".h", ".txt"))
        ]
        if sources:
            found.append(f"holds sources of the library: {sources[0]}")
        for name in libraries:
            library = archive.read(name)
            if linked := LINKED.search(library):
                found.append(f"{name} refers to {linked[0].decode(errors='replace')}")
            for platform in wheel.stem.rpartition("-")[2].split("."):
                if platform.startswith(("manylinux_", "musllinux_")):
                    wrong = linux_faults(platform, library, inside)
                    found += [f"{name} {fault}" for fault in wrong]
    return found


def main() -> int:
    """Exit status for the wheels on the command line."""
    wheels = [Path(a) for a in sys.argv[1:]]
    if not wheels:
        print("usage: check_wheel.py WHEEL...")
        return 2
    wrong = [f"{wheel.name}: {fault}" for wheel in wheels for fault in faults(wheel)]
    print("\n".join(wrong) or f"{len(wheels)} wheel(s) as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
