# SPDX-License-Identifier: Apache-2.0
"""Accuracy of one device over its life, by when its adapters are fitted anew.

The device is programmed once. Between checkpoints its arrays age (:func:`rimc_onnx.age`); at a
checkpoint a policy may fit other adapters to them as they are then, and the model is evaluated.
Accuracy between checkpoints is not looked at: they lie close on a logarithmic axis, on which the
laws of relaxation are straight.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, unique
from pathlib import Path
from typing import Any

import numpy as np

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.errors import ConfigError, UsageError
from rimc_onnx.io.feeds import data_beside
from rimc_onnx.io.samples import Data
from rimc_onnx.jobs.figures import Metric
from rimc_onnx.studies.lifetime_cost import CalibrationCost, calibration_cost
from rimc_onnx.studies.lifetime_run import Device, Judge, Probe, Run

__all__ = [
    "LifetimeConfig",
    "LifetimePoint",
    "LifetimePolicy",
    "LifetimeReport",
    "Policy",
    "lifetime",
]

Progress = Callable[[int, int], None]
_YEAR_S = 365.25 * 86400
_TEN_YEARS_S = 10 * _YEAR_S


@unique
class Policy(Enum):
    """When a device in the field gets other adapters; all but the last are calibrated at first."""

    NEVER = "never"
    """Calibrated when it is deployed, and not again."""
    PERIODIC = "periodic"
    """Calibrated anew after every ``period_s``."""
    PROBE = "probe"
    """Calibrated anew where its answers to a few probe samples are too far from the teacher's."""
    SCHEDULE = "schedule"
    """Sets made off line for a few ages, without the device, and chosen by the clock (VeRA+)."""


