# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.calibration import closed_form as module
from rimc_onnx.calibration.closed_form import (
    Adapter,
    ClosedFormConfig,
    solve,
    squared_error,
)
from rimc_onnx.calibration.moments import Geometry, SecondMoments
from rimc_onnx.errors import ConfigError

Array = np.ndarray

PLAIN = ClosedFormConfig(ridge_frac=1e-12, prior_samples=1e12)
"""Regression alone: next to no ridge, and M stays at 1."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def moments_of(x: Array, y: Array, h: Array) -> SecondMoments:
    moments = SecondMoments(Geometry(weight_shape=(x.shape[1], y.shape[1])))
    moments.update(*(np.asarray(a, np.float32) for a in (x, y, h)))
    return moments


def low_rank(d: int, m: int, rank: int, seed: int) -> Array:
    random = rng(seed)
    return random.standard_normal((d, rank)) @ random.standard_normal((rank, m)) / 8


def student(adapter: Adapter, x: Array, h: Array) -> Array:
    return adapter.m[0] * (h + x @ adapter.a[0] @ adapter.b[0])


def test_error_of_low_rank_is_recovered() -> None:
    # A transposed, B scaled by M the wrong way, eigenvectors of the smallest eigenvalues.
    x = rng(1).standard_normal((200, 12))
    error = low_rank(12, 9, 3, 2)
    h = x @ rng(3).standard_normal((12, 9))
    y = h + x @ error
    adapter = solve(moments_of(x, y, h), rank=3, num_samples=200, config=PLAIN)
    # Moments of float32 rows: 200 terms of 2^-24 each.
    np.testing.assert_allclose(adapter.a[0] @ adapter.b[0], error, atol=1e-5)
    np.testing.assert_allclose(adapter.m, 1, atol=1e-9)
    assert adapter.a.shape == (1, 12, 3)
    assert adapter.b.shape == (1, 3, 9)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_residual_is_the_least_that_the_rank_allows(rank: int) -> None:
    # Truncating the wrong factorisation loses to the optimum (Eckart and Young on X times the
    # least-squares solution); inputs of different power make the difference. All values are
    # multiples of 1/16 so small that the moments are exact in float32.
    x = rng(1).integers(-3, 4, (300, 10)) * 2.0 ** rng(5).integers(0, 3, 10)
    h = np.rint(16 * x @ rng(2).uniform(-0.5, 0.5, (10, 8))) / 16
    y = h + np.rint(16 * x @ rng(3).uniform(-0.2, 0.2, (10, 8))) / 16
    y += rng(4).integers(-8, 9, y.shape) / 16
    moments = moments_of(x, y, h)
    adapter = solve(moments, rank=rank, num_samples=300, config=PLAIN)
    fitted = x @ np.linalg.lstsq(x, y - h, rcond=None)[0]
    singular = np.linalg.svd(fitted, compute_uv=False)
    optimum = np.square(y - h - fitted).sum() + np.square(singular[rank:]).sum()
    assert squared_error(moments, adapter) == pytest.approx(optimum, rel=1e-8)


def test_gain_and_low_rank_error_are_found_together() -> None:
    # M estimated once, before A and B, explains the error of A and B as a gain.
    x = rng(1).standard_normal((400, 10))
    h = x @ rng(2).standard_normal((10, 6))
    gain = rng(3).uniform(0.7, 1.3, 6)
    y = gain * (h + x @ low_rank(10, 6, 1, 4))
    moments = moments_of(x, y, h)
    config = ClosedFormConfig(ridge_frac=1e-9, prior_samples=1e-9, rounds=300)
    adapter = solve(moments, rank=1, num_samples=400, config=config)
    before, after = squared_error(moments, None), squared_error(moments, adapter)
    assert after < 1e-4 * before
    one = solve(
        moments,
        rank=1,
        num_samples=400,
        config=ClosedFormConfig(ridge_frac=1e-9, prior_samples=1e-9, rounds=1),
    )
    assert after < squared_error(moments, one) < before


def test_squared_error_is_that_of_the_rows() -> None:
    # The expansion in moments with a wrong sign or a missing factor 2.
    x, h, y = (rng(i).standard_normal((50, n)) for i, n in enumerate((6, 5, 5)))
    moments = moments_of(x, y, h)
    adapter = Adapter(
        a=rng(5).standard_normal((1, 6, 2)),
        b=rng(6).standard_normal((1, 2, 5)),
        m=rng(7).uniform(0.5, 2, (1, 5)),
    )
    expected = np.square(y - student(adapter, x, h)).sum()
    assert squared_error(moments, adapter) == pytest.approx(expected, rel=1e-5)
    assert squared_error(moments, None) == pytest.approx(np.square(y - h).sum(), rel=1e-5)


def test_groups_are_fitted_on_their_own() -> None:
    # A group's adapter made of another group's moments.
    geometry = Geometry(
        weight_shape=(6, 4, 1), conv=True, group=3, strides=(1,), pads=(0, 0), dilations=(1,)
    )
    x = rng(1).standard_normal((2, 12, 40)).astype(np.float32)
    weight = rng(2).standard_normal((3, 2, 4))
    errors = np.stack([low_rank(4, 2, 1, 3 + g) for g in range(3)])

    def outputs(w: Array) -> Array:
        return np.einsum("ngcp,gmc->ngmp", x.reshape(2, 3, 4, 40), w).reshape(2, 6, 40)

    h = outputs(weight).astype(np.float32)
    y = outputs(weight + errors.transpose(0, 2, 1)).astype(np.float32)
    moments = SecondMoments(geometry)
    moments.update(x, y, h)
    adapter = solve(moments, rank=1, num_samples=2, config=PLAIN)
    np.testing.assert_allclose(adapter.a @ adapter.b, errors, atol=1e-4)


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 11.5 / 11), (10, 1.25), (1000, 1.495)])
def test_magnitude_of_few_samples_is_shrunk_towards_1(num_samples: int, expected: float) -> None:
    # One row of a Gemm fits M perfectly and means nothing (SPEC section 5). Here X is orthogonal
    # to Y and H, so A B is 0 and M alone has to make up for H = Y / 1.5; the prior is 10 samples.
    x = np.array([[1.0], [-1.0]])
    y = np.array([[3.0, 6.0], [3.0, 6.0]])
    moments = moments_of(x, y, y / 1.5)
    adapter = solve(moments, rank=1, num_samples=num_samples, config=ClosedFormConfig())
    np.testing.assert_allclose(adapter.m, expected, rtol=1e-3)
    np.testing.assert_allclose(adapter.a @ adapter.b, 0, atol=1e-6)


def test_bit_line_of_the_wrong_sign_keeps_its_gain() -> None:
    # M < 0 or 0 would turn a bit line over, or divide B by zero.
    x = np.array([[1.0], [-1.0]])
    y = np.array([[3.0, 0.0], [3.0, 0.0]])
    moments = moments_of(x, y, np.array([[-1.0, 2.0], [-1.0, 2.0]]))
    config = ClosedFormConfig(prior_samples=0.0)
    adapter = solve(moments, rank=1, num_samples=1000, config=config)
    assert (adapter.m > 0).all()
    assert np.isfinite(adapter.b).all()


def degenerate(name: str) -> tuple[Array, Array, Array]:
    x, h = rng(1).standard_normal((20, 6)), rng(2).standard_normal((20, 4))
    y = h + x @ rng(3).standard_normal((6, 4))
    if name == "dead input":
        x[:, 2] = 0
    elif name == "all inputs zero":
        x[:] = 0
    elif name == "one row":
        x, y, h = x[:1], y[:1], h[:1]
    elif name == "dead bit line":
        h[:, 1] = y[:, 1] = 0
    elif name == "silent device":
        h[:] = 0
    elif name == "silent teacher":
        y[:] = 0
    elif name == "equal inputs":
        x[:] = x[:, :1]
    elif name == "no error":
        y = h.copy()
    elif name == "huge":
        x, y, h = x * 1e15, y * 1e15, h * 1e15
    elif name == "tiny":
        x, y, h = x * 1e-15, y * 1e-15, h * 1e-15
    return x, y, h


@pytest.mark.parametrize(
    "name",
    [
        "dead input",
        "all inputs zero",
        "one row",
        "dead bit line",
        "silent device",
        "silent teacher",
        "equal inputs",
        "no error",
        "huge",
        "tiny",
    ],
)
@pytest.mark.parametrize("rank", [1, 4])
def test_degenerate_data_gives_a_finite_adapter_that_does_no_harm(name: str, rank: int) -> None:
    # A singular X'X, 0 / 0 in M, a square root of -1e-20.
    x, y, h = degenerate(name)
    moments = moments_of(x, y, h)
    adapter = solve(moments, rank=rank, num_samples=1, config=ClosedFormConfig())
    for part in (adapter.a, adapter.b, adapter.m):
        assert np.isfinite(part).all()
    before, after = squared_error(moments, None), squared_error(moments, adapter)
    # Differences of moments: rounding of 20 float32 rows in units of the power.
    assert after <= before + 1e-6 * float(moments.y_y.sum() + moments.h_h.sum())
    if name == "dead input":
        assert not adapter.a[0, 2].any()
    if name == "all inputs zero":
        assert not adapter.a.any()


def test_no_rows_at_all_give_the_identity() -> None:
    # A node that a batch of zero tokens reaches.
    moments = SecondMoments(Geometry(weight_shape=(4, 3)))
    adapter = solve(moments, rank=2, num_samples=1, config=ClosedFormConfig())
    assert not (adapter.a @ adapter.b).any()
    assert np.array_equal(adapter.m, np.ones((1, 3)))
    assert squared_error(moments, adapter) == 0


def test_wide_nodes_give_the_adapter_of_the_dense_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    # The iterative eigensolver with too few iterations, or the wrong end of the spectrum.
    x = rng(1).standard_normal((500, 40))
    h = x @ rng(2).standard_normal((40, 300))
    y = h + x @ (rng(3).standard_normal((40, 300)) * np.logspace(0, -1, 40)[:, None] / 8)
    moments = moments_of(x, y, h)
    products = []
    for limit in (256, 1024):
        monkeypatch.setattr(module, "_DENSE_EIGEN", limit)
        adapter = solve(moments, rank=4, num_samples=10, config=ClosedFormConfig())
        products.append(adapter.a[0] @ adapter.b[0])
    scale = np.abs(products[1]).max()
    np.testing.assert_allclose(products[0], products[1], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "wrong", [{"ridge_frac": 0.0}, {"prior_samples": -1.0}, {"rounds": 0}, {"ridge_frac": np.nan}]
)
def test_wrong_configuration_is_refused(wrong: dict[str, float]) -> None:
    # Without ridge the normal equations of ten images are singular.
    with pytest.raises(ConfigError, match="need ridge_frac > 0"):
        ClosedFormConfig(**wrong)
