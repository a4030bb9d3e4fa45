# SPDX-License-Identifier: Apache-2.0
"""The native library for 64-bit ARM, by a cross-compiler that only checks it.

``tests/compat/run_arm.sh`` builds the whole of it and runs it under emulation.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"
COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which("cmake") is None,
    reason=f"needs {COMPILER} and cmake",
)
def test_kernels_are_valid_for_arm(tmp_path: Path) -> None:
    # Catches NEON kernels, or the choice of kernels, that only compile on the processor at hand,
    # and a build that leaves the NEON kernels out.
    configure = ["cmake", "-S", str(RUNTIME), "-B", str(tmp_path), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    configure += [f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    checked = []
    for entry in json.loads((tmp_path / "compile_commands.json").read_text()):
        file = Path(entry["file"])
        if file.parent.name != "kernels" and file.name != "dispatch.cc":
            continue  # the rest of the library does not know the processor
        command = [*shlex.split(entry["command"]), "-Werror", "-fsyntax-only"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=entry["directory"]
        )
        assert done.returncode == 0, done.stdout + done.stderr
        checked.append(file.name)
    assert {"kernels_neon.cc", "kernels_scalar.cc", "dispatch.cc"} <= set(checked)
