# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rimc_onnx.calibration.array_read_out import read_out
from rimc_onnx.device import Purpose, standard_normals
from rimc_onnx.errors import ConfigError

W = np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)


def measured(w: Any = W, **changed: Any) -> Any:
    return read_out(w, **{"node": "fc", "seed": 0, "noise_frac": 0.02, **changed})


def test_error_is_normal_and_a_share_of_the_weight() -> None:
    # A share of the largest weight, or a variance for a standard deviation. 20,000 cells: the mean
    # has a standard error of 0.02 / sqrt(20000), the standard deviation of 0.02 / sqrt(40000).
    share = (measured().astype(np.float64) - W) / W
    assert abs(share.mean()) < 4 * 0.02 / np.sqrt(20_000)
    assert abs(share.std() - 0.02) < 4 * 0.02 / np.sqrt(40_000)
    assert measured().dtype == np.float32
    assert not measured(0 * W).any()


def test_draws_are_keyed_by_seed_and_node_and_are_no_others() -> None:
    # The draws of programming: a read-out whose error is the drift itself tells nothing.
    z = standard_normals(
        seed=3, node="fc", device=0, purpose=Purpose.READ_OUT, start=0, count=W.size
    ).reshape(W.shape)
    assert np.array_equal(measured(seed=3), (W * (1 + 0.02 * z)).astype(np.float32))
    assert np.array_equal(measured(), measured())
    for other in (measured(seed=1), measured(node="fc2")):
        # of 20,000 pairs
        assert abs(np.corrcoef((other / W).ravel(), (measured() / W).ravel())[0, 1]) < 4 / 141
    for device in (0, 1):
        programming = standard_normals(
            seed=3, node="fc", device=device, purpose=Purpose.PROGRAMMING, start=0, count=W.size
        )
        assert abs(np.corrcoef(programming, z.ravel())[0, 1]) < 4 / 141


def test_purposes_keep_their_numbers() -> None:
    # They are part of every draw: another number is another device.
    assert {p.name: p.value for p in Purpose} == {
        "PROGRAMMING": 0,
        "READ_OUT": 1,
        "DRIFT": 2,
        "FAULT": 3,
        "READ": 32,
        "ADC_GAIN": 33,
        "ADC_OFFSET": 34,
        "SENSITIVITY": 64,
        "SOLVER_START": 65,
    }


def test_shape_does_not_matter_to_a_cell() -> None:
    # Cells count in C order whatever the layout in memory.
    conv = W.reshape(100, 8, 5, 5)
    assert np.array_equal(measured(conv).reshape(W.shape), measured())
    assert np.array_equal(measured(np.asfortranarray(W)), measured())


def test_no_noise_gives_the_weight_itself() -> None:
    assert np.array_equal(measured(noise_frac=0.0), W)


@pytest.mark.parametrize("noise_frac", [-0.1, float("nan")])
def test_noise_below_zero_is_refused(noise_frac: float) -> None:
    with pytest.raises(ConfigError, match="read-out noise must be 0 or more"):
        measured(noise_frac=noise_frac)
