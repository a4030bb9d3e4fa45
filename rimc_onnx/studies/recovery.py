# SPDX-License-Identifier: Apache-2.0
"""How much accuracy calibration gives back, and how far that depends on luck.

For every seed of the device and every draw of samples: convert, calibrate, evaluate.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import UsageError
from rimc_onnx.execution.sessions import SessionFactory
from rimc_onnx.io.feeds import data_beside
from rimc_onnx.io.samples import Data
from rimc_onnx.jobs.evaluate import EvaluationReport, Metric

__all__ = ["RecoveryNode", "RecoveryReport", "RecoveryRun", "Spread", "recovery_study"]

Array = npt.NDArray[Any]
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
    progress: Progress = lambda _done, _total: None,
    on_run: Callable[[RecoveryRun], None] = lambda _run: None,
) -> RecoveryReport:
    """Convert, calibrate and evaluate ``len(seeds) * len(draws)`` times.

    Files lie in a temporary folder, those of one seed at a time.

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
        progress: called with (evaluations done, evaluations in all).
        on_run: called with each run as soon as it is known.

    Raises:
        RimcError: see :mod:`rimc_onnx.api`; a list of seeds or draws is empty or repeats itself;
            the metric gives several figures.
    """
    start = time.perf_counter()
    _check_seeds("seeds", seeds)
    _check_seeds("draws", draws)
    config, calibrate = config or ConvertConfig(), calibrate or CalibrateConfig()
    source = Path(model)
    samples = data  # a conversion gets what was given alone, as the command convert does
    if data is None and calibrate.num_samples and source.is_file():
        samples = data_beside(source, None)
    judge = _Judge(
        *(source, test, labels, metric, device, batch_size, progress),
        1 + len(seeds) * (1 + len(draws)),
    )
    runs: list[RecoveryRun] = []
    errors: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        one = replace(config, seed=seed)
        for run, nodes in _runs_of_device(
            source, data, samples, one, draws, calibrate, statistics, device, judge
        ):
            runs.append(run)
            for node in nodes:
                errors.setdefault(node.name, []).append((node.error_before, node.error_after))
            on_run(run)
    before = Spread.of(list({run.seed: run.uncalibrated for run in runs}.values()))
    after = Spread.of([r.calibrated for r in runs])
    return RecoveryReport(
        model=str(source),
        figure=judge.figure,
        clean=judge.clean,
        uncalibrated=before,
        calibrated=after,
        draws_std=_pooled_std(runs),
        restored_frac=_restored(judge, before.mean, after.mean),
        samples=calibrate.num_samples,
        test_samples=judge.test_samples,
        device=config.device.preset,
        nodes=_worst_first(errors),
        runs=runs,
        seconds=time.perf_counter() - start,
    )


def _runs_of_device(
    source: Path,
    data: Data | None,
    samples: Data | None,
    config: ConvertConfig,
    draws: Sequence[int],
    calibrate: CalibrateConfig,
    statistics: str | Path | None,
    device: SessionFactory | None,
    judge: _Judge,
) -> Iterator[tuple[RecoveryRun, list[api.CalibratedNodeReport]]]:
    """One conversion, and a calibration for every draw; its files are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="rimc-recovery-") as folder:
        converted = Path(folder) / "model.rimc.onnx"
        api.convert(source, converted, config=config, data=data)
        uncalibrated = judge(converted)
        for draw in draws:
            report = api.calibrate(
                converted,
                data=samples,
                teacher=source,
                statistics=statistics,
                device=device,
                config=replace(calibrate, sample_seed=draw),
                force=True,
            )
            run = RecoveryRun(
                seed=config.seed,
                draw=draw,
                uncalibrated=uncalibrated,
                calibrated=judge(Path(report.output)),
                sram_bytes=report.sram_bytes,
                gamma=report.gamma,
                seconds=report.seconds,
            )
            yield run, report.nodes


class _Judge:
    """The one figure by which models are compared; the clean model is the first."""

    def __init__(
        self,
        model: Path,
        test: Data,
        labels: str | None,
        metric: str | Metric | None,
        device: SessionFactory | None,
        batch_size: int,
        progress: Progress,
        total: int,
    ) -> None:
        self._test, self._labels, self._metric = test, labels, metric
        self._device = device
        self._batch_size, self._progress, self._total = batch_size, progress, total
        self._done = 0
        # The clean model is the teacher where nothing else judges.
        self._teacher = model if labels is None and metric is None else None
        first = self._evaluate(model, clean=True)
        self.figure = _name_of_figure(first, has_metric=metric is not None)
        self.test_samples = first.samples
        self.clean = self._value(first)
        if self.figure == "top1":
            self._teacher = None

    @property
    def higher_is_better(self) -> bool | None:
        """``None``: a metric does not say."""
        return True if self._metric is None else None

    def __call__(self, model: Path) -> float:
        return self._value(self._evaluate(model, clean=False))

    def _evaluate(self, model: Path, *, clean: bool) -> EvaluationReport:
        report = api.evaluate(
            model,
            data=self._test,
            labels=self._labels,
            teacher=self._teacher,
            metric=self._metric,
            native=not clean,
            device=None if clean else self._device,
            batch_size=self._batch_size,
        )
        self._done += 1
        self._progress(self._done, self._total)
        return report

    def _value(self, report: EvaluationReport) -> float:
        if self._metric is not None:
            return report.metrics[self.figure]
        return float(getattr(report, self.figure))


def _name_of_figure(report: EvaluationReport, *, has_metric: bool) -> str:
    if has_metric:
        if len(report.metrics) != 1:
            raise UsageError(
                f"a study needs one figure, the metric gives {len(report.metrics)}: "
                f"{', '.join(report.metrics)}. Give a metric that returns one number."
            )
        return next(iter(report.metrics))
    if report.top1 is not None:
        return "top1"
    if report.agreement is None:
        raise UsageError(
            f"{report.model}: its outputs are numbers without classes, so models can't agree on "
            "one. Give `metric`."
        )
    return "agreement"


def _restored(judge: _Judge, before: float, after: float) -> float | None:
    lost = judge.clean - before
    if lost == 0 or (judge.higher_is_better and lost < 0):
        return None
    return (after - before) / lost


def _pooled_std(runs: Sequence[RecoveryRun]) -> float | None:
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run.calibrated)
    # As many draws for every seed, so the pooled variance is the mean of the variances.
    if any(len(values) < 2 for values in by_seed.values()):
        return None
    return float(np.sqrt(fmean(variance(v) for v in by_seed.values())))


def _worst_first(errors: Mapping[str, Sequence[tuple[float, float]]]) -> list[RecoveryNode]:
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
