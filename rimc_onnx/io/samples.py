# SPDX-License-Identifier: Apache-2.0
"""Samples for calibration and evaluation: .npz, a folder of .npy, or a reader in Python.

Arrays hold many samples, each at a place of one axis: axis 0 where the model lets it be (a free
dimension, or 1), else the axis that ``batch_axis`` names. A dict of a reader is one run of the
model and one sample, whatever its axes are. No sample is ever cut, and none is joined to another
along an axis that the model fixes.
"""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import DataError, UsageError, one_line, suggest
from rimc_onnx.execution.feed import Feed
from rimc_onnx.io.arrays import MOST_BYTES, ArraysError, read_npy, read_npz

__all__ = ["Batch", "Data", "InputSpec", "SampleArrays", "Samples", "import_callable"]
__all__ += ["files_of_data", "load_samples", "stacked_axes"]

Array = npt.NDArray[Any]

_BatchAxis = int | Mapping[str, int | None] | None
_MOST_RUNS = 100_000
"""Dicts of one reader: one that never ends has to."""


@dataclass(frozen=True, kw_only=True)
class SampleArrays:
    """Arrays of samples, and which axis of each counts them."""

    arrays: str | Path | Mapping[str, Array] | None = None
    """An .npz, a folder of .npy files or arrays by the names of inputs; ``None`` is
    ``calibration.npz`` beside the model."""
    batch_axis: _BatchAxis = field(default_factory=dict)
    """Axis of samples of all inputs, or by input; ``None``: the array is part of every run as it
    is. Inputs that are not named have their samples on axis 0."""


Data = str | Path | Mapping[str, Array] | SampleArrays
"""What ``--data`` takes, or arrays by the names of inputs."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """A graph input: name, numpy dtype and shape, where ``None`` is a free dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    symbols: tuple[str | None, ...] = ()
    """Names of the dimensions that have one."""
    is_tensor: bool = True
    """False for a sequence or an optional."""
    may_be_nan: bool = False
    """The model puts something in the place of what is missing."""

    def __str__(self) -> str:
        if not self.is_tensor:
            return f"{self.name!r} (a sequence or optional)"
        return f"{self.name!r} {self.dtype}{self.dimensions}"

    @property
    def dimensions(self) -> str:
        """The shape as it is shown: ``[N, 3, ?, ?]``."""
        if self.shape is None:
            return "[...]"
        symbols = self.symbols or (None,) * len(self.shape)
        shown = [str(d or s or "?") for d, s in zip(self.shape, symbols, strict=True)]
        return f"[{', '.join(shown)}]"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Feeds of one run and what else the data holds for the same samples (labels, ids)."""

    feeds: Feed
    extras: dict[str, Any]
    num_samples: int


class Samples(ABC):
    """Checked samples; iterate as often as needed."""

    num_samples: int
    stacked: bool
    """True where the outputs of several samples are stacked on axis 0."""

    @property
    @abstractmethod
    def extras(self) -> set[str]:
        """Names of the arrays that are no graph inputs and that every batch has."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Runs of at most ``batch_size`` samples, or of as many as the model takes."""

    @abstractmethod
    def _chosen(self, indices: npt.NDArray[np.intp]) -> Samples: ...

    @property
    def run_samples(self) -> int:
        """Samples that every run has to have, 1 where the model leaves it open."""
        return 1

    def whole_runs(self, num_samples: int) -> int:
        """``num_samples`` or fewer that fill runs, those of one run at least."""
        size = self.run_samples
        filled = max(num_samples - num_samples % size, size)
        return filled if filled <= max(num_samples, self.num_samples) else num_samples

    def draw_at_most(self, num_samples: int, *, seed: int) -> Samples:
        """A draw of as many as there are, up to ``num_samples``, that fill runs."""
        return self.draw(self.whole_runs(min(num_samples, self.num_samples)), seed=seed)

    def draw(self, num_samples: int, *, seed: int, after: int = 0) -> Samples:
        """``num_samples`` of the samples, without repetition, keyed by ``seed``.

        ``after`` leaves out those that a draw of so many with the same seed gives.

        Raises:
            DataError: there are fewer.
            UsageError: the seed is negative.
        """
        if seed < 0:
            raise UsageError(f"the seed of the samples must be 0 or more, got {seed}")
        asked = after + num_samples
        if asked > self.num_samples:
            raise DataError(
                f"{asked} samples were asked for, the data has {self.num_samples}. "
                f"Give `num_samples` {max(self.num_samples - after, 1)} or more data."
            )
        order = np.random.default_rng(seed).permutation(self.num_samples)
        return self._chosen(order[after:asked])


