# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx import reference
from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges, PeripheryConfig
from rimc_onnx.device import DeviceConfig, get_preset, program
from rimc_onnx.errors import NodeMappingError
from rimc_onnx.ops import schema
from rimc_onnx.passes import (
    InsertDoraBranchPass,
    ReplaceWithRramPass,
    check_rimc_model,
    convert_model,
    convert_pipeline,
    find_units,
    prepare_pipeline,
    rram_branches,
    select_rram_nodes,
)

RNG = np.random.default_rng(17)
IDEAL = get_preset("gaussian-relative", drift_frac=0.0)
PERFECT = ConvertConfig(device=IDEAL)
# STYLE: exact graph rewrites. Inputs are of order 1 / 4, sums of order 1.
REWRITE = {"rtol": 1e-5, "atol": 1e-6}

GOLDEN = """
<ir_version: 8, opset_import: ["" : 17, "ai.rimc" : 1], metadata_props: ["rimc.rank": "1",
   "rimc.time_s": "0"]>
g (float[n,2] x) => (float[n,1] y)
<float[2,1] w = {2,-4},
 int8[2,1] "fc/dora/lora_a" = {0,0},
 int8[1,1] "fc/dora/lora_b" = {0},
 int8[1] "fc/dora/magnitude" = {64},
 float[1] "fc/dora/x_scale" = {1},
 float[1] "fc/dora/rank_step" = {1},
 float[1] "fc/dora/lora_b_scale" = {1},
 float[1] "fc/dora/magnitude_scale" = {0.015625},
 float[1] "fc/dora/bias" = {3},
 int8[0] "fc/dora/sparse_values" = {},
 int64[0] "fc/dora/sparse_index" = {},
 float[1] "fc/dora/sparse_scale" = {1},
 float[n,1] "y/rram">
{
 ["fc/rram"] "y/rram" = ai.rimc.RramMatMul <tile_rows: int = 0, num_tiles: int = 1,
   dac_bits: int = 0, dac_range: float = 1, dac_signed: int = 1, dac_serial_bits: int = 0,
   iv_sinh: float = 0, input_shrink: float = 1,
   iv_square: floats = [0, 0, 0, 0, 0, 0, 0, 0], iv_cube: floats = [0, 0, 0, 0, 0, 0, 0, 0],
   adc_bits: int = 0,
   adc_range: floats = [1], adc_gain: floats = [1], adc_offset: floats = [0],
   read_noise: float = 0, read_noise_relative: int = 0, read_noise_curve: floats = [0],
   read_key: int = 0,
   node: string = "fc", device: string = "gaussian-relative",
   seed: int = 0, time_s: float = 0, wire_ohm: float = 0, g_max_us: float = 40,
   w_max: floats = [4]> (x, w)
 ["fc/dora"] y = ai.rimc.DoraMatMul (x, "y/rram", "fc/dora/lora_a", "fc/dora/lora_b",
   "fc/dora/magnitude", "fc/dora/x_scale", "fc/dora/rank_step", "fc/dora/lora_b_scale",
   "fc/dora/magnitude_scale", "fc/dora/bias",
   "fc/dora/sparse_values", "fc/dora/sparse_index", "fc/dora/sparse_scale")
}"""

NET = """g (float[n,4,8,8] image) => (float[n,5] logits) {
    a = Conv<pads=[1,1,1,1], group=2>(image, w1, c1)
    b = BatchNormalization(a, scale, shift, mean, var)
    r = Relu(b)
    d = Conv<strides=[2,2]>(r, w2)
    f = Flatten(d)
    t = Transpose(w3)
    p = MatMul(f, t)
    q = Add(p, c3)
    logits = Gemm<alpha=0.5, transB=1>(q, w4, c4)
}"""


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


@pytest.fixture
def net(build) -> ir.Model:
    model = build(
        NET,
        w1=_normal(6, 2, 3, 3),
        c1=_normal(6),
        scale=1 + _normal(6),
        shift=_normal(6),
        mean=_normal(6),
        var=RNG.uniform(0.5, 1.5, 6).astype(np.float32),
        w2=_normal(3, 6, 2, 2),
        w3=_normal(7, 48),
        c3=_normal(7),
        w4=_normal(5, 7),
        c4=_normal(5),
    )
    for name, node in zip(
        ("c1", "bn", "relu", "c2", "fl", "tr", "fc", "fcb", "head"), model.graph, strict=True
    ):
        node.name = name
    return model


