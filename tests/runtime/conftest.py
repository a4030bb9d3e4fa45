# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"rimc_runtime_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_CASES = _load("cases")
_RANDOM_CASES = _load("random_cases")


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """Random one-node models (cases.py): test files are not importable from one another."""
    return _CASES


@pytest.fixture(scope="session")
def random_cases() -> ModuleType:
    """Random nodes of all operators, many to a model (random_cases.py)."""
    return _RANDOM_CASES
