# SPDX-License-Identifier: Apache-2.0
"""Word lines, converters and reads that are not ideal: the native kernels against the oracle."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rimc_onnx import reference, runtime
from rimc_onnx.ops import schema

RRAM = [schema.RRAM_MATMUL, schema.RRAM_CONV]
MIXTURES = [
    ("sinh",),
    ("poly",),
    ("serial", "poly", "gain", "relative"),
    ("poly", "absolute"),
    ("serial",),
    ("gain",),
    ("offset",),
    ("absolute",),
    ("relative",),
    ("serial", "absolute"),
    ("serial", "relative"),
    ("sinh", "relative", "gain"),
    ("curve",),
    ("serial", "poly", "offset", "curve"),
    ("serial", "sinh", "gain", "offset", "absolute"),
]
by_mixture = pytest.mark.parametrize("names", MIXTURES, ids="+".join)


@by_mixture
@pytest.mark.parametrize("op", RRAM)
def test_ideal_adc_agrees_with_the_oracle(
    cases: ModuleType, op: str, names: tuple[str, ...]
) -> None:
    # Noise of another output, tile, plane or run; planes with the weight of a neighbour; a curve
    # behind the sum. Two runs of one session: the second draws anew.
    for seed in range(8):
        case = cases.MAKERS[op](np.random.default_rng(seed), adc=False, names=names)
        session = runtime.make_session(case.model(), num_threads=2)
        for run in range(2):
            got, want = session.run(None, case.feeds)[0], case.oracle(run=run)
            assert got.shape == want.shape
            # Of a sum, as for an ideal read; noise adds roundings of its own, of a few eps of
            # terms no larger than these sums.
            bound = case.rounding() + 16 * cases.EPS * (np.abs(want) + np.abs(want).max())
            assert np.all(np.abs(got - want) <= bound)


@by_mixture
@pytest.mark.parametrize("op", RRAM)
def test_adc_agrees_but_for_ties(cases: ModuleType, op: str, names: tuple[str, ...]) -> None:
    # Noise behind the converter, gain or offset of another tile or bit line, planes that are added
    # before they are converted. Ties as in test_numbers.py; a tie of a plane is worth its weight.
    off, total = 0, 0
    for seed in range(8):
        case = cases.MAKERS[op](np.random.default_rng(1000 + seed), adc=True, names=names)
        session = runtime.make_session(case.model(), num_threads=2)
        step = np.asarray(case.attributes["adc_range"], np.float32)
        step = step / (2 ** (case.attributes["adc_bits"] - 1) - 1)
        if op == schema.RRAM_CONV:
            step = step.reshape(-1, *[1] * (case.feeds["x"].ndim - 2))
        for run in range(2):
            got, want = session.run(None, case.feeds)[0], case.oracle(run=run)
            codes = np.abs(got - want) / step
            off += int(np.sum(codes > 0.5))
            # Codes of planes add up to thousands: the rest agrees to the rounding of the result.
            whole = np.abs(want / step)
            assert np.all(codes[codes <= 0.5] <= 1e-3 + 4 * cases.EPS * whole[codes <= 0.5])
            total += got.size
    assert off <= 3e-4 * total


@by_mixture
@pytest.mark.parametrize("op", RRAM)
def test_body_agrees_where_nothing_is_drawn(
    cases: ModuleType, op: str, names: tuple[str, ...]
) -> None:
    # A kernel whose meaning is not the one that stock ONNX Runtime gives the same file.
    noise = {"absolute", "relative", "curve"}
    if noise & set(names):
        names = tuple(n for n in names if n not in noise) or ("gain",)
    for seed, adc in itertools.product(range(2), (False, True)):
        case = cases.MAKERS[op](np.random.default_rng(2000 + seed), adc=adc, names=names)
        native, body = case.run(), case.run(native=False)
        if adc:
            assert np.mean(np.abs(native - body) > 1e-3 + 1e-5 * np.abs(body)) <= 2e-3
        else:
            bound = 2 * case.rounding() + 16 * cases.EPS * np.abs(body).max()
            assert np.all(np.abs(native - body) <= bound)


@pytest.mark.parametrize("op", RRAM)
def test_noise_is_that_of_the_run_alone(cases: ModuleType, op: str) -> None:
    # A session that goes on where another one has stopped, threads that share a counter, or noise
    # drawn once and kept.
    case = cases.MAKERS[op](np.random.default_rng(4), adc=True, names=("absolute",))
    runs = []
    for num_threads in (1, 3):
        session = runtime.make_session(case.model(), num_threads=num_threads)
        runs.append([session.run(None, case.feeds)[0].tobytes() for _ in range(3)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


@pytest.mark.parametrize("op", RRAM)
def test_serial_inputs_with_an_ideal_adc_are_parallel_ones(cases: ModuleType, op: str) -> None:
    # Planes that lose a bit or count one twice. Without an ADC the kernel does not even split them.
    case = cases.MAKERS[op](np.random.default_rng(5), adc=False, names=())
    case.attributes.update({"dac_bits": 8, "dac_signed": 1})
    parallel = case.run()
    case.attributes["dac_serial_bits"] = 3
    assert case.run().tobytes() == parallel.tobytes()


def test_planes_of_one_bit_are_converted_each_for_itself(cases: ModuleType) -> None:
    # Shift and add spelt out: codes 5, -6 of a 4-bit signed DAC are the planes 1, 0, 1 and
    # 0, -1, -1, weights 1, 2, 4. One row of cells 1, an ADC of step 0.5 that saturates at 0.5.
    x = np.array([[5.0], [-6.0]], np.float32)
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "tile_rows": 0,
        "num_tiles": 1,
        "dac_bits": 4,
        "dac_range": 7.0,
        "dac_signed": 1,
        "dac_serial_bits": 1,
        "adc_bits": 2,
        "adc_range": [0.5],
    }
    case = cases.Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": np.ones((1, 1), np.float32)},
        attributes=attributes,
        oracle=lambda: np.array([[0.5 * 1 + 0.5 * 4], [-0.5 * 2 - 0.5 * 4]], np.float32),
    )
    np.testing.assert_array_equal(case.run(), case.oracle())
    np.testing.assert_array_equal(case.run(native=False), case.oracle())


def test_curve_is_the_hyperbolic_sine(cases: ModuleType) -> None:
    # A series that is too short at the end of its range, or not normalised. Identity cells show the
    # word lines; beyond the range the drivers saturate.
    u = np.linspace(-1.2, 1.2, 2001, dtype=np.float32)
    for k in (1e-3, 0.5, 2.0, 6.0):
        attributes = {
            **cases.ANNOTATIONS,
            **cases.NO_EXTRAS,
            "tile_rows": 0,
            "num_tiles": 1,
            "dac_bits": 0,
            "dac_range": 2.0,
            "dac_signed": 1,
            "adc_bits": 0,
            "adc_range": [1.0],
            "iv_sinh": k,
            "input_shrink": 0.5,
        }
        case = cases.Case(
            op=schema.RRAM_MATMUL,
            feeds={"x": (2.0 * u).reshape(-1, 1)},
            constants={"w": np.ones((1, 1), np.float32)},
            attributes=attributes,
            oracle=lambda: None,
        )
        bent = np.sinh(0.5 * k * np.clip(u.astype(np.float64), -1, 1)) / np.sinh(0.5 * k) * 2.0
        # 14 products and sums of one sign
        np.testing.assert_allclose(case.run()[:, 0], bent, rtol=30 * cases.EPS, atol=0)


def _linear_layer() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    w = 0.1 * rng.standard_normal((128, 64), dtype=np.float32)
    return rng.standard_normal((256, 128), dtype=np.float32), w


@pytest.mark.parametrize("tile_rows", [0, 32])
@pytest.mark.parametrize("relative", [0, 1])
def test_noise_of_a_linear_layer_is_the_closed_form(
    cases: ModuleType, relative: int, tile_rows: int
) -> None:
    # The layer of other simulators' comparisons: x and w of independent normals, 256 x 128 x 64,
    # 5 draws. 5 % of each conductance gives 0.0501 of the spread of y there (0.05 times
    # sqrt(sum x^2 w^2 / var(y))); 1 % of G_max on both devices gives sqrt(2) 0.01 max|w| |x|.
    # Noise of one device in place of two, of each tile as if it were the whole, or of w squared.
    x, w = _linear_layer()
    w_max = float(np.abs(w).max())
    frac = 0.05 if relative else 0.01
    num_tiles = schema.num_tiles(128, 1, tile_rows or None)
    # An ADC that is as good as ideal, so that the tiles are read one by one.
    adc = {"adc_bits": 20, "adc_range": [16.0]} if tile_rows else {"adc_bits": 0}
    attributes: dict[str, Any] = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "tile_rows": tile_rows,
        "num_tiles": num_tiles,
        "dac_bits": 0,
        "dac_range": 1.0,
        "dac_signed": 1,
        "adc_range": [1.0],
        **adc,
        "w_max": [w_max],
        "read_noise": frac,
        "read_noise_relative": relative,
        "read_key": 99,
    }
    case = cases.Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=lambda: None,
    )
    session = runtime.make_session(case.model())
    y = x.astype(np.float64) @ w
    noise = np.stack([session.run(None, {"x": x})[0] - y for _ in range(5)])
    if relative:
        variance = frac**2 * np.square(x.astype(np.float64)) @ np.square(w.astype(np.float64))
    else:
        variance = 2 * (frac * w_max) ** 2 * np.square(x.astype(np.float64)).sum(1, keepdims=True)
        variance = np.broadcast_to(variance, y.shape)
    want = np.sqrt(variance.mean()) / y.std()
    got = noise.std() / y.std()
    # 81,920 draws: 4 standard errors of a spread are 4 / sqrt(2 n), a little more as the variances
    # differ from draw to draw: sum of squares / square of the sum.
    n = 5 * np.square(variance.sum()) / np.square(variance).sum()
    assert got == pytest.approx(want, rel=4 / np.sqrt(2 * n))
    if relative:
        assert want == pytest.approx(0.0501, rel=0.01)


def test_bit_lines_and_tiles_have_noise_of_their_own(cases: ModuleType) -> None:
    # One draw for a whole row, or for all tiles: correlations that a chip does not have.
    x = np.ones((500, 8), np.float32)
    w = np.zeros((8, 40), np.float32)
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "tile_rows": 2,
        "num_tiles": 4,
        "dac_bits": 0,
        "dac_range": 1.0,
        "dac_signed": 1,
        "adc_bits": 16,
        "adc_range": [100.0],
        "read_noise": 1.0,
        "w_max": [1.0],
    }
    case = cases.Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=lambda: None,
    )
    y = case.run().astype(np.float64)
    # Each of 4 tiles adds the variance 2 * 2 (both devices, two rows).
    n = y.size
    assert y.var() == pytest.approx(16.0, rel=4 * np.sqrt(2 / n))
    z = y / 4.0
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 4 / np.sqrt(n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(n)


def test_off_leaves_the_fast_path_as_it_was(cases: ModuleType) -> None:
    # A feature that is off must not change a bit: neutral gains, an offset of 0, K of 0.
    for op in RRAM:
        case = cases.MAKERS[op](np.random.default_rng(6), adc=True)
        plain = case.run().tobytes()
        columns = case.constants["w"].shape[1 if op == schema.RRAM_MATMUL else 0]
        count = columns * case.attributes["num_tiles"]
        case.attributes.update({"adc_gain": [1.0] * count, "adc_offset": [0.0] * count})
        np.testing.assert_array_equal(np.frombuffer(plain, np.float32), case.run().reshape(-1))


def test_word_lines_of_the_oracle_add_up(cases: ModuleType) -> None:
    # The oracle itself: planes times weights are the parallel codes.
    x = np.random.default_rng(7).standard_normal(1000).astype(np.float32)
    for bits, signed, serial in itertools.product((4, 8), (0, 1), (1, 2, 3)):
        line = {"dac_bits": bits, "dac_range": 2.0, "dac_signed": signed}
        planes = reference.word_lines(x, reference.Periphery(**line, dac_serial_bits=serial))
        assert len(planes) == -(-(bits - signed) // serial)
        total = sum(float(weight) * v.astype(np.float64) for weight, v in planes)
        want = reference.dac_quantize(x, **line)
        np.testing.assert_allclose(total, want, rtol=4 * cases.EPS, atol=0)
