# SPDX-License-Identifier: Apache-2.0
"""What is written around the arrays of a converted node."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from rimc_onnx import reference
from rimc_onnx.crossbar import ArrayLayout, apply_ir_drop
from rimc_onnx.crossbar.config import ConvertConfig, NodeRanges, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import Purpose, Scaling, get_preset, program, read_key, standard_normals
from rimc_onnx.errors import ConfigError, NodeMappingError
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes import (
    AgeRramPass,
    check_rimc_model,
    convert_model,
    find_units,
    prepare_pipeline,
)

RNG = np.random.default_rng(23)
IDEAL = get_preset("gaussian-relative", drift_frac=0.0)
PLAIN: dict[str, Any] = {"scaling": Scaling.NODE, "clip_sigma": math.inf}
RANGES = {"MatMul_0": NodeRanges(dac_range=1.5, adc_range=(8.0,))}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def converted(build: Any, w: np.ndarray, device: Any = IDEAL, **periphery: Any) -> ir.Model:
    model = build(f"g (float[9,{len(w)}] x) => (float y) {{ y = MatMul(x, w) }}", w=w)
    config = ConvertConfig(device=device, seed=3, periphery=PeripheryConfig(**periphery))
    convert_model(model, config, RANGES)
    check_rimc_model(model)
    return model


def attributes(model: ir.Model) -> dict[str, Any]:
    return {name: a.value for name, a in model.graph[0].attributes.items()}


EVERYTHING = {
    "tile_rows": 16,
    "dac_bits": 6,
    "dac_serial_bits": 2,
    "adc_bits": 7,
    "iv_sinh": 2.0,
    "input_shrink": 0.5,
    "adc_gain_error_frac": 0.05,
    "adc_offset_error_frac": 0.02,
    "read_noise_frac": 0.03,
    "wire_ohm": 2.0,
}


def test_ideal_periphery_is_neutral(build):
    # A file that computes what it did before, and kernels that see every feature off.
    found = attributes(converted(build, normal(40, 5)))
    assert {
        name: found[name]
        for name in (
            *("dac_serial_bits", "iv_sinh", "input_shrink", "adc_gain", "adc_offset"),
            *("read_noise", "read_noise_relative", "read_noise_curve", "read_key"),
            *("wire_ohm", "dac_range"),
        )
    } == {
        "dac_serial_bits": 0,
        "iv_sinh": 0.0,
        "input_shrink": 1.0,
        "adc_gain": (1.0,),
        "adc_offset": (0.0,),
        "read_noise": 0.0,
        "read_noise_relative": 0,
        "read_noise_curve": (0.0,),
        "read_key": 0,
        "wire_ohm": 0.0,
        "dac_range": 1.0,
    }


def test_everything_at_once_is_the_oracle_in_the_body(build, run):
    # An attribute that is written in other units, or in another order, than the operator reads it.
    w = normal(40, 5)
    model = converted(build, w, **(EVERYTHING | {"read_noise_frac": None}))
    x = normal(9, 40)
    found = attributes(model)
    names = set(reference.Periphery.__dataclass_fields__)
    given = {name: value for name, value in found.items() if name in names}
    realised = model.graph[0].inputs[1].const_value.numpy()
    want = reference.rram_matmul(x, realised, **given)
    off = np.abs(run(model, x=x)[0] - want)
    # A tie of a plane costs one code of its weight, seldom; all else agrees.
    code = found["adc_range"][0] / 63
    assert (off > 0.5 * code).mean() < 0.05
    assert off[off <= 0.5 * code].max() < 1e-4


def test_errors_of_converters_are_draws_of_tile_and_bit_line(build):
    # One error for all, bit lines of one tile in the places of another, or errors that all nodes
    # share.
    found = attributes(converted(build, normal(40, 5), **EVERYTHING))
    for name, purpose, middle, sigma in (
        ("adc_gain", Purpose.ADC_GAIN, 1.0, 0.05),
        ("adc_offset", Purpose.ADC_OFFSET, 0.0, 0.02),
    ):
        z = standard_normals(
            seed=3, node="MatMul_0", device=0, purpose=purpose, start=0, count=3 * 5
        )
        assert found[name] == pytest.approx(middle + sigma * z, abs=1e-7)
    assert found["read_key"] == read_key(seed=3, node="MatMul_0")


def test_shrunk_inputs_leave_the_adc_its_full_scale(build):
    # A range that shrinks with the signal: less of the curve would then cost nothing.
    bent = attributes(converted(build, normal(8, 5), adc_bits=7, iv_sinh=2.0, input_shrink=0.5))
    assert bent["adc_range"] == pytest.approx([8.0 * np.sinh(2.0) / np.sinh(1.0)])
    linear = attributes(converted(build, normal(8, 5), adc_bits=7, input_shrink=0.5))
    assert linear["adc_range"] == pytest.approx([16.0])
    assert attributes(converted(build, normal(8, 5), adc_bits=7))["adc_range"] == (8.0,)


def test_bits_in_turn_are_no_more_than_there_are(build):
    # A signed DAC of 6 bits has 5 of magnitude: the operator refuses to take 6 at a time.
    model = converted(build, normal(8, 5), dac_bits=6, dac_serial_bits=5)
    assert attributes(model)["dac_serial_bits"] == 5
    with pytest.raises(
        ConfigError, match=r"`dac_serial_bits` must lie in 1\.\.5 with `dac_bits` 6"
    ):
        PeripheryConfig(dac_bits=6, dac_serial_bits=6)


def test_wires_are_in_the_weight_and_not_in_the_target(build):
    # Wires that change W_max, or that are left out of the file.
    w = normal(40, 20)
    device = get_preset("gaussian-absolute", drift_frac=0.05, **PLAIN)
    model = converted(build, w, device, tile_rows=16, wire_ohm=3.0)
    arguments = {"node": "MatMul_0", "seed": 3, "config": device, "column_axis": 1}
    programmed = program(w, keep_conductances=True, **arguments)
    want = apply_ir_drop(
        programmed,
        node="MatMul_0",
        g_max_us=40.0,
        wire_ohm=3.0,
        layout=ArrayLayout(
            geometry=NodeGeometry(weight_shape=w.shape), num_tiles=3, tile_columns=16
        ),
    )
    got = model.graph[0].inputs[1].const_value.numpy()
    assert got.tobytes() == want.tobytes()
    assert not np.array_equal(got, programmed.w_realised)
    assert attributes(model)["wire_ohm"] == 3.0
    assert attributes(model)["w_max"] == (float(np.abs(w).max()),)


@pytest.mark.parametrize(
    "device",
    [
        get_preset("gaussian-relative", g_min_us=1.0),
        get_preset("gaussian-absolute"),
    ],
    ids=lambda d: d.preset,
)
def test_relative_noise_needs_to_know_both_conductances(build, device):
    # Noise of a weight in place of the noise of two devices that hold more than their difference.
    with pytest.raises(NodeMappingError, match="needs both conductances of a pair"):
        converted(
            build,
            normal(8, 5),
            device,
            read_noise_frac=0.05,
            read_noise_law=ReadNoiseLaw.RELATIVE,
        )
    converted(build, normal(8, 5), device, read_noise_frac=0.05)
    quiet = get_preset("gaussian-absolute", drift_frac=0.0)
    model = converted(
        build, normal(8, 5), quiet, read_noise_frac=0.05, read_noise_law=ReadNoiseLaw.RELATIVE
    )
    assert attributes(model)["read_noise_relative"] == 1


def test_noise_of_pairs_that_share_a_weight_adds_up(build):
    # Four pairs in parallel halve the noise; of two slices of 2 bits the upper one counts 4 of 5.
    parallel = get_preset("gaussian-absolute", devices_per_weight=4)
    model = converted(build, normal(8, 5), parallel, read_noise_frac=0.1)
    assert attributes(model)["read_noise"] == pytest.approx(0.05)
    sliced = get_preset("gaussian-absolute", level_bits=2, num_slices=2)
    model = converted(build, normal(8, 5), sliced, read_noise_frac=0.1)
    assert attributes(model)["read_noise"] == pytest.approx(0.1 * np.hypot(0.2, 0.8))


def test_aged_arrays_are_seen_through_the_same_wires(build):
    # Wires that are lost, that differ in the last bits of their resistance, or of arrays of
    # another height, when the arrays are made again.
    device = get_preset("wan2022-aihwkit", **PLAIN)
    w = normal(40, 20)
    model = converted(build, w, device, tile_rows=16, wire_ohm=0.3)
    text = "g (float[9,40] x) => (float y) { y = MatMul(x, w) }"
    teacher = build(text, w=w)
    prepare_pipeline()(teacher)
    day = 86400.0
    AgeRramPass(find_units(teacher), day)(model)
    programmed = program(
        w,
        node="MatMul_0",
        seed=3,
        config=device,
        column_axis=1,
        time_s=day,
        keep_conductances=True,
    )
    want = apply_ir_drop(
        programmed,
        node="MatMul_0",
        g_max_us=device.g_max_us,
        wire_ohm=float(np.float32(0.3)),
        layout=ArrayLayout(
            geometry=NodeGeometry(weight_shape=w.shape), num_tiles=3, tile_columns=16
        ),
    )
    assert model.graph[0].inputs[1].const_value.numpy().tobytes() == want.tobytes()


def test_word_lines_that_bend_need_a_range(build):
    model = build("g (float[2,4] x) => (float y) { y = MatMul(x, w) }", w=normal(4, 3))
    with pytest.raises(NodeMappingError, match="have no range"):
        convert_model(model, ConvertConfig(periphery=PeripheryConfig(iv_sinh=1.0)), {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"read_noise_frac": 0.0}, "`read_noise_frac` must be above 0 and at most 1, got 0.0"),
        ({"read_noise_frac": 5}, "`read_noise_frac` must be above 0 and at most 1, got 5"),
        ({"read_noise_frac": float("nan")}, "`read_noise_frac` must be above 0"),
        ({"read_noise_law": "relative"}, "`read_noise_law` must be a ReadNoiseLaw"),
        ({"iv_sinh": 0.0}, "`iv_sinh` must be above 0 and at most 6, got 0.0"),
        ({"iv_sinh": 6.5}, "`iv_sinh` must be above 0 and at most 6, got 6.5"),
        ({"input_shrink": 0.0}, "`input_shrink` must be above 0 and at most 1"),
        ({"input_shrink": 1.5}, "`input_shrink` must be above 0 and at most 1"),
        ({"adc_gain_error_frac": 0.01}, "`adc_gain_error_frac` is an error of an ADC"),
        ({"adc_offset_error_frac": 0.01}, "`adc_offset_error_frac` is an error of an ADC"),
        ({"adc_bits": 8, "adc_gain_error_frac": 0.2}, "`adc_gain_error_frac` must be above 0"),
        ({"dac_serial_bits": 1}, "there are no input bits to take in turn"),
        ({"dac_bits": 4, "dac_serial_bits": 0}, r"`dac_serial_bits` must lie in 1\.\.3"),
        ({"wire_ohm": 0.0}, "`wire_ohm` must be above 0 and at most 1000, got 0.0"),
        ({"wire_ohm": -1.0}, "`wire_ohm` must be above 0"),
        ({"range_percentile": 0.9999}, "`range_percentile` must lie in 50..100 percent"),
        ({"range_percentile": 101.0}, "`range_percentile` must lie in 50..100 percent"),
        ({"range_percentile": float("nan")}, "`range_percentile` must lie in 50..100 percent"),
    ],
)
def test_value_out_of_range_is_an_error(given, message):
    with pytest.raises(ConfigError, match=message):
        PeripheryConfig(**given)