class _Stacked(Samples):
    """Arrays that hold a sample at every place of an axis."""

    def __init__(
        self, arrays: Mapping[str, Array], inputs: Sequence[InputSpec], axes: Mapping[str, int]
    ) -> None:
        _require_inputs(arrays, inputs)
        self._inputs, self._axes = inputs, axes
        self._feeds = {i.name: _checked(arrays[i.name], i, axes.get(i.name)) for i in inputs}
        names = {i.name for i in inputs}
        self._extras = {n: np.asarray(a) for n, a in arrays.items() if n not in names}
        self.num_samples = self._count()
        self.stacked = all(axis == 0 for axis in axes.values())
        if self.num_samples == 0:
            raise DataError("the data holds no sample. Give at least one.")

    def _count(self) -> int:
        counts = {n: self._feeds[n].shape[axis] for n, axis in self._axes.items()}
        if not counts:
            return 1
        first, num_samples = next(iter(counts.items()))
        counts |= {n: len(a) for n, a in self._extras.items() if a.ndim}
        for name, count in counts.items():
            if count != num_samples:
                axis = self._axes.get(name, 0)
                todo = (
                    "Name the axis that counts samples with `batch_axis`, or give a reader, of "
                    "which every dict is a run."
                    if name in self._axes
                    else "Give one for every sample."
                )
                raise DataError(
                    f"array {name!r} has {count} samples on axis {axis}, array {first!r} has "
                    f"{num_samples} on axis {self._axes[first]}. {todo}"
                )
        return num_samples

    @property
    def extras(self) -> set[str]:
        return set(self._extras)

    @property
    def run_samples(self) -> int:
        return _fixed_count(self._inputs, self._axes) or 1

    def _part(self, chosen: Any) -> tuple[dict[str, Array], dict[str, Array]]:
        feeds = {
            n: a[(slice(None),) * self._axes[n] + (chosen,)] if n in self._axes else a
            for n, a in self._feeds.items()
        }
        has_rows = bool(self._axes)
        return feeds, {n: a[chosen] if a.ndim and has_rows else a for n, a in self._extras.items()}

    def _chosen(self, indices: npt.NDArray[np.intp]) -> Samples:
        feeds, extras = self._part(indices)
        return _Stacked({**feeds, **extras}, self._inputs, self._axes)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        fixed = _fixed_count(self._inputs, self._axes)
        if fixed and self.num_samples % fixed:
            raise DataError(
                f"the model takes {fixed} samples a run, and {self.num_samples} are to be run. "
                f"Give a multiple of {fixed}."
            )
        size = fixed or batch_size
        for start in range(0, self.num_samples, size):
            count = min(size, self.num_samples - start)
            feeds, extras = self._part(slice(start, start + count))
            axes = {} if fixed else self._axes
            feed = Feed(feeds, num_samples=count, axes=axes)
            yield Batch(feeds=feed, extras=extras, num_samples=count)


class _Runs(Samples):
    """Dicts of a reader: each is a run and a sample."""

    stacked = False

    def __init__(self, dicts: Sequence[Mapping[str, Any]], inputs: Sequence[InputSpec]) -> None:
        self._runs = [self._run(d, inputs) for d in dicts]
        self.num_samples = len(self._runs)
        if not self._runs:
            raise DataError("the data holds no sample. Give at least one.")

    @staticmethod
    def _run(given: Mapping[str, Any], inputs: Sequence[InputSpec]) -> Batch:
        _require_inputs(given, inputs)
        names = {i.name for i in inputs}
        feed = Feed({i.name: _checked(given[i.name], i, None) for i in inputs})
        extras = {n: np.asarray(v) for n, v in given.items() if n not in names}
        return Batch(feeds=feed, extras=extras, num_samples=1)

    @property
    def extras(self) -> set[str]:
        return set.intersection(*(set(r.extras) for r in self._runs))

    def _chosen(self, indices: npt.NDArray[np.intp]) -> Samples:
        chosen = _Runs.__new__(_Runs)
        chosen._runs = [self._runs[i] for i in indices]
        chosen.num_samples = len(chosen._runs)
        return chosen

    def batches(self, batch_size: int) -> Iterator[Batch]:  # noqa: ARG002 - a run is not cut
        return iter(self._runs)


