# SPDX-License-Identifier: Apache-2.0
"""Time is a path of each device: a later time continues an earlier one."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.device import (
    DeviceConfig,
    DriftLaw,
    Purpose,
    get_preset,
    list_presets,
    program,
    standard_normals,
)
from rimc_onnx.device.time_laws import LogRelaxation
from rimc_onnx.errors import ConfigError

DAY = 86400.0
N = 100_000
HALF = np.concatenate([np.full(N, 0.5), [1.0]]).astype(np.float32)
AGEING = [n for n, p in list_presets().items() if (p.config.time_range_s or (0, 0))[1] > 1.0]


def shift(name: str | DeviceConfig, time_s: float | None, seed: int = 0) -> np.ndarray:
    """Error in microsiemens of weights at half scale."""
    config = get_preset(name) if isinstance(name, str) else name
    got = program(HALF, node="n", seed=seed, config=config, column_axis=0, time_s=time_s)
    return (got.w_realised[:N].astype(np.float64) - 0.5) * config.g_max_us


def test_a_day_continues_a_second() -> None:
    # A fresh draw at every time: the errors of 1 s and 1 d would be independent. In both devices
    # var(1 d) = var(1 s) + drift, so their correlation is sigma(1 s) / sigma(1 d); the partner's
    # zero device is clipped, which keeps that to 2 %. 4 standard errors of 1 / sqrt(N).
    second, day, two_days = (shift("wan2022-aihwkit", t) for t in (1.0, DAY, 2 * DAY))
    found = np.corrcoef(second, day)[0, 1]
    assert found == pytest.approx(second.std() / day.std(), abs=0.02 + 4 / np.sqrt(N))
    # and each device keeps the direction it drifts in
    assert np.corrcoef(day - second, two_days - second)[0, 1] > 0.99


@pytest.mark.parametrize("name", AGEING)
def test_path_has_no_jumps(name: str) -> None:
    # A draw that depends on the time: neighbouring times then differ by whole standard deviations.
    first, last = get_preset(name).time_range_s or (0.0, 0.0)
    middle = max(1.0, (first + last) / 3)
    a, b = shift(name, middle), shift(name, middle * 1.001)
    assert np.abs(a - b).max() < 0.02
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("name", AGEING)
def test_first_time_is_the_default(name: str) -> None:
    first = (get_preset(name).time_range_s or (0.0, 0.0))[0]
    assert np.array_equal(shift(name, None), shift(name, first))


@pytest.mark.parametrize("name", ["wan2022-aihwkit", "pcm-natcomm2020"])
def test_other_seed_is_another_path(name: str) -> None:
    # 4 standard errors of a correlation of independent pairs
    a, b = shift(name, DAY), shift(name, DAY, seed=1)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(N)


def test_drift_draws_are_not_those_of_programming() -> None:
    # One draw for both: sigmas would add, not their squares.
    address = {"seed": 0, "node": "n", "device": 0, "start": 0, "count": N}
    drift = standard_normals(purpose=Purpose.DRIFT, **address)
    for purpose in (Purpose.PROGRAMMING, Purpose.READ_OUT, Purpose.FAULT):
        z = standard_normals(purpose=purpose, **address)
        assert abs(np.corrcoef(drift, z)[0, 1]) < 4 / np.sqrt(N)


@pytest.mark.parametrize("name", ["gaussian-relative", "gaussian-absolute", "milo2021"])
def test_model_without_a_time_axis_refuses_a_time(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' has no time axis.*Convert without `time_s`"):
        shift(name, 1.0)


@pytest.mark.parametrize(
    ("name", "time_s", "message"),
    [
        ("wan2022-aihwkit", 5 * DAY, r"time_s must lie in 1 s \.\. 2 d \(1 \.\. 172800 seconds\)"),
        ("wan2022-aihwkit", 0.5, r"time_s must lie in 1 s \.\. 2 d"),
        ("wan2022-crosssim", DAY, r"time_s must lie in 1 s \.\. 1 s"),
        ("pcm-natcomm2020", 1.0, r"time_s must lie in 20 s \.\. 1 y .* got 1 s \(1\)"),
        ("wan2022-aihwkit", float("nan"), "time_s must lie in 0..1e12"),
    ],
)
def test_time_beyond_the_law_is_an_error(name: str, time_s: float, message: str) -> None:
    # Extrapolation, or the nearest key in silence.
    with pytest.raises(ConfigError, match=message):
        shift(name, time_s)


@pytest.mark.parametrize("name", list(list_presets()))
def test_configuration_comes_back_from_its_json(name: str) -> None:
    config = list_presets()[name].config
    again = DeviceConfig.from_json(config.to_json())
    assert again == config.closed
    assert again.to_json() == config.to_json()


def test_two_runs_and_any_chunk_give_the_same_bits() -> None:
    # State that a table or a chunk leaves behind.
    config = get_preset("pcm-natcomm2020")
    w = np.linspace(-1, 1, 50_000, dtype=np.float32)
    whole = program(w, node="n", seed=3, config=config, column_axis=0, time_s=DAY).w_realised
    again = program(
        w.reshape(100, 500), node="n", seed=3, config=config, column_axis=1, time_s=DAY
    ).w_realised
    assert np.array_equal(whole, again.reshape(-1))


@pytest.mark.parametrize("law", [DriftLaw.GAUSSIAN_ABSOLUTE, DriftLaw.GAUSSIAN_RELATIVE])
def test_time_law_goes_with_a_gaussian_law(law: DriftLaw) -> None:
    # A closed form that forgets the drift, or a drift that replaces programming: variances add.
    # G_min is far above sigma, so nothing is clipped. 4.5 standard errors of sigma and of the mean.
    relaxation = LogRelaxation(
        t0_s=1.0, t_max_s=DAY, mean_us_per_ln=-0.01, sigma_us=0.3, sigma_us_per_ln=0.02
    )
    config = DeviceConfig(
        preset="mine", law=law, drift_frac=0.02, g_min_us=20.0, time_law=relaxation
    )
    own, partner = (0.8, 0.8) if law is DriftLaw.GAUSSIAN_ABSOLUTE else (0.8, 0.4)
    drift = 0.3 + 0.02 * np.log(3600.0)
    sigma = np.sqrt(own**2 + partner**2 + 2 * drift**2)
    error = shift(config, 3600.0)
    assert abs(error.std() - sigma) < 4.5 * sigma / np.sqrt(2 * N)
    # the mean drift of both devices of a pair cancels
    assert abs(error.mean()) < 4.5 * sigma / np.sqrt(N)
