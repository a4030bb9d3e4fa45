# SPDX-License-Identifier: Apache-2.0
"""Samples for calibration and evaluation: .npz, a folder of .npy, or a reader in Python."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import DataError, UsageError, suggest

__all__ = ["Batch", "InputSpec", "Samples", "import_callable", "load_samples"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """A graph input: name, numpy dtype and shape, where ``None`` is a free dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Feeds of one run and what else the data holds for the same samples (labels, ids)."""

    feeds: dict[str, Array]
    extras: dict[str, Array]
    num_samples: int


class Samples:
    """Checked batches of samples; iterate as often as needed.

    ``chunks`` are mappings with samples on axis 0 of every array.
    """

    def __init__(self, chunks: Sequence[Mapping[str, Array]], inputs: Sequence[InputSpec]) -> None:
        """Check every chunk against the graph's inputs."""
        self._inputs = {i.name: i for i in inputs}
        self._batches = [self._batch(c) for c in chunks]
        self.num_samples = sum(b.num_samples for b in self._batches)
        if self.num_samples == 0:
            raise DataError("the data holds no sample. Give at least one.")

    @property
    def extras(self) -> set[str]:
        """Names of the arrays that are no graph inputs and that every batch has."""
        return set.intersection(*(set(b.extras) for b in self._batches))

    def _batch(self, chunk: Mapping[str, Array]) -> Batch:
        missing = [n for n in self._inputs if n not in chunk]
        if missing:
            raise DataError(
                f"the data has no array for input {missing[0]!r}; it has "
                f"{', '.join(map(repr, sorted(chunk))) or 'nothing'}. "
                "Name the arrays after the graph's inputs."
            )
        feeds = {n: self._check(np.asarray(chunk[n]), s) for n, s in self._inputs.items()}
        counts = {n: len(a) for n, a in feeds.items() if a.ndim}
        num_samples = next(iter(counts.values()), 1)
        extras = {n: np.asarray(a) for n, a in chunk.items() if n not in self._inputs}
        counts |= {n: len(a) for n, a in extras.items() if a.ndim}
        odd = [n for n, c in counts.items() if c != num_samples]
        if odd:
            raise DataError(
                f"array {odd[0]!r} has {counts[odd[0]]} samples on axis 0, "
                f"array {next(iter(counts))!r} has {num_samples}."
            )
        return Batch(feeds=feeds, extras=extras, num_samples=num_samples)

    @staticmethod
    def _check(array: Array, spec: InputSpec) -> Array:
        if array.dtype != spec.dtype:
            raise DataError(
                f"array {spec.name!r} is {array.dtype}, the model's input is {spec.dtype}. "
                f"Save it as {spec.dtype}."
            )
        if spec.shape is not None:
            # Axis 0 may hold more samples than one run takes; the other axes are the model's.
            fits = array.ndim == len(spec.shape) and all(
                want is None or got == want
                for got, want in zip(array.shape[1:], spec.shape[1:], strict=True)
            )
            if not fits:
                want = ["N" if i == 0 else d or "?" for i, d in enumerate(spec.shape)]
                raise DataError(
                    f"array {spec.name!r} has shape {list(array.shape)}, the model's input is "
                    f"[{', '.join(map(str, want))}]."
                )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"array {spec.name!r} holds NaN or infinity. Clean the samples.")
        return array

    def draw(self, num_samples: int, *, seed: int) -> Samples:
        """``num_samples`` of the samples, without repetition, keyed by ``seed``.

        Raises:
            DataError: there are fewer.
            UsageError: the seed is negative.
        """
        if seed < 0:
            raise UsageError(f"the seed of the samples must be 0 or more, got {seed}")
        if num_samples > self.num_samples:
            raise DataError(
                f"{num_samples} samples were asked for, the data has {self.num_samples}. "
                f"Give `num_samples` {self.num_samples} or more data."
            )
        chosen = np.random.default_rng(seed).permutation(self.num_samples)[:num_samples]
        ends = np.cumsum([b.num_samples for b in self._batches])
        picked: list[Mapping[str, Array]] = []
        for index in chosen:
            which = int(np.searchsorted(ends, index, side="right"))
            batch = self._batches[which]
            row = int(index - (ends[which] - batch.num_samples))
            picked.append(
                {n: a[row : row + 1] for n, a in (batch.feeds | batch.extras).items() if a.ndim}
            )
        return Samples(_stack_equal_shapes(picked), list(self._inputs.values()))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Runs of at most ``batch_size`` samples, or of the model's own fixed batch."""
        fixed = next((s.shape[0] for s in self._inputs.values() if s.shape and s.shape[0]), None)
        size = fixed or batch_size
        for batch in self._batches:
            if fixed and batch.num_samples % fixed:
                raise DataError(
                    f"the model takes {fixed} samples a run, and {batch.num_samples} of one shape "
                    f"are to be run. Give a multiple of {fixed}."
                )
            for start in range(0, batch.num_samples, size):
                stop = min(start + size, batch.num_samples)
                yield Batch(
                    feeds={n: a[start:stop] if a.ndim else a for n, a in batch.feeds.items()},
                    extras={n: a[start:stop] if a.ndim else a for n, a in batch.extras.items()},
                    num_samples=stop - start,
                )


