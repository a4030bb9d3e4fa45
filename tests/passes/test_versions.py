# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges, PeripheryConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import ModelError
from rimc_onnx.passes import (
    DropInitializerInputsPass,
    InlineFunctionsPass,
    RaiseOpsetPass,
    SetIrVersionPass,
    convert_model,
    prepare_pipeline,
)

RNG = np.random.default_rng(19)
IDEAL = get_preset("gaussian-relative", drift_frac=0.0)
NET = """g (float[n,3,8,8] x) => (float[n,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(c)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    f = Flatten(p)
    y = Gemm<alpha=0.5>(f, v, b)
}"""
NEWEST = onnx.defs.onnx_opset_version()


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def _net(build, opset: int, ir_version: int = 8) -> ir.Model:
    arrays = {"w": _normal(4, 3, 3, 3), "v": _normal(64, 5), "b": _normal(5)}
    model = build(NET, opset=opset, ir_version=ir_version, **arrays)
    if ir_version < 4:
        model.graph.inputs.extend(model.graph.initializers.values())
    return model


@pytest.mark.parametrize("opset", [7, 9, 12, 13, 14, 15, 17, 18, 20, 21, 23, NEWEST])
@pytest.mark.parametrize("bits", [None, 12])
def test_every_opset_from_7_runs(build, run, opset, bits):
    # ONNX Runtime reads our function bodies in the model's opset: catches an operator that is not
    # in it (CastLike before 15), or not in this form (ReduceSum before 13).
    model = _net(build, opset, ir_version=3 if opset < 9 else 8)
    x = _normal(2, 3, 8, 8)
    try:
        want = run(model, x=x)[0]
    except Exception as error:
        if "is till opset" in str(error):
            pytest.skip(f"this ONNX Runtime does not read opset {opset}")
        raise
    periphery = PeripheryConfig(tile_rows=27, dac_bits=bits, adc_bits=bits)
    wide = NodeRanges(dac_range=4.0, adc_range=(4.0,))
    config = ConvertConfig(device=IDEAL, periphery=periphery)
    convert_model(model, config, {"Conv_0": wide, "Gemm_4": wide})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    assert {f.opset_import[0].version for f in proto.functions if not f.opset_import[0].domain} == {
        max(opset, 13)
    }
    assert model.ir_version in {8, 9}
    got = run(proto.SerializeToString(), x=x)[0]
    # 12 bits of range 4: steps of 0.002; 27 and 3 tiles' sums of 27 rounded inputs.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if bits is None else {"rtol": 0, "atol": 0.05}
    np.testing.assert_allclose(got, want, **tolerance)


@pytest.mark.parametrize("opset", [7, 11])
def test_raised_model_keeps_names_and_large_initializers(build, check_rewrite, opset):
    model = build(
        "g (float[3,4,2,2] x) => (float y) { a = Pad<pads=[0,0,0,0,0,0,0,0]>(x) "
        "f = Flatten(a) h = MatMul(f, w) y = Squeeze<axes=[0]>(h) }"
        if opset < 11
        else "g (float[3,4,2,2] x) => (float y) { f = Flatten(x) h = MatMul(f, w) "
        "y = Unsqueeze<axes=[0]>(h) }",
        opset=opset,
        w=_normal(16, 300),
    )
    if opset < 11:
        model.graph.remove(model.graph[-1], safe=False)
        model.graph.outputs[0] = model.graph[-1].outputs[0]
    for node in model.graph:
        node.name = f"my {node.op_type}"
    names = {n.name for n in model.graph}
    check_rewrite(model, RaiseOpsetPass(), x=_normal(3, 4, 2, 2), rtol=0, atol=0)
    assert model.opset_imports[""] == 13
    assert names <= {n.name for n in model.graph}
    assert "w" in model.graph.initializers
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_import_under_the_domains_other_name_is_understood(run):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["ai.onnx" : 17]> g (float[2,2] x) => (float[2,2] y) '
        "<float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"
    )
    model = ir.from_proto(proto)
    convert_model(model, ConvertConfig(device=IDEAL))
    assert model.opset_imports == {"": 17, "ai.rimc": 1}
    x = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], [[1, 2], [3, 4]])
    assert not RaiseOpsetPass()(model).modified


def test_opset_13_is_left(build):
    model = _net(build, 13)
    assert not RaiseOpsetPass()(model).modified


