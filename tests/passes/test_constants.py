# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx.passes import explain_variable, find_constant

W = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def _value(model: ir.Model, name: str) -> ir.Value:
    return ir.convenience.create_value_mapping(model.graph)[name]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("v = Identity(w)", W),
        ("v = Transpose(w)", W.T),
        ("v = Transpose<perm=[1,0,2]>(w)", W.transpose(1, 0, 2)),
        ("s = Constant<value_ints=[0,-1]>() v = Reshape(w, s)", W.reshape(2, 12)),
        ("s = Constant<value_ints=[-1]>() v = Reshape(w, s)", W.reshape(24)),
        ("a = Constant<value_ints=[0,-1]>() v = Unsqueeze(w, a)", W[None, ..., None]),
        ("v = Flatten<axis=-1>(w)", W.reshape(6, 4)),
        (
            "a = Constant<value_ints=[1]>() u = Unsqueeze(w, a) v = Squeeze(u)",
            W,
        ),
        ("t = Transpose(w) s = Constant<value_ints=[4,6]>() v = Reshape(t, s)", W.T.reshape(4, 6)),
    ],
)
def test_views_equal_numpy(build, run, body, want):
    # Catches axes counted in the wrong rank, and a reshape of the data instead of the view.
    model = build(f"g () => (float v) {{ {body} }}", w=W)
    constant = find_constant(_value(model, "v"))
    assert constant is not None
    assert constant.shape == want.shape
    np.testing.assert_array_equal(constant.numpy(), want)
    np.testing.assert_array_equal(constant.numpy(), run(model)[0])


@pytest.mark.parametrize(
    ("node", "want"),
    [
        ("Constant<value_float=1.5>()", np.float32(1.5)),
        ("Constant<value_floats=[1.5,2.5]>()", np.array([1.5, 2.5], np.float32)),
        ("Constant<value_int=3>()", np.int64(3)),
        ("Constant<value_ints=[3,4]>()", np.array([3, 4])),
        ("Constant<value = float[2] {1,2}>()", np.array([1, 2], np.float32)),
    ],
)
def test_constant_node_gives_its_value(build, node, want):
    model = build(f"g () => (float v) {{ v = {node} }}")
    constant = find_constant(_value(model, "v"))
    assert constant is not None
    assert constant.numpy().dtype == want.dtype
    np.testing.assert_array_equal(constant.numpy(), want)


def test_constant_strings_are_read(build):
    proto = ir.to_proto(build("g () => (float v) { v = Constant<value_float=1.0>() }"))
    proto.graph.node[0].ClearField("attribute")
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("value_strings", ["a", "b"]))
    constant = find_constant(_value(ir.from_proto(proto), "v"))
    assert constant is not None
    assert constant.numpy().tolist() == [b"a", b"b"]


def test_variables_are_no_constants_and_say_why(build):
    # Catches an overridable initializer that is frozen: a caller may feed another value.
    model = build(
        "g (float[2,3,4] x, float[2,3,4] w) => (float v) { n = Relu(w2) v = Cast<to=1>(n) }",
        w=W,
        w2=W,
    )
    reasons = {
        "x": "an input",
        "w": "an overridable initializer (it is a graph input too)",
        "n": "computed by node '' (Relu)",
    }
    for name, reason in reasons.items():
        assert find_constant(_value(model, name)) is None
        assert explain_variable(_value(model, name)) == reason
    # A Cast changes values, so nothing sees through it.
    assert find_constant(_value(model, "v")) is None
    assert find_constant(None) is None
    assert explain_variable(None) == "missing"


def test_reshape_to_a_computed_shape_is_no_constant(build):
    model = build("g (int64[2] s) => (float v) { v = Reshape(w, s) }", w=W)
    assert find_constant(_value(model, "v")) is None


def test_external_tensor_is_read_when_asked_and_not_before(tmp_path, build):
    # Catches a pass that loads every weight of a model that does not fit in memory.
    model = build("g () => (float v) { v = Transpose(w) }", w=np.zeros((64, 64), np.float32))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    loaded = ir.load(tmp_path / "m.onnx")
    constant = find_constant(_value(loaded, "v"))
    assert constant is not None
    assert constant.shape == (64, 64)
    tensor = constant.tensor
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    assert constant.is_finite()
    assert tensor.raw is not None
    tensor.release()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_is_finite_sees_the_last_element(build, dtype):
    w = np.zeros(10, dtype)
    w[-1] = np.inf
    constant = find_constant(_value(build("g () => (float v) { v = Identity(w) }", w=w), "v"))
    assert constant is not None
    assert not constant.is_finite()
