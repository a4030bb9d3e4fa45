# SPDX-License-Identifier: Apache-2.0
"""Training data in batches whose order is a function of seed and epoch, and their augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import DataError, UsageError, one_line
from rimc_onnx.io.samples import Samples

__all__ = ["Augment", "Batches", "Rows", "augmented"]

Array = npt.NDArray[Any]
Augment = Callable[[dict[str, Array], np.random.Generator], Mapping[str, Array]]
"""(arrays of one batch by name, generator of the step) -> the arrays to train on."""
_ALL = 1 << 62


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Some samples of one chunk."""

    chunk: int
    rows: npt.NDArray[np.int64]


class Batches:
    """Samples of one or several runs; a batch holds samples of one of them.

    A run whose samples can't be taken apart (a dict of a reader, a model of a fixed batch) is a
    batch as it is.
    """

    def __init__(self, samples: Samples, rows: list[Rows] | None = None) -> None:
        """``rows`` are those that count, all where ``None``."""
        self._samples = samples
        self._chunks = list(samples.batches(_ALL))
        self.stacked = samples.stacked
        """True where outputs hold their samples on axis 0."""
        self.rows = rows or [
            Rows(chunk=i, rows=np.arange(b.num_samples)) for i, b in enumerate(self._chunks)
        ]
        self.num_samples = sum(len(r.rows) for r in self.rows)

    def _is_whole(self, rows: Rows) -> bool:
        """True where a chunk stays in one piece."""
        return not self._chunks[rows.chunk].feeds.axes

    def split(self, num_samples: int, seed: int) -> tuple[Batches, Batches]:
        """All but ``num_samples``, drawn by ``seed``, and these.

        Raises:
            DataError: nothing would be left.
        """
        if num_samples >= self.num_samples:
            raise DataError(
                f"the data has {self.num_samples} samples, and {num_samples} of them were to be "
                "held out. Give more data."
            )
        rng = np.random.default_rng([seed, 1])
        chosen = rng.permutation(self.num_samples)[:num_samples]
        taken = np.zeros(self.num_samples, bool)
        taken[chosen] = True
        parts: tuple[list[Rows], list[Rows]] = ([], [])
        start = 0
        for r in self.rows:
            own = taken[start : start + len(r.rows)]
            own = np.full_like(own, own[0]) if self._is_whole(r) else own
            start += len(r.rows)
            for part, mask in zip(parts, (~own, own), strict=True):
                if mask.any():
                    part.append(Rows(chunk=r.chunk, rows=r.rows[mask]))
        if not (parts[0] and parts[1]):
            raise DataError("nothing is left to train on, or to validate with. Give more data.")
        return Batches(self._samples, parts[0]), Batches(self._samples, parts[1])

    def epoch(self, batch_size: int, seed: int | None = None, epoch: int = 0) -> list[Rows]:
        """The batches of an epoch; in the data's own order without a seed."""
        rng = None if seed is None else np.random.default_rng([seed, 2, epoch])
        found = []
        for r in self.rows:
            is_kept = rng is None or self._is_whole(r)
            rows = r.rows if is_kept or rng is None else rng.permutation(r.rows)
            size = len(rows) if self._is_whole(r) else batch_size
            for start in range(0, len(rows), size):
                found.append(Rows(chunk=r.chunk, rows=rows[start : start + size]))
        if rng is None:
            return found
        return [found[i] for i in rng.permutation(len(found))]

    def read(self, batch: Rows) -> tuple[dict[str, Array], dict[str, Array]]:
        """Feeds and other arrays of a batch."""
        chunk = self._chunks[batch.chunk]
        if self._is_whole(batch):
            return dict(chunk.feeds), chunk.extras
        axes = chunk.feeds.axes
        feeds = {
            n: np.take(a, batch.rows, axes[n]) if n in axes else a for n, a in chunk.feeds.items()
        }
        return feeds, {n: a[batch.rows] if a.ndim else a for n, a in chunk.extras.items()}


def augmented(
    feeds: Mapping[str, Array],
    extras: Mapping[str, Array],
    augment: Augment,
    *,
    seed: int,
    step: int,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Feeds and other arrays of a batch as ``augment`` changes them; what it leaves out stays.

    Raises:
        UsageError: it fails, or gives something else than arrays of the same types and axes.
    """
    batch = {**extras, **feeds}
    copies = {n: a.copy() for n, a in batch.items()}
    try:
        found = {**batch, **augment(copies, np.random.default_rng([seed, 3, step]))}
    except Exception as error:
        kind = type(error).__name__
        raise UsageError(f"`augment` fails at step {step} ({kind}: {one_line(error)}).") from error
    for name, array in batch.items():
        changed = found[name]
        is_like = isinstance(changed, np.ndarray) and changed.dtype == array.dtype
        if not (is_like and changed.ndim == array.ndim and changed.shape[:1] == array.shape[:1]):
            got = f"{getattr(changed, 'dtype', type(changed).__name__)}"
            got += f" {list(getattr(changed, 'shape', []))}"
            raise UsageError(
                f"`augment` gives {name!r} as {got}, the batch has {array.dtype} "
                f"{list(array.shape)}. Keep the type, the axes and the samples."
            )
    changed_feeds, changed_extras = (
        {n: np.ascontiguousarray(found[n]) for n in names} for names in (feeds, extras)
    )
    return changed_feeds, changed_extras