def _require_inputs(given: Mapping[str, Any], inputs: Sequence[InputSpec]) -> None:
    missing = [i.name for i in inputs if i.name not in given]
    if missing:
        raise DataError(
            f"the data has no array for input {missing[0]!r}; it has "
            f"{', '.join(map(repr, sorted(map(str, given)))) or 'nothing'}. "
            "Name the arrays after the graph's inputs."
        )


def _checked(value: Any, spec: InputSpec, axis: int | None) -> Any:
    """``value`` as the model takes it; ``axis`` may hold any number of samples."""
    if not spec.is_tensor:
        return value
    try:
        array = np.asarray(value)
    except Exception as error:  # lists of unequal lengths, objects of the user's own
        raise DataError(f"{spec.name!r} is no array ({one_line(error)}).") from error
    is_text = spec.dtype.kind == "O" and array.dtype.kind in "UO"
    if array.dtype != spec.dtype and not is_text:
        raise DataError(
            f"array {spec.name!r} is {array.dtype}, the model's input is {spec.dtype}. "
            f"Save it as {spec.dtype}."
        )
    if spec.shape is not None and not _fits(array.shape, spec.shape, axis):
        want = [str(d or "?") for d in spec.shape]
        if axis is not None and axis < len(want):
            want[axis] = "N"
        raise DataError(
            f"array {spec.name!r} has shape {list(array.shape)}, the model's input is "
            f"[{', '.join(want)}]."
        )
    if axis is not None and axis >= array.ndim:
        raise DataError(f"array {spec.name!r} of shape {list(array.shape)} has no axis {axis}.")
    is_bad = np.isinf if spec.may_be_nan else lambda values: ~np.isfinite(values)
    if array.dtype.kind == "f" and is_bad(array).any():
        raise DataError(f"array {spec.name!r} holds NaN or infinity. Clean the samples.")
    return array


def _fits(got: tuple[int, ...], want: tuple[int | None, ...], axis: int | None) -> bool:
    return len(got) == len(want) and all(
        w is None or g == w or i == axis for i, (g, w) in enumerate(zip(got, want, strict=True))
    )


def _fixed_count(inputs: Sequence[InputSpec], axes: Mapping[str, int]) -> int | None:
    """Samples that the model takes in every run, where it says so."""
    found = {i.shape[axes[i.name]] for i in inputs if i.name in axes and i.shape} - {None}
    if len(found) > 1:
        raise DataError(
            f"the model's inputs take {' and '.join(map(str, found))} samples a run. "
            "Give a reader, of which every dict is a run."
        )
    return found.pop() if found else None


def stacked_axes(
    inputs: Sequence[InputSpec],
    batch_axis: _BatchAxis = MappingProxyType({}),
) -> dict[str, int]:
    """Axis of samples of every input's array; those that have none are not in it.

    Raises:
        DataError: the model fixes axis 0 of an input, or it has no axis, and ``batch_axis`` does
            not name another.
        UsageError: ``batch_axis`` names no input, or an axis that it does not have.
    """
    names = [i.name for i in inputs]
    if not isinstance(batch_axis, Mapping):
        batch_axis = {i.name: batch_axis for i in inputs if i.shape != ()}
    for name in batch_axis:
        if name not in names:
            raise UsageError(
                f"`batch_axis`: {name!r} is no input of the model. {suggest(name, names)}"
            )
    axes: dict[str, int] = {}
    for spec in inputs:
        if spec.name in batch_axis:
            axis = batch_axis[spec.name]
            rank = len(spec.shape) if spec.shape is not None else np.inf
            if axis is not None and not 0 <= axis < rank:
                raise UsageError(f"`batch_axis`: input {spec} has no axis {axis}.")
        elif spec.shape == ():
            axis = None  # a scalar is part of every run
        elif spec.is_tensor and (spec.shape is None or spec.shape[0] in (None, 1)):
            axis = 0
        else:
            raise DataError(f"{_unclear_axis(spec)}.")
        if axis is not None:
            axes[spec.name] = axis
    return axes


