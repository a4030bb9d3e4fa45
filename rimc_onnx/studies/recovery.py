# SPDX-License-Identifier: Apache-2.0
"""How much accuracy calibration gives back, and how far that depends on luck.

For every seed of the device and every draw of samples: convert, calibrate, evaluate.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev, variance

import numpy as np

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import CalibrationError, UsageError
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.io.feeds import data_beside
from rimc_onnx.io.samples import Data
from rimc_onnx.jobs.figures import Metric
from rimc_onnx.studies.runner import SameProcess, run
from rimc_onnx.studies.study import ROWS, study_folder, write_study
from rimc_onnx.studies.study_file import shipped_study
from rimc_onnx.studies.trial import Row, Trial

__all__ = ["RecoveryNode", "RecoveryReport", "RecoveryRun", "Spread", "recovery_study"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Several figures of one kind."""

    count: int
    mean: float
    std: float | None
    """Sample standard deviation (count - 1); ``None`` for a single figure."""
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one figure."""
        return cls(
            count=len(values),
            mean=fmean(values),
            std=stdev(values) if len(values) > 1 else None,
            min=min(values),
            max=max(values),
        )


@dataclass(frozen=True, kw_only=True)
class RecoveryRun:
    """One device, one draw of samples."""

    seed: int
    """Of the device."""
    draw: int
    """Seed of the draw of samples."""
    uncalibrated: float
    calibrated: float
    sram_bytes: int
    gamma: float
    seconds: float
    """Time of the calibration."""


@dataclass(frozen=True, kw_only=True)
class RecoveryNode:
    """One node over all runs; errors are relative to the power of the teacher's feature."""

    name: str
    error_before: float
    """Mean."""
    error_after: float
    """Mean."""
    error_after_max: float
    """Of the worst run."""


@dataclass(frozen=True, kw_only=True)
class RecoveryReport:
    """What a study found; all figures are of the kind ``figure``."""

    model: str
    figure: str
    """``top1``, ``agreement`` (with the clean model) or the name of the metric."""
    clean: float
    uncalibrated: Spread
    """Over the seeds."""
    calibrated: Spread
    """Over all runs. Runs of one seed share a device, so these are not independent."""
    draws_std: float | None
    """Standard deviation between draws for one device, pooled over the devices; ``None`` for a
    single draw."""
    restored_frac: float | None
    """Share of what drift took that calibration gives back, of the means; ``None`` where drift took
    nothing."""
    samples: int
    """Of one calibration."""
    test_samples: int
    device: str
    nodes: list[RecoveryNode]
    """Largest mean ``error_after`` first."""
    runs: list[RecoveryRun]
    seconds: float
    """Of the whole study."""


