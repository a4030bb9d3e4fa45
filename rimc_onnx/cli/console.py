# SPDX-License-Identifier: Apache-2.0
"""What people see: tables on stdout, progress and errors on stderr. The only user of rich."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rimc_onnx.errors import one_line

__all__ = ["Console"]

_MOST_NAME_CHARS = 32


class Console:
    """A sink for results: for people, or one JSON object on stdout."""

    def __init__(self, *, as_json: bool, report: Path | None = None, force: bool = False) -> None:
        """``as_json`` sends the object to stdout and nothing else there, ``report`` to a file, too.

        Raises:
            OutputError: ``report`` can't be written, or is there and ``force`` is False.
        """
        self.as_json = as_json
        self._report = report
        self._force = force
        if report is not None:
            from rimc_onnx.io.outputs import check_output

            check_output(report, force=force)

    def result(self, report: Any, render: Callable[[], None]) -> None:
        """Show a report: its fields as JSON, or by ``render``."""
        if is_dataclass(report) and not isinstance(report, type):
            report = asdict(report)
        if self.as_json:
            print(json.dumps(report, default=str, allow_nan=False))
        else:
            render()
        if self._report is not None:
            self._write(self._report, report)

    def _write(self, path: Path, report: Any) -> None:
        from rimc_onnx.io.outputs import Outputs

        text = json.dumps(report, default=str, allow_nan=False, indent=1) + "\n"
        with Outputs(force=self._force) as out:
            made = out.folder(path) / path.name
            made.write_text(text, encoding="utf-8", newline="\n")
        if not self.as_json:
            self.line(f"wrote {path}")

    def line(self, text: str) -> None:
        """A line for people."""
        print(text)

    def warn(self, text: str) -> None:
        """A warning, with or without JSON."""
        print(f"warning: {text}", file=sys.stderr)

    def suggest(self, command: str | None) -> None:
        """The command that comes next, for people at a terminal."""
        self._tell("next", command)

    def advise(self, text: str | None) -> None:
        """A setting that is known to be better, for people at a terminal."""
        self._tell("advice", text)

    def _tell(self, kind: str, text: str | None) -> None:
        # Scripts and files get results alone.
        if text and not self.as_json and sys.stdout.isatty() and sys.stderr.isatty():
            sys.stdout.flush()
            print(f"{kind}: {text}", file=sys.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people; plain text where stdout is no terminal."""
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        if max((len(row[0]) for row in rows), default=0) <= _MOST_NAME_CHARS:
            table.columns[0].no_wrap = True  # a name is copied, so it stands in one piece
        for column in table.columns:
            column.overflow = "fold"
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
