# SPDX-License-Identifier: Apache-2.0
"""How the package is started and what its wheels may hold."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rimc_onnx import runtime

ROOT = Path(__file__).resolve().parents[1]


def test_module_is_the_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "rimc_onnx", "--help"], capture_output=True, text=True, check=True
    )
    assert "calibrate" in shown.stdout


def test_class_variables_name_their_type() -> None:
    # Python 3.10 refuses a bare ClassVar where hints are read: no command started there.
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("rimc_onnx", "passes", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r":\s*ClassVar\s*(=|$)", line)
    ]
    assert bare == []


def test_version_is_the_same_everywhere() -> None:
    # A release whose library, citation or changelog names another one.
    stated = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert stated is not None
    version = stated[1]
    assert importlib.metadata.version("rimc-onnx") == version
    assert runtime.build_info()["version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(
        rf"(?m)^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$",
        (ROOT / "CHANGELOG.md").read_text("utf-8"),
    )


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


GOOD = "rimc_onnx-0.1.0-py3-none-manylinux_2_28_x86_64.whl"
MUSL = "rimc_onnx-0.1.0-py3-none-musllinux_1_2_aarch64.whl"
LIBRARY = "rimc_onnx/runtime/librimc_ops.so"


@pytest.mark.parametrize(
    ("name", "files", "fault"),
    [
        (GOOD, {LIBRARY: b"\x7fELF"}, None),
        (GOOD, {}, "holds 0 operator libraries"),
        (GOOD, {LIBRARY: b"\0libonnxruntime.so.1\0"}, "refers to libonnxruntime.so"),
        (GOOD, {LIBRARY: b"\0PyObject_Call\0Py_Initialize\0"}, "refers to Py_Initialize"),
        (GOOD, {LIBRARY: b"\0GLIBC_2.28\0libm.so.6\0"}, None),
        (GOOD, {LIBRARY: b"\0GLIBC_2.4\0GLIBC_2.29\0"}, "needs glibc 2.29, its tag says 2.28"),
        (GOOD, {LIBRARY: b"\0libc.so.6\0libgomp.so.1\0"}, "needs libgomp.so.1"),
        (MUSL, {LIBRARY: b"\0libc.so\0libstdc++.so.6\0"}, "needs libstdc++.so.6"),
        (GOOD, {LIBRARY: b"", "rimc_onnx/runtime/src/a.cc": b""}, "holds sources"),
        ("rimc_onnx-0.1.0-cp312-cp312-linux_x86_64.whl", {LIBRARY: b""}, "its tag is not py3-none"),
    ],
)
def test_check_of_wheels_names_the_fault(
    name: str, files: dict[str, bytes], fault: str | None, tmp_path: Path
) -> None:
    # A wheel for one Python only, or one that needs a certain ONNX Runtime at load.
    spec = importlib.util.spec_from_file_location("check", ROOT / ".github" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    found = check.faults(wheel(tmp_path, name, files))
    assert found == [] if fault is None else fault in found[0]
