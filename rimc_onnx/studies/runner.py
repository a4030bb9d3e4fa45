# SPDX-License-Identifier: Apache-2.0
"""Runs trials through an executor of :mod:`concurrent.futures`, and keeps their rows."""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from concurrent.futures.process import ProcessPoolExecutor
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Protocol

from rimc_onnx.errors import RimcError, UsageError, one_line
from rimc_onnx.execution.parallel import limit_threads
from rimc_onnx.io.model_files import sha256_of
from rimc_onnx.studies.rows import RowFile
from rimc_onnx.studies.stages import Stages, failed_row
from rimc_onnx.studies.trial import Keys, Row, Trial, keys_of, require_named

__all__ = ["Engine", "Processes", "SameProcess", "check_workers", "run"]

_MOST_DEATHS = 3
"""Workers that may die of one step before it is given up."""
_MOST_DROPPED = 64
"""Results that a worker on another machine is told of, the last ones."""


class Engine(Protocol):
    """What runs the steps of trials."""

    @property
    def workers(self) -> int:
        """Steps at a time."""

    def start(self) -> Executor:
        """A new executor. One that breaks (``BrokenExecutor``) is replaced by another."""

    def folder(self, beside: Path | None) -> Path:
        """A folder that every worker can use for results, made if need be."""


class SameProcess:
    """One step after the other, in this process: takes functions without a name, too."""

    workers = 1

    def start(self) -> Executor:
        """An executor that has done its work when it returns."""
        return _AtOnce()

    def folder(self, beside: Path | None) -> Path:
        """Beside the rows, or a temporary one."""
        return _local_folder(beside)


