# SPDX-License-Identifier: Apache-2.0
"""The expected error of a pair of devices, against draws of the code that programs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx.device import get_preset, program
from rimc_onnx.device.pair_error import KNOTS, pair_error


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
