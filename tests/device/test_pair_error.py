# SPDX-License-Identifier: Apache-2.0
"""The expected error of a pair of devices, against draws of the code that programs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx.device import Scaling, get_preset, largest_weight, program
from rimc_onnx.device.pair_error import KNOTS, expected_array, pair_error


@pytest.mark.parametrize(
    ("preset", "time_s", "options"),
    [
        ("gaussian-relative", None, {"drift_mean_frac": -0.1}),
        ("gaussian-absolute", None, {"devices_per_weight": 4}),
        ("wan2022-aihwkit", 86400.0, {}),
        ("pcm-natcomm2020", 3600.0, {}),
        ("sonos-40nm", 86400.0, {"stuck_min_frac": 0.05, "stuck_max_frac": 0.02}),
    ],
)
def test_mean_and_variance_are_those_of_draws(
    preset: str, time_s: float | None, options: dict[str, Any]
) -> None:
    # A device of the pair left out, a variance in microsiemens, faults or drift without effect,
    # parallel pairs added up instead of averaged.
    config = get_preset(preset, **options)
    table = pair_error(config, config.resolve_time(time_s))
    n = 40_000
    for u in (0.0, 0.1, 0.5, 1.0):
        w = np.full(n + 1, u, np.float32)
        w[n] = 1.0  # W_max
        got = program(w, node="n", seed=1, config=config, column_axis=0, time_s=time_s)
        error = got.w_realised[:n].astype(np.float64) - u
        mean, sigma = (
            table.mean[round(u * (KNOTS - 1))],
            table.variance[round(u * (KNOTS - 1))] ** 0.5,
        )
        assert abs(error.mean() - mean) <= 4.5 * sigma / n**0.5 + 0.01 * abs(mean)
        # Tails of the distribution beyond the lattice: 2 %; kurtosis of faults: 6 standard errors.
        assert abs(error.std() - sigma) <= 0.02 * sigma + 6 * sigma / (2 * n) ** 0.5


@pytest.mark.parametrize("drift_frac", [0.0, 0.05])
def test_levels_and_slices_are_in_the_variance(drift_frac: float) -> None:
    # A slice without its significance, rounding left out. Over weights of all sizes: at one of them
    # rounding is a number, in the table it is the variance of all.
    config = get_preset("gaussian-absolute", drift_frac=drift_frac, level_bits=2, num_slices=2)
    table = pair_error(config, 0.0)
    n = 40_000
    w = np.append(np.linspace(0.0, 1.0, n), 1.0).astype(np.float32)
    got = program(w, node="n", seed=1, config=config, column_axis=0)
    error = got.w_realised[:n].astype(np.float64) - w[:n]
    knots = np.rint(w[:n] * (KNOTS - 1)).astype(int)
    found = np.square(error - table.mean[knots]).mean()
    # 40,000 draws: 0.7 % is a standard error; digits change between the weights of the table.
    assert abs(found / table.variance[knots].mean() - 1) < 0.05


@pytest.mark.parametrize(
    ("preset", "time_s", "options"),
    [
        ("wan2022-aihwkit", 86400.0, {}),
        ("pcm-natcomm2020", 3600.0, {}),
        ("gaussian-absolute", None, {"drift_frac": 0.02, "level_bits": 3}),
    ],
)
@pytest.mark.parametrize("scaling", list(Scaling))
def test_an_array_is_what_is_expected_of_it(
    preset: str, time_s: float | None, options: dict[str, Any], scaling: Scaling
) -> None:
    # The clipped remainder, the loss of the law or the level left out; a sign; W_max of another bit
    # line; a variance in units of W_max.
    config = get_preset(preset, scaling=scaling, clip_sigma=1.5, **options)
    sizes = np.geomspace(0.1, 10, 8)[:, None]
    w = (sizes * np.random.default_rng(0).standard_normal((8, 5000))).astype(np.float32)
    found = expected_array(
        w, config, config.resolve_time(time_s), largest_weight(w, config, 0), column_axis=0
    )
    got = program(w, node="n", seed=1, config=config, column_axis=0, time_s=time_s).w_realised
    off = (w - got - found.error) / np.sqrt(found.variance)
    # 40,000 cells; the table is closest where most weights are.
    assert abs(off.mean()) < 4.5 / w.size**0.5 + 0.02
    assert abs(off.std() - 1) < 0.05
    large = np.abs(w) > largest_weight(w, config, 0).reshape(-1, 1)
    assert abs((off * np.sign(w))[large].mean()) < 4.5 / large.sum() ** 0.5 + 0.02
