# SPDX-License-Identifier: Apache-2.0
"""Nodes that the execution provider leaves with the CPU provider, and why."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

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
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.runtime import provider
from rimc_onnx.runtime.provider import last_mapping, provider_session

ROOT = Path(__file__).resolve().parents[2]
W = normal(1, 6, 5)
KERNEL = normal(1, 4, 3, 3, 3)


def one(text: str, *, opset: int = 17, **constants: Array) -> bytes:
    """The nodes of ``text``, of which the one that is refused gives z."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g {text}'
    )
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    names = {node.op_type: f"the {node.op_type}" for node in model.graph.node}
    for node in model.graph.node:
        node.name = names[node.op_type]
    return bytes(model.SerializeToString())


BYTES = np.ones((6, 5), np.uint8)
DRAWN = "m = Multinomial<sample_size=5>(w) c = Cast<to=1>(m)"
X = "(float[n,6] x"
SEQUENCE = "(float[s,n,6] x) => (float[s,d,n,5] z)"
REFUSALS: dict[Refusal, tuple[bytes, str]] = {
    Refusal.UNREAD: (one(f"{X}) => (float[n,6] z) {{ z = Relu(x) c = MatMul(x, w) }}", w=W), ""),
    Refusal.OPTIMIZED: (
        one(f"{X}) => (float[n,5] z) {{ z = com.microsoft.FusedMatMul(x, w) }}", w=W), ""
    ),
    Refusal.FOREIGN: (
        one(
            "(float[1,n,6] x) => (float[1,n,6] z) "
            "{ z = com.microsoft.Attention<num_heads = 1>(x, w, c) }",
            w=normal(3, 6, 18),
            c=normal(4, 18),
        ),
        "com.microsoft",
    ),
    Refusal.INTEGER: (
        one(
            "(uint8[n,6] x) => (float[n,5] z) <float s = {0.5}> { i = MatMulInteger(x, w) "
            "z = com.microsoft.MatMulIntegerToFloat(x, w, s, s) }",
            w=BYTES,
        ),
        "",
    ),
    Refusal.ATTENTION: (
        one("(float[1,2,3,4] x) => (float[1,2,3,4] z) { z = Attention(x, x, x) }", opset=23), ""
    ),
    Refusal.DEFORMABLE: (
        one(
            "(float[1,1,3,3] x, float[1,8,2,2] o) => (float z) { z = DeformConv(x, w, o) }",
            opset=22,
            w=normal(1, 1, 1, 2, 2),
        ),
        "",
    ),
    Refusal.EINSUM: (
        one(f'{X}) => (float[n,5] z) {{ z = Einsum<equation="ij,jk->ik">(x, w) }}', w=W), ""
    ),
    Refusal.RECURRENT: (
        one(f"{SEQUENCE} {{ z = RNN<hidden_size=5>(x, w, r) }}",
            w=normal(1, 1, 5, 6), r=normal(2, 1, 5, 5)),
        "",
    ),
    Refusal.BOTH_ACTIVATIONS: (
        one(f"{X}, float[6,5] v) => (float[n,5] z) {{ z = MatMul(x, v) }}"), ""
    ),
    Refusal.BOTH_CONSTANTS: (
        one(f"() => (float[6,5] z) {{ {DRAWN} z = MatMul(v, c) }}", w=W * W, v=normal(1, 6, 6)), ""
    ),
    Refusal.LEFT_CONSTANT: (
        one("(float[5,n] x) => (float[6,n] z) { z = MatMul(w, x) }", w=W), ""
    ),
    Refusal.OVERRIDABLE: (
        one(f"{X}, float[6,5] w) => (float[n,5] z) {{ z = MatMul(x, w) }}", w=W), "w"
    ),
    Refusal.QUANTIZED: (
        one(
            f"{X}) => (float[n,5] z) <float s = {{0.5}}> "
            "{ c = DequantizeLinear(w, s) z = MatMul(x, c) }",
            w=BYTES,
        ),
        "",
    ),
    Refusal.NOT_STORED: (
        one(f"{X}) => (float[n,5] z) {{ {DRAWN} z = MatMul(x, c) }}", w=W * W),
        "c|computed by node 'the Cast' (Cast)",
    ),
    Refusal.BIAS_NOT_STORED: (
        one("(float[1,3,5,5] x, float[4] c) => (float[1,4,3,3] z) { z = Conv(x, w, c) }", w=KERNEL),
        "c|an input",
    ),
    Refusal.DTYPE: (
        one("(double[n,6] x) => (double[n,5] z) { z = MatMul(x, w) }", w=W.astype(np.float64)),
        "double",
    ),
    Refusal.EMPTY: (
        one(f"{X}) => (float[n,0] z) {{ z = MatMul(x, w) }}", w=normal(1, 6, 0)), "[6, 0]"
    ),
    Refusal.VECTOR: (one(f"{X}) => (float[n] z) {{ z = MatMul(x, w) }}", w=W[:, 0].copy()), ""),
    Refusal.BATCHED: (
        one("(float[2,n,6] x) => (float[2,n,5] z) { z = MatMul(x, w) }", w=normal(1, 2, 6, 5)),
        "3",
    ),
}  # fmt: skip
"""A model for every reason that both know, and what was found in it, parted by ``|``."""
ITS_OWN: dict[Refusal, tuple[bytes, str]] = {
    Refusal.AUTO_PAD: (
        one(
            "(float[1,3,h,w] x) => (float[1,4,i,j] z) "
            '{ z = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, k) }',
            k=KERNEL,
        ),
        "SAME_UPPER",
    ),
    Refusal.CONV_TRANSPOSE: (
        one("(float[1,3,5,5] x) => (float[1,4,h,i] z) { z = ConvTranspose(x, w) }",
            w=normal(1, 3, 4, 2, 2)),
        "",
    ),
    Refusal.TRANSPOSED: (
        one("(float[6,n] x) => (float[n,5] z) { z = Gemm<transA=1>(x, w) }", w=W), ""
    ),
    Refusal.BIAS_NOT_A_ROW: (
        one("(float[3,6] x) => (float[3,5] z) { z = Gemm(x, w, c) }", w=W, c=normal(2, 3, 1)),
        "[3, 1]",
    ),
}  # fmt: skip
"""Of what a conversion rewrites, with the provider alone."""
ELSEWHERE = {
    Refusal.CONTRADICTION: "test_provider_malformed.py",
    Refusal.IN_BODY: "below",
    Refusal.KEPT_DIGITAL: "below",
    Refusal.OPERAND_MISSING: "ONNX Runtime does not load such a model",
    Refusal.UNNAMED: "below",
    Refusal.WINDOW: "test_provider_models.py",
}


