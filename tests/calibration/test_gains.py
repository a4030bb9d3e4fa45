# SPDX-License-Identifier: Apache-2.0
"""How far gains and biases follow what samples say on the student's inputs."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.calibration.gains import SampleMoments, bias_shift, gain_change, in_both
from rimc_onnx.execution.feed import Feed

Array = np.ndarray


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def shift(lacking: Array, prior_samples: float = 0.0, scale: Array | None = None) -> Array:
    unit = np.ones(lacking.shape[1]) if scale is None else scale
    return bias_shift(lacking, unit, prior_samples=prior_samples)


def moments(samples: Array) -> SampleMoments:
    """Of samples [n, positions, m]."""
    feed = Feed({}, num_samples=len(samples))
    return SampleMoments.of([samples.astype(np.float32)], [feed], -1)


def test_one_sample_moves_a_bias_by_the_prior_alone() -> None:
    # A variance over one sample: NaN, or 0 taken for certainty.
    lacking = rng(0).standard_normal((1, 5))
    np.testing.assert_allclose(shift(lacking, 3.0), lacking[0] / 4, rtol=1e-6)


def test_samples_that_agree_are_followed() -> None:
    # A bias that stays though every sample lacks the same.
    true = rng(0).standard_normal(64)
    lacking = true + 0.01 * rng(1).standard_normal((10, 64))
    np.testing.assert_allclose(shift(lacking), true, atol=0.02)


def test_samples_that_contradict_each_other_are_not() -> None:
    # Ten samples' mean taken at its word where it is nothing but noise, on the bit lines where it
    # is: one with noise of its own among quiet ones.
    true = rng(0).standard_normal(256)
    noise = np.where(np.arange(256) % 4 == 0, 9.0, 0.01)
    lacking = true + noise * rng(1).standard_normal((10, 256))
    found = shift(lacking)
    quiet = np.arange(256) % 4 != 0
    # The noisy ones have s^2 of about 8 against tau^2 of about 1, give or take what 64 of them say.
    assert np.abs(found[~quiet]).mean() < 0.3 * np.abs(lacking.mean(axis=0)[~quiet]).mean()
    np.testing.assert_allclose(found[quiet], true[quiet], rtol=0.01, atol=0.02)


def test_a_loud_bit_line_does_not_speak_for_the_others() -> None:
    # One tau^2 in the outputs' own unit: what a loud line lacks makes the noise of every quiet one
    # look small beside it.
    scale = np.where(np.arange(64) < 4, 1000.0, 1.0)
    lacking = 0.5 * rng(2).standard_normal((10, 64))
    lacking[:, :4] += 500
    assert (
        np.abs(shift(lacking, scale=scale)[4:]).mean()
        < 0.5 * np.abs(lacking.mean(axis=0)[4:]).mean()
    )
    # In one unit for all they would be followed nearly whole.
    assert np.abs(shift(lacking)[4:]).mean() > 0.9 * np.abs(lacking.mean(axis=0)[4:]).mean()


def test_nothing_lacking_moves_nothing() -> None:
    # 0 / 0.
    for rows in (4, 1, 0):
        found = shift(np.zeros((rows, 3)), scale=np.zeros(3))
        assert found.shape == (3,)
        assert not found.any()


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_moments_are_of_each_sample(channel_axis: int) -> None:
    # Channels of a convolution on the last axis, chunks averaged as if they were equally long, the
    # variance about another mean than the sample's own, or without what lies between samples.
    chunks = [
        rng(i).standard_normal((n, 3, 4, 5)).astype(np.float32) + 9 for i, n in ((0, 2), (1, 1))
    ]
    feeds = [Feed({}, num_samples=len(c)) for c in chunks]
    found = SampleMoments.of(chunks, feeds, channel_axis)
    y = np.concatenate(chunks).astype(np.float64)
    axes = (2, 3) if channel_axis == 1 else (1, 2)
    np.testing.assert_allclose(found.mean, y.mean(axis=axes), rtol=1e-6)
    np.testing.assert_allclose(found.variance, y.var(axis=axes), rtol=1e-5)
    np.testing.assert_allclose(found.total_variance(), y.var(axis=(0, *axes)), rtol=1e-5)
    for sample, left in enumerate(found.without_each()):
        rest = np.delete(y, sample, axis=0).var(axis=(0, *axes))
        np.testing.assert_allclose(left, rest, rtol=1e-5)
    flat = [c[:, :, 0, 0] for c in chunks]
    assert not SampleMoments.of(flat, feeds, channel_axis).variance.any()
    # A sample without positions has no mean.
    nothing = y[:, :, :0] if channel_axis == 1 else y[:, :0]
    empty = SampleMoments.of([nothing], [Feed({}, num_samples=3)], channel_axis)
    assert np.isnan(empty.mean).all()
    both = in_both(empty, found)
    assert [len(m.mean) for m in both] == [0, 0]


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_positions_beyond_a_limit_are_scaled_down_to_it(channel_axis: int) -> None:
    # A gain and a bias of one massive token, by samples alone or over the wrong axis.
    y = rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    token = np.s_[1, :, 2] if channel_axis == 1 else np.s_[1, 2]
    y[token] *= 100
    calm = y.copy()
    calm[token] *= np.sqrt(30 / np.square(y[token]).sum())
    found = SampleMoments.of([y], [Feed({}, num_samples=3)], channel_axis, 30.0)
    expected = SampleMoments.of([calm], [Feed({}, num_samples=3)], channel_axis)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-4)
    assert found.row_limit == 30


def test_a_run_of_one_sample_has_one_mean_whatever_axis_0_counts() -> None:
    # Time steps, nodes of a graph or tokens on axis 0 taken for samples that could disagree; a
    # value that is infinite or empty in one sample, in the teacher or the student alone.
    steps = rng(0).standard_normal((7, 1, 5)).astype(np.float32)
    merged = rng(1).standard_normal((6, 5)).astype(np.float32)  # 2 samples of 3 rows each
    feeds = [Feed({}), Feed({}, num_samples=2), Feed({})]
    teacher = SampleMoments.of([steps, merged, merged[:0]], feeds, -1)
    want = [steps.mean(axis=(0, 1)), merged[:3].mean(axis=0), merged[3:].mean(axis=0)]
    np.testing.assert_allclose(teacher.mean[:3], want, rtol=1e-5)
    loud = merged.copy()
    loud[0, 0] = np.inf
    student = SampleMoments.of([steps, loud, merged[:1]], feeds, -1)
    for moments in in_both(teacher, student):
        np.testing.assert_allclose(moments.mean, [want[0], want[2]], rtol=1e-5)


@pytest.mark.parametrize("per_line", [True, False])
def test_a_gain_that_all_samples_show_is_taken(per_line: bool) -> None:
    # The quotient turned over, the gain of the power for that of the amplitude.
    y = rng(0).standard_normal((10, 400, 8)) * 2.0 ** rng(1).integers(-3, 4, 8)
    found = gain_change(moments(y), moments(0.8 * y + 5), per_line=per_line)
    np.testing.assert_allclose(found, np.full(8, 1.25), rtol=1e-4)


def test_bit_lines_have_gains_of_their_own() -> None:
    # One gain for the node where each line tells its own, and the other way round.
    y, true = rng(0).standard_normal((10, 4000, 32)), rng(1).uniform(0.7, 1.4, 32)
    student = y / true + 0.01 * rng(2).standard_normal(y.shape)
    found = gain_change(moments(y), moments(student), per_line=True)
    np.testing.assert_allclose(found, true, rtol=0.02)
    node = gain_change(moments(y), moments(student), per_line=False)
    assert np.ptp(node) == 0
    assert node[0] == pytest.approx(np.sqrt(32 / np.square(1 / true).sum()), rel=0.02)


def test_gains_that_samples_contradict_are_not_followed() -> None:
    # Standard deviations matched as they are: ten samples of which each one is loud at random say
    # nothing of a gain.
    loud = np.exp(rng(0).standard_normal((2, 10, 1, 64)))
    teacher, student = (rng(i + 1).standard_normal((10, 50, 64)) * loud[i] for i in range(2))
    raw = np.log(teacher.std(axis=(0, 1)) / student.std(axis=(0, 1)))
    found = np.log(gain_change(moments(teacher), moments(student), per_line=True))
    assert np.abs(found).mean() < 0.4 * np.abs(raw).mean()


def test_one_sample_and_silent_lines_keep_their_gain() -> None:
    # A jackknife over one sample, a logarithm of zero.
    y = rng(0).standard_normal((6, 30, 4))
    assert (gain_change(moments(y[:1]), moments(2 * y[:1]), per_line=True) == 1).all()
    quiet = y * np.array([1, 1, 0, 1])
    for pair in ((y, quiet / 2), (quiet, y / 2), (quiet, quiet / 2)):
        found = gain_change(*map(moments, pair), per_line=True)
        assert found[2] == 1
        np.testing.assert_allclose(found[[0, 1, 3]], 2, rtol=1e-4)
    assert (gain_change(moments(0 * y), moments(y), per_line=True) == 1).all()


@pytest.mark.parametrize("per_line", [True, False])
def test_two_samples_of_a_row_each_tell_no_gain(per_line: bool) -> None:
    # A jackknife that leaves one row, whose variance of zero is taken for certainty: the head of a
    # classifier fitted two samples exactly, and ResNet-20 fell below what drift had left of it.
    y, error = rng(0).standard_normal((2, 1, 8)), rng(1).standard_normal((2, 1, 8))
    assert (gain_change(moments(y), moments(y + error), per_line=per_line) == 1).all()
    # A line that varies in one sample alone has the node's gain beside lines that tell theirs.
    y = rng(0).standard_normal((3, 200, 4))
    y[1:, :, 2] = 0
    found = gain_change(moments(y), moments(y / 1.3), per_line=per_line)
    np.testing.assert_allclose(found, 1.3, rtol=0.01)


def test_a_gain_moves_by_a_bounded_factor() -> None:
    # A student that is all but dead made a thousand times louder, its noise with it.
    y = rng(0).standard_normal((6, 300, 4))
    found = gain_change(moments(y), moments(1e-3 * y), per_line=True)
    np.testing.assert_allclose(found, np.exp(0.7), rtol=1e-6)
