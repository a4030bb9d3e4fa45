# SPDX-License-Identifier: Apache-2.0
"""What is found of an array's error from its answers alone."""

from __future__ import annotations

import numpy as np
import pytest

from rimc_onnx.calibration import problem as module
from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import (
    CellPrior,
    NodeProblem,
    Statistics,
    problem_from_device,
)
from rimc_onnx.ops.geometry import NodeGeometry

Array = np.ndarray


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def asked(x: Array, target: Array, error: Array) -> NodeProblem:
    """The device's answers to x [P, d], from which the error [d, m] is to be found."""
    x, target, error = (np.asarray(a, np.float32) for a in (x, target, error))
    moments = SecondMoments(NodeGeometry(weight_shape=target.shape))
    moments.update(x, x @ target, x @ (target - error))
    return problem_from_device("fc", moments, target[None], bias_frac=0.5, prior=relative(target))


def relative(target: Array) -> CellPrior:
    """Cells err as much as they hold, and nothing is lost on the mean."""
    return CellPrior(error=np.zeros_like(target)[None], variance=np.square(target)[None])


@pytest.fixture(params=[True, False], ids=["prior per bit line", "one prior"])
def by_line(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are too large for a regression per bit line share one."""
    if not request.param:
        monkeypatch.setattr(module, "_MOST_OPERATIONS", 0)


@pytest.mark.usefixtures("by_line")
@pytest.mark.parametrize(("d", "m"), [(24, 10), (10, 24)])
def test_enough_rows_give_the_error_to_the_prior(d: int, m: int) -> None:
    # An error of low rank and sparse at once, in full: what X (W_t - W_r) tells is free of noise,
    # so all that is missing is what the prior holds back.
    error = rng(4).standard_normal((d, 2)) @ rng(5).standard_normal((2, m)) / 8
    error.flat[rng(6).permutation(d * m)[:12]] += 0.5
    found = asked(rng(1).standard_normal((4000, d)), rng(2).standard_normal((d, m)), error)
    # The prior weighs 1e-3 of the mean power of word lines, and 1 / 0.05 as much against a cell
    # that holds nothing and so should not err: 2 % of such a cell, 0.1 % of an ordinary one.
    off = np.abs(found.error[0] - error)
    assert off.max() < 0.022 * np.abs(error).max()
    assert np.median(off) < 2e-3 * np.abs(error).mean()


@pytest.mark.usefixtures("by_line")
def test_few_rows_are_explained_and_not_more() -> None:
    # Rows that are fewer than word lines: the answers are met, and where nothing was seen the
    # error stays at its prior mean, the share that the outputs lack.
    x = np.zeros((6, 24))
    x[:, :16] = rng(1).standard_normal((6, 16))
    target = rng(2).standard_normal((24, 10))
    error = 0.2 * rng(3).standard_normal((24, 10))
    found = asked(x, target, error).error[0]
    share = ((x @ target) * (x @ error)).sum() / np.square(x @ target).sum()
    # The sums are those of float32 rows.
    np.testing.assert_allclose(found[16:], share * target[16:], rtol=1e-5)
    # 6 rows among 16 word lines, each sees a prior of 1e-3: answers within a few percent.
    assert np.linalg.norm(x @ (found - error)) < 0.05 * np.linalg.norm(x @ error)
    assert np.linalg.norm(found) < np.linalg.norm(error[:16])


@pytest.mark.usefixtures("by_line")
def test_decay_of_all_cells_is_seen_in_any_row() -> None:
    # Conductances decay by half: word lines that three samples never drove taken for whole, and an
    # adapter that takes from them what M gives to all.
    x = np.zeros((3, 24))
    x[:, :5] = rng(1).standard_normal((3, 5))
    target = rng(2).standard_normal((24, 10))
    found = asked(x, target, 0.5 * target)
    # float32 of the answers, over the ridge of 1e-3: 1e3 * 2^-24 and some.
    off = np.abs(found.error[0] - 0.5 * target).max()
    assert off < 2e-4 * np.abs(target).max()


def test_knowing_the_target_weight_saves_samples() -> None:
    # The prior that is not there, or is turned over: a drift of 20 % of each weight is guessed
    # better where large weights are known to err more.
    target = rng(2).standard_normal((48, 30)) * 10.0 ** rng(7).uniform(-1.5, 0, (48, 1))
    error = 0.2 * target * rng(3).standard_normal((48, 30))
    x = rng(1).standard_normal((16, 48))
    rest = [
        np.linalg.norm(asked(x, weight, error).error[0] - error)
        for weight in (target, np.ones_like(target))
    ]
    assert rest[0] < 0.8 * rest[1]


@pytest.mark.usefixtures("by_line")
def test_answers_make_the_error_of_a_read_out_smaller() -> None:
    # Answers that are ignored once the arrays were measured, or a measurement that the answers
    # overrule where they say nothing: 10 rows among 24 word lines.
    x, target = rng(1).standard_normal((10, 24)), rng(2).standard_normal((24, 12))
    realised = np.float32(target * (1 + 0.2 * rng(3).standard_normal((24, 12))))
    measured = np.float32(realised * (1 + 0.02 * rng(4).standard_normal((24, 12))))
    x, target = np.float32(x), np.float32(target)
    moments = SecondMoments(NodeGeometry(weight_shape=target.shape))
    moments.update(x, x @ target, x @ realised)

    def read_out(weight: Array, noise_frac: float) -> NodeProblem:
        prior = CellPrior(
            error=(target - weight)[None], variance=np.square(noise_frac * weight)[None]
        )
        return problem_from_device(
            "fc", moments, target[None], bias_frac=0.5, prior=prior, has_common_loss=False
        )

    found = read_out(measured, 0.02)
    off, before = found.error[0] - (target - realised), measured - realised
    # 10 of 24 directions are seen, so about 14 / 24 of the power of the noise stay.
    assert np.square(off).sum() < 0.75 * np.square(before).sum()
    assert np.linalg.norm(x @ off) < 0.1 * np.linalg.norm(x @ before)
    exact = read_out(realised, 0.0)
    assert np.array_equal(exact.error[0], target - realised)


@pytest.mark.usefixtures("by_line")
def test_what_the_law_expects_needs_no_sample() -> None:
    # Clipped remainders that samples are spent on, or that are taken for the loss of all cells:
    # word lines that no sample drove must keep what is expected of them.
    x = np.zeros((3, 24), np.float32)
    x[:, :5] = rng(1).standard_normal((3, 5))
    target = rng(2).standard_normal((24, 10)).astype(np.float32)
    clipped = target - np.clip(target, -0.8, 0.8)
    moments = SecondMoments(NodeGeometry(weight_shape=target.shape))
    moments.update(x, x @ target, x @ (target - clipped))
    prior = CellPrior(error=clipped[None], variance=np.full_like(target, 0.01)[None])
    found = problem_from_device("fc", moments, target[None], bias_frac=0.5, prior=prior)
    # float32 of the answers, over the ridge of 1e-3, in directions up to 8 times as loud.
    np.testing.assert_allclose(found.error[0], clipped, rtol=0, atol=5e-4)


@pytest.mark.usefixtures("by_line")
def test_read_noise_is_not_taken_for_an_error_of_cells() -> None:
    # Answers that vary as much as the arrays err, believed to the last digit; and a noise that is
    # counted for all rows together, so that many samples tell no more than few.
    d, m, rows = 24, 10, (30, 3000)
    target = rng(2).standard_normal((d, m)).astype(np.float32)
    error = (0.1 * rng(3).standard_normal((d, m))).astype(np.float32)
    rest = []
    for count, given in ((rows[0], None), (rows[0], 0.04), (rows[1], 0.04)):
        x = rng(1).standard_normal((count, d)).astype(np.float32)
        noise = (
            0.2
            * np.sqrt(np.square(x).sum(axis=1, keepdims=True))
            * rng(4).standard_normal((count, m))
        )
        moments = SecondMoments(NodeGeometry(weight_shape=target.shape))
        moments.update(x, x @ target, (x @ (target - error) + noise).astype(np.float32))
        prior = CellPrior(
            error=np.zeros_like(target)[None],
            variance=np.full_like(target, 0.01)[None],
            read_variance=None if given is None else np.full_like(target, given)[None],
        )
        found = problem_from_device("fc", moments, target[None], bias_frac=0.5, prior=prior)
        rest.append(np.square(found.error[0] - error).mean())
    # Believed: noise 0.04 d over 30 - 24 rows is 0.16 a cell. Known: below the prior's 0.01. With
    # 3,000 rows 0.04 d / 3000 = 0.0003.
    assert rest[0] > 0.05
    assert rest[1] < 0.01
    assert rest[2] < 0.0006


def test_a_bit_line_has_a_prior_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # One prior for all bit lines where each was affordable.
    target = rng(2).standard_normal((24, 12)) * 10.0 ** rng(7).uniform(-1.5, 0, (24, 12))
    error = 0.2 * target * rng(3).standard_normal((24, 12))
    x = rng(1).standard_normal((10, 24))
    own = np.linalg.norm(asked(x, target, error).error[0] - error)
    monkeypatch.setattr(module, "_MOST_OPERATIONS", 0)
    assert own < 0.9 * np.linalg.norm(asked(x, target, error).error[0] - error)


def test_regression_goes_on_until_its_equations_hold() -> None:
    # Too few steps, or an end that is asked of a single bit line: X'X with powers from 1 to 1e-3,
    # bit lines of which one is 1e3 times the others.
    d, m = 32, 8
    x = rng(1).standard_normal((4000, d)) * np.geomspace(1, 1e-3, d) ** 0.5
    target = rng(2).standard_normal((d, m)) * np.geomspace(1e3, 1, m)
    error = 0.2 * target * rng(3).standard_normal((d, m))
    moments = SecondMoments(NodeGeometry(weight_shape=target.shape))
    x, target, error = (np.asarray(a, np.float32) for a in (x, target, error))
    moments.update(x, x @ target, x @ (target - error))
    found = problem_from_device(
        "fc", moments, target[None], bias_frac=0.5, prior=relative(target)
    ).error[0]
    gram, x_e = moments.gram.dense()[0], moments.x_e[0]
    share = (target * x_e).sum() / moments.y_y.sum()
    variance = np.square(target, dtype="f8")
    variance += 0.05 * variance.mean()
    rest = x_e - gram @ found
    rest -= 1e-3 * (gram.diagonal() @ variance / d) / variance * (found - share * target)
    # In the norm of the inverse of X'X and the mean prior, as a share of what there was at first.
    mean_prior = 1e-3 * gram.diagonal().mean() * variance.mean() / variance.mean(axis=1)
    inverse = np.linalg.inv(gram + np.diag(mean_prior))
    first = x_e - gram @ (share * target)

    def power(columns: Array) -> float:
        return float((columns * (inverse @ columns)).sum())

    assert power(rest) < 1e-5 * power(first)


@pytest.mark.usefixtures("by_line")
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e14])
def test_units_do_not_matter(scale: float) -> None:
    # A ridge or a floor in absolute units.
    x, target = rng(1).standard_normal((10, 24)), rng(2).standard_normal((24, 12))
    error = 0.2 * rng(3).standard_normal((24, 12))
    plain = asked(x, target, error).error[0]
    louder = asked(scale * x, target, error).error[0]
    larger = asked(x, scale * target, scale * error).error[0] / scale
    for found in (louder, larger):
        # Answers are rounded to float32 once more, and their sums, in directions that the prior of
        # 1e-3 damps and rounding does not: twice 1e3 * 2^-24, d = 24 as loud.
        np.testing.assert_allclose(found, plain, rtol=0, atol=2.9e-3 * np.abs(plain).max())


@pytest.mark.usefixtures("by_line")
@pytest.mark.parametrize(
    "name",
    ["zero inputs", "no row", "one row", "dead input", "dead bit line", "zero weights", "equal"],
)
def test_degenerate_answers_give_a_finite_error(name: str) -> None:
    # A singular normal matrix, or a prior of variance 0 that divides.
    x, target = rng(1).standard_normal((20, 8)), rng(2).standard_normal((8, 6))
    error = 0.2 * target * rng(3).standard_normal((8, 6))
    if name == "zero inputs":
        x[:] = 0
    elif name in {"no row", "one row"}:
        x = x[: int(name == "one row")]
    elif name == "dead input":
        x[:, 2] = 0
    elif name == "dead bit line":
        target[:, 1] = error[:, 1] = 0
    elif name == "zero weights":
        target[:] = error[:] = 0
    elif name == "equal":
        x[:] = x[:, :1]
    found = asked(x, target, error)
    assert np.isfinite(found.error).all()
    assert np.isfinite(found.metric.dense()).all()
    assert found.output_power > 0
    if name in {"zero inputs", "no row", "zero weights"}:
        assert not found.error.any()
    if name == "dead input":
        share = ((x @ target) * (x @ error)).sum() / np.square(x @ target).sum()
        np.testing.assert_allclose(found.error[0, 2], share * target[2], rtol=1e-5)
    if name == "dead bit line":
        assert not found.error[0, :, 1].any()


def test_statistics_are_those_of_the_rows() -> None:
    # A sum for a mean, the power for the variance.
    x, y = (rng(i).standard_normal((50, n)).astype(np.float32) + 1 for i, n in enumerate((5, 3)))
    moments = SecondMoments(NodeGeometry(weight_shape=(5, 3)))
    moments.update(x, y)
    found = Statistics.of(moments)
    for name, expected in {
        "x_mean": x.mean(axis=0),
        "x_x": x.T @ x / 50,
        "x_cov": np.cov(x.T, bias=True),
        "y_mean": y.mean(axis=0),
        "y_variance": y.var(axis=0),
    }.items():
        value = getattr(found, name)
        value = value.dense() if isinstance(value, Gram) else value
        # Sums of 50 float32 values.
        np.testing.assert_allclose(value[0], expected, rtol=1e-5, atol=1e-6)
    assert found.x_abs_max == np.abs(x).max()


def test_moment_leaves_to_the_bias_what_the_bias_will_take() -> None:
    # A bias of few samples moves part of the way: what stays of the mean still counts.
    x = rng(0).standard_normal((50, 5)).astype(np.float32) + 2
    moments = SecondMoments(NodeGeometry(weight_shape=(5, 3)))
    moments.update(x, np.zeros((50, 3), np.float32))
    weight = np.zeros((1, 5, 3), np.float32)
    for bias_frac in (0.0, 0.3, 1.0):
        found = NodeProblem(
            name="fc",
            geometry=moments.geometry,
            statistics=Statistics.of(moments),
            target=weight,
            error=weight,
            bias_frac=bias_frac,
        )
        rest = x - bias_frac * x.mean(axis=0)
        # Differences of float32 moments of up to 5.
        moment = found.moment.dense()[0]
        np.testing.assert_allclose(moment, rest.T @ rest / 50, rtol=0, atol=1e-5)
        extra = found.metric.dense()[0] - moment
        power = np.trace(moment) / 5
        np.testing.assert_allclose(extra, 0.1 * power * np.eye(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [3e-22, 1e-22, 3e-23])
def test_inputs_whose_squares_float32_rounds_away_teach_nothing(scale: float) -> None:
    # Correlated rows of such inputs have sums of products with a negative eigenvalue: the
    # factorization raised, and the model was called invalid for it.
    x = scale * (1 + 0.1 * rng(0).standard_normal((100, 72)))
    target = rng(1).standard_normal((72, 8))
    found = asked(x, target, 0.2 * target * rng(2).standard_normal((72, 8)))
    assert not found.error.any()
