# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import numpy as np

from rimc_onnx.device.reproducible_math import exp, log, scalar_log

X = np.concatenate(
    [np.linspace(-700, 700, 100_001), np.geomspace(1e-12, 1, 1001), -np.geomspace(1e-12, 1, 1001)]
)


def test_exponential_is_that_of_the_library_to_the_last_bits() -> None:
    # A wrong coefficient, or a reduction that loses digits for large k. Two roundings of 1.1e-16
    # each, on a library that is off by one itself.
    np.testing.assert_allclose(exp(X), np.exp(X), rtol=1e-15, atol=0)


def test_logarithm_is_that_of_the_library_to_the_last_bits() -> None:
    # The same; an exponent's part that cancels near 1, where a time law has its first time.
    x = np.concatenate([np.geomspace(1e-300, 1e300, 100_001), np.linspace(0.5, 2, 10_001)])
    np.testing.assert_allclose(log(x), np.log(x), rtol=1e-15, atol=0)
    assert scalar_log(1.0) == 0.0
    assert scalar_log(86400.0) == log(np.array([86400.0]))[0]


def test_exact_functions_have_their_golden_bits() -> None:
    # Files depend on them: any change is a change of format.
    x = np.arange(-70_000, 70_001) / 100.0  # not X: powers of the library are in it
    values = np.concatenate([exp(x), log(np.abs(x) + 1.0)])
    digest = hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()
    assert digest[:16] == "5545b95e29dbeb73"
