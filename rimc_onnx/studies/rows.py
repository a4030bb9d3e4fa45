# SPDX-License-Identifier: Apache-2.0
"""Rows of a study in a Parquet file that is whole at every moment, and loses nothing to a kill.

A row first goes to a journal beside the file, one line of JSON. Now and then, and at the end, file
and journal become a new file that takes the old one's place. Whoever reads takes both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rimc_onnx.errors import DataError, OutputError, UsageError, one_line
from rimc_onnx.studies.trial import Row

__all__ = ["RowFile", "read_rows"]

_MOST_LINES = 256
_MOST_SECONDS = 20.0
"""What a journal holds before it becomes part of the file."""


def read_rows(path: str | Path) -> list[Row]:
    """All rows, the last one of every key, in the order in which they came.

    Raises:
        DataError: the file is there and can't be read.
        UsageError: pyarrow is missing.
    """
    # The journal first: rows that move on while this reads are then seen twice, never missed.
    lines = _journal_rows(_journal(Path(path)))
    return _last_of_each([*_file_rows(Path(path)), *lines])


class RowFile:
    """The one writer of a file of rows: ``with RowFile(path) as rows``.

    Raises:
        OutputError: another process writes to it, or the system refuses.
        UsageError: pyarrow is missing.
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is opened yet."""
        self._path = Path(path)
        self._lock: IO[str] | None = None
        self._file: IO[str] | None = None
        self._rows: dict[str, Row] = {}
        self._lines = 0
        self._merged_at = 0.0

    @property
    def rows(self) -> dict[str, Row]:
        """What the file holds, by key."""
        return self._rows

    def __enter__(self) -> RowFile:
        """Take the lock, and make of what an earlier study left one file."""
        _pyarrow()
        try:
            self._lock = _locked(self._path)
            self._rows = {row["key"]: row for row in read_rows(self._path)}
            self._merge()
        except OSError as error:
            raise self._refused(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Make one file of all, and let go of it."""
        try:
            self._merge()
            if self._file is not None:
                self._file.close()
            _journal(self._path).unlink(missing_ok=True)
        except OSError as refused:
            raise self._refused(refused) from refused
        finally:
            for file in (self._file, self._lock):
                if file is not None:
                    file.close()

    def append(self, row: Row) -> None:
        """Keep a row: from here on no kill takes it away."""
        assert self._file is not None
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            self._rows[row["key"]] = row
            self._lines += 1
            if self._lines >= _MOST_LINES or time.monotonic() - self._merged_at > _MOST_SECONDS:
                self._merge()
        except OSError as error:
            raise self._refused(error) from error

    def _merge(self) -> None:
        """Write the file anew, then begin the journal anew.

        Killed in between, the journal repeats rows of the file, which :func:`read_rows` sees.
        """
        pa, parquet = _pyarrow()
        if self._rows:
            rows = list(self._rows.values())
            new = self._path.with_name(f".{self._path.name}.new")
            names = list(dict.fromkeys(name for row in rows for name in row))
            columns = {name: _column([row.get(name) for row in rows]) for name in names}
            parquet.write_table(pa.table(columns), new)
            with new.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(new, self._path)
        if self._file is not None:
            self._file.close()
        self._file = _journal(self._path).open("w", encoding="utf-8", newline="\n")
        self._lines, self._merged_at = 0, time.monotonic()

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(f"{self._path}: can't be written ({error.strerror or error}).")


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


def _lock_of(path: Path) -> Path:
    # It stays: whoever waits for it would else hold a file that has no name any more.
    return path.with_name(f".{path.name}.lock")


def _locked(path: Path) -> IO[str]:
    """A file that this process alone holds; the system lets go of it when the process dies."""
    file = _lock_of(path).open("a+", encoding="utf-8")
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OutputError(
            f"{path}: another study writes to it. Wait for its end, or give another folder."
        ) from error
    return file


def _journal_rows(path: Path) -> list[Row]:
    """Its rows; a last line that was cut short is left out."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _file_rows(path: Path) -> list[Row]:
    _, parquet = _pyarrow()
    try:
        found: list[Row] = parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        return []
    except Exception as error:  # pyarrow's errors have no common base class
        raise DataError(f"{path}: is no file of rows ({one_line(error)[:200]}).") from error
    return found


def _last_of_each(rows: Sequence[Row]) -> list[Row]:
    return list({row["key"]: row for row in rows}.values())


def _column(values: list[Any]) -> list[Any]:
    """Values that one column can hold: text where one of them is text."""
    if any(isinstance(value, str) for value in values):
        return [value if value is None else str(value) for value in values]
    return values


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"the rows of a study need pyarrow, which can't be imported here ({one_line(error)}). "
            "Run pip install 'rimc-onnx[study]'."
        ) from error
    return pyarrow, pyarrow.parquet
