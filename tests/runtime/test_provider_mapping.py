# SPDX-License-Identifier: Apache-2.0
"""Nodes that the execution provider leaves with the CPU provider, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import (
    RELATIVE,
    Array,
    graph_of_all,
    model_of,
    needs_providers,
    normal,
)

from rimc_onnx import passes
from rimc_onnx.crossbar import ConvertConfig, PeripheryConfig
from rimc_onnx.errors import ModelError, NodeMappingError
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
    "batch of matrices": (
        refused(
            [helper.make_node("MatMul", ["v", "w"], ["z"], name="it")],
            {"w": normal(1, 2, 6, 5)},
            inputs={"v": [2, 3, 6]},
        ),
        "the weight has rank 3: one array holds one matrix",
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
    assert mapping == {"own": None, "it": reason}
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


# --- nodes that a conversion maps, and the provider too

HALF = TensorProto.FLOAT16
OTHER_FORMS: dict[str, bytes] = {
    "transA": model_of(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="it", transA=1)], [6, 3], {"w": W}
    ),
    "bias is an input": model_of(
        [helper.make_node("Gemm", ["x", "w", "v"], ["y"], name="it")],
        ["n", 6],
        {"w": W},
        inputs={"v": [5]},
    ),
    "bias is a column": model_of(
        [helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="it")],
        [3, 6],
        {"w": W, "c": normal(2, 3, 1)},
    ),
    "sum with a row's largest": model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="it"),
            helper.make_node("ReduceMax", ["x"], ["r"], axes=[1], name="max"),
            helper.make_node("Add", ["h", "r"], ["y"], name="add"),
        ],
        ["n", 6],
        {"w": W},
    ),
    "SAME of a size that is not known": model_of(
        [
            helper.make_node(
                "Conv", ["x", "w"], ["y"], name="it", auto_pad="SAME_UPPER", strides=[1, 2]
            )
        ],
        [1, 3, "h", "w"],
        {"w": normal(1, 4, 3, 3, 4)},
    ),
    "axis of size 1": model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="it")], ["n", 3, 6], {"w": W[None]}
    ),
    "ConvTranspose": model_of(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="it", strides=[2, 2])],
        ["n", 3, 5, 5],
        {"w": normal(1, 3, 4, 2, 2)},
    ),
    "half a MatMul": model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="it"),
            helper.make_node("Add", ["h", "b"], ["y"], name="add"),
        ],
        ["n", 6],
        {"w": W.astype(np.float16), "b": W[0].astype(np.float16)},
        dtype=HALF,
    ),
    "half a Conv": model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="it")],
        ["n", 3, 7, 7],
        {"w": KERNEL.astype(np.float16), "b": np.ones(4, np.float16)},
        dtype=HALF,
    ),
}


@needs_providers
@pytest.mark.parametrize("case", list(OTHER_FORMS))
def test_forms_that_a_conversion_rewrites_are_mapped(case: str) -> None:
    # Digital with the provider and in arrays after a conversion: two accuracies of one file.
    model = OTHER_FORMS[case]
    assert list(weights_of(model)) == ["it"]
    session = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0})
    assert {m.name: m.reason for m in last_mapping()} == {"it": None}
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {
        i.name: normal(3, *(5 if isinstance(size, str) else size for size in i.shape)).astype(
            np.float16 if "16" in i.type else np.float32
        )
        for i in cpu.get_inputs()
    }
    got, want = (s.run(None, feeds)[0] for s in (session, cpu))
    assert got.dtype == want.dtype
    # As for exact rewrites of a graph; sums of float16 are rounded once less.
    bound = 1e-2 if got.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound)
    drifted = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0.5})
    assert not np.allclose(drifted.run(None, feeds)[0], want, rtol=bound, atol=bound)


@needs_providers
def test_a_kept_node_is_not_rewritten() -> None:
    # A pattern that holds for the first session alone.
    with pytest.raises(NodeMappingError, match="kept digital by the pattern 'i\\*'"):
        provider_session(OTHER_FORMS["transA"], provider_options={**RELATIVE, "keep_digital": "i*"})


@needs_providers
@pytest.mark.parametrize("opset", [18, 22])
def test_nodes_before_an_inlined_function_are_shown(opset: int) -> None:
    # ONNX Runtime inlines Mish and asks again: the crossbars drift, and the mapping is empty.
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N,6] x) => (float[N,5] y) {{ h = MatMul(x, w) k = Mish(h) y = MatMul(k, v) }}""")
    for index, name in ((0, "first"), (2, "last")):
        model.graph.node[index].name = name
    constants = {"w": W, "v": normal(2, 5, 5)}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    provider_session(bytes(model.SerializeToString()), provider_options=RELATIVE)
    assert {m.name: m.reason for m in last_mapping()} == {"first": None, "last": None}