def recovery_study(
    model: str | Path,
    *,
    test: Data,
    data: Data | None = None,
    seeds: Sequence[int] = range(5),
    draws: Sequence[int] = range(3),
    config: ConvertConfig | None = None,
    calibrate: CalibrateConfig | None = None,
    statistics: str | Path | None = None,
    labels: str | None = None,
    metric: str | Metric | None = None,
    device: SessionFactory | None = None,
    batch_size: int = 64,
    folder: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda _done, _total: None,
    on_run: Callable[[RecoveryRun], None] = lambda _run: None,
) -> RecoveryReport:
    """The shipped study ``recovery``: ``len(seeds) * len(draws)`` times the main job.

    Models lie in a temporary folder, those of one seed at a time.

    Args:
        model: the teacher, an .onnx file.
        test: samples to evaluate on.
        data: samples to calibrate on; default is ``calibration.npz`` beside the model.
        seeds: of the device; they take the place of ``config.seed``.
        draws: seeds of the draw of samples; they take the place of ``calibrate.sample_seed``.
        config: of the conversions.
        calibrate: of the calibrations.
        statistics: a file of the teacher's statistics, for arrays that are read out.
        labels: name of the label array; default is ``labels`` where the data has one. With neither
            labels nor a metric the figure is the agreement with the clean model.
        metric: a function, or ``module:callable``, of (outputs, extra arrays), for one number.
        device: makes a session from the bytes of a converted model; default is the native
            simulator.
        batch_size: samples a run of an evaluation.
        folder: where rows, plots and a page are kept, as of any study; it goes on there. ``None``
            keeps none.
        command: what the page says makes it again.
        progress: called with (evaluations done, evaluations in all).
        on_run: called with each new run as soon as it is known.

    Raises:
        RimcError: see :mod:`rimc_onnx.api`; a list of seeds or draws is empty or repeats itself;
            the metric gives several figures.
    """
    start = time.perf_counter()
    _check_seeds("seeds", seeds)
    _check_seeds("draws", draws)
    source = Path(model)
    calibrate = calibrate or CalibrateConfig()
    if calibrate.num_samples and source.is_file():
        data_beside(source, data)
    first = Trial(
        model=source,
        test=test,
        data=data,
        labels=labels,
        metric=metric,
        batch_size=batch_size,
        convert=config or ConvertConfig(),
        method=calibrate,
        statistics=None if statistics is None else Path(statistics),
        session=device,
    )
    found: list[RecoveryRun] = []

    def told(row: Row) -> None:
        found.append(_run_of(row))
        on_run(found[-1])

    study = shipped_study("recovery", trial=first, seeds=seeds, draws=draws)
    target = None if folder is None else study_folder(folder)
    rows = run(
        [point.trial for point in study.points],
        None if target is None else target / ROWS,
        engine=SameProcess(),
        progress=progress,
        on_row=told,
    )
    if target is not None:
        if failed := next((row["error"] for row in rows if row["error"]), None):
            raise CalibrationError(f"{target / ROWS}: a run failed: {failed}")
        write_study(study, rows, target, command)
    runs = [_run_of(row) for row in rows]
    before = Spread.of(list({run.seed: run.uncalibrated for run in runs}.values()))
    after = Spread.of([r.calibrated for r in runs])
    clean = rows[0]["clean"]
    lost = clean - before.mean
    # A metric does not say whether more is better.
    nothing_lost = lost == 0 or (metric is None and lost < 0)
    return RecoveryReport(
        model=str(source),
        figure=rows[0]["figure"],
        clean=clean,
        uncalibrated=before,
        calibrated=after,
        draws_std=_pooled_std(runs),
        restored_frac=None if nothing_lost else (after.mean - before.mean) / lost,
        samples=calibrate.num_samples,
        test_samples=rows[0]["test_samples"],
        device=first.convert.device.preset,
        nodes=_worst_first(rows),
        runs=runs,
        seconds=time.perf_counter() - start,
    )


def _run_of(row: Row) -> RecoveryRun:
    return RecoveryRun(
        seed=row["seed"],
        draw=row["draw"],
        uncalibrated=row["uncalibrated"],
        calibrated=row["calibrated"],
        sram_bytes=row["sram_bytes"],
        gamma=row["gamma"],
        seconds=row["calibration_seconds"],
    )


def _pooled_std(runs: Sequence[RecoveryRun]) -> float | None:
    by_seed: dict[int, list[float]] = {}
    for one in runs:
        by_seed.setdefault(one.seed, []).append(one.calibrated)
    # As many draws for every seed, so the pooled variance is the mean of the variances.
    if any(len(values) < 2 for values in by_seed.values()):
        return None
    return float(np.sqrt(fmean(variance(v) for v in by_seed.values())))


def _worst_first(rows: Sequence[Row]) -> list[RecoveryNode]:
    errors: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, before, after in json.loads(row["nodes"]):
            errors.setdefault(name, []).append((before, after))
    nodes = [
        RecoveryNode(
            name=name,
            error_before=fmean(before for before, _ in pairs),
            error_after=fmean(after for _, after in pairs),
            error_after_max=max(after for _, after in pairs),
        )
        for name, pairs in errors.items()
    ]
    return sorted(nodes, key=lambda node: -node.error_after)


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
    if not seeds:
        raise UsageError(f"`{name}` must be 1 or more, got 0.")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"{name} {list(seeds)} repeat themselves: equal seeds give equal results.")
