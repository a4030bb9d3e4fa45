# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import NodeProblem, Statistics
from rimc_onnx.calibration.solvers import closed_form as module
from rimc_onnx.calibration.solvers import leading
from rimc_onnx.calibration.solvers.closed_form import (
    Adapter,
    ClosedFormConfig,
    Draft,
    draft,
    finish,
    mean_error,
    squared_error,
)
from rimc_onnx.errors import ConfigError
from rimc_onnx.execution import parallel
from rimc_onnx.ops.geometry import NodeGeometry

Array = np.ndarray


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def known(x: Array, target: Array, error: Array, *, bias_frac: float = 0.0) -> NodeProblem:
    """A node whose arrays were read out without noise: x [P, d], target and error [d, m]."""
    geometry = NodeGeometry(weight_shape=target.shape)
    moments = SecondMoments(geometry)
    x = np.asarray(x, np.float32)
    moments.update(x, x @ np.asarray(target, np.float32))
    return NodeProblem(
        name="fc",
        geometry=geometry,
        statistics=Statistics.of(moments),
        target=np.float32(target)[None],
        error=np.float32(error)[None],
        bias_frac=bias_frac,
    )


def low_rank(d: int, m: int, rank: int, seed: int) -> Array:
    random = rng(seed)
    return random.standard_normal((d, rank)) @ random.standard_normal((rank, m)) / 8


def fit(
    problem: NodeProblem,
    rank: int,
    *,
    s: Array | None = None,
    magnitude: bool = False,
    num_samples: int = 0,
    prior_samples: float = 10.0,
) -> Adapter:
    node = draft(
        problem,
        magnitude=magnitude,
        num_samples=num_samples,
        config=ClosedFormConfig(prior_samples=prior_samples),
    )
    return finish(node if magnitude else at_one(node), rank=rank, s=s)


def at_one(node: Draft) -> Draft:
    """The node with M at 1, so that what is left is its error itself."""
    return replace(node, m=np.ones_like(node.m), prior=np.inf)


# More word lines than bit lines and the other way round are two paths through the solver.
by_shape = pytest.mark.parametrize(("d", "m"), [(12, 9), (9, 21)], ids=["tall", "wide"])


@by_shape
@pytest.mark.parametrize("rank", [3, 5])
def test_error_of_low_rank_is_recovered(d: int, m: int, rank: int) -> None:
    # A transposed, eigenvectors of the smallest eigenvalues; more ranks than the error has, whose
    # eigenvectors are rounding errors divided by nothing.
    for seed in range(20):
        x, error = rng(seed).standard_normal((200, d)), low_rank(d, m, 3, seed + 100)
        adapter = fit(known(x, rng(3).standard_normal((d, m)), error), rank)
        assert adapter.a.shape == (1, d, rank)
        assert adapter.b.shape == (1, rank, m)
        # Eigenvectors of float32 matrices: 1e-5 of the largest value.
        found = adapter.a[0] @ adapter.b[0]
        np.testing.assert_allclose(found, error, rtol=0, atol=1e-5 * np.abs(error).max())
        # No rank may be so loud that int8 codes of the others round to nothing.
        assert np.abs(adapter.a).max() < 100 * np.abs(error).max()
        assert np.abs(adapter.b).max() < 100
        assert np.array_equal(adapter.m, np.ones((1, m)))


@by_shape
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_residual_is_the_least_that_the_rank_allows(d: int, m: int, rank: int) -> None:
    # Truncating the weights' error, not the output's, loses to the optimum where inputs are of
    # different power (Eckart and Young on L' E, C = L L' the metric).
    x = rng(1).standard_normal((300, d)) * 2.0 ** rng(5).integers(-2, 3, d)
    problem = known(x, rng(2).standard_normal((d, m)), rng(3).uniform(-0.2, 0.2, (d, m)))
    adapter = fit(problem, rank)
    metric = problem.metric.dense()[0].astype(np.float64)
    root = np.linalg.cholesky(metric).T
    rest = root @ (problem.error[0] - adapter.a[0] @ adapter.b[0])
    singular = np.linalg.svd(root @ problem.error[0], compute_uv=False)
    # Sums of 300 float32 rows and products of d of them.
    assert np.square(rest).sum() == pytest.approx(np.square(singular[rank:]).sum(), rel=1e-4)


