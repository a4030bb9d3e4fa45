# SPDX-License-Identifier: Apache-2.0
"""Reads of a device model by the provider's own options, against those that Python makes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from provider_models import PLAIN, Array, needs_providers, normal

from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import IvPolynomial, ReadNoiseCurve, Scaling, get_preset, read_noise_table
from rimc_onnx.device.curves import Logarithmic, Points, Polynomial, Power, Saturating
from rimc_onnx.device.time_laws import LogRelaxation, PowerDecay, SigmaAtTimes
from rimc_onnx.errors import ConfigError
from rimc_onnx.jobs.convert import convert
from rimc_onnx.jobs.provider_options import provider_options
from rimc_onnx.runtime import make_session
from rimc_onnx.runtime.provider import provider_session

pytestmark = needs_providers

X = normal(5, 7, 6, 5, 5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv with groups, Gemm with a transposed weight, MatMul of a name in UTF-8, and samples."""
    constants = {"w1": normal(1, 16, 3, 3, 3), "w2": normal(2, 40, 16), "w3": normal(3, 40, 11)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="conv", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["c"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "w2"], ["h"], name="gemm", transB=1, alpha=0.75),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w3"], ["y"], name="層/fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6, 5, 5])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 11])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx")
    np.savez(tmp_path / "calibration.npz", x=normal(4, 12, 6, 5, 5))
    return tmp_path / "model.onnx"


def outputs(model: Path, options: dict[str, Any]) -> list[bytes]:
    """Three runs of a session: read noise counts them."""
    session = provider_session(model, provider_options=options, num_threads=1)
    found: list[Array] = [session.run(None, {"x": X})[0] for _ in range(3)]
    return [y.tobytes() for y in found]


def ranges_of(options: dict[str, str], **stated: float) -> str:
    """Of the periphery that Python made, the ranges of the inputs alone."""
    periphery = json.loads(options["periphery"])
    return json.dumps({n: {"dac_range": a["dac_range"], **stated} for n, a in periphery.items()})


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize(
    "numbers", [{}, {"devices_per_weight": 3}, {"level_bits": 3, "num_slices": 2}]
)
def test_preset_has_its_read_noise(model: Path, numbers: dict[str, int], scaling: Scaling) -> None:
    # Noise that only Python's options have; a key of another purpose or seed; shares of slices.
    device = get_preset("wan2022-aihwkit", scaling=scaling, clip_sigma=math.inf, **numbers)
    config = ConvertConfig(device=device, seed=2**40 + 7)
    options = {"preset": device.preset, "scaling": scaling.value, "seed": config.seed, **numbers}
    own = outputs(model, options)
    assert own == outputs(model, provider_options(model, config=config))
    assert len(set(own)) == 3
    (ideal,) = set(outputs(model, {**options, "device_reads": False}))
    assert ideal not in own
    plain = replace(config, periphery=PeripheryConfig(device_reads=False))
    assert set(outputs(model, provider_options(model, config=plain))) == {ideal}


@pytest.mark.parametrize("numbers", [{}, {"devices_per_weight": 3, "g_max_us": 20.0}])
@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize(
    ("preset", "time_s"),
    [
        ("pcm-natcomm2020", 20.0),
        ("pcm-natcomm2020", 1e6),
        ("cmo-hfox-2025-0.2pct", 1.0),
        ("cmo-hfox-2025-2pct", 3e8),
    ],
)
def test_preset_has_its_law_of_read_noise(
    model: Path, preset: str, time_s: float, scaling: Scaling, numbers: dict[str, float]
) -> None:
    # A twin of the table with another last bit, of the first time, or of the preset's own G_max;
    # against what a conversion computes.
    device = get_preset(preset, scaling=scaling, clip_sigma=math.inf, **numbers)
    config = ConvertConfig(device=device, seed=3, time_s=time_s)
    options = {
        "preset": preset, "scaling": scaling.value, "seed": 3, "time_s": time_s, **numbers
    }  # fmt: skip
    own = outputs(model, options)
    wanted = provider_options(model, config=config)
    assert "periphery" not in wanted
    assert own == outputs(model, wanted)
    assert own == converted_outputs(model, config)
    assert len(set(own)) == 3
    converters = replace(config, periphery=PeripheryConfig(tile_rows=27, adc_bits=9))
    wanted = provider_options(model, config=converters)
    assert "read_noise_curve" not in wanted["periphery"]
    assert outputs(model, wanted) == converted_outputs(model, converters)


