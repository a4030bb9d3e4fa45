# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def run_cases(isa: str) -> Callable[[ModuleType, int], None]:
    """``run_cases(program, num_seeds)``: a program of cases, on every instruction set."""

    def run(program: ModuleType, num_seeds: int) -> None:
        result = subprocess.run(
            [sys.executable, str(program.__file__), "0", str(num_seeds)],
            check=False,
            env={**os.environ, "RIMC_ISA": isa},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    return run
