# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx import reference
from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.moments import SecondMoments, rows_of
from rimc_onnx.calibration.problem import NodeProblem, Statistics
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.solvers.closed_form import Adapter
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.ops.schema import MAX_CODE_SUM

Array = np.ndarray[Any, Any]

MATMUL = NodeGeometry(weight_shape=(24, 10))
CONV = NodeGeometry(
    weight_shape=(8, 3, 3, 2),
    group=2,
    strides=(2, 1),
    pads=(1, 0, 1, 1),
    dilations=(1, 2),
)
DEPTHWISE = NodeGeometry(weight_shape=(6, 1, 3), group=6, strides=(1,), pads=(1, 1), dilations=(1,))
CASES = {
    "matmul": (MATMUL, (40, 24), 3),
    "matmul of rank 3": (MATMUL, (4, 10, 24), 3),
    "grouped conv": (CONV, (5, 6, 9, 8), 2),
    "depthwise conv": (DEPTHWISE, (20, 6, 11), 1),
}
by_case = pytest.mark.parametrize(("geometry", "x_shape", "rank"), CASES.values(), ids=CASES)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def adapter_of(geometry: NodeGeometry, rank: int, *, sparse: str = "some") -> Adapter:
    g, d, m = geometry.group, geometry.depth, geometry.group_columns
    cells = rng(6).standard_normal((g, d, m)) * np.logspace(0, -3, m)
    kept = {"none": 0.0, "some": 0.3, "all": 1.0}[sparse]
    return Adapter(
        a=(rng(1).standard_normal((g, d, rank)) * np.logspace(0, -2, rank)).astype(np.float32),
        b=(rng(2).standard_normal((g, rank, m)) * np.logspace(0, -3, m)).astype(np.float32),
        m=rng(3).uniform(0.5, 1.5, (g, m)).astype(np.float32),
        s=None
        if sparse == "none"
        else np.where(rng(7).uniform(size=cells.shape) < kept, cells, 0).astype(np.float32),
    )


def h_like(geometry: NodeGeometry, x: Array) -> Array:
    columns = geometry.columns
    if not geometry.is_conv:
        return rng(4).standard_normal((*x.shape[:-1], columns)).astype(np.float32)
    shape = reference.im2col(
        x, geometry.weight_shape[2:], geometry.strides, geometry.pads, geometry.dilations
    ).shape
    spatial = shape[1 : 1 + len(geometry.strides)]
    return rng(4).standard_normal((len(x), columns, *spatial)).astype(np.float32)


def problem_of(geometry: NodeGeometry, x: Array) -> NodeProblem:
    moments = SecondMoments(geometry)
    moments.update(x, h_like(geometry, x))
    weight = np.zeros((geometry.group, geometry.depth, geometry.group_columns), np.float32)
    return NodeProblem(
        name="n",
        geometry=geometry,
        statistics=Statistics.of(moments),
        target=weight,
        error=weight,
        bias_frac=0.0,
    )


def run_codes(geometry: NodeGeometry, codes: QuantizedAdapter, x: Array, h: Array) -> Array:
    if not geometry.is_conv:
        return reference.dora_matmul(x, h, **codes.tensors())  # type: ignore[arg-type]
    attributes = {
        "strides": geometry.strides,
        "pads": geometry.pads,
        "dilations": geometry.dilations,
        "group": geometry.group,
    }
    return reference.dora_conv(x, h, **codes.tensors(), **attributes)  # type: ignore[arg-type]


def run_floats(
    geometry: NodeGeometry, adapter: Adapter, bias: Array, x: Array, h: Array
) -> tuple[Array, Array]:
    """Rows [P, G, m] of X (A B + S), and Y as rows [P, G * m]."""
    branch, y = [], []
    correction = adapter.a.astype(np.float64) @ adapter.b
    if adapter.s is not None:
        correction = correction + adapter.s
    for x_rows, h_rows in rows_of(geometry, x, h):
        v = np.einsum("pgd,gdm->pgm", x_rows.astype(np.float64), correction)
        branch.append(v)
        y.append((adapter.m * (h_rows + v)).reshape(len(v), -1) + bias)
    return np.concatenate(branch), np.concatenate(y)