class _AtOnce(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def check_workers(count: int | None) -> None:
    """Refuse fewer than one worker.

    Raises:
        UsageError: there are.
    """
    if count is not None and count < 1:
        raise UsageError(f"`workers` must be 1 or more, got {count}")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Processes of this machine, each with one thread."""

    count: int | None = None
    """None is one for each core."""

    def __post_init__(self) -> None:
        check_workers(self.count)

    @property
    def workers(self) -> int:
        """Steps at a time."""
        if hasattr(os, "sched_getaffinity"):
            return self.count or len(os.sched_getaffinity(0))
        return self.count or os.cpu_count() or 1

    def start(self) -> Executor:
        """Processes that are started anew, since a fork would take locks of threads along."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, initializer=_begin_worker)

    def folder(self, beside: Path | None) -> Path:
        """Beside the rows, or a temporary one."""
        return _local_folder(beside)


def _local_folder(beside: Path | None) -> Path:
    """The folder of results of one machine: a study that goes on finds it again."""
    if beside is None:
        return Path(tempfile.mkdtemp(prefix="rimc-study-"))
    beside.mkdir(exist_ok=True)
    return beside


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    limit_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed can't stop its workers: they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step of a trial as a worker is given it."""

    trial: Trial
    keys: Keys
    prefix: str | None
    """Name of the step before the row; None is the row itself."""

    @property
    def key(self) -> str:
        """Of its result."""
        names = {name: key for name, key, _ in self.keys.prefixes}
        return self.keys.trial if self.prefix is None else names[self.prefix]


def _perform(step: _Step, folder: Path, dropped: Sequence[str]) -> Row | RimcError | None:
    """In a worker: the row, None of a step before it, or what is wrong with the trial."""
    stages = Stages(folder)
    stages.drop(dropped)
    try:
        if step.prefix is None:
            return stages.row(step.trial, step.keys)
        stages.prefix(step.prefix, step.trial, step.keys)
    except RimcError as error:
        return error
    return None


def run(
    trials: Sequence[Trial],
    rows: str | Path | None = None,
    *,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    on_row: Callable[[Row], None] = lambda _row: None,
) -> list[Row]:
    """The row of every trial, in their order. Equal steps of several trials are made once.

    Args:
        trials: what is to be done.
        rows: a Parquet file that gets every row as it comes; rows that it has are not made again,
            those with an error apart. Without a file the first error of a trial is raised.
        engine: what runs the steps; default is :class:`Processes`. Programs that use it need
            ``if __name__ == "__main__":`` around what they do.
        progress: called with (steps done, steps in all), those of earlier calls left out.
        on_row: called with every new row as soon as it is kept.

    Raises:
        OutputError: another study writes to ``rows``.
        RimcError: without ``rows``, of a trial.
    """
    engine = engine or Processes()
    digests: dict[Path, str] = {}

    def digest_of(path: Path) -> str:
        if path not in digests:
            digests[path] = sha256_of(path)
        return digests[path]

    keys = [keys_of(trial, digest_of) for trial in trials]
    if rows is None:
        found: dict[str, Row] = {}

        def keep(row: Row) -> None:
            found[row["key"]] = row
            on_row(row)

        _Work(trials, keys, engine, keep, progress, stops_at_error=True).run(None)
        return [found[k.trial] for k in keys]
    for trial in trials:
        require_named(trial)
    path = Path(rows)
    with RowFile(path) as file:

        def store(row: Row) -> None:
            file.append(row)
            on_row(row)

        done = {key for key, row in file.rows.items() if row["error"] is None}
        pairs = [(t, k) for t, k in zip(trials, keys, strict=True) if k.trial not in done]
        missing = [trial for trial, _ in pairs], [k for _, k in pairs]
        work = _Work(*missing, engine, store, progress, stops_at_error=False)
        work.run(path.with_name(f".{path.name}.steps"))
        return [file.rows[k.trial] for k in keys]


class _Work:
    """Steps in the order of what they need; rows as early as can be, so that results can go."""

    def __init__(
        self,
        trials: Sequence[Trial],
        keys: Sequence[Keys],
        engine: Engine,
        keep: Callable[[Row], None],
        progress: Callable[[int, int], None],
        *,
        stops_at_error: bool,
    ) -> None:
        self._engine, self._keep, self._progress = engine, keep, progress
        self._stops_at_error = stops_at_error
        self._steps: dict[str, _Step] = {}
        self._order: dict[str, tuple[int, int]] = {}
        self._users: Counter[str] = Counter()
        """Rows still to come that need a result."""
        self._graph: TopologicalSorter[str] = TopologicalSorter()
        self._deaths: Counter[str] = Counter()
        self._failed: dict[str, RimcError] = {}
        self._dropped: list[str] = []
        for trial, of_trial in zip(trials, keys, strict=True):
            if of_trial.trial not in self._steps:
                self._add(trial, of_trial)
        self._total = len(self._steps)

    def _add(self, trial: Trial, keys: Keys) -> None:
        before = []
        for name, key, needs in keys.prefixes:
            if key not in self._steps:
                self._put(key, _Step(trial=trial, keys=keys, prefix=name), needs)
            self._users[key] += 1
            before.append(key)
        self._put(keys.trial, _Step(trial=trial, keys=keys, prefix=None), before)

    def _put(self, key: str, step: _Step, needs: Sequence[str]) -> None:
        self._steps[key] = step
        self._graph.add(key, *needs)
        # Rows of a conversion that is there go before the next conversion.
        place = len(self._order)
        group = self._order[step.keys.converted][0] if step.prefix is None else place
        self._order[key] = (group, place)

    def run(self, beside: Path | None) -> None:
        """Do all of it; results of steps are gone at the end."""
        if not self._steps:
            return
        folder = self._engine.folder(beside)
        try:
            self._run(folder)
        except BaseException:
            if beside is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folder: Path) -> None:
        self._graph.prepare()
        ready: list[tuple[tuple[int, int], str]] = []
        while self._graph.is_active():
            with _running(self._engine) as executor:
                try:
                    self._run_on(executor, folder, ready)
                except BrokenExecutor:
                    continue  # with new workers

    def _run_on(
        self, executor: Executor, folder: Path, ready: list[tuple[tuple[int, int], str]]
    ) -> None:
        running: dict[Future[Any], str] = {}
        while self._graph.is_active():
            for key in self._graph.get_ready():
                heapq.heappush(ready, (self._order[key], key))
            while ready and len(running) < self._engine.workers:
                key = heapq.heappop(ready)[1]
                if (error := self._error_before(key)) is not None:
                    self._end(key, error, folder)
                    break  # what follows from it may be ready now
                try:
                    future = executor.submit(
                        _perform, self._steps[key], folder, tuple(self._dropped[-_MOST_DROPPED:])
                    )
                except BrokenExecutor:
                    self._again([*running.values(), key], ready)
                    raise
                running[future] = key
            if not running:
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor:
                    self._again([*running.values(), key], ready)
                    raise
                except Exception as error:
                    if self._stops_at_error:
                        raise
                    name = type(error).__name__
                    result = RimcError(f"{name}: {one_line(error)}. This should not happen.")
                self._end(key, result, folder)

    def _again(self, keys: Sequence[str], ready: list[tuple[tuple[int, int], str]]) -> None:
        """Steps whose worker died, or another's: which of them killed it nobody knows."""
        for key in keys:
            self._deaths[key] += 1
            if self._deaths[key] >= _MOST_DEATHS:
                self._failed[key] = RimcError(
                    f"its worker died {_MOST_DEATHS} times. Is there enough memory? "
                    "Give fewer `workers`."
                )
            heapq.heappush(ready, (self._order[key], key))

    def _error_before(self, key: str) -> RimcError | None:
        """What is wrong with a step, or with one that it needs."""
        step = self._steps[key]
        names = [key]
        for name, before, needs in step.keys.prefixes:
            if step.prefix is None:
                names.append(before)
            elif name == step.prefix:
                names += needs
        return next((self._failed[name] for name in names if name in self._failed), None)

    def _end(self, key: str, result: Row | RimcError | None, folder: Path) -> None:
        step = self._steps[key]
        if isinstance(result, RimcError):
            if self._stops_at_error:
                raise result
            self._failed[key] = result
            result = failed_row(step.trial, step.keys, str(result)) if not step.prefix else None
        self._graph.done(key)
        del self._steps[key]
        self._progress(self._total - len(self._steps), self._total)
        if result is not None:
            self._keep(result)
        if step.prefix is None:
            gone = []
            for _, before, _ in step.keys.prefixes:
                self._users[before] -= 1
                if not self._users[before]:
                    gone.append(before)
            Stages(folder).drop(gone)
            self._dropped += gone


@contextlib.contextmanager
def _running(engine: Engine) -> Iterator[Executor]:
    """An executor; on an error its workers stop in the middle of what they do."""
    executor = engine.start()
    try:
        yield executor
    except BaseException:
        # No way to stop a running step but this one before Python 3.14.
        for process in list((getattr(executor, "_processes", None) or {}).values()):
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()
