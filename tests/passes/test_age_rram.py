# SPDX-License-Identifier: Apache-2.0
"""AgeRramPass: what it changes, what it leaves alone, and when it does nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import Scaling, get_preset
from rimc_onnx.errors import ConfigError, ModelError
from rimc_onnx.ops import schema
from rimc_onnx.passes import (
    AgeRramPass,
    convert_model,
    find_units,
    prepare_pipeline,
    rram_branches,
)

PLAIN = {"scaling": Scaling.NODE, "clip_sigma": math.inf}
"""A mapping that no time changes."""
WAN = get_preset("wan2022-aihwkit", **PLAIN)
NET = """g (float[n,6] x) => (float[n,3] y, float[n,4] z) {
    h = MatMul(x, u)
    a = Relu(h)
    y = MatMul(a, v)
    t = Transpose(v2)
    z = MatMul(a, t)
}"""


@pytest.fixture
def teacher(build) -> ir.Model:
    rng = np.random.default_rng(3)
    shapes = {"u": (6, 5), "v": (5, 3), "v2": (4, 5)}
    return build(NET, **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def converted(
    teacher: ir.Model, time_s: float | None = None, preset: str = "wan2022-aihwkit", **fields: Any
) -> ir.Model:
    model = teacher.clone()
    config = ConvertConfig(
        device=get_preset(preset, **PLAIN),
        seed=5,
        time_s=time_s,
        periphery=PeripheryConfig(**fields),
    )
    convert_model(model, config)
    return model


def noise(model: ir.Model) -> list[tuple[float, ...]]:
    """Size and law of the read noise of every node."""
    return [
        (a["read_noise"].as_float(), *a["read_noise_curve"].as_floats())
        for a in (b.rram.attributes for b in rram_branches(model))
    ]


def units(teacher: ir.Model):
    prepared = teacher.clone()
    prepare_pipeline()(prepared)
    return find_units(prepared)


def weights(model: ir.Model) -> dict[str, bytes]:
    return {b.node: b.weight().tobytes() for b in rram_branches(model)}


@pytest.mark.parametrize("preset", ["wan2022-aihwkit", "pcm-natcomm2020", "cmo-hfox-2025-2pct"])
def test_model_becomes_the_one_converted_at_that_time(teacher, preset):
    # The weight of "t" is derived in the teacher: its unit must be found by the node's name. Read
    # noise that follows the time ages with the weights.
    model = converted(teacher, preset=preset)
    before = noise(model)
    assert AgeRramPass(units(teacher), 3600.0)(model).modified
    assert (noise(model) == before) == (preset == "wan2022-aihwkit")
    want = converted(teacher, 3600.0, preset)
    assert weights(model) == weights(want)
    assert ir.to_onnx_text(model, exclude_initializers=True) == ir.to_onnx_text(
        want, exclude_initializers=True
    )


def test_second_run_and_own_time_change_nothing(teacher):
    model = converted(teacher, 3600.0)
    before = weights(model)
    step = AgeRramPass(units(teacher), 3600.0)
    assert not step(model).modified
    assert weights(model) == before


def test_error_leaves_the_model_as_it_was(teacher):
    model = converted(teacher)
    text, before = ir.to_onnx_text(model), weights(model)
    with pytest.raises(ConfigError, match="time_s must lie in"):
        AgeRramPass(units(teacher), 1e9)(model)
    assert ir.to_onnx_text(model) == text
    assert weights(model) == before


def test_noise_that_was_asked_for_does_not_age(teacher):
    # The device's law in place of --read-noise, or noise where --ideal-reads left it out.
    for asked in ({"read_noise_frac": 0.02}, {"device_reads": False}):
        model = converted(teacher, preset="pcm-natcomm2020", **asked)
        before = noise(model)
        AgeRramPass(units(teacher), 86400.0)(model)
        assert noise(model) == before
        assert len(before[0]) == 2


def test_curve_that_is_not_of_the_device_is_refused(teacher):
    # A table of another time left in the file, and nobody told.
    model = converted(teacher)
    rram_branches(model)[1].rram.attributes.add(
        ir.AttrFloat32s("read_noise_curve", [0.5] * schema.NOISE_KNOTS)
    )
    before = weights(model)
    with pytest.raises(ModelError, match="its read_noise_curve is not one of its device 'wan2022"):
        AgeRramPass(units(teacher), 86400.0)(model)
    assert weights(model) == before


def test_nodes_say_their_time(teacher):
    model = converted(teacher)
    AgeRramPass(units(teacher), 86400.0)(model)
    times = [b.rram.attributes["time_s"].as_float() for b in rram_branches(model)]
    assert times == [86400.0] * 3
    assert model.metadata_props[schema.TIME_KEY] == "86400"