def as_rows(geometry: NodeGeometry, y: Array) -> Array:
    last = np.moveaxis(y, 1, -1) if geometry.is_conv else y
    return last.reshape(-1, geometry.columns)


@by_case
@pytest.mark.parametrize("sparse", ["none", "some", "all"])
@pytest.mark.parametrize("ranked", [True, False], ids=["low rank", "no rank"])
def test_codes_stand_for_the_stored_adapter(
    geometry: NodeGeometry, x_shape: tuple[int, ...], rank: int, sparse: str, ranked: bool
) -> None:
    # A layout that mixes groups, ranks or cells, or a scale that is multiplied for divided. The
    # input lies on the codes' grid, so all that differs is the rounding of X A to its codes: half
    # a step of each rank, times what B makes of it.
    rank = rank if ranked else 0
    fitted = adapter_of(geometry, rank, sparse=sparse)
    columns = geometry.columns
    bias = rng(5).standard_normal(columns).astype(np.float32)
    raw = rng(0).standard_normal(x_shape).astype(np.float32)
    scale = quantize(fitted, problem_of(geometry, raw), bias, dense=False)[0].x_scale
    x = (np.rint(raw / scale) * scale).astype(np.float32)
    h = h_like(geometry, x)
    codes, stored = quantize(fitted, problem_of(geometry, x), bias, dense=sparse == "all")
    got = as_rows(geometry, run_codes(geometry, codes, x, h))
    _, expected = run_floats(geometry, stored, bias, x, h)

    u = np.concatenate(
        [np.einsum("pgd,gdr->pgr", r.astype(np.float64), stored.a) for (r,) in rows_of(geometry, x)]
    )
    step = 4.5 * np.sqrt(np.square(u).mean(axis=0)) / 127
    assert (np.abs(u) < 127 * step).all(), "saturation is another test's"
    x_error = float(codes.x_scale[0]) * 2**-20  # x / x_scale is rounded in float32
    bound = np.einsum("gr,grm->gm", 0.5 * step * 1.001 + x_error, np.abs(stored.b)) * stored.m
    # and the float32 arithmetic of the merge, of values up to those of a branch
    size = np.abs(expected) + np.abs(bias) + 8 + 4 * np.abs(expected).max()
    assert (np.abs(got - expected) <= bound.reshape(-1) + 4 * 2.0**-24 * size).all()


def test_full_scale_of_the_ranks_is_near_the_best() -> None:
    # A full scale that leaves most codes of X A unused, or cuts what is not rare. Of a Gaussian the
    # least square error over all full scales is at 3.9 root mean squares; 4.5 costs 1.4 times as
    # much and is safe with longer tails, 6 costs 2.5 times as much.
    geometry = NodeGeometry(weight_shape=(64, 4))
    x = rng(0).standard_normal((20_000, 64)).astype(np.float32)
    problem = problem_of(geometry, x)
    codes, stored = quantize(
        adapter_of(geometry, 2, sparse="none"), problem, np.zeros(4, np.float32), dense=False
    )
    u = x.astype(np.float64) @ stored.a[0]
    unit = codes.rank_step * codes.x_scale * (np.abs(stored.a[0]).max(axis=0) / 127)

    def error(step: Array) -> Array:
        coded = np.clip(np.rint(u / step), -127, 127) * step
        return np.asarray(np.square(coded - u).mean(axis=0))

    rms = np.sqrt(np.square(u).mean(axis=0))
    least = np.min([error(scale * rms / 127) for scale in np.arange(2.0, 9.0, 0.1)], axis=0)
    assert (error(unit) < 2 * least).all()


