# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the adapters, as stock ONNX Runtime inlines them, against the oracle."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
from function_cases import (
    CONVS,
    IDEAL,
    NUMERIC,
    adapter,
    by_conv,
    by_sparse,
    equal,
    make_node,
    open_nodes,
    run,
    whole,
)

from rimc_onnx import reference
from rimc_onnx.bodies.uses import common_uses, uses_of


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 4])
@by_sparse
@pytest.mark.parametrize("batch", [(5,), (2, 3), (0,)], ids=str)
def test_dora_matmul_is_the_oracle(
    batch: tuple[int, ...], sparse: Any, rank: int, per_column: bool
) -> None:
    # Ties of the rounding to the wrong side, codes that do not saturate, int8 sums that overflow;
    # a body that can't do without a rank or a sparse cell, or scatters them transposed.
    x, h = whole((*batch, 20), 7, 300) / 128, whole((*batch, 6), 8, 100) / 16
    tensors = adapter((20, rank), (rank, 6), per_column=per_column, sparse=sparse)
    expected = reference.dora_matmul(x, h, **tensors)
    equal(run("DoraMatMul", x, tensors, {}, {"h": h}), expected)


@by_conv
@by_sparse
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("per_column", [False, True])
def test_dora_conv_is_the_oracle(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    geometry: dict[str, Any],
    sparse: Any,
    rank: int,
    per_column: bool,
) -> None:
    # The ranks or the sparse cells of one group given to another; scales along the wrong axis.
    columns, depth, *kernel = w_shape
    group = geometry["group"]
    rank = min(rank, columns // group)
    x = whole(x_shape, 7, 300) / 128
    ideal = {n: IDEAL[n] for n in NUMERIC}
    shape = reference.rram_conv(x, whole(w_shape, 0), **geometry, **ideal).shape
    h = whole(shape, 8, 100) / 16
    tensors = adapter(
        (group * rank, depth, *kernel),
        (columns, rank, *[1] * len(kernel)),
        per_column=per_column,
        sparse=sparse,
    )
    expected = reference.dora_conv(x, h, **tensors, **geometry)
    equal(run("DoraConv", x, tensors, geometry, {"h": h}), expected)


@pytest.mark.parametrize("op_type", ["DoraMatMul", "DoraConv"])
def test_sparse_cells_are_the_weight_they_stand_for(op_type: str) -> None:
    # A body and an oracle that are wrong in the same way: here the cells are spelt out. A single
    # cell answers to a single input, in the C order of the weight's own shape.
    if op_type == "DoraMatMul":
        w = np.zeros((5, 3), np.int8)
        attributes: dict[str, Any] = {}
        a, b, x = (5, 0), (0, 3), np.eye(5, dtype=np.float32)
    else:
        w = np.zeros((4, 3, 1, 1), np.int8)
        attributes = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 2}
        a, b, x = (0, 3, 1, 1), (4, 0, 1, 1), np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1)
    w.flat[7] = 100
    tensors = adapter(a, b, per_column=False) | {
        "magnitude": np.full(w.shape[1] if w.ndim == 2 else 4, 64, np.int8),
        "bias": np.zeros(w.shape[1] if w.ndim == 2 else 4, np.float32),
        "x_scale": np.ones(1, np.float32),
        "sparse_values": np.int8([100]),
        "sparse_index": np.int64([7]),
        "sparse_scale": np.float32([0.5]),
    }
    expected = np.zeros((len(x), *tensors["bias"].shape, *x.shape[2:]), np.float32)
    # Index 7: word line 2, bit line 1 of [5, 3]; output channel 2 of [4, 3, 1, 1], which is of
    # group 1 and so reads the channels 3 to 5: cell 1 of its row is channel 4.
    expected[(2, 1) if w.ndim == 2 else (4, 2)] = 50
    assert np.array_equal(run(op_type, x, tensors, attributes, {"h": 0 * expected}), expected)


@pytest.mark.parametrize("op_type", ["DoraMatMul", "DoraConv"])
def test_one_body_serves_adapters_that_differ(op_type: str) -> None:
    # As above; and a rank or cells of one node given to the next.
    is_conv = op_type == "DoraConv"
    x_shape, w_shape, geometry = CONVS["grouped"] if is_conv else ((5, 20), (20, 6), {})
    x = whole(x_shape, 7, 300) / 128
    ideal = {n: IDEAL[n] for n in NUMERIC}
    zeros = np.zeros(w_shape, np.float32)
    product = reference.rram_conv if is_conv else reference.rram_matmul
    h = whole(product(x, zeros, **geometry, **ideal).shape, 8, 100) / 16
    nodes, uses, expected, initializers = [], [], [], {}
    kinds: list[Literal["none", "some"]] = ["none", "some"]
    for rank, sparse in itertools.product((0, 2), kinds):
        a, b = ((2 * rank, *w_shape[1:]), (4, rank, 1, 1)) if is_conv else ((20, rank), (rank, 6))
        tensors = adapter(a, b, per_column=False, sparse=sparse)
        own = {name: f"{name}{len(nodes)}" for name in tensors}
        nodes.append(make_node(op_type, geometry, {"x": "x", "h": "h", **own}, f"y{len(nodes)}"))
        initializers |= {own[name]: tensor for name, tensor in tensors.items()}
        uses.append(uses_of(op_type, geometry, {n: t.shape for n, t in tensors.items()}))
        function = reference.dora_conv if is_conv else reference.dora_matmul
        expected.append(function(x, h, **tensors, **geometry))
    feeds = {"x": x, "h": h}
    session = open_nodes(nodes, {op_type: common_uses(uses)}, feeds, initializers)
    for got, want in zip(session.run(None, feeds), expected, strict=True):
        equal(got, want)
