# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import ModelError
from rimc_onnx.ops.adapter import QuantizedAdapter, lora_shapes
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes import (
    AttachAdaptersPass,
    FoldAdaptersPass,
    MakeAdaptersSwappablePass,
    RramBranch,
    convert_model,
    folded_weight,
    rram_branches,
)

RNG = np.random.default_rng(43)
DEVICE = get_preset("gaussian-relative")
EPS = float(np.finfo(np.float32).eps)

MATMUL = "g (float[N,24] x) => (float[N,7] y) { y = MatMul(x, w) }"
CONV = "g (float[N,4,6,6] x) => (float[N,6,S,T] y) { y = Conv<strides=[2,1], group=2>(x, w) }"


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def _converted(build, text: str, **weights: np.ndarray) -> ir.Model:
    model = build(text, **weights)
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    convert_model(model, ConvertConfig(device=DEVICE, rank=2))
    return ir.from_proto(ir.to_proto(model))  # weights programmed once


def _adapter(branch: RramBranch, x: np.ndarray, *, rank: int, cells: int) -> QuantizedAdapter:
    """Random codes, scaled so that neither X nor X A saturates on ``x``."""
    a, b, ranks = lora_shapes(branch.geometry, rank)
    size = branch.geometry.num_weights
    depth = branch.geometry.depth
    lora_a = RNG.integers(-127, 128, a, dtype=np.int8)
    return QuantizedAdapter(
        lora_a=lora_a,
        lora_b=RNG.integers(-127, 128, b, dtype=np.int8),
        magnitude=RNG.integers(40, 90, branch.geometry.columns, dtype=np.int8),
        x_scale=np.full(1, np.abs(x).max() / 127, np.float32),
        rank_step=np.full(ranks, 127.0 * depth, np.float32) * RNG.uniform(1, 2, ranks).astype("f4"),
        lora_b_scale=RNG.uniform(1e-4, 1e-3, branch.geometry.columns).astype(np.float32),
        magnitude_scale=np.full(1, 1 / 64, np.float32),
        bias=_normal(branch.geometry.columns),
        sparse_values=RNG.integers(-127, 128, cells, dtype=np.int8),
        sparse_index=RNG.permutation(size)[:cells].astype(np.int64),
        sparse_scale=RNG.uniform(1e-5, 1e-4, branch.geometry.columns).astype(np.float32),
    )


def _rounding_bound(branch: RramBranch, a: QuantizedAdapter) -> np.ndarray:
    """Largest |twin - model| per bit line: half a code of X on every word line through A B and S,
    and half a code of X A on every rank through B, times M."""
    columns = branch.geometry.columns
    zero = np.zeros(branch.geometry.weight_shape, np.float32)
    unit = QuantizedAdapter(**{**a.tensors(), "magnitude": np.full(columns, 64, np.int8)})
    correction = np.abs(folded_weight(zero, unit, branch.geometry)).astype(np.float64)
    axes = tuple(range(1, correction.ndim)) if branch.geometry.is_conv else 0
    b = np.abs(a.lora_b.astype(np.float64))
    b_sum = b.reshape(columns, -1).sum(axis=1) if branch.geometry.is_conv else b.sum(axis=0)
    bound = a.x_scale[0] / 2 * correction.sum(axis=axes) + b_sum * a.lora_b_scale / 2
    return bound * a.magnitude * a.magnitude_scale


@pytest.mark.parametrize(("rank", "cells"), [(2, 9), (0, 9), (3, 0), (0, 0)])
@pytest.mark.parametrize(
    ("text", "shape", "x_shape"),
    [(MATMUL, (24, 7), (50, 24)), (CONV, (6, 2, 3, 2), (8, 4, 6, 6))],
    ids=["matmul", "conv"],
)
def test_twin_differs_by_no_more_than_the_codes_rounding(
    build, run, text, shape, x_shape, rank, cells
):
    # A scale on the wrong side, M over the bias, S in the wrong layout, ranks of one group on
    # another: each is larger than half a code.
    model = _converted(build, text, w=_normal(*shape))
    (branch,) = rram_branches(model)
    x = _normal(*x_shape)
    adapter = _adapter(branch, x, rank=rank, cells=cells)
    AttachAdaptersPass({branch.node: adapter})(model)
    bound = _rounding_bound(branch, adapter)
    plain = run(model, x=x)[0]
    assert FoldAdaptersPass()(model).modified
    twin = run(model, x=x)[0]
    channel = (-1, 1, 1) if len(x_shape) == 4 else (-1,)
    # Sums of at most 24 products in fp32, on each side: 4 K eps of values below 8.
    limit = bound.reshape(channel) + 4 * 24 * EPS * 8
    assert (np.abs(twin - plain) <= limit).all()
    if rank:
        # The bound is not so wide that it would let the branch go missing.
        assert np.abs(twin - plain).max() < np.abs(twin).max() / 10


