# SPDX-License-Identifier: Apache-2.0
"""Small networks on one thread: more of them only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(digits_folder: Path) -> Path:
    """The sample with 200 images to train on."""
    with np.load(digits_folder / "test.npz") as file:
        np.savez(digits_folder / "train.npz", **{n: file[n][:200] for n in file.files})
    return digits_folder
