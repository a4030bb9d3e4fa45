# SPDX-License-Identifier: Apache-2.0
"""Device models of one's own, clipped weights and periphery in sessions of ordinary models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import PLAIN, needs_providers

from rimc_onnx import convert
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import DeviceConfig, Scaling, get_preset, load_device
from rimc_onnx.errors import ConfigError, OutputError, UsageError
from rimc_onnx.jobs.provider_options import provider_options
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.runtime import make_session
from rimc_onnx.runtime.provider import last_mapping, provider_session

pytestmark = needs_providers

ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray[Any, Any]

POINTS = """
law = "measured"
g_max_us = 60.0
g_min_us = 2.0
scaling = "column"
clip_sigma = "none"
devices_per_weight = 2
stuck_min_frac = 0.01
[programming_sigma_us]
kind = "points"
g_us = [1.0, 10.0, 33.0, 70.0]
values = [0.4, 1.9, 2.7, 0.6]
[time_law]
kind = "sigma-at-times"
t0_s = 1.0
times_s = [60.0, 3600.0]
sigma_us = [3.0, {kind = "saturating", amplitude = 4.0, g_scale_us = 11.0}]
mean_us = [{kind = "polynomial", coefficients = [0.0, -0.02]}, -1.5]
"""
POWER = """
base = "pcm-natcomm2020"
preset = "own-pcm"
scaling = "node"
clip_sigma = 2.5
level_bits = 5
num_slices = 2
read_noise_frac = 0.01
"""


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def small_model(folder: Path) -> Path:
    """Conv with groups, Gemm with a transposed weight, MatMul, all with biases; samples beside."""
    constants = {"w1": normal(1, 24, 4, 3, 3), "w2": normal(2, 40, 24), "w3": normal(3, 40, 11)}
    constants |= {"b1": normal(6, 24), "b2": normal(7, 40), "b3": normal(8, 11)}
    gemm = {"transB": 1, "alpha": 0.75, "beta": 2.0}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="conv", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "w2", "b2"], ["h"], name="gemm", **gemm),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w3"], ["p"], name="fc;1"),
        helper.make_node("Add", ["p", "b3"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 11])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "calibration.npz", x=normal(4, 12, 8, 6, 6))
    return folder / "model.onnx"


def assert_as_converted(
    model: Path, config: ConvertConfig, options: dict[str, str], data: Path | None = None
) -> None:
    """Three runs of both are equal, bit for bit: read noise counts them."""
    convert(model, model.with_name("as.rimc.onnx"), config=config, data=data, force=True)
    x = normal(5, 7, 8, 6, 6)
    own = provider_session(model, provider_options=options)
    assert [m.reason for m in last_mapping()] == [None] * 3
    converted = make_session(model.with_name("as.rimc.onnx"))
    for _ in range(3):
        # The identity branch adds zeros and multiplies by 1: it changes the sign of a zero at most.
        np.testing.assert_array_equal(own.run(None, {"x": x})[0], converted.run(None, {"x": x})[0])


# ------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("time_s", [None, 700.0])
@pytest.mark.parametrize("text", [POINTS, POWER])
def test_model_of_ones_own_is_programmed_as_a_conversion_does(
    tmp_path: Path, text: str, time_s: float | None
) -> None:
    # A field that C++ leaves at its default, points read as a polynomial, times of doubles.
    (tmp_path / "own.toml").write_text(text)
    config = ConvertConfig(device=load_device(tmp_path / "own.toml"), time_s=time_s, seed=11)
    model = small_model(tmp_path)
    options = provider_options(model, config=config)
    assert DeviceConfig.from_json(options["device"]) == config.device
    assert_as_converted(model, config, options)


def test_sample_device_runs_in_a_session(tmp_path: Path) -> None:
    own = load_device(ROOT / "samples" / "devices" / "own.toml", **PLAIN)
    config = ConvertConfig(device=own)
    model = small_model(tmp_path)
    assert_as_converted(model, config, provider_options(model, config=config))


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("numbers", [{}, {"drift_frac": 0.0}, {"level_bits": 4, "drift_frac": 0.0}])
@pytest.mark.parametrize("clip_sigma", [0.3, 2.0, 1e3])
def test_weights_are_clipped_as_a_conversion_clips_them(
    tmp_path: Path, clip_sigma: float, numbers: dict[str, float], scaling: Scaling
) -> None:
    # A standard deviation of another last bit, clipping lost where nothing else errs, a column that
    # is clipped by its neighbour's deviation.
    device = get_preset("gaussian-absolute", scaling=scaling, clip_sigma=clip_sigma, **numbers)
    model = small_model(tmp_path)
    options = {"preset": device.preset, "scaling": scaling.value, "clip_sigma": str(clip_sigma)}
    assert_as_converted(
        model, ConvertConfig(device=device), options | {k: str(v) for k, v in numbers.items()}
    )


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("device", ["gaussian-absolute", "pcm-natcomm2020"])
def test_chosen_mapping_of_every_node_is_that_of_a_conversion(
    tmp_path: Path, device: str, with_data: bool
) -> None:
    # A node with the scaling or the limit of another one; clipping of one node lost where the
    # device as a whole clips none; a choice that heeds the data here and not there.
    model = small_model(tmp_path)
    data = model.with_name("calibration.npz") if with_data else None
    config = ConvertConfig(device=get_preset(device), seed=4)
    options = provider_options(model, config=config, data=data)
    assert "clip_sigma" in options["device"]
    assert_as_converted(model, config, options, data)
    stated = ["gemm", {"scaling": "node", "clip_sigma": 0.5}], ["conv", {"clip_sigma": None}]
    config = ConvertConfig(
        device=get_preset(device, scaling=Scaling.COLUMN, clip_sigma=2.0),
        node_devices={
            "gemm": get_preset(device, scaling=Scaling.NODE, clip_sigma=0.5),
            "conv": get_preset(device, scaling=Scaling.COLUMN, clip_sigma=math.inf),
        },
    )
    options = {"device": config.device.to_json(), "mapping": json.dumps(dict(stated))}
    assert_as_converted(model, config, options)


def test_deviation_of_columns_of_all_kinds_is_exact(tmp_path: Path) -> None:
    # The 128-bit quotient: columns of zeros, of one value, of huge and tiny spread; a mean that
    # cancels nearly all of the second moment.
    w = np.zeros((3000, 12), np.float32)
    w[:, 1] = 0.7
    w[:, 2] = 1.0
    w[0, 2] = np.nextafter(np.float32(1), np.float32(0))
    w[0, 3] = 1e-30
    w[:, 4:8] = normal(1, 3000, 4) * np.float32([1e-20, 1e20, 1, 3])
    w[:, 8] = 1000 + normal(2, 3000)
    w[::2, 9] = -1
    w[1::2, 9] = 1
    w[:, 10] = np.arange(3000)
    w[-1, 11] = -3
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 12])],
        [numpy_helper.from_array(w, "w")],
    )
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    x = np.eye(3000, dtype=np.float32)
    for scaling in Scaling:
        device = get_preset("gaussian-relative", clip_sigma=1.7, scaling=scaling, drift_frac=0.0)
        out = tmp_path / f"{scaling.value}.rimc.onnx"
        convert(path, out, config=ConvertConfig(device=device))
        options = {"preset": device.preset, "clip_sigma": "1.7", "scaling": scaling.value}
        got = provider_session(path, provider_options=options | {"drift_frac": "0"}).run(
            None, {"x": x}
        )
        np.testing.assert_array_equal(got[0], make_session(out).run(None, {"x": x})[0])


# ------------------------------------------------------------------------------- periphery


@pytest.mark.parametrize(
    "periphery",
    [
        PeripheryConfig(dac_bits=6),
        PeripheryConfig(tile_rows=18, adc_bits=7),
        PeripheryConfig(
            tile_rows=40, adc_bits=8, adc_gain_error_frac=0.05, adc_offset_error_frac=0.02
        ),
        PeripheryConfig(tile_rows=16, dac_bits=5, adc_bits=6, dac_serial_bits=2),
        PeripheryConfig(iv_sinh=2.0, input_shrink=0.7),
        PeripheryConfig(iv_sinh=2.5, input_shrink=0.5, dac_bits=8, adc_bits=9, tile_rows=27),
        PeripheryConfig(read_noise_frac=0.02),
        PeripheryConfig(read_noise_frac=0.05, read_noise_law=ReadNoiseLaw.RELATIVE, tile_rows=20),
        PeripheryConfig(read_noise_frac=0.01, tile_rows=12, adc_bits=8, dac_bits=8),
    ],
    ids=["dac", "adc", "errors", "serial", "curve", "curve and converters", "noise", "relative",
         "noise and converters"],
)  # fmt: skip
@pytest.mark.parametrize("in_file", [False, True])
def test_periphery_computes_what_a_converted_model_computes(
    tmp_path: Path, periphery: PeripheryConfig, in_file: bool
) -> None:
    # An attribute or a bias that is dropped, tiles of another depth, W_max after drift, draws of
    # another key.
    device = get_preset("gaussian-relative", scaling=Scaling.COLUMN)
    config = ConvertConfig(device=device, seed=2**40 + 3, periphery=periphery)
    model = small_model(tmp_path)
    file = tmp_path / "périphérie.json" if in_file else None
    options = provider_options(model, config=config, periphery_file=file)
    assert options["periphery"].startswith("@") == in_file
    assert_as_converted(model, config, options)


def test_star_is_every_node_that_is_not_named(tmp_path: Path) -> None:
    # By hand, in any order: 'conv' has ideal converters, the others two bits.
    model = small_model(tmp_path)
    x = normal(5, 7, 8, 6, 6)
    preset = {"preset": "gaussian-relative", "drift_frac": "0"}

    def run(periphery: dict[str, Any]) -> Array:
        options = {**preset, "periphery": json.dumps(periphery)}
        return provider_session(model, provider_options=options).run(None, {"x": x})[0]

    coarse = {"dac_bits": 3, "dac_range": 0.5}
    ideal = provider_session(model, provider_options=preset).run(None, {"x": x})[0]
    np.testing.assert_array_equal(run({"*": {}}), ideal)
    assert not np.array_equal(run({"*": coarse}), ideal)
    mixed = run({"conv": {}, "*": coarse})
    assert not np.array_equal(mixed, ideal)
    np.testing.assert_array_equal(
        mixed, run({"gemm": coarse, "fc;1": {"dac_range": 0.5, "dac_bits": 3}, "conv": {}})
    )


def test_kernel_that_fits_no_tile_stays_digital_as_in_a_conversion(tmp_path: Path) -> None:
    # An error of the kernel in place of a reason.
    model = small_model(tmp_path)
    config = ConvertConfig(periphery=PeripheryConfig(tile_rows=8))
    options = {"preset": "gaussian-relative", "periphery": '{"*": {"tile_rows": 8}}'}
    provider_session(model, provider_options=options)
    reasons = {m.name: m.reason for m in last_mapping()}
    assert reasons == {
        "conv": Refusal.WINDOW.of(9, 8), "gemm": None, "fc;1": None
    }  # fmt: skip
    provider_session(model, provider_options=provider_options(model, config=config))
    kept = {m.name: m.reason for m in last_mapping()}
    assert kept["conv"] == Refusal.KEPT_DIGITAL.of("conv")
    assert kept["gemm"] is kept["fc;1"] is None


# ------------------------------------------------------------------------------- what is refused


def changed(**fields: object) -> str:
    device = json.loads(get_preset("wan2022-aihwkit").to_json())
    found = {k: v for k, v in {**device, **fields}.items() if v is not None}
    return json.dumps(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "{"}, "options: device configuration is not JSON"),
        ({"device": "[" * 9000}, "options: device configuration is not JSON"),
        ({"device": "[]"}, "options: device configuration must be a JSON object"),
        ({"device": changed(law=None)}, "options: device configuration lacks law"),
        ({"device": changed(g_max_ms=3)}, "options: device configuration has no field 'g_max_ms'"),
        ({"device": changed(g_max_us=41)}, "options: device 'wan2022-aihwkit': its law holds for"),
        ({"device": changed(clip_sigma=0)}, "options: clip_sigma must be above 0"),
        ({"device": changed(time_law={"kind": "power-decay", "t0_s": 1})}, ".*lacks nu_mean"),
        ({"device": "@no/such.rimcdev"}, "option device: the file 'no/such.rimcdev' can't be re"),
        ({"device": "@no/such.rimcdev", "time_s": 3}, "option time_s: a compiled device has its o"),
        ({"device": changed(), "preset": "milo2021"}, "options preset and device exclude each"),
        ({"clip_sigma": "-1"}, "options: clip_sigma must be above 0"),
        ({"mapping": "[]"}, "option mapping must be an object"),
        ({"mapping": '{"a": 1}'}, "option mapping: 'a': must be an object"),
        ({"mapping": '{"a": {"scaling": "row"}}'}, "option mapping: 'a': scaling must be node or"),
        ({"mapping": '{"a": {"clip_sigma": 0}}'}, "option mapping: 'a': clip_sigma must lie in"),
        ({"mapping": '{"a": {"clip": 1}}'}, "option mapping: 'a': clip is no scaling and no"),
        ({"periphery": ""}, "option periphery is empty"),
        ({"periphery": "{"}, "option periphery is not JSON: unexpected the end of the text at cha"),
        ({"periphery": "{} x"}, "option periphery is not JSON: unexpected 'x' at character 3"),
        ({"periphery": '{"a": 01}'}, "option periphery is not JSON: unexpected '}' at character"),
        ({"periphery": '{"a": {}, "a": {}}'}, "option periphery has 'a' twice"),
        ({"periphery": '"\\ud800"'}, "option periphery is not JSON"),
        ({"periphery": "[" * 40 + "]" * 40}, "option periphery is nested too deep"),
        ({"periphery": "{}"}, "option periphery must be an object of nodes"),
        ({"periphery": '{"fc": 3}'}, "option periphery: 'fc' must be an object"),
        ({"periphery": '{"fc": {"adc": 3}}'}, "option periphery: 'fc': adc is no attribute"),
        ({"periphery": '{"fc": {"dac_bits": 2.5}}'}, ".*'fc': dac_bits must be a whole number"),
        ({"periphery": '{"fc": {"adc_range": []}}'}, ".*'fc': adc_range must be a number or a li"),
        ({"periphery": '{"fc": {"read_key": 1e3}}'}, ".*'fc': read_key must be a whole number of"),
        ({"periphery": '{"*": {"read_noise": 0.1, "read_key": 3}}'}, ".*read_key must be of one n"),
        ({"periphery": '{"*": {"dac_bits": 8}}'}, ".*dac_bits needs dac_range. State it, or"),
        ({"periphery": '{"fc": {"adc_bits": 8, "adc_range": 2, "iv_sinh": 1}}'}, ".*iv_sinh needs"),
        ({"periphery": '{"fc": {"dac_bits": 0, "adc_bits": 7}}'}, ".*adc_bits needs adc_range"),
        ({"device_reads": "yes"}, "option device_reads must be 0 or 1, got 'yes'"),
        ({"periphery": "@no/such.json"}, "option periphery: the file 'no/such.json' can't be re"),
    ],
)  # fmt: skip
def test_wrong_text_is_refused_by_name(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    # A number that is read as 0, a curve that is left out, a file that is empty: all run, wrongly.
    if "device" not in options:
        options = {"preset": "gaussian-relative", **options}
    with pytest.raises(ConfigError, match=f"^provider ({message})"):
        provider_session(small_model(tmp_path), provider_options=options)


@pytest.mark.parametrize(
    ("periphery", "message"),
    [
        (
            {"conv": {}},
            r"^node '\S+' \(\w+\): option periphery: no entry of its name, and none of '\*'",
        ),
        (
            {"*": {"dac_bits": 30, "dac_range": 1}},
            r".*: dac_bits must be 0 \(ideal\) or 2\.\.24, got 30",
        ),
        ({"*": {"tile_rows": 18, "num_tiles": 9}}, "num_tiles must be 2 for tiles of 18 rows"),
        ({"*": {"adc_bits": 8, "adc_range": [1, 2]}}, "adc_range must have 1 or .* values, got 2"),
    ],
)
def test_periphery_that_fits_no_node_ends_the_session(
    tmp_path: Path, periphery: dict[str, Any], message: str
) -> None:
    # An error that ONNX Runtime only logs, and a model that then runs on ideal arrays.
    options = {"preset": "gaussian-relative", "periphery": json.dumps(periphery)}
    with pytest.raises(ConfigError, match=message):
        provider_session(small_model(tmp_path), provider_options=options)


def test_what_the_provider_cannot_do_is_refused_when_options_are_made(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    wires = ConvertConfig(periphery=PeripheryConfig(wire_ohm=1.0))
    with pytest.raises(ConfigError, match="wire_ohm changes weights"):
        provider_options(model, config=wires)
    errors = PeripheryConfig(
        tile_rows=9, adc_bits=8, adc_gain_error_frac=0.05, adc_offset_error_frac=0.05
    )
    long = ConvertConfig(periphery=errors)
    with pytest.raises(UsageError, match=r"periphery has \d+ characters.*Give periphery_file"):
        provider_options(model, config=long)
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        provider_options(model, config=long, periphery_file=tmp_path / "there.json")
    with pytest.raises(UsageError, match="node 'fc;1' stays digital, and keep_digital can't name"):
        provider_options(model, config=ConvertConfig(keep_digital=("fc*",)))


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("device", ["milo2021", "wan2022-aihwkit"])
def test_reads_of_a_preset_are_those_of_a_conversion(
    tmp_path: Path, device: str, scaling: Scaling
) -> None:
    # A preset's noise or I-V curve that a conversion has and a session does not; W_max of the
    # wrong bit line in the curve's cells.
    model = small_model(tmp_path)
    preset = get_preset(device, scaling=scaling, clip_sigma=math.inf)
    config = ConvertConfig(device=preset, seed=2)
    options = provider_options(model, config=config, periphery_file=tmp_path / "periphery.json")
    assert_as_converted(model, config, options)
    ideal = ConvertConfig(device=config.device, periphery=PeripheryConfig(device_reads=False))
    ideal_options = provider_options(model, config=ideal)
    assert "periphery" not in ideal_options
    assert ideal_options["device_reads"] == "0"


def test_transposed_convolution_is_refused_when_options_are_made(tmp_path: Path) -> None:
    # Options of a conversion that has it in an array, for a session that has not.
    constants = {"w1": normal(1, 8, 4, 2, 2), "w2": normal(2, 3, 4, 1, 1)}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w1"], ["u"], name="up", strides=[2, 2]),
        helper.make_node("Conv", ["u", "w2"], ["y"], name="out"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"'up' \(ConvTranspose\): without this package the prov"):
        provider_options(
            tmp_path / "model.onnx", config=ConvertConfig(), device_file=tmp_path / "d.rimcdev"
        )
    options = provider_options(tmp_path / "model.onnx", config=ConvertConfig())
    provider_session(tmp_path / "model.onnx", provider_options=options)
    assert {m.name: m.reason for m in last_mapping()} == {"up": None, "out": None}
    options = provider_options(tmp_path / "model.onnx", config=ConvertConfig(keep_digital=("up",)))
    provider_session(tmp_path / "model.onnx", provider_options=options)
    kept = {m.name: m.reason for m in last_mapping()}
    assert kept == {"up": Refusal.KEPT_DIGITAL.of("up"), "out": None}
