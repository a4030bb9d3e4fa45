# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import ModuleType

import cases as _cases
import pytest
import random_cases as _random_cases


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """Random one-node models (cases.py)."""
    return _cases


@pytest.fixture(scope="session")
def random_cases() -> ModuleType:
    """Random nodes of all operators, many to a model (random_cases.py)."""
    return _random_cases
