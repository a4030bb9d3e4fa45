# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the operators, as stock ONNX Runtime inlines them, against the oracle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from function_cases import (
    CONVOLUTION,
    IDEAL,
    NUMERIC,
    PERIPHERY,
    STATE,
    bare,
    by_conv,
    by_periphery,
    equal,
    make_node,
    make_session,
    open_nodes,
    oracle,
    periphery_attributes,
    rng,
    run,
    whole,
)

from rimc_onnx import reference
from rimc_onnx.bodies.operators import function_protos
from rimc_onnx.bodies.uses import VALUE, common_uses, uses_of
from rimc_onnx.crossbar import attribute_types
from rimc_onnx.ops import schema


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
    del common["spatial"]
    assert set(common.values()) <= {None, False}
    session = open_nodes(nodes, {op_type: common_uses(uses)}, {"x": x}, {"w": w})
    for got, want in zip(session.run(None, {"x": x}), expected, strict=True):
        # As alone: all but the few sums on the edge of a code agree to their rounding.
        near = np.isclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))
        assert near.mean() > 0.99


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
