# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the operators, as stock ONNX Runtime inlines them, against the oracle."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import reference
from rimc_onnx.bodies.operators import FUNCTION_OPSET_VERSION, function_protos
from rimc_onnx.bodies.uses import VALUE, Uses, common_uses, uses_of
from rimc_onnx.crossbar import attribute_types
from rimc_onnx.ops import schema

Array = np.ndarray[Any, Any]

STATE = {
    "node": "fc1",
    "device": "gaussian-relative",
    "device_config": "{}",
    "seed": 0,
    "time_s": 0.0,
    "wire_ohm": 0.0,
    "g_max_us": 40.0,
    "w_max": [1.0],
}
IDEAL = {
    "tile_rows": 0,
    "num_tiles": 1,
    "dac_bits": 0,
    "dac_range": 1.0,
    "dac_signed": 1,
    "dac_serial_bits": 0,
    "iv_sinh": 0.0,
    "input_shrink": 1.0,
    "iv_square": [0.0] * schema.IV_TERMS,
    "iv_cube": [0.0] * schema.IV_TERMS,
    "adc_bits": 0,
    "adc_range": [1.0],
    "adc_gain": [1.0],
    "adc_offset": [0.0],
    "read_noise": 0.0,
    "read_noise_relative": 0,
    "read_noise_curve": [0.0],
    "read_key": 0,
}
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


@by_periphery
@pytest.mark.parametrize("tile_rows", [None, 4, 5, 100])
@pytest.mark.parametrize("batch", [(3,), (2, 3), (2, 1, 3), (0,)], ids=str)
def test_rram_matmul_is_the_oracle(
    periphery: Mapping[str, Any], tile_rows: int | None, batch: tuple[int, ...]
) -> None:
    # Padding of the last tile, a reshape that mixes rows and tiles, ADC behind the sum of tiles.
    x, w = whole((*batch, 13), 1), whole((13, 6), 2)
    attributes = periphery_attributes(periphery, 6, 13, 1, tile_rows)
    expected = reference.rram_matmul(x, w, **{n: attributes[n] for n in NUMERIC})
    equal(run("RramMatMul", x, {"w": w}, {**attributes, **STATE}), expected)


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


@by_periphery
@by_conv
@pytest.mark.parametrize("tiled", [False, True], ids=["one tile", "tiles of two channels"])
def test_rram_conv_is_the_oracle(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    geometry: dict[str, Any],
    periphery: Mapping[str, Any],
    tiled: bool,
) -> None:
    # A group's tiles next to another group's, padding channels that carry a value, ADC ranges in
    # the order of tiles instead of columns.
    columns, depth, *kernel = w_shape
    rows = int(np.prod(kernel))
    x, w = whole(x_shape, 1), whole(w_shape, 2)
    attributes = periphery_attributes(periphery, columns, depth, rows, 2 * rows if tiled else None)
    expected = reference.rram_conv(x, w, **geometry, **{n: attributes[n] for n in NUMERIC})
    tile_group = geometry["group"] * attributes["num_tiles"]
    all_attributes = {**geometry, **attributes, "tile_group": tile_group, **STATE}
    equal(run("RramConv", x, {"w": w}, all_attributes), expected)


def test_converters_of_real_values_agree_to_a_code() -> None:
    # Ranges that are no power of two. Only where a sum lies on the edge of a code may one differ:
    # one of 400 here, of the fraction K * eps * codes that is expected to.
    x, w = (
        rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate([(40, 64), (64, 10)])
    )
    attributes = {
        **IDEAL, "tile_rows": 16, "num_tiles": 4, "dac_bits": 6, "dac_range": 2.7,
        "adc_bits": 7, "adc_range": [9.3],
    }  # fmt: skip
    expected = reference.rram_matmul(x, w, **{n: attributes[n] for n in NUMERIC})
    got = run("RramMatMul", x, {"w": w}, {**attributes, **STATE})
    code = 9.3 / 63
    assert np.abs(got - expected).max() < 1.001 * code
    assert (np.abs(got - expected) > 1e-5).mean() <= 1 / 400


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


