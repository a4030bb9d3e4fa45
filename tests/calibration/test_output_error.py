# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from rimc_onnx.calibration import output_error
from rimc_onnx.calibration.output_error import output_figures

Array = np.ndarray


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_error_is_relative_to_the_spread_over_samples() -> None:
    # Relative to the power: outputs with a large mean always look right.
    t = rng(0).standard_normal((6, 5)) + 100
    o = t + 0.5 * rng(1).standard_normal(t.shape)
    found = output_figures({"y": [t[:4], t[4:]]}, {"y": [o[:4], o[4:]]})
    expected = np.square(o - t).sum() / np.square(t - t.mean(axis=0)).sum()
    assert found.error == pytest.approx(expected, rel=1e-9)
    sqnr = 10 * math.log10(np.square(t).sum() / np.square(o - t).sum())
    assert found.sqnr_db == {"y": pytest.approx(sqnr)}
    same = output_figures({"y": [t]}, {"y": [t]})
    assert (same.error, same.agreement, same.sqnr_db) == (0, 1, {"y": None})


@pytest.mark.parametrize("shapes", [[(4, 3, 5), (2, 3, 5)], [(1, 3, 5), (1, 2, 5)], [(6,), (2,)]])
def test_large_outputs_are_compared_in_parts(
    monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[int, ...]]
) -> None:
    # Parts that end with a chunk, rows about the mean of their own part.
    wanted = [np.float32(rng(0).standard_normal(shape) + 3) for shape in shapes]
    given = [t + np.float32(rng(1).standard_normal(t.shape)) for t in wanted]
    whole = output_figures({"y": wanted}, {"y": given})
    monkeypatch.setattr(output_error, "PART", 7)
    parts = output_figures({"y": wanted}, {"y": given})
    assert whole.error is not None
    assert parts.error == pytest.approx(whole.error, rel=1e-12)
    assert parts.sqnr_db == {"y": pytest.approx(whole.sqnr_db["y"], rel=1e-12)}


def test_outputs_count_alike_and_integers_not() -> None:
    # A loud output that hides the others; classes as numbers.
    t = rng(0).standard_normal((2, 6, 5))
    wanted = {"a": [1000 * t[0]], "n": [np.arange(6)], "b": [t[1]]}
    given = {"a": [1000 * t[0]], "n": [np.arange(6)[::-1]], "b": [t[1] - t[1].mean(axis=0)]}
    power = np.square(t[1] - t[1].mean(axis=0)).sum()
    half = 6 * np.square(t[1].mean(axis=0)).sum() / power / 2
    assert output_figures(wanted, given).error == pytest.approx(half)
    nothing = output_figures({"n": [np.arange(6)]}, {"n": [np.arange(6)]})
    assert (nothing.error, nothing.agreement, nothing.sqnr_db) == (None, None, {})


def test_without_a_spread_the_power_is_what_errors_are_measured_by() -> None:
    # One sample: 0 / 0. Samples of different lengths: no mean of all.
    t = rng(0).standard_normal((1, 5))
    found = output_figures({"y": [t]}, {"y": [t * 1.1]})
    assert found.error == pytest.approx(0.01)
    texts = [rng(i).standard_normal((1, 3 + i, 4)) for i in range(3)]
    flat = np.concatenate([text[0] for text in texts])
    found = output_figures({"y": texts}, {"y": [0 * text for text in texts]})
    assert found.error == pytest.approx(
        np.square(flat).sum() / np.square(flat - flat.mean(axis=0)).sum()
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_infinitely_wrong(bad: float) -> None:
    # NaN is less than nothing, so it would win every comparison.
    t = rng(0).standard_normal((4, 3))
    o = t.copy()
    o[1, 1] = bad
    found = output_figures({"y": [t]}, {"y": [o]})
    assert found.error == math.inf
    assert found.sqnr_db == {"y": None}


@pytest.mark.parametrize(
    ("shape", "classes"), [((6, 5), 1), ((6, 5, 1, 1), 1), ((6, 7, 5), 2), ((6, 5, 4, 3), 1)]
)
def test_agreement_is_over_the_classes(shape: tuple[int, ...], classes: int) -> None:
    # The largest of a single value is always the first: full agreement, whatever the outputs.
    t, o = rng(0).standard_normal(shape), rng(1).standard_normal(shape)
    expected = (t.argmax(classes) == o.argmax(classes)).mean()
    assert output_figures({"y": [t]}, {"y": [o]}).agreement == pytest.approx(expected)


def test_numbers_without_classes_have_no_agreement() -> None:
    for shape in ((6, 1), (6,)):
        t = rng(0).standard_normal(shape)
        assert output_figures({"y": [t]}, {"y": [t]}).agreement is None
