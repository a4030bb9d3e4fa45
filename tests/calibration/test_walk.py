# SPDX-License-Identifier: Apache-2.0
"""How far a bias follows what the samples lack."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.calibration.walk import _shift, sample_means


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_one_sample_moves_a_bias_by_the_prior_alone() -> None:
    # A variance over one sample: NaN, or 0 taken for certainty.
    lacking = rng(0).standard_normal((1, 5))
    np.testing.assert_allclose(_shift(lacking, 3.0), lacking[0] / 4, rtol=1e-6)


def test_samples_that_agree_are_followed() -> None:
    # A bias that stays though every sample lacks the same.
    true = rng(0).standard_normal(64)
    lacking = true + 0.01 * rng(1).standard_normal((10, 64))
    np.testing.assert_allclose(_shift(lacking, 0.0), true, atol=0.02)


def test_samples_that_contradict_each_other_are_not() -> None:
    # Ten samples' mean taken at its word where it is nothing but noise, on the bit lines where it
    # is: one with noise of its own among quiet ones.
    true = rng(0).standard_normal(256)
    noise = np.where(np.arange(256) % 4 == 0, 9.0, 0.01)
    lacking = true + noise * rng(1).standard_normal((10, 256))
    shift = _shift(lacking, 0.0)
    quiet = np.arange(256) % 4 != 0
    # The noisy ones have s^2 of about 8 against tau^2 of about 1, give or take what 64 of them say.
    assert np.abs(shift[~quiet]).mean() < 0.3 * np.abs(lacking.mean(axis=0)[~quiet]).mean()
    np.testing.assert_allclose(shift[quiet], true[quiet], rtol=0.01, atol=0.02)


def test_nothing_lacking_moves_nothing() -> None:
    # 0 / 0.
    assert not _shift(np.zeros((4, 3)), 0.0).any()
    assert not _shift(np.zeros((1, 3)), 0.0).any()


@pytest.mark.parametrize("conv", [True, False])
def test_means_are_of_each_sample(conv: bool) -> None:
    # Channels of a convolution on the last axis, or chunks averaged as if they were equally long.
    chunks = [rng(i).standard_normal((n, 3, 4, 5)).astype(np.float32) for i, n in ((0, 2), (1, 1))]
    found = sample_means(chunks, conv=conv)
    y = np.concatenate(chunks)
    np.testing.assert_allclose(found, y.mean(axis=(2, 3) if conv else (1, 2)), rtol=1e-5)
    flat = [c[:, :, 0, 0] for c in chunks]
    np.testing.assert_allclose(sample_means(flat, conv=conv), np.concatenate(flat), rtol=1e-6)
