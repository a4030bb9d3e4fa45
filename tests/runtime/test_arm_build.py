# SPDX-License-Identifier: Apache-2.0
"""The native library for 64-bit ARM, by a cross-compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"
COMPILER = "aarch64-linux-gnu-g++"
ELF_AARCH64 = 183


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which("cmake") is None,
    reason=f"needs {COMPILER} and cmake",
)
def test_library_compiles_for_arm(tmp_path: Path) -> None:
    # Catches NEON kernels, or code around them, that only compile on the processor at hand, and a
    # build that leaves the NEON kernels out.
    configure = ["cmake", "-S", str(RUNTIME), "-B", str(tmp_path), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    configure += [f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_CXX_FLAGS=-Werror"]
    for command in (configure, ["cmake", "--build", str(tmp_path), "--parallel", "2"]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    library = (tmp_path / "librimc_ops.so").read_bytes()
    assert int.from_bytes(library[18:20], "little") == ELF_AARCH64
    assert b"neon\0" in library
