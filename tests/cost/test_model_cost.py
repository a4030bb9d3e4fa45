# SPDX-License-Identifier: Apache-2.0
"""Counts of an inference by hand, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import api
from rimc_onnx.cost import energy
from rimc_onnx.cost.constants import default_constants
from rimc_onnx.cost.counts import array_counts, branch_counts
from rimc_onnx.cost.shapes import inferred_shapes, seen_shapes, zero_feed
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import Scaling, get_preset
from rimc_onnx.errors import ModelError
from rimc_onnx.execution.sessions import native_session
from rimc_onnx.io.model_files import load_model
from rimc_onnx.passes import rram_branches

AT = default_constants().values()


def conv_model(path: Path, *, group: int = 1, free: bool = False) -> None:
    """12 channels of 10 x 8 to 20, 3 x 3, stride 2 in one direction: 5 x 8 positions."""
    weight = np.linspace(-1, 1, 20 * (12 // group) * 9, dtype=np.float32)
    height = "H" if free else 10
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv", ["x", "w"], ["h"], "conv", strides=[2, 1], pads=[1] * 4, group=group
            ),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("Add", ["r", "r"], ["y"], "add"),
        ],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12, height, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.reshape(20, 12 // group, 3, 3), "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)


def converted(folder: Path, config: ConvertConfig | None = None, **model: Any) -> Path:
    conv_model(folder / "m.onnx", **model)
    np.savez(folder / "ranges.npz", x=np.random.default_rng(0).random((2, 12, 10, 8), np.float32))
    api.convert(folder / "m.onnx", config=config, data=folder / "ranges.npz", force=True)
    return folder / "m.rimc.onnx"


def test_a_convolution_is_counted_as_by_hand(tmp_path: Path) -> None:
    # Positions of the input in place of the output's, a stride left out, tiles counted as blocks.
    model = load_model(converted(tmp_path))
    (branch,) = rram_branches(model)
    found = array_counts(branch, inferred_shapes(model), AT)
    assert found.activations == 5 * 8
    assert found.macs == 40 * 20 * 108
    assert found.word_lines == 108  # 20 columns are one block
    assert found.bit_lines == 20  # 108 word lines are one tile
    assert (found.cycles, found.pulses, found.adc_bits, found.input_bits) == (1, 1, 8, 8)
    assert (found.adcs, found.in_turn, found.devices) == (1, 20, 2 * 2160)
    # |w| from -1 to 1 by equal steps has the mean 0.5, and the file's weights are drifted ones.
    assert found.conductance_us == pytest.approx(0.5 * 40 * 2160, rel=0.02)
    branch_count = branch_counts(branch, 40)
    assert branch_count.macs == 40 * (108 * 4 + 4 * 20)


def test_tiles_slices_and_serial_inputs_multiply_conversions(tmp_path: Path) -> None:
    # An ADC for every tile, slice and plane of input bits: a model that forgets one is cheap.
    plain = load_model(converted(tmp_path))
    device = get_preset("gaussian-relative", level_bits=4, num_slices=2, devices_per_weight=3)
    periphery = PeripheryConfig(tile_rows=36, dac_bits=8, adc_bits=6, dac_serial_bits=2)
    config = ConvertConfig(device=device, periphery=periphery)
    model = load_model(converted(tmp_path, config))
    (before,), (after,) = rram_branches(plain), rram_branches(model)
    one = array_counts(before, inferred_shapes(plain), AT)
    more = array_counts(after, inferred_shapes(model), AT)
    assert more.row_tiles == 3
    assert more.bit_lines == 3 * 2 * one.bit_lines
    assert more.devices == 6 * one.devices
    assert more.cycles == 4  # 8 bits of inputs that are never negative, 2 at a time
    assert more.adc_bits == 6
    assert more.word_lines == one.word_lines
    cost = energy.activation_pj(one, AT), energy.activation_pj(more, AT)
    assert cost[1]["ADC"] == pytest.approx(cost[0]["ADC"] * 3 * 2 * 4 * 6 / 8)
    assert cost[1]["DAC"] == pytest.approx(4 * cost[0]["DAC"])


@pytest.mark.parametrize("is_conv", [True, False])
def test_columns_with_a_w_max_of_their_own_fill_their_devices(
    tmp_path: Path, matmul_model: Callable[..., Any], is_conv: bool
) -> None:
    # Weights of one column held against the W_max of another, or of a wrong axis.
    rows = np.linspace(0.1, 1, 12)[:, None] * np.ones((12, 8))
    weight = np.float32(rows * 10.0 ** np.arange(8))
    model = matmul_model(weight)
    if is_conv:
        conv_model(tmp_path / "m.onnx")
        model = onnx.load(tmp_path / "m.onnx")
        kernels = np.broadcast_to(10.0 ** np.arange(20)[:, None, None, None], (20, 12, 3, 3))
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(kernels), "w"))
    onnx.save(model, tmp_path / "c.onnx")
    device = get_preset("gaussian-relative", drift_frac=0.0, scaling=Scaling.COLUMN)
    api.convert(tmp_path / "c.onnx", config=ConvertConfig(device=device))
    (branch,) = rram_branches(load_model(tmp_path / "c.rimc.onnx"))
    shapes = {branch.h.name or "": (1, branch.geometry.columns)}
    found = array_counts(branch, shapes, AT)
    share = 1.0 if is_conv else float(rows[:, 0].mean())
    assert found.conductance_us == pytest.approx(40 * branch.geometry.num_weights * share)


def test_groups_have_arrays_of_their_own(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path, group=4))
    (branch,) = rram_branches(model)
    found = array_counts(branch, inferred_shapes(model), AT)
    assert found.macs == 40 * 20 * 27
    assert (found.word_lines, found.bit_lines) == (4 * 27, 20)
    # 27 word lines and 5 bit lines each: the four lie in one array and share its ADC.
    assert (found.adcs, found.in_turn) == (1, 20)
    narrow = array_counts(branch, inferred_shapes(model), {**AT, "structure.rows": 60.0})
    assert (narrow.adcs, narrow.in_turn) == (2, 10)


def test_wide_nodes_drive_their_word_lines_once_for_every_block(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path))
    (branch,) = rram_branches(model)
    narrow = {**AT, "structure.columns": 8.0, "structure.columns_per_adc": 4.0}
    found = array_counts(branch, inferred_shapes(model), narrow)
    assert found.word_lines == 3 * 108
    assert (found.in_turn, found.adcs) == (4, 6)


def test_shapes_seen_in_a_run_are_those_inferred(tmp_path: Path) -> None:
    # A stand-in for a crossbar that loses a stride or a pad.
    model = load_model(converted(tmp_path))
    feed = {"x": np.zeros((1, 12, 10, 8), np.float32)}
    seen, inferred = seen_shapes(model, feed, native_session), inferred_shapes(model)
    made = {o.name for node in model.graph for o in node.outputs}
    assert {n: s for n, s in inferred.items() if n in made} == {
        n: s for n, s in seen.items() if n in made
    }


def test_free_axes_need_a_sample_and_the_error_says_so(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = converted(tmp_path, free=True)
    with pytest.raises(ModelError, match="`data`"):
        api.inference_cost(path)
    line = fails(tmp_path, 1, "inspect", path.name, "--cost")
    assert "'conv/rram' (RramConv)" in line
    assert "Give --data with a sample" in line
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 12, 20, 8), np.float32))
    report = api.inference_cost(path, data=tmp_path / "x.npz")
    assert report.nodes[0].activations == 10 * 8  # of one sample, not of three


def test_shapes_that_inference_does_not_get_are_seen_in_a_run_of_zeros(tmp_path: Path) -> None:
    # EfficientNet pads by numbers that it computes: every axis is known, and no shape behind them.
    conv_model(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    shape = numpy_helper.from_array(np.float32([1, 20, 40]), "floats")
    model.graph.initializer.append(shape)
    model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("Floor", ["floats"], ["floor"], "floor"),
            helper.make_node("Cast", ["floor"], ["shape"], "cast", to=TensorProto.INT64),
            helper.make_node("Reshape", ["r", "shape"], ["flat"], "reshape"),
            helper.make_node("Add", ["flat", "flat"], ["y"], "add"),
        ]
    )
    onnx.save(model, tmp_path / "m.onnx")
    api.convert(tmp_path / "m.onnx")
    graph = load_model(tmp_path / "m.rimc.onnx")
    assert "flat" not in inferred_shapes(graph)
    (add,) = (n for n in api.inference_cost(tmp_path / "m.rimc.onnx").nodes if n.name == "add")
    moved = 3 * 800 * (AT["sram.energy_pj_per_byte"] + AT["bus.energy_pj_per_byte"])
    assert 1e3 * add.energy_nj == pytest.approx(moved + 800 * AT["digital.elementwise_pj"])


def test_sums_are_those_of_parts_and_of_nodes(digits_job: Path) -> None:
    # A part that is counted twice, or a node that is in no part.
    report = api.inference_cost(digits_job / "model.rimc.calibrated.onnx")
    assert sum(p.energy_nj for p in report.parts) == pytest.approx(report.energy_nj)
    assert sum(n.energy_nj for n in report.nodes) == pytest.approx(report.energy_nj)
    assert sum(p.area_mm2 for p in report.parts) == pytest.approx(report.area_mm2)
    assert sum(n.latency_us for n in report.nodes) == pytest.approx(report.latency_us)
    assert report.energy_low_nj < report.energy_nj < report.energy_high_nj
    assert report.area_low_mm2 < report.area_mm2 < report.area_high_mm2
    assert report.sram_bytes == api.inspect(digits_job / "model.rimc.calibrated.onnx").sram_bytes
    assert [p.name for p in report.parts] == list(energy.PARTS)
    assert all(p.energy_nj > 0 for p in report.parts)


def test_int8_pays_for_products_and_weights_and_nothing_else(tmp_path: Path) -> None:
    # "The same assumptions": inputs, outputs and the digital rest have to cancel.
    path = converted(tmp_path)
    report = api.inference_cost(path)
    model = load_model(path)
    (branch,) = rram_branches(model)
    found = array_counts(branch, inferred_shapes(model), AT)
    shared = sum(p.energy_nj for p in report.parts if p.name in {"buffers", "buses"})
    rest = next(p.energy_nj for p in report.parts if p.name == "digital rest")
    own = report.int8_nj - shared - rest
    sums = 40 * 20 * AT["shift_add.energy_pj"]
    assert 1e3 * own == pytest.approx(found.macs * 0.3 + 2160 * 1.25 + sums)
    assert report.int8_dram_nj - report.int8_nj == pytest.approx(2160 * (160 - 1.25) / 1e3)


def test_an_addition_moves_its_inputs_and_an_activation_does_not(tmp_path: Path) -> None:
    report = api.inference_cost(converted(tmp_path))
    relu, add = (next(n for n in report.nodes if n.name == name) for name in ("relu", "add"))
    elements = 20 * 40
    compute = elements * AT["digital.elementwise_pj"] / 1e3
    moved = 3 * elements * (AT["sram.energy_pj_per_byte"] + AT["bus.energy_pj_per_byte"]) / 1e3
    assert relu.energy_nj == pytest.approx(compute)
    assert add.energy_nj == pytest.approx(compute + moved)


def test_command_line_and_report_of_a_calibration_have_the_cost(
    digits_job: Path, cli: Callable[..., Any]
) -> None:
    found = cli("inspect", "model.rimc.calibrated.onnx", "--cost", "--json", cwd=digits_job).json()
    report = json.loads((digits_job / "model.rimc.calibrated.report.json").read_text())
    assert found["cost"]["constants"] is None
    assert report["cost"] == found["cost"]
    text = cli("inspect", "model.rimc.calibrated.onnx", "--cost", "--explain", cwd=digits_job)
    assert "Tang et al. 2025: 2 %" in text.stdout
    for constant in default_constants().all():
        assert constant.name in text.stdout
    assert cli("inspect", "model.rimc.onnx", "--json", cwd=digits_job).json()["cost"] is None


def test_latency_is_the_slower_of_reading_and_converting(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path))
    (branch,) = rram_branches(model)
    found = array_counts(branch, inferred_shapes(model), AT)
    assert energy.array_ns(found, AT) == pytest.approx(40 * 20 * 0.83)
    slow = {**AT, "array.read_pulse_ns": 100.0}
    assert energy.array_ns(found, slow) == pytest.approx(40 * 100)
    twice = replace(found, cycles=2, pulses=2)
    assert energy.array_ns(twice, AT) == pytest.approx(2 * 40 * 20 * 0.83)


def test_a_sample_of_zeros_is_not_made_of_a_size_below_zero(digits_job: Path) -> None:
    # Exporters write -1 for what is free: numpy has no such array, and calibration ended there.
    model = load_model(digits_job / "model.onnx")
    (value,) = (v for v in model.graph.inputs if v.name == "input")
    assert zero_feed(model) is not None
    value.shape = ir.Shape(["batch", 1, -1, 8])
    assert zero_feed(model) is None
