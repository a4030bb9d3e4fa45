# SPDX-License-Identifier: Apache-2.0
"""A trial: a network, a device, a way to calibrate, a score. The description, nothing else."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import UsageError
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.io.model_files import files_of
from rimc_onnx.io.samples import Data, SampleArrays, files_of_data
from rimc_onnx.jobs.figures import Metric
from rimc_onnx.training.config import FinetuneConfig

__all__ = ["MEASURED", "BaselineMethod", "Keys", "Row", "Trial", "keys_of", "require_named"]

Row = dict[str, Any]
"""What a trial gives: scalars by name (docs/studies.md lists them)."""

MEASURED: Final = "measured"
"""``Trial.statistics``: measured of the trial's own data."""


@dataclass(frozen=True, kw_only=True)
class BaselineMethod:
    """A calibration of :data:`rimc_onnx.studies.baselines.BASELINES`."""

    name: str
    num_samples: int = 10
    sample_seed: int = 0
    """Key of the draw of samples, and of what the baseline draws."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Scalars by name."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is done, and to what. Equal trials give equal rows, times apart."""

    model: Path
    """The teacher, an .onnx file."""
    test: Data
    """Samples to evaluate on."""
    data: Data | None = None
    """Samples to calibrate, train and set ranges from; None is ``calibration.npz`` beside the model
    for a calibration."""
    labels: str | None = None
    """Name of the label array; None is ``labels`` where the test data has one."""
    metric: str | Metric | None = None
    """``module:callable``, or a function, of (outputs, extra arrays), for one number. With neither
    labels nor a metric the figure is the agreement with the model."""
    batch_size: int = 64
    """Samples a run of an evaluation."""
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    """Device, time, seed, periphery, mapping."""
    method: CalibrateConfig | BaselineMethod | None = field(default_factory=CalibrateConfig)
    """How it is calibrated; None is not at all."""
    statistics: Path | str | None = None
    """A file of the teacher's statistics, or :data:`MEASURED`."""
    training: Path | FinetuneConfig | None = None
    """The model that is converted in place of ``model``: a file, or how it is trained first."""
    session: SessionFactory | None = None
    """What runs the arrays; None is the native simulator."""

    @property
    def knowledge(self) -> str | None:
        """``black box``, ``read-out`` or ``statistics``; None without a calibration."""
        if self.method is None:
            return None
        if self.statistics is not None:
            return "statistics"
        is_read_out = isinstance(self.method, CalibrateConfig) and self.method.read_out
        return "read-out" if is_read_out else "black box"

    @property
    def calibration_data(self) -> Data | None:
        """``data``, or the file beside the model where there is one."""
        beside = self.model.parent / "calibration.npz"
        if self.data is None and beside.is_file():
            return beside
        return self.data

    def files(self) -> list[Path]:
        """Every file that it reads."""
        found = [*files_of(self.model), *files_of_data(self.test)]
        found += files_of_data(self.calibration_data)
        for path in (self.statistics, self.training):
            if isinstance(path, Path):
                found += files_of(path)
        return [path for path in dict.fromkeys(found) if path.is_file()]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What the steps of a trial are known by: equal keys, equal results."""

    clean: str
    """The model's own score."""
    trained: str | None
    """The model that is trained first."""
    converted: str
    """The converted model and its score."""
    statistics: str | None
    """The teacher's statistics file."""
    trial: str
    """The row."""

    @property
    def prefixes(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Steps before the row, in order: (name, key, keys of the steps that it needs)."""
        trained = () if self.trained is None else (("trained", self.trained, ()),)
        before = () if self.trained is None else (self.trained,)
        known = () if self.statistics is None else (("statistics", self.statistics, before),)
        return (
            ("clean", self.clean, ()),
            *trained,
            *known,
            ("converted", self.converted, (self.clean, *before)),
        )


def keys_of(trial: Trial, digest_of: Callable[[Path], str]) -> Keys:
    """The keys of a trial.

    Args:
        trial: of it.
        digest_of: hex digest of a file, and of those that a model's weights lie in.

    Raises:
        UsageError: a function has no name by which it could be found again.
    """
    version = importlib.metadata.version("rimc-onnx")
    model = digest_of(trial.model) if os.path.isfile(trial.model) else str(trial.model)
    data = _data_key(trial.calibration_data, digest_of)
    judge = [
        _data_key(trial.test, digest_of),
        trial.labels,
        _plain(trial.metric),
        trial.batch_size,
        _plain(trial.session),
    ]
    clean = _hash("clean", version, model, judge[:4])
    trained, statistics = None, None
    source = model
    if isinstance(trial.training, Path):
        source = digest_of(trial.training)
    elif trial.training is not None:
        source = trained = _hash("trained", version, model, data, _plain(trial.training))
    if trial.statistics is not None:
        given = trial.statistics
        is_file = isinstance(given, Path)
        file = digest_of(given) if isinstance(given, Path) else None
        statistics = None if is_file else _hash("statistics", version, source, data)
        known = file or statistics
    else:
        known = None
    # A conversion heeds the samples that it is given, not those that lie beside the model.
    heeded = data if trial.convert.needs_ranges or trial.data is not None else None
    converted = _hash("converted", clean, source, _plain(trial.convert), heeded, judge)
    row = _hash("trial", clean, converted, _plain(trial.method), known, data)
    return Keys(clean=clean, trained=trained, converted=converted, statistics=statistics, trial=row)


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """JSON values that say all of ``value``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value)
        return [str(value.dtype), list(value.shape), hashlib.sha256(content.data).hexdigest()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "kind": type(value).__name__,
            **{f.name: _plain(getattr(value, f.name)) for f in fields(value)},
        }
    return _name_of(value)


def _name_of(function: Any) -> str:
    """``module:name`` of a function; one without it counts for this process alone."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module and "<" not in name:
        return f"{module}:{name}"
    return f"{_UNNAMED}{id(function):x}"


_UNNAMED = "unnamed:"


def require_named(trial: Trial) -> None:
    """Refuse a trial whose row could not be recognised by another process.

    Raises:
        UsageError: its metric or its session is a function without a name in a module.
    """
    for name in ("metric", "session"):
        if str(_plain(getattr(trial, name))).startswith(_UNNAMED):
            raise UsageError(
                f"`{name}` is a function of this process alone, so a study's rows can't be found "
                "again by it. Give module:callable."
            )


def _data_key(data: Data | None, digest_of: Callable[[Path], str]) -> Any:
    """Of what samples hold: bytes of files, or a reader's name and source."""
    if isinstance(data, SampleArrays):
        return [_data_key(data.arrays, digest_of), _plain(data.batch_axis)]
    if data is None or isinstance(data, Mapping):
        return _plain(data)
    files = files_of_data(data)
    if any(path.is_file() for path in files):
        return [[path.name if len(files) > 1 else "", digest_of(path)] for path in files]
    return [str(data), _source_digest(str(data).partition(":")[0])]


def _source_digest(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        beside = Path(*module.split(".")).with_suffix(".py")  # found in the current folder, too
        return hashlib.sha256(beside.read_bytes()).hexdigest() if beside.is_file() else None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
