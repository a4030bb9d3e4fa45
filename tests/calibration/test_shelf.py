# SPDX-License-Identifier: Apache-2.0
"""Drafts that wait in a file while the SRAM is shared out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rimc_onnx.calibration.allocate import Kinds, allocate
from rimc_onnx.calibration.moments import SecondMoments
from rimc_onnx.calibration.problem import CellPrior, problem_from_device
from rimc_onnx.calibration.shelf import Shelf
from rimc_onnx.calibration.solvers.closed_form import ClosedFormConfig, Draft, draft
from rimc_onnx.errors import CalibrationError
from rimc_onnx.ops.geometry import NodeGeometry

GEOMETRIES = {
    "few rows": (
        NodeGeometry(weight_shape=(200, 24), group=1, strides=(), pads=(), dilations=()),
        9,
    ),
    "many rows": (
        NodeGeometry(weight_shape=(20, 7), group=1, strides=(), pads=(), dilations=()),
        50,
    ),
    "groups": (
        NodeGeometry(weight_shape=(6, 5, 1), group=3, strides=(1,), pads=(0, 0), dilations=(1,)),
        40,
    ),
}


def drafted(name: str) -> tuple[Any, Draft]:
    """A node as calibration has it (of the pair only what a shelf asks for), and its draft."""
    geometry, rows = GEOMETRIES[name]
    random = np.random.default_rng(len(name))
    weight = random.standard_normal(geometry.weight_shape).astype(np.float32)
    target = np.ascontiguousarray(geometry.matrices(weight))
    x = random.standard_normal((rows, geometry.group, geometry.depth)).astype(np.float32)
    y = np.einsum("pgd,gdm->pgm", x, target)
    h = 0.8 * y + 0.1 * random.standard_normal(y.shape).astype(np.float32)
    flat = [a.reshape(rows, -1) for a in (x, y, h)]
    moments = SecondMoments(geometry)
    moments.update(*(a[:, :, None] if geometry.is_conv else a for a in flat))
    prior = CellPrior(error=np.zeros_like(target), variance=np.square(target))
    problem = problem_from_device(name, moments, target, bias_frac=0.5, prior=prior)
    pair = SimpleNamespace(
        branch=SimpleNamespace(node=name),
        geometry=geometry,
        unit=SimpleNamespace(weight=SimpleNamespace(float32=lambda: weight)),
    )
    return pair, draft(problem, magnitude=True, num_samples=rows, config=ClosedFormConfig())


def test_drafts_from_the_file_are_what_was_put() -> None:
    # A place that is off by one array, a shape or type that is lost, a part of the Gram matrix that
    # is left behind: other adapters where a model is large, and only there.
    pairs, drafts = zip(*map(drafted, GEOMETRIES), strict=True)
    with Shelf(pairs, held_bytes=0) as shelf:
        for pair, given in zip(reversed(pairs), reversed(drafts), strict=True):
            shelf.put(pair, given)
        for found, given in zip(shelf, drafts, strict=True):
            assert found is not given
            for array, expected in (
                (found.need, given.need),
                (found.m, given.m),
                (found.problem.error, given.problem.error),
                (found.problem.target, given.problem.target),
                (found.problem.metric.dense(), given.problem.metric.dense()),
                (found.problem.metric_target, given.problem.metric_target),
                (found.without_magnitude().need, given.without_magnitude().need),
            ):
                assert array.dtype == expected.dtype
                assert np.array_equal(array, expected)
        kinds = Kinds(sparse=True)
        for share, expected in zip(
            allocate(shelf, 900, kinds, 0.5), allocate(drafts, 900, kinds, 0.5), strict=True
        ):
            assert (share.rank, share.magnitude) == (expected.rank, expected.magnitude)
            assert np.array_equal(share.cells, expected.cells)


def test_first_drafts_stay_in_memory() -> None:
    # Small models would be read from a file a dozen times.
    (pair, given), (other, large) = drafted("groups"), drafted("few rows")
    with Shelf([pair, other], held_bytes=5000) as shelf:
        shelf.put(pair, given)
        shelf.put(other, large)
        assert shelf[0].problem.error is given.problem.error
        assert shelf[1].problem.error is not large.problem.error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # An OSError of a file that nobody knows of.
    full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - the shelf closes it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    pair, given = drafted("groups")
    with (
        Shelf([pair], held_bytes=0) as shelf,
        pytest.raises(CalibrationError, match=r"no room in .* \(No space left on device\)\. Set"),
    ):
        shelf.put(pair, given)
