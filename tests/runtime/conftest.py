# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import ModuleType

import cases as _cases
import pytest
import random_cases as _random_cases

from rimc_onnx import runtime


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """Random one-node models (cases.py)."""
    return _cases


@pytest.fixture(scope="session")
def random_cases() -> ModuleType:
    """Random nodes of all operators, many to a model (random_cases.py)."""
    return _random_cases


@pytest.fixture(params=["scalar", "avx2", "avx2vnni", "avx512", "avx512vnni", "neon"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set with kernels, for ``RIMC_ISA``; skipped where the machine lacks it."""
    if request.param not in runtime.build_info()["available_isas"]:
        pytest.skip(f"this machine has no {request.param}")
    return str(request.param)
