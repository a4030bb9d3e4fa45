# SPDX-License-Identifier: Apache-2.0
"""What people see: tables on stdout, progress and errors on stderr. The only user of rich."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rimc_onnx.errors import one_line

__all__ = ["Console"]


class Console:
    """A sink for results: for people, or one JSON object on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        """``as_json`` sends the object to stdout and nothing else there."""
        self.as_json = as_json

    def result(self, report: Any, render: Callable[[], None]) -> None:
        """Show a report: its fields as JSON, or by ``render``."""
        if self.as_json:
            if is_dataclass(report) and not isinstance(report, type):
                report = asdict(report)
            print(json.dumps(report, default=str, allow_nan=False))
        else:
            render()

    def line(self, text: str) -> None:
        """A line for people."""
        print(text)

    def warn(self, text: str) -> None:
        """A warning, with or without JSON."""
        print(f"warning: {text}", file=sys.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people; plain text where stdout is no terminal."""
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE)
        for row in rows:
            # A str is markup, and a node may be named [/x], or have lines in its name.
            table.add_row(*(Text(one_line(cell)) for cell in row))
        width = None if sys.stdout.isatty() else 160
        RichConsole(file=sys.stdout, width=width, highlight=False).print(table)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar on stderr for a long piece of work; nothing where stderr is no terminal."""
        if not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        from rich.console import Console as RichConsole
        from rich.progress import Progress

        with Progress(console=RichConsole(file=sys.stderr), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
