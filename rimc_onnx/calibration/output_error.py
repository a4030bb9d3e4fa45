# SPDX-License-Identifier: Apache-2.0
"""How far a model's outputs are from its teacher's on the samples of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.execution.array_file import forget_arrays, power
from rimc_onnx.execution.outputs import classes_axis
from rimc_onnx.execution.parallel import PART

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
        whole = _power(wanted)
        error = _power(given, wanted)
        variance = _variance(wanted) or whole
        if not (math.isfinite(whole) and variance > 0):
            continue
        if not errors:
            agreement = _agreement(list(zip(wanted, given, strict=True)))
        errors.append(error / variance if math.isfinite(error) else math.inf)
        told = 0 < error < math.inf
        sqnr_db[name] = 10 * math.log10(whole / error) if told else None
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


def _power(chunks: Chunks, beside: Chunks | None = None) -> float:
    """Sum of squares, or of those of the differences."""
    if beside is None:
        return sum(power(chunk) for chunk in chunks)
    return sum(power(chunk, other) for chunk, other in zip(chunks, beside, strict=True))


def _variance(chunks: Chunks) -> float:
    """Sum of squares about the mean over samples.

    Where samples differ in shape it is the mean over all but the last axis.
    """
    chunks = [chunk if chunk.ndim else chunk[None] for chunk in chunks]
    num_rows = sum(len(chunk) for chunk in chunks)
    if num_rows < 2:
        return 0.0
    shapes = {chunk.shape[1:] for chunk in chunks}
    if len(shapes) == 1:
        flat = [chunk.reshape(len(chunk), math.prod(chunk.shape[1:])) for chunk in chunks]
    elif len({shape[-1:] for shape in shapes}) == 1:
        flat = [chunk.reshape(-1, chunk.shape[-1]) for chunk in chunks]
        num_rows = sum(len(chunk) for chunk in flat)
    else:
        return 0.0
    together, total = max(1, PART // num_rows), 0.0
    for start in range(0, flat[0].shape[1], together):
        part = np.s_[:, start : start + together]
        values = np.concatenate([chunk[part].astype(np.float64) for chunk in flat])
        total += float(np.square(values - values.mean(axis=0)).sum())
        forget_arrays(chunks)
    return total


def _agreement(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    """Share of positions whose best class is the teacher's (:func:`.classes_axis`)."""
    same = total = 0
    for wanted, given in pairs:
        axis = classes_axis(wanted.shape)
        if axis is None:
            return None
        for one, other in zip(wanted, given, strict=True):
            best = one.argmax(axis - 1)
            same += int((best == other.argmax(axis - 1)).sum())
            total += best.size
            forget_arrays([wanted, given])
    return same / total if total else None
