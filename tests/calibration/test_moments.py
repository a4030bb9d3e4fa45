# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
from node_geometries import DEPTHWISE, MATMUL, by_node

from rimc_onnx.calibration import moments as module
from rimc_onnx.calibration.moments import SecondMoments, check_summable
from rimc_onnx.errors import CalibrationError
from rimc_onnx.ops.geometry import NodeGeometry

Array = np.ndarray


def sums(moments: SecondMoments, name: str) -> Array:
    """A sum by its name, ``x_x`` as a matrix."""
    return np.asarray(moments.gram.dense() if name == "x_x" else getattr(moments, name))


def windows_by_hand(geometry: NodeGeometry, x: Array) -> tuple[Array, tuple[int, ...]]:
    """Rows [P, G, d] of a convolution, one loop per index, and the spatial output shape."""
    kernel = geometry.weight_shape[2:]
    rank = len(kernel)
    begin, end = geometry.pads[:rank], geometry.pads[rank:]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    out = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(
            padded.shape[2:], kernel, geometry.strides, geometry.dilations, strict=True
        )
    )
    per_group = x.shape[1] // geometry.group
    rows = []
    for sample in padded:
        for position in itertools.product(*map(range, out)):
            groups = []
            for g in range(geometry.group):
                cells = [
                    sample[
                        (
                            g * per_group + c,
                            *(
                                p * s + k * d
                                for p, s, k, d in zip(
                                    position,
                                    geometry.strides,
                                    offset,
                                    geometry.dilations,
                                    strict=True,
                                )
                            ),
                        )
                    ]
                    for c in range(per_group)
                    for offset in itertools.product(*map(range, kernel))
                ]
                groups.append(cells)
            rows.append(groups)
    return np.array(rows), out


def whole_numbers(shape: tuple[int, ...], seed: int) -> Array:
    """Small integers: every sum below is exact in float32, in any order."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


def by_hand(geometry: NodeGeometry, x: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Rows of X, and Y and H as rows and as the node writes them."""
    columns = geometry.columns
    if geometry.is_conv:
        rows, out = windows_by_hand(geometry, x)
        shape: tuple[int, ...] = (len(x), columns, *out)
    else:
        rows, shape = x.reshape(-1, 1, geometry.depth), (*x.shape[:-1], columns)
    y, h = whole_numbers(shape, 1), whole_numbers(shape, 2)
    flat = [np.moveaxis(a, 1, -1) if geometry.is_conv else a for a in (y, h)]
    y_rows, h_rows = (a.reshape(len(rows), geometry.group, geometry.group_columns) for a in flat)
    return rows, y, h, y_rows, h_rows


