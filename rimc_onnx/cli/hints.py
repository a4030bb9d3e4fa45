# SPDX-License-Identifier: Apache-2.0
"""What comes next and what would be better: a line each for people, after a command's result."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rimc_onnx.cli.calibration_options import FitOptions
    from rimc_onnx.cli.options import DeviceOptions
    from rimc_onnx.jobs.reports import CalibrateReport, ConvertReport, FinetuneReport, InspectReport

__all__ = [
    "after_ageing",
    "after_calibration",
    "after_conversion",
    "after_evaluation",
    "after_finetuning",
    "after_inspection",
    "better_calibration",
    "better_mapping",
    "command",
    "equal_word_lines",
    "teacher_of_bent",
    "typed_option",
    "typed_options",
]

_LEAST_AGREEMENT = 0.9
"""Below it a calibration is told of more SRAM and other mappings."""


def command(*parts: object) -> str:
    """A command line to copy."""
    return shlex.join(["rimc-onnx", *map(str, parts)])


def _beside(model: str | Path, name: str, stand_in: str) -> str:
    """A file of samples beside the model, or the word that stands for one."""
    path = Path(model).with_name(name)
    return str(path) if os.path.isfile(path) else stand_in


def after_conversion(model: Path, report: ConvertReport) -> str | None:
    """Calibration, with the samples that lie beside the model."""
    if report.output is None:
        return command("convert", model)
    if report.uncalibrated:
        return _evaluate(report.output)
    there = Path(report.output).with_name("calibration.npz").is_file()
    data = [] if there else ["--data", "SAMPLES.npz"]
    return command("calibrate", report.output, "--samples", 10, *data)


def _evaluate(model: str) -> str:
    return command("evaluate", model, "--data", _beside(model, "test.npz", "TEST.npz"))


def after_calibration(report: CalibrateReport) -> str | None:
    """What the calibrated file is worth on other samples; nothing where that takes a metric."""
    has_classes = report.calibrated is None or report.calibrated.agreement is not None
    return _evaluate(report.output) if has_classes else None


def after_ageing(output: str) -> str:
    """A new fit of the adapters to the arrays as they are now."""
    there = Path(output).with_name("calibration.npz").is_file()
    data = [] if there else ["--data", "SAMPLES.npz"]
    return command("calibrate", output, "--samples", 10, *data)


def after_inspection(report: InspectReport) -> str:
    """The step that the file has not seen."""
    if not report.converted:
        return command("convert", report.model)
    return _evaluate(report.model) if report.adapters else after_ageing(report.model)


def after_evaluation(model: Path) -> str | None:
    """Calibration of a file that is named as ``convert`` names it; nothing of others."""
    return after_ageing(str(model)) if model.name.endswith(".rimc.onnx") else None


def typed_options(given: Any, default: Any, apart: Collection[str] = ()) -> list[str]:
    """The options of a group that differ from its default, as they are typed, but for ``apart``."""
    plain = asdict(default)
    return [
        part
        for name, value in asdict(given).items()
        if value != plain[name] and name not in apart
        for part in typed_option(name, value)
    ]


def typed_option(name: str, value: Any) -> list[str]:
    """An option and its value: nothing for None, the name alone for a switch that is on."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [value]
    return [part for one in values for part in (option, str(one))]


def after_finetuning(report: FinetuneReport, options: list[str]) -> str:
    """What trained adapters are worth on other samples; trained weights go to arrays first.

    ``options`` are those that a conversion takes, as they were typed.
    """
    if report.sram_bytes is not None:
        return _evaluate(report.output)
    return command("convert", report.output, *options)


def equal_word_lines(model: Path, report: ConvertReport) -> str | None:
    """Where word lines are unequal and the device's errors are not, what makes them alike."""
    if not report.unequal:
        return None
    nodes = "1 node has" if report.unequal == 1 else f"{report.unequal} nodes have"
    return (
        f"{nodes} word lines of far smaller weights than others, as inputs of unequal strength "
        f"give; converting what {command('equalize', model)} writes may lose far less"
    )


def teacher_of_bent(model: Path, report: FinetuneReport) -> str:
    """Who teaches weights that were trained behind an I-V curve, and are wrong without it."""
    converted = Path(report.output).with_suffix(".rimc.onnx")
    calibration = command("calibrate", converted, "--teacher", model, "--force")
    return (
        "weights trained behind an I-V curve are wrong without it; convert them with the same "
        f"curve, and calibrate towards the model that they were trained from: {calibration}"
    )


def better_mapping(model: Path, device: DeviceOptions, default: DeviceOptions) -> str | None:
    """Where scaling or clipping was named: what the device's law would choose."""
    if device.scaling == "auto" and device.clip_sigma == "auto":
        return None
    named = typed_options(device, default, apart=("scaling", "clip_sigma"))
    return (
        "scaling and clipping that follow from the device's law (auto, the default) are mostly "
        f"better; {command('advise', model, *named)} compares"
    )


def better_calibration(fit: FitOptions, report: CalibrateReport) -> str | None:
    """One budget in place of a rank; more SRAM where outputs still differ from the teacher's."""
    if fit.rank is not None and report.sram_bytes:
        return (
            "the same bytes as one budget of ranks, magnitudes and single cells mostly give more: "
            f"--sram-budget {report.sram_bytes}"
        )
    agreement = None if report.calibrated is None else report.calibrated.agreement
    if agreement is not None and agreement < _LEAST_AGREEMENT:
        return (
            f"the outputs agree with the teacher's on {100 * agreement:.0f} % of the samples; more "
            "SRAM (--sram-budget 10%) or another mapping (rimc-onnx advise) may give more"
        )
    return None
