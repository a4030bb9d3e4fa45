# SPDX-License-Identifier: Apache-2.0
"""The documentation site is built without a warning."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rimc_onnx import runtime

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = shutil.which("mkdocs", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("MkDocs is not installed: pip install '.[docs]'")
    if not Path(runtime.__file__).is_relative_to(Path(sys.prefix).resolve()):
        pytest.skip("the reference is made of a regular install; this one is editable")
    folder = tmp_path_factory.mktemp("site")
    # --strict: a page that no navigation lists, a link or an anchor that leads nowhere, a name of
    # the reference that was renamed.
    made = subprocess.run(
        [program, "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def test_every_command_is_on_the_page_made_from_the_program(site: Path) -> None:
    # A hook that failed silently would leave the page empty.
    page = (site / "reference" / "commands" / "index.html").read_text("utf-8")
    for command in ("convert", "calibrate", "evaluate", "inspect", "age", "study recovery"):
        assert f"rimc-onnx {command}" in page
    assert "--drift" in page


def test_reference_is_made_from_docstrings(site: Path) -> None:
    page = (site / "reference" / "runtime" / "index.html").read_text("utf-8")
    assert "NativeLibraryError" in page
    assert "num_threads" in page


def test_pages_ask_no_other_host(site: Path) -> None:
    # A font or script from a content network: readers behind a firewall wait for it.
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert 'src="http' not in text, page
        assert '<link rel="stylesheet" href="http' not in text, page
