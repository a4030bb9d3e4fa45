# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rimc_onnx.passes import EqualizeWordLinesPass, equalized_share

RNG = np.random.default_rng(17)
UNEQUAL = np.array([1.0, 0.3, 1e-3, 0.05, 0.0, 1e-6], np.float32)


def _weight(*shape: int, axis: int, dtype: type = np.float32) -> np.ndarray:
    """Six input channels on an axis, with largest weights of 1 down to 1e-6, and one of zeros."""
    values = RNG.uniform(-1, 1, shape)
    others = tuple(i for i in range(len(shape)) if i != axis)
    values /= np.abs(values).max(axis=others, keepdims=True)
    return (values * UNEQUAL.reshape([-1 if i == axis else 1 for i in range(len(shape))])).astype(
        dtype
    )


def _depthwise() -> np.ndarray:
    return _weight(6, 1, 3, 3, axis=0)


def _grouped() -> np.ndarray:
    """Channels 0 to 2 of group 0, 3 to 5 of group 1."""
    whole = _weight(4, 6, 3, axis=1)
    return np.concatenate([whole[:, :3], whole[:, 3:]])


CASES = {
    "conv": ("x[2,6,5,4]", "Conv<pads=[1,1,1,1]>(x, w)", _weight(7, 6, 3, 3, axis=1), 1),
    "strided": ("x[2,6,5]", "Conv<strides=[2]>(x, w)", _weight(7, 6, 3, axis=1), 1),
    "grouped": ("x[2,6,5]", "Conv<group=2>(x, w)", _grouped(), 1),
    "depthwise": ("x[2,6,5,4]", "Conv<group=6>(x, w)", _depthwise(), 1),
    "transposed": ("x[2,6,5,4]", "ConvTranspose(x, w)", _weight(6, 3, 2, 2, axis=0), 1),
    "gemm": ("x[3,6]", "Gemm(x, w, c)", _weight(6, 4, axis=0), 1),
    "transposed gemm": ("x[3,6]", "Gemm<transB=1, alpha=0.5>(x, w)", _weight(4, 6, axis=1), 1),
    "matmul": ("x[2,3,6]", "MatMul(x, w)", _weight(6, 4, axis=0), 2),
    "vector": ("x[6]", "MatMul(x, w)", _weight(6, 4, axis=0), 0),
}


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("case", list(CASES))
def test_results_are_the_same_bits_and_no_channel_is_far_below_the_largest(build, case):
    # A scale on the wrong axis, of the wrong group, or the inverse; scales that round.
    given, op, weight, axis = CASES[case]
    name, shape = given[:-1].split("[")
    model = build(
        f"g (float[{shape}] {name}) => (float y) {{ y = {op} }}",
        w=weight,
        c=RNG.standard_normal(4).astype(np.float32),
    )
    x = RNG.standard_normal([int(size) for size in shape.split(",")]).astype(np.float32)
    want = _run(model, x)
    share = equalized_share(model.graph[0])
    step = EqualizeWordLinesPass()
    assert step(model).modified
    np.testing.assert_array_equal(_run(model, x), want)
    mul, node = model.graph
    assert mul.op_type == "Mul"
    (found,) = step.equalized
    assert (found.channels, found.error_share) == (6, share)
    scale = mul.inputs[1].const_value.numpy().reshape(-1)
    # A channel of zeros has the least scale.
    np.testing.assert_array_equal(scale, [1, 0.5, 2**-9, 2**-4, 2**-30, 2**-19])
    assert mul.outputs[0].shape.rank() == x.ndim
    assert axis == x.ndim - mul.inputs[1].const_value.numpy().ndim
    assert equalized_share(node) > 0.5


def test_half_precision_keeps_its_normal_numbers(build):
    # 2^-19 of an input is no normal float16: digits would be lost.
    model = build(
        "g (float16[3,6] x) => (float16 y) { y = MatMul(x, w) }",
        w=_weight(6, 4, axis=0, dtype=np.float16),
    )
    EqualizeWordLinesPass()(model)
    scale = model.graph[0].inputs[1].const_value.numpy()
    assert scale.dtype == np.float16
    assert scale.min() == 2**-6


@pytest.mark.parametrize(
    ("graph", "weight"),
    [
        ("g (float[3,6] x) => (float y) { y = MatMul(x, w) }", np.ones((6, 4), np.float32)),
        ("g (float[3,6] x) => (float y) { y = MatMul(x, w) }", np.zeros((6, 4), np.float32)),
        ("g (float[6,3] x) => (float y) { y = Gemm<transA=1>(x, w) }", _weight(6, 4, axis=0)),
        ("g (float[3,4] x) => (float y) { y = MatMul(w, x) }", _weight(6, 3, axis=0)),
        ("g (float[3,6] x) => (float y) { y = Mul(x, w) }", _weight(3, 6, axis=1)),
        ("g (float[2,3,6] x) => (float y) { y = MatMul(x, w) }", _weight(2, 6, 4, axis=1)),
    ],
    ids=["equal", "zeros", "transposed input", "left", "no product", "stack of matrices"],
)
def test_what_gains_nothing_is_left_alone(build, graph, weight):
    model = build(graph, w=weight)
    before = ir.to_proto(model).SerializeToString()
    assert not EqualizeWordLinesPass()(model).modified
    assert ir.to_proto(model).SerializeToString() == before


def test_nodes_of_one_weight_have_one_scaled_weight_and_patterns_keep_a_node(build):
    # Two copies, which would take the arrays twice; a weight scaled below a node that is kept.
    model = build(
        "g (float[3,6] x) => (float y) { a = MatMul(x, w) n = Neg(x) b = MatMul(n, w) "
        "k = MatMul(x, w) s = Add(a, b) y = Add(s, k) }",
        w=_weight(6, 4, axis=0),
    )
    for node, name in zip(model.graph, ("one", "n", "two", "kept", "s", "y"), strict=True):
        node.name = name
    x = RNG.standard_normal((3, 6)).astype(np.float32)
    want = _run(model, x)
    step = EqualizeWordLinesPass(lambda name: name == "kept")
    step(model)
    np.testing.assert_array_equal(_run(model, x), want)
    assert [node.name for node in step.equalized] == ["one", "two"]
    nodes = {node.name: node for node in model.graph}
    assert nodes["one"].inputs[1] is nodes["two"].inputs[1]
    assert nodes["kept"].inputs[1].name == "w"
