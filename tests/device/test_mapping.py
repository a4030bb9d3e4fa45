# SPDX-License-Identifier: Apache-2.0
"""Clipping, levels, slices and parallel devices: what a weight asks of its devices."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.device import Scaling, get_preset, largest_weight, program
from rimc_onnx.errors import ConfigError

IDEAL = {"drift_frac": 0.0}


def programmed(w: np.ndarray, axis: int = 0, **overrides: object) -> np.ndarray:
    config = get_preset("gaussian-relative", **overrides)
    return program(w, node="n", seed=4, config=config, column_axis=axis).w_realised


def weights(shape: tuple[int, ...] = (64, 3, 5, 5)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_weights_are_clipped_at_their_standard_deviations() -> None:
    # W_max of the weights before clipping, sigma of |w|, or a mean left in. The rounding to
    # 2^-20 W_max moves sigma by less than 1e-6.
    w = weights() + np.float32(0.3)
    config = get_preset("gaussian-relative", clip_sigma=2.0, **IDEAL)
    w_max = largest_weight(w, config, 0)
    assert w_max[0] == pytest.approx(2 * w.astype(np.float64).std(), rel=1e-6)
    assert np.array_equal(programmed(w, clip_sigma=2.0, **IDEAL), np.clip(w, -w_max[0], w_max[0]))
    assert w_max[0] < np.abs(w).max()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_columns_are_clipped_at_their_own(axis: int) -> None:
    w = weights((6, 5, 40, 7)) * np.linspace(0.1, 3, 7, dtype=np.float32)
    config = get_preset("gaussian-relative", clip_sigma=1.5, scaling=Scaling.COLUMN)
    others = tuple(a for a in range(4) if a != axis % 4)
    want = 1.5 * w.astype(np.float64).std(axis=others)
    np.testing.assert_allclose(largest_weight(w, config, axis), want, rtol=1e-6)


def test_clipping_beyond_the_largest_weight_changes_nothing() -> None:
    w = weights()
    assert np.array_equal(programmed(w, clip_sigma=100.0), programmed(w))


def test_order_of_weights_has_no_influence_on_w_max() -> None:
    # A floating-point sum: another order, another last bit, another file.
    w = weights((3, 400_001))
    config = get_preset("gaussian-relative", clip_sigma=2.5)
    shuffled = np.random.default_rng(1).permutation(w.reshape(-1)).reshape(w.shape)
    assert np.array_equal(largest_weight(w, config, 0), largest_weight(shuffled, config, 0))


def test_constant_and_zero_weights_can_be_clipped() -> None:
    # sigma 0: W_max is 0, and so are the weights; no division by zero.
    assert not programmed(np.full((4, 4), 0.5, np.float32), clip_sigma=3.0).any()
    assert not programmed(np.zeros((4, 4), np.float32), clip_sigma=3.0, level_bits=4).any()


@pytest.mark.parametrize(("bits", "slices"), [(4, 1), (1, 1), (4, 2), (2, 3), (12, 2), (8, 1)])
def test_levels_round_to_the_nearest_and_slices_add_up(bits: int, slices: int) -> None:
    # A digit lost between slices, or 2^bits steps in place of 2^bits - 1.
    w = weights()
    top = 2 ** (bits * slices) - 1
    w_max = np.abs(w).max().astype(np.float64)
    want = np.rint(w.astype(np.float64) * (top / w_max)) * (w_max / top)
    got = programmed(w, level_bits=bits, num_slices=slices, **IDEAL)
    np.testing.assert_allclose(got, want, rtol=6e-8, atol=0)
    assert len(np.unique(np.abs(got))) <= top + 1


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_each_slice_errs_with_its_significance(slices: int) -> None:
    # Slices that share a draw, or significance left out of the error. Absolute law, no clipping:
    # a pair errs by sqrt(2) 0.02 G_max, slice s counts 2^(4 s) 15 / (2^(4 S) - 1). 4.5 standard
    # errors of sigma, 150,000 draws.
    n = 150_000
    w = np.random.default_rng(2).uniform(-1, 1, n).astype(np.float32)
    config = get_preset(
        "gaussian-absolute",
        drift_frac=0.02,
        g_min_us=10.0,
        level_bits=4,
        num_slices=slices,
    )
    got = program(w, node="n", seed=4, config=config, column_axis=0)
    top = 2 ** (4 * slices) - 1
    ideal = np.rint(w * (top / got.w_max[0])) / top * got.w_max[0]
    share = [15 * 16.0**s / top for s in range(slices)]
    want = 0.02 * np.sqrt(2) * np.sqrt(np.sum(np.square(share)))
    error = (got.w_realised - ideal) / got.w_max[0]
    assert abs(error.mean()) < 4.5 * want / np.sqrt(n)
    assert abs(error.std() - want) < 4.5 * want / np.sqrt(2 * n)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parallel_devices_average_their_errors(count: int) -> None:
    # The same draw for all of them (no gain), or a sum in place of a mean. 4.5 standard errors.
    n = 150_000
    w = np.full(n, 1.0, np.float32)
    error = programmed(w, devices_per_weight=count) - w
    want = 0.2 / np.sqrt(count)
    assert abs(error.std() - want) < 4.5 * want / np.sqrt(2 * n)


def test_first_pair_is_the_one_without_parallel_devices() -> None:
    # Devices renumbered when others are added: seed 0 would be another chip. Error of two pairs is
    # the mean of theirs; the second pair alone can't be had, but twice the mean less the first is
    # independent of it.
    w = np.full(100_000, 1.0, np.float32)
    one = programmed(w) - w
    second = 2 * (programmed(w, devices_per_weight=2) - w) - one
    assert abs(np.corrcoef(one, second)[0, 1]) < 4 / np.sqrt(w.size)
    assert abs(second.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * w.size)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"clip_sigma": 0.0}, "clip_sigma must be above 0"),
        ({"level_bits": 0}, r"level_bits must be a whole number in 1\.\.12, got 0"),
        ({"level_bits": 4.0}, "level_bits must be a whole number"),
        ({"num_slices": 2}, "num_slices 2 needs level_bits"),
        ({"num_slices": 9, "level_bits": 1}, r"num_slices must be a whole number in 1\.\.8"),
        ({"num_slices": 4, "level_bits": 8}, r"must be 24 or less.*got 4 \* 8"),
        ({"devices_per_weight": 0}, r"devices_per_weight must be a whole number in 1\.\.64"),
    ],
)
def test_mapping_out_of_range_is_an_error(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_preset("gaussian-relative", **overrides)
