# SPDX-License-Identifier: Apache-2.0
"""One layer under one non-ideality at a time, against closed forms and three other simulators.

The figures of the others stand in docs/peers.md and are read from there. A pooled error over n
programmings has a standard error, which the scatter between them tells; tolerances are 4.5 of it,
with that of the peer's own 400 programmings where two samples are compared.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from scipy.stats import norm

from rimc_onnx import passes, runtime
from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges, PeripheryConfig
from rimc_onnx.device import get_preset

Array = npt.NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "peers.md"
DRAWS = 400
HALF_DIGIT = 0.5e-5
"""The table has five decimals."""


def _load() -> ModuleType:
    name = "rimc_benchmarks_peers"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


peers = _load()


def _rows() -> dict[str, dict[str, str]]:
    lines = PAGE.read_text("utf-8").split("## One layer")[1].split("\n## ")[0].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    head, _, *body = cells
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


ROWS = _rows()


def figure(row: str, column: str) -> float | None:
    found = re.match(r"[\d.]+", ROWS[row][column])
    return None if found is None else float(found[0])


@cache
def measured(row: str) -> object:
    return peers.measure(peers.MODELS[row], DRAWS)


# --- closed forms, from the weight and the inputs alone

Moments = Callable[[Array], tuple[Array, Array]]
"""Mean and variance of a device, microsiemens, at its target."""


def clipped(sigma: Callable[[Array], Array]) -> Moments:
    """Of max(0, N(G, sigma(G)^2))."""

    def moments(g: Array) -> tuple[Array, Array]:
        s = np.maximum(sigma(g), 1e-300)
        u = g / s
        first = g * norm.cdf(u) + s * norm.pdf(u)
        second = (g**2 + s**2) * norm.cdf(u) + g * s * norm.pdf(u)
        return first, second - first**2

    return moments


def pair_error(device: Moments, g_min: float = 0.0) -> tuple[float, float]:
    """(error, gain) of the layer on pairs of 40 microsiemens in all."""
    w, x = peers.layer()
    unit = np.abs(w).max() / (40.0 - g_min)
    mean, variance = device(g_min + np.abs(w) / unit)
    mean_off, variance_off = device(np.full_like(w, g_min))
    bias = np.sign(w) * (mean - mean_off) * unit - w
    second = x.T @ x / len(x)
    y = x @ w
    drawn = ((variance + variance_off) * unit**2).T @ np.diag(second)
    systematic = x @ bias
    total = drawn.mean() + (systematic**2).mean() - systematic.mean() ** 2
    gain = 1 + ((y - y.mean()) * systematic).mean() / y.var()
    return float(np.sqrt(total) / y.std()), float(gain)


def rounded(values: Array, top: float) -> Array:
    """254 steps of an 8-bit signed converter, saturating."""
    step = 2 * top / 254
    return np.clip(np.rint(values / step), -127, 127) * step


def converter_error(*, dac: bool, adc_top: float | None) -> float:
    w, x = peers.layer()
    y = x @ w
    got = (rounded(x, float(np.abs(x).max())) if dac else x) @ w
    if adc_top is not None:
        got = rounded(got, adc_top)
    return float((got - y).std() / y.std())


def proportional_read() -> float:
    w, x = peers.layer()
    return float(0.05 * np.sqrt((x**2 @ w**2).mean()) / (x @ w).std())


def wan(g: Array) -> Array:
    u = g / 40
    return np.asarray(0.348 + 16.030 * u - 43.853 * u**2 + 45.393 * u**3 - 16.815 * u**4)


LARGEST_Y = 5.24762764
PAIRS = {
    "A: programming 20 % of G": lambda: pair_error(clipped(lambda g: 0.2 * g)),
    "A, on/off ratio 100": lambda: pair_error(clipped(lambda g: 0.2 * g), 0.4),
    "A, on/off ratio 10": lambda: pair_error(clipped(lambda g: 0.2 * g), 4.0),
    "B: programming 2 % of G_max": lambda: pair_error(clipped(lambda g: 0.8 + 0 * g)),
    "B, on/off ratio 10": lambda: pair_error(clipped(lambda g: 0.8 + 0 * g), 4.0),
    "RRAM of Wan et al., 40 uS, 1 s": lambda: pair_error(clipped(wan)),
}
ROUNDED = {
    "C: ADC 8 bits": lambda: converter_error(dac=False, adc_top=LARGEST_Y),
    "C, ADC range of the worst case": lambda: converter_error(
        dac=False, adc_top=128 * 0.41014934 * 4.18412447
    ),
    "D: DAC 8 bits": lambda: converter_error(dac=True, adc_top=None),
    "C + D": lambda: converter_error(dac=True, adc_top=LARGEST_Y),
}


def test_layer_is_the_one_that_the_peers_had() -> None:
    # Another generator or another seed: all figures below would compare two different layers.
    w, x = peers.layer()
    y = x @ w
    stated = (1.13541529, 0.41014934, 4.18412447, 5.24762764)
    got = (y.std(), np.abs(w).max(), np.abs(x).max(), np.abs(y).max())
    # Digits as published; a weight may differ from torch's own in its last bit, up to 3e-8.
    np.testing.assert_allclose(got, stated, rtol=1e-6)
    assert abs(w.sum() + 6.73460) < 8192 * 3e-8
    np.testing.assert_allclose(y[0, :3], (0.048471, 1.879805, 1.647489), atol=1e-6)
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    np.testing.assert_allclose(w.T, (torch.randn(64, 128) * 0.1).numpy(), rtol=0, atol=6e-8)


def test_page_and_benchmark_have_the_same_rows() -> None:
    # A model that is measured and not shown, or shown and never measured.
    assert list(ROWS) == list(peers.MODELS)
    assert PAIRS.keys() | ROUNDED.keys() <= ROWS.keys()


@pytest.mark.parametrize("row", PAIRS)
def test_programming_error_meets_the_closed_form(row: str) -> None:
    # One device of a pair left perfect, an error that counts from G_min, no clip at zero
    # conductance (gain 1 in row B), variance in place of the standard deviation.
    got = measured(row)
    error, gain = PAIRS[row]()
    assert abs(got.error - error) < 4.5 * got.standard_error
    # Every output's slope is a mean of 128 cells' errors, all inputs alike: 0.2 / sqrt(128 * 64)
    # for the largest of the models, over the square root of the programmings.
    assert abs(got.gain - gain) < 4.5 * 0.3 / np.sqrt(128 * 64 * DRAWS)
    assert got.draws == DRAWS


@pytest.mark.parametrize("row", ROUNDED)
def test_converters_are_the_closed_form_to_the_printed_digit(row: str) -> None:
    # 255 or 256 steps, a range that is half as wide, rounding down. Nothing is drawn.
    assert abs(measured(row).error - ROUNDED[row]()) < HALF_DIGIT


def test_read_noise_is_fresh_in_every_read_and_of_the_exact_variance() -> None:
    # 5 reads of 256 x 64 outputs, normal and independent: the error of a standard deviation is
    # 1 / sqrt(2 n) of it. Repeated draws would show in the scatter between reads.
    got = measured("read noise 5 % of G")
    expected = proportional_read()
    standard_error = expected / np.sqrt(2 * 5 * 256 * 64)
    assert abs(got.error - expected) < 4.5 * standard_error
    assert 0 < got.standard_error < 4 * standard_error


@pytest.mark.parametrize(
    ("row", "scatter"),
    [("A: programming 20 % of G", 0.003), ("B: programming 2 % of G_max", 0.001)],
)
def test_one_programming_scatters_as_much_as_the_peers(row: str, scatter: float) -> None:
    # Cells of one programming that share draws: the mean would be right, its error would not.
    got = measured(row)
    assert scatter / 2 < got.standard_error * np.sqrt(DRAWS) < 1.5 * scatter


@pytest.mark.parametrize("row", ROWS)
def test_figures_of_the_page_agree(row: str) -> None:
    # A figure copied into the wrong row, ours gone stale, or a peer that disagrees.
    got = measured(row)
    printed = figure(row, "rimc-onnx")
    assert printed is not None
    # All draws are keyed, so our own figure comes back; sums may round otherwise elsewhere.
    assert abs(got.error - printed) <= 2 * HALF_DIGIT
    closed = PAIRS.get(row) or ROUNDED.get(row)
    if closed is not None:
        value = closed()
        exact = figure(row, "exact")
        if exact is not None:
            assert abs((value if row in ROUNDED else value[0]) - exact) <= 2 * HALF_DIGIT
    for column in ("CrossSim", "aihwkit", "lightning"):
        peer = figure(row, column)
        if peer is not None:
            # two samples of the same size (64-row tiles: the peer has half of ours, so twice the
            # variance), hence sqrt(3) at most
            tolerance = 4.5 * np.sqrt(3) * got.standard_error + 2 * HALF_DIGIT
            assert abs(got.error - peer) < tolerance, column


def test_converted_model_on_native_kernels_has_the_error_of_the_table() -> None:
    # Attributes that conversion writes in other units than the reference reads; ranges by hand.
    w, x = peers.layer()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 128])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(w.astype(np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    config = ConvertConfig(
        device=get_preset("gaussian-relative", drift_frac=0.0),
        periphery=PeripheryConfig(dac_bits=8, adc_bits=8),
    )
    largest_x, largest_y = float(np.abs(x).max()), float(np.abs(x @ w).max())
    ranges = {"layer": NodeRanges(dac_range=largest_x, adc_range=(largest_y,))}
    passes.convert_model(model, config, ranges)
    session = runtime.make_session(ir.to_proto(model).SerializeToString(), native=True)
    (got,) = session.run(None, {"x": x.astype(np.float32)})
    y = x @ w
    assert abs((got - y).std() / y.std() - figure("C + D", "exact")) < 2 * HALF_DIGIT
