# SPDX-License-Identifier: Apache-2.0
"""Ageing: the arrays of a file move along their own paths, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rimc_onnx import age, calibrate, convert, evaluate, inspect
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import Scaling, get_preset
from rimc_onnx.errors import ConfigError, ModelError, OutputError, UsageError
from rimc_onnx.ops import schema

Cli = Callable[..., Any]
WAN = get_preset("wan2022-aihwkit", scaling=Scaling.NODE, clip_sigma=math.inf)
"""A mapping that no time changes."""
DAY = 86400.0


def tensors(path: Path | str) -> dict[str, bytes]:
    model = onnx.load(path)
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def rram(path: Path | str) -> list[onnx.NodeProto]:
    nodes = onnx.load(path).graph.node
    return [n for n in nodes if n.domain == schema.DOMAIN and n.op_type.startswith("Rram")]


def times(path: Path | str) -> set[float]:
    return {a.f for n in rram(path) for a in n.attribute if a.name == "time_s"}


@pytest.fixture
def folder(digits_folder: Path) -> Path:
    """The sample, converted 1 s after programming."""
    convert(digits_folder / "model.onnx", config=ConvertConfig(device=WAN, seed=3))
    return digits_folder


def test_aged_file_is_the_one_that_convert_at_that_time_gives(folder: Path) -> None:
    # A second programming: fresh draws, or an error on top of the old one.
    report = age(folder / "model.rimc.onnx", time_s=DAY)
    assert report.output == str(folder / "model.rimc.aged.onnx")
    assert (report.time_s_before, report.time_s, report.nodes) == (1.0, DAY, 11)
    config = ConvertConfig(device=WAN, seed=3, time_s=DAY)
    convert(folder / "model.onnx", folder / "day.rimc.onnx", config=config)
    assert Path(report.output).read_bytes() == (folder / "day.rimc.onnx").read_bytes()
    assert times(report.output) == {DAY}
    model = onnx.load(report.output)
    assert {p.key: p.value for p in model.metadata_props}[schema.TIME_KEY] == "86400"
    assert inspect(report.output).time_s == DAY


def test_nodes_that_stay_digital_and_converters_make_no_difference(digits_folder: Path) -> None:
    # The teacher is prepared without the patterns of nodes that were kept digital.
    files = [digits_folder / f"{name}.rimc.onnx" for name in ("second", "day", "aged")]
    for path, time_s in zip(files, (1.0, DAY), strict=False):
        config = ConvertConfig(
            device=WAN,
            time_s=time_s,
            keep_digital=("*linear*",),
            periphery=PeripheryConfig(tile_rows=128, dac_bits=8, adc_bits=8),
        )
        convert(digits_folder / "model.onnx", path, config=config)
    age(files[0], files[2], time_s=DAY)
    assert files[2].read_bytes() == files[1].read_bytes()


def test_steps_through_other_times_leave_no_trace(folder: Path) -> None:
    # Time since the last step, taken for time since programming; and time can run back.
    age(folder / "model.rimc.onnx", folder / "day.onnx", time_s=DAY)
    age(folder / "day.onnx", folder / "hour.onnx", time_s=3600.0)
    age(folder / "model.rimc.onnx", folder / "straight.onnx", time_s=3600.0)
    assert (folder / "hour.onnx").read_bytes() == (folder / "straight.onnx").read_bytes()
    age(folder / "hour.onnx", folder / "back.onnx", time_s=1.0)
    assert (folder / "back.onnx").read_bytes() == (folder / "model.rimc.onnx").read_bytes()


@pytest.mark.parametrize("swappable", [False, True])
def test_adapters_of_a_calibrated_model_are_not_touched(folder: Path, swappable: bool) -> None:
    # Calibrated, then aged: that is what happens to a chip in the field.
    calibrated = calibrate(
        folder / "model.rimc.onnx", config=CalibrateConfig(num_samples=10), swappable=swappable
    ).output
    report = age(calibrated, time_s=DAY)
    assert report.output == str(folder / "model.rimc.calibrated.aged.onnx")
    before, after = tensors(calibrated), tensors(report.output)
    arrays = {n.input[1] for n in rram(calibrated)}
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == arrays
    age(folder / "model.rimc.onnx", folder / "day.rimc.onnx", time_s=DAY)
    assert {n: after[n] for n in arrays} == {
        n: v for n, v in tensors(folder / "day.rimc.onnx").items() if n in arrays
    }
    # it still runs, and a calibration of the old device is worth something on the older one
    top1 = evaluate(report.output, data=str(folder / "test.npz")).top1
    drifted = evaluate(folder / "day.rimc.onnx", data=str(folder / "test.npz")).top1
    assert top1 is not None
    assert drifted is not None
    assert top1 > drifted


def test_aged_model_can_be_calibrated_again(folder: Path) -> None:
    # The teacher's path is written relative to the new file.
    (folder / "sub").mkdir()
    aged = age(folder / "model.rimc.onnx", folder / "sub" / "old.rimc.onnx", time_s=DAY).output
    report = calibrate(
        aged, data=str(folder / "calibration.npz"), config=CalibrateConfig(num_samples=5)
    )
    # Within the budget some nodes get no adapter: their error is the same up to rounding.
    errors = [(n.error_before, n.error_after) for n in report.nodes]
    assert all(after <= before * (1 + 1e-6) for before, after in errors)
    assert sum(after for _, after in errors) < 0.7 * sum(before for before, _ in errors)


def test_weights_in_the_aged_file_are_finite_and_moved(folder: Path) -> None:
    report = age(folder / "model.rimc.onnx", time_s=DAY)
    for node in rram(report.output):
        new = np.frombuffer(tensors(report.output)[node.input[1]], np.float32)
        old = np.frombuffer(tensors(folder / "model.rimc.onnx")[node.input[1]], np.float32)
        assert np.isfinite(new).all()
        assert (new != old).mean() > 0.9


def test_model_without_a_time_axis_is_refused(digits_job: Path) -> None:
    with pytest.raises(ConfigError, match="'gaussian-relative' has no time axis"):
        age(digits_job / "model.rimc.onnx", time_s=DAY)
    assert not (digits_job / "model.rimc.aged.onnx").exists()


def test_time_beyond_the_law_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"time_s must lie in 1 s \.\. 2 d"):
        age(folder / "model.rimc.onnx", time_s=30 * DAY)


def test_plain_model_and_other_faults_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"not a converted model\. Run rimc-onnx convert first"):
        age(folder / "model.onnx", time_s=DAY)
    with pytest.raises(UsageError, match="is the model itself"):
        age(folder / "model.rimc.onnx", folder / "model.rimc.onnx", time_s=DAY)
    (folder / "model.rimc.aged.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        age(folder / "model.rimc.onnx", time_s=DAY)
    assert (folder / "model.rimc.aged.onnx").read_bytes() == b"mine"


def test_other_teacher_is_refused(folder: Path) -> None:
    # Targets of other weights: a device that never was.
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, folder / "other.onnx")
    with pytest.raises(ModelError, match=r"is not the file that .* was converted from"):
        age(folder / "model.rimc.onnx", time_s=DAY, teacher=folder / "other.onnx")
    with pytest.raises(ModelError, match="largest weight is not the one"):
        age(folder / "model.rimc.onnx", time_s=DAY, teacher=folder / "other.onnx", force=True)


def test_teacher_of_another_shape_is_refused(
    folder: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    onnx.save(matmul_model(np.eye(4, dtype=np.float32)), folder / "other.onnx")
    with pytest.raises(ModelError, match="is not in the teacher, so its arrays can't be aged"):
        age(folder / "model.rimc.onnx", time_s=DAY, teacher=folder / "other.onnx", force=True)


def test_mapping_options_and_own_models_age_as_well(folder: Path) -> None:
    # An option that the file does not record: the arrays would come from other targets.
    device = get_preset(
        "cmo-hfox-2025-2pct",
        scaling=Scaling.NODE,
        clip_sigma=2.5,
        level_bits=4,
        num_slices=2,
        devices_per_weight=2,
        stuck_max_frac=0.01,
        read_noise_curve=None,  # slices can't have one
    )
    paths = [folder / f"{name}.rimc.onnx" for name in ("hour", "new", "aged")]
    for path, time_s in zip(paths, (3600.0, None), strict=False):
        config = ConvertConfig(device=device, time_s=time_s)
        convert(folder / "model.onnx", path, config=config)
    age(paths[1], paths[2], time_s=3600.0)
    assert paths[0].read_bytes() == paths[2].read_bytes()


# ---------------------------------------------------------------------------------- command line


def test_command_ages_and_says_from_when_to_when(cli: Cli, folder: Path) -> None:
    result = cli("age", "model.rimc.onnx", "--time", "1d", cwd=folder)
    assert result.code == 0
    assert "from 1 s to 1 d after programming; wan2022-aihwkit, seed 3" in result.stdout
    assert result.stdout.splitlines()[-1] == "wrote model.rimc.aged.onnx"
    report = cli("age", "model.rimc.onnx", "--time", "1h", "--force", "--json", cwd=folder).json()
    assert (report["time_s_before"], report["time_s"]) == (1.0, 3600.0)


def test_convert_takes_time_faults_and_mapping(cli: Cli, digits_folder: Path) -> None:
    # An option that is parsed and forgotten.
    options = ["--device", "wan2022-aihwkit", "--time", "1d", "--stuck-min", 0.01, "--stuck-max"]
    options += [0.02, "--clip-sigma", 2.5, "--level-bits", 4, "--slices", 2]
    options += ["--devices-per-weight", 2]
    report = cli("convert", "model.onnx", *options, "--json", cwd=digits_folder).json()
    assert report["time_s"] == DAY
    device = cli("inspect", "model.rimc.onnx", "--json", cwd=digits_folder).json()["device"]
    assert (device["stuck_min_frac"], device["stuck_max_frac"]) == (0.01, 0.02)
    assert (device["clip_sigma"], device["level_bits"], device["num_slices"]) == (2.5, 4, 2)
    assert device["devices_per_weight"] == 2
    text = cli("inspect", "model.rimc.onnx", cwd=digits_folder).stdout
    assert "time_s = 86400, 1 d after programming" in text


def test_convert_takes_a_file_of_ones_own(cli: Cli, digits_folder: Path, fails: Any) -> None:
    text = 'law = "gaussian-absolute"\ndrift_frac = 0.05\nscaling = "column"\n'
    (digits_folder / "mine.toml").write_text(text)
    options = ["--device", "mine.toml", "--json"]
    report = cli("convert", "model.onnx", *options, cwd=digits_folder).json()
    assert report["device"] == "mine"
    assert report["time_s"] is None
    device = cli("inspect", "model.rimc.onnx", "--json", cwd=digits_folder).json()["device"]
    assert (device["drift_frac"], device["scaling"]) == (0.05, "column")
    (digits_folder / "mine.toml").write_text(text + "g_max_ms = 1\n")
    line = fails(digits_folder, 2, "convert", "model.onnx", "--device", "mine.toml", "--force")
    assert "mine.toml: device configuration has no field 'g_max_ms': its unit is _us" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "model.onnx", "--time", "1d"), "'gaussian-relative' has no time axis"),
        (("convert", "model.onnx", "--time", "soon"), "'soon' is not a time since programming"),
        (
            ("convert", "model.onnx", "--device", "wan2022-aihwkit", "--time", "1y"),
            "time_s must lie in 1 s .. 2 d",
        ),
        (("convert", "model.onnx", "--stuck-min", "2"), "need 0 <= stuck_min_frac <= 1"),
        (("convert", "model.onnx", "--slices", "2"), "num_slices 2 needs level_bits"),
        (
            ("convert", "model.onnx", "--device", "milo2021", "--drift", "0.2"),
            "--drift belongs to the gaussian presets",
        ),
        (("age", "model.rimc.onnx"), "Missing option '--time'"),
        (("devices", "wann"), "device preset 'wann' is not known"),
        (("devices", "none.toml"), "none.toml: can't be read"),
    ],
)
def test_wrong_call_is_one_line(
    arguments: tuple[str, ...], message: str, folder: Path, fails: Callable[..., str]
) -> None:
    assert message in fails(folder, 2, *arguments)


def test_devices_command_lists_and_describes(cli: Cli, tmp_path: Path) -> None:
    text = cli("devices", cwd=tmp_path).stdout
    assert "wan2022-aihwkit" in text
    assert "1 s .. 2 d" in text
    found = cli("devices", "--json", cwd=tmp_path).json()["devices"]
    assert found[0]["name"] == "gaussian-relative"
    one = cli("devices", "milo2021", "--json", cwd=tmp_path).json()
    assert one == next(d for d in found if d["name"] == "milo2021")
    assert "source: Milo et al., IRPS 2021" in cli("devices", "milo2021", cwd=tmp_path).stdout
    # curves inside a law, one line a parameter
    lines = cli("devices", "wan2022-aihwkit", cwd=tmp_path).stdout.splitlines()
    assert "  time_law.sigma_us[1].g_ref_us = 40.0" in lines