def _stack_equal_shapes(samples: Iterable[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """Neighbouring samples of one shape share a chunk, in the order they came."""
    chunks: list[list[Mapping[str, Array]]] = []
    for sample in samples:
        shapes = {n: a.shape for n, a in sample.items()}
        if chunks and {n: a.shape for n, a in chunks[-1][0].items()} == shapes:
            chunks[-1].append(sample)
        else:
            chunks.append([sample])
    return [{n: np.concatenate([s[n] for s in c]) for n in c[0]} for c in chunks]


def load_samples(source: str | Mapping[str, Array], inputs: Sequence[InputSpec]) -> Samples:
    """Samples of an .npz, a folder of .npy files, ``module:callable`` or a mapping of arrays.

    The callable returns feed dicts (an iterable, or an object with ``get_next`` as ONNX Runtime's
    CalibrationDataReader), each with samples on axis 0.
    """
    if not isinstance(source, str):
        return Samples([source], inputs)
    path = Path(source)
    if path.suffix == ".npz" or path.is_file():
        return Samples([_load_npz(path)], inputs)
    if path.is_dir():
        arrays = {f.stem: _load_npy(f) for f in sorted(path.glob("*.npy"))}
        if not arrays:
            raise DataError(f"{path}: holds no .npy file named after an input.")
        return Samples([arrays], inputs)
    if ":" in source:
        return Samples(_read(import_callable(source), source), inputs)
    raise DataError(
        f"{source}: no such data. Give an .npz, a folder of .npy files or module:callable."
    )


def _load_npz(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give an .npz with arrays named after the inputs.")
    if not zipfile.is_zipfile(path):  # np.load would take an .npy, and anything else for a pickle
        raise DataError(
            f"{path}: not an .npz, or truncated. Write it with numpy.savez, arrays named after the "
            "inputs."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {n: archive[n] for n in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{path}: not an .npz of plain arrays ({error}).") from error


def _load_npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a plain .npy array ({error}).") from error
    return array


def _read(make_reader: Callable[..., Any], name: str) -> list[Mapping[str, Array]]:
    try:
        reader = make_reader()
        chunks = list(iter(reader.get_next, None) if hasattr(reader, "get_next") else iter(reader))
    except Exception as error:  # the user's own code
        text = " ".join(str(error).split())
        raise DataError(f"{name}: fails with {type(error).__name__}: {text}.") from error
    for chunk in chunks:
        if not isinstance(chunk, Mapping):
            raise DataError(f"{name}: gives {type(chunk).__name__}, not a dict of arrays.")
    return chunks


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
    except Exception as error:  # a module can raise anything when it runs
        text = " ".join(str(error).split())
        raise UsageError(f"{name}: module {module_name!r} can't be imported ({text}).") from error
    finally:
        sys.path.remove("")
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise UsageError(f"{name}: no such callable. {suggest(attribute, names)}")
    function: Callable[..., Any] = found
    return function
