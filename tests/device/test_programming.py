# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rimc_onnx.device import (
    DeviceConfig,
    ProgrammedWeight,
    Purpose,
    Scaling,
    get_preset,
    program,
    standard_normals,
)
from rimc_onnx.errors import ConfigError, NodeMappingError

RELATIVE = get_preset("gaussian-relative")
ABSOLUTE = get_preset("gaussian-absolute")


def programmed(
    w: np.ndarray,
    config: DeviceConfig = RELATIVE,
    *,
    node: str = "conv1",
    seed: int = 0,
    column_axis: int = 0,
) -> ProgrammedWeight:
    return program(w, node=node, seed=seed, config=config, column_axis=column_axis)


def some_weight(shape: tuple[int, ...] = (64, 3, 5, 5)) -> np.ndarray:
    count = int(np.prod(shape))
    return (((np.arange(count) * 7919) % 2003 - 1001) / 1024).astype(np.float32).reshape(shape)


def formula(w: np.ndarray, config: DeviceConfig, w_max: np.ndarray, node: str, seed: int):
    """The realised weight, written down in conductances and in one go; w_max like w."""
    g = config.g_max_us * np.abs(w.astype(np.float64)) / w_max
    g_target = [
        config.g_min_us + np.where(w >= 0, g, 0),
        config.g_min_us + np.where(w < 0, g, 0),
    ]
    g_realised = []
    for device, target in enumerate(g_target):
        z = standard_normals(
            seed=seed,
            node=node,
            device=device,
            purpose=Purpose.PROGRAMMING,
            start=0,
            count=w.size,
        ).reshape(w.shape)
        reference = target if config.law.value == "gaussian-relative" else config.g_max_us
        drift = reference * (config.drift_mean_frac + config.drift_frac * z)
        g_realised.append(np.maximum(0, target + drift))
    return (g_realised[0] - g_realised[1]) * w_max / config.g_max_us


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("column_axis", [0, 1, -1])
@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("gaussian-relative", {}),
        ("gaussian-relative", {"drift_frac": 0.9, "g_min_us": 2.0, "drift_mean_frac": -0.3}),
        ("gaussian-absolute", {}),
        ("gaussian-absolute", {"drift_frac": 0.3, "g_min_us": 1.0, "drift_mean_frac": 0.1}),
    ],
)
def test_realised_weight_follows_the_formula(preset, overrides, scaling, column_axis):
    # Devices swapped, W_max of the wrong axis, clipping of the wrong quantity. rtol: one rounding
    # to float32; atol: the formula itself cancels G_min in float64.
    w = some_weight((17, 5, 3, 7))
    w *= np.linspace(0.1, 3, w.shape[column_axis], dtype=np.float32).reshape(
        [-1 if a == column_axis % 4 else 1 for a in range(4)]
    )
    config = get_preset(preset, scaling=scaling, **overrides)
    others = tuple(a for a in range(4) if a != column_axis % 4)
    axes = others if scaling is Scaling.COLUMN else None
    w_max = np.abs(w).max(axis=axes, keepdims=True)
    got = programmed(w, config, seed=5, column_axis=column_axis)
    assert got.w_realised.dtype == got.w_max.dtype == np.float32
    assert np.array_equal(got.w_max, w_max.reshape(-1))
    expected = formula(w, config, w_max.astype(np.float64), "conv1", 5)
    np.testing.assert_allclose(got.w_realised, expected, rtol=6e-8, atol=1e-12)


def test_relative_drift_has_its_mean_and_sigma():
    # sigma taken of G_max, or mu forgotten. n = 200,000; clipping (5 sigma) is out of sight.
    n = 200_000
    w = some_weight((n,))
    w[w == 0] = 1
    config = get_preset("gaussian-relative", drift_frac=0.15, drift_mean_frac=-0.04)
    relative = programmed(w, config).w_realised / w - 1
    assert abs(relative.mean() + 0.04) < 4 * 0.15 / np.sqrt(n)
    assert abs(relative.std() - 0.15) < 4 * 0.15 / np.sqrt(2 * n)


def test_relative_drift_leaves_zero_weights_perfect():
    assert not programmed(np.array([0, -0.0, 0, 1], np.float32)).w_realised[:3].any()


def test_absolute_drift_has_the_sigma_of_two_devices():
    # One draw used for both devices would cancel (sigma 0), one device alone would give sigma.
    # G_min at 6 sigma: no clipping. n = 200,000. sigma in units of W_max.
    n = 200_000
    w = some_weight((n,))
    got = programmed(w, get_preset("gaussian-absolute", g_min_us=0.48 * 40, drift_frac=0.08))
    error = (got.w_realised - w) / got.w_max
    sigma = 0.08 * np.sqrt(2)
    assert abs(error.mean()) < 4 * sigma / np.sqrt(n)
    assert abs(error.std() - sigma) < 4 * sigma / np.sqrt(2 * n)
    # a mean shift moves both devices alike, so the pair cancels it
    got = programmed(w, get_preset("gaussian-absolute", g_min_us=36, drift_mean_frac=0.1))
    assert abs(((got.w_realised - w) / got.w_max).mean()) < 4 * sigma / np.sqrt(n)


