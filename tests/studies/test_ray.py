# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of this machine gives the rows of its processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import UsageError
from rimc_onnx.studies.ray_engine import RayCluster
from rimc_onnx.studies.runner import SameProcess, run
from rimc_onnx.studies.trial import Trial

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
pytest.importorskip("pyarrow", reason="the rows of a study need pyarrow (extra `study`)")

TIMES = {"seconds", "calibration_seconds"}


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    yield RayCluster(count=2)
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of its processes
def test_rows_are_those_of_this_process(
    digits_folder: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    # Paths of another machine, a reader's default beside a copy, results that are left behind.
    trials = [
        Trial(
            model=digits_folder / "model.onnx",
            test=digits_folder / "test.npz",
            convert=ConvertConfig(seed=seed),
            method=CalibrateConfig(num_samples=4, rank=rank),
        )
        for seed in range(2)
        for rank in (1, 2)
    ]
    there = run(trials, tmp_path / "rows.parquet", engine=cluster)
    here = run(trials, engine=SameProcess())
    assert [{k: v for k, v in row.items() if k not in TIMES} for row in there] == [
        {k: v for k, v in row.items() if k not in TIMES} for row in here
    ]


def test_wrong_number_of_workers_is_refused() -> None:
    with pytest.raises(UsageError, match="`workers` must be 1 or more, got 0"):
        RayCluster(count=0)
