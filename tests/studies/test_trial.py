# SPDX-License-Identifier: Apache-2.0
"""Keys of trials: equal for equal results, different for everything that changes one."""

from __future__ import annotations

import math
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset, list_presets
from rimc_onnx.io.model_files import sha256_of
from rimc_onnx.studies.trial import MEASURED, BaselineMethod, Keys, Trial, keys_of
from rimc_onnx.training.config import FinetuneConfig


def keys(trial: Trial) -> Keys:
    return keys_of(trial, sha256_of)


@pytest.fixture
def trial(digits_folder: Path) -> Trial:
    return Trial(model=digits_folder / "model.onnx", test=digits_folder / "test.npz")


PROGRAM = """
import sys
from pathlib import Path
from rimc_onnx.io.model_files import sha256_of
from rimc_onnx.studies.trial import Trial, keys_of
folder = Path(sys.argv[1])
print(keys_of(Trial(model=folder / "model.onnx", test=folder / "test.npz"), sha256_of))
"""


def test_keys_are_those_of_another_process_and_place(
    trial: Trial, digits_folder: Path, tmp_path: Path
) -> None:
    # Python's own hash, the order of a set, a path or a time of a file: every run anew.
    other = Path(shutil.copytree(digits_folder, tmp_path / "elsewhere"))
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(other)],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert found == str(keys(trial))
    assert keys(pickle.loads(pickle.dumps(trial))) == keys(trial)


def test_what_changes_a_result_changes_the_key(trial: Trial) -> None:
    # A field that is left out: one trial's row for another's.
    device = get_preset("gaussian-relative", drift_frac=0.1)
    others = [
        trial,
        replace(trial, convert=ConvertConfig(seed=1)),
        replace(trial, convert=ConvertConfig(device=device)),
        replace(trial, convert=ConvertConfig(device=replace(device, clip_sigma=math.inf))),
        replace(trial, convert=ConvertConfig(periphery=PeripheryConfig(adc_bits=8, dac_bits=8))),
        *(
            replace(trial, convert=ConvertConfig(device=preset.config))
            for name, preset in list_presets().items() if name != "gaussian-relative"
        ),
        replace(trial, method=None),
        replace(trial, method=CalibrateConfig(num_samples=9)),
        replace(trial, method=CalibrateConfig(sample_seed=1)),
        replace(trial, method=CalibrateConfig(read_out=True)),
        replace(trial, method=BaselineMethod(name="a")),
        replace(trial, method=BaselineMethod(name="a", options={"epochs": 2})),
        replace(trial, statistics=MEASURED, method=CalibrateConfig(read_out=True)),
        replace(trial, training=FinetuneConfig()),
        replace(trial, labels="labels"),
        replace(trial, metric="some.module:metric"),
        replace(trial, test={"input": np.zeros((3, 1, 8, 8), np.float32)}),
        replace(trial, test={"input": np.ones((3, 1, 8, 8), np.float32)}),
        replace(trial, test="some.module:reader"),
    ]  # fmt: skip
    found = [keys(t).trial for t in others]
    assert len(set(found)) == len(found)
    uncalibrated = keys(replace(trial, method=None))
    assert uncalibrated.converted == keys(trial).converted
    assert keys(others[1]).clean == keys(others[0]).clean != keys(others[-1]).clean


def test_changed_files_change_the_key(trial: Trial, digits_folder: Path) -> None:
    # A row of yesterday's network, or of other samples, under today's name.
    before = keys(trial)
    with np.load(digits_folder / "calibration.npz") as file:
        np.savez(digits_folder / "calibration.npz", **{n: a[1:] for n, a in file.items()})
    other = keys(trial)
    assert (other.trial, other.clean) != (before.trial, before.clean)
    assert other.clean == before.clean
    assert other.converted == before.converted  # it takes no samples that it is not given
    with (digits_folder / "model.onnx").open("ab") as model:
        model.write(b"")
    assert keys(trial) == other
    (digits_folder / "model.onnx").write_bytes((digits_folder / "test.npz").read_bytes())
    assert keys(trial).clean != before.clean
