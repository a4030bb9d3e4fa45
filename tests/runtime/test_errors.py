# SPDX-License-Identifier: Apache-2.0
"""Malformed nodes are refused with one line that says what is wrong, and nothing crashes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rimc_onnx import runtime
from rimc_onnx.ops import schema

MATMUL: list[tuple[dict[str, Any], str]] = [
    ({"tile_rows": None}, "attribute tile_rows is missing"),
    ({"adc_range": None}, "attribute adc_range is missing"),
    ({"dac_range": 1}, "attribute dac_range is missing or is not of type float"),
    ({"tile_rows": -1}, "tile_rows must be 0 (untiled) or more, got -1"),
    ({"num_tiles": 17}, "num_tiles must be"),
    ({"num_tiles": 0}, "num_tiles must be"),
    ({"dac_bits": -1}, "dac_bits must be 0 (ideal) or"),
    ({"dac_bits": 1, "dac_signed": 1}, "dac_bits must be 0 (ideal) or 2..24, got 1"),
    ({"dac_bits": 99}, "dac_bits must be 0 (ideal) or"),
    ({"dac_signed": 2}, "dac_signed must be 0 or 1, got 2"),
    ({"dac_range": 0.0}, "dac_range must be positive and finite, got 0"),
    ({"dac_range": float("nan")}, "dac_range must be positive and finite, got nan"),
    ({"dac_bits": 24, "dac_range": 1e-35}, "dac_range must be larger for steps of 24 bits"),
    ({"adc_bits": 24, "adc_range": [1e-35]}, "must give finite codes, got 1e-35, 1 and 0"),
    ({"adc_bits": 24, "adc_offset": [1e35]}, "must give finite codes, got"),
    ({"read_noise": 1.0, "w_max": [3e38]}, "read_noise * w_max must be finite, got 1 and 3e+38"),
    ({"adc_bits": 1}, "adc_bits must be 0 (ideal) or 2..24, got 1"),
    ({"adc_bits": -8}, "adc_bits must be 0 (ideal) or 2..24, got -8"),
    ({"adc_range": [-1.0]}, "adc_range must be positive and finite, got -1"),
    ({"adc_range": [1.0, 1.0]}, "adc_range must have 1 or"),
    ({"adc_gain": None}, "attribute adc_gain is missing"),
    ({"adc_gain": [1.0, 1.0]}, "adc_gain must have 1 or"),
    ({"adc_gain": [0.0]}, "adc_gain must be positive and finite, got 0"),
    ({"adc_gain": [float("nan")]}, "adc_gain must be finite, got nan"),
    ({"adc_offset": [float("inf")]}, "adc_offset must be finite, got inf"),
    ({"adc_offset": [0.0] * 3}, "adc_offset must have 1 or"),
    ({"iv_sinh": None}, "attribute iv_sinh is missing"),
    ({"iv_sinh": -1.0}, "iv_sinh must be 0..6, got -1"),
    ({"iv_sinh": 7.0}, "iv_sinh must be 0..6, got 7"),
    ({"iv_sinh": float("nan")}, "iv_sinh must be 0..6, got nan"),
    ({"iv_square": [0.0]}, "iv_square must have 8 values, got 1"),
    ({"iv_cube": [float("nan")] * 8}, "iv_cube must be finite, got nan"),
    ({"input_shrink": 0.0}, "input_shrink must be above 0 and at most 1, got 0"),
    ({"input_shrink": float("nan")}, "input_shrink must be above 0 and at most 1, got nan"),
    ({"dac_serial_bits": None}, "attribute dac_serial_bits is missing"),
    ({"dac_serial_bits": -1}, "dac_serial_bits must be 0 (all at once) or 1.."),
    ({"dac_serial_bits": 2**40}, "dac_serial_bits must be 0 (all at once) or 1.."),
    ({"dac_bits": 0, "dac_serial_bits": 1}, "with dac_bits 0, got 1"),
    ({"read_noise": -0.5}, "read_noise must be 0..1, got -0.5"),
    ({"read_noise": float("nan")}, "read_noise must be 0..1, got nan"),
    ({"read_noise_relative": 2}, "read_noise_relative must be 0 or 1, got 2"),
    ({"read_noise_curve": None}, "attribute read_noise_curve is missing"),
    ({"read_noise_curve": [1.0]}, "read_noise_curve must be one 0 or 65 values, got 1"),
    ({"read_noise_curve": [0.0] * 64}, "read_noise_curve must be one 0 or 65 values, got 64"),
    ({"read_noise_curve": [0.5] * 64 + [1.5]}, "read_noise_curve must be 0..1, got 1.5"),
    ({"read_noise_curve": [float("nan")] * 65}, "read_noise_curve must be 0..1, got nan"),
    (
        {"read_noise_curve": [0.5] * 65, "read_noise_relative": 1},
        "read_noise_relative must be 0 with a read_noise_curve",
    ),
    ({"read_key": None}, "attribute read_key is missing"),
    ({"read_key": 1.5}, "attribute read_key is missing or is not of type int"),
    ({"w_max": [-1.0]}, "w_max must be 0 or more and finite, got -1"),
    ({"w_max": [1.0] * 2}, "w_max must have 1 or"),
    ({"w_max": None}, "attribute w_max is missing"),
]
CONV: list[tuple[dict[str, Any], str]] = [
    ({"strides": [0] * 9}, "strides must have"),
    ({"pads": None}, "attribute pads is missing"),
    ({"tile_group": 999}, "tile_group must be group * num_tiles"),
    ({"group": 0}, "group must divide"),
    ({"group": -1}, "group must divide"),
]


def _refusal(model: bytes) -> str:
    with pytest.raises(Exception, match="the_node") as caught:
        runtime.make_session(model)
    return str(caught.value)


@pytest.mark.parametrize(("attributes", "message"), MATMUL)
def test_matmul_refuses_attribute(
    cases: ModuleType, attributes: dict[str, Any], message: str
) -> None:
    case = cases.rram_matmul_case(np.random.default_rng(0))
    assert message in _refusal(case.model(**attributes))


@pytest.mark.parametrize(("attributes", "message"), MATMUL)
def test_conv_refuses_attribute_of_the_periphery(
    cases: ModuleType, attributes: dict[str, Any], message: str
) -> None:
    case = cases.rram_conv_case(np.random.default_rng(0))
    assert message in _refusal(case.model(**attributes))


@pytest.mark.parametrize(("attributes", "message"), CONV)
def test_conv_refuses_attribute(
    cases: ModuleType, attributes: dict[str, Any], message: str
) -> None:
    case = cases.rram_conv_case(np.random.default_rng(0))
    assert message in _refusal(case.model(**attributes))


@pytest.mark.parametrize(
    ("name", "value"), [("strides", 0), ("dilations", 0), ("pads", -1), ("strides", 2**40)]
)
def test_conv_refuses_value_out_of_range(cases: ModuleType, name: str, value: int) -> None:
    # Catches a division by zero, and an overflow of a product of sizes.
    case = cases.rram_conv_case(np.random.default_rng(0))
    wrong = [value] * len(case.attributes[name])
    message = _refusal(case.model(**{name: wrong}))
    assert f"{name} must be" in message
    assert f"got {value}" in message


@pytest.mark.parametrize("op", [schema.RRAM_MATMUL, schema.RRAM_CONV])
def test_weights_that_are_a_graph_input_are_refused(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    message = _refusal(case.model(constant_adapter=False))
    assert "input w must be an initializer or a constant" in message


@pytest.mark.parametrize("op", [schema.RRAM_MATMUL, schema.RRAM_CONV])
def test_weights_of_a_wrong_rank_are_refused(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    case.constants["w"] = case.constants["w"].reshape(-1)
    assert "input w must have" in _refusal(case.model())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("op", [schema.RRAM_MATMUL, schema.RRAM_CONV])
def test_weights_that_are_no_numbers_are_refused(cases: ModuleType, op: str, bad: float) -> None:
    # Catches cells that no conductance can hold; the provider refuses them too.
    case = cases.MAKERS[op](np.random.default_rng(0))
    case.constants["w"].reshape(-1)[-1] = bad
    assert f"input w must be finite, got {bad}" in _refusal(case.model())


@pytest.mark.parametrize("op", [schema.RRAM_MATMUL, schema.RRAM_CONV])
def test_x_that_does_not_fit_is_refused_when_run(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    x = np.concatenate([case.feeds["x"]] * 2, axis=-1 if op == schema.RRAM_MATMUL else 1)
    shapes = {"x": [f"d{i}" for i in range(x.ndim)]}
    session = runtime.make_session(case.model(shapes=shapes))
    with pytest.raises(Exception, match=r"input x must have the shape \[") as caught:
        session.run(None, {"x": x})
    assert "the_node" in str(caught.value)


def test_image_smaller_than_the_kernel_is_refused(cases: ModuleType) -> None:
    case = cases.rram_conv_case(np.random.default_rng(0))
    x = case.feeds["x"]
    rank = x.ndim - 2
    model = case.model(
        shapes={"x": [f"d{i}" for i in range(x.ndim)]},
        pads=[0] * (2 * rank),
        dilations=[100] * rank,
    )
    kernel = case.constants["w"].shape[2:]
    assert max(kernel) > 1
    with pytest.raises(Exception, match="padded input is smaller than the kernel"):
        runtime.make_session(model).run(None, {"x": x})


ADAPTER: list[tuple[str, Any, str]] = [
    ("x_scale", np.zeros(1, np.float32), "input x_scale must be positive and finite, got 0"),
    ("x_scale", np.full(1, np.inf, np.float32), "x_scale must be positive and finite, got inf"),
    ("x_scale", np.ones(2, np.float32), "input x_scale must have 1 values"),
    ("x_scale", np.ones((1, 1), np.float32), "input x_scale must have 1 values, got shape [1, 1]"),
    ("lora_b_scale", np.full(1, np.nan, np.float32), "input lora_b_scale must be finite, got nan"),
    ("magnitude_scale", np.full(1, np.inf, np.float32), "magnitude_scale must be finite, got inf"),
    ("sparse_scale", np.full(1, -np.inf, np.float32), "sparse_scale must be finite, got -inf"),
    ("rank_step", np.ones(99, np.float32), "input rank_step must have"),
    ("bias", np.ones(999, np.float32), "input bias must have"),
    ("magnitude", np.ones(999, np.int8), "input magnitude must have"),
    ("lora_b_scale", np.ones(999, np.float32), "input lora_b_scale must have"),
    ("sparse_scale", np.ones(999, np.float32), "input sparse_scale must have"),
    ("sparse_values", np.ones((2, 2), np.int8), "input sparse_values must have one dimension"),
    ("sparse_index", np.zeros(9999, np.int64), "input sparse_index must have the shape"),
    ("lora_a", np.ones(3, np.int8), "input lora_a must have"),
    ("lora_b", np.ones((1, 1), np.int8), "input lora_b must have the shape"),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("name", "value", "message"), ADAPTER)
@pytest.mark.parametrize("op", [schema.DORA_MATMUL, schema.DORA_CONV])
def test_malformed_adapter_is_refused(
    cases: ModuleType, op: str, name: str, value: Any, message: str, constant: bool
) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0), has_rank=True)
    case.constants[name] = value
    assert message in _adapter_refusal(case, constant)


CELLS: list[tuple[list[int], str]] = [
    ([0, -1], "input sparse_index must be 0..LAST, got -1"),
    ([0, 2**40], "input sparse_index must be 0..LAST, got 1099511627776"),
    ([1, 0, 1], "input sparse_index must name a cell once, got 1 more than once"),
    ([2, 2], "input sparse_index must name a cell once, got 2 more than once"),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("index", "message"), CELLS)
@pytest.mark.parametrize("op", [schema.DORA_MATMUL, schema.DORA_CONV])
def test_cells_outside_the_matrix_or_named_twice_are_refused(
    cases: ModuleType, op: str, index: list[int], message: str, constant: bool
) -> None:
    # Catches a write outside the packed matrix, and a cell that counts twice here but once in the
    # function body.
    case = cases.MAKERS[op](np.random.default_rng(0), has_rank=False, sparse_frac=1.0)
    num_cells = case.constants["sparse_index"].size
    case.constants["sparse_index"] = np.array(index, np.int64)
    case.constants["sparse_values"] = np.ones(len(index), np.int8)
    assert message.replace("LAST", str(num_cells - 1)) in _adapter_refusal(case, constant)
    case.constants["sparse_index"] = np.array([num_cells], np.int64)
    case.constants["sparse_values"] = np.ones(1, np.int8)
    assert f"got {num_cells}" in _adapter_refusal(case, constant)


def _adapter_refusal(case: Any, constant: bool) -> str:
    """The error of a malformed adapter: when packed at load, or when read in a run."""
    if constant:
        return _refusal(case.model())
    session = runtime.make_session(case.model(constant_adapter=False))
    with pytest.raises(Exception, match="the_node") as caught:
        session.run(None, case.all_inputs())
    return str(caught.value)


@pytest.mark.parametrize("op", [schema.DORA_MATMUL, schema.DORA_CONV])
def test_absurd_size_without_data_is_refused(cases: ModuleType, op: str) -> None:
    # A lora_a of rank 0 has no values, so nothing bounds its other sizes: catches an overflow.
    case = cases.MAKERS[op](np.random.default_rng(0), has_rank=False, sparse_frac=0.0)
    shape = list(case.constants["lora_a"].shape)
    if op == schema.DORA_MATMUL:
        shape[0] = 2**40
    else:
        shape[1:3] = [2**20, 2**11]
    case.constants["lora_a"] = np.zeros(shape, np.int8)
    assert "input lora_a must have at most" in _refusal(case.model())


@pytest.mark.parametrize("part", ["lora_a", "sparse_values"])
def test_adapter_beyond_exact_fp32_is_refused(cases: ModuleType, part: str) -> None:
    # The rule of schema.MAX_CODE_SUM: without it the branch would not be integer arithmetic.
    rng = np.random.default_rng(0)
    has_rank = part == "lora_a"
    case = cases.dora_matmul_case(rng, has_rank=has_rank, sparse_frac=0.0)
    depth = schema.MAX_CODE_SUM // 127 + 1
    c = case.constants
    c["lora_a"] = np.full((depth, c["lora_a"].shape[1]), 127, np.int8)
    if not has_rank:
        c["sparse_values"] = np.full(depth, -127, np.int8)
        c["sparse_index"] = np.arange(depth) * c["lora_b"].shape[1]
    case.feeds["x"] = np.ones((1, depth), np.float32)
    message = _refusal(case.model())
    assert f"sum of |{part}| of" in message
    assert f"must be {schema.MAX_CODE_SUM} at most, got {depth * 127}" in message
    if not has_rank:  # one less is the most that is allowed
        c["sparse_values"][0] += depth * 127 - schema.MAX_CODE_SUM
        runtime.make_session(case.model(shapes={"x": ["rows", depth], "h": ["rows", "N"]}))


@pytest.mark.parametrize("op", [schema.DORA_MATMUL, schema.DORA_CONV])
def test_h_that_does_not_fit_is_refused_when_run(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    h = case.feeds["h"]
    shapes = {"h": [f"h{i}" for i in range(h.ndim)]}
    session = runtime.make_session(case.model(shapes=shapes))
    feeds = {**case.feeds, "h": np.concatenate([h, h], axis=-1)}
    with pytest.raises(Exception, match="input h must have the shape"):
        session.run(None, feeds)
