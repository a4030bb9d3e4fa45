# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rimc_onnx.passes import FoldBatchNormPass

RNG = np.random.default_rng(7)
# STYLE: exact graph rewrites.
REWRITE = {"rtol": 1e-5, "atol": 1e-6}


def _normal(*shape: int) -> np.ndarray:
    # 1 / 4: sums over some 30 terms stay of order 1, where atol 1e-6 means 8 ulp.
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def _bn(n: int, prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}scale": RNG.uniform(0.5, 1.5, n).astype(np.float32),
        f"{prefix}shift": _normal(n),
        f"{prefix}mean": _normal(n),
        f"{prefix}var": RNG.uniform(0.5, 1.5, n).astype(np.float32),
    }


BN = "BatchNormalization<epsilon=0.01>(h, scale, shift, mean, var)"
IMAGE = "g (float[2,4,7,7] x) => (float y)"
ROWS = "g (float[3,6] x) => (float y)"


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "w_shape", "channels"),
    [
        ("Conv<pads=[1,1,1,1]>", (6, 4, 3, 3), 6),
        ("Conv<group=2,strides=[2,2]>", (6, 2, 3, 3), 6),
        ("ConvTranspose<strides=[2,2]>", (4, 5, 3, 3), 5),
        ("ConvTranspose<group=2>", (4, 3, 2, 2), 6),
    ],
)
def test_bn_behind_convolution_is_folded(build, check_rewrite, op, w_shape, channels, bias):
    # Groups catch a scale that follows the input's channels instead of the output's.
    name, _, attributes = op.partition("<")
    call = f"{name}<{attributes}" if attributes else name
    more = {"c": _normal(channels)} if bias else {}
    model = build(
        f"{IMAGE} {{ h = {call}(x, w{', c' if bias else ''}) y = {BN} }}",
        w=_normal(*w_shape),
        **more,
        **_bn(channels),
    )
    check_rewrite(model, FoldBatchNormPass(), x=_normal(2, 4, 7, 7), **REWRITE)
    assert _ops(model) == [name]
    # The private weight keeps its name, and nothing of the BN is left.
    assert model.graph[0].inputs[1].name == "w"
    assert len(model.graph.initializers) == 2


@pytest.mark.parametrize("c_shape", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("where", ["behind", "in front"])
def test_bn_next_to_gemm_is_folded(build, check_rewrite, c_shape, trans_b, where):
    # Catches alpha or beta applied twice, and a C whose shape is lost.
    gemm = f"Gemm<alpha=0.5, beta=2.0, transB={trans_b}>"
    c = "" if c_shape is None else ", c"
    more = {} if c_shape is None else {"c": _normal(*c_shape)}
    w = _normal(5, 6) if trans_b else _normal(6, 5)
    if where == "behind":
        body, bn = f"h = {gemm}(x, w{c}) y = {BN}", _bn(5)
    else:
        body, bn = f"h = Identity(x) z = {BN} y = {gemm}(z, w{c})", _bn(6)
    model = build(f"{ROWS} {{ {body} }}", w=w, **more, **bn)
    check_rewrite(model, FoldBatchNormPass(), x=_normal(3, 6), **REWRITE)
    assert "BatchNormalization" not in _ops(model)


@pytest.mark.parametrize("add", [None, (5,), (1, 5), (1,), ()])
@pytest.mark.parametrize("where", ["behind", "in front", "both"])
def test_bn_next_to_matmul_of_rank_2_is_folded(build, check_rewrite, add, where):
    # "both" is how a normalised classifier is exported without fusion.
    more = {} if add is None else {"c": _normal(*add)}
    source, body = "x", ""
    if where != "behind":
        body += "z = BatchNormalization(x, fscale, fshift, fmean, fvar) "
        source, more = "z", more | _bn(6, "f")
    last = "y" if where == "in front" else "h"
    if add is None:
        body += f"{last} = MatMul({source}, w) "
    else:
        body += f"p = MatMul({source}, w) {last} = Add(c, p) "
    if where != "in front":
        body, more = body + f"y = {BN}", more | _bn(5)
    model = build(f"{ROWS} {{ {body} }}", w=_normal(6, 5), **more)
    check_rewrite(model, FoldBatchNormPass(), x=_normal(3, 6), **REWRITE)
    assert _ops(model) == ["MatMul", "Add"]


@pytest.mark.parametrize("group", [1, 2])
def test_bn_in_front_of_unpadded_conv_is_folded(build, check_rewrite, group):
    model = build(
        f"{IMAGE} {{ h = Relu(x) z = {BN} y = Conv<group={group}>(z, w, c) }}",
        w=_normal(6, 4 // group, 3, 3),
        c=_normal(6),
        **_bn(4),
    )
    check_rewrite(model, FoldBatchNormPass(), x=_normal(2, 4, 7, 7), **REWRITE)
    assert _ops(model) == ["Relu", "Conv"]


def test_identities_between_are_dropped_and_names_survive(build, check_rewrite):
    model = build(
        f"{IMAGE} {{ a = Conv(x, w) b = Identity(a) h = Identity(b) y = {BN} }}",
        w=_normal(6, 4, 3, 3),
        **_bn(6),
    )
    check_rewrite(model, FoldBatchNormPass(), x=_normal(2, 4, 7, 7), **REWRITE)
    assert _ops(model) == ["Conv"]


def test_shared_weight_is_copied_not_changed(build, check_rewrite):
    # Catches the corruption of the second Conv by the first one's fold.
    model = build(
        f"g (float[2,4,7,7] x) => (float y, float y2){{ h = Conv(x, w) y = {BN} y2 = Conv(x, w) }}",
        w=_normal(6, 4, 3, 3),
        **_bn(6),
    )
    model.graph[0].name = "first"
    check_rewrite(model, FoldBatchNormPass(), x=_normal(2, 4, 7, 7), **REWRITE)
    assert model.graph[0].inputs[1].name == "first/weight"
    assert model.graph[1].inputs[1].name == "w"


def test_transposed_weight_is_folded_and_its_chain_removed(build, check_rewrite):
    model = build(
        f"{ROWS} {{ t = Transpose(w) h = MatMul(x, t) y = {BN} }}", w=_normal(5, 6), **_bn(5)
    )
    check_rewrite(model, FoldBatchNormPass(), x=_normal(3, 6), **REWRITE)
    assert _ops(model) == ["MatMul", "Add"]
    assert "w" not in model.graph.initializers


def _refused(model: ir.Model, run, **feeds: object) -> str:
    before = run(model, **feeds)
    text = ir.to_onnx_text(model)
    fold = FoldBatchNormPass()
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            node.name = "bn"
    assert fold(model).modified is False
    for node in model.graph:
        if node.name == "bn":
            node.name = ""
    assert ir.to_onnx_text(model) == text
    np.testing.assert_array_equal(run(model, **feeds)[0], before[0])
    return fold.reasons["bn"]


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        # Relu in between: not one linear map.
        (f"{IMAGE} {{ c = Conv(x, w) h = Relu(c) y = {BN} }}", "node '' (Relu) before it"),
        (
            f"g (float[2,4,7,7] x) => (float y, float h) {{ h = Conv(x, w) y = {BN} }}",
            "'h' is an output of the model",
        ),
        (f"{IMAGE} {{ h = Conv(x, w) b = {BN} y = Add(b, h) }}", "'h' is read by 2 nodes"),
        (
            f"g (float[2,4,7,7] x, float[6] mean) => (float y) {{ h = Conv(x, w) y = {BN} }}",
            "its parameter 'mean' is an overridable initializer",
        ),
        (
            f"{IMAGE} {{ h = Conv(x, w) "
            "y, m2, v2 = BatchNormalization<training_mode=1>(h, scale, shift, mean, var) }",
            "training mode",
        ),
        (
            f"g (float[2,4,7,7] x, float[6,4,3,3] w) => (float y) {{ h = Conv(x, w) y = {BN} }}",
            "the weight of node '' is an overridable initializer",
        ),
    ],
)
def test_bn_behind_is_left_where_the_fold_is_not_exact(build, run, graph, reason):
    arrays = {"w": _normal(6, 4, 3, 3), **_bn(6)}
    assert reason in _refused(build(graph, **arrays), run, x=_normal(2, 4, 7, 7))


