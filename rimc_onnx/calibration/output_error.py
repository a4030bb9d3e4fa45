# SPDX-License-Identifier: Apache-2.0
"""How far a model's outputs are from its teacher's on the samples of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OutputFigures", "output_figures"]

Array = npt.NDArray[Any]
Chunks = Sequence[Array]


@dataclass(frozen=True, kw_only=True)
class OutputFigures:
    """Outputs of one model beside the teacher's; what can't be told is ``None``."""

    error: float | None
    """Error power over the variance of the teacher's output, mean over floating-point outputs;
    infinite where an output is not finite."""
    agreement: float | None
    """Share of the largest values of the first output that are the teacher's."""
    sqnr_db: dict[str, float | None]
    """Teacher power over error power of every floating-point output, dB; ``None`` where there is no
    error, or no end of it."""


def output_figures(teacher: Mapping[str, Chunks], student: Mapping[str, Chunks]) -> OutputFigures:
    """Compare outputs by name, chunk by chunk; those that either lacks are left out.

    Of one sample, and of outputs that are the same for all samples, the variance is their power.
    """
    errors: list[float] = []
    sqnr_db: dict[str, float | None] = {}
    agreement = None
    for name, wanted in teacher.items():
        given = student.get(name)
        if given is None or not _are_comparable(wanted, given):
            continue
        pairs = [
            (t.astype(np.float64), o.astype(np.float64)) for t, o in zip(wanted, given, strict=True)
        ]
        power = sum(float(np.square(t).sum()) for t, _ in pairs)
        error = sum(float(np.square(o - t).sum()) for t, o in pairs)
        variance = _variance([t for t, _ in pairs]) or power
        if not (math.isfinite(power) and variance > 0):
            continue
        if not errors:
            agreement = _agreement(pairs)
        errors.append(error / variance if math.isfinite(error) else math.inf)
        told = 0 < error < math.inf
        sqnr_db[name] = 10 * math.log10(power / error) if told else None
    return OutputFigures(
        error=sum(errors) / len(errors) if errors else None,
        agreement=agreement,
        sqnr_db=sqnr_db,
    )


def _are_comparable(wanted: Chunks, given: Chunks) -> bool:
    """True for floating-point arrays of the same shapes; a sequence is none."""
    pairs = list(zip(wanted, given, strict=True))
    return bool(pairs) and all(
        isinstance(t, np.ndarray)
        and isinstance(o, np.ndarray)
        and np.issubdtype(t.dtype, np.floating)
        and t.shape == o.shape
        for t, o in pairs
    )


def _variance(chunks: Chunks) -> float:
    """Sum of squares about the mean over samples.

    Where samples differ in shape it is the mean over all but the last axis.
    """
    rows = [row for chunk in chunks for row in (chunk if chunk.ndim else chunk[None])]
    if len(rows) < 2:
        return 0.0
    if len({row.shape for row in rows}) == 1:
        values = np.stack(rows)
    elif len({row.shape[-1:] for row in rows}) == 1:
        values = np.concatenate([row.reshape(-1, row.shape[-1]) for row in rows])
    else:
        return 0.0
    return float(np.square(values - values.mean(axis=0)).sum())


def _agreement(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    """Share of positions whose best class is the teacher's.

    Classes are the last axis that is longer than 1, of image-shaped outputs the axis after the
    samples.
    """
    same = total = 0
    for wanted, given in pairs:
        shape = wanted.shape
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        axis = 1 if len(shape) > 3 else len(shape) - 1
        if axis < 1 or shape[axis] < 2:
            return None
        best = wanted.reshape(shape).argmax(axis)
        same += int((best == given.reshape(shape).argmax(axis)).sum())
        total += best.size
    return same / total if total else None
