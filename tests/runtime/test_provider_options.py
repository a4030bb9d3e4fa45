# SPDX-License-Identifier: Apache-2.0
"""Options of the execution provider that are refused; test_provider.py has the others."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import RELATIVE, needs_providers

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
        ({"preset": "rram"}, "options: device preset 'rram' is not known"),
        ({"presett": "x"}, r"option 'presett' is not known\. Did you mean 'preset'"),
        ({"seed": 3}, "option seed needs the option preset"),
        ({"time_s": 3}, "option time_s needs the option preset"),
        ({"seed": -1}, r"option seed must lie in 0\.\.2\^63-1, got '-1'"),
        ({"seed": 2**63}, r"option seed must lie in 0\.\.2\^63-1, got '9223372036854775808'"),
        ({"seed": "1e3"}, r"option seed must lie in .*, got '1e3'"),
        ({"seed": ""}, "option seed must lie in"),
        ({"drift_frac": 1.5}, r"options: need 0 <= drift_frac <= 1, got 1\.5"),
        ({"drift_frac": NOT_A_NUMBER}, "option drift_frac must be a number, got 'nan'"),
        ({"drift_frac": "0,2"}, "option drift_frac must be a number, got '0,2'"),
        ({"drift_frac": "0.2x"}, "option drift_frac must be a number"),
        ({"drift_frac": "0x1"}, "option drift_frac must be a number"),
        ({"drift_frac": "0.1 "}, "option drift_frac must be a number"),
        ({"drift_frac": "1_0"}, "option drift_frac must be a number"),
        ({"drift_frac": "-"}, "option drift_frac must be a number"),
        ({"drift_mean_frac": -2}, "options: need -1 <= drift_mean_frac <= 1, got -2"),
        ({"g_max_us": "1e400"}, "options: device: g_max_us must be a finite number, got inf"),
        ({"g_min_us": 40}, "options: need 0 <= g_min_us < g_max_us, got 40.0 and 40.0"),
        ({"time_s": 5}, "options: device 'gaussian-relative' has no time axis"),
        ({"time_s": "1d"}, "option time_s must be a number, got '1d'"),
        (
            {"preset": "sonos-40nm", "time_s": 432001},
            r"options: device 'sonos-40nm': time_s must lie in .*\(0 \.\. 432000 seconds\)",
        ),
        ({"preset": "milo2021", "drift_frac": 0.1}, "options: device 'milo2021': its error is mea"),
        ({"preset": "milo2021", "g_max_us": 180}, "options: device 'milo2021': its law holds for"),
        (
            {"stuck_min_frac": 0.6, "stuck_max_frac": 0.6},
            r"options: need stuck_min_frac \+ stuck_max_frac <= 1, got 0\.6 and 0\.6",
        ),
        ({"level_bits": 2.5}, r"options: level_bits must be a whole number in 1\.\.12, got 2\.5"),
        ({"level_bits": 13}, r"options: level_bits must be a whole number in 1\.\.12, got 13"),
        ({"num_slices": 2}, "options: num_slices 2 needs level_bits"),
        (
            {"level_bits": 9, "num_slices": 3},
            r"options: num_slices \* level_bits must be 24 or less",
        ),
        ({"scaling": "row"}, "option scaling must be node or column, got 'row'"),
        ({"dac_bits": 8}, "option 'dac_bits' is not known"),
    ],
)  # fmt: skip
def test_malformed_option_is_refused_by_name(options: dict[str, object], message: str) -> None:
    # A typo that runs with the default; a number that a locale or a prefix would let through.
    if not {"preset", "presett"} & set(options) and options not in ({"seed": 3}, {"time_s": 3}):
        options = {**RELATIVE, **options}
    with pytest.raises(ConfigError, match=f"^provider {message}"):
        provider_session(model(), provider_options=options)
