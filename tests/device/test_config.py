# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rimc_onnx.device import DeviceConfig, DriftLaw, Scaling, get_preset, list_presets
from rimc_onnx.errors import ConfigError

DEFAULT_JSON = (
    '{"drift_frac":0.2,"drift_mean_frac":0.0,"g_max_us":40.0,"g_min_us":0.0,'
    '"law":"gaussian-relative","preset":"gaussian-relative","scaling":"node"}'
)


def test_default_preset_is_the_published_case():
    assert get_preset("gaussian-relative") == DeviceConfig(
        preset="gaussian-relative",
        law=DriftLaw.GAUSSIAN_RELATIVE,
        drift_frac=0.20,
        drift_mean_frac=0.0,
        g_max_us=40.0,
        g_min_us=0.0,
    )
    # A mapping that a preset closed would be no choice of the conversion.
    assert get_preset("gaussian-relative").scaling is None


def test_presets_are_complete_and_have_a_source():
    assert list(list_presets())[:2] == ["gaussian-relative", "gaussian-absolute"]
    assert {preset.config.law for preset in list_presets().values()} == set(DriftLaw)
    for name, preset in list_presets().items():
        assert preset.config.preset == name
        assert preset.config is get_preset(name) or preset.config == get_preset(name)
        # a year, so that a reader can look it up
        assert re.search(r"\b20\d\d\b", preset.source)
        assert preset.summary


def test_presets_cannot_be_changed_by_a_caller():
    with pytest.raises(TypeError):
        list_presets()["mine"] = list_presets()["gaussian-relative"]  # type: ignore[index]


def test_override_changes_only_its_field():
    config = get_preset("gaussian-absolute", drift_frac=0.05, scaling=Scaling.COLUMN)
    assert (config.drift_frac, config.scaling) == (0.05, Scaling.COLUMN)
    assert (config.law, config.g_max_us) == (DriftLaw.GAUSSIAN_ABSOLUTE, 40.0)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "gausian-relative",
            {},
            r"device preset 'gausian-relative' is not known\. Did you mean 'gaussian-relative'",
        ),
        ("flash", {}, r"'flash' is not known\. Known: cmo-hfox-2025-0\.2pct, "),
        (
            "gaussian-relative",
            {"drift": 0.1},
            r"'gaussian-relative': 'drift' can't be set\. Did you mean 'drift_frac'",
        ),
        # a "gaussian-relative" file that follows another law would be a lie
        ("gaussian-relative", {"law": DriftLaw.GAUSSIAN_ABSOLUTE}, r"'law' can't be set"),
        ("gaussian-relative", {"preset": "x"}, r"'preset' can't be set"),
    ],
)
def test_unknown_name_is_an_error_that_suggests(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        get_preset(name, **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # 20 meant as per cent is the mistake to expect
        (
            {"drift_frac": 20},
            r"need 0 <= drift_frac <= 1, got 20\.0 \(a fraction: 20 % is 0\.2\)",
        ),
        ({"drift_frac": -0.1}, r"need 0 <= drift_frac <= 1, got -0\.1"),
        ({"drift_frac": float("nan")}, r"drift_frac must be a finite number, got nan"),
        ({"drift_frac": "0.2"}, r"drift_frac must be a finite number, got '0\.2'"),
        ({"drift_frac": True}, r"drift_frac must be a finite number, got True"),
        (
            {"drift_mean_frac": -2},
            r"need -1 <= drift_mean_frac <= 1, got -2\.0 \(a fraction: 20 % is 0\.2\)",
        ),
        (
            {"g_min_us": 50},
            r"need 0 <= g_min_us < g_max_us, got 50\.0 and 40\.0 \(microsiemens\)",
        ),
        ({"g_min_us": -1}, r"need 0 <= g_min_us < g_max_us, got -1\.0"),
        ({"g_max_us": float("inf")}, r"g_max_us must be a finite number, got inf"),
        ({"scaling": "column"}, r"scaling must be a Scaling, got 'column'"),
    ],
)
def test_value_out_of_range_is_an_error(overrides, message):
    with pytest.raises(ConfigError, match=message):
        get_preset("gaussian-relative", **overrides)


def test_own_model_needs_a_name_and_a_law():
    with pytest.raises(ConfigError, match="preset must be a name, got an empty string"):
        DeviceConfig(preset="", law=DriftLaw.GAUSSIAN_RELATIVE)
    with pytest.raises(ConfigError, match="law must be a DriftLaw, got 'normal'"):
        DeviceConfig(preset="mine", law="normal")  # type: ignore[arg-type]


def test_json_is_canonical():
    # Equal configurations must be written alike: files are compared by their bytes.
    assert get_preset("gaussian-relative").to_json() == DEFAULT_JSON
    spelled = get_preset("gaussian-relative", g_min_us=-0.0, drift_mean_frac=0, g_max_us=40)
    assert spelled.to_json() == DEFAULT_JSON


@given(
    drift_frac=st.floats(0, 1),
    drift_mean_frac=st.floats(-1, 1),
    g_max_us=st.floats(1, 1e6),
    g_min_us=st.floats(0, 0.5),
    law=st.sampled_from([DriftLaw.GAUSSIAN_RELATIVE, DriftLaw.GAUSSIAN_ABSOLUTE]),
    scaling=st.sampled_from(Scaling),
    clip_sigma=st.one_of(st.just(math.inf), st.floats(0.1, 10)),
    preset=st.text(min_size=1),
)
def test_json_gives_the_same_configuration_back(**values):
    config = DeviceConfig(**values)
    again = DeviceConfig.from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()


def changed(**values: object) -> str:
    return json.dumps({**json.loads(DEFAULT_JSON), **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "device configuration is not JSON: "),
        ("[]", r"device configuration must be a JSON object, got '\[\]'"),
        ('{"preset":"a"}', "device configuration lacks drift_frac, drift_mean_frac, g_max_us"),
        (changed(drift_fraction=1), "has no field 'drift_fraction'. Did you mean 'drift_frac'"),
        (changed(law="gaussian"), "law 'gaussian' is not known. Did you mean 'gaussian-"),
        (changed(scaling="nodes"), "scaling 'nodes' is not known. Did you mean 'node'"),
        (
            changed(clip_sigma="off"),
            "clip_sigma must be a number above 0 .* none or auto, got 'off'",
        ),
        (changed(preset=3), "preset must be a name, got 3"),
        (changed(g_max_us=0), "need 0 <= g_min_us < g_max_us, got 0.0 and 0.0"),
    ],
)
def test_bad_json_is_an_error(text, message):
    with pytest.raises(ConfigError, match=message):
        DeviceConfig.from_json(text)