@dataclass(frozen=True, kw_only=True)
class LifetimeConfig:
    """Policies and checkpoints."""

    policies: tuple[Policy, ...] = (Policy.NEVER, Policy.PROBE)
    checkpoints: int = 20
    """Ages that are evaluated, evenly on a logarithmic axis, first and last included."""
    first_s: float | None = None
    """Age at deployment; ``None`` is the first that the device's law knows."""
    last_s: float | None = None
    """``None`` is ten years, or the last that the law knows."""
    period_s: float = _YEAR_S
    probe_samples: int = 32
    """Unlabelled samples that a device is asked now and then, the teacher's classes beside them."""
    threshold: float | None = None
    """Least share of them on which the best class is the teacher's; ``None`` goes by ``growth``."""
    growth: float = 1.5
    """Most error power of the outputs on them, over that right after the last calibration."""
    levels: int = 5
    """Sets of a schedule, evenly on a logarithmic axis."""
    schedule: str = "vera-plus"
    """The baseline that makes them."""

    def __post_init__(self) -> None:
        if not self.policies or len(set(self.policies)) != len(self.policies):
            raise ConfigError(f"`policies` must be one or more, each once; got {self._names()}.")
        for name, least in (("checkpoints", 2), ("probe_samples", 1), ("levels", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be {least} or more, got {getattr(self, name)}.")
        if not self.period_s > 0:
            raise ConfigError(f"`period_s` must be above 0, got {self.period_s}.")
        if not self.growth >= 1:
            raise ConfigError(f"`growth` must be 1 or more, got {self.growth}.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(f"`threshold` must lie in 0..1, a fraction; got {self.threshold}.")

    def _names(self) -> str:
        return ", ".join(p.value for p in self.policies) or "none"


@dataclass(frozen=True, kw_only=True)
class LifetimePoint:
    """One age under one policy."""

    policy: str
    time_s: float
    """Seconds since programming."""
    value: float
    """Figure of the device as it is used from here on."""
    frac_of_clean: float
    """The same over that of the clean model."""
    before: float | None
    """Figure before adapters were fitted here; ``None`` where none were."""
    agreement: float | None
    """On the probe samples, before that; policy ``probe`` only."""
    probe_error: float | None
    """Error power of their outputs over the teacher's, before that; policy ``probe`` only."""


@dataclass(frozen=True, kw_only=True)
class LifetimePolicy:
    """A life under one policy."""

    policy: str
    lowest_frac: float
    """Least ``frac_of_clean`` of all points."""
    last_frac: float
    calibrations: int
    """Times that adapters were fitted or changed, the first one included."""
    sram_bytes: int
    """Held: adapters of one age, or the sets of all."""
    sram_writes: int
    """Bytes written in all calibrations."""
    sram_endurance_left_frac: float
    """Of an SRAM cell, after one write in every calibration."""
    rram_writes: int
    """Devices written after deployment."""
    rram_endurance_left_frac: float
    energy_uj: float
    """Of all calibrations: runs on the device, fits on a host, writes."""
    device_seconds: float
    """The device's time in all calibrations."""
    host_seconds: float
    """Time of fits here; those at periods that were not simulated are taken to be as long."""


@dataclass(frozen=True, kw_only=True)
class LifetimeReport:
    """Lives of one device."""

    model: str
    device: str
    seed: int
    figure: str
    """``top1``, ``agreement`` (with the clean model) or the name of the metric."""
    clean: float
    samples: int
    """Of one calibration."""
    probe_samples: int
    test_samples: int
    schedule: str | None
    """Baseline of the policy ``schedule``; ``None`` without it."""
    policies: list[LifetimePolicy]
    points: list[LifetimePoint]
    """Policy after policy, in the order of time."""
    costs: CalibrationCost
    """Of one calibration, and of writing all arrays anew in its place."""
    seconds: float
    folder: str | None = None
    """Where JSON, plot and page were written."""


def lifetime(
    model: str | Path,
    *,
    test: Data,
    data: Data | None = None,
    config: ConvertConfig | None = None,
    calibrate: CalibrateConfig | None = None,
    life: LifetimeConfig | None = None,
    schedule_data: Data | None = None,
    schedule_options: Mapping[str, Any] | None = None,
    labels: str | None = None,
    metric: str | Metric | None = None,
    constants: str | Path | None = None,
    batch_size: int = 64,
    progress: Progress = lambda _done, _total: None,
    on_point: Callable[[LifetimePoint], None] = lambda _point: None,
) -> LifetimeReport:
    """Program one device and follow it under each policy.

    Files lie in a temporary folder. Every policy sees the same arrays at the same ages.

    Args:
        model: the teacher, an .onnx file.
        test: samples to evaluate on.
        data: samples to calibrate on, the probe samples too; default is ``calibration.npz`` beside
            the model. Probe samples are drawn apart from those of the calibrations.
        config: of the conversion; its time is ``life.first_s``.
        calibrate: of the calibrations.
        life: policies and checkpoints.
        schedule_data: training set of a schedule; default is ``data``.
        schedule_options: of the baseline that makes it.
        labels: name of the label array; as of :func:`rimc_onnx.evaluate`.
        metric: a function, or ``module:callable``, of (outputs, extra arrays), for one number.
        constants: a TOML file of constants of the cost.
        batch_size: samples a run of an evaluation.
        progress: called with (points done, points in all).
        on_point: called with each point as soon as it is known.

    Raises:
        RimcError: see :mod:`rimc_onnx.api`; the device model has no time axis, or not these ages.
    """
    start = time.perf_counter()
    config, calibrate = config or ConvertConfig(), calibrate or CalibrateConfig()
    life, source = life or LifetimeConfig(), Path(model)
    ages = _ages(config, life, life.checkpoints)
    used = data_beside(source, data)
    points: list[LifetimePoint] = []
    policies: list[LifetimePolicy] = []
    with tempfile.TemporaryDirectory(prefix="rimc-lifetime-") as name:
        folder = Path(name)
        judge = Judge(source, test, labels, metric, batch_size)
        converted = folder / "model.rimc.onnx"
        api.convert(source, converted, config=replace(config, time_s=ages[0]), data=data)
        asks = Policy.PROBE in life.policies
        device = Device(
            folder=folder,
            teacher=source,
            converted=converted,
            data=used,
            calibrate=calibrate,
            probe=Probe(source, used, calibrate, life.probe_samples) if asks else None,
        )
        runs = []
        for policy in life.policies:
            run = Run(
                device,
                policy.value,
                period_s=life.period_s,
                threshold=life.threshold,
                growth=life.growth,
            )
            if policy is Policy.SCHEDULE:
                run.prepare(
                    _ages(config, life, life.levels),
                    _nominal(source, folder, config, ages[0], data),
                    life.schedule,
                    used if schedule_data is None else schedule_data,
                    judge.labels,
                    dict(schedule_options or {}),
                )
            for age_s in ages:
                point = LifetimePoint(**run.point(age_s, judge), policy=policy.value)
                points.append(point)
                on_point(point)
                progress(len(points), len(ages) * len(life.policies))
            runs.append(run)
        cost = calibration_cost(device.any_fitted(), used, calibrate, constants)
        policies = [
            _summary(run, cost, [p for p in points if p.policy == run.policy]) for run in runs
        ]
    return LifetimeReport(
        model=str(source),
        device=config.device.preset,
        seed=config.seed,
        figure=judge.figure,
        clean=judge.clean,
        samples=calibrate.num_samples,
        probe_samples=life.probe_samples if asks else 0,
        test_samples=judge.test_samples,
        schedule=life.schedule if Policy.SCHEDULE in life.policies else None,
        policies=policies,
        points=points,
        costs=cost,
        seconds=time.perf_counter() - start,
    )


def _ages(config: ConvertConfig, life: LifetimeConfig, count: int) -> list[float]:
    """Evenly on a logarithmic axis, both ends included; a single one is in the middle."""
    span = config.device.time_range_s
    if span is None or span[0] == span[1]:
        raise UsageError(
            f"device '{config.device.preset}' has no time axis, so nothing ages. Give a model with "
            "a time law, such as cmo-hfox-2025-2pct."
        )
    # A law may begin at 0 s, of which there is no logarithm.
    first = max(span[0], 1.0) if life.first_s is None else life.first_s
    last = min(span[1], _TEN_YEARS_S) if life.last_s is None else life.last_s
    for name, age in (("first_s", first), ("last_s", last)):
        if not span[0] <= age <= span[1]:
            raise UsageError(
                f"`{name}` is {age:g} s, the law of '{config.device.preset}' holds from "
                f"{span[0]:g} to {span[1]:g} s."
            )
    if not 0 < first < last:
        raise UsageError(f"need 0 < `first_s` < `last_s`, got {first:g} and {last:g} seconds.")
    if count == 1:
        return [float(np.sqrt(first * last))]
    inner = np.geomspace(first, last, count)[1:-1]
    return [first, *map(float, inner), last]


def _nominal(
    source: Path, folder: Path, config: ConvertConfig, first_s: float, data: Data | None
) -> Path:
    """Another device of the same law: what is made off line knows nothing of the one in use."""
    target = folder / "nominal.rimc.onnx"
    other = replace(config, time_s=first_s, seed=config.seed + 1)
    api.convert(source, target, config=other, data=data)
    return target


def _summary(run: Run, cost: CalibrationCost, points: Sequence[LifetimePoint]) -> LifetimePolicy:
    values = [p.frac_of_clean for p in points]
    count, fits = run.calibrations, run.fits
    written = run.sram_writes
    return LifetimePolicy(
        policy=run.policy,
        lowest_frac=min(values),
        last_frac=values[-1],
        calibrations=count,
        sram_bytes=run.sram_bytes,
        sram_writes=written,
        sram_endurance_left_frac=max(0.0, 1 - count / cost.sram_endurance),
        rram_writes=0,
        rram_endurance_left_frac=max(0.0, 1 - 1 / cost.rram_endurance),
        energy_uj=fits * (cost.device_uj + cost.fit_uj) + written * cost.sram_byte_uj,
        device_seconds=fits * cost.device_seconds + written * cost.sram_byte_seconds,
        host_seconds=run.host_seconds,
    )
