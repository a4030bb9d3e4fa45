# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import passes, reference
from rimc_onnx.calibration.converter_ranges import measure_ranges
from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges, PeripheryConfig
from rimc_onnx.execution.feed import Feed

Array = np.ndarray[Any, Any]
MakeModel = Callable[..., onnx.ModelProto]


def session(content: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def measure(
    model: onnx.ModelProto, *feeds: Array, tile_rows: int | None = None, **more: Any
) -> dict[str, NodeRanges]:
    teacher = ir.from_proto(model)
    passes.prepare_pipeline()(teacher)
    periphery = PeripheryConfig(tile_rows=tile_rows, dac_bits=8, adc_bits=8, **more)
    config = ConvertConfig(periphery=periphery)
    decisions = passes.select_rram_nodes(teacher, config)
    units = [d.unit for d in decisions if d.unit is not None]
    return measure_ranges(teacher, units, [Feed({"x": f}) for f in feeds], session, config=config)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_ranges_are_the_largest_value_of_small_data(matmul_model: MakeModel) -> None:
    # The range of y for that of x, of the first chunk only, or of signed values.
    weight = rng(0).standard_normal((6, 4), dtype=np.float32)
    chunks = [rng(i).standard_normal((5, 6), dtype=np.float32) for i in (1, 2, 3)]
    found = measure(matmul_model(weight), *chunks)["fc1"]
    every = np.concatenate(chunks)
    assert found.dac_range == np.abs(every).max()
    assert found.adc_range == pytest.approx([np.abs(every @ weight).max()], rel=1e-5)
    assert found.dac_signed is True


def test_bias_is_not_in_the_range_of_the_adc() -> None:
    # The ADC reads the array; the bias is added behind it.
    weight = np.eye(3, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc1")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.full(3, 100, np.float32), "b"),
        ],
    )
    imports = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    found = measure(model, np.float32([[1, -2, 0.5]]))["fc1"]
    assert found.adc_range == (2.0,)
    assert found.dac_range == 2.0


@pytest.mark.parametrize(("low", "signed"), [(-0.001, True), (0.0, False), (0.5, False)])
def test_input_without_negative_values_has_an_unsigned_dac(
    matmul_model: MakeModel, low: float, signed: bool
) -> None:
    # Half the codes of a DAC behind a ReLU lie idle; with one negative value they must not.
    x = np.float32([[low, 1.0, 2.0]])
    found = measure(matmul_model(np.eye(3, dtype=np.float32)), x, np.abs(x))["fc1"]
    assert found.dac_signed is signed


def test_input_of_zeros_gives_a_range_that_can_be_used(matmul_model: MakeModel) -> None:
    # A range of 0 divides by zero in the operator.
    weights = [np.eye(3, dtype=np.float32)] * 2
    for found in measure(matmul_model(*weights), np.zeros((4, 3), np.float32)).values():
        assert found == NodeRanges(dac_range=1.0, dac_signed=False, adc_range=(1.0,))


def test_outlier_is_outside_the_range(matmul_model: MakeModel) -> None:
    # One value of 1000 among 200,000 leaves 3 of 8 bits for all others.
    x = rng(0).uniform(-1, 1, (20_000, 10)).astype(np.float32)
    x[17, 3] = 1000
    found = measure(matmul_model(np.eye(10, dtype=np.float32)), x)["fc1"]
    assert 0.999 < found.dac_range <= 1
    assert 0.999 < found.adc_range[0] <= 1
    inside = (np.abs(x) <= found.dac_range).mean()
    assert inside >= PeripheryConfig().range_percentile / 100


@pytest.mark.parametrize("tile_rows", [None, 4, 5])
def test_range_of_a_tiled_adc_is_that_of_one_tile(
    matmul_model: MakeModel, tile_rows: int | None
) -> None:
    # A range of the sum over all tiles: bits that no tile ever uses.
    weight = np.abs(rng(0).standard_normal((12, 3), dtype=np.float32))
    x = np.abs(rng(1).standard_normal((7, 12), dtype=np.float32))
    found = measure(matmul_model(weight), x, tile_rows=tile_rows)["fc1"]
    tiles = 1 if tile_rows is None else -(-12 // tile_rows)
    rows = -(-12 // tiles)
    partial = [x[:, r : r + rows] @ weight[r : r + rows] for r in range(0, 12, rows)]
    assert found.adc_range == pytest.approx([max(p.max() for p in partial)], rel=1e-6)


def test_percentile_can_be_chosen(matmul_model: MakeModel) -> None:
    x = rng(0).uniform(-1, 1, (2000, 10)).astype(np.float32)
    model = matmul_model(np.eye(10, dtype=np.float32))
    found = measure(model, x, range_percentile=50.0)["fc1"]
    assert found.dac_range == pytest.approx(np.median(np.abs(x)), rel=1e-3)
    assert found.adc_range[0] == pytest.approx(found.dac_range, rel=1e-6)
    assert measure(model, x, range_percentile=100.0)["fc1"].dac_range == np.abs(x).max()


def test_range_of_the_adc_is_that_of_what_the_word_lines_carry(matmul_model: MakeModel) -> None:
    # An ADC sized for straight lines behind a curve, or for whole codes where it reads single bits.
    weight = np.abs(rng(0).standard_normal((6, 3), dtype=np.float32))
    x = rng(1).uniform(0, 1, (50, 6)).astype(np.float32)
    top = float(x.max())
    bent = measure(matmul_model(weight), x, iv_sinh=4.0, input_shrink=0.5)["fc1"]
    carried = np.sinh(2.0 * x.astype(np.float64) / top) / np.sinh(2.0) * top
    assert bent.adc_range[0] == pytest.approx((carried @ weight).max(), rel=1e-5)
    # 8 bits, unsigned: a plane is 0 or 1 in units of top / 255.
    serial = measure(matmul_model(weight), x, dac_serial_bits=1)["fc1"]
    codes = np.rint(x / (top / 255)).astype(np.int64)
    planes = [(codes >> bit & 1) @ weight * (top / 255) for bit in range(8)]
    assert serial.adc_range[0] == pytest.approx(max(p.max() for p in planes), rel=1e-5)


def test_tiles_of_a_convolution_are_whole_channels() -> None:
    # Tiles cut through a kernel window, which the operator never does; grouped, with stride.
    weight = np.abs(rng(0).standard_normal((4, 6, 2, 2), dtype=np.float32))
    x = np.abs(rng(1).standard_normal((2, 12, 5, 5), dtype=np.float32))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2, strides=[2, 2])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 2, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    found = measure(model, x, tile_rows=8)["conv"]  # 2 channels of 4 word lines a tile
    largest = 0.0
    for tile in range(3):
        only = np.zeros_like(weight)
        only[:, 2 * tile : 2 * tile + 2] = weight[:, 2 * tile : 2 * tile + 2]
        y = reference.rram_conv(
            x, only, strides=(2, 2), pads=(0,) * 4, dilations=(1, 1), group=2, num_tiles=1,
            dac_bits=0, dac_range=1.0, dac_signed=1, adc_bits=0, adc_range=[1.0],
        )  # fmt: skip
        largest = max(largest, float(np.abs(y).max()))
    assert found.adc_range == pytest.approx([largest], rel=1e-5)