def test_folded_weight_of_codes_done_by_hand():
    # (W + A B + S) o M with A = 2/(0.5*4) = 1, B = 3*0.5 = 1.5, S = 4*0.25/0.5 = 2, M = 0.5.
    adapter = QuantizedAdapter(
        lora_a=np.array([[2]], np.int8),
        lora_b=np.array([[3, 0]], np.int8),
        magnitude=np.array([32, 64], np.int8),
        x_scale=np.array([0.5], np.float32),
        rank_step=np.array([4], np.float32),
        lora_b_scale=np.array([0.5], np.float32),
        magnitude_scale=np.array([1 / 64], np.float32),
        bias=np.zeros(2, np.float32),
        sparse_values=np.array([4], np.int8),
        sparse_index=np.array([1]),
        sparse_scale=np.array([0.25], np.float32),
    )
    w = np.array([[1, 10]], np.float32)
    folded = folded_weight(w, adapter, NodeGeometry(weight_shape=w.shape))
    np.testing.assert_array_equal(folded, [[1.25, 12]])


@pytest.fixture
def chain(build) -> ir.Model:
    return _converted(
        build,
        "g (float[N,4,6,6] x) => (float[N,3] y) { h = Conv<pads=[1,1,1,1]>(x, w, b)"
        " r = Relu(h) f = Flatten(r) p = MatMul(f, v) y = Add(p, c) }",
        w=_normal(5, 4, 3, 3),
        b=_normal(5),
        v=_normal(180, 3),
        c=_normal(3),
    )


def test_twin_is_plain_onnx_with_the_users_names(chain, run):
    # A name of ours where a script looks for its own, or a file that still needs the domain.
    want = run(chain, x=np.ones((2, 4, 6, 6), np.float32))[0]
    FoldAdaptersPass()(chain)
    nodes = [(n.domain, n.op_type, n.name, n.outputs[0].name) for n in chain.graph]
    assert nodes == [
        ("", "Conv", "n0", "h"),
        ("", "Relu", "n1", "r"),
        ("", "Flatten", "n2", "f"),
        ("", "MatMul", "n3", "y/matmul"),
        ("", "Add", "n3/bias", "y"),
    ]
    assert sorted(chain.graph.initializers) == ["n0/bias", "n3/bias", "v", "w"]
    assert not chain.functions
    assert "ai.rimc" not in chain.opset_imports
    proto = ir.to_proto(chain)
    onnx.checker.check_model(proto, full_check=True)
    assert [d.dim_value for d in proto.graph.output[0].type.tensor_type.shape.dim] == [0, 3]
    got = run(chain, x=np.ones((2, 4, 6, 6), np.float32))[0]
    # Identity adapters: the same sums, of at most 180 products of order 1.
    np.testing.assert_allclose(got, want, rtol=4 * 180 * EPS, atol=1e-5)


def test_swappable_adapters_leave_the_inputs(chain):
    # An input that nothing reads: ONNX Runtime would still offer it.
    MakeAdaptersSwappablePass()(chain)
    FoldAdaptersPass()(chain)
    assert [v.name for v in chain.graph.inputs] == ["x"]
    assert sorted(chain.graph.initializers) == ["n0/bias", "n3/bias", "v", "w"]


def test_weight_is_computed_when_it_is_read(chain, monkeypatch):
    # Every weight of a large model in memory at once.
    calls = []
    monkeypatch.setattr(
        "rimc_onnx.passes.fold_adapters.folded_weight",
        lambda w, *_: calls.append(w.shape) or w,
    )
    FoldAdaptersPass()(chain)
    assert calls == []
    ir.to_proto(chain)
    assert sorted(calls) == [(5, 4, 3, 3), (180, 3)]


def test_second_run_finds_nothing_to_fold(chain):
    FoldAdaptersPass()(chain)
    with pytest.raises(ModelError, match="not a converted model"):
        FoldAdaptersPass()(chain)


def test_output_of_a_crossbar_that_is_read_elsewhere_is_an_error(chain):
    # H has no place in the twin; it must not silently become Y, nor half of the model be folded.
    branches = rram_branches(chain)
    chain.graph.outputs.append(branches[1].h)
    with pytest.raises(ModelError, match=r"'n3/rram' .* read by more than its adapter"):
        FoldAdaptersPass()(chain)
    assert len(rram_branches(chain)) == 2


def test_float16_model_keeps_its_casts(build, run):
    # The twin of a float16 unit computes in float32 between the casts, as the crossbar does.
    w = _normal(6, 4).astype(np.float16)
    model = _converted(build, "g (float16[N,6] x) => (float16[N,4] y) { y = MatMul(x, w) }", w=w)
    x = _normal(3, 6).astype(np.float16)
    want = run(model, x=x)[0]
    FoldAdaptersPass()(model)
    assert [n.name for n in model.graph] == ["n0/rram/cast", "n0", "n0/bias", "n0/dora/cast"]
    assert sorted(model.graph.initializers) == ["n0/bias", "n0/w"]
    got = run(model, x=x)[0]
    # Sums of 6 products in fp32, rounded to float16: one unit in its last place.
    np.testing.assert_allclose(got, want, rtol=2**-10)