@by_node
@pytest.mark.parametrize("rows_at_once", [None, 1, 3])
def test_moments_are_the_sums_over_all_rows(
    geometry: NodeGeometry,
    x_shape: tuple[int, ...],
    rows_at_once: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A group's channels, a stride or a pad in the wrong place; a last chunk that is dropped.
    if rows_at_once is not None:
        limit = 4 * geometry.group * geometry.depth * rows_at_once
        monkeypatch.setattr(module, "_CHUNK_BYTES", limit)
    x = whole_numbers(x_shape, 0)
    rows, y, h, y_rows, h_rows = by_hand(geometry, x)
    moments = SecondMoments(geometry)
    half = len(x) // 2
    moments.update(x[:half], y[:half], h[:half])
    moments.update(x[half:], y[half:], h[half:])
    moments.update(x[:0], y[:0], h[:0])

    assert moments.num_rows == len(rows)
    assert moments.x_abs_max == np.abs(rows).max()
    for g in range(geometry.group):
        x_g, y_g, h_g = rows[:, g], y_rows[:, g], h_rows[:, g]
        for name, expected in {
            "x_x": x_g.T @ x_g,
            "x_e": x_g.T @ (y_g - h_g),
            "x": x_g.sum(axis=0),
            "y": y_g.sum(axis=0),
            "y_y": (y_g * y_g).sum(axis=0),
        }.items():
            assert np.array_equal(sums(moments, name)[g], expected), name


@pytest.mark.parametrize("geometry", [MATMUL, DEPTHWISE], ids=["matmul", "depthwise"])
def test_rows_beyond_a_limit_are_scaled_down_to_it(geometry: NodeGeometry) -> None:
    # Powers of each group instead of the whole row's; X left as it was, so that a row no longer is
    # an input and its output; rows within the limit scaled, too.
    x = whole_numbers((6, 12) if geometry is MATMUL else (2, 4, 5, 4), 0)
    rows, y, h, y_rows, h_rows = by_hand(geometry, x)
    powers = np.square(y_rows).sum(axis=(1, 2))
    limit = float(np.median(powers))
    factor = np.sqrt(np.minimum(1, limit / np.maximum(powers, 1)))[:, None, None]
    assert (factor < 1).any()
    assert (factor == 1).any()
    moments = SecondMoments(geometry, limit)
    moments.update(x, y, h)
    x_g, e_g = np.moveaxis(rows * factor, 1, 0), np.moveaxis((y_rows - h_rows) * factor, 1, 0)
    x_e = x_g.transpose(0, 2, 1) @ e_g
    np.testing.assert_allclose(moments.x_e, x_e, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(moments.x, (rows * factor).sum(axis=0), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        moments.y_y, np.square(y_rows * factor).sum(axis=0), rtol=1e-5, atol=1e-3
    )
    assert moments.x_abs_max == pytest.approx(np.abs(rows * factor).max())


def test_long_sums_keep_their_digits() -> None:
    # Sums kept in float32 stop growing at 2^24: 20 million ones are 16,777,216.
    moments = SecondMoments(NodeGeometry(weight_shape=(1, 1)))
    x = np.ones((1 << 20, 1), np.float32)
    for _ in range(20):
        moments.update(x, x, 0 * x)
    for name in ("x_x", "x_e", "x", "y", "y_y"):
        assert sums(moments, name).item() == 20 * (1 << 20), name


@pytest.mark.parametrize("geometry", [MATMUL, DEPTHWISE], ids=["matmul", "depthwise"])
def test_inputs_of_any_layout_are_read(geometry: NodeGeometry) -> None:
    # Views with other strides, as ONNX Runtime never makes but numpy does.
    shape = (6, 12) if geometry is MATMUL else (2, 4, 5, 4)
    x = whole_numbers(shape, 0)
    _, y, h, *_ = by_hand(geometry, x)
    plain, odd = SecondMoments(geometry), SecondMoments(geometry)
    plain.update(x, y, h)
    odd.update(np.asfortranarray(x), np.asfortranarray(y), np.asfortranarray(h))
    assert np.array_equal(plain.x_e, odd.x_e)


def test_small_error_of_a_large_feature_keeps_its_digits() -> None:
    # X'Y - X'H, each in float32, loses an error that is 1e-7 of the feature; Y - H is exact.
    x, y = np.full((64, 1), 3, np.float32), np.full((64, 1), 2.0**23, np.float32)
    moments = SecondMoments(NodeGeometry(weight_shape=(1, 1)))
    moments.update(x, y + 1, y)
    assert moments.x_e.item() == 3 * 64


def test_teacher_alone_needs_no_device() -> None:
    # Statistics for a file are taken where there is no chip.
    x, y = whole_numbers((6, 12), 0), whole_numbers((6, 9), 1)
    alone, both = SecondMoments(MATMUL), SecondMoments(MATMUL)
    alone.update(x, y)
    both.update(x, y, y)
    for name in ("x_x", "x_e", "x", "y", "y_y", "num_rows", "x_abs_max"):
        assert np.array_equal(sums(alone, name), sums(both, name)), name


@pytest.mark.parametrize("bad", [1e18, -1e25, np.inf, np.nan])
@pytest.mark.parametrize("at", ["x", "y", "h"])
def test_rows_that_float32_can_not_sum_are_left_out(at: str, bad: float) -> None:
    # Sums that overflow reached the solver as infinities, and it raised or fitted to them.
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((50, n)).astype("f4") for name, n in (("x", 12), ("y", 9))}
    given["h"] = given["y"] + np.float32(0.1)
    left, whole = SecondMoments(MATMUL), SecondMoments(MATMUL)
    whole.update(*(values[1:] for values in given.values()))
    given[at][0, 3] = bad
    left.update(*given.values())
    assert (left.num_rows, left.num_left_out) == (49, 1)
    for name in ("x_x", "x_e", "x", "y", "y_y"):
        np.testing.assert_array_equal(sums(left, name), sums(whole, name))


def test_weights_that_float32_can_not_square_are_refused() -> None:
    # Infinities in a decomposition, told as a defect of the program.
    weight = np.ones((3, 4), np.float32)
    check_summable("fc", weight)
    weight[2, 1] = -3e20
    with pytest.raises(CalibrationError, match=r"node 'fc': its weights reach 3e\+20"):
        check_summable("fc", weight)