def test_sparse_cells_are_kept_and_the_rest_is_of_low_rank() -> None:
    # Sparse cells that the low-rank part corrects once more, or that are divided by M.
    d, m = 12, 9
    target = rng(3).standard_normal((d, m))
    cells = np.zeros((d, m))
    cells.flat[rng(4).permutation(d * m)[:10]] = rng(5).uniform(1, 2, 10)
    error = low_rank(d, m, 2, 2)
    problem = known(rng(1).standard_normal((200, d)), target, error + cells)
    # Before the cells make up for others.
    node = at_one(draft(problem, magnitude=False, num_samples=0, config=ClosedFormConfig()))
    adapter = module._branch(node, 2, np.float32(cells)[None])
    found = adapter.a[0] @ adapter.b[0] + cells
    np.testing.assert_allclose(found, error + cells, rtol=0, atol=1e-5)
    assert squared_error(problem, adapter) < 1e-9 * squared_error(problem, None)


@pytest.mark.parametrize("most_cells", [1 << 22, 40])
def test_sparse_cells_make_up_for_those_beside_them(
    monkeypatch: pytest.MonkeyPatch, most_cells: int
) -> None:
    # Cells that hold their own error alone, though their input is almost that of the word line
    # beside them; bit lines that are done in parts and get the cells of another.
    monkeypatch.setattr(module, "_MOST_CELLS", most_cells)
    monkeypatch.setattr(parallel, "PART", most_cells)
    d, m = 10, 12
    x = rng(1).standard_normal((2000, d))
    x[:, 1::2] = x[:, ::2] + 0.2 * x[:, 1::2]
    problem = known(x, rng(2).standard_normal((d, m)), rng(3).standard_normal((d, m)))
    even = np.zeros((1, d, m), np.float32)
    even[0, ::2] = problem.error[0, ::2]
    adapter = fit(problem, 0, s=even)
    assert not adapter.s[0, 1::2].any()
    exact = replace(adapter, s=even)
    assert squared_error(problem, adapter) < 0.4 * squared_error(problem, exact)


def test_gain_sparse_cells_and_low_rank_error_are_undone_together() -> None:
    # M on the wrong side of the correction: M o (H + X (A B + S)) must give Y, whatever M is.
    d, m = 12, 9
    target = rng(3).standard_normal((d, m))
    error = target - (target / rng(6).uniform(0.8, 1.3, m) - low_rank(d, m, 2, 2))
    problem = known(rng(1).standard_normal((200, d)), target, error)
    node = draft(problem, magnitude=True, num_samples=0, config=ClosedFormConfig())
    s = np.where(node.cell_gains() > np.median(node.cell_gains()), node.need, np.float32(0))
    adapter = finish(node, rank=9, s=s)
    assert np.abs(adapter.m - 1).max() > 0.1
    realised = target - error + adapter.a[0] @ adapter.b[0] + adapter.s[0]
    np.testing.assert_allclose(realised * adapter.m[0], target, rtol=0, atol=1e-5)
    assert squared_error(problem, adapter) < 1e-9


def test_gains_are_what_the_error_falls_by() -> None:
    # A budget spent by gains that are off by M, by the node's power or by a square.
    problem = known(
        rng(1).standard_normal((200, 12)),
        rng(2).standard_normal((12, 9)),
        rng(3).uniform(-0.4, 0.4, (12, 9)),
    )
    node = draft(problem, magnitude=True, num_samples=100, config=ClosedFormConfig())
    plain = squared_error(problem, finish(node, rank=0, s=None))
    # A cell's gain is exact where it is the only error of its bit line.
    only = np.zeros((12, 9), np.float32)
    only[4, 3] = 0.4
    lone = known(rng(1).standard_normal((200, 12)), rng(2).standard_normal((12, 9)), only)
    cell = at_one(draft(lone, magnitude=False, num_samples=0, config=ClosedFormConfig()))
    assert cell.cell_gains()[0, 4, 3] == pytest.approx(squared_error(lone, None), rel=1e-4)
    assert np.count_nonzero(cell.cell_gains()) == 1
    # The power that is added to the metric makes a rank's gain too large: by 10 % of the inputs'
    # mean power at most, so the error falls by no more than the gains and by most of them.
    gains = node.rank_gains(None, 4)
    assert (np.diff(gains) <= 0).all()
    for rank in range(1, 5):
        fall = plain - squared_error(problem, finish(node, rank=rank, s=None))
        assert 0.8 * gains[:rank].sum() < fall <= 1.001 * gains[:rank].sum()


