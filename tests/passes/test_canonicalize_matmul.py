# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.passes import CanonicalizeMatMulPass, select_rram_nodes

RNG = np.random.default_rng(11)
# STYLE: exact graph rewrites. Inputs are of order 1 / 4, sums of order 1.
REWRITE = {"rtol": 1e-5, "atol": 1e-6}


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("c_shape", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
def test_gemm_is_matmul_and_add(build, check_rewrite, trans_a, trans_b, alpha, beta, c_shape):
    # Catches beta on a C that is kept, a transposed C and a C broadcast along the wrong axis.
    c = "" if c_shape is None else ", c"
    more = {} if c_shape is None else {"c": _normal(*c_shape)}
    model = build(
        f"g (float[{'6,3' if trans_a else '3,6'}] x) => (float[3,5] y) {{ y = Gemm<alpha={alpha}, "
        f"beta={beta}, transA={trans_a}, transB={trans_b}>(x, w{c}) }}",
        w=_normal(5, 6) if trans_b else _normal(6, 5),
        **more,
    )
    model.graph[0].name = "fc"
    x = _normal(6, 3) if trans_a else _normal(3, 6)
    check_rewrite(model, CanonicalizeMatMulPass(), x=x, **REWRITE)
    want = ["Transpose"] * trans_a + ["MatMul"] + ["Add"] * (c_shape is not None)
    assert _ops(model) == want
    assert model.graph[trans_a].name == "fc"
    if c_shape is not None:
        assert model.graph[-1].name == "fc/bias"
        is_row = int(np.prod(c_shape)) in {1, 5}
        assert list(model.graph[-1].inputs[1].shape) == ([5] if is_row else list(c_shape))


def test_plain_gemm_keeps_its_initializers(build, check_rewrite):
    model = build(
        "g (float[3,6] x) => (float[3,5] y) { y = Gemm(x, w, c) }", w=_normal(6, 5), c=_normal(5)
    )
    check_rewrite(model, CanonicalizeMatMulPass(), x=_normal(3, 6), **REWRITE)
    assert sorted(model.graph.initializers) == ["c", "w"]


@pytest.mark.parametrize(
    ("beta", "ops"), [(1.0, ["MatMul", "Add"]), (2.0, ["Mul", "MatMul", "Add"]), (0.0, ["MatMul"])]
)
def test_c_that_is_an_input_stays_digital(build, check_rewrite, beta, ops):
    model = build(
        f"g (float[3,6] x, float[3,5] c) => (float[3,5] y) {{ y = Gemm<beta={beta}>(x, w, c) }}",
        w=_normal(6, 5),
    )
    check_rewrite(model, CanonicalizeMatMulPass(), x=_normal(3, 6), c=_normal(3, 5), **REWRITE)
    assert _ops(model) == ops


def test_node_with_another_reader_stays_when_c_is_dropped(build, check_rewrite):
    # Catches dead-node removal that looks at one output of a node only.
    model = build(
        "g (float[3,6] x, float[6,5] z) => (float y, float[3,5] b) { a, b = Split<axis=0>(z) "
        "r = Relu(a) y = Gemm<beta=0.0>(x, w, r) }",
        w=_normal(6, 5),
    )
    check_rewrite(model, CanonicalizeMatMulPass(), x=_normal(3, 6), z=_normal(6, 5), **REWRITE)
    assert _ops(model) == ["Split", "MatMul"]


def test_weight_behind_views_is_found_and_the_views_go(build, check_rewrite):
    model = build(
        "g (float[3,6] x) => (float[3,5] y) { s = Constant<value_ints=[5,6]>() r = Reshape(w, s) "
        "i = Identity(r) y = Gemm<transB=1>(x, i) }",
        w=_normal(5, 2, 3),
    )
    check_rewrite(model, CanonicalizeMatMulPass(), x=_normal(3, 6), **REWRITE)
    assert _ops(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["/weight"]


def test_shared_weight_stays_one_initializer_and_counts_as_shared(build, check_rewrite):
    # Catches a tied weight that doubles in the file, or that is mapped twice without being asked.
    model = build(
        "g (float[3,6] x) => (float[3,5] y, float[3,5] z, float[3,5] u) { y = Gemm<transB=1>(x, w) "
        "z = Gemm<transB=1>(x, w) t = Transpose(w) u = MatMul(x, t) }",
        w=_normal(5, 6),
    )
    for name, node in zip("abtu", model.graph, strict=True):
        node.name = name
    check_rewrite(model, CanonicalizeMatMulPass(), x=_normal(3, 6), **REWRITE)
    assert sorted(model.graph.initializers) == ["a/weight", "w"]
    decisions = select_rram_nodes(model, ConvertConfig())
    assert {d.reason for d in decisions} == {Refusal.SHARED.of("a, b, u")}
    assert all(d.accepted for d in select_rram_nodes(model, ConvertConfig(map_shared=True)))


@pytest.mark.parametrize(
    ("head", "dtype"),
    [
        ("g (float[3,6] x, float[6,5] w) => (float[3,5] y)", np.float32),  # overridable
        ("g (double[3,6] x) => (double[3,5] y)", np.float64),  # no crossbar computes float64
    ],
)
def test_gemm_is_left_where_nothing_is_mapped(build, check_rewrite, head, dtype):
    model = build(f"{head} {{ y = Gemm<alpha=2.0>(x, w) }}", w=_normal(6, 5).astype(dtype))
    text = ir.to_onnx_text(model)
    check_rewrite(
        model, CanonicalizeMatMulPass(), x=_normal(3, 6).astype(dtype), modified=False, **REWRITE
    )
    assert ir.to_onnx_text(model) == text


def test_skipped_gemm_is_left(build):
    model = build("g (float[3,6] x) => (float[3,5] y) { y = Gemm(x, w) }", w=_normal(6, 5))
    model.graph[0].name = "fc"
    assert not CanonicalizeMatMulPass(skip=lambda name: name == "fc")(model).modified
    assert CanonicalizeMatMulPass(skip=lambda name: name == "other")(model).modified


def test_transposed_weight_is_not_read_before_it_is_written(tmp_path, build, run):
    # Catches a copy of every classifier of a large model in memory.
    model = build(
        "g (float[3,64] x) => (float[3,64] y) { y = Gemm<transB=1>(x, w) }", w=_normal(64, 64)
    )
    x = _normal(3, 64)
    want = run(model, x=x)[0]
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    loaded = ir.load(tmp_path / "m.onnx")
    tensor = loaded.graph.initializers["w"].const_value
    assert CanonicalizeMatMulPass()(loaded).modified
    assert tensor.raw is None
    np.testing.assert_allclose(run(loaded, x=x)[0], want, **REWRITE)
    tensor.release()
