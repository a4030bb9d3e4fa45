# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.errors import ModelError, NodeMappingError, UsageError
from rimc_onnx.ops import schema
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.passes import (
    NameNodesPass,
    find_units,
    prepare_pipeline,
    require_mapped,
    select_rram_nodes,
)

F32, F64, F16 = np.float32, np.float64, np.float16
CONFIG = ConvertConfig()
ROWS = "g (float[3,6] x) => (float y)"


def _ones(*shape: int, dtype: type = F32) -> np.ndarray:
    return np.ones(shape, dtype)


def _named(model: ir.Model) -> ir.Model:
    NameNodesPass()(model)
    return model


def _only(model: ir.Model, config: ConvertConfig = CONFIG) -> str | None:
    (decision,) = select_rram_nodes(_named(model), config)
    assert decision.accepted is (decision.reason is None) is (decision.unit is not None)
    return decision.reason


REASONS = [
    ("g (float[3,6] x, float[6,3] z) => (float y) { y = MatMul(x, z) }", {},
     Refusal.BOTH_ACTIVATIONS.of()),
    (f"{ROWS} {{ y = MatMul(x, w) }}", {"w": _ones(2, 6, 5)},
     Refusal.BATCHED.of(3)),
    (f"{ROWS} {{ y = MatMul(x, w) }}", {"w": _ones(6)},
     Refusal.VECTOR.of()),
    ("g (float[6] x) => (float y) { y = MatMul(x, w) }", {"w": _ones(6, 5)},
     Refusal.LEFT_VECTOR.of()),
    ("g (double[3,6] x) => (double y) { y = MatMul(x, w) }", {"w": _ones(6, 5, dtype=F64)},
     Refusal.DTYPE.of("double")),
    ("g (double[3,6] x) => (double y) { y = Gemm(x, w) }", {"w": _ones(6, 5, dtype=F64)},
     Refusal.DTYPE.of("double")),
    (f"{ROWS} {{ y = MatMul(x, w) }}", {"w": _ones(6, 0)}, Refusal.EMPTY.of([6, 0])),
    ("g (float[6,3] x) => (float y) { y = MatMul(w, x) }", {"w": _ones(5, 6)},
     Refusal.LEFT_CONSTANT.of()),
    (f"{ROWS} {{ y = MatMul(w, w) }}", {"w": _ones(6, 6)}, Refusal.BOTH_CONSTANTS.of()),
    # Rewritten as an Add it would compute what ONNX Runtime refuses.
    (f"{ROWS} {{ y = Gemm(x, w, c) }}", {"w": _ones(6, 6), "c": _ones(1, 1, 6)},
     Refusal.GEMM_C.of()),
    ("g (float[3,6] x, float[6,5] w) => (float y) { y = MatMul(x, w) }", {"w": _ones(6, 5)},
     Refusal.OVERRIDABLE.of("w")),
    (f"{ROWS} {{ c = Bernoulli(w) y = MatMul(x, c) }}", {"w": _ones(6, 5)},
     Refusal.NOT_STORED.of("c", "computed by node 'Bernoulli_0' (Bernoulli)")),
    ("g (float[3,6] x) => (float y) <float s = {0.5}> "
     "{ c = DequantizeLinear(w, s) y = Gemm(x, c) }",
     {"w": _ones(6, 5, dtype=np.int8)},
     Refusal.QUANTIZED.of()),
    ('g (float[3,6] x) => (float y) { y = Einsum<equation="ij,jk->ik">(x, w) }',
     {"w": _ones(6, 5)}, Refusal.EINSUM.of()),
    ("g (uint8[3,6] x) => (int32 y) { y = MatMulInteger(x, w) }",
     {"w": _ones(6, 5, dtype=np.uint8)}, Refusal.INTEGER.of()),
    ("g (uint8[3,6] x) => (float y) { y = com.microsoft.MatMulIntegerToFloat(x, w, s, s) }",
     {"w": _ones(6, 5, dtype=np.uint8), "s": _ones(1)}, Refusal.INTEGER.of()),
    ("g (float[3,6] x) => (float y) { y = com.microsoft.FusedMatMul(x, w) }",
     {"w": _ones(6, 5)}, Refusal.OPTIMIZED.of()),
    ("g (float[1,3,5,5] x, float[3,4,2,2] z) => (float y) { y = ConvTranspose(x, z) }",
     {}, Refusal.BOTH_ACTIVATIONS.of()),
    ("g (double[1,3,5,5] x) => (double y) { y = ConvTranspose(x, w) }",
     {"w": _ones(3, 4, 2, 2, dtype=F64)},
     Refusal.DTYPE.of("double")),
    ("g (float[1,3,5,5] x) => (float y) { y = ConvTranspose(x, w) }",
     {"w": _ones(3, 0, 2, 2)}, Refusal.EMPTY.of([3, 0, 2, 2])),
    ("g (float[1,3,5,5] x, float[4] c) => (float y) { y = Conv(x, w, c) }",
     {"w": _ones(4, 3, 2, 2)}, Refusal.BIAS_NOT_STORED.of("c", "an input")),
    ('g (float[1,3,5,5] x) => (float y) { y = Conv<auto_pad="SAME_UPPER">(x, w) }',
     {"w": _ones(4, 3, 2, 2)},
     Refusal.AUTO_PAD.of("SAME_UPPER")),
    (f"{ROWS} {{ y = own.MyMatMul(x, w) }}", {"w": _ones(6, 5)}, Refusal.FOREIGN.of("own")),
    (f"{ROWS} {{ y = Attention(x, x, x) }}", {}, Refusal.ATTENTION.of()),
    ("g (float[1,1,3,3] x, float[1,8,2,2] o) => (float y) { y = DeformConv(x, w, o) }",
     {"w": _ones(1, 1, 2, 2)}, Refusal.DEFORMABLE.of()),
    ("g (float[2,3,6] x) => (float y) { y = GRU<hidden_size=5>(x, w, r) }",
     {"w": _ones(1, 15, 6), "r": _ones(1, 15, 5)}, Refusal.RECURRENT.of()),
    ("g (float[1,3] x) => (float y) { y = ConvTranspose(x, w) }", {"w": _ones(3, 4)},
     Refusal.NO_KERNEL.of([3, 4])),
    (f"{ROWS} {{ p = MatMul(x, w) y = Relu(x) }}", {"w": _ones(6, 5)}, Refusal.UNREAD.of()),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "arrays", "reason"), REASONS)