@by_case
@pytest.mark.parametrize("sparse", ["none", "some", "all"])
@pytest.mark.parametrize("ranked", [True, False], ids=["low rank", "no rank"])
def test_branch_in_int8_is_near_the_fitted_one(
    geometry: NodeGeometry, x_shape: tuple[int, ...], rank: int, sparse: str, ranked: bool
) -> None:
    # The loss that the whole method may have. Steps in units of the root mean square: x 12 / 127,
    # X A 4.5 / 127; a uniform error is step / sqrt(12), so 2.7 % and 1 %; A and B have 7 bits
    # of their largest code, below 1 % each. In all 3.3 % of a branch; stated bound 5 %. S has 3
    # bits of its bit line's largest: each cell is off by 1 / (7 sqrt(12)) of that, 4.1 %, each on
    # its own; stated bound 6 %. The two are apart, as they may cancel.
    fitted = adapter_of(geometry, rank if ranked else 0, sparse=sparse)
    fitted = Adapter(a=fitted.a, b=fitted.b, m=np.ones_like(fitted.m), s=fitted.s)
    x = rng(0).standard_normal(x_shape).astype(np.float32)
    h = h_like(geometry, x)
    bias = np.zeros(geometry.columns, np.float32)
    codes, _ = quantize(fitted, problem_of(geometry, x), bias, dense=False)
    got = as_rows(geometry, run_codes(geometry, codes, x, h))
    _, expected = run_floats(geometry, fitted, bias, x, h)
    error = np.sqrt(np.square(got - expected).mean(axis=0))
    allowed = 0.0
    for part in (
        Adapter(a=fitted.a, b=fitted.b, m=fitted.m, s=None),
        Adapter(a=0 * fitted.a, b=fitted.b, m=fitted.m, s=fitted.s),
    ):
        branch, _ = run_floats(geometry, part, bias, x, h)
        power = np.square(branch.reshape(len(branch), -1)).mean(axis=0)
        allowed = allowed + 0.05**2 * power
    if fitted.s is not None:
        rows = np.concatenate([x_rows for (x_rows,) in rows_of(geometry, x)])
        loudness = np.square(rows, dtype=np.float64).mean(axis=0)
        kept = np.einsum("gd,gdm->gm", loudness, fitted.s != 0)
        allowed = allowed + 0.06**2 * (kept * np.square(fitted.s).max(axis=1)).reshape(-1)
    # per bit line, since each has its own scale; 2^-22 is the merge with h in float32
    assert (error <= np.sqrt(allowed) + 2.0**-22).all()


