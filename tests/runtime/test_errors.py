# SPDX-License-Identifier: Apache-2.0
"""Malformed nodes are refused with one line that says what is wrong, and nothing crashes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rimc_onnx import opset, runtime

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
    ({"adc_bits": 1}, "adc_bits must be 0 (ideal) or 2..24, got 1"),
    ({"adc_bits": -8}, "adc_bits must be 0 (ideal) or 2..24, got -8"),
    ({"adc_range": [-1.0]}, "adc_range must be positive and finite, got -1"),
    ({"adc_range": [1.0, 1.0]}, "adc_range must have 1 or"),
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


@pytest.mark.parametrize("op", [opset.RRAM_MATMUL, opset.RRAM_CONV])
def test_weights_that_are_a_graph_input_are_refused(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    message = _refusal(case.model(constant_adapter=False))
    assert "input w must be an initializer or a constant" in message


@pytest.mark.parametrize("op", [opset.RRAM_MATMUL, opset.RRAM_CONV])
def test_weights_of_a_wrong_rank_are_refused(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    case.constants["w"] = case.constants["w"].reshape(-1)
    assert "input w must have" in _refusal(case.model())


@pytest.mark.parametrize("op", [opset.RRAM_MATMUL, opset.RRAM_CONV])
def test_x_that_does_not_fit_is_refused_when_run(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    x = np.concatenate([case.feeds["x"]] * 2, axis=-1 if op == opset.RRAM_MATMUL else 1)
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
    ("x_scale", np.zeros(1, np.float32), "input x_scale must be positive, got 0"),
    ("x_scale", np.ones(2, np.float32), "input x_scale must have 1 values"),
    ("rank_step", np.ones(99, np.float32), "input rank_step must have"),
    ("bias", np.ones(999, np.float32), "input bias must have"),
    ("magnitude", np.ones(999, np.int8), "input magnitude must have"),
    ("lora_b_scale", np.ones(999, np.float32), "input lora_b_scale must have"),
    ("lora_a", np.ones(3, np.int8), "input lora_a must have"),
    ("lora_b", np.ones((1, 1), np.int8), "input lora_b must have the shape"),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("name", "value", "message"), ADAPTER)
@pytest.mark.parametrize("op", [opset.DORA_MATMUL, opset.DORA_CONV])
def test_malformed_adapter_is_refused(
    cases: ModuleType, op: str, name: str, value: Any, message: str, constant: bool
) -> None:
    # Both when packed at load and when read in a run.
    case = cases.MAKERS[op](np.random.default_rng(0))
    assert case.constants[name].shape != value.shape or not value.any()
    case.constants[name] = value
    if constant:
        assert message in _refusal(case.model())
        return
    session = runtime.make_session(case.model(constant_adapter=False))
    with pytest.raises(Exception, match="the_node") as caught:
        session.run(None, case.all_inputs())
    assert message in str(caught.value)


def test_adapter_beyond_exact_fp32_is_refused(cases: ModuleType) -> None:
    # The rule of opset.MAX_LORA_A_L1: without it the branch would not be integer arithmetic.
    rng = np.random.default_rng(0)
    case = cases.dora_matmul_case(rng)
    depth = opset.MAX_LORA_A_L1 // 127 + 1
    case.constants["lora_a"] = np.full(
        (depth, case.constants["lora_a"].shape[1]), 127, dtype=np.int8
    )
    case.feeds["x"] = np.ones((1, depth), np.float32)
    assert f"must be {opset.MAX_LORA_A_L1} at most, got {depth * 127}" in _refusal(case.model())


@pytest.mark.parametrize("op", [opset.DORA_MATMUL, opset.DORA_CONV])
def test_h_that_does_not_fit_is_refused_when_run(cases: ModuleType, op: str) -> None:
    case = cases.MAKERS[op](np.random.default_rng(0))
    h = case.feeds["h"]
    shapes = {"h": [f"h{i}" for i in range(h.ndim)]}
    session = runtime.make_session(case.model(shapes=shapes))
    feeds = {**case.feeds, "h": np.concatenate([h, h], axis=-1)}
    with pytest.raises(Exception, match="input h must have the shape"):
        session.run(None, feeds)