def test_node_stays_digital_for_a_reason(build, graph, arrays, reason):
    assert _only(build(graph, **arrays)) == reason


def test_operand_that_is_missing_is_a_reason(build):
    model = _named(build(f"{ROWS} {{ y = MatMul(x, w) }}", w=_ones(6, 5)))
    model.graph[0].replace_input_with(0, None)
    (decision,) = select_rram_nodes(model, CONFIG)
    assert decision.reason == Refusal.OPERAND_MISSING.of()


def test_every_reason_of_a_conversion_has_a_case():
    # A reason that nothing gives, or that was never seen in a test.
    elsewhere = {Refusal.IN_BODY, Refusal.KEPT_DIGITAL, Refusal.OPERAND_MISSING, Refusal.WINDOW}
    elsewhere |= {Refusal.SHARED}  # test_canonicalize_matmul.py
    of_the_provider = {
        Refusal.UNNAMED, Refusal.CONV_TRANSPOSE, Refusal.TRANSPOSED,
        Refusal.BIAS_NOT_A_ROW, Refusal.CONTRADICTION,
    }  # fmt: skip
    seen = {r for r in Refusal for *_, reason in REASONS if r.gave(reason)}
    assert seen - {Refusal.CONTRADICTION} == {*Refusal} - elsewhere - of_the_provider


@pytest.mark.parametrize("refusal", list(Refusal), ids=lambda r: r.name)
def test_every_reason_says_what_was_found_and_what_to_do(refusal):
    # "weight is shared", and now?
    reason = refusal.of(*("it" for _ in range(refusal.value.count("{}"))))
    what, _, do = reason.rpartition(": ")
    assert what
    assert len(do.split()) >= 2
    assert "\n" not in reason
    assert not reason.endswith(".")
    assert [r for r in Refusal if r.gave(reason) and r is not Refusal.CONTRADICTION] in (
        [refusal], []
    )  # fmt: skip


@pytest.mark.parametrize(("tile_rows", "fits"), [(342, False), (343, True), (None, True)])
def test_kernel_window_must_fit_in_a_tile(build, tile_rows, fits):
    model = build("g (float[1,1,9,9,9] x) => (float y) { y = Conv(x, w) }", w=_ones(1, 1, 7, 7, 7))
    config = ConvertConfig(periphery=PeripheryConfig(tile_rows=tile_rows))
    says = Refusal.WINDOW.of(343, 342)
    want = None if fits else says
    assert _only(model, config) == want


