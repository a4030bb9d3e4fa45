# SPDX-License-Identifier: Apache-2.0
"""One SRAM budget: never exceeded, spent where a byte gains most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from rimc_onnx.calibration.allocate import Kinds, Share, allocate, uniform
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import NodeProblem, Statistics
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.solvers.closed_form import (
    ClosedFormConfig,
    Draft,
    draft,
    finish,
    squared_error,
)
from rimc_onnx.ops.geometry import NodeGeometry

Array = np.ndarray

LOW_RANK = Kinds(magnitude=False)
SPARSE = Kinds(low_rank=False, magnitude=False, sparse=True)
BOTH = Kinds(magnitude=False, sparse=True)
ALL = Kinds(magnitude=False, sparse=True, dense=True)
KINDS = {
    "low rank": LOW_RANK,
    "sparse": SPARSE,
    "both": BOTH,
    "dense": Kinds(low_rank=False, magnitude=False, dense=True),
    "low rank or dense": Kinds(magnitude=False, dense=True),
    "sparse or dense": Kinds(low_rank=False, magnitude=False, sparse=True, dense=True),
    "all": ALL,
    "none": Kinds(low_rank=False, magnitude=False),
}


def node(
    shape: tuple[int, int],
    seed: int,
    *,
    group: int = 1,
    size: float = 0.2,
    outlier: float = 0.0,
    gain_spread: float = 0.0,
    magnitude: bool = False,
) -> Draft:
    """A node of ``group`` matrices [d, m] whose error is ``size`` of the weights.

    Bit lines lose shares that differ by ``gain_spread``, too.
    """
    d, m = shape
    random = np.random.default_rng(seed)
    geometry = NodeGeometry(
        weight_shape=(group * m, d, 1) if group > 1 else (d, m),
        group=group,
        strides=(1,) * (group > 1),
        pads=(0, 0) * (group > 1),
        dilations=(1,) * (group > 1),
    )
    target = random.standard_normal((group, d, m)).astype(np.float32)
    error = size * target * random.standard_normal(target.shape)
    error[0].flat[random.permutation(d * m)[:3]] += outlier
    error += target * np.linspace(-gain_spread, gain_spread, m)
    x = random.standard_normal((40, group, d)) * 2.0 ** random.integers(-2, 2, d)
    y = np.einsum("pgd,gdm->pgm", x, target).reshape(40, group * m)
    x = x.reshape(40, group * d)
    moments = SecondMoments(geometry)
    x, y = (a.astype(np.float32) for a in (x, y))
    moments.update(*((x[:, :, None], y[:, :, None]) if group > 1 else (x, y)))
    problem = NodeProblem(
        name=f"n{seed}",
        geometry=geometry,
        statistics=Statistics.of(moments),
        target=target,
        error=error.astype(np.float32),
        bias_frac=1.0,
    )
    return draft(problem, magnitude=magnitude, num_samples=0, config=ClosedFormConfig())


def bytes_of(drafts: Sequence[Draft], shares: Sequence[Share]) -> int:
    """SRAM that the file will take."""
    total = 0
    for given, share in zip(drafts, shares, strict=True):
        bias = np.zeros(given.m.size, np.float32)
        node = given if share.magnitude else given.without_magnitude()
        adapter = finish(node, rank=share.rank, s=share.kept(node.need))
        codes, _ = quantize(adapter, given.problem, bias, dense=share.dense)
        total += codes.sram_bytes
    return total


def error_of(drafts: Sequence[Draft], shares: Sequence[Share]) -> float:
    return sum(
        squared_error(n.problem, finish(n, rank=s.rank, s=s.kept(n.need)))
        for n, s in zip(drafts, shares, strict=True)
    )


@pytest.fixture(scope="module")
def net() -> list[Draft]:
    """Tall, wide, grouped, depthwise; quiet and loud; with outliers and without."""
    return [
        node((24, 10), 1),
        node((8, 30), 2, size=0.05),
        node((6, 4), 3, group=3, outlier=2.0),
        node((9, 1), 4, group=5),
        node((16, 16), 5, size=0.5),
    ]


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("sparse_frac", [0.0, 0.5, 1.0])
def test_budget_is_never_exceeded(net: list[Draft], kinds: Kinds, sparse_frac: float) -> None:
    # Groups that are not counted, an index that is free, a rank more than there is room for.
    for budget in (0, 1, 2, 33, 34, 35, 100, 333, 500, 900, 1500, 10**6):
        shares = allocate(net, budget, kinds, sparse_frac)
        assert bytes_of(net, shares) <= budget
        for given, share in zip(net, shares, strict=True):
            assert 0 <= share.rank <= min(given.need.shape[1:])
            assert kinds.low_rank or share.rank == 0
            assert kinds.sparse or share.cells is None
            assert kinds.dense or not share.dense
            if share.cells is not None:
                s = share.kept(given.need)
                assert s is not None
                assert np.array_equal(np.flatnonzero(s), share.cells)
                assert np.array_equal(s[s != 0], given.need.ravel()[share.cells])


@pytest.mark.parametrize("kinds", [LOW_RANK, SPARSE, BOTH], ids=["low rank", "sparse", "both"])
def test_budget_is_spent(net: list[Draft], kinds: Kinds) -> None:
    # A node that is too large for what is left must not keep smaller ones from it. What no node
    # could use may stay: less than the cheapest step that is left, here at most 50 bytes.
    for budget in (100, 333, 500):
        assert bytes_of(net, allocate(net, budget, kinds, 0.5)) > budget - 50


@pytest.mark.parametrize("kinds", [LOW_RANK, SPARSE, BOTH], ids=["low rank", "sparse", "both"])
def test_more_sram_never_hurts(net: list[Draft], kinds: Kinds) -> None:
    errors = [
        error_of(net, allocate(net, budget, kinds, 0.5)) for budget in (0, 100, 300, 600, 1200)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.4 * errors[0]


def test_sparse_cells_are_the_best_there_are() -> None:
    # Every way to keep 1 to 4 cells of two tiny nodes: none gains more. The nodes' outputs differ
    # by 1e4 in power, which only errors relative to it can bridge.
    drafts = [node((3, 2), 1, size=0.3), node((2, 3), 2, size=0.3)]
    gains = np.concatenate([d.cell_gains().ravel() for d in drafts])
    for budget, count in ((2, 1), (3, 2), (5, 3), (6, 4)):
        shares = allocate(drafts, budget, SPARSE, 0.5)
        kept = np.concatenate(
            [
                np.isin(np.arange(d.need.size), [] if s.cells is None else s.cells)
                for d, s in zip(drafts, shares, strict=True)
            ]
        )
        # The last cell that there is room for may be left out: it may tie with others.
        assert kept.sum() in {count - 1, count}
        subsets = itertools.combinations(range(12), int(kept.sum()))
        assert gains[kept > 0].sum() == max(gains[list(c)].sum() for c in subsets)


def test_ranks_go_where_a_byte_gains_most() -> None:
    # Every way to give ranks to two nodes of equal cost: none has a larger gain. Where costs
    # differ, none that is cheaper than what was spent has.
    for shapes, budget in ((((6, 4), (4, 6)), 40), (((8, 4), (3, 5)), 45), (((8, 4), (3, 5)), 28)):
        drafts = [node(s, i + 1, size=0.1 + 0.2 * i) for i, s in enumerate(shapes)]
        costs = [sum(s) for s in shapes]
        most = [s[0] * s[1] // sum(s) for s in shapes]
        gains = [
            np.append(0, np.cumsum(d.rank_gains(None, k)))
            for d, k in zip(drafts, most, strict=True)
        ]
        shares = allocate(drafts, budget, LOW_RANK, 0.5)
        got = [s.rank for s in shares]
        spent = sum(c * r for c, r in zip(costs, got, strict=True))
        assert spent <= budget
        found = sum(g[r] for g, r in zip(gains, got, strict=True))
        for ranks in itertools.product(*(range(k + 1) for k in most)):
            if sum(c * r for c, r in zip(costs, ranks, strict=True)) <= spent:
                assert sum(g[r] for g, r in zip(gains, ranks, strict=True)) <= found * (1 + 1e-6)


def test_small_node_that_errs_is_served_before_a_large_one_that_does_not() -> None:
    # Errors in absolute power: the node with the loudest output takes everything.
    loud, quiet = node((20, 20), 1, size=0.01), node((6, 6), 2, size=0.5)
    large, small = allocate([loud, quiet], 40, LOW_RANK, 0.5)
    assert (large.rank, small.rank) == (0, 3)


def test_outliers_are_kept_sparse_and_the_rest_gets_ranks() -> None:
    # A rank spent on three cells that cost five bytes.
    given = node((24, 10), 3, size=0.1, outlier=4.0)
    (share,) = allocate([given], 80, BOTH, 0.15)
    assert share.cells is not None
    assert share.cells.size in {7, 8}
    assert share.rank == 2
    largest = np.argsort(given.cell_gains().ravel())[-3:]
    assert np.isin(largest, share.cells).all()


@pytest.mark.parametrize(
    ("name", "size", "budget"),
    [
        ("all", 108, 10**6),
        ("sparse or dense", 108, 10**6),
        ("low rank or dense", 108, 10**6),
        ("dense", 108, 10**6),
        ("dense", 108, 108),
    ],
)
def test_node_is_kept_whole_where_that_is_cheaper(name: str, size: int, budget: int) -> None:
    # Beyond d m / (d + m) ranks, or two thirds of the cells with their indices, the matrix costs
    # less and errs nowhere.
    given = node((12, 9), 3)
    (share,) = allocate([given], budget, KINDS[name], 0.5)
    assert share.dense
    assert share.rank == 0
    assert bytes_of([given], [share]) == size
    assert error_of([given], [share]) < 1e-9


@pytest.mark.parametrize("name", ["dense", "sparse or dense", "low rank or dense", "all"])
def test_all_nodes_are_kept_whole_where_there_is_room(net: list[Draft], name: str) -> None:
    # A rule of thumb for the first node that starves the last one: here every node fits.
    total = sum(d.need.size for d in net)
    shares = allocate(net, total, KINDS[name], 0.5)
    assert error_of(net, shares) < 1e-6


def test_node_is_not_kept_whole_where_there_is_no_room() -> None:
    given = node((12, 9), 3)
    for name in ("all", "dense", "low rank or dense", "sparse or dense"):
        (share,) = allocate([given], 107, KINDS[name], 0.5)
        assert not share.dense


def test_magnitudes_are_bought_where_they_gain_more_than_cells() -> None:
    # A byte for every bit line of the network, paid before anything else: half of what a small
    # network has, for gains that one scale for the node gives nearly as well.
    skewed = node((24, 10), 1, size=0.02, gain_spread=0.3, magnitude=True)
    even = node((24, 10), 2, size=0.4, magnitude=True)
    asked = Kinds(sparse=True)
    bought = {0: [False, False], 12: [False, False], 60: [True, False], 600: [True, True]}
    for budget, expected in bought.items():
        shares = allocate([skewed, even], budget, asked, 0.5)
        assert bytes_of([skewed, even], shares) <= budget
        assert [share.magnitude for share in shares] == expected
    # Who asks for them without cells to compare with gets them all.
    shares = allocate([skewed, even], 60, Kinds(), 0.5)
    assert [share.magnitude for share in shares] == [True, True]
    assert bytes_of([skewed, even], shares) <= 60


def test_gain_of_a_magnitude_is_what_the_error_falls_by() -> None:
    # Counted against an array that has no gain at all: every node that is too loud would buy one
    # for each bit line.
    given = node((24, 10), 1, size=0.1, gain_spread=0.3, magnitude=True)
    problem = given.problem
    metric = problem.metric.dense()[0].astype(np.float64)
    realised = (problem.target - problem.error)[0]
    common = np.sqrt(
        np.trace(problem.target[0].T @ metric @ problem.target[0])
        / np.trace(realised.T @ metric @ realised)
    )
    lost = [
        np.einsum("dm,de,em->", rest, metric, rest)
        for rest in (problem.target[0] - realised * m for m in (common, given.m[0]))
    ]
    expected = (lost[0] - lost[1]) * problem.loss_per_power
    assert given.magnitude_gain == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("budget", [0, 1, 20])
def test_budget_below_one_rank_gives_none(budget: int) -> None:
    (share,) = allocate([node((12, 9), 3)], budget, LOW_RANK, 0.5)
    assert (share.rank, share.cells, share.dense) == (0, None, False)


def test_nodes_without_error_take_nothing_of_it() -> None:
    # Ties at a gain of 0: cells of no use, or all of them at once.
    silent, other = node((12, 9), 1, size=0.0), node((12, 9), 2)
    for kinds in (SPARSE, LOW_RANK):
        first, second = allocate([silent, other], 84, kinds, 0.5)
        assert first.rank == 0
        assert first.cells is None
        assert second.rank == 4 or second.cells is not None


def test_one_rank_for_all_is_what_a_group_has_at_most(net: list[Draft]) -> None:
    # A depthwise convolution has one bit line a group.
    shares = uniform([d.problem.geometry for d in net], 6)
    assert [s.rank for s in shares] == [6, 6, 4, 1, 6]
    assert all(s.cells is None and not s.dense for s in shares)
