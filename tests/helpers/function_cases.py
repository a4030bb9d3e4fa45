# SPDX-License-Identifier: Apache-2.0
"""Nodes for stock ONNX Runtime, which inlines their bodies, and what the oracle answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import ANNOTATIONS, NO_EXTRAS
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import reference
from rimc_onnx.bodies.operators import FUNCTION_OPSET_VERSION, function_protos
from rimc_onnx.bodies.uses import Uses, uses_of
from rimc_onnx.crossbar import attribute_types
from rimc_onnx.ops import schema

Array = np.ndarray[Any, Any]

STATE = ANNOTATIONS | {"node": "fc1", "device": "gaussian-relative", "g_max_us": 40.0}
IDEAL = cases.IDEAL | NO_EXTRAS
NUMERIC = tuple(name for name in IDEAL if name != "tile_rows")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def whole(shape: Sequence[int], seed: int, most: int = 3) -> Array:
    """Small whole numbers: sums are exact in float32, so an ADC sees the same value everywhere."""
    return rng(seed).integers(-most, most + 1, tuple(shape)).astype(np.float32)


def run(
    op_type: str,
    x: Array,
    initializers: Mapping[str, Array],
    attributes: Mapping[str, Any],
    more: Mapping[str, Array] | None = None,
) -> Array:
    """One node of ours with nothing registered: ONNX Runtime has to inline the function."""
    feeds = {"x": x, **(more or {})}
    (y,) = make_session(op_type, x, initializers, attributes, more).run(None, feeds)
    return np.asarray(y)


def make_session(
    op_type: str,
    x: Array,
    initializers: Mapping[str, Array],
    attributes: Mapping[str, Any],
    more: Mapping[str, Array] | None = None,
) -> ort.InferenceSession:
    feeds = {"x": x, **(more or {})}
    spec = schema.OPS[op_type]
    node = make_node(op_type, attributes, dict(zip(spec.inputs, spec.inputs, strict=True)), "y")
    uses = uses_of(op_type, attributes, {n: np.shape(a) for n, a in initializers.items()})
    return open_nodes([node], {op_type: uses}, feeds, initializers)


def make_node(
    op_type: str, attributes: Mapping[str, Any], names: Mapping[str, str], output: str
) -> onnx.NodeProto:
    spec = schema.OPS[op_type]
    assert set(attributes) == set(attribute_types(op_type))
    inputs = [names[name] for name in spec.inputs]
    return helper.make_node(op_type, inputs, [output], domain=schema.DOMAIN, **attributes)


def open_nodes(
    nodes: Sequence[onnx.NodeProto],
    uses: Mapping[str, Uses],
    feeds: Mapping[str, Array],
    initializers: Mapping[str, Array],
) -> ort.InferenceSession:
    """A session of nodes whose file has bodies for ``uses``."""
    graph = helper.make_graph(
        nodes,
        "g",
        # free dimensions: a body must not need shapes at load
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * a.ndim)
            for n, a in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for node in nodes for name in node.output],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", FUNCTION_OPSET_VERSION),
            helper.make_opsetid(schema.DOMAIN, schema.VERSION),
        ],
        functions=function_protos(uses),
        ir_version=8,
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def equal(got: Array, expected: Array) -> None:
    """4 ulp: the same float32 operations on the same whole numbers, apart from constant folding."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_max_ulp(got, expected, maxulp=4)


# Step 1 of a DAC and of an ADC keeps every value whole: codes are the values themselves.
PERIPHERY = {
    "ideal": {},
    "dac": {"dac_bits": 3, "dac_range": 3.0},
    "dac that saturates": {"dac_bits": 2, "dac_range": 1.0},
    "dac unsigned": {"dac_bits": 2, "dac_range": 3.0, "dac_signed": 0},
    "adc": {"adc_bits": 8, "adc_range": [127.0]},
    "adc that saturates": {"adc_bits": 4, "adc_range": [7.0]},
    "adc that rounds": {"adc_bits": 4, "adc_range": [28.0]},
    "adc per column": {"adc_bits": 5, "adc_range": "columns"},
    "dac and adc": {"dac_bits": 3, "dac_range": 3.0, "adc_bits": 6, "adc_range": [31.0]},
    "adc of 2 bits": {"adc_bits": 2, "adc_range": [8.0]},
    "bit serial": {
        "dac_bits": 3, "dac_range": 3.0, "dac_serial_bits": 1, "adc_bits": 8, "adc_range": [63.5],
    },
    "bit serial, unsigned, 2 bits of 3": {
        "dac_bits": 3, "dac_range": 7.0, "dac_signed": 0, "dac_serial_bits": 2,
        "adc_bits": 8, "adc_range": [127.0],
    },
    "bit serial, ideal adc": {"dac_bits": 4, "dac_range": 7.0, "dac_serial_bits": 2},
    "one gain and offset": {
        "adc_bits": 8, "adc_range": [127.0], "adc_gain": [0.5], "adc_offset": [3 / 127],
    },
    "converters of their own": {
        "adc_bits": 8, "adc_range": "columns", "adc_gain": "tiles", "adc_offset": "tiles",
    },
    "16 bits": {
        "dac_bits": 16, "dac_range": 32767.0, "adc_bits": 16, "adc_range": [32767.0],
    },
}  # fmt: skip
by_periphery = pytest.mark.parametrize("periphery", PERIPHERY.values(), ids=PERIPHERY)