def test_bn_in_front_of_padded_conv_is_left(build, run):
    # Catches the classic wrong fold: the border pads 0, not BN(0).
    model = build(
        f"{IMAGE} {{ h = Relu(x) z = {BN} y = Conv<pads=[1,1,1,1]>(z, w) }}",
        w=_normal(6, 4, 3, 3),
        **_bn(4),
    )
    assert "pads its input with zeros" in _refused(model, run, x=_normal(2, 4, 7, 7))


def test_bn_in_front_of_two_readers_is_left(build, run):
    model = build(
        f"{IMAGE} {{ h = Relu(x) z = {BN} a = Conv(z, w) b = Conv(z, w) y = Add(a, b) }}",
        w=_normal(6, 4, 3, 3),
        **_bn(4),
    )
    assert "its output 'z' is read by 2 nodes" in _refused(model, run, x=_normal(2, 4, 7, 7))


@pytest.mark.parametrize("order", ["behind", "in front"])
def test_matmul_of_rank_3_is_left(build, run, order):
    # BN acts on axis 1, which are rows here: 5 x 5 so that only the meaning tells them apart.
    if order == "behind":
        body = f"h = MatMul(x, w) y = {BN}"
    else:
        body = f"h = Relu(x) z = {BN} y = MatMul(z, w)"
    model = build(f"g (float[2,5,5] x) => (float y) {{ {body} }}", w=_normal(5, 5), **_bn(5))
    assert "is 3: channels are columns" in _refused(model, run, x=_normal(2, 5, 5))


def test_matmul_with_more_axes_of_weight_is_left(build, run):
    # Rows of [1, K, N] scaled by what goes with columns: K = N, so only the numbers tell.
    body = f"h = Relu(x) z = {BN} y = MatMul(z, w)"
    model = build(f"g (float[2,5] x) => (float y) {{ {body} }}", w=_normal(1, 5, 5), **_bn(5))
    assert "has 3 axes" in _refused(model, run, x=_normal(2, 5))


def test_gemm_that_transposes_its_input_is_left(build, run):
    model = build(
        f"g (float[5,5] x) => (float y) {{ h = Relu(x) z = {BN} y = Gemm<transA=1>(z, w) }}",
        w=_normal(5, 5),
        **_bn(5),
    )
    assert "transposes its input" in _refused(model, run, x=_normal(5, 5))


def test_statistics_that_make_no_number_are_left(build, run):
    bn = _bn(6) | {"var": np.full(6, -1.0, np.float32)}
    model = build(f"{IMAGE} {{ h = Conv(x, w) y = {BN} }}", w=_normal(6, 4, 3, 3), **bn)
    assert "not finite" in _refused(model, run, x=_normal(2, 4, 7, 7))
