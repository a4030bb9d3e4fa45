# SPDX-License-Identifier: Apache-2.0
"""One device under one policy: what it is asked, what it is given, and when."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.errors import DataError, UsageError, suggest
from rimc_onnx.execution.sessions import open_session
from rimc_onnx.io.feeds import graph_inputs
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.io.samples import Data, load_samples
from rimc_onnx.jobs.evaluate import evaluate_session
from rimc_onnx.jobs.figures import Metric
from rimc_onnx.passes import AttachAdaptersPass, rram_branches
from rimc_onnx.studies.baselines import BASELINES, BaselineProblem
from rimc_onnx.studies.stages import figure_value, name_of_figure

__all__ = ["Device", "Judge", "Probe", "Probed", "Run"]


class Judge:
    """The one figure by which states of a device are compared; the clean model is the first."""

    def __init__(
        self,
        model: Path,
        test: Data,
        labels: str | None,
        metric: str | Metric | None,
        batch_size: int,
    ) -> None:
        """Evaluates the clean model."""
        self._test, self._metric, self._batch_size = test, metric, batch_size
        # The clean model is the teacher where nothing else judges.
        alone = labels is None and metric is None
        report = api.evaluate(
            model,
            data=test,
            labels=labels,
            teacher=model if alone else None,
            metric=metric,
            native=False,
            batch_size=batch_size,
        )
        self.figure = name_of_figure(report, has_metric=metric is not None)
        self.clean = figure_value(report, self.figure, has_metric=metric is not None)
        self.test_samples = report.samples
        self.labels = labels if labels is not None or self.figure != "top1" else "labels"
        self._teacher = model if self.figure == "agreement" and metric is None else None
        if not self.clean > 0:
            raise UsageError(f"the clean model has {self.figure} {self.clean}: nothing to keep.")

    def __call__(self, model: Path) -> float:
        """The figure of a converted model."""
        report = api.evaluate(
            model,
            data=self._test,
            labels=None if self._teacher else self.labels,
            teacher=self._teacher,
            metric=self._metric,
            batch_size=self._batch_size,
        )
        return figure_value(report, self.figure, has_metric=self._metric is not None)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Answers of a device to the probe samples."""

    agreement: float | None
    """Share of best classes that are the teacher's; ``None`` for outputs without classes."""
    error: float
    """Error power over the power of the teacher's outputs, mean of the outputs."""


class Probe:
    """A few samples without labels on which a device is compared with its teacher."""

    def __init__(
        self, teacher: Path, data: Data, calibrate: CalibrateConfig, num_samples: int
    ) -> None:
        """Drawn apart from the samples of the calibrations."""
        graph = load_model(teacher)
        samples = load_samples(data, graph_inputs(graph))
        if calibrate.num_samples + num_samples > samples.num_samples:
            raise DataError(
                f"{num_samples} probe samples were asked for beside the {calibrate.num_samples} "
                f"of a calibration, the data has {samples.num_samples}. Give fewer `probe_samples` "
                "or more data."
            )
        self._samples = samples.draw(
            num_samples, seed=calibrate.sample_seed, after=calibrate.num_samples
        )
        self._teacher = open_session(teacher, native=False)
        self._outputs = [o.name or "" for o in graph.graph.outputs]

    def __call__(self, model: Path) -> Probed:
        """What ``model`` gives for the probe samples, beside its teacher."""
        report = evaluate_session(
            open_session(model, native=True),
            self._samples,
            outputs=self._outputs,
            model=str(model),
            teacher=self._teacher,
            strict=False,
        )
        # Where there is no error there is no SQNR.
        found = [0.0 if db is None else 10 ** (-db / 10) for db in (report.sqnr_db or {}).values()]
        return Probed(agreement=report.agreement, error=fmean(found) if found else 0.0)


