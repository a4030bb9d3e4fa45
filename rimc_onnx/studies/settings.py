# SPDX-License-Identifier: Apache-2.0
"""The fields of a trial by flat names, as study files and the command line write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rimc_onnx.calibration.config import CalibrateConfig, Propagate, Solver, one_of, parse_budget
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import (
    DeviceConfig,
    get_preset,
    load_device,
    parse_time,
    read_clip_sigma,
    read_scaling,
)
from rimc_onnx.errors import UsageError, suggest
from rimc_onnx.io.samples import Data, SampleArrays
from rimc_onnx.studies.trial import MEASURED, BaselineMethod, Trial
from rimc_onnx.training.config import FinetuneConfig, Loss, Optimizer, PenaltyWeight, Schedule

__all__ = ["FIELDS", "trial_of"]

_KNOWLEDGE = ("black box", "read-out", "statistics")
_TRIAL: tuple[str, ...] = (
    "model",
    "test",
    "data",
    "batch_axis",
    "labels",
    "metric",
    "batch_size",
    "training",
)
_TRIAL += ("method", "options", "knowledge", "samples", "draw", "statistics", "sram_budget")
_CONVERT = ("device", "time", "seed", "branch_rank", "keep_digital", "map_shared", "uncalibrated")
_PERIPHERY = tuple(f.name for f in fields(PeripheryConfig))
_DEVICE: tuple[str, ...] = (
    "drift_frac",
    "drift_mean_frac",
    "g_max_us",
    "g_min_us",
    "scaling",
    "clip_sigma",
)
_DEVICE += ("stuck_min_frac", "stuck_max_frac", "level_bits", "num_slices", "devices_per_weight")
_CALIBRATE: tuple[str, ...] = (
    "adapter",
    "rank",
    "solver",
    "propagate",
    "read_out_noise_frac",
    "allow_identity",
)
_CALIBRATE += ("solver_seed", "read_out_seed", "sensitivity_seed")

FIELDS: Final = (*_TRIAL, *_CONVERT, *_DEVICE, *_PERIPHERY, *_CALIBRATE)
"""Every name; docs/studies.md says what they mean."""

_UNCALIBRATED = "uncalibrated"
"""Of a trial, and of its training: which use the mapping is chosen for."""

_SAMPLE = "sample:"
"""Begins a path in the samples that come with the package."""

_KINDS: Final[Mapping[str, type[Enum]]] = {
    "solver": Solver,
    "propagate": Propagate,
    "read_noise_law": ReadNoiseLaw,
    "loss": Loss,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "penalty_weight": PenaltyWeight,
}
"""Fields whose value is one of a few names."""


def trial_of(settings: Mapping[str, Any], folder: Path) -> Trial:
    """A trial of its flat fields; ``folder`` is where relative paths start.

    ``"none"`` is the value of a field that is off, as it is of options.

    Raises:
        UsageError: a field is not known, missing or out of range.
    """
    for name in settings:
        if name not in FIELDS:
            raise UsageError(f"{name!r} is no field of a trial. {suggest(name, FIELDS)}")
    given = {name: None if value == "none" else value for name, value in settings.items()}
    for name in ("model", "test"):
        if not isinstance(given.get(name), str):
            raise UsageError(f"`{name}` is missing: every trial needs one.")
    axis = given.get("batch_axis")
    try:
        convert = _convert(given, settings, folder)
        return Trial(
            model=_path(str(given["model"]), folder),
            test=_data(given["test"], folder, axis),
            data=None if given.get("data") is None else _data(given["data"], folder, axis),
            convert=convert,
            method=_method(given, is_none=settings.get("method") == "none"),
            statistics=_statistics(given, folder),
            training=_training(given.get("training"), folder, convert),
            **_part(given, ("labels", "metric", "batch_size")),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"a field has a value of another kind ({error}).") from error


def _part(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: given[name] for name in names if name in given}
    for name, kind in _KINDS.items():
        if isinstance(found.get(name), str):
            found[name] = kind(one_of(f"`{name}`", found[name], *(str(k.value) for k in kind)))
    return found


def _path(text: str, folder: Path) -> Path:
    """Seen from ``folder``, or from the samples of the package."""
    if text.startswith(_SAMPLE):
        found = resources.files("rimc_onnx.samples")
        for part in text.removeprefix(_SAMPLE).split("/"):
            found = found / part
        return Path(str(found))
    return folder / text


def _data(source: Any, folder: Path, axis: Any) -> Data:
    if not isinstance(source, str):
        raise UsageError(f"data must be a path or module:callable, got {source!r}.")
    path = _path(source, folder)
    is_reader = ":" in source and not source.startswith(_SAMPLE) and not os.path.exists(path)
    data: str | Path = source if is_reader else path
    return data if axis is None else SampleArrays(arrays=data, batch_axis=axis)


def _convert(given: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> ConvertConfig:
    changed = _part(given, _DEVICE)
    if "scaling" in settings:
        changed["scaling"] = read_scaling(settings["scaling"])
    if isinstance(settings.get("clip_sigma"), str):
        changed["clip_sigma"] = read_clip_sigma(settings["clip_sigma"])
    name = str(given.get("device") or "gaussian-relative")
    device: DeviceConfig
    if name.endswith(".toml"):
        device = load_device(folder / name, **changed)
    else:
        device = get_preset(name, **changed)
    found = _part(given, ("seed", "keep_digital", "map_shared", "uncalibrated"))
    if "keep_digital" in found:
        found["keep_digital"] = tuple(found["keep_digital"] or ())
    if given.get("branch_rank") is not None:
        found["rank"] = given["branch_rank"]
    time = given.get("time")
    return ConvertConfig(
        device=device,
        time_s=parse_time(time) if isinstance(time, str) else time,
        periphery=PeripheryConfig(**_part(given, _PERIPHERY)),
        **found,
    )


def _method(given: Mapping[str, Any], *, is_none: bool) -> CalibrateConfig | BaselineMethod | None:
    if is_none:
        return None
    samples, draw = given.get("samples", 10) or 0, given.get("draw", 0)
    name = given.get("method", "calibrate")
    if name != "calibrate":
        from rimc_onnx.studies.baselines import BASELINES

        if name not in BASELINES:
            known = ("calibrate", "none", *BASELINES)
            raise UsageError(f"method {name!r} is not known. {suggest(str(name), known)}")
        return BaselineMethod(
            name=name, num_samples=samples, sample_seed=draw, options=given.get("options") or {}
        )
    if given.get("options"):
        raise UsageError("`options` are those of a baseline: name one with `method`.")
    knowledge = one_of("`knowledge`", str(given.get("knowledge", _KNOWLEDGE[0])), *_KNOWLEDGE)
    budget = given.get("sram_budget")
    in_bytes, in_frac = parse_budget(None if budget is None else str(budget))
    # A study has points at which nothing helps: their rows say so.
    return CalibrateConfig(
        **{"allow_identity": True, **_part(given, _CALIBRATE)},
        num_samples=samples,
        sample_seed=draw,
        read_out=knowledge != _KNOWLEDGE[0],
        sram_budget_bytes=in_bytes,
        sram_budget_frac=in_frac,
    )


def _statistics(given: Mapping[str, Any], folder: Path) -> Path | str | None:
    file = given.get("statistics")
    if file is not None:
        return _path(file, folder)
    return MEASURED if given.get("knowledge") == _KNOWLEDGE[2] else None


def _training(given: Any, folder: Path, convert: ConvertConfig) -> Path | FinetuneConfig | None:
    if given is None:
        return None
    if isinstance(given, str):
        return _path(given, folder)
    known = [f.name for f in fields(FinetuneConfig) if f.name != "convert"]
    for name in given:
        if name not in (*known, _UNCALIBRATED):
            raise UsageError(f"training: {name!r} is no field. {suggest(name, known)}")
    found = {name: None if value == "none" else value for name, value in given.items()}
    # One training serves all devices of a kind, and, where it says so, both of their uses.
    use = found.get(_UNCALIBRATED, convert.uncalibrated)
    if not isinstance(use, bool):
        raise UsageError(f"training: {_UNCALIBRATED!r} is true or false, got {use!r}.")
    convert = replace(convert, seed=0, uncalibrated=use)
    return FinetuneConfig(convert=convert, **_part(found, tuple(known)))
