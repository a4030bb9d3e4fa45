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
from rimc_onnx.passes import (
    AttachAdaptersPass,
    MakeAdaptersSwappablePass,
    RramBranch,
    check_rimc_model,
    convert_model,
    is_swappable,
    rram_branches,
)

RNG = np.random.default_rng(41)


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


@pytest.fixture
def converted(build) -> ir.Model:
    model = build(
        "g (float[N,4,5,5] x) => (float[N,3] y) { h = Conv<pads=[1,1,1,1], group=2>(x, w)"
        " r = Relu(h) f = Flatten(r) y = MatMul(f, v) }",
        w=_normal(6, 2, 3, 3),
        v=_normal(150, 3),
    )
    for name, node in zip(("conv", "relu", "flat", "fc"), model.graph, strict=True):
        node.name = name
    convert_model(model, ConvertConfig(device=get_preset("gaussian-relative"), rank=2))
    return model


@pytest.fixture
def swappable(converted) -> ir.Model:
    model = converted.clone()
    assert MakeAdaptersSwappablePass()(model).modified
    return model


def _adapter(branch: RramBranch, *, rank: int, cells: int, columns: int) -> QuantizedAdapter:
    """Random codes; ``columns`` scales per bit line (1 or all)."""
    a, b, ranks = lora_shapes(branch.geometry, rank)
    size = branch.geometry.num_weights

    def codes(*shape: int) -> np.ndarray:
        return RNG.integers(-127, 128, shape, dtype=np.int8)

    return QuantizedAdapter(
        lora_a=codes(*a),
        lora_b=codes(*b),
        magnitude=RNG.integers(40, 90, branch.geometry.columns, dtype=np.int8),
        x_scale=np.full(1, 0.02, np.float32),
        rank_step=RNG.uniform(100, 300, ranks).astype(np.float32),
        lora_b_scale=RNG.uniform(1e-5, 1e-4, columns).astype(np.float32),
        magnitude_scale=np.full(1, 1 / 64, np.float32),
        bias=_normal(branch.geometry.columns),
        sparse_values=codes(cells),
        sparse_index=np.sort(RNG.choice(size, cells, replace=False)).astype(np.int64),
        sparse_scale=RNG.uniform(1e-5, 1e-4, columns).astype(np.float32),
    )


def test_every_adapter_initializer_is_an_input_and_nothing_else(converted, swappable):
    # A crossbar's weight among the inputs could be overridden; an adapter left out could not.
    before = [v.name for v in converted.graph.inputs]
    added = [v.name for v in swappable.graph.inputs][len(before) :]
    assert [v.name for v in swappable.graph.inputs][: len(before)] == before
    assert added == [v.name for b in rram_branches(swappable) for v in b.dora.inputs[2:]]
    assert len(added) == 22
    assert is_swappable(swappable)
    assert not is_swappable(converted)


def test_types_say_what_may_differ(swappable):
    # A fixed rank in the type: ONNX Runtime refuses an adapter of another one.
    types = {
        v.name: (v.type, [d if isinstance(d, int) else d.value for d in v.shape])
        for v in swappable.graph.inputs
    }
    int8, floats = ir.TensorType(ir.DataType.INT8), ir.TensorType(ir.DataType.FLOAT)
    assert types["conv/dora/lora_a"] == (int8, ["conv/dora/ranks", 2, 3, 3])
    assert types["conv/dora/lora_b"] == (int8, [6, "conv/dora/rank", 1, 1])
    assert types["conv/dora/rank_step"] == (floats, ["conv/dora/ranks"])
    assert types["conv/dora/sparse_values"] == (int8, ["conv/dora/cells"])
    assert types["conv/dora/sparse_index"][1] == ["conv/dora/cells"]
    assert types["fc/dora/lora_a"] == (int8, [150, "fc/dora/rank"])
    assert types["fc/dora/lora_b"] == (int8, ["fc/dora/rank", 3])
    assert types["fc/dora/lora_b_scale"] == (floats, [None])
    assert types["fc/dora/bias"] == (floats, [3])


def test_second_run_does_nothing_until_an_adapter_is_attached(swappable):
    # Attaching writes the shape of what it attaches; a fixed rank would be left in the type.
    rewrite = MakeAdaptersSwappablePass()
    assert not rewrite(swappable).modified
    fc = rram_branches(swappable)[1]
    AttachAdaptersPass({"fc": _adapter(fc, rank=1, cells=3, columns=3)})(swappable)
    rewrite(swappable)
    assert not fc.dora.inputs[2].shape.is_static()
    assert fc.rank == 1
    assert not rewrite(swappable).modified


def test_file_is_valid_and_still_a_converted_model(swappable, tmp_path):
    # A reader that takes the shape in the type for that of the initializer finds no rank.
    path = tmp_path / "m.onnx"
    ir.save(swappable, path)
    onnx.checker.check_model(path, full_check=True)
    loaded = ir.load(path)
    assert 4 <= loaded.ir_version <= 9
    check_rimc_model(loaded)
    assert [b.rank for b in rram_branches(loaded)] == [2, 2]
    assert is_swappable(loaded)
    assert not MakeAdaptersSwappablePass()(loaded).modified


def test_nothing_fed_is_the_converted_model(converted, swappable, run):
    # The same operations on the same numbers; only when ONNX Runtime does them differs.
    x = _normal(3, 4, 5, 5)
    np.testing.assert_array_equal(run(swappable, x=x)[0], run(converted, x=x)[0])


@pytest.mark.parametrize(
    ("rank", "cells", "all_columns"), [(2, 0, False), (1, 7, True), (0, 5, False), (0, 0, True)]
)
def test_fed_adapter_is_the_attached_one(converted, swappable, run, rank, cells, all_columns):
    # A rank, a number of cells or a scale that is fixed by what the file holds, and the branch of
    # an If that was chosen when the file was loaded.
    adapters = {
        b.node: _adapter(
            b, rank=rank, cells=cells, columns=b.geometry.columns if all_columns else 1
        )
        for b in rram_branches(converted)
    }
    feeds = {f"{n}/dora/{k}": v for n, a in adapters.items() for k, v in a.tensors().items()}
    x = _normal(3, 4, 5, 5)
    got = run(swappable, x=x, **feeds)[0]
    AttachAdaptersPass(adapters)(converted)
    want = run(converted, x=x)[0]
    # Integer sums are exact; ONNX Runtime may fuse the float epilogue of constants: a few ulp of
    # values of order 1, through a sum of 150 products.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(got - run(swappable, x=x)[0]).max() > 0.01


def test_model_that_is_not_converted_is_left_alone(build):
    model = build("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="not a converted model"):
        MakeAdaptersSwappablePass()(model)
    assert [v.name for v in model.graph.inputs] == ["x"]