@pytest.mark.parametrize("serial", [{}, {"dac_bits": 5, "dac_serial_bits": 3}], ids=["", "serial"])
@pytest.mark.parametrize("k", [0.5, 6.0])
@pytest.mark.parametrize("op_type", ["RramMatMul", "RramConv"])
def test_sinh_of_the_body_is_the_curve_of_the_oracle(
    op_type: str, k: float, serial: dict[str, Any]
) -> None:
    # A curve in the wrong place (behind the sum), not normalised at its end, of the whole input
    # range where it is shrunk, or of the code where it is a digit.
    x, w, attributes = bare(op_type, 30)
    attributes |= {"iv_sinh": k, "input_shrink": 0.75, "dac_range": 2.5, **serial}
    expected = oracle(op_type, x, w, attributes)
    # 36 products, each of a sinh whose last bits differ: 4 K eps of the largest sum.
    bound = 4 * 36 * np.finfo(np.float32).eps * float(np.abs(expected).max())
    np.testing.assert_allclose(run(op_type, x, {"w": w}, attributes), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("serial", [{}, {"dac_bits": 5, "dac_serial_bits": 3}], ids=["", "serial"])
@pytest.mark.parametrize("op_type", ["RramMatMul", "RramConv"])
def test_terms_of_the_body_are_those_of_the_oracle(op_type: str, serial: dict[str, Any]) -> None:
    # Coefficients from the highest power on, u of the wrong range (a plane has its own), W_max of
    # another bit line or group, a term of the whole sum in place of a tile's.
    x, w, attributes = bare(op_type, 40)
    columns = w.shape[1] if op_type == "RramMatMul" else w.shape[0]
    attributes |= {
        "iv_square": rng(41).uniform(-0.4, 0.4, schema.IV_TERMS).astype(np.float32).tolist(),
        "iv_cube": rng(42).uniform(-0.4, 0.4, schema.IV_TERMS).astype(np.float32).tolist(),
        "w_max": rng(43).uniform(1, 2, columns).astype(np.float32).tolist(),
        "dac_range": 1.5,
        **serial,
    }
    expected = oracle(op_type, x, w, attributes)
    straight = oracle(op_type, x, w, attributes | {"iv_square": [0.0] * 8, "iv_cube": [0.0] * 8})
    assert np.abs(expected - straight).max() > 0.1
    # three sums of 36 products: 4 K eps of the largest each
    bound = 12 * 36 * np.finfo(np.float32).eps * float(np.abs(expected).max())
    session = make_session(op_type, x, {"w": w}, attributes)
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=0, atol=bound)


@pytest.fixture
def same_draws() -> Iterator[None]:
    """ONNX Runtime's draws are the same in every run of the tests, not by the time of day."""
    ort.set_seed(0)
    yield
    ort.set_seed(time.time_ns())


