# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).with_name("cases.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rimc_runtime_cases", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_CASES = _load()


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """Random one-node models (cases.py): test files are not importable from one another."""
    return _CASES
