# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx import reference
from rimc_onnx.adapter import QuantizedAdapter
from rimc_onnx.calibration.closed_form import Adapter
from rimc_onnx.calibration.moments import Geometry, SecondMoments, rows_of
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.opset import MAX_LORA_A_L1

Array = np.ndarray[Any, Any]

MATMUL = Geometry(weight_shape=(24, 10))
CONV = Geometry(
    weight_shape=(8, 3, 3, 2),
    conv=True,
    group=2,
    strides=(2, 1),
    pads=(1, 0, 1, 1),
    dilations=(1, 2),
)
DEPTHWISE = Geometry(
    weight_shape=(6, 1, 3), conv=True, group=6, strides=(1,), pads=(1, 1), dilations=(1,)
)
CASES = {
    "matmul": (MATMUL, (40, 24), 3),
    "matmul of rank 3": (MATMUL, (4, 10, 24), 3),
    "grouped conv": (CONV, (5, 6, 9, 8), 2),
    "depthwise conv": (DEPTHWISE, (20, 6, 11), 1),
}
by_case = pytest.mark.parametrize(("geometry", "x_shape", "rank"), CASES.values(), ids=CASES)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def adapter_of(geometry: Geometry, rank: int) -> Adapter:
    g, d, m = geometry.group, geometry.depth, geometry.columns
    return Adapter(
        a=rng(1).standard_normal((g, d, rank)) * np.logspace(0, -2, rank),
        b=rng(2).standard_normal((g, rank, m)) * np.logspace(0, -3, m),
        m=rng(3).uniform(0.5, 1.5, (g, m)),
    )


def h_like(geometry: Geometry, x: Array) -> Array:
    columns = geometry.group * geometry.columns
    if not geometry.conv:
        return rng(4).standard_normal((*x.shape[:-1], columns)).astype(np.float32)
    shape = reference.im2col(
        x, geometry.weight_shape[2:], geometry.strides, geometry.pads, geometry.dilations
    ).shape
    spatial = shape[1 : 1 + len(geometry.strides)]
    return rng(4).standard_normal((len(x), columns, *spatial)).astype(np.float32)


def moments_of(geometry: Geometry, x: Array, h: Array) -> SecondMoments:
    moments = SecondMoments(geometry)
    moments.update(x, h, h)
    return moments


def run_codes(geometry: Geometry, codes: QuantizedAdapter, x: Array, h: Array) -> Array:
    if not geometry.conv:
        return reference.dora_matmul(x, h, **codes.tensors())  # type: ignore[arg-type]
    attributes = {
        "strides": geometry.strides,
        "pads": geometry.pads,
        "dilations": geometry.dilations,
        "group": geometry.group,
    }
    return reference.dora_conv(x, h, **codes.tensors(), **attributes)  # type: ignore[arg-type]


def run_floats(
    geometry: Geometry, adapter: Adapter, bias: Array, x: Array, h: Array
) -> tuple[Array, Array]:
    """Rows [P, G, m] of X A B, and Y as rows [P, G * m]."""
    branch, y = [], []
    for x_rows, h_rows in rows_of(geometry, x, h):
        v = np.einsum("pgd,gdr,grm->pgm", x_rows.astype(np.float64), adapter.a, adapter.b)
        branch.append(v)
        y.append((adapter.m * (h_rows + v)).reshape(len(v), -1) + bias)
    return np.concatenate(branch), np.concatenate(y)


def as_rows(geometry: Geometry, y: Array) -> Array:
    last = np.moveaxis(y, 1, -1) if geometry.conv else y
    return last.reshape(-1, geometry.group * geometry.columns)


@by_case
def test_codes_stand_for_the_stored_adapter(
    geometry: Geometry, x_shape: tuple[int, ...], rank: int
) -> None:
    # A layout that mixes groups and ranks, or a scale that is multiplied for divided. The input
    # lies on the codes' grid, so all that differs is the rounding of X A to its codes: half a
    # step of each rank, times what B makes of it.
    raw = rng(0).standard_normal(x_shape).astype(np.float32)
    scale = quantize(
        adapter_of(geometry, rank), moments_of(geometry, raw, h_like(geometry, raw)), np.zeros(1)
    )[0].x_scale
    x = (np.rint(raw / scale) * scale).astype(np.float32)
    h = h_like(geometry, x)
    columns = geometry.group * geometry.columns
    bias = rng(5).standard_normal(columns).astype(np.float32)
    moments = moments_of(geometry, x, h)
    codes, stored = quantize(adapter_of(geometry, rank), moments, bias)
    got = as_rows(geometry, run_codes(geometry, codes, x, h))
    _, expected = run_floats(geometry, stored, bias, x, h)

    x_rms = np.sqrt(np.trace(moments.x_x, axis1=1, axis2=2).sum() / moments.x.size)
    assert x_rms > 0
    u = np.concatenate(
        [np.einsum("pgd,gdr->pgr", r.astype(np.float64), stored.a) for (r,) in rows_of(geometry, x)]
    )
    step = 6 * np.sqrt(np.square(u).mean(axis=0)) / 127
    assert (np.abs(u) < 127 * step).all(), "saturation is another test's"
    x_error = float(codes.x_scale[0]) * 2**-20  # x / x_scale is rounded in float32
    bound = np.einsum("gr,grm->gm", 0.5 * step * 1.001 + x_error, np.abs(stored.b)) * stored.m
    # and the float32 arithmetic of the merge
    bound = bound.reshape(-1) + 4 * 2.0**-24 * (np.abs(expected) + np.abs(bias) + 4)
    assert (np.abs(got - expected) <= bound).all()