def test_squared_error_is_that_of_the_rows() -> None:
    # The expansion in moments with a missing factor 2, M left out, or S.
    x = rng(0).standard_normal((50, 6)).astype(np.float32)
    target, error = (rng(i).standard_normal((6, 5)).astype(np.float32) for i in (1, 2))
    adapter = Adapter(
        a=rng(5).standard_normal((1, 6, 2)).astype(np.float32),
        b=rng(6).standard_normal((1, 2, 5)).astype(np.float32),
        m=rng(7).uniform(0.5, 2, (1, 5)).astype(np.float32),
        s=rng(8).standard_normal((1, 6, 5)).astype(np.float32),
    )
    y, h = x @ target, x @ (target - error)
    corrected = adapter.m[0] * (h + x @ (adapter.a[0] @ adapter.b[0] + adapter.s[0]))
    power = np.square(y - y.mean(axis=0)).mean(axis=0).sum()
    problem = known(x, target, error)
    for given, rest in ((adapter, y - corrected), (None, y - h)):
        expected = np.square(rest).mean(axis=0).sum() / power
        assert squared_error(problem, given) == pytest.approx(expected, rel=1e-5)
    # The bias takes the mean away, all of it or a share.
    for bias_frac in (1.0, 0.6):
        rest = (y - corrected) - (1 - np.sqrt((1 - bias_frac) ** 2)) * (y - corrected).mean(axis=0)
        expected = np.square(rest).mean(axis=0).sum() / power
        found = squared_error(known(x, target, error, bias_frac=bias_frac), adapter)
        assert found == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(
        mean_error(problem, adapter)[0], (y - corrected).mean(axis=0), rtol=0, atol=1e-5
    )


