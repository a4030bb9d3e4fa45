# SPDX-License-Identifier: Apache-2.0
"""The steps of a trial, each made once: a folder of results by key, which processes share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.errors import UsageError, suggest
from rimc_onnx.io.feeds import data_beside, graph_inputs
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.samples import Data, load_samples
from rimc_onnx.jobs.evaluate import EvaluationReport
from rimc_onnx.studies.trial import BaselineMethod, Keys, Row, Trial
from rimc_onnx.training.config import FinetuneConfig

__all__ = ["Stages", "failed_row", "figure_value", "name_of_figure"]

_RESULT = "result.json"
_OF_A_CALIBRATION: tuple[str, ...] = ("energy_nj", "latency_us", "area_mm2")
_OF_A_CALIBRATION += ("gamma", "taken_back", "is_identity", "nodes")
"""Columns that only this package's own calibration fills."""


class Stages:
    """Steps of trials; what several of them need is made once and lies in ``folder``.

    A result is a folder named by its key, complete from the moment that it has the name: whoever
    else made the same meanwhile is thrown away.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is there already."""
        self._folder = folder

    def prefix(self, name: str, trial: Trial, keys: Keys) -> None:
        """Make one of ``keys.prefixes``."""
        make: Mapping[str, Callable[[Trial, Keys], Any]] = {
            "clean": self._clean,
            "trained": self._trained,
            "statistics": self._statistics,
            "converted": self._converted,
        }
        make[name](trial, keys)

    def drop(self, keys: Iterable[str]) -> None:
        """Remove results that nobody needs any more."""
        for key in keys:
            shutil.rmtree(self._folder / key, ignore_errors=True)

    def row(self, trial: Trial, keys: Keys) -> Row:
        """What the trial gives.

        Raises:
            RimcError: see :mod:`rimc_onnx.api`.
        """
        start = time.perf_counter()
        clean = self._clean(trial, keys)
        converted = self._converted(trial, keys)
        before = converted["uncalibrated"]
        found: Row = {
            **_description(trial, keys),
            **{name: clean[name] for name in ("figure", "test_samples", "clean")},
            "trained": converted["trained"],
            "rram_weights": converted["rram_weights"],
            "uncalibrated": before,
        }
        found |= self._calibrated(trial, keys, before)
        found["sram_frac"] = found["sram_bytes"] / converted["rram_weights"]
        lost = clean["clean"] - before
        higher_is_better = True if trial.metric is None else None
        nothing_lost = lost == 0 or (higher_is_better and lost < 0)
        found["restored_frac"] = None if nothing_lost else (found["calibrated"] - before) / lost
        return {**found, "seconds": time.perf_counter() - start, "error": None}

    def _calibrated(self, trial: Trial, keys: Keys, uncalibrated: float) -> Row:
        method = trial.method
        if method is None:
            nothing = dict.fromkeys(_OF_A_CALIBRATION)
            costs = {"sram_bytes": 0, "rram_writes": 0, "calibration_seconds": 0.0}
            return {"calibrated": uncalibrated, **costs, **nothing}
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self._folder) as folder:
            target = Path(folder) / "calibrated.onnx"
            if isinstance(method, BaselineMethod):
                costs = self._baseline(trial, keys, method, target)
            else:
                costs = self._own(trial, keys, method, target)
            model = Path(str(costs.pop("model")))
            return {"calibrated": self._score(trial, model, keys, is_clean=False), **costs}

    def _own(self, trial: Trial, keys: Keys, method: CalibrateConfig, target: Path) -> Row:
        statistics = trial.statistics
        if keys.statistics is not None:
            statistics = self._statistics(trial, keys)
        report = api.calibrate(
            self._folder / keys.converted / "model.rimc.onnx",
            target,
            data=_beside(trial),
            teacher=self._teacher(trial, keys),
            force=True,  # of a teacher that is not what was converted; the output is new
            statistics=statistics,
            device=trial.session,
            config=method,
            report=False,
        )
        nodes = [[n.name, n.error_before, n.error_after] for n in report.nodes]
        cost = report.cost
        return {
            "model": report.output,
            "sram_bytes": report.sram_bytes,
            "rram_writes": 0,
            "calibration_seconds": report.seconds,
            "energy_nj": None if cost is None else cost.energy_nj,
            "latency_us": None if cost is None else cost.latency_us,
            "area_mm2": None if cost is None else cost.area_mm2,
            "gamma": report.gamma,
            "taken_back": report.taken_back,
            "is_identity": report.is_identity,
            "nodes": json.dumps(nodes, separators=(",", ":")),
        }

    def _baseline(self, trial: Trial, keys: Keys, method: BaselineMethod, target: Path) -> Row:
        from rimc_onnx.studies.baselines import BASELINES, BaselineProblem

        if method.name not in BASELINES:
            raise UsageError(
                f"baseline {method.name!r} is not known. {suggest(method.name, BASELINES)}"
            )
        teacher = self._source(trial, keys)
        data = data_beside(trial.model, trial.data)
        labels = trial.labels or "labels"
        samples = load_samples(data, graph_inputs(load_model(teacher)))
        result = BASELINES[method.name](
            BaselineProblem(
                teacher=teacher,
                converted=self._folder / keys.converted / "model.rimc.onnx",
                data=data,
                labels=labels if labels in samples.extras else None,
                out=target,
                seed=method.sample_seed,
                options={"num_samples": method.num_samples, **method.options},
            )
        )
        return {
            "model": result.model,
            "sram_bytes": result.sram_bytes,
            "rram_writes": result.rram_writes,
            "calibration_seconds": result.seconds,
            **dict.fromkeys(_OF_A_CALIBRATION),
        }

    def _clean(self, trial: Trial, keys: Keys) -> dict[str, Any]:
        def make(_folder: Path) -> dict[str, Any]:
            # The clean model is the teacher where nothing else judges.
            alone = trial.labels is None and trial.metric is None
            report = api.evaluate(
                trial.model,
                data=trial.test,
                labels=trial.labels,
                teacher=trial.model if alone else None,
                metric=trial.metric,
                native=False,
                batch_size=trial.batch_size,
            )
            figure = name_of_figure(report, has_metric=trial.metric is not None)
            value = figure_value(report, figure, has_metric=trial.metric is not None)
            return {"figure": figure, "clean": value, "test_samples": report.samples}

        return self._once(keys.clean, make)

    def _trained(self, trial: Trial, keys: Keys) -> Path:
        config = trial.training
        assert isinstance(config, FinetuneConfig)
        assert keys.trained is not None

        def make(folder: Path) -> dict[str, Any]:
            data = data_beside(trial.model, trial.data)
            report = api.finetune(trial.model, folder / "model.onnx", data=data, config=config)
            return {"seconds": report.seconds}

        self._once(keys.trained, make)
        return self._folder / keys.trained / "model.onnx"

    def _statistics(self, trial: Trial, keys: Keys) -> Path:
        assert keys.statistics is not None
        model = self._teacher(trial, keys)

        def make(folder: Path) -> dict[str, Any]:
            data = data_beside(trial.model, trial.data)
            report = api.write_statistics(model, folder / "statistics.npz", data=data)
            return {"samples": report.samples}

        self._once(keys.statistics, make)
        return self._folder / keys.statistics / "statistics.npz"

    def _converted(self, trial: Trial, keys: Keys) -> dict[str, Any]:
        source = self._source(trial, keys)
        trained = None
        if source != trial.model:
            trained = self._score(trial, source, keys, is_clean=True)

        def make(folder: Path) -> dict[str, Any]:
            target = folder / "model.rimc.onnx"
            needs = trial.convert.needs_ranges and trial.data is None
            data = data_beside(trial.model, None) if needs else trial.data
            report = api.convert(source, target, config=trial.convert, data=data)
            return {
                "rram_weights": report.rram_weights,
                "trained": trained,
                "uncalibrated": self._score(trial, target, keys, is_clean=False),
            }

        return self._once(keys.converted, make)

    def _source(self, trial: Trial, keys: Keys) -> Path:
        """The model that is converted."""
        if isinstance(trial.training, Path):
            return trial.training
        return trial.model if keys.trained is None else self._trained(trial, keys)

    def _teacher(self, trial: Trial, keys: Keys) -> Path:
        """What a calibration aims at: the model that is converted, where that is right by itself.

        Weights that were trained behind an I-V curve are wrong without it, and a teacher runs
        without: theirs is the one that they were trained from.
        """
        is_bent = trial.convert.iv_curve is not None and keys.trained is not None
        return trial.model if is_bent else self._source(trial, keys)

    def _score(self, trial: Trial, model: Path, keys: Keys, *, is_clean: bool) -> float:
        figure = self._clean(trial, keys)["figure"]
        report = api.evaluate(
            model,
            data=trial.test,
            labels=trial.labels,
            teacher=trial.model if figure == "agreement" and trial.metric is None else None,
            metric=trial.metric,
            native=not is_clean,
            device=None if is_clean else trial.session,
            batch_size=trial.batch_size,
        )
        return figure_value(report, figure, has_metric=trial.metric is not None)

    def _once(self, key: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``key``: what lies there, or what ``make`` leaves in its folder."""
        target = self._folder / key
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((target / _RESULT).read_text("utf-8"))
            return found
        with _begun(self._folder) as begun:
            result = make(begun)
            (begun / _RESULT).write_text(json.dumps(result), "utf-8")
            # Another process was quicker: its folder has the same.
            with contextlib.suppress(OSError):
                os.rename(begun, target)
        return result


@contextlib.contextmanager
def _begun(folder: Path) -> Iterator[Path]:
    """A new folder, gone at the end unless it has another name by then.

    It lies where the complete ones do: a converted model records the way to its teacher.
    """
    begun = folder / f".begun-{secrets.token_hex(8)}"
    begun.mkdir()
    try:
        yield begun
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _beside(trial: Trial) -> Data | None:
    if isinstance(trial.method, CalibrateConfig) and not trial.method.num_samples:
        return None
    return data_beside(trial.model, trial.data)


def name_of_figure(report: EvaluationReport, *, has_metric: bool) -> str:
    """The one figure of a report that models are compared by.

    Raises:
        UsageError: there is none, or the metric gives several.
    """
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


def figure_value(report: EvaluationReport, figure: str, *, has_metric: bool) -> float:
    """The figure ``name_of_figure`` names."""
    return report.metrics[figure] if has_metric else float(getattr(report, figure))


def _description(trial: Trial, keys: Keys) -> Row:
    """Who the row is of."""
    convert, method = trial.convert, trial.method
    own = method if isinstance(method, CalibrateConfig) else None
    adapter = None
    if own is not None:
        adapter = own.adapter or ("dora+sparse" if own.rank is None else "dora")
    name = "none" if method is None else "calibrate"
    if isinstance(method, BaselineMethod):
        name = method.name
    training = trial.training
    return {
        "key": keys.trial,
        "version": importlib.metadata.version("rimc-onnx"),
        "model": trial.model.name,
        "device": convert.device.preset,
        "drift_frac": convert.device.drift_frac,
        "time_s": convert.device.resolve_time(convert.time_s),
        "seed": convert.seed,
        "training": "none" if training is None else getattr(training, "name", "finetune"),
        "method": name,
        "knowledge": trial.knowledge,
        "adapter": adapter,
        "rank": None if own is None else own.rank,
        "solver": None if own is None else own.solver.value,
        "samples": 0 if method is None else method.num_samples,
        "draw": 0 if method is None else method.sample_seed,
    }


def failed_row(trial: Trial, keys: Keys, error: str) -> Row:
    """The row of a trial that could not be carried out."""
    return {**_description(trial, keys), "error": error}
