# SPDX-License-Identifier: Apache-2.0
"""Hooks of MkDocs: links to files beside ``docs``, and the page of the commands."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from rimc_onnx.cli.main import app

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
_COMMANDS = "<!-- commands -->"
_TERMINAL = {"COLUMNS": "72", "TERM": "dumb", "NO_COLOR": "1"}


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Fill in the commands, and let no link lead out of the site.

    A link to a file of the repository leads to ``REPOSITORY_URL``, or is plain text where that is
    not set.
    """
    docs = Path(config["docs_dir"])
    repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")

    def outside(match: re.Match[str]) -> str:
        folder = posixpath.dirname(page.file.src_uri)
        target = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if target.startswith("docs/") or not (docs.parent / target).exists():
            return match[0]
        return f"[{match[1]}]({repository}/{target})" if repository else match[1]

    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, "\n".join(_helps()))
    return _LINK.sub(outside, markdown)


def _helps() -> Iterator[str]:
    for path in _paths(typer.main.get_command(app)):
        shown = CliRunner().invoke(app, [*path, "--help"], env=_TERMINAL, prog_name="rimc-onnx")
        if shown.exit_code:
            raise RuntimeError(f"rimc-onnx {' '.join(path)} --help: exit code {shown.exit_code}")
        lines = [line.rstrip() for line in shown.output.strip().splitlines()]
        yield "\n".join((f"## rimc-onnx {' '.join(path)}", "", "```text", *lines, "```", ""))


def _paths(command: Any, *above: str) -> Iterator[list[str]]:
    inside = getattr(command, "commands", None)  # of a group; typer may bring its own click
    if inside is None:
        yield list(above)
        return
    for name in sorted(inside):
        yield from _paths(inside[name], *above, name)