@pytest.mark.parametrize(
    ("text", "opset", "message"),
    [
        ("g (float[2] x) => (float y) { y = Relu(x) }", 6, "opset is 6, at least 7"),
        (
            "g (float[2] x, bool c) => (float y) { y = If (c) <then_branch = t () => (float a) "
            "{ a = Relu(x) }, else_branch = e () => (float b) { b = Neg(x) }> }",
            11,
            "a model with subgraphs can't be raised to 13",
        ),
        (
            "g (float[2] x) => (float y) { y = TopK<k=1>(x) }",  # needs a second output
            7,
            "ONNX can't raise it to 13",
        ),
    ],
)
def test_model_that_can_not_be_raised_is_an_error(build, text, opset, message):
    with pytest.raises(ModelError, match=message) as error:
        prepare_pipeline()(build(text, opset=opset))
    assert "Export the model with opset 13 or later" in str(error.value)
    assert "\n" not in str(error.value)


def test_initializers_of_ir_3_are_no_inputs_afterwards(build, run):
    # Catches a raised IR version that turns every weight into an input that may be overridden.
    model = _net(build, 8, ir_version=3)
    x = _normal(2, 3, 8, 8)
    want = run(model, x=x)[0]
    assert DropInitializerInputsPass()(model).modified
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert len(model.graph.initializers) == 3
    np.testing.assert_array_equal(run(model, x=x)[0], want)
    assert not DropInitializerInputsPass()(model).modified


@pytest.mark.parametrize(("count", "listed"), [(8, 8), (8, 7), (7, 7)])
def test_a_list_of_all_initializers_is_an_exporters_habit(count, listed):
    # A detector of 2020 with none of its 63 weights in RRAM; or a weight that a caller feeds, which
    # becomes a constant.
    names = [f"w{i}" for i in range(count)]
    inputs = ", ".join(["float[N,2] x", *(f"float[2,2] {n}" for n in names[:listed])])
    steps = " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(count))
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model(
            f"""<ir_version: 6, opset_import: ["" : 11]>
            g ({inputs}) => (float[N,2] y)
            <{", ".join(f"float[2,2] {n} = {{1, 0, 0, 1}}" for n in names)}>
            {{ h0 = Identity(x) {steps} y = Identity(h{count}) }}"""
        )
    )
    is_habit = (count, listed) == (8, 8)
    assert DropInitializerInputsPass()(model).modified == is_habit
    assert len(model.graph.inputs) == (1 if is_habit else 1 + listed)
    assert model.ir_version == 6
    assert not DropInitializerInputsPass()(model).modified


def test_overridable_initializers_of_ir_4_stay_inputs(build):
    model = build("g (float[2,6] x, float[6,5] w) => (float y) { y = MatMul(x, w) }",
                  w=_normal(6, 5), ir_version=4, opset=13)  # fmt: skip
    assert not DropInitializerInputsPass()(model).modified
    assert [v.name for v in model.graph.inputs] == ["x", "w"]


@pytest.mark.parametrize(("given", "want"), [(4, 8), (7, 8), (8, 8), (9, 9), (10, 9), (13, 9)])
def test_ir_version_is_one_that_old_runtimes_read(build, given, want):
    model = _net(build, 17, ir_version=given)
    assert SetIrVersionPass()(model).modified is (given != want)
    assert model.ir_version == want


def test_ir_version_stays_where_types_need_it(build):
    model = build("g (int4[2] x) => (float[2] y) { y = Cast<to=1>(x) }", opset=21, ir_version=10)
    assert not SetIrVersionPass()(model).modified
    assert model.ir_version == 10


def test_converted_model_is_not_converted_again(build):
    model = _net(build, 17)
    convert_model(model, ConvertConfig())
    with pytest.raises(ModelError, match=r"already converted: node 'Conv_0/rram' is ai.rimc:Rram"):
        prepare_pipeline()(model)


def test_functions_that_can_not_be_inlined_are_an_error():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'
        "g (float[3] x) => (float[3] y) { y = my.F(x) }"
        '<opset_import: ["" : 17, "my" : 1], domain: "my"> F (x) => (y) { y = my.F(x) }'
    )
    with pytest.raises(ModelError, match="model-local functions can't be inlined: Cyclic"):
        InlineFunctionsPass()(ir.from_proto(proto))
