# SPDX-License-Identifier: Apache-2.0
"""Options of the execution provider that are refused; test_provider.py has the others."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import RELATIVE, needs_providers

from rimc_onnx.device import list_presets
from rimc_onnx.errors import ConfigError
from rimc_onnx.runtime.provider import provider_session

NOT_A_NUMBER = float("nan")


def model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(found.SerializeToString())


@needs_providers
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "rram"}, r"option preset must be one of gaussian-relative, .*, got 'rram'"),
        ({"presett": "x"}, r"option 'presett' is not known\. Known: preset, device, time_s,"),
        ({"seed": 3}, "option seed needs the option preset"),
        ({"seed": -1}, r"option seed must lie in 0\.\.2\^63-1, got '-1'"),
        ({"seed": 2**63}, r"option seed must lie in 0\.\.2\^63-1, got '9223372036854775808'"),
        ({"seed": "1e3"}, r"option seed must lie in .*, got '1e3'"),
        ({"seed": ""}, "option seed must lie in"),
        ({"drift_frac": 1.5}, r"option drift_frac must lie in 0\.\.1, got 1\.5"),
        ({"drift_frac": NOT_A_NUMBER}, "option drift_frac must be a number, got 'nan'"),
        ({"drift_frac": "0,2"}, "option drift_frac must be a number, got '0,2'"),
        ({"drift_frac": "0.2x"}, "option drift_frac must be a number"),
        ({"drift_frac": "0x1"}, "option drift_frac must be a number"),
        ({"drift_frac": "0.1 "}, "option drift_frac must be a number"),
        ({"drift_frac": "-"}, "option drift_frac must be a number"),
        ({"drift_mean_frac": -2}, r"option drift_mean_frac must lie in -1\.\.1, got -2"),
        ({"g_max_us": "1e400"}, "option g_max_us must be a number"),
        ({"g_min_us": 40}, "g_min_us and g_max_us must be 0 <= g_min_us < g_max_us, got 40 and 40"),
        ({"time_s": 5}, "option time_s: preset 'gaussian-relative' has no time axis"),
        ({"time_s": "1d"}, "option time_s must be a number, got '1d'"),
        (
            {"preset": "sonos-40nm", "time_s": 432001},
            r"option time_s: the law of 'sonos-40nm' holds for 0 \.\. 432000 seconds, got 432001",
        ),
        ({"preset": "milo2021", "drift_frac": 0.1}, "drift_frac and drift_mean_frac must be 0"),
        (
            {"preset": "milo2021", "g_max_us": 180},
            r"g_min_us and g_max_us: the law of 'milo2021' holds for 50 \.\. 225 microsiemens, but "
            r"devices would be set to 50 \.\. 230",
        ),
        (
            {"stuck_min_frac": 0.6, "stuck_max_frac": 0.6},
            r"stuck_min_frac \+ stuck_max_frac must be 1 or less, got 0\.6 and 0\.6",
        ),
        ({"level_bits": 2.5}, r"option level_bits must be a whole number, got 2\.5"),
        ({"level_bits": 13}, r"option level_bits must lie in 1\.\.12, got 13"),
        ({"num_slices": 2}, "num_slices needs level_bits"),
        ({"level_bits": 9, "num_slices": 3}, r"num_slices \* level_bits must be 24 or less"),
        ({"scaling": "row"}, "option scaling must be node or column, got 'row'"),
        ({"dac_bits": 8}, "option 'dac_bits' is not known"),
    ],
)  # fmt: skip
def test_malformed_option_is_refused_by_name(options: dict[str, object], message: str) -> None:
    # A typo that runs with the default; a number that a locale or a prefix would let through.
    if not {"preset", "presett"} & set(options) and options != {"seed": 3}:
        options = {**RELATIVE, **options}
    with pytest.raises(ConfigError, match=f"^provider {message}|^provider options {message}"):
        provider_session(model(), provider_options=options)


@needs_providers
def test_model_of_ones_own_is_refused_with_the_presets_that_there_are() -> None:
    # A name that the library takes for another preset; a preset that it lacks.
    names = ", ".join(re.escape(name) for name in list_presets())
    with pytest.raises(ConfigError, match=f"preset must be one of {names}, got 'of-my-own'"):
        provider_session(model(), provider_options={"preset": "of-my-own"})