def _shape(value: ir.Value) -> list[object]:
    return [] if value.shape is None else [d if isinstance(d, int) else str(d) for d in value.shape]


def test_converted_model_computes_the_same_and_is_all_there(net, run):
    x = _normal(3, 4, 8, 8)
    want = run(net, image=x)[0]
    decisions = convert_model(net, PERFECT)
    assert [d.name for d in decisions if d.accepted] == ["c1", "c2", "fc", "head"]
    onnx.checker.check_model(ir.to_proto(net), full_check=True)
    np.testing.assert_allclose(run(net, image=x)[0], want, **REWRITE)
    assert [n.name for n in net.graph] == [
        "c1/rram", "c1/dora", "relu", "c2/rram", "c2/dora", "fl",
        "fc/rram", "fc/dora", "head/rram", "head/dora",
    ]  # fmt: skip


def test_names_types_and_shapes_of_the_users_values_survive(net):
    # Catches a graph output that is renamed, and crossbar outputs without a shape.
    convert_model(net, PERFECT)
    values = ir.convenience.create_value_mapping(net.graph)
    assert [v.name for v in net.graph.inputs] == ["image"]
    assert [(v.name, _shape(v)) for v in net.graph.outputs] == [("logits", ["n", 5])]
    for name in ("b", "d", "q", "logits"):
        assert values[name].producer().op_type in {"DoraConv", "DoraMatMul"}
        h = values[f"{name}/rram"]
        assert h.producer().op_type in {"RramConv", "RramMatMul"}
        assert h.dtype == ir.DataType.FLOAT
        assert h.shape is not None
    assert _shape(values["b/rram"]) == ["n", 6, 8, 8]
    # Nothing that only made the old weights is left.
    assert {"a", "t", "p"}.isdisjoint(values)
    assert {"scale", "w3", "w4", "c1", "c3", "c4"}.isdisjoint(net.graph.initializers)


def test_weight_names_say_whose_layout_they_have(net):
    convert_model(net, PERFECT)
    weights = [n.inputs[1].name for n in net.graph if n.op_type.startswith("Rram")]
    # w1 was folded in place, w2 untouched; fc and head are transposed, hence other arrays.
    assert weights == ["w1", "w2", "fc/rram/w", "head/rram/w"]
    adapter = [v.name for v in rram_branches(net)[2].dora.inputs[2:]]
    assert adapter == [f"fc/dora/{n}" for n in schema.OPS["DoraMatMul"].inputs[2:]]


def test_weights_are_the_devices_and_annotated(net):
    config = ConvertConfig(seed=5, rank=2)
    prepared = net.clone()
    prepare_pipeline()(prepared)
    units = find_units(prepared)
    convert_model(net, config)
    for branch in rram_branches(net):
        unit = units[branch.node]
        want = program(
            unit.weight.float32(), node=branch.node, seed=5, config=config.device,
            column_axis=unit.geometry.column_axis,
        )  # fmt: skip
        got = branch.rram.inputs[1].const_value.numpy()
        np.testing.assert_array_equal(got, want.w_realised)
        assert not np.array_equal(got, unit.weight.float32())
        attributes = branch.rram.attributes
        assert attributes["w_max"].as_floats() == tuple(want.w_max)
        assert attributes["seed"].as_int() == 5
        assert (
            DeviceConfig.from_json(attributes["device_config"].as_string()) == config.device.closed
        )
        lora_a = branch.dora.inputs[2].const_value
        assert 2 in lora_a.shape.numpy() or 4 in lora_a.shape.numpy()  # rank 2, two groups
        np.testing.assert_array_equal(branch.adapter().bias, unit.bias)


def test_graph_is_this_one(build):
    # Golden text of the smallest model; catches any change of the file's form.
    model = build(
        "g (float[n,2] x) => (float[n,1] y) { p = MatMul(x, w) y = Add(p, c) }",
        w=np.array([[2.0], [-4.0]], np.float32),
        c=np.array([3.0], np.float32),
    )
    model.graph[0].name, model.graph[1].name = "fc", "fc_bias"
    convert_model(model, ConvertConfig(device=IDEAL, rank=1))
    proto = ir.to_proto(model)
    del proto.functions[:], proto.opset_import[1]
    (state,) = [a for a in proto.graph.node[0].attribute if a.name == "device_config"]
    proto.graph.node[0].attribute.remove(state)  # tests/device says what it is
    initialized = {i.name for i in proto.graph.initializer}
    described = [v for v in proto.graph.value_info if v.name not in initialized]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    assert "".join(onnx.printer.to_text(proto).split()) == "".join(GOLDEN.split())


