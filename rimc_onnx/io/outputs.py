# SPDX-License-Identifier: Apache-2.0
"""The files that a job writes: every one whole under its name, and all of them or none."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from rimc_onnx.errors import OutputError, UsageError

__all__ = ["Outputs", "check_output", "check_outputs", "output_of"]


def output_of(source: Path, output: str | Path | None, suffix: str) -> Path:
    """The file to write: ``output``, or ``source`` with another suffix.

    Raises:
        OutputError: it has no name, or one that no file can have.
        UsageError: that is ``source`` itself.
    """
    try:
        target = Path(output) if output else source.with_suffix(suffix)
    except ValueError as error:
        raise OutputError(f"{source}: has no name to derive one from. Name the output.") from error
    if _is_same(target, source):
        raise UsageError(f"{target}: is the model itself. Give another file with -o.")
    return target


def check_outputs(paths: Sequence[Path], *, force: bool, reads: Sequence[Path]) -> None:
    """Refuse early, before anything is computed, what :class:`Outputs` would refuse.

    Raises:
        OutputError: see :func:`check_output`.
        UsageError: two of ``paths`` are one file, or one is of ``reads``.
    """
    for path in paths:
        check_output(path, force=force, reads=reads)
    for index, path in enumerate(paths):
        if any(_is_same(path, other) for other in paths[:index]):
            raise UsageError(f"{path}: every output needs a file of its own.")


def check_output(path: Path, *, force: bool, reads: Sequence[Path] = ()) -> None:
    """Refuse a file that can't be written.

    Raises:
        OutputError: ``path`` can't be a file, or is one and ``force`` is False.
        UsageError: it is one of ``reads``, files that the job reads; ``force`` does not help.
    """
    try:
        if any(_is_same(path, read) for read in reads):
            raise UsageError(
                f"{path}: is read by this job and can't be written by it. Name another."
            )
        if path.is_dir():
            raise OutputError(f"{path}: is a folder. Give a file name with -o.")
        there = os.path.lexists(path)
        if there and path.exists() and not path.is_file():
            # Renaming over a device would take it away.
            raise OutputError(f"{path}: is a device or pipe. Give the name of a file.")
        if there and not force:
            raise OutputError(
                f"{path}: exists already. Give `force` to replace it, or another name."
            )
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}. Make it first.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: its folder can't be written to. Name another.")
        os.lstat(path)  # what no file system has room for in a name
    except FileNotFoundError:
        return
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a NUL, links in a circle
        raise OutputError(f"{path}: can't be a file ({_reason(error)}). Name another.") from error


class Outputs:
    """Places for the files of one job: ``with Outputs(force=force) as out``.

    What the body leaves in the folders of :meth:`folder` gets its names when the body ends: nothing
    before all is there, the first output last. Where one name can't be had, those before it are
    taken back. Without ``force`` no file is replaced, one that came meanwhile included.

    Raises:
        OutputError: a file exists and ``force`` is False, or the system refuses.
    """

    def __init__(self, *, force: bool) -> None:
        """Nothing is made yet."""
        self._force = force
        self._folders: list[tuple[Path, Path]] = []
        self._stale: list[Path] = []

    def folder(self, path: Path) -> Path:
        """A new folder beside ``path``; files that are left in it go beside ``path``, too."""
        check_output(path, force=self._force)
        # Named before it is made: an interrupt right after that has to find it, too.
        folder = path.parent / f".rimc-{secrets.token_hex(8)}"
        self._folders.append((path, folder))
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise _refused(path, error) from error
        return folder

    def remove_after(self, path: Path) -> None:
        """Remove ``path`` once all files have their names: what an old output brought along."""
        self._stale.append(path)

    def __enter__(self) -> Outputs:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Give the files their names, or none of them."""
        try:
            if isinstance(error, OSError) and self._folders:
                raise _refused(self._folders[-1][0], error) from error
            if kind is None:
                self._rename()
        finally:
            for _, folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _rename(self) -> None:
        done: list[tuple[Path, Path | None]] = []
        target = self._folders[0][0] if self._folders else Path()
        try:
            for made, target in self._moves():
                done.append((target, _kept(target, made) if self._force else None))
                try:
                    _place(made, target, force=self._force)
                except BaseException:
                    done.pop()
                    raise
        except BaseException as error:
            changed = _undo(done)
            if isinstance(error, OSError):
                raise _refused(target, error, changed) from error
            raise
        for path in self._stale:
            with contextlib.suppress(OSError):
                path.unlink()

    def _moves(self) -> Iterator[tuple[Path, Path]]:
        """(file made, its target): what no one asked for by name first, the first output last.

        A model must never name a data file that is not there yet.
        """
        for path, folder in self._folders:
            brought = (m for m in sorted(folder.iterdir()) if m.name != path.name)
            yield from [(made, path.parent / made.name) for made in brought]
        for path, folder in reversed(self._folders):
            yield folder / path.name, path


def _kept(target: Path, made: Path) -> Path | None:
    """A second name of what ``target`` is now, so that it can come back."""
    backup = made.with_name(f"{secrets.token_hex(8)}.old")
    try:
        os.link(target, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):  # nothing there, or no links in this file system
        return None
    return backup


def _place(made: Path, target: Path, *, force: bool) -> None:
    if force:
        os.replace(made, target)
    elif os.name == "nt":
        os.rename(made, target)  # refuses where the target is there
    else:
        try:
            os.link(made, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            os.replace(made, target)


def _undo(done: Sequence[tuple[Path, Path | None]]) -> list[str]:
    """Put back what was there before; gives what could not be."""
    changed = []
    for target, backup in reversed(done):
        try:
            if backup is None:
                target.unlink()
            else:
                os.replace(backup, target)
        except OSError:
            changed.append(str(target))
    return changed


def _refused(path: Path, error: BaseException, changed: Sequence[str] = ()) -> OutputError:
    what = f"Changed: {', '.join(changed)}." if changed else "Nothing was changed."
    if isinstance(error, FileExistsError):
        return OutputError(
            f"{path}: came into being while this job ran. Give `force` to replace it. {what}"
        )
    return OutputError(f"{path}: can't be written ({_reason(error)}). {what}")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    return str(getattr(error, "strerror", None) or error)


def _is_same(path: Path, other: Path) -> bool:
    """True for one file by two names, hard links and links included."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return os.path.abspath(path) == os.path.abspath(other)