def test_op_types_that_only_look_alike_need_no_decision(build):
    model = build(f"{ROWS} {{ a = com.microsoft.ConvertFoo(x) y = Gather(w, a) }}", w=_ones(6, 5))
    assert select_rram_nodes(_named(model), CONFIG) == []


def test_node_in_a_body_stays_digital_and_is_named(build):
    # Catches a mapped node that runs many times, or never, and a body that nobody looks into.
    model = build(
        "g (float[3,6] x, bool c) => (float y) { y = If (c) <"
        "then_branch = t () => (float a) { a = MatMul(x, w) },"
        "else_branch = e () => (float b) { b = MatMul(x, w) }> }",
        w=_ones(6, 5),
    )
    decisions = select_rram_nodes(_named(model), CONFIG)
    assert [d.name for d in decisions] == ["MatMul_1", "MatMul_2"]
    assert {d.reason for d in decisions} == {Refusal.IN_BODY.of("If", "If_0")}


def test_keep_digital_takes_names_and_patterns(build):
    model = build(
        f"{ROWS} {{ a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, u) }}",
        w=_ones(6, 6), v=_ones(6, 6), u=_ones(6, 6),
    )  # fmt: skip
    for name, node in zip(("enc/0", "enc/1", "head[1]"), model.graph, strict=True):
        node.name = name
    config = ConvertConfig(keep_digital=("enc/*", "head[1]"))
    assert [d.reason for d in select_rram_nodes(model, config)] == [
        Refusal.KEPT_DIGITAL.of("enc/*"),
        Refusal.KEPT_DIGITAL.of("enc/*"),
        Refusal.KEPT_DIGITAL.of("head[1]"),
    ]
    with pytest.raises(UsageError, match=r"`keep_digital` 'enc/2' names no node. Did you mean 'en"):
        select_rram_nodes(model, ConvertConfig(keep_digital=("enc/2",)))
    # Calibration finds the unit in the teacher whatever was kept digital in some student.
    assert list(find_units(model)) == ["enc/0", "enc/1", "head[1]"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_that_is_no_number_is_an_error_with_the_nodes_name(build, bad):
    w = _ones(6, 5)
    w[5, 4] = bad
    model = _named(build(f"{ROWS} {{ y = MatMul(x, w) }}", w=w))
    with pytest.raises(ModelError, match=r"node 'MatMul_0' \(MatMul\): weight 'w' holds NaN"):
        select_rram_nodes(model, CONFIG)
    # Not mapped, not looked at.
    config = ConvertConfig(keep_digital=("MatMul_0",))
    assert select_rram_nodes(model, config)[0].unit is None


def test_mask_behind_a_product_is_no_bias(build):
    # Minus infinity for classes that are not to be: a digital bias may not hold it.
    model = build(
        f"{ROWS} {{ p = MatMul(x, w) y = Add(p, b) }}", w=_ones(6, 5), b=-np.inf * _ones(5)
    )
    unit = find_units(_named(model))["MatMul_0"]
    assert unit.add is None
    assert not unit.bias.any()


def test_bias_of_a_conv_that_is_no_number_is_an_error_with_the_nodes_name(build):
    # Told of a node that the file does not have, once everything was programmed.
    graph = "g (float[N,2,8,8] x) => (float y) { y = Conv(x, w, b) }"
    model = _named(build(graph, w=_ones(6, 2, 3, 3), b=-np.inf * _ones(6)))
    with pytest.raises(ModelError, match=r"node 'Conv_0' \(Conv\): bias 'b' holds NaN or inf"):
        select_rram_nodes(model, CONFIG)


def test_conv_unit_holds_what_the_crossbar_needs(build):
    w = np.arange(6 * 2 * 3 * 3, dtype=F32).reshape(6, 2, 3, 3)
    model = _named(
        build(
            "g (float[1,4,9,9] x) => (float y) "
            "{ y = Conv<group=2, pads=[1,0,0,1], strides=[2,1]>(x, w, c) }",
            w=w,
            c=np.arange(6, dtype=F32),
        )
    )
    config = ConvertConfig(periphery=PeripheryConfig(tile_rows=9))
    (decision,) = select_rram_nodes(model, config)
    unit = decision.unit
    assert unit is not None
    assert (unit.op_type, unit.num_tiles) == (schema.RRAM_CONV, 2)
    assert (unit.geometry.group, unit.geometry.columns) == (2, 6)
    assert unit.geometry.pads == (1, 0, 0, 1)
    assert unit.geometry.strides == (2, 1)
    assert unit.geometry.dilations == (1, 1)
    assert (unit.x.name, unit.y.name, unit.cast_from) == ("x", "y", None)
    np.testing.assert_array_equal(unit.weight.float32(), w)
    np.testing.assert_array_equal(unit.bias, np.arange(6))


@pytest.mark.parametrize(
    ("rank", "bias", "taken"),
    [
        (3, (5,), True), (3, (1, 5), True), (3, (1, 1, 5), True), (3, (1,), True), (3, (), True),
        (3, (5, 1), False),  # per row, of which there are as many as columns
        (2, (1, 1, 5), False),  # the sum has more axes than the product
        (None, (1, 5), False),  # may be the case above
        (None, (5,), True),
    ],
)  # fmt: skip
def test_add_is_a_bias_only_per_column(build, rank, bias, taken):
    dims = {2: "[3,6]", 3: "[2,5,6]", None: ""}[rank]
    model = _named(
        build(
            f"g (float{dims} x) => (float y) {{ p = MatMul(x, w) y = Add(b, p) }}",
            w=_ones(6, 5),
            b=_ones(*bias),
        )
    )
    unit = find_units(model)["MatMul_0"]
    assert (unit.add is not None) is taken
    assert unit.y.name == ("y" if taken else "p")
    np.testing.assert_array_equal(unit.bias, np.full(5, float(taken)))


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[3,6] x) => (float y, float p) { p = MatMul(x, w) y = Add(p, b) }",
        "g (float[3,6] x) => (float y, float z) { p = MatMul(x, w) y = Add(p, b) z = Relu(p) }",
    ],
)
def test_add_is_no_bias_where_the_product_is_read_elsewhere(build, graph):
    unit = find_units(_named(build(graph, w=_ones(6, 5), b=_ones(5))))["MatMul_0"]
    assert unit.y.name == "p"