def _unclear_axis(spec: InputSpec) -> str:
    """Why an input's array can't have its samples on axis 0, and what to do."""
    if not spec.is_tensor:
        return (
            f"input {spec} has no array. Give a reader (module:callable), of which every dict is a "
            "run"
        )
    free = [i for i, d in enumerate(spec.shape or ()) if d is None]
    axis = free[0] if len(free) == 1 else "AXIS"
    return (
        f"input {spec} has a fixed axis 0, which need not hold samples. Name the axis that does, "
        f"`batch_axis` {spec.name}={axis}, or none (the array is part of every run), or give a "
        "reader (module:callable), of which every dict is a run"
    )


def load_samples(source: Data, inputs: Sequence[InputSpec]) -> Samples:
    """Samples of an .npz, a folder of .npy files, ``module:callable`` or a mapping of arrays.

    The callable returns feed dicts (an iterable, or an object with ``get_next`` as ONNX Runtime's
    CalibrationDataReader), each a run of the model.
    """
    batch_axis: _BatchAxis = {}
    if isinstance(source, SampleArrays):
        batch_axis, source = source.batch_axis, source.arrays or {}
    if isinstance(source, Mapping):
        return _Stacked(source, inputs, stacked_axes(inputs, batch_axis))
    path = Path(source)
    try:
        if path.suffix == ".npz" or (os.path.exists(path) and not os.path.isdir(path)):
            return _Stacked(read_npz(path), inputs, stacked_axes(inputs, batch_axis))
        if os.path.isdir(path):
            arrays = {f.stem: read_npy(f) for f in sorted(path.glob("*.npy"))}
            if not arrays:
                raise DataError(f"{path}: holds no .npy file named after an input.")
            return _Stacked(arrays, inputs, stacked_axes(inputs, batch_axis))
    except ArraysError as error:
        raise DataError(
            f"{path}: {error}. Give an .npz with arrays named after the inputs."
        ) from error
    text = str(source)
    if ":" in text:
        if batch_axis != {}:
            raise UsageError(
                f"{text}: every dict of a reader is a run, `batch_axis` has no meaning."
            )
        return _Runs(_read(import_callable(text), text), inputs)
    raise DataError(
        f"{text}: no such data. Give an .npz, a folder of .npy files or module:callable."
    )


def files_of_data(data: Data | None) -> list[Path]:
    """Files that :func:`load_samples` reads."""
    source = data.arrays if isinstance(data, SampleArrays) else data
    if source is None or isinstance(source, Mapping):
        return []
    path = Path(source)
    return sorted(path.glob("*.npy")) if os.path.isdir(path) else [path]


def _read(make_reader: Callable[..., Any], name: str) -> list[Mapping[str, Any]]:
    dicts: list[Mapping[str, Any]] = []
    held_bytes = 0
    try:
        for given in _dicts(make_reader()):
            if not isinstance(given, Mapping):
                raise DataError(f"{name}: gives {type(given).__name__}, not a dict of arrays.")
            dicts.append(given)
            held_bytes += sum(int(getattr(v, "nbytes", 0)) for v in given.values())
            if len(dicts) > _MOST_RUNS or held_bytes > MOST_BYTES:
                raise DataError(
                    f"{name}: gives more than {_MOST_RUNS} dicts or {MOST_BYTES} bytes, all of "
                    "which are held. Does it end? Give fewer."
                )
    except (DataError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's own code; it may even exit
        raise DataError(f"{name}: fails with {type(error).__name__}: {one_line(error)}.") from error
    return dicts


def _dicts(reader: Any) -> Iterable[Any]:
    if hasattr(reader, "get_next"):
        return iter(reader.get_next, None)
    return iter(reader)


def import_callable(name: str) -> Callable[..., Any]:
    """The function behind ``module:callable``, found in the current folder too.

    Raises:
        UsageError: no such module or attribute.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or not colon:
        raise UsageError(f"{name!r} is not of the form module:callable.")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module can raise anything when it runs, or exit
        raise UsageError(
            f"{name}: module {module_name!r} can't be imported ({one_line(error)})."
        ) from error
    finally:
        sys.path.remove("")
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise UsageError(f"{name}: no such callable. {suggest(attribute, names)}")
    function: Callable[..., Any] = found
    return function
