# SPDX-License-Identifier: Apache-2.0
"""Any value of a graph as its output: nodes that only other values needed have no reader then."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from network_cases import Network, random_network
from onnx import TensorProto, helper
from provider_models import RELATIVE, graph_of_all, needs_providers, normal

from rimc_onnx import runtime
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.runtime.provider import last_mapping, provider_session

pytestmark = needs_providers

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def _values(model: onnx.ModelProto) -> list[str]:
    floats = [node for node in model.graph.node if node.op_type not in ("Constant", "Greater")]
    return [value for node in floats for value in node.output if value]


def _with_outputs(model: onnx.ModelProto, *names: str) -> bytes:
    """The same nodes, all of them, with other outputs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("seed", range(5))
def test_any_value_of_a_converted_network_is_an_output(seed: int) -> None:
    # Catches fused nodes that have no output since nothing reads their last node, and chains that
    # are cut at another place than where the output is.
    case = random_network(seed)
    feeds = {"x": np.ascontiguousarray(case.feeds["x"][:2, :, :9, :9])}
    shapes: dict[str, list[int | str]] = {"x": ["N", *feeds["x"].shape[1:]]}
    model = onnx.ModelProto.FromString(case.model(shapes))
    names = _values(model)
    want = runtime.make_session(_with_outputs(model, *names)).run(None, feeds)
    for name, value in zip(names, want, strict=True):
        session = provider_session(_with_outputs(model, name))
        assert session.run(None, feeds)[0].tobytes() == value.tobytes(), name


def test_any_value_of_an_ordinary_model_is_an_output() -> None:
    # The same for nodes that go to crossbars here; their draws don't depend on what is read.
    proto, _ = graph_of_all()
    model = onnx.ModelProto.FromString(proto)
    feeds = {"x": normal(1, 4, 6, 9, 9)}
    names = _values(model)
    whole = provider_session(_with_outputs(model, *names), provider_options=RELATIVE)
    for name, value in zip(names, whole.run(None, feeds), strict=True):
        session = provider_session(_with_outputs(model, name), provider_options=RELATIVE)
        mapped = [node.name for node in last_mapping() if node.reason is None]
        assert session.run(None, feeds)[0].tobytes() == value.tobytes(), name
        assert mapped


def test_node_without_a_reader_stays_digital() -> None:
    # Catches a crossbar that is reported but can't be run: a fused node needs an output.
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="read"),
        helper.make_node("MatMul", ["x", "w"], ["z"], name="dead"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(normal(2, 6, 5), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = provider_session(model.SerializeToString(), provider_options=RELATIVE)
    assert session.run(None, {"x": normal(3, 2, 6)})[0].shape == (2, 5)
    reasons = {node.name: node.reason for node in last_mapping()}
    assert reasons == {"read": None, "dead": Refusal.UNREAD.of()}


def test_network_of_dead_branches_runs() -> None:
    # A chain of several nodes whose last one is dead, beside one that is not, in one fused node.
    network = Network(np.random.default_rng(0), (1, 8, 12, 12))
    first = network.conv("x", 8)
    network.node("Relu", [network.residual(network.conv(first, 8), first)])
    case = network.case(first)
    assert case.differences() == []