@needs_providers
def test_what_onnxruntime_can_not_load_is_one_line(tmp_path: Path) -> None:
    # Exceptions of the bindings, which have no common class, with their line breaks.
    (tmp_path / "m.onnx").write_bytes(b"no model")
    for source, name in ((b"no model", "the model"), (tmp_path / "m.onnx", "m.onnx")):
        with pytest.raises(ModelError, match=f"{name}: ONNX Runtime can't load it \\(.*\\)\\.$"):
            provider_session(source, provider_options=RELATIVE)


def weights_of(model: bytes) -> dict[str, Array]:
    """The realised weight that a conversion writes for every crossbar."""
    graph = ir.serde.deserialize_model(onnx.load_model_from_string(model))
    ideal = PeripheryConfig(device_reads=False)
    passes.convert_model(graph, ConvertConfig(rank=1, periphery=ideal))
    return {branch.node: branch.weight() for branch in passes.rram_branches(graph)}


@needs_providers
def test_nodes_without_a_name_have_those_of_a_conversion(tmp_path: Path) -> None:
    # Digital nodes in a model that an exporter gave no names, or draws of other keys; external
    # data that a model in memory does not find.
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N,6] x) => (float[N,5] y, float[N,6] z) {
            r = Relu(x)
            y = own.Product(r, w)
            z = MatMul(x, v) }
        <domain: "own", opset_import: ["" : 17]> Product (a, b) => (c) { c = MatMul(a, b) }""")
    for name, w in (("w", W), ("v", normal(2, 6, 6))):
        model.graph.initializer.append(numpy_helper.from_array(w, name))
    bare = bytes(model.SerializeToString())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0,
              location="m.data")  # fmt: skip
    want = weights_of(bare)
    assert len(want) == 2
    for source in (bare, tmp_path / "m.onnx"):
        session = provider_session(source, provider_options=RELATIVE)
        assert {m.name: m.reason for m in last_mapping()} == dict.fromkeys(want)
        y, z = session.run(None, {"x": np.eye(6, dtype=np.float32)})
        assert [y.tolist(), z.tolist()] == [w.tolist() for w in want.values()]


@needs_providers
@pytest.mark.parametrize("lead", [[], [4]])
def test_sum_of_two_products_is_on_two_crossbars(lead: list[int]) -> None:
    # ONNX Runtime makes a Gemm of a MatMul and an Add, whose C is then no constant: half of the
    # arrays of a recurrent cell.
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["u"], name="a"),
        helper.make_node("MatMul", ["h", "v"], ["t"], name="b"),
        helper.make_node("Add", ["u", "t"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    constants = {"w": normal(1, 6, 5), "v": normal(2, 5, 5)}
    model = model_of(nodes, [*lead, "n", 6], constants, inputs={"h": [*lead, "n", 5]})
    session = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0})
    assert {m.name: m.reason for m in last_mapping()} == {"a": None, "b": None}
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {"x": normal(3, *lead, 7, 6), "h": normal(4, *lead, 7, 5)}
    got, want = (s.run(None, feeds)[0] for s in (session, cpu))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@needs_providers
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
def test_same_pads_are_those_of_onnx(mode: str, strides: list[int]) -> None:
    # The odd one at the wrong end, a kernel without its dilation, a size of the other axis.
    attributes = {"auto_pad": mode, "strides": strides}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    model = model_of([node], ["n", 3, 9, 10], {"w": normal(1, 4, 3, 4, 2)})
    session = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0})
    assert [m.reason for m in last_mapping()] == [None]
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    got, want = (s.run(None, {"x": normal(2, 2, 3, 9, 10)})[0] for s in (session, cpu))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