def test_new_nodes_say_which_pass_made_them(net):
    convert_model(net, PERFECT)
    made = {n.op_type: n.metadata_props.get("pkg.rimc_onnx.pass") for n in net.graph}
    assert made["RramConv"] == made["RramMatMul"] == "ReplaceWithRramPass"
    assert made["DoraConv"] == made["DoraMatMul"] == "InsertDoraBranchPass"
    assert made["Relu"] is None


def test_units_of_the_teacher_are_the_branches_of_the_student(net):
    # Calibration compares features by these names.
    teacher = net.clone()
    prepare_pipeline()(teacher)
    units = find_units(teacher)
    convert_model(net, ConvertConfig(keep_digital=("c2",)))
    branches = rram_branches(net)
    assert [b.node for b in branches] == [n for n in units if n != "c2"]
    for b in branches:
        assert (b.x.name, b.y.name) == (units[b.node].x.name, units[b.node].y.name)
        assert b.geometry == units[b.node].geometry


def test_each_pass_is_valid_alone_and_idempotent(net, run):
    x = _normal(3, 4, 8, 8)
    want = run(net, image=x)[0]
    prepare_pipeline()(net)
    decisions = select_rram_nodes(net, PERFECT)
    replace, insert = ReplaceWithRramPass(decisions, PERFECT), InsertDoraBranchPass(2)
    for step in (replace, insert):
        assert step(net).modified
        onnx.checker.check_model(ir.to_proto(net))
        np.testing.assert_allclose(run(net, image=x)[0], want, **REWRITE)
        text = ir.to_onnx_text(net, exclude_initializers=True)
        assert not step(net).modified
        assert ir.to_onnx_text(net, exclude_initializers=True) == text
    assert not convert_pipeline([], PERFECT)(net).modified


def test_nothing_is_replaced_without_an_accepted_decision(net):
    prepare_pipeline()(net)
    config = ConvertConfig(keep_digital=("*",))
    before = ir.to_onnx_text(net)
    assert not ReplaceWithRramPass(select_rram_nodes(net, config), config)(net).modified
    assert ir.to_onnx_text(net) == before
    assert schema.DOMAIN not in net.opset_imports


def test_only_the_named_node_is_kept_digital(net, run):
    x = _normal(2, 4, 8, 8)
    want = run(net, image=x)[0]
    convert_model(net, ConvertConfig(device=IDEAL, keep_digital=("head",)))
    assert net.graph[-1].op_type == "Gemm"
    assert net.graph[-1].attributes["alpha"].as_float() == 0.5
    np.testing.assert_allclose(run(net, image=x)[0], want, **REWRITE)


def test_a_models_own_add_is_not_taken_for_a_bias(build, run):
    # A Conv's bias is its third input; the Add behind is another node of the teacher, so the
    # student's feature would be another one.
    model = build(
        "g (float[1,3,5,5] x) => (float y) { h = Conv(x, w) y = Add(h, c) }",
        w=_normal(4, 3, 2, 2),
        c=_normal(4, 1, 1),
    )
    x = _normal(1, 3, 5, 5)
    want = run(model, x=x)[0]
    convert_model(model, PERFECT)
    assert [n.op_type for n in model.graph] == ["RramConv", "DoraConv", "Add"]
    np.testing.assert_allclose(run(model, x=x)[0], want, **REWRITE)


def test_crossbars_stay_in_the_order_of_the_teachers_nodes(build):
    # The Adds come in the other order than the MatMuls.
    model = build(
        "g (float[2,6] x) => (float y) { a = MatMul(x, u) b = MatMul(x, v) d = Add(b, c) "
        "e = Add(a, c) y = Mul(d, e) }",
        u=_normal(6, 5),
        v=_normal(6, 5),
        c=_normal(5),
    )
    decisions = convert_model(model, PERFECT)
    assert [b.node for b in rram_branches(model)] == [d.name for d in decisions]
    onnx.checker.check_model(ir.to_proto(model))