def converted_outputs(model: Path, config: ConvertConfig) -> list[bytes]:
    """As outputs, of the converted model."""
    path = model.with_name("model.rimc.onnx")
    convert(model, path, config=config, force=True)
    session = make_session(path.read_bytes(), num_threads=1)
    return [session.run(None, {"x": X})[0].tobytes() for _ in range(3)]


CURVES = {
    "polynomial": Polynomial(coefficients=(0.05, 0.1, -0.02), g_ref_us=25.0),
    "saturating": Saturating(amplitude=0.2, g_scale_us=7.0),
    "logarithmic": Logarithmic(offset=0.1, slope=-0.02, low=0.01, high=0.2, g_ref_us=3.0),
    "power": Power(amplitude=0.01, exponent=-0.4, low=0.001, high=0.3, g_ref_us=25.0),
    "points": Points(g_us=(1.0, 5.0, 20.0), values=(0.02, 0.1, 0.05)),
}
LAWS = {
    "relaxation": LogRelaxation(t0_s=1.0, t_max_s=1e6, mean_us_per_ln=-0.05, sigma_us=0.1),
    "decay": PowerDecay(
        t0_s=1.0, t_max_s=1e6, nu_mean=CURVES["power"], nu_sigma=CURVES["saturating"]
    ),
    "times": SigmaAtTimes(
        t0_s=1.0, times_s=(1e3, 1e6), sigma_us=(CURVES["points"],) * 2,
        mean_us=(CURVES["polynomial"], CURVES["saturating"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["sigma_us", "sigma_frac"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("curve", CURVES)
def test_device_of_ones_own_has_its_law_of_read_noise(
    model: Path, curve: str, law: str, kind: str
) -> None:
    # A curve or a mean path that is evaluated otherwise in C++.
    noise = ReadNoiseCurve(**{kind: CURVES[curve], "t_read_s": 1e-3})
    base = get_preset("pcm-natcomm2020", g_min_us=2.0, g_max_us=20.0, **PLAIN)
    device = replace(base, time_law=LAWS[law], read_noise_curve=noise)
    config = ConvertConfig(device=device, time_s=5e4)
    options = {"device": device.to_json(), "time_s": 5e4}
    assert outputs(model, options) == converted_outputs(model, config)


def test_curve_of_noise_gives_way_to_what_is_stated(model: Path) -> None:
    # A preset's curve on top of what was asked for; a curve that can't be stated at all.
    pcm = {"preset": "pcm-natcomm2020"}
    ideal = outputs(model, {**pcm, "device_reads": False})
    assert outputs(model, {**pcm, "periphery": '{"*": {"read_noise": 0}}'}) == ideal
    louder = ConvertConfig(
        device=get_preset("pcm-natcomm2020", **PLAIN),
        periphery=PeripheryConfig(read_noise_frac=0.05),
    )
    stated = outputs(model, {**pcm, "periphery": '{"*": {"read_noise": 0.05}}'})
    assert stated == outputs(model, provider_options(model, config=louder))
    assert stated == converted_outputs(model, louder)
    table = read_noise_table(get_preset("pcm-natcomm2020"), 20.0)
    own = {"read_noise": table.read_noise, "read_noise_curve": table.knots}
    assert outputs(model, {**pcm, "periphery": json.dumps({"*": own})}) == outputs(model, pcm)


def test_noise_that_no_node_can_hold_ends_the_session(model: Path) -> None:
    # Sliced weights read as whole ones.
    sliced = {"preset": "pcm-natcomm2020", "level_bits": 2, "num_slices": 2}
    with pytest.raises(ConfigError, match="its read_noise_curve needs whole weights"):
        provider_session(model, provider_options=sliced)
    provider_session(model, provider_options={**sliced, "device_reads": False})
    loud = ReadNoiseCurve(sigma_us=Polynomial(coefficients=(90.0,)))
    device = replace(get_preset("pcm-natcomm2020"), read_noise_curve=loud)
    with pytest.raises(ConfigError, match="must be above 0 and at most g_max_us, got 127"):
        provider_session(model, provider_options={"device": device.to_json()})


@pytest.mark.parametrize("numbers", [{}, {"g_max_us": 100.0, "g_min_us": 60.0}])
@pytest.mark.parametrize("shrink", [1.0, 0.7])
def test_preset_has_its_curve_where_ranges_are_stated(
    model: Path, shrink: float, numbers: dict[str, float]
) -> None:
    # A twin of the curve with another last bit; a voltage that doesn't follow the input's share.
    device = get_preset("milo2021", **numbers, **PLAIN)
    config = ConvertConfig(device=device, periphery=PeripheryConfig(input_shrink=shrink))
    wanted = provider_options(model, config=config)
    stated = {} if shrink == 1.0 else {"input_shrink": shrink}
    options = {"preset": "milo2021", **numbers, "periphery": ranges_of(wanted, **stated)}
    assert outputs(model, options) == outputs(model, wanted)
    assert outputs(model, options) != outputs(model, {**options, "device_reads": "0"})


@pytest.mark.parametrize("curve", ["sinh", "polynomial"])
def test_device_of_ones_own_has_its_reads(model: Path, curve: str) -> None:
    # A field of the JSON that is read over.
    polynomial = IvPolynomial(
        v_max_v=0.3, square=(1.2e-5,), cube=(-2.0e-5, -4.0e-6), g_range_us=(4.0, 40.0)
    )
    curves = {"sinh": {"iv_sinh": 2.3}, "polynomial": {"iv_polynomial": polynomial}}
    device = get_preset(
        "gaussian-absolute",
        g_min_us=4.0,
        g_max_us=36.0,
        read_noise_frac=0.02,
        **curves[curve],
        **PLAIN,
    )
    wanted = provider_options(model, config=ConvertConfig(device=device))
    options = {"device": device.to_json(), "periphery": ranges_of(wanted)}
    assert outputs(model, options) == outputs(model, wanted)


def test_what_is_stated_wins_over_the_device(model: Path) -> None:
    # A preset's noise on top of the one asked for, or none that can't be told from none asked for.
    wan = {"preset": "wan2022-aihwkit"}
    ideal = outputs(model, {**wan, "device_reads": False})
    assert outputs(model, {**wan, "periphery": '{"*": {"read_noise": 0}}'}) == ideal
    louder = ConvertConfig(
        device=get_preset("wan2022-aihwkit", **PLAIN),
        periphery=PeripheryConfig(read_noise_frac=0.05),
    )
    stated = outputs(model, {**wan, "periphery": '{"*": {"read_noise": 0.05}}'})
    assert stated == outputs(model, provider_options(model, config=louder))
    curve = '{"*": {"iv_sinh": 0}}'
    milo = {"preset": "milo2021"}
    assert outputs(model, {**milo, "periphery": curve}) == outputs(
        model, {**milo, "device_reads": False}
    )


def test_curve_without_a_range_ends_the_session(model: Path) -> None:
    # A straight line in its place, which nobody hears of.
    for more in ({}, {"periphery": '{"*": {"adc_bits": 8, "adc_range": 3}}'}):
        with pytest.raises(
            ConfigError,
            match=r"^node 'conv' \(Conv\): option periphery: the I-V curve of 'milo2021' needs "
            r"dac_range of this node. State it, or set the option device_reads to 0$",
        ):
            provider_session(model, provider_options={"preset": "milo2021", **more})
    sliced = {"preset": "milo2021", "level_bits": 2, "num_slices": 2}
    with pytest.raises(ConfigError, match="needs whole weights on a pair of devices, got num_sli"):
        provider_session(model, provider_options={**sliced, "periphery": '{"*": {"dac_range": 2}}'})
    provider_session(model, provider_options={**sliced, "device_reads": False})