def test_absolute_drift_at_zero_conductance_is_clipped():
    # Negative conductances. The device at zero holds max(0, N(0, s^2)): mean s / sqrt(2 pi),
    # variance s^2 (1/2 - 1 / (2 pi)). n = 200,000 weights at W_max, whose own device is free.
    n, s = 200_000, 0.08
    for sign in (1, -1):
        error = sign * (programmed(np.full(n, sign, np.float32), ABSOLUTE).w_realised - sign)
        sigma = s * np.sqrt(1.5 - 0.5 / np.pi)
        assert abs(error.mean() + s / np.sqrt(2 * np.pi)) < 4 * sigma / np.sqrt(n)
        # 4.5: the sum is not normal; its kurtosis (3.1) widens the error of sigma by 3 %
        assert abs(error.std() - sigma) < 4.5 * sigma / np.sqrt(2 * n)


def test_relative_drift_never_flips_a_sign():
    # Without clipping, drift beyond -100 % (16 % of the draws at sigma = 1) flips the weight.
    w = some_weight((10_000,))
    w[w == 0] = 1
    got = programmed(w, get_preset("gaussian-relative", drift_frac=1.0)).w_realised
    assert (got * w >= 0).all()
    # P(z < -1) = 0.1587; n = 10,000, 4 standard errors of 0.0037
    assert abs((got == 0).mean() - 0.1587) < 0.0147


@given(
    w=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=5),
        elements=st.floats(-(2.0**126), 2.0**126, width=32),
    ),
    scaling=st.sampled_from(Scaling),
    name=st.sampled_from(["gaussian-absolute", "gaussian-relative"]),
)
def test_without_drift_the_weight_comes_back_bit_for_bit(w, scaling, name):
    # A round trip through conductances that loses digits to G_min; -0.0; subnormals; empty arrays.
    config = get_preset(name, scaling=scaling, drift_frac=0, g_min_us=20.0)
    got = programmed(w, config)
    assert got.w_realised.tobytes() == w.tobytes()
    assert got.w_realised.shape == w.shape
    assert not np.shares_memory(got.w_realised, w)


@settings(deadline=None)
@given(drift_frac=st.floats(1e-30, 1e-10))
def test_small_drift_is_close_to_none(drift_frac):
    # The same digits lost on the way that drift 0 does not take. Half a float32 step is 6e-8.
    w = np.array([1.0, -1e-9, 3e-20, -0.3], np.float32)
    config = get_preset("gaussian-relative", drift_frac=drift_frac, g_min_us=0.0)
    np.testing.assert_allclose(programmed(w, config).w_realised, w, rtol=6e-8, atol=0)


def test_target_weight_is_not_touched():
    w = some_weight()
    before = w.copy()
    programmed(w)
    assert np.array_equal(w, before)


@pytest.mark.parametrize("config", [RELATIVE, ABSOLUTE], ids=lambda c: c.preset)
def test_realised_weight_depends_on_seed_and_node_only(config):
    # A shared stream: the order of calls, or a call in between, would change the result.
    w = some_weight()
    first = programmed(w, config, seed=0).w_realised
    other_seed = programmed(w, config, seed=1).w_realised
    other_node = programmed(w, config, node="conv2").w_realised
    moved = w != 0
    # a few cells meet by chance in float32
    assert (first != other_seed)[moved].mean() > 0.99
    assert (first != other_node)[moved].mean() > 0.99
    assert np.array_equal(first, programmed(w, config, seed=0).w_realised)
    assert not np.array_equal(first, w)


def test_cells_are_numbered_in_c_order_whatever_the_memory_layout():
    # A transposed view gives other bits than its contiguous copy if memory order leaks in.
    w = some_weight((30, 40))
    view = np.asfortranarray(w)
    assert np.array_equal(programmed(w).w_realised, programmed(view).w_realised)
    flat = programmed(w.reshape(-1)).w_realised
    assert np.array_equal(programmed(w).w_realised.reshape(-1), flat)


def test_chunks_leave_no_trace():
    # Six chunks and a rest: a chunk that restarts the draws or the columns at 0.
    w = some_weight((1 << 10, 100))
    config = get_preset("gaussian-absolute", scaling=Scaling.COLUMN)
    got = programmed(w, config, column_axis=1)
    expected = formula(w, config, got.w_max.astype(np.float64), "conv1", 0)
    np.testing.assert_allclose(got.w_realised, expected, rtol=6e-8, atol=1e-12)


