# SPDX-License-Identifier: Apache-2.0
"""The provider's fused convolutions: the bits of the operators one by one, and when not to fuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import chain_cases
import numpy as np
import pytest
from onnx import helper
from provider_models import needs_providers

from rimc_onnx import runtime
from rimc_onnx.runtime.provider import provider_session

pytestmark = needs_providers

RunCases = Callable[[ModuleType, int], None]

NUM_SEEDS = 24


def test_fused_node_gives_the_bits_of_its_operators(run_cases: RunCases) -> None:
    # Catches a merge in another order, sums that a pass forgets, codes of another position, a
    # residual of another image, an activation that changes NaN or -0, noise of another draw, tasks
    # that share memory.
    run_cases(chain_cases, NUM_SEEDS)


def _kernels_of(model: bytes) -> int:
    before = runtime.kernels_created()
    provider_session(model)
    return runtime.kernels_created() - before


def _with_tail(*tail: str) -> object:
    """A case whose nodes end with ``tail``."""
    for seed in range(1000):
        case = chain_cases.chain_case(seed)
        if tuple(node.op_type for node in case.nodes[2:]) == tail and "r" in case.feeds:
            return case
    raise AssertionError(tail)


def test_crossbar_to_activation_is_one_node() -> None:
    # Catches a chain that silently falls apart: two kernels of the library would be left.
    assert _kernels_of(_with_tail("Add", "Relu").model()) == 1


def test_value_that_someone_else_reads_is_not_fused_away() -> None:
    case = _with_tail("Add", "Relu")
    # The crossbar's sums, and the adapter's result, as outputs of the graph.
    assert _kernels_of(replace(case, outputs=("y", "h")).model()) == 2
    with_d = replace(case, outputs=("y", "d"))
    assert _kernels_of(with_d.model()) == 1
    assert with_d.differences() == []
    # A second reader of the adapter's result.
    nodes = [*case.nodes, helper.make_node("Neg", ["d"], ["z"])]
    both = replace(case, nodes=nodes, outputs=("y", "z"))
    assert _kernels_of(both.model()) == 1
    assert both.differences() == []


def test_residual_that_may_be_broadcast_is_added_by_onnx_runtime() -> None:
    # A fused Add has no broadcast: shapes that may differ stay apart.
    case = _with_tail("Add", "Relu")
    case = replace(case, feeds={**case.feeds, "r": case.feeds["r"][:1]})
    shapes = {name: list(x.shape) for name, x in case.feeds.items()}
    session = provider_session(case.model({**shapes, "x": ["N", *shapes["x"][1:]]}))
    want = runtime.make_session(case.model(shapes)).run(None, case.feeds)
    assert session.run(None, case.feeds)[0].tobytes() == want[0].tobytes()


def test_other_convolution_beside_the_crossbar_stays_apart() -> None:
    # A DoraConv that reads something else is no branch of the crossbar.
    case = _with_tail("Add", "Relu")
    changed = type(case.nodes[1])()
    changed.CopyFrom(case.nodes[1])
    changed.input[0] = "x2"
    abs_x = helper.make_node("Abs", ["x"], ["x2"])
    nodes = [abs_x, case.nodes[0], changed, *case.nodes[2:]]
    apart = replace(case, nodes=nodes)
    assert _kernels_of(apart.model()) == 2
    assert apart.differences() == []


def test_ordinary_convolution_with_residual_is_one_node() -> None:
    # The same for a Conv that the provider programs: with and without the residual's fusion (the
    # value is an output too) it gives the same bits.
    rng = np.random.default_rng(0)
    w = rng.standard_normal((24, 16, 3, 3), dtype=np.float32)
    constants = {"w": w, "b": rng.standard_normal(24, dtype=np.float32)}
    x = rng.standard_normal((3, 16, 9, 9), dtype=np.float32)
    feeds = {"x": x, "r": rng.standard_normal((3, 24, 9, 9), dtype=np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], "conv", pads=[1] * 4),
        helper.make_node("Add", ["h", "r"], ["s"], "add"),
        helper.make_node("Relu", ["s"], ["y"], "relu"),
    ]
    case = chain_cases.ChainCase(nodes=nodes, constants=constants, feeds=feeds)
    options = {"preset": "gaussian-relative"}
    fused = provider_session(case.model(), provider_options=options)
    apart = provider_session(replace(case, outputs=("y", "h")).model(), provider_options=options)
    assert fused.run(None, feeds)[0].tobytes() == apart.run(None, feeds)[0].tobytes()


@pytest.mark.parametrize("bounds", [["", "high"], ["low"]])
def test_clip_without_a_bound_takes_the_largest_finite_number(bounds: list[str]) -> None:
    # Catches an infinite sum that a Clip with one bound lets pass: ONNX's default is finite.
    case = _with_tail("Add", "Clip")
    clip = case.nodes[-1]
    nodes = [*case.nodes[:-1], helper.make_node("Clip", [clip.input[0], *bounds], ["y"], "clip")]
    feeds = {name: np.copysign(np.float32(3e38), x) for name, x in case.feeds.items()}
    one_bound = replace(case, nodes=nodes, feeds=feeds, about=str(bounds))
    (y,) = provider_session(one_bound.model()).run(None, feeds)
    assert np.nanmax(np.abs(y)) == np.finfo(np.float32).max
    assert not one_bound.differences()