@by_case
def test_sparse_index_is_that_of_the_weight(
    geometry: NodeGeometry, x_shape: tuple[int, ...], rank: int
) -> None:
    # An index into [G, d, m] where the operator scatters into the weight's own layout.
    cells = np.zeros((geometry.group, geometry.depth, geometry.group_columns), np.float32)
    places = [(0, 0, 0), (geometry.group - 1, geometry.depth - 1, geometry.group_columns - 1)]
    places.append((geometry.group // 2, geometry.depth // 2, geometry.group_columns // 2))
    for i, place in enumerate(places):
        cells[place] = (-1) ** i
    fitted = adapter_of(geometry, rank)
    fitted = Adapter(a=0 * fitted.a, b=fitted.b, m=fitted.m, s=cells)
    x = rng(0).standard_normal(x_shape).astype(np.float32)
    bias = np.zeros(geometry.columns, np.float32)
    codes, _ = quantize(fitted, problem_of(geometry, x), bias, dense=False)
    weight = np.zeros(geometry.weight_shape, np.float32)
    weight.reshape(-1)[codes.sparse_index] = codes.sparse_values / 7
    assert np.array_equal(geometry.matrices(weight), cells)
    assert (np.diff(codes.sparse_index) > 0).all()
    assert codes.sparse_index.dtype == np.int64


def test_cells_that_round_to_nothing_take_no_sram_unless_all_are_kept() -> None:
    # A place for a code of 0; or a matrix that is kept whole and has holes, which costs an index.
    cells = np.ones((1, 24, 10), np.float32)
    cells[0, :, 0] = np.logspace(0, -4, 24)
    cells[0, 5, :] = 0
    fitted = adapter_of(MATMUL, 0)
    fitted = Adapter(a=fitted.a, b=fitted.b, m=fitted.m, s=cells)
    x = rng(0).standard_normal((40, 24)).astype(np.float32)
    bias = np.zeros(10, np.float32)
    some, _ = quantize(fitted, problem_of(MATMUL, x), bias, dense=False)
    assert (some.sparse_values != 0).all()
    assert some.sparse_values.size < 230
    assert some.sram_bytes == -(-3 * some.sparse_values.size // 2) + 10
    assert np.abs(some.sparse_values).max() == 7
    every, _ = quantize(fitted, problem_of(MATMUL, x), bias, dense=True)
    assert np.array_equal(every.sparse_index, np.arange(240))
    assert every.sram_bytes == 240 + 10


@by_case
def test_magnitude_is_within_half_a_code(
    geometry: NodeGeometry, x_shape: tuple[int, ...], rank: int
) -> None:
    # M is stored in 7 bits of the node's largest: half a step is 0.4 % of it.
    x = rng(0).standard_normal(x_shape).astype(np.float32)
    fitted = adapter_of(geometry, rank)
    bias = np.zeros(geometry.columns, np.float32)
    codes, stored = quantize(fitted, problem_of(geometry, x), bias, dense=False)
    step = fitted.m.max() / 127
    assert np.abs(stored.m - fitted.m).max() <= 0.5001 * step
    assert codes.magnitude.shape == (geometry.columns,)
    assert codes.magnitude.max() == 127


def test_magnitude_of_1_is_exact_and_takes_no_sram() -> None:
    # 127 / 127 is not 1 in float32 for every scale; lora has no M.
    fitted = adapter_of(MATMUL, 3, sparse="none")
    fitted = Adapter(a=fitted.a, b=fitted.b, m=np.ones_like(fitted.m), s=None)
    x = rng(0).standard_normal((40, 24)).astype(np.float32)
    codes, stored = quantize(fitted, problem_of(MATMUL, x), np.zeros(10, np.float32), dense=False)
    assert np.array_equal(codes.magnitude * codes.magnitude_scale, np.ones(10, np.float32))
    assert np.array_equal(stored.m, fitted.m)
    assert codes.sram_bytes == 3 * 34


@pytest.mark.parametrize("part", ["lora_a", "sparse"])
@pytest.mark.parametrize("spread", ["equal", "random", "one"])
def test_sum_of_codes_stays_exact_in_float32(spread: str, part: str) -> None:
    # 4608 word lines (512 channels of 3 x 3) of codes up to 127 sum to 585,216; times 127 that is
    # beyond 2^24, and the function body would no longer give the kernel's integers.
    geometry = NodeGeometry(
        weight_shape=(4, 512, 3, 3),
        strides=(1, 1),
        pads=(0, 0, 0, 0),
        dilations=(1, 1),
    )
    depth = geometry.depth
    width = {"lora_a": 2, "sparse": 4}[part]
    values = {
        "equal": np.ones((1, depth, width), np.float32),
        "random": rng(0).standard_normal((1, depth, width)).astype(np.float32),
        "one": np.eye(depth, width, dtype=np.float32)[None],
    }[spread]
    adapter = Adapter(
        a=values if part == "lora_a" else np.zeros((1, depth, 0), np.float32),
        b=rng(1).standard_normal((1, values.shape[2] if part == "lora_a" else 0, 4)),
        m=np.ones((1, 4), np.float32),
        s=values if part == "sparse" else None,
    )
    weight = np.zeros((1, depth, 4), np.float32)
    problem = NodeProblem(
        name="conv",
        geometry=geometry,
        statistics=Statistics(
            x_mean=np.zeros((1, depth), np.float32),
            x_cov=Gram(matrix=np.eye(depth, dtype=np.float32)[None]),
            y_mean=np.zeros((1, 4), np.float32),
            y_variance=np.ones((1, 4), np.float32),
            x_abs_max=4.0,
        ),
        target=weight,
        error=weight,
        bias_frac=0.0,
    )
    codes, stored = quantize(adapter, problem, np.zeros(4, np.float32), dense=True)
    if part == "lora_a":
        sums = np.abs(codes.lora_a.astype(np.int64)).reshape(2, -1).sum(axis=1)
        found, wanted = stored.a @ stored.b, adapter.a @ adapter.b
    else:
        sums = np.abs(codes.sparse_values.astype(np.int64)).reshape(4, -1).sum(axis=1)
        assert stored.s is not None
        found, wanted = stored.s, values
    assert sums.max() <= MAX_CODE_SUM
    assert sums.max() * 127 < 2**24
    # 132,104 codes shared by 4608 word lines leave 28 codes for each of equal ones: 2 %.
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dead", ["a", "b", "s", "x", "all"])
def test_dead_adapter_is_finite(dead: str) -> None:
    # A scale of 0: codes NaN, or a division by zero in the operator.
    x = rng(0).standard_normal((30, 24)).astype(np.float32)
    adapter = adapter_of(MATMUL, 3)
    assert adapter.s is not None
    if dead in {"a", "all"}:
        adapter.a[:] = 0
    if dead in {"b", "all"}:
        adapter.b[:] = 0
    if dead in {"s", "all"}:
        adapter.s[:] = 0
    if dead in {"x", "all"}:
        x[:] = 0
    h = h_like(MATMUL, x)
    codes, stored = quantize(adapter, problem_of(MATMUL, x), np.zeros(10, np.float32), dense=False)
    for name, tensor in codes.tensors().items():
        assert np.isfinite(tensor.astype(np.float64)).all(), name
    for name in ("x_scale", "rank_step", "lora_b_scale", "magnitude_scale", "sparse_scale"):
        assert (getattr(codes, name) > 0).all(), name
    got = run_codes(MATMUL, codes, x, h)
    assert np.isfinite(got).all()
    if dead == "all":
        np.testing.assert_allclose(got, stored.m[0] * h, rtol=1e-6, atol=1e-6)


def test_outlier_does_not_cost_all_other_values_their_codes() -> None:
    # A scale from the maximum: one value of 1000 leaves 0 for all the others.
    x = rng(0).standard_normal((200, 24)).astype(np.float32)
    bias = np.zeros(10, np.float32)
    calm, _ = quantize(adapter_of(MATMUL, 3), problem_of(MATMUL, x), bias, dense=False)
    assert calm.x_scale[0] == np.abs(x).max() / np.float32(127)
    x[3, 5] = 1000
    codes, _ = quantize(adapter_of(MATMUL, 3), problem_of(MATMUL, x), bias, dense=False)
    assert codes.x_scale[0] < 0.2 * 1000 / 127


def test_second_factor_takes_up_the_rounding_of_the_first() -> None:
    # B rounded as it was fitted: A's rounding error goes straight to the output.
    fitted = adapter_of(MATMUL, 3, sparse="none")
    fitted.a[0, 0] *= 30  # one large cell a rank leaves few codes for the others
    x = rng(0).standard_normal((400, 24)).astype(np.float32)
    x[:, 0] *= 0.01
    problem = problem_of(MATMUL, x)
    codes, stored = quantize(fitted, problem, np.zeros(10, np.float32), dense=False)

    def error(b: Array) -> float:
        rest = (stored.a @ b - fitted.a @ fitted.b)[0]
        return float((rest * (problem.metric[0] @ rest)).sum())

    assert codes.lora_b.shape == (3, 10)
    assert error(stored.b) < error(fitted.b)