def test_weight_that_others_read_keeps_its_values(build, run):
    # A tied embedding: Gather reads the table that the head's crossbar was programmed from.
    model = build(
        "g (int64[3] i) => (float y, float e) { e = Gather(table, i) t = Transpose(table) "
        "y = MatMul(e, t) }",
        table=_normal(10, 6),
    )
    table = model.graph.initializers["table"].const_value.numpy().copy()
    i = np.array([0, 4, 9])
    convert_model(model, ConvertConfig())
    np.testing.assert_array_equal(model.graph.initializers["table"].const_value.numpy(), table)
    np.testing.assert_array_equal(run(model, i=i)[1], table[i])


def test_values_that_bodies_read_are_handed_over(build, run):
    # Catches a body that still reads the output of a node that is gone.
    model = build(
        "g (float[2,6] x, bool c) => (float y) { h = MatMul(x, w) y = If (c) <"
        "then_branch = t () => (float a) { a = Relu(h) }, else_branch = e () => (float b) "
        "{ b = Neg(h) }> }",
        w=_normal(6, 4),
    )
    x = _normal(2, 6)
    want = [run(model, x=x, c=c)[0] for c in (True, False)]
    convert_model(model, PERFECT)
    onnx.checker.check_model(ir.to_proto(model))
    for c, y in zip((True, False), want, strict=True):
        np.testing.assert_allclose(run(model, x=x, c=c)[0], y, **REWRITE)


def test_names_that_the_user_took_first_stay_the_users(build, run):
    # Catches two values of one name, which no runtime loads.
    model = build(
        "g (float[2,6] x) => (float y) { a = Relu(x) b = Neg(a) y = MatMul(b, w) }",
        w=_normal(6, 4),
    )
    relu, neg, matmul = model.graph
    relu.outputs[0].name, neg.outputs[0].name = "y/rram", "m/dora/bias"
    relu.name, neg.name, matmul.name = "m/rram", "m/dora", "m"
    x = _normal(2, 6)
    want = run(model, x=x)[0]
    convert_model(model, PERFECT)
    assert [n.name for n in model.graph] == ["m/rram", "m/dora", "m/rram_1", "m/dora_1"]
    np.testing.assert_allclose(run(model, x=x)[0], want, **REWRITE)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_depthwise_convolution_of_every_rank(build, run, spatial):
    # One row a group, columns of one group alone: catches arithmetic that needs C / group > 1.
    size, kernel = [6] * spatial, [3] * spatial
    model = build(
        f"g (float[2,4,{','.join(map(str, size))}] x) => (float y) "
        f"{{ y = Conv<group=4, pads=[{','.join(['1'] * 2 * spatial)}]>(x, w, c) }}",
        w=_normal(8, 1, *kernel),
        c=_normal(8),
    )
    x = _normal(2, 4, *size)
    want = run(model, x=x)[0]
    convert_model(model, PERFECT)
    np.testing.assert_allclose(run(model, x=x)[0], want, **REWRITE)


def test_weight_of_a_constant_node_is_mapped_and_the_node_goes(build, run):
    model = build(
        "g (float[2,2] x) => (float y) { w = Constant<value = float[2,2] {1,2,3,4}>() "
        "y = MatMul(x, w) }"
    )
    convert_model(model, PERFECT)
    assert [n.op_type for n in model.graph] == ["RramMatMul", "DoraMatMul"]
    got = run(model, x=np.eye(2, dtype=np.float32))[0]
    np.testing.assert_array_equal(got, [[1, 2], [3, 4]])


def test_shared_weight_is_mapped_twice_on_request(build, run):
    # Each node gets an array with draws of its own; catches one that overwrites the other's.
    model = build(
        "g (float[2,6] x) => (float y) { a = MatMul(x, w) y = MatMul(a, w) }", w=_normal(6, 6)
    )
    x = _normal(2, 6)
    want = run(model, x=x)[0]
    exact = model.clone()
    convert_model(exact, ConvertConfig(device=IDEAL, map_shared=True))
    np.testing.assert_allclose(run(exact, x=x)[0], want, **REWRITE)
    convert_model(model, ConvertConfig(map_shared=True))
    first, second = (b.rram.inputs[1] for b in rram_branches(model))
    assert [first.name, second.name] == ["MatMul_0/rram/w", "MatMul_1/rram/w"]
    assert not np.array_equal(first.const_value.numpy(), second.const_value.numpy())