def test_absolute_drift_of_a_column_follows_its_own_w_max():
    # Column scaling that uses the node's W_max: small columns would get the large column's error.
    # 20,000 rows: sigma within 4 standard errors; clipped zero device as above.
    n = 20_000
    w = np.stack([np.full(n, 1.0), np.full(n, 0.01)], axis=1).astype(np.float32)
    got = programmed(w, get_preset("gaussian-absolute", scaling=Scaling.COLUMN), column_axis=1)
    sigma = 0.08 * np.sqrt(1.5 - 0.5 / np.pi)
    relative = (got.w_realised - w) / w
    assert np.abs(relative.std(axis=0) - sigma).max() < 4.5 * sigma / np.sqrt(2 * n)


@pytest.mark.parametrize("config", [RELATIVE, ABSOLUTE], ids=lambda c: c.preset)
def test_all_zero_weights_stay_zero(config):
    # 0 / 0: NaN weights from a dead channel.
    got = programmed(np.zeros((4, 3), np.float32), config)
    assert not got.w_realised.any()
    assert got.w_max.tolist() == [0.0]
    w = np.array([[0, 1], [-0.0, -2]], np.float32)
    by_column = programmed(w, get_preset(config.preset, scaling=Scaling.COLUMN), column_axis=1)
    assert not by_column.w_realised[:, 0].any()
    assert by_column.w_realised[:, 1].all()
    assert by_column.w_max.tobytes() == np.array([0, 2], np.float32).tobytes()


@pytest.mark.parametrize(
    ("shape", "columns"), [((0, 3), 0), ((3, 0), 3), ((2, 0, 3, 3), 2), ((0,), 0)]
)
def test_empty_weight_is_fine(shape, columns):
    got = programmed(np.zeros(shape, np.float32), get_preset("gaussian-absolute"))
    assert got.w_realised.shape == shape
    assert got.w_max.tolist() == [0.0]
    by_column = get_preset("gaussian-absolute", scaling=Scaling.COLUMN)
    assert programmed(np.zeros(shape, np.float32), by_column).w_max.tolist() == [0.0] * columns


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_without_a_value_is_an_error(bad, scaling):
    w = some_weight()
    w[7, 1, 2, 3] = bad
    with pytest.raises(NodeMappingError, match=r"node 'conv1': the weight has NaN or infinite"):
        programmed(w, get_preset("gaussian-relative", scaling=scaling))


def test_seed_out_of_range_is_an_error():
    with pytest.raises(ConfigError, match="seed must lie in"):
        programmed(some_weight(), seed=2**64)


@pytest.mark.parametrize(
    ("config", "sha256"),
    [
        (RELATIVE, "5464c5506013c992219194b9fa8e17da"),
        (ABSOLUTE, "187c5a7f1a5708e2bbb3f8f25f560622"),
        (
            get_preset("gaussian-absolute", scaling=Scaling.COLUMN),
            "011b27a399c5e736f30d040839eb62cc",
        ),
    ],
    ids=["relative", "absolute", "absolute-column"],
)
def test_realised_weight_has_its_golden_bits(config, sha256):
    # Files say "seed 3" and mean these bits; a change here is a change of format.
    got = programmed(some_weight(), config, seed=3).w_realised
    assert hashlib.sha256(got.astype("<f4").tobytes()).hexdigest()[:32] == sha256


@pytest.mark.parametrize(
    ("name", "overrides", "time_s", "sha256"),
    [
        ("wan2022-aihwkit", {}, 86400.0, "9f89c3518ac1a2d8"),
        ("cmo-hfox-2025-2pct", {}, 3600.0, "0a4dab9f67d7afb7"),
        ("pcm-natcomm2020", {}, 86400.0, "3fe3cc368edda220"),
        ("sonos-40nm", {}, 100000.0, "41507f895d5c6358"),
        ("milo2021", {"stuck_min_frac": 0.02, "stuck_max_frac": 0.1}, None, "0ac78437c0bc6652"),
        (
            "gaussian-relative",
            {"clip_sigma": 1.5, "level_bits": 4, "num_slices": 2, "devices_per_weight": 2},
            None,
            "1562b4cc8e1a573b",
        ),
    ],
)
def test_measured_devices_have_their_golden_bits(name, overrides, time_s, sha256):
    # As above: curves, tables, time laws, faults and slices are part of what a file means.
    config = get_preset(name, **overrides)
    got = program(
        some_weight(), node="conv1", seed=3, config=config, column_axis=0, time_s=time_s
    ).w_realised
    assert hashlib.sha256(got.astype("<f4").tobytes()).hexdigest()[:16] == sha256
