# SPDX-License-Identifier: Apache-2.0
"""Teacher statistics in a file: measured once and shipped, so that no field sample is needed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.problem import Statistics, TeacherKnowledge
from rimc_onnx.errors import CalibrationError
from rimc_onnx.execution.feed import Feed
from rimc_onnx.io.arrays import ArraysError, read_npz
from rimc_onnx.io.outputs import Outputs

__all__ = ["read_statistics", "write_statistics"]

Array = npt.NDArray[Any]

_FORMAT = 4
_HEADER = "rimc.statistics"
_REFERENCE = "rimc.reference/"
_GARBLED = (KeyError, ValueError, TypeError, IndexError, AttributeError)
"""What reading arrays that are not as they were written can end in."""
_PARTS = ("x_mean", "x_cov", "y_mean", "y_variance", "x_abs_max", "row_limit", "sensitivity")
_MOST = 1e18
"""Of a mean or a power: products of two have room in float32."""
_LEAST_LIMIT = 1e-6
"""Of a node's power; a limit is a multiple of what most rows have."""
_MAY_BE_UNKNOWN = ("/row_limit", "/sensitivity")
"""NaN or infinite where there is none."""


def write_statistics(
    path: Path, knowledge: TeacherKnowledge, *, teacher_sha256: str, force: bool
) -> None:
    """Write an .npz with ``<node>/<part>`` arrays; of the symmetric x_cov the upper half.

    Raises:
        CalibrationError: a statistic is NaN or infinite.
        OutputError: the file exists and ``force`` is False, or the disk refuses.
    """
    arrays: dict[str, Array] = {
        _HEADER: np.array([str(_FORMAT), teacher_sha256]),
    }
    for index, feed in enumerate(knowledge.reference):
        run = f"{_REFERENCE}{index}:{feed.num_samples}/"
        arrays |= {f"{run}{name}": array for name, array in feed.items()}
    for node, known in knowledge.statistics.items():
        x_cov = known.x_cov.dense()
        upper = np.triu_indices(x_cov.shape[1])
        arrays |= {
            f"{node}/x_mean": known.x_mean,
            f"{node}/x_cov": x_cov[:, upper[0], upper[1]],
            f"{node}/y_mean": known.y_mean,
            f"{node}/y_variance": known.y_variance,
            f"{node}/x_abs_max": np.array(known.x_abs_max, np.float32),
            f"{node}/row_limit": np.array(known.row_limit),
            f"{node}/sensitivity": np.array(
                np.nan if known.sensitivity is None else known.sensitivity
            ),
        }
    for name, array in arrays.items():
        is_number = array.dtype.kind == "f" and not name.endswith(_MAY_BE_UNKNOWN)
        if is_number and not np.isfinite(array).all():
            raise CalibrationError(
                f"{path}: {name} would hold NaN or infinity. Look at the samples."
            )
    with Outputs(force=force) as out, (out.folder(path) / path.name).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_statistics(path: Path, *, teacher_sha256: str) -> TeacherKnowledge:
    """What :func:`write_statistics` wrote.

    Raises:
        CalibrationError: no such file, not a statistics file, or one of another teacher.
    """
    garbled = f"{path}: not a statistics file. Write it with rimc-onnx statistics."
    try:
        arrays = read_npz(path)
        version, digest = arrays.pop(_HEADER)
        written = int(version)
    except ArraysError as error:
        what = "no such file" if not os.path.exists(path) else f"not a statistics file ({error})"
        raise CalibrationError(f"{path}: {what}. Write it with rimc-onnx statistics.") from error
    except _GARBLED as error:
        raise CalibrationError(garbled) from error
    if written > _FORMAT:
        raise CalibrationError(f"{path}: written by a newer rimc-onnx. Update this one.")
    if written < _FORMAT:
        raise CalibrationError(
            f"{path}: written by an older rimc-onnx. Write it again with rimc-onnx statistics."
        )
    if digest != teacher_sha256:
        raise CalibrationError(
            f"{path}: these are statistics of another teacher (its sha256 differs). "
            "Write them with rimc-onnx statistics from this model's teacher."
        )
    try:
        return TeacherKnowledge(
            reference=_take_reference(arrays),
            statistics={
                node: _read_node(arrays, node) for node in {n.rpartition("/")[0] for n in arrays}
            },
        )
    except _GARBLED as error:
        raise CalibrationError(garbled) from error


def _take_reference(arrays: dict[str, Array]) -> list[Feed]:
    """The samples, taken out of ``arrays``."""
    feeds: dict[int, Feed] = {}
    for name in [name for name in arrays if name.startswith(_REFERENCE)]:
        run, _, value = name.removeprefix(_REFERENCE).partition("/")
        index, _, num_samples = run.partition(":")
        feed = feeds.setdefault(int(index), Feed({}, num_samples=int(num_samples)))
        feed[value] = arrays.pop(name)
    if any(feed.num_samples < 1 for feed in feeds.values()):
        raise ValueError("a run of no sample")
    return [feeds[index] for index in sorted(feeds)]


def _read_node(arrays: dict[str, Array], node: str) -> Statistics:
    parts = [arrays[f"{node}/{part}"] for part in _PARTS]
    x_mean, half, y_mean, y_variance, x_abs_max, row_limit, sensitivity = parts
    for part in parts[: -len(_MAY_BE_UNKNOWN)]:
        is_usable = part.dtype.kind == "f" and (np.abs(part) <= _MOST).all()
        if not is_usable:
            raise ValueError(f"{node}: no numbers, or such that have no squares")
    power = float(np.sum(y_variance, dtype=np.float64) + np.square(y_mean, dtype=np.float64).sum())
    if 0 < row_limit < _LEAST_LIMIT * power:
        raise ValueError(f"{node}: a limit that no row is within")
    group, depth = x_mean.shape
    upper = np.triu_indices(depth)
    x_cov = np.zeros((group, depth, depth), np.float32)
    x_cov[:, upper[0], upper[1]] = half
    x_cov[:, upper[1], upper[0]] = half
    return Statistics(
        x_mean=x_mean,
        x_cov=Gram(matrix=x_cov),
        y_mean=y_mean,
        y_variance=y_variance,
        x_abs_max=float(x_abs_max),
        row_limit=float(row_limit) if row_limit > 0 else math.inf,
        sensitivity=None if np.isnan(sensitivity) else float(sensitivity),
    )