@dataclass(frozen=True, kw_only=True)
class Device:
    """The arrays as they were programmed, and what may be used to calibrate them."""

    folder: Path
    teacher: Path
    converted: Path
    data: Data
    calibrate: CalibrateConfig
    probe: Probe | None
    _fitted: dict[float, tuple[Path, int, float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def aged(self, model: Path, time_s: float) -> Iterator[Path]:
        """``model`` with its arrays at another age; the file is gone at the end."""
        with tempfile.TemporaryDirectory(prefix="aged-", dir=self.folder) as name:
            target = Path(name) / "model.rimc.onnx"
            api.age(model, target, time_s=time_s, teacher=self.teacher)
            yield target

    def fitted(self, time_s: float) -> tuple[Path, int, float]:
        """Calibrated at an age: the file, its adapters' bytes, seconds of the fit."""
        if time_s not in self._fitted:
            target = self.folder / f"fitted{len(self._fitted)}.rimc.onnx"
            with self.aged(self.converted, time_s) as aged:
                report = api.calibrate(
                    aged,
                    target,
                    data=self.data,
                    teacher=self.teacher,
                    config=replace(self.calibrate, allow_identity=True),
                    report=False,
                )
            self._fitted[time_s] = (target, report.sram_bytes, report.seconds)
        return self._fitted[time_s]

    def any_fitted(self) -> Path:
        """A calibrated model, or the converted one where nothing was calibrated."""
        return next((path for path, _, _ in self._fitted.values()), self.converted)


@dataclass(kw_only=True)
class _Level:
    age_s: float
    adapters: Mapping[str, Any]
    sram_bytes: int
    seconds: float


class Run:
    """The life of a device under one policy, checkpoint by checkpoint."""

    def __init__(
        self,
        device: Device,
        policy: str,
        *,
        period_s: float,
        threshold: float | None,
        growth: float,
    ) -> None:
        """``period_s`` is of the policy ``periodic``, ``threshold`` and ``growth`` of ``probe``."""
        self.policy = policy
        self._device, self._period_s = device, period_s
        self._threshold, self._growth = threshold, growth
        self._fitted_error = 0.0
        self._in_use: Path | None = None
        self._since_s = 0.0
        self._levels: list[_Level] = []
        self._level: _Level | None = None
        self.calibrations = 0
        """Times that adapters were fitted or changed."""
        self.fits = 0
        """Of these, fits to the device itself."""
        self.sram_bytes = 0
        self.sram_writes = 0
        self.host_seconds = 0.0

    def prepare(
        self,
        ages: Sequence[float],
        nominal: Path,
        name: str,
        data: Data,
        labels: str | None,
        options: Mapping[str, Any],
    ) -> None:
        """Make the sets of a schedule on another device of the same law."""
        if name not in BASELINES:
            raise UsageError(f"baseline {name!r} is not known. {suggest(name, BASELINES)}")
        folder = self._device.folder
        for index, age_s in enumerate(ages):
            out = folder / f"level{index}.rimc.onnx"
            with self._device.aged(nominal, age_s) as aged:
                result = BASELINES[name](
                    BaselineProblem(
                        teacher=self._device.teacher,
                        converted=aged,
                        data=data,
                        labels=labels,
                        out=out,
                        options=options,
                    )
                )
            if result.rram_writes:
                raise UsageError(
                    f"baseline {name!r} writes arrays; a schedule changes adapters alone."
                )
            adapters = {b.node: b.adapter() for b in rram_branches(load_model(result.model))}
            self._levels.append(
                _Level(
                    age_s=age_s,
                    adapters=adapters,
                    sram_bytes=result.sram_bytes,
                    seconds=result.seconds,
                )
            )
        self.sram_bytes = sum(level.sram_bytes for level in self._levels)
        self.host_seconds = sum(level.seconds for level in self._levels)

    def point(self, time_s: float, judge: Judge) -> dict[str, Any]:
        """Age to ``time_s``, do what the policy says, evaluate; fields of a ``LifetimePoint``."""
        before, probed = None, None
        if self.policy == "periodic":
            self._periodic(time_s)
        if self._levels:
            with self._switched(time_s) as model:
                value = judge(model)
        elif self._in_use is None:
            value = judge(self._fit(time_s))
        else:
            with self._device.aged(self._in_use, time_s) as model:
                value = judge(model)
                if self._device.probe is not None and self.policy == "probe":
                    probed = self._device.probe(model)
            if probed is not None and self._asks(probed):
                before, value = value, judge(self._fit(time_s))
        return {
            "time_s": time_s,
            "value": value,
            "frac_of_clean": value / judge.clean,
            "before": before,
            "agreement": None if probed is None else probed.agreement,
            "probe_error": None if probed is None else probed.error,
        }

    def _asks(self, probed: Probed) -> bool:
        """Whether a device with such answers is to be calibrated."""
        if self._threshold is None:
            return probed.error > self._growth * self._fitted_error
        if probed.agreement is None:
            raise UsageError(
                "the model's outputs are numbers without classes, so nothing agrees. Leave out "
                "`threshold`: the error of the outputs tells then."
            )
        return probed.agreement < self._threshold

    def _fit(self, time_s: float) -> Path:
        """Adapters fitted to the arrays as they are at ``time_s``."""
        self._in_use, self.sram_bytes, seconds = self._device.fitted(time_s)
        self._count(1, seconds)
        self._since_s = time_s
        if self._device.probe is not None and self.policy == "probe":
            self._fitted_error = self._device.probe(self._in_use).error
        return self._in_use

    def _count(self, times: int, seconds: float) -> None:
        self.calibrations += times
        self.fits += times
        self.host_seconds += times * seconds
        self.sram_writes += times * self.sram_bytes

    def _periodic(self, time_s: float) -> None:
        """The last of the periods up to ``time_s`` is simulated; the others are counted."""
        periods = math.floor((time_s - self._since_s) / self._period_s)
        if self._in_use is None or not periods:
            return
        self._since_s += periods * self._period_s
        self._in_use, self.sram_bytes, seconds = self._device.fitted(self._since_s)
        self._count(periods, seconds)

    @contextlib.contextmanager
    def _switched(self, time_s: float) -> Iterator[Path]:
        """The set whose age is nearest, on a logarithmic axis, on the arrays as they are."""
        level = min(self._levels, key=lambda found: abs(math.log(found.age_s / time_s)))
        if level is not self._level:
            self._level = level
            self.calibrations += 1
            self.sram_writes += level.sram_bytes
        with self._device.aged(self._device.converted, time_s) as aged:
            model = load_model(aged)
            AttachAdaptersPass(level.adapters)(model)
            switched = aged.with_name("switched.rimc.onnx")
            save_model(model, switched, force=False)
            yield switched
