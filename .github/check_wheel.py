# SPDX-License-Identifier: Apache-2.0
"""Checks a wheel: one library, no file too many, nothing of Python or ONNX Runtime linked.

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


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, a line each."""
    found = []
    if "-py3-none-" not in wheel.name:
        found.append("its tag is not py3-none-<platform>: the library is bound to no Python")
    if (size := wheel.stat().st_size / 2**20) > MAX_MIB:
        found.append(f"{size:.1f} MiB, more than {MAX_MIB}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
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
            if linked := LINKED.search(archive.read(name)):
                found.append(f"{name} refers to {linked[0].decode(errors='replace')}")
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