def test_nothing_mapped_is_an_error_that_sums_up(build):
    model = _named(
        build(
            "g (float[3,6] x, float[6,3] z) => (float y) "
            "{ a = MatMul(x, z) b = MatMul(a, x) y = MatMul(b, w) }",
            w=_ones(2, 6, 5),
        )
    )
    with pytest.raises(
        NodeMappingError,
        match=re.escape(
            "none of 3 nodes can go to RRAM ('MatMul_0' and 1 more: "
            f"{Refusal.BOTH_ACTIVATIONS.of()}; 'MatMul_2': {Refusal.BATCHED.of(3)}). See"
        ),
    ):
        require_mapped(select_rram_nodes(model, CONFIG))
    with pytest.raises(NodeMappingError, match="no node that multiplies matrices"):
        require_mapped([])


def test_names_are_made_by_type_and_position_without_clashes(build):
    model = build(
        f"{ROWS} {{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = MatMul(c, w) }}",
        w=_ones(6, 6),
    )
    model.graph[2].name = "MatMul_0"
    model.graph[3].name = "MatMul_0"
    assert NameNodesPass()(model).modified
    assert [n.name for n in model.graph] == ["MatMul_0_1", "Relu_1", "MatMul_0", "MatMul_0_2"]
    assert not NameNodesPass()(model).modified


def test_functions_are_inlined_and_their_nodes_decided(run):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'
        "g (float[3,6] x) => (float[3,6] y) <float[6] b = {1,2,3,4,5,6}> "
        "{ h = my.Dense(x, w, b) y = my.Dense(h, w2, b) }"
        '<opset_import: ["" : 17], domain: "my"> Dense (x, w, b) => (y) '
        "{ p = MatMul(x, w) y = Add(p, b) }"
    )
    for name in ("w", "w2"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(_ones(6, 6), name))
    model = ir.from_proto(proto)
    x = np.arange(18, dtype=F32).reshape(3, 6)
    want = run(model, x=x)[0]
    assert prepare_pipeline()(model).modified
    assert not model.functions
    np.testing.assert_array_equal(run(model, x=x)[0], want)
    decisions = select_rram_nodes(model, CONFIG)
    assert [d.accepted for d in decisions] == [True, True]
    assert len({d.name for d in decisions}) == 2
    assert not prepare_pipeline()(model).modified