@by_case
def test_branch_in_int8_is_near_the_fitted_one(
    geometry: Geometry, x_shape: tuple[int, ...], rank: int
) -> None:
    # The loss that the whole method may have. Steps in units of the root mean square: x 12 / 127,
    # X A 6 / 127; a uniform error is step / sqrt(12), so 2.7 % and 1.4 %; A and B have 7 bits of
    # their largest code, below 1 % each. In all 3.4 % of the branch; stated bound 5 %.
    x = rng(0).standard_normal(x_shape).astype(np.float32)
    h = h_like(geometry, x)
    bias = np.zeros(geometry.group * geometry.columns, np.float32)
    fitted = adapter_of(geometry, rank)
    fitted = Adapter(a=fitted.a, b=fitted.b, m=np.ones_like(fitted.m))
    codes, _ = quantize(fitted, moments_of(geometry, x, h), bias)
    got = as_rows(geometry, run_codes(geometry, codes, x, h))
    branch, expected = run_floats(geometry, fitted, bias, x, h)
    branch = branch.reshape(len(branch), -1)
    error = np.sqrt(np.square(got - expected).mean(axis=0))
    # per bit line, since each has its own scale; 2^-22 is the merge with h in float32
    assert (error <= 0.05 * np.sqrt(np.square(branch).mean(axis=0)) + 2.0**-22).all()


@by_case
def test_magnitude_is_within_half_a_code(
    geometry: Geometry, x_shape: tuple[int, ...], rank: int
) -> None:
    # M is stored in 7 bits of the node's largest: half a step is 0.4 % of it.
    x = rng(0).standard_normal(x_shape).astype(np.float32)
    fitted = adapter_of(geometry, rank)
    bias = np.zeros(geometry.group * geometry.columns, np.float32)
    codes, stored = quantize(fitted, moments_of(geometry, x, h_like(geometry, x)), bias)
    step = fitted.m.max() / 127
    assert np.abs(stored.m - fitted.m).max() <= 0.5001 * step
    assert codes.magnitude.shape == (geometry.group * geometry.columns,)
    assert codes.magnitude.max() == 127


@pytest.mark.parametrize("spread", ["equal", "random", "one"])
def test_sum_of_codes_stays_exact_in_float32(spread: str) -> None:
    # 4608 word lines (512 channels of 3 x 3) of codes up to 127 sum to 585,216; times 127 that is
    # beyond 2^24, and the function body would no longer give the kernel's integers.
    geometry = Geometry(
        weight_shape=(4, 512, 3, 3),
        conv=True,
        strides=(1, 1),
        pads=(0, 0, 0, 0),
        dilations=(1, 1),
    )
    depth = geometry.depth
    a = {
        "equal": np.ones((1, depth, 2)),
        "random": rng(0).standard_normal((1, depth, 2)),
        "one": np.eye(depth, 2)[None],
    }[spread]
    adapter = Adapter(a=a, b=rng(1).standard_normal((1, 2, 4)), m=np.ones((1, 4)))
    moments = SecondMoments(geometry)
    moments.num_rows, moments.x_abs_max = 100, 4.0
    moments.x_x[0] = 100 * np.eye(depth)
    codes, stored = quantize(adapter, moments, np.zeros(4, np.float32))
    l1 = np.abs(codes.lora_a.astype(np.int64)).reshape(2, -1).sum(axis=1)
    assert l1.max() <= MAX_LORA_A_L1
    assert l1.max() * 127 < 2**24
    product, wanted = stored.a @ stored.b, adapter.a @ adapter.b
    # 132,104 codes shared by 4608 word lines leave 28 codes for each of equal ones: 2 %.
    assert np.linalg.norm(product - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dead", ["a", "b", "x", "all"])
def test_dead_adapter_is_finite(dead: str) -> None:
    # A scale of 0: codes NaN, or a division by zero in the operator.
    x = rng(0).standard_normal((30, 24)).astype(np.float32)
    adapter = adapter_of(MATMUL, 3)
    if dead in {"a", "all"}:
        adapter.a[:] = 0
    if dead in {"b", "all"}:
        adapter.b[:] = 0
    if dead in {"x", "all"}:
        x[:] = 0
    h = h_like(MATMUL, x)
    bias = np.zeros(10, np.float32)
    codes, stored = quantize(adapter, moments_of(MATMUL, x, h), bias)
    for name, tensor in codes.tensors().items():
        assert np.isfinite(tensor.astype(np.float64)).all(), name
    for name in ("x_scale", "rank_step", "lora_b_scale", "magnitude_scale"):
        assert (getattr(codes, name) > 0).all(), name
    got = run_codes(MATMUL, codes, x, h)
    assert np.isfinite(got).all()
    if dead != "x":
        np.testing.assert_allclose(got, stored.m[0] * h, rtol=1e-6, atol=1e-6)


def test_outlier_does_not_cost_all_other_values_their_codes() -> None:
    # A scale from the maximum: one value of 1000 leaves 0 for all the others.
    x = rng(0).standard_normal((200, 24)).astype(np.float32)
    calm = quantize(adapter_of(MATMUL, 3), moments_of(MATMUL, x, h_like(MATMUL, x)), np.zeros(10))
    assert calm[0].x_scale[0] == np.abs(x).max() / np.float32(127)
    x[3, 5] = 1000
    codes, _ = quantize(
        adapter_of(MATMUL, 3), moments_of(MATMUL, x, h_like(MATMUL, x)), np.zeros(10)
    )
    assert codes.x_scale[0] < 0.2 * 1000 / 127
