# SPDX-License-Identifier: Apache-2.0
"""Steps of trials on a cluster of Ray: an executor whose workers may be on other machines.

Models and data travel as objects of Ray, once to each machine, where they lie under the sha256 of
what they hold. Results of steps before the rows stay on the machine that made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rimc_onnx.errors import UsageError, one_line
from rimc_onnx.execution.parallel import limit_threads
from rimc_onnx.io.samples import SampleArrays, files_of_data
from rimc_onnx.studies.runner import check_workers
from rimc_onnx.studies.trial import Trial

__all__ = ["RayCluster"]

_MOST_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Workers of a Ray cluster, one core each; of a new one on this machine where there is none."""

    count: int | None = None
    """Steps at a time; None is one for each core of the cluster."""
    address: str | None = None
    """Of the cluster, as ``ray.init`` takes it; None is ``RAY_ADDRESS``, or a new one."""

    def __post_init__(self) -> None:
        check_workers(self.count)

    @property
    def workers(self) -> int:
        """Steps at a time."""
        return self.count or max(1, int(_ray_at(self).cluster_resources().get("CPU", 1)))

    def start(self) -> Executor:
        """An executor that hands its steps to Ray, which replaces workers that die by itself."""
        return _RayExecutor(_ray_at(self))

    def folder(self, beside: Path | None) -> Path:
        """A path of its own that every machine makes when it needs it."""
        mark = secrets.token_hex(8) if beside is None else _digest(str(beside.resolve()).encode())
        folder = Path(tempfile.gettempdir()) / f"rimc-study-{mark[:16]}"
        folder.mkdir(exist_ok=True)
        return folder


def _ray_at(cluster: RayCluster) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"the engine ray needs Ray, which can't be imported here ({one_line(error)}). "
            "Run pip install 'rimc-onnx[ray]'."
        ) from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            settings |= {"num_cpus": cluster.count, "include_dashboard": False}
        ray.init(address=address, **settings)
    return ray


class _RayExecutor(Executor):
    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._sent: dict[Path, tuple[str, Any]] = {}
        self._folders: set[Path] = set()
        self._remote = ray.remote(num_cpus=1, max_retries=_MOST_RETRIES)(_on_a_machine)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        step, folder, dropped = args
        self._folders.add(folder)
        files = {path: self._content(path) for path in step.trial.files()}
        reference = self._remote.remote(fn, step, folder, dropped, files)
        future: Future[Any] = reference.future()
        return future

    def _content(self, path: Path) -> tuple[str, Any]:
        if path not in self._sent:
            content = path.read_bytes()
            self._sent[path] = (_digest(content), self._ray.put(content))
        return self._sent[path]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Remove what lies on the machines; the cluster stays, for it may be another's."""
        if not wait and cancel_futures:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

        clean = self._ray.remote(num_cpus=0)(_remove)
        references = [
            clean.options(scheduling_strategy=OnNode(node["NodeID"], soft=True)).remote(folder)
            for node in self._ray.nodes() if node["Alive"] for folder in self._folders
        ]  # fmt: skip
        self._ray.wait(references, num_returns=len(references), timeout=30)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _on_a_machine(
    perform: Callable[..., Any],
    step: Any,
    folder: Path,
    dropped: Sequence[str],
    files: Mapping[Path, tuple[str, Any]],
) -> Any:
    limit_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    moved = _fetched(files, folder)
    return perform(replace(step, trial=_moved(step.trial, moved)), folder, dropped)


def _fetched(files: Mapping[Path, tuple[str, Any]], folder: Path) -> dict[Path, Path]:
    """Where each file lies on this machine; files of one folder stay beside each other."""
    import ray

    found: dict[Path, Path] = {}
    for parent in {path.parent for path in files}:
        beside = {path: files[path] for path in files if path.parent == parent}
        text = "\n".join(f"{path.name} {digest}" for path, (digest, _) in sorted(beside.items()))
        target = folder / f"files-{_digest(text.encode())[:32]}"
        if not target.is_dir():
            begun = folder / f".begun-{secrets.token_hex(8)}"
            begun.mkdir()
            for path, (_, reference) in beside.items():
                (begun / path.name).write_bytes(ray.get(reference))
            with contextlib.suppress(OSError):  # another worker was quicker
                os.rename(begun, target)
            shutil.rmtree(begun, ignore_errors=True)
        found |= {path: target / path.name for path in beside}
    return found


def _moved(trial: Trial, places: Mapping[Path, Path]) -> Trial:
    """The same trial on this machine's copies."""
    changed: dict[str, Any] = {}
    for f in fields(trial):
        value = getattr(trial, f.name)
        if isinstance(value, Path) and value in places:
            changed[f.name] = places[value]
    for name in ("test", "data"):
        changed[name] = _moved_data(getattr(trial, name), places)
    return replace(trial, **changed)


def _moved_data(data: Any, places: Mapping[Path, Path]) -> Any:
    if isinstance(data, SampleArrays):
        return replace(data, arrays=_moved_data(data.arrays, places))
    files = [path for path in files_of_data(data) if path in places]
    if not files:
        return data
    is_folder = Path(data) not in places
    return places[files[0]].parent if is_folder else places[Path(data)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
