# SPDX-License-Identifier: Apache-2.0
"""The provider's networks: convolutions that read one another as one node, images in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import network_cases
import numpy as np
import onnxruntime
import pytest
from network_cases import Network
from provider_models import needs_providers

from rimc_onnx import runtime
from rimc_onnx.runtime.provider import PROVIDER_NAME, provider_session

pytestmark = needs_providers

RunCases = Callable[[ModuleType, int], None]

NUM_SEEDS = 20
NUM_SCALAR_SEEDS = 4
"""The scalar kernels take ten times as long; what is planned is the same for all."""
RECORD = {"session.record_ep_graph_assignment_info": "1"}


def test_network_gives_the_bits_of_its_operators(run_cases: RunCases, isa: str) -> None:
    # Catches a value whose memory another has while someone still reads it, images of another
    # turn, a turn that is too long for the last images, an output that is only written in part, a
    # chain before the node that makes its residual, draws that start anew for each turn.
    run_cases(network_cases, NUM_SCALAR_SEEDS if isa == "scalar" else NUM_SEEDS)


def _parts(model: bytes) -> list[int]:
    """Crossbars in each node of the provider."""
    session = provider_session(model, options=RECORD)
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} does not say what a provider took")
    return [
        sum(node.op_type == "RramConv" for node in part.get_nodes())
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == PROVIDER_NAME
    ]


def _network() -> Network:
    return Network(np.random.default_rng(0), (3, 8, 12, 12))


def test_blocks_with_residuals_are_one_node() -> None:
    # Catches a network that silently falls apart into its chains.
    network = _network()
    y = network.down(network.residual(network.conv("x", 8), "x", kernel=3), 16)
    assert _parts(network.case(y).model()) == [5]


def test_values_in_between_may_be_outputs() -> None:
    network = _network()
    first = network.node("Relu", [network.conv("x", 8)])
    y = network.residual(first, first)
    case = network.case(first, y)
    assert _parts(case.model()) == [2]
    assert case.differences() == []


@pytest.mark.parametrize("other", ["Sigmoid", "If"])
def test_network_ends_where_another_node_lies_between(other: str) -> None:
    # In one node with the first convolution the second would wait for what waits for it. What an
    # If reads from outside is none of its inputs.
    network = _network()
    first = network.conv("x", 8)
    aside = network.conditional(first) if other == "If" else network.node(other, [first])
    y = network.residual(first, aside)
    case = network.case(y)
    assert _parts(case.model()) == [1, 1]
    assert case.differences() == []


def test_convolutions_of_different_inputs_stay_apart() -> None:
    # Their batches need not be the same.
    network = _network()
    network.channels["r"] = 8
    y, z = network.conv("x", 8), network.conv("r", 8)
    case = network.case(y, z)
    feeds = {**case.feeds, "r": np.ones((2, 8, 5, 5), np.float32)}
    case = replace(case, feeds=feeds)
    shapes: dict[str, list[int | str]] = {"x": ["N", 8, 12, 12], "r": ["M", 8, 5, 5]}
    assert _parts(case.model(shapes)) == [1, 1]
    session = provider_session(case.model(shapes))
    want = runtime.make_session(case.model(shapes)).run(None, feeds)
    assert [v.tobytes() for v in session.run(None, feeds)] == [v.tobytes() for v in want]


def test_all_images_of_a_value_wait_for_the_next_turns() -> None:
    # Of 19 images 4 go through the first convolution at a time, 8 through the next four, all
    # through the last; what goes from one turn to another is small beside what goes on within.
    # Catches values in the place of images that later turns read.
    network = Network(np.random.default_rng(0), (19, 16, 110, 110))
    value = "x"
    for columns, stride in ((2, 1), (8, 1), (4, 1), (8, 1), (2, 1), (2, 2)):
        value = network.conv(value, columns, stride=stride)
    assert network.case(value).differences() == []


def test_batches_of_any_size_one_after_the_other() -> None:
    # Catches memory that was laid out for another batch.
    network = Network(np.random.default_rng(1), (1, 8, 64, 64))
    y = network.down(network.residual(network.conv("x", 8, kernel=3), "x"), 16)
    case = network.case(y)
    session, one_by_one = provider_session(case.model()), runtime.make_session(case.model())
    rng = np.random.default_rng(2)
    for batch in (33, 1, 20, 2, 0, 33):
        feeds = {"x": rng.standard_normal((batch, 8, 64, 64), dtype=np.float32)}
        (got,), (want,) = session.run(None, feeds), one_by_one.run(None, feeds)
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes(), batch


def test_error_of_a_run_names_the_node_within() -> None:
    network = _network()
    first = network.conv("x", 8)
    second = network.conv(first, 8)
    session = provider_session(network.case(second).model({"x": ["N", "C", "H", "W"]}))
    label = rf"node '{first}\.h' \(RramConv\) with node '{first}' \(DoraConv\): input x must have"
    with pytest.raises(Exception, match=label):
        session.run(None, {"x": np.zeros((1, 9, 12, 12), np.float32)})