@pytest.mark.parametrize("op", ["conv", "matmul"])
def test_float16_units_are_cast_at_the_border(build, run, op):
    # The crossbar computes in float32, so the result is that of the float32 model, rounded once.
    half = np.float16
    if op == "conv":
        body, w, x = "y = Conv(x, w, c)", _normal(4, 3, 2, 2), _normal(1, 3, 5, 5)
        head = "g (float16[1,3,5,5] x) => (float16[1,4,4,4] y)"
    else:
        body, w, x = "p = MatMul(x, w) y = Add(p, c)", _normal(6, 4), _normal(3, 6)
        head = "g (float16[3,6] x) => (float16[3,4] y)"
    w, c, x = w.astype(half), _normal(4).astype(half), x.astype(half)
    model = build(f"{head} {{ {body} }}", w=w, c=c)
    convert_model(model, PERFECT)
    ops = [n.op_type for n in model.graph]
    assert (ops[0], ops[-1]) == ("Cast", "Cast")
    got = run(model, x=x)[0]
    assert got.dtype == half
    full = build(
        f"{head.replace('float16', 'float')} {{ {body} }}",
        w=w.astype(np.float32),
        c=c.astype(np.float32),
    )
    want = run(full, x=x.astype(np.float32))[0]
    # eps / 2 of float16: one rounding.
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2**-11 * 1.01, atol=1e-6)


PERIPHERY = PeripheryConfig(tile_rows=16, dac_bits=6, adc_bits=7)


def test_converters_follow_the_numpy_oracle(build, run):
    w, x = _normal(40, 5), _normal(9, 40)
    model = build("g (float[9,40] x) => (float[9,5] y) { y = MatMul(x, w) }", w=w)
    adc_range = tuple(float(r) for r in np.abs(x[:, :16] @ w[:16]).max(0) * 1.5)
    ranges = {"MatMul_0": NodeRanges(dac_range=1.25, adc_range=adc_range)}
    convert_model(model, ConvertConfig(device=IDEAL, periphery=PERIPHERY), ranges)
    attributes = model.graph[0].attributes
    got = {name: attributes[name].value for name in ("tile_rows", "num_tiles", "dac_bits")}
    assert got == {"tile_rows": 16, "num_tiles": 3, "dac_bits": 6}
    want = reference.rram_matmul(
        x, w, num_tiles=3, dac_bits=6, dac_range=1.25, dac_signed=1, adc_bits=7, adc_range=adc_range
    )
    # A sum on a rounding tie may fall to either side: at most one ADC code, and hardly ever.
    off = np.abs(run(model, x=x)[0] - want)
    code = np.asarray(adc_range) / 63
    assert (off <= code * 1.001).all()
    assert (off > 1e-6).mean() < 0.05


def test_ideal_converters_ignore_ranges(build):
    model = build("g (float[2,4] x) => (float y) { y = MatMul(x, w) }", w=_normal(4, 3))
    convert_model(
        model, PERFECT, {"MatMul_0": NodeRanges(dac_range=3.0, adc_range=(2.0, 2.0, 2.0))}
    )
    attributes = model.graph[0].attributes
    assert (attributes["tile_rows"].value, attributes["num_tiles"].value) == (0, 1)
    assert attributes["dac_range"].value == 1.0
    assert attributes["adc_range"].value == (1.0,)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, r"node 'MatMul_0' \(MatMul\): its converters have no range"),
        ({"MatMul_0": NodeRanges(adc_range=(1.0, 2.0))}, r"the ADC needs 1 range or 3, got 2"),
    ],
)
def test_missing_ranges_are_an_error(build, ranges, message):
    model = build("g (float[2,4] x) => (float y) { y = MatMul(x, w) }", w=_normal(4, 3))
    text = ir.to_onnx_text(model)
    with pytest.raises(NodeMappingError, match=message):
        convert_model(model, ConvertConfig(periphery=PERIPHERY), ranges)
    # Only the name was given; nothing is half converted.
    assert ir.to_onnx_text(model) == text.replace("y = MatMul", "[MatMul_0] y = MatMul")


def test_weights_are_programmed_when_written_and_not_kept(build):
    # Catches a converted model that holds every realised weight in memory.
    model = build("g (float[2,64] x) => (float y) { y = MatMul(x, w) }", w=_normal(64, 64))
    convert_model(model, ConvertConfig())
    weight = model.graph[0].inputs[1].const_value
    assert isinstance(weight, ir.LazyTensor)
    assert weight.numpy() is not weight.numpy()
    np.testing.assert_array_equal(weight.numpy(), weight.numpy())


def test_check_passes_on_what_convert_writes(net):
    convert_model(net, ConvertConfig(rank=3))
    check_rimc_model(ir.from_proto(ir.to_proto(net)))