@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("adc", [{}, {"adc_bits": 16, "adc_range": [60.0]}], ids=["ideal", "adc"])
@pytest.mark.parametrize("law", ["absolute", "relative", "curve"])
@pytest.mark.parametrize("op_type", ["RramMatMul", "RramConv"])
def test_read_noise_of_the_body_has_the_variance_of_the_sum(
    op_type: str, law: str, adc: dict[str, Any]
) -> None:
    # Noise of another size on other rows or bit lines, noise that all outputs share, or noise that
    # is folded into the file and so the same in every run. Scaled by what the law says, what is
    # left is a standard normal; two runs must differ.
    x, w, attributes = bare(op_type, 40)
    columns = 6
    w_max = (0.5 + np.arange(columns)).tolist()
    attributes |= {"read_noise": 0.1, "w_max": w_max, **adc}
    attributes["read_noise_relative"] = int(law == "relative")
    column_axis = -1 if op_type == "RramMatMul" else 1
    cells = np.square(w) if law == "relative" else np.ones_like(w)
    if law == "curve":
        # 1, 0 and 1 again at |w| = 0, W_max / 4 and W_max: straight in the root of |w|
        knots = np.abs(1 - np.arange(schema.NOISE_KNOTS) / 32)
        attributes["read_noise_curve"] = knots.tolist()
        largest = np.asarray(w_max)
        if op_type == "RramConv":
            largest = largest.reshape(-1, *[1] * (w.ndim - 1))
        q = np.abs(1 - 2 * np.sqrt(np.minimum(np.abs(w) / largest, 1))) * largest
        cells = np.square(q).astype(np.float32)
    ideal = {**attributes, "read_noise": 0.0, "adc_bits": 0}
    quiet = oracle(op_type, x, w, ideal)
    plain = ideal | {"read_noise_curve": [0.0]}
    deviation = np.sqrt(oracle(op_type, np.square(x), cells, plain)) * 0.1
    if law == "absolute":
        by_column = np.sqrt(2.0) * np.asarray(w_max)
        shape = [1] * quiet.ndim
        shape[column_axis] = columns
        deviation = deviation * by_column.reshape(shape)
    session = make_session(op_type, x, {"w": w}, attributes)
    first, second = (np.asarray(session.run(None, {"x": x})[0]) for _ in range(2))
    z = np.stack([first - quiet, second - quiet]) / deviation
    # n draws: the mean within 4 / sqrt(n), the spread within 4 / sqrt(2 n); so is the correlation.
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * n)
    assert abs(np.mean(z[0] * z[1])) < 4 / np.sqrt(n / 2)


@pytest.mark.parametrize("op_type", ["RramMatMul", "RramConv"])
def test_one_body_serves_crossbars_that_differ(op_type: str) -> None:
    # A part that a node does not use and another one does: left out, or taken by both.
    nodes, uses, expected = [], [], []
    x, w, _ = bare(op_type, 50)
    depth, rows = (12, 1) if op_type == "RramMatMul" else (4, 9)
    more = {
        "sinh": {"iv_sinh": 2.0, "dac_range": 2.5},
        "sinh of codes": {"iv_sinh": 2.0, "dac_bits": 6, "dac_range": 2.5},
        "terms": {"iv_square": [0.2] * 8, "iv_cube": [0.1] * 8, "dac_range": 2.5},
    }
    for tile_rows in (None, 5 * rows):
        for periphery in (*PERIPHERY.values(), *more.values()):
            attributes = periphery_attributes(periphery, 6, depth, rows, tile_rows) | STATE
            if op_type == "RramConv":
                tiles = attributes["num_tiles"]
                attributes |= CONVOLUTION | {"tile_group": CONVOLUTION["group"] * tiles}
            names = {"x": "x", "w": "w"}
            nodes.append(make_node(op_type, attributes, names, f"y{len(nodes)}"))
            uses.append(uses_of(op_type, attributes, {"w": w.shape}))
            expected.append(oracle(op_type, x, w, attributes))
    common = {n: v for n, v in common_uses(uses).items() if not n.startswith(VALUE)}
    assert set(common.values()) <= {None, False}
    session = open_nodes(nodes, {op_type: common_uses(uses)}, {"x": x}, {"w": w})
    for got, want in zip(session.run(None, {"x": x}), expected, strict=True):
        # As alone: all but the few sums on the edge of a code agree to their rounding.
        near = np.isclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))
        assert near.mean() > 0.99


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


def test_bodies_use_standard_operators_only() -> None:
    # An operator or an opset that the ONNX Runtime of 2024 does not have; a call that is no node.
    protos = function_protos()
    assert [p.name for p in protos] == list(schema.OPS)
    for proto in protos:
        assert [o.domain for o in proto.opset_import] == [""]
        assert {node.domain for node in proto.node} == {""}


@pytest.mark.parametrize("op_type", schema.OPS)
def test_bodies_take_the_inputs_and_attributes_of_the_operator(op_type: str) -> None:
    # The operator set is written down once; the bodies repeat it.
    (proto,) = [p for p in function_protos() if p.name == op_type]
    spec = schema.OPS[op_type]
    assert tuple(proto.input) == spec.inputs
    assert len(proto.output) == 1
    assert set(proto.attribute) == set(attribute_types(op_type))
    assert not proto.attribute_proto  # no defaults: every attribute is written on every node