def periphery_attributes(
    periphery: Mapping[str, Any], columns: int, depth: int, rows: int, tile_rows: int | None
) -> dict[str, Any]:
    given = dict(periphery)
    if given.get("adc_range") == "columns":
        given["adc_range"] = [15.0 * 2.0 ** (i % 3) for i in range(columns)]
    tiles = schema.num_tiles(depth, rows, tile_rows)
    if given.get("adc_gain") == "tiles":
        count = range(tiles * columns)
        given["adc_gain"] = [2.0 ** -(i % 3) for i in count]
        given["adc_offset"] = [(i % 5 - 2) / 127 for i in count]
    return {**IDEAL, **given, "tile_rows": tile_rows or 0, "num_tiles": tiles}


CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 4, 9), (6, 4, 3), {"strides": [2], "pads": [1, 0], "dilations": [2], "group": 1}),
    "2d": (
        (2, 5, 6, 5),
        (4, 5, 3, 2),
        {"strides": [1, 2], "pads": [1, 0, 2, 1], "dilations": [1, 2], "group": 1},
    ),
    "3d": (
        (1, 3, 4, 3, 4),
        (2, 3, 2, 1, 3),
        {"strides": [1, 1, 2], "pads": [0, 0, 1, 0, 0, 1], "dilations": [1, 1, 1], "group": 1},
    ),
    "grouped": (
        (2, 6, 5, 5),
        (4, 3, 3, 3),
        {"strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 2},
    ),
    "depthwise": (
        (2, 4, 5, 5),
        (8, 1, 3, 3),
        {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 4},
    ),
    "pointwise": (
        (2, 7, 4, 4),
        (5, 7, 1, 1),
        {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1},
    ),
}
by_conv = pytest.mark.parametrize(("x_shape", "w_shape", "geometry"), CONVS.values(), ids=CONVS)


def adapter(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    *,
    per_column: bool,
    sparse: Literal["none", "some", "all"] = "none",
) -> dict[str, Array]:
    """Codes over all of int8; scales are powers of two, so that all sums are exact."""
    matmul = len(b_shape) == 2
    columns = b_shape[1] if matmul else b_shape[0]
    ranks = a_shape[1] if matmul else a_shape[0]
    cells = columns * (a_shape[0] if matmul else int(np.prod(a_shape[1:])))
    num_cells = {"none": 0, "some": -(-cells // 5), "all": cells}[sparse]
    scales = columns if per_column else 1
    return {
        "lora_a": rng(1).integers(-127, 128, a_shape).astype(np.int8),
        "lora_b": rng(2).integers(-127, 128, b_shape).astype(np.int8),
        "magnitude": rng(3).integers(-127, 128, columns).astype(np.int8),
        "x_scale": np.full(1, 1 / 64, np.float32),
        "rank_step": (2.0 ** rng(4).integers(5, 9, ranks)).astype(np.float32),
        "lora_b_scale": (2.0 ** rng(5).integers(-9, -6, scales)).astype(np.float32),
        "magnitude_scale": np.full(1, 1 / 64, np.float32),
        "bias": whole((columns,), 6, 50) / 8,
        "sparse_values": rng(9).integers(-127, 128, num_cells).astype(np.int8),
        # in no order: a cell's place is its index, not its turn
        "sparse_index": rng(10).permutation(cells)[:num_cells].astype(np.int64),
        "sparse_scale": (2.0 ** rng(11).integers(-12, -9, scales)).astype(np.float32),
    }


by_sparse = pytest.mark.parametrize("sparse", ["none", "some", "all"])


CONVOLUTION = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 2}


def bare(op_type: str, seed: int) -> tuple[Array, Array, dict[str, Any]]:
    """A node of either kind with two row tiles: x, w, attributes."""
    x_shape, w_shape = (
        ((50, 12), (12, 6)) if op_type == "RramMatMul" else ((4, 8, 6, 5), (6, 4, 3, 3))
    )
    x = rng(seed).standard_normal(x_shape, dtype=np.float32)
    w = rng(seed + 1).standard_normal(w_shape, dtype=np.float32)
    attributes = {
        **IDEAL,
        **STATE,
        "num_tiles": 2,
        "tile_rows": 6 if op_type == "RramMatMul" else 18,
    }
    if op_type == "RramConv":
        attributes |= CONVOLUTION | {"tile_group": 4}
    return x, w, attributes


def oracle(op_type: str, x: Array, w: Array, attributes: Mapping[str, Any]) -> Array:
    function = reference.rram_matmul if op_type == "RramMatMul" else reference.rram_conv
    drop = {"tile_rows", "tile_group", *STATE} - {"w_max"}
    return function(x, w, **{n: v for n, v in attributes.items() if n not in drop})