def test_groups_are_fitted_on_their_own() -> None:
    # A group's adapter made of another group's moments or error.
    geometry = NodeGeometry(
        weight_shape=(6, 4, 1), group=3, strides=(1,), pads=(0, 0), dilations=(1,)
    )
    x = rng(1).standard_normal((2, 12, 40)).astype(np.float32)
    x *= np.repeat([1, 3, 9], 4)[None, :, None]
    errors = np.stack([low_rank(4, 2, 1, 3 + g) for g in range(3)]).astype(np.float32)
    target = rng(2).standard_normal((3, 4, 2)).astype(np.float32)
    y = np.einsum("ngcp,gcm->ngmp", x.reshape(2, 3, 4, 40), target).reshape(2, 6, 40)
    moments = SecondMoments(geometry)
    moments.update(x, y)
    problem = NodeProblem(
        name="conv",
        geometry=geometry,
        statistics=Statistics.of(moments),
        target=target,
        error=errors,
        bias_frac=0.0,
    )
    adapter = fit(problem, 1)
    np.testing.assert_allclose(adapter.a @ adapter.b, errors, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_samples", "share"), [(0, 1.0), (1, 1 / 11), (10, 1 / 2)])
def test_magnitude_of_few_samples_is_shrunk_towards_the_nodes(
    num_samples: int, share: float
) -> None:
    # One row of a Gemm fits M perfectly and means nothing; the prior is 10
    # samples of a gain that makes the whole node as loud as the teacher's. Statistics that are
    # exact (0 samples) are not shrunk at all.
    target = rng(2).standard_normal((6, 4))
    gain = np.array([1.5, 1.2, 0.9, 1.0])
    problem = known(rng(1).standard_normal((40, 6)), target, target - target / gain)
    loud = np.trace(target.T @ problem.metric.dense()[0] @ target)
    prior = np.sqrt(
        loud / np.trace((target / gain).T @ problem.metric.dense()[0] @ (target / gain))
    )
    adapter = fit(problem, 0, magnitude=True, num_samples=num_samples)
    np.testing.assert_allclose(adapter.m[0], share * gain + (1 - share) * prior, rtol=1e-5)


def test_a_chain_of_noisy_nodes_stays_as_loud_as_its_target() -> None:
    # Least squares (errors in variables): each node turned down by the power of its errors once
    # more than it has to be, and ten of them by the tenth power. A tenth of the power here.
    target = rng(2).standard_normal((60, 40))
    loudness = []
    for seed in range(10):
        error = 0.5 * target * rng(3 + seed).standard_normal(target.shape)
        problem = known(rng(1).standard_normal((4000, 60)), target, error)
        metric = problem.metric.dense()[0]
        corrected = (target - error) * fit(problem, 0, magnitude=True).m[0]
        powers = [np.einsum("dm,de,em->m", w, metric, w) for w in (corrected, target)]
        np.testing.assert_allclose(*powers, rtol=1e-4)
        loudness.append(powers[0].sum() / powers[1].sum())
    assert np.prod(loudness) == pytest.approx(1, rel=1e-3)


def test_node_that_errors_made_louder_is_turned_down() -> None:
    # A prior gain of 1 would leave a drifted array louder than its target, and every later node
    # with it: errors of 0.5 w add a quarter to the power.
    target = rng(2).standard_normal((60, 40))
    error = 0.5 * target * rng(3).standard_normal(target.shape)
    problem = known(rng(1).standard_normal((4000, 60)), target, error)
    adapter = fit(problem, 0, magnitude=True, num_samples=1)
    array = target - error
    wanted = np.trace(target.T @ problem.metric.dense()[0] @ target)
    loudness = [
        np.trace(w.T @ problem.metric.dense()[0] @ w) for w in (array, array * adapter.m[0])
    ]
    assert loudness[0] > 1.15 * wanted
    # One part in eleven is each bit line's own gain, which is smaller.
    assert loudness[1] == pytest.approx(wanted, rel=0.05)


def test_bit_line_of_the_wrong_sign_has_its_nodes_gain() -> None:
    # M < 0 or 0 would turn a bit line over, or divide B by zero; a gain of its own would make what
    # it gets wrong as loud as what it should say.
    target = rng(2).standard_normal((6, 4))
    error = np.zeros_like(target)
    error[:, 1] = 2 * target[:, 1]
    error[:, 2] = target[:, 2]
    problem = known(rng(1).standard_normal((40, 6)), target, error)
    metric = problem.metric.dense()[0]
    node = np.sqrt(
        np.trace(target.T @ metric @ target)
        / np.trace((target - error).T @ metric @ (target - error))
    )
    adapter = fit(problem, 0, magnitude=True)
    np.testing.assert_allclose(adapter.m[0], [1, node, 1, 1], rtol=1e-5)
    again = fit(problem, 1, magnitude=True)
    assert again.m[0, 2] == 1
    assert (again.m > 0).all()
    assert np.isfinite(again.b).all()


def test_magnitude_is_fitted_again_beside_the_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    # M fitted to the array alone while the branch changes what M multiplies: with M refitted the
    # remaining error, in the metric that both are fitted in, can't be larger.
    target = rng(2).standard_normal((20, 12))
    error = 0.3 * target * rng(3).standard_normal((20, 12))
    problem = known(rng(1).standard_normal((400, 20)), target, error)
    node = draft(problem, magnitude=True, num_samples=0, config=ClosedFormConfig())
    s = np.where(np.abs(node.need) > 0.4, node.need, np.float32(0))
    again = finish(node, rank=2, s=s)
    monkeypatch.setattr(module._Powers, "magnitude", lambda _powers, _prior: node.m)
    once = finish(node, rank=2, s=s)
    assert not np.array_equal(again.m, once.m)
    assert squared_error(problem, again) < squared_error(problem, once)


@pytest.mark.parametrize("magnitude", [True, False])
def test_loss_that_all_bit_lines_share_is_no_matter_of_the_branch(magnitude: bool) -> None:
    # A node without magnitudes whose sparse cells and ranks are spent on a gain that is free: the
    # scale of M has it.
    target = rng(2).standard_normal((20, 12))
    error = 0.3 * target + 0.02 * rng(3).standard_normal((20, 12))
    problem = known(rng(1).standard_normal((400, 20)), target, error)
    node = draft(problem, magnitude=magnitude, num_samples=10, config=ClosedFormConfig())
    plain = node.without_magnitude()
    assert (plain.m == plain.m[0, 0]).all()
    assert plain.m[0, 0] == pytest.approx(1 / 0.7, rel=2e-3)
    assert np.square(plain.need).mean() < 1.1 * 0.02**2
    for rank, s in ((0, None), (2, None), (0, np.where(np.abs(plain.need) > 0.03, plain.need, 0))):
        adapter = finish(plain, rank=rank, s=s)
        assert (adapter.m == adapter.m[0, 0]).all()
        assert squared_error(problem, adapter) < 0.015 * squared_error(problem, None)


DEGENERATE: dict[str, Callable[[Array, Array, Array], tuple[Array, Array, Array]]] = {
    "dead input": lambda x, w, e: (x * (np.arange(x.shape[1]) != 2), w, e),
    "all inputs zero": lambda x, w, e: (0 * x, w, e),
    "one row": lambda x, w, e: (x[:1], w, e),
    "no row": lambda x, w, e: (x[:0], w, e),
    "constant inputs": lambda x, w, e: (0 * x + x[:1], w, e),
    "equal inputs": lambda x, w, e: (0 * x + x[:, :1], w, e),
    "mean far above the spread": lambda x, w, e: (x + 1e4, w, e),
    "dead bit line": lambda x, w, e: (x, w * (np.arange(w.shape[1]) != 1), 0 * e),
    "dead array": lambda x, w, _: (x, w, w),
    "all weights zero": lambda x, w, e: (x, 0 * w, 0 * e),
    "no error": lambda x, w, e: (x, w, 0 * e),
    "huge": lambda x, w, e: (x * 1e15, w, e),
    "tiny": lambda x, w, e: (x * 1e-15, w, e),
}


@by_shape
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("bias_frac", [0.1, 1.0], ids=["few samples", "statistics"])
def test_degenerate_data_gives_a_finite_adapter_that_does_no_harm(
    name: str, d: int, m: int, bias_frac: float
) -> None:
    # A metric that is singular, 0 / 0 in M, a square root of -1e-20.
    drawn = rng(1).standard_normal((20, d)), rng(2).standard_normal((d, m))
    x, w, e = DEGENERATE[name](*drawn, 0.2 * rng(3).standard_normal((d, m)))
    problem = known(x, w, e, bias_frac=bias_frac)
    for rank in (0, 1, 4):
        adapter = fit(problem, rank, magnitude=True, num_samples=1)
        for part in (adapter.a, adapter.b, adapter.m, mean_error(problem, adapter)):
            assert np.isfinite(part).all()
        before, after = squared_error(problem, None), squared_error(problem, adapter)
        assert np.isfinite(after)
        # Where all that varies is rounded away, so is the error.
        assert after <= before + 1e-6 or name == "mean far above the spread"


def test_wide_nodes_give_the_adapter_of_the_dense_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    # The iterative eigensolver with too few iterations, or the wrong end of the spectrum.
    x = rng(1).standard_normal((500, 300))
    error = rng(3).standard_normal((300, 280)) * np.logspace(0, -1, 300)[:, None] / 8
    problem = known(x, rng(2).standard_normal((300, 280)), error)
    products = []
    for limit in (256, 1024):
        monkeypatch.setattr(leading, "_DENSE_EIGEN", limit)
        adapter = fit(problem, 4)
        products.append(adapter.a[0] @ adapter.b[0])
    scale = np.abs(products[1]).max()
    # Both are eigenvectors of one float32 matrix.
    np.testing.assert_allclose(products[0], products[1], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("columns", [900, 700])
def test_large_nodes_give_the_ranks_of_the_dense_solver(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    # Rows of few samples stand out, and behind them is a crowd without end: ranks that miss one
    # of the first, vectors that are no longer at right angles, far less of the crowd than there is.
    d, count, samples = 800, 40, 11
    rows = np.float32(rng(1).standard_normal((1, samples, d)))
    metric = Gram(rows=rows, ridge=np.array([0.1 * samples]))
    rest = np.float32(rng(2).standard_normal((d, columns)) * rng(3).uniform(0.1, 2, (d, 1)))
    loud = metric @ rest
    wanted, _ = leading.leading(rest, loud, metric, count)
    monkeypatch.setattr(leading, "_MOST_FORMED", 0)
    values, vectors = leading.leading(rest, loud, metric, count)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), rtol=0, atol=1e-5)
    np.testing.assert_allclose(values[-samples:], wanted[-samples:], rtol=1e-4)
    assert values[:-samples].sum() > 0.96 * wanted[:-samples].sum()
    held = np.square(rows[0] @ rest @ vectors).sum(axis=0)
    held += 0.1 * samples * np.square(rest @ vectors).sum(axis=0)
    np.testing.assert_allclose(held, values, rtol=1e-4)


def test_large_nodes_without_an_error_have_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    # A Krylov space of nothing, and one that the first products exhaust: NaN in A and B.
    monkeypatch.setattr(leading, "_MOST_FORMED", 0)
    metric = Gram(rows=np.zeros((1, 1, 300), np.float32), ridge=np.ones(1))
    for rest in (np.zeros((300, 300)), np.outer(np.arange(300), np.ones(300))):
        given = np.float32(rest)
        values, vectors = leading.leading(given, metric @ given, metric, 4)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), rtol=0, atol=1e-5)
        np.testing.assert_allclose(values[-1], np.square(rest).sum(), rtol=1e-5)
        np.testing.assert_allclose(values[:-1], 0, atol=1e-6 * values[-1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"prior_samples": -1.0},
        {"prior_samples": np.nan},
        {"bias_prior_samples": -1.0},
        {"bias_prior_samples": np.nan},
        {"sparse_frac": -0.1},
        {"sparse_frac": 1.1},
        {"sparse_frac": np.nan},
    ],
)
def test_wrong_configuration_is_refused(wrong: dict[str, float]) -> None:
    # A share of 110 % spends more than the budget.
    with pytest.raises(ConfigError, match="need prior_samples >= 0, bias_prior_samples >= 0 and 0"):
        ClosedFormConfig(**wrong)
