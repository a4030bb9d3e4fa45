# SPDX-License-Identifier: Apache-2.0
"""Device models in TOML files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rimc_onnx.device import (
    DeviceConfig,
    DriftLaw,
    Scaling,
    describe_device,
    get_preset,
    list_devices,
    list_presets,
    load_device,
    program,
)
from rimc_onnx.errors import ConfigError

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "devices" / "own.toml"


def load(tmp_path: Path, text: str, **overrides: object) -> DeviceConfig:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return load_device(path, **overrides)


def test_sample_file_is_a_model_that_programs_and_ages() -> None:
    config = load_device(SAMPLE)
    assert (config.preset, config.law) == ("own-1t1r", DriftLaw.MEASURED)
    assert (config.g_min_us, config.g_max_us, config.stuck_min_frac) == (2.0, 48.0, 0.001)
    assert config.time_range_s == (1.0, 2592000.0)
    # points are met, and lines lie between them
    g = np.array([2.0, 12.0, 18.5, 25.0, 50.0])
    np.testing.assert_allclose(config.programming_sigma(g), [0.6, 1.5, 1.7, 1.9, 1.2], rtol=1e-14)
    # the month's spread at mid conductance: 25 uS is w = 23/48; 4.5 standard errors of 100,000, and
    # 0.1 % of the devices are stuck, which cannot be told from sigma: left out
    sound = load_device(SAMPLE, stuck_min_frac=0.0)
    n = 100_000
    w = np.concatenate([np.full(n, 23 / 48), [1.0]]).astype(np.float32)
    got = program(w, node="n", seed=1, config=sound, column_axis=0, time_s=2592000.0)
    error_us = (got.w_realised[:n].astype(np.float64) - w[:n]) * 48
    # the partner at 2 uS, 1.1 uS spread, is clipped at zero
    rng = np.random.default_rng(0)
    partner = np.maximum(0, 2 + 1.1 * rng.standard_normal(4_000_000)).std()
    want = np.hypot(3.3, partner)
    assert abs(error_us.std() - want) < 4.5 * want / np.sqrt(2 * n) + 2e-3
    assert DeviceConfig.from_json(config.to_json()) == config.closed


def test_file_of_two_lines_is_enough(tmp_path: Path) -> None:
    config = load(tmp_path, 'law = "gaussian-absolute"\ndrift_frac = 0.05\n')
    assert config == DeviceConfig(preset="mine", law=DriftLaw.GAUSSIAN_ABSOLUTE, drift_frac=0.05)


def test_file_can_start_from_a_preset(tmp_path: Path) -> None:
    config = load(tmp_path, 'base = "wan2022-aihwkit"\ng_max_us = 30\nscaling = "column"\n')
    assert config.preset == "mine"
    assert config.time_law == get_preset("wan2022-aihwkit").time_law
    assert (config.g_max_us, config.scaling) == (30.0, Scaling.COLUMN)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, 'law = "gaussian-absolute"\ndrift_frac = 0.05\n', drift_frac=0.3)
    assert config.drift_frac == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # the unit of another system is the mistake to expect
        ("g_max_ns = 40000", r"no field 'g_max_ns': its unit is _us \(microsiemens\).*'g_max_us'"),
        ("stuck_min_percent = 1", r"its unit is _frac \(a fraction, .*write 'stuck_min_frac'"),
        ("g_maxx_us = 40", r"no field 'g_maxx_us'\. Did you mean 'g_max_us'"),
        ("drift = 0.2", r"no field 'drift': its unit is _frac .*write 'drift_frac'"),
        ("drift_frac = 20", r"need 0 <= drift_frac <= 1, got 20\.0 \(a fraction: 20 % is 0\.2\)"),
        ('g_max_us = "40"', "g_max_us must be a finite number, got '40'"),
        ('base = "wan"', r"preset 'wan' is not known\. Known: .*wan2022-"),
        ("g_range_us = [40, 0]", "g_range_us must be two rising numbers"),
        ('[time_law]\nkind = "log"', r"time_law: kind 'log' is not known\. Known: log-relaxation"),
        (
            '[time_law]\nkind = "log-relaxation"\nt0_h = 1\nt_max_s = 10',
            r"time_law \(log-relaxation\) has no field 't0_h': its unit is _s \(seconds\)",
        ),
        ('[time_law]\nkind = "power-decay"\nt0_s = 1', "lacks nu_mean, nu_sigma, t_max_s"),
        (
            '[time_law]\nkind = "power-decay"\nt0_s = 1\nt_max_s = 10\nnu_sigma = 0\n'
            'nu_mean = {kind = "points", g_us = [1, 1], values = [0, 0]}',
            r"points curve: g_us must rise, got \[1\.0, 1\.0\]",
        ),
        (
            '[time_law]\nkind = "sigma-at-times"\nt0_s = 1\ntimes_s = [10]',
            "needs a sigma_us for each of 1 times_s",
        ),
        ("g_max_us = ", "not TOML"),
    ],
)
def test_fault_in_a_file_is_one_line_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    law = "" if text.startswith("base") else 'law = "gaussian-relative"\n'
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, law + text)
    assert str(error.value).startswith(str(tmp_path / "mine.toml"))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('law = "measured"', "programming_sigma_us goes with law 'measured'.*missing"),
        ("g_max_us = 40", "lacks law"),
        ('law = "gaussian-relative"\nprogramming_sigma_us = 1.0', "goes with law 'measured'"),
        (
            'law = "measured"\n[programming_sigma_us]\nkind = "polynomial"\ng_ref = 4',
            "has no field 'g_ref': its unit is _us .*write 'g_ref_us'",
        ),
        (
            'law = "measured"\n[programming_sigma_us]\nkind = "polynomial"\ncoefficients = []',
            "coefficients must have 1 value or more",
        ),
        (
            'law = "measured"\n[programming_sigma_us]\nkind = "saturating"\namplitude = 1\n'
            "g_scale_us = 0",
            "g_scale_us must be above 0",
        ),
    ],
)
def test_incomplete_model_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: can't be read \(No such file"):
        load_device(tmp_path / "none.toml")


def test_every_preset_is_described() -> None:
    found = list_devices()
    assert [d.name for d in found] == list(list_presets())
    for device in found:
        assert device.parameters["preset"] == device.name
        assert device.source == list_presets()[device.name].source
        assert device.time_range_s == list_presets()[device.name].config.time_range_s
    assert describe_device(str(SAMPLE)).source == "made up, see docs/devices.md"
