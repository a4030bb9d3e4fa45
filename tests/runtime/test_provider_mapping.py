# SPDX-License-Identifier: Apache-2.0
"""Nodes that the execution provider leaves with the CPU provider, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from provider_models import (
    RELATIVE,
    Array,
    graph_of_all,
    model_of,
    needs_providers,
    normal,
)

from rimc_onnx.errors import NodeMappingError
from rimc_onnx.runtime.provider import last_mapping, provider_session

W = normal(1, 6, 5)
KERNEL = normal(1, 4, 3, 3, 3)


def refused(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], **more: Any) -> bytes:
    """A model of one MatMul that goes to a crossbar and ``nodes``, which give z, added up."""
    digital = [
        *nodes,
        helper.make_node("MatMul", ["x", "own"], ["mapped"], name="own"),
        helper.make_node("ReduceSum", ["z"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Add", ["mapped", "sum"], ["y"], name="total"),
    ]
    return model_of(digital, ["n", 6], {**constants, "own": normal(9, 6, 2)}, **more)


REFUSALS: dict[str, tuple[bytes, str]] = {
    "weight is an input": (
        refused(
            [helper.make_node("MatMul", ["x", "v"], ["z"], name="it")], {}, inputs={"v": [6, 5]}
        ),
        "the weight is no constant initializer",
    ),
    "constant on the left": (
        refused(
            [helper.make_node("MatMul", ["w", "v"], ["z"], name="it")],
            {"w": W},
            inputs={"v": [5, 3]},
        ),
        "the weight is no constant initializer",
    ),
    "SAME": (
        refused(
            [helper.make_node("Conv", ["v", "w"], ["z"], name="it", auto_pad="SAME_UPPER")],
            {"w": KERNEL},
            inputs={"v": [1, 3, 8, 8]},
        ),
        "auto_pad SAME_UPPER is not written as pads",
    ),
    "transA": (
        refused(
            [helper.make_node("Gemm", ["v", "w"], ["z"], name="it", transA=1)],
            {"w": W},
            inputs={"v": [6, 3]},
        ),
        "transA is set",
    ),
    "batch of matrices": (
        refused(
            [helper.make_node("MatMul", ["v", "w"], ["z"], name="it")],
            {"w": normal(1, 2, 6, 5)},
            inputs={"v": [2, 3, 6]},
        ),
        "the weight has rank 3: one array holds one matrix",
    ),
    "bias is an input": (
        refused(
            [helper.make_node("Gemm", ["x", "w", "v"], ["z"], name="it")],
            {"w": W},
            inputs={"v": [5]},
        ),
        "the bias is no constant initializer",
    ),
    "bias is a column": (
        refused(
            [helper.make_node("Gemm", ["v", "w", "c"], ["z"], name="it")],
            {"w": W, "c": normal(2, 3, 1)},
            inputs={"v": [3, 6]},
        ),
        "the bias of shape [3, 1] is no row",
    ),
    "no name": (
        refused([helper.make_node("MatMul", ["x", "w"], ["z"])], {"w": W}),
        "the node has no name, which its draws need as a key",
    ),
}


@needs_providers
@pytest.mark.parametrize("case", list(REFUSALS))
def test_node_that_can_not_be_mapped_stays_with_the_cpu_provider(case: str) -> None:
    # A node that is claimed and then computed with a default in place of what it says.
    model, reason = REFUSALS[case]
    options = {**RELATIVE, "drift_frac": 0}
    session = provider_session(model, provider_options=options)
    mapping = {m.name: m.reason for m in last_mapping()}
    assert mapping == {"own": None, "" if case == "no name" else "it": reason}
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {
        i.name: normal(3, *(2 if isinstance(size, str) else size for size in i.shape))
        for i in cpu.get_inputs()
    }
    # As for exact rewrites of a graph.
    want = cpu.run(None, feeds)[0]
    np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-5, atol=1e-5)


@needs_providers
def test_double_weight_stays_with_the_cpu_provider() -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="it")],
        ["n", 6],
        {"w": W.astype(np.float64)},
        dtype=TensorProto.DOUBLE,
    )
    with pytest.raises(NodeMappingError, match=r"no node can go .*'it': the weight is not float32"):
        provider_session(model, provider_options=RELATIVE)


@needs_providers
def test_body_of_control_flow_stays_digital() -> None:
    # A conversion leaves bodies alone; a provider that claims there gives the model other arrays.
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    otherwise = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["z2"], name="other")],
        "else",
        [],
        [helper.make_tensor_value_info("z2", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0, name="s"),
        helper.make_node("Cast", ["s"], ["flag"], to=TensorProto.BOOL, name="cast"),
        helper.make_node(
            "If", ["flag"], ["h"], then_branch=inner, else_branch=otherwise, name="if"
        ),
        helper.make_node("MatMul", ["h", "u"], ["y"], name="outer"),
    ]
    model = model_of(nodes, ["n", 6], {"w": W, "v": -W, "u": normal(0, 5, 3)})
    session = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0})
    assert [m.name for m in last_mapping()] == ["outer"]
    x = normal(2, 3, 6)
    want = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want[0], rtol=1e-5, atol=1e-5)


@needs_providers
@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("gemm", {"gemm"}),
        (["conv", "mat*"], {"conv", "matmul"}),
        ("*m*", {"gemm", "matmul"}),
        ("g?mm;", {"gemm"}),
        ("gem;emm;xgemm", set()),
    ],
)
def test_patterns_keep_nodes_digital(patterns: str | list[str], kept: set[str]) -> None:
    model, _ = graph_of_all()
    provider_session(model, provider_options={**RELATIVE, "keep_digital": patterns})
    assert {m.name for m in last_mapping() if m.reason} == kept
    assert all("kept digital by the pattern" in m.reason for m in last_mapping() if m.reason)
