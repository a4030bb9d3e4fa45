# SPDX-License-Identifier: Apache-2.0
"""Teacher statistics in a file: measured once and shipped, so that no field sample is needed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.calibration.problem import Statistics
from rimc_onnx.errors import CalibrationError
from rimc_onnx.files import output_folder

__all__ = ["read_statistics", "write_statistics"]

_FORMAT = 1
_HEADER = "rimc.statistics"
_GARBLED = (KeyError, ValueError, TypeError, IndexError, AttributeError)
"""What reading arrays that are not as they were written can end in."""
_PARTS = ("x_mean", "x_cov", "y_mean", "y_variance", "x_abs_max")


def write_statistics(
    path: Path, statistics: dict[str, Statistics], *, teacher_sha256: str, force: bool
) -> None:
    """Write an .npz with ``<node>/<part>`` arrays; of the symmetric x_cov the upper half.

    Raises:
        OutputError: the file exists and ``force`` is False, or the disk refuses.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        _HEADER: np.array([str(_FORMAT), teacher_sha256]),
    }
    for node, known in statistics.items():
        upper = np.triu_indices(known.x_cov.shape[1])
        arrays |= {
            f"{node}/x_mean": known.x_mean,
            f"{node}/x_cov": known.x_cov[:, upper[0], upper[1]],
            f"{node}/y_mean": known.y_mean,
            f"{node}/y_variance": known.y_variance,
            f"{node}/x_abs_max": np.array(known.x_abs_max, np.float32),
        }
    with output_folder(path, force=force) as folder, (folder / path.name).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_statistics(path: Path, *, teacher_sha256: str) -> dict[str, Statistics]:
    """What :func:`write_statistics` wrote.

    Raises:
        CalibrationError: no such file, not a statistics file, or one of another teacher.
    """
    if not path.is_file():
        raise CalibrationError(f"{path}: no such file. Write it with rimc-onnx statistics.")
    garbled = f"{path}: not a statistics file. Write it with rimc-onnx statistics."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        version, digest = arrays.pop(_HEADER)
        newer = int(version) > _FORMAT
    except (*_GARBLED, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(garbled) from error
    if newer:
        raise CalibrationError(f"{path}: written by a newer rimc-onnx. Update this one.")
    if digest != teacher_sha256:
        raise CalibrationError(
            f"{path}: these are statistics of another teacher (its sha256 differs). "
            "Write them with rimc-onnx statistics from this model's teacher."
        )
    try:
        return {node: _read_node(arrays, node) for node in {n.rpartition("/")[0] for n in arrays}}
    except _GARBLED as error:
        raise CalibrationError(garbled) from error


def _read_node(arrays: dict[str, npt.NDArray[Any]], node: str) -> Statistics:
    x_mean, half, y_mean, y_variance, x_abs_max = (arrays[f"{node}/{part}"] for part in _PARTS)
    group, depth = x_mean.shape
    upper = np.triu_indices(depth)
    x_cov = np.zeros((group, depth, depth), np.float32)
    x_cov[:, upper[0], upper[1]] = half
    x_cov[:, upper[1], upper[0]] = half
    return Statistics(
        x_mean=x_mean, x_cov=x_cov, y_mean=y_mean, y_variance=y_variance, x_abs_max=float(x_abs_max)
    )
