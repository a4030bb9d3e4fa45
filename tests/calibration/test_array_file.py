# SPDX-License-Identifier: Apache-2.0
"""Outputs of a teacher that wait in a file for those of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimc_onnx import calibrate, convert
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.output_error import output_figures
from rimc_onnx.execution import array_file
from rimc_onnx.execution.array_file import ArrayFile, forget_arrays


def _outputs() -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return [random.standard_normal((n, 7, 30)).astype(np.float32) for n in (2, 3)]


def test_figures_do_not_depend_on_where_outputs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    # An offset that counts an array twice; pages that are given back and read as zeros.
    teacher, student = _outputs(), [y + np.float32(0.1) for y in _outputs()]
    wanted = output_figures({"y": teacher}, {"y": student})
    monkeypatch.setattr(array_file, "_HELD_BYTES", 0)
    file = ArrayFile()
    waiting = [file.keep(chunk, 2) for chunk in teacher]
    file.close()
    assert all(isinstance(chunk, np.memmap) for chunk in waiting)
    for _ in range(2):  # the first comparison forgets the pages
        assert output_figures({"y": waiting}, {"y": student}) == wanted
    forget_arrays([*waiting, *teacher, "a sequence"])
    for chunk, given in zip(waiting, teacher, strict=True):
        np.testing.assert_array_equal(chunk, given)


def test_what_is_small_or_no_array_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small models would map a file for each output; lists of a sequence have no bytes.
    file, large = ArrayFile(), np.zeros(1 << 20, np.float32)
    assert file.keep(large, 32) is large
    assert isinstance(file.keep(large, 33), np.memmap), "together they are above the bound"
    monkeypatch.setattr(array_file, "_HELD_BYTES", 0)
    values: list[Any] = [np.array(["a", "b"], object), ["sequence"], np.zeros((0, 3), np.int64)]
    for value in values:
        assert file.keep(value, 10) is value
    scalar = file.keep(np.array(2.5, np.float16), 10)
    assert scalar.shape == ()
    assert scalar == 2.5
    file.close()


def test_a_calibration_is_the_same_with_all_values_in_files(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run that can't read mapped values, or one that writes into them.
    convert(digits_folder / "model.onnx", digits_folder / "m.rimc.onnx")
    found = []
    for held_bytes in (1 << 30, 0):
        monkeypatch.setattr(array_file, "_HELD_BYTES", held_bytes)
        target = digits_folder / f"{held_bytes}.onnx"
        calibrate(digits_folder / "m.rimc.onnx", target, config=CalibrateConfig(num_samples=3))
        found.append(target.read_bytes())
    assert found[0] == found[1]


def test_arrays_are_told_apart() -> None:
    # A shape or type that is lost, a second array over the first.
    arrays = [*_outputs(), np.arange(5), np.arange(6, dtype=np.uint8).reshape(2, 3)]
    file = ArrayFile()
    places = [file.write(array) for array in arrays]
    for place, array in zip(reversed(places), reversed(arrays), strict=True):
        found = file.read(place)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    file.close()
