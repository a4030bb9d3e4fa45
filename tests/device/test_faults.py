# SPDX-License-Identifier: Apache-2.0
"""Devices that are stuck at the bottom or at the top of their range."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.device import Purpose, get_preset, list_presets, program, random_words
from rimc_onnx.errors import ConfigError

N = 100_000


def programmed(w: np.ndarray, name: str = "gaussian-relative", **overrides: object) -> np.ndarray:
    config = get_preset(name, **overrides)
    return program(w, node="n", seed=2, config=config, column_axis=0).w_realised


def ones(sign: float = 1.0) -> np.ndarray:
    return np.full(N, sign, np.float32)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_share_of_stuck_devices_is_what_was_asked_for(sign: float) -> None:
    # Ends swapped, or one draw for both devices of a pair. Without drift a weight of 1 is 1 unless
    # a device is stuck: its own at the bottom gives 0, the partner at the top takes 1 away.
    # 4 standard errors of a share.
    low, high = 0.02, 0.09
    got = sign * programmed(ones(sign), drift_frac=0.0, stuck_min_frac=low, stuck_max_frac=high)
    values, counts = np.unique(got, return_counts=True)
    assert values.tolist() == [-1.0, 0.0, 1.0]
    both = low * high
    expected = np.array([both, low * (1 - high) + (1 - low) * high, (1 - low) * (1 - high)])
    assert np.abs(counts / N - expected).max() < 4 * np.sqrt(0.11 * 0.89 / N)


def test_zero_weights_suffer_from_devices_at_the_top() -> None:
    w = np.concatenate([np.zeros(N, np.float32), [np.float32(1)]])
    got = programmed(w, drift_frac=0.0, stuck_min_frac=0.5, stuck_max_frac=0.1)[:N]
    values, counts = np.unique(got, return_counts=True)
    assert values.tolist() == [-1.0, 0.0, 1.0]
    assert abs(counts[2] / N - 0.09) < 4 * np.sqrt(0.09 * 0.91 / N)


def test_all_devices_stuck() -> None:
    # A share of 1 that misses one word, or wraps around 2^32.
    assert not programmed(ones(), stuck_min_frac=1.0).any()
    assert not programmed(ones(), stuck_max_frac=1.0).any()


def test_stuck_devices_are_those_of_the_documented_words() -> None:
    # A second implementation is written from this rule.
    word = random_words(seed=2, node="n", device=0, purpose=Purpose.FAULT, start=0, count=N)
    got = programmed(ones(), drift_frac=0.0, stuck_min_frac=0.25)
    assert np.array_equal(got == 0.0, word < 2**30)


@pytest.mark.parametrize("name", list(list_presets()))
def test_faults_go_with_every_preset_and_stay_for_good(name: str) -> None:
    # A fault that heals with time, or that moves the draws of the other devices.
    config = get_preset(name, stuck_min_frac=0.1, stuck_max_frac=0.05)
    w = np.linspace(-1, 1, 20_001, dtype=np.float32)
    words = [
        random_words(seed=2, node="n", device=d, purpose=Purpose.FAULT, start=0, count=w.size)
        / 2**32
        for d in (0, 1)
    ]
    at_top = [word >= 0.95 for word in words]
    stuck = [(word < 0.1) | top for word, top in zip(words, at_top, strict=True)]
    for time_s in config.time_range_s or (None,):
        got, sound = (
            program(w, node="n", seed=2, config=c, column_axis=0, time_s=time_s).w_realised
            for c in (config, get_preset(name))
        )
        neither, both = ~stuck[0] & ~stuck[1], stuck[0] & stuck[1]
        assert np.array_equal(got[neither], sound[neither])
        want = at_top[0][both].astype(float) - at_top[1][both]
        np.testing.assert_allclose(got[both], want, rtol=0, atol=1e-6)  # float32 of the weight


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stuck_min_frac": 10}, r"need 0 <= stuck_min_frac <= 1, got 10\.0 \(a fraction"),
        ({"stuck_max_frac": -0.1}, "need 0 <= stuck_max_frac <= 1"),
        ({"stuck_min_frac": 0.6, "stuck_max_frac": 0.6}, "stuck_min_frac . stuck_max_frac <= 1"),
    ],
)
def test_share_out_of_range_is_an_error(overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_preset("gaussian-relative", **overrides)