def shown(model: bytes, **options: object) -> dict[str, str | None]:
    """What the provider says of every node."""
    with contextlib.suppress(NodeMappingError):  # nothing is mapped
        provider_session(model, provider_options={**RELATIVE, **options})
    return {m.name: m.reason for m in last_mapping()}


def decided(model: bytes) -> dict[str, str | None]:
    """What a conversion says of every node."""
    graph = ir.serde.deserialize_model(onnx.load_model_from_string(model))
    passes.prepare_pipeline()(graph)
    decisions = passes.select_rram_nodes(graph, ConvertConfig(map_shared=True))
    return {d.name: d.reason for d in decisions}


def test_the_library_has_the_words_of_the_table() -> None:
    # Two wordings of one reason, and a reason without a test.
    text = (ROOT / "runtime" / "src" / "provider" / "refusals.h").read_text()
    found = re.findall(r'constexpr char k(\w+)\[\] =((?:\s*"(?:[^"\\]|\\.)*")+);', text)
    words = {name: "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', body)) for name, body in found}
    assert len(words) == text.count("constexpr")
    table = {r.name.title().replace("_", ""): r for r in Refusal}
    assert words == {name: table[name].value for name in words}
    assert {table[name] for name in words} == {*REFUSALS, *ITS_OWN, *ELSEWHERE}


@needs_providers
@pytest.mark.parametrize("refusal", list(REFUSALS), ids=lambda r: r.name)
def test_provider_and_conversion_give_the_same_reason(refusal: Refusal) -> None:
    # A node that is digital for another reason, or that one of them does not tell of at all.
    model, found = REFUSALS[refusal]
    told = decided(model)
    assert refusal.of(*found.split("|")) in told.values()
    assert shown(model) == told


@needs_providers
@pytest.mark.parametrize("refusal", list(ITS_OWN), ids=lambda r: r.name)
def test_provider_alone_says_what_a_conversion_is_needed_for(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An application in C++ that hears nothing of a node, or "refused" without what to do.
    model, found = ITS_OWN[refusal]
    monkeypatch.setattr(provider, "_rewritten", lambda *_: None)
    assert refusal.of(*found.split("|")) in shown(model).values()


@needs_providers
def test_nodes_without_a_name_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_model_from_string(one(f"{X}) => (float[n,5] z) {{ z = MatMul(x, w) }}", w=W))
    model.graph.node[0].name = ""
    monkeypatch.setattr(provider, "_rewritten", lambda *_: None)
    assert shown(bytes(model.SerializeToString())) == {"": Refusal.UNNAMED.of()}


@needs_providers
@pytest.mark.parametrize("refusal", [Refusal.BATCHED, Refusal.LEFT_CONSTANT], ids=lambda r: r.name)
def test_refused_node_beside_a_crossbar_stays_with_the_cpu_provider(refusal: Refusal) -> None:
    # A node that is claimed and then computed with a default in place of what it says.
    model = onnx.load_model_from_string(REFUSALS[refusal][0])
    model.graph.node.add().CopyFrom(helper.make_node("MatMul", ["r", "own"], ["y"], name="own"))
    model.graph.input.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["m", 6]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model.graph.initializer.append(numpy_helper.from_array(normal(9, 6, 2), "own"))
    both = bytes(model.SerializeToString())
    session = provider_session(both, provider_options={**RELATIVE, "drift_frac": 0})
    assert {m.name for m in last_mapping() if m.reason is None} == {"own"}
    cpu = onnxruntime.InferenceSession(both, providers=["CPUExecutionProvider"])
    feeds = {
        i.name: normal(3, *(4 if isinstance(size, str) else size for size in i.shape))
        for i in cpu.get_inputs()
    }
    for got, want in zip(session.run(None, feeds), cpu.run(None, feeds), strict=True):
        # As for exact rewrites of a graph.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@needs_providers
def test_double_weight_stays_with_the_cpu_provider() -> None:
    reason = re.escape(Refusal.DTYPE.of("double"))
    with pytest.raises(NodeMappingError, match=f"no node can go .*'the MatMul': {reason}"):
        provider_session(REFUSALS[Refusal.DTYPE][0], provider_options=RELATIVE)


@needs_providers
def test_body_of_control_flow_stays_digital() -> None:
    # A conversion leaves bodies alone; a provider that claims there gives the model other arrays.
    def body(op_type: str, inputs: list[str], name: str, **given: object) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        node = helper.make_node(op_type, inputs, [f"{name}_y"], name=name, **given)
        return helper.make_graph([node], "body", [], [value])

    inner = body("MatMul", ["x", "w"], "inner")
    other, deep = (body("MatMul", ["x", "v"], name) for name in ("other", "deep"))
    nested = body("If", ["flag"], "nested", then_branch=other, else_branch=deep)
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0, name="s"),
        helper.make_node("Cast", ["s"], ["flag"], to=TensorProto.BOOL, name="cast"),
        helper.make_node("If", ["flag"], ["h"], then_branch=inner, else_branch=nested, name="if"),
        helper.make_node("MatMul", ["h", "u"], ["y"], name="outer"),
    ]
    model = model_of(nodes, ["n", 6], {"w": W, "v": -W, "u": normal(0, 5, 3)})
    session = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0})
    reason, below = (Refusal.IN_BODY.of("If", name) for name in ("if", "nested"))
    assert {m.name: m.reason for m in last_mapping()} == {
        "outer": None, "inner": reason, "other": below, "deep": below
    }  # fmt: skip
    assert decided(model) == {m.name: m.reason for m in last_mapping()}
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


@needs_providers
def test_nodes_in_any_order_are_taken_as_onnx_runtime_takes_them() -> None:
    # An error of the passes, which need every value made before it is read, from a model that
    # ONNX Runtime sorts.
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n,6] x) => (float[n,5] z) { z = Add(h, c)  h = MatMul(x, w) }
        """)
    for name, value in {"w": W, "c": normal(2, 5)}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    x = normal(3, 4, 6)
    session = provider_session(model.SerializeToString(), provider_options=RELATIVE)
    assert [m.reason for m in last_mapping()] == [None]
    assert session.run(None, {"x": x})[0].shape == (4, 5)
