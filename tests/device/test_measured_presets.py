# SPDX-License-Identifier: Apache-2.0
"""Every preset is sampled and compared with its published formula, written down again here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import norm

from rimc_onnx.device import DriftLaw, get_preset, list_presets, program
from rimc_onnx.device.conductance_table import INTERVALS, make_table
from rimc_onnx.errors import ConfigError

N = 120_000
"""Draws of each conductance level."""
LEVELS = np.array([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
DAY = 86400.0
YEAR = 365.25 * DAY

Moments = tuple[np.ndarray, np.ndarray]


def wan_sigma(g: np.ndarray, day: int) -> np.ndarray:
    x = g / 40
    c = {
        0: (0.348, 16.030, -43.853, 45.393, -16.815),
        1: (0.701, 22.086, -50.773, 47.095, -16.458),
        2: (0.782, 20.274, -43.507, 37.062, -11.934),
    }[day]
    return np.asarray(c[0] + c[1] * x + c[2] * x**2 + c[3] * x**3 + c[4] * x**4)


def normal(mean: np.ndarray, sigma: np.ndarray) -> Moments:
    """Mean and variance of max(0, N(mean, sigma^2))."""
    sigma = np.maximum(sigma, 1e-300)
    u = mean / sigma
    first = mean * norm.cdf(u) + sigma * norm.pdf(u)
    second = (mean**2 + sigma**2) * norm.cdf(u) + mean * sigma * norm.pdf(u)
    return first, second - first**2


def wan(g: np.ndarray, t: float) -> Moments:
    # variance linear in ln t between the three measured times
    times = np.log([1.0, DAY, 2 * DAY])
    variances = np.stack([wan_sigma(g, day) ** 2 for day in range(3)])
    variance = np.array([np.interp(np.log(t), times, v) for v in variances.T])
    return normal(g, np.sqrt(variance))


def crosssim(g: np.ndarray, _t: float) -> Moments:
    return normal(g, 1.536e-4 * g**3 - 1.167e-2 * g**2 + 0.2374 * g + 1.053)


def milo(g: np.ndarray, _t: float) -> Moments:
    return normal(g, -0.009107 * g + 4.782321)


def cmo(c0: float, c1: float) -> Callable[[np.ndarray, float], Moments]:
    def moments(g: np.ndarray, t: float) -> Moments:
        drift = 0.04201137 * np.log(t) + 0.41183342
        return normal(g - 0.08900206 * np.log(t), np.hypot(c0 + c1 * g, drift))

    return moments


def pcm(g: np.ndarray, t: float) -> Moments:
    x = np.maximum(g / 25, 1e-12)
    first, variance = normal(g, 0.26348 + 1.9650 * x - 1.1731 * x**2)
    mean = np.clip(-0.0155 * np.log(x) + 0.0244, 0.049, 0.1)
    sigma = np.clip(-0.0125 * np.log(x) - 0.0059, 0.008, 0.045)
    # programming and exponent are independent; the exponent's part by a sum over z
    z = np.linspace(-7, 7, 20_001)
    share = norm.pdf(z) * (z[1] - z[0])
    nu = np.abs(mean[:, None] + sigma[:, None] * z)
    decay = (t / 20) ** -nu
    one, two = (decay * share).sum(axis=1), (decay**2 * share).sum(axis=1)
    return first * one, (variance + first**2) * two - (first * one) ** 2


def sonos(g: np.ndarray, t: float) -> Moments:
    i = 100 * g  # nA
    day = round(t / DAY)
    a, b = {0: (19.88665, 176.3115), 5: (34.57909, 207.34309)}[day]
    c5 = (
        *(1.15294e00, 1.03149e-02, -6.05199e-05, 1.76086e-08, -6.46690e-09, 3.39044e-11),
        *(-7.53872e-14, 8.98185e-17, -6.00346e-20, 2.12615e-23, -3.11099e-27),
    )
    if day == 5:
        i = i + sum(c * i**k for k, c in enumerate(c5))
    return normal(i / 100, a * (1 - np.exp(-i / b)) / 100)


def retention(g: np.ndarray, t: float) -> Moments:
    return g * t**-0.1, np.zeros_like(g)


CASES = [
    ("wan2022-aihwkit", wan, (1.0, 3600.0, DAY, 1.5 * DAY, 2 * DAY)),
    ("wan2022-crosssim", crosssim, (1.0,)),
    ("milo2021", milo, (None,)),
    ("cmo-hfox-2025-0.2pct", cmo(0.00081107, 0.00106879), (1.0, 3600.0, 10 * YEAR)),
    ("cmo-hfox-2025-2pct", cmo(0.0112185391, 0.01129027418), (1.0, 3600.0, 10 * YEAR)),
    ("pcm-natcomm2020", pcm, (20.0, 3600.0, YEAR)),
    ("sonos-40nm", sonos, (0.0, 5 * DAY)),
    ("retention-power", retention, (1.0, DAY, 10 * YEAR)),
]


def test_every_measured_preset_is_sampled() -> None:
    gaussian = {"gaussian-relative", "gaussian-absolute"}
    assert {name for name, _, _ in CASES} | gaussian == set(list_presets())


@pytest.mark.parametrize(
    ("name", "law", "time_s"),
    [(name, law, t) for name, law, times in CASES for t in times],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_samples_follow_the_published_formula(name: str, law: object, time_s: float | None) -> None:
    # A coefficient mistyped or in the wrong order, a reference conductance left out, sigma taken of
    # the largest conductance, one device of the pair left perfect. Both devices err, so the
    # variances add. 4.5 standard errors of the mean and of sigma (from the fourth moment), of
    # N draws; the law's table and float32 add less than 1e-5 of the full scale.
    config = list_presets()[name].config
    got = program(
        np.repeat(LEVELS, N).astype(np.float32),
        node="n",
        seed=11,
        config=config,
        column_axis=0,
        time_s=time_s,
    ).w_realised.reshape(LEVELS.size, N)
    us = got.astype(np.float64) * config.g_max_us
    g = config.g_min_us + LEVELS * config.g_max_us
    mean, variance = law(g, time_s)  # type: ignore[operator]
    mean_zero, variance_zero = law(np.array([config.g_min_us]), time_s)  # type: ignore[operator]
    sigma = np.sqrt(variance + variance_zero)
    centred = us - us.mean(axis=1, keepdims=True)
    m2, m4 = (centred**2).mean(axis=1), (centred**4).mean(axis=1)
    sigma_error = np.sqrt((m4 - m2**2) / np.maximum(4 * m2, 1e-300) / N)
    table = 1e-5 * config.g_max_us
    assert (np.abs(us.mean(axis=1) - (mean - mean_zero)) < 4.5 * sigma / np.sqrt(N) + table).all()
    assert (np.abs(np.sqrt(m2) - sigma) < 4.5 * sigma_error + table).all()


@pytest.mark.parametrize("name", [n for n, p in list_presets().items() if p.config.time_law])
def test_table_of_a_law_is_close_to_its_curves(name: str) -> None:
    # Too few pieces near a bend: read between the knots, where the error is largest.
    config = list_presets()[name].config
    time_s = config.time_range_s[1]
    table = make_table(config, time_s)
    g = config.g_min_us + (np.arange(INTERVALS) + 0.5) * (config.g_max_us / INTERVALS)
    at = table.locate(g)
    sigma = config.programming_sigma(g)
    pairs = [(table.programming_sigma_us, sigma)]
    if hasattr(config.time_law, "drift"):
        mean, drift = config.time_law.drift(g, sigma, time_s)
        pairs += [(table.mean_us, mean), (table.drift_sigma_us, drift)]
    else:
        pairs += [
            (table.nu_mean, config.time_law.nu_mean.at(g)),
            (table.nu_sigma, config.time_law.nu_sigma.at(g)),
        ]
    for column, exact in pairs:
        if column is not None:
            error = np.abs(at.read(column) - exact) / np.abs(exact).max()
            assert error.max() < 1e-3
            # a clamp bends once at each end of its curve
            assert (error > 5e-5).sum() <= 2


def test_fit_keeps_its_reference_conductance() -> None:
    # A reference that is stored and not used: at G_max 25 every error would be that of 40 uS.
    small = get_preset("wan2022-aihwkit", g_max_us=25.0)
    g = np.array([20.0])
    assert small.programming_sigma(g) == get_preset("wan2022-aihwkit").programming_sigma(g)
    assert small.programming_sigma(g)[0] == pytest.approx(wan_sigma(g, 0)[0], rel=1e-12)


def test_target_beyond_the_fit_is_an_error() -> None:
    # A polynomial taken beyond its points gives any number.
    with pytest.raises(ConfigError, match=r"holds for g_range_us 0\.0 \.\. 40\.0 microsiemens"):
        get_preset("wan2022-aihwkit", g_max_us=60.0)
    with pytest.raises(ConfigError, match=r"'milo2021': its law holds for g_range_us 50\.0"):
        get_preset("milo2021", g_min_us=0.0)


def test_acceptance_is_never_silently_another() -> None:
    # An acceptance that is not known, taken for the nearest: 2 % becomes 0.2 %.
    with pytest.raises(ConfigError, match=r"'cmo-hfox-2025-0\.02pct' is not known\. Did you mean"):
        get_preset("cmo-hfox-2025-0.02pct")
    fine, coarse = (
        get_preset(f"cmo-hfox-2025-{a}pct").programming_sigma(np.array([88.2]))[0]
        for a in ("0.2", "2")
    )
    assert coarse / fine > 10


def test_measured_error_takes_no_drift_frac() -> None:
    # --drift 0.3 that is accepted and changes nothing.
    with pytest.raises(ConfigError, match="`drift_frac` belongs to the gaussian presets"):
        get_preset("milo2021", drift_frac=0.3)
    assert list_presets()["milo2021"].config.law is DriftLaw.MEASURED
