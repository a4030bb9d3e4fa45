# SPDX-License-Identifier: Apache-2.0
"""The jobs as functions, with their configurations and reports: files in, files out.

Everything that the command line does is here; the command line only parses and renders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rimc_onnx.calibration.config import CalibrateConfig
    from rimc_onnx.cost.model_cost import CostReport
    from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
    from rimc_onnx.execution.plugin import get_ep_name, get_ep_names, get_library_path
    from rimc_onnx.jobs.advise import AdviceOption, AdviseReport, advise
    from rimc_onnx.jobs.age import age
    from rimc_onnx.jobs.calibrate import calibrate
    from rimc_onnx.jobs.convert import convert
    from rimc_onnx.jobs.cost import inference_cost
    from rimc_onnx.jobs.equalize import equalize
    from rimc_onnx.jobs.evaluate import EvaluationReport, evaluate
    from rimc_onnx.jobs.finetune import finetune
    from rimc_onnx.jobs.inspect import inspect
    from rimc_onnx.jobs.reports import (
        AgeReport,
        CalibratedNodeReport,
        CalibrateReport,
        ConvertReport,
        EqualizedNodeReport,
        EqualizeReport,
        FinetuneReport,
        InspectReport,
        NodeRangesReport,
        NodeReport,
        StatisticsReport,
        ValidationReport,
    )
    from rimc_onnx.jobs.statistics import write_statistics
    from rimc_onnx.training.config import FinetuneConfig

__all__ = [
    "AdviceOption",
    "AdviseReport",
    "AgeReport",
    "CalibrateConfig",
    "CalibrateReport",
    "CalibratedNodeReport",
    "ConvertConfig",
    "ConvertReport",
    "CostReport",
    "EqualizeReport",
    "EqualizedNodeReport",
    "EvaluationReport",
    "FinetuneConfig",
    "FinetuneReport",
    "InspectReport",
    "NodeRangesReport",
    "NodeReport",
    "PeripheryConfig",
    "ReadNoiseLaw",
    "StatisticsReport",
    "ValidationReport",
    "advise",
    "age",
    "calibrate",
    "convert",
    "equalize",
    "evaluate",
    "finetune",
    "get_ep_name",
    "get_ep_names",
    "get_library_path",
    "inference_cost",
    "inspect",
    "write_statistics",
]

_HOMES = {
    "AdviceOption": "rimc_onnx.jobs.advise",
    "AdviseReport": "rimc_onnx.jobs.advise",
    "AgeReport": "rimc_onnx.jobs.reports",
    "CalibrateConfig": "rimc_onnx.calibration.config",
    "CalibrateReport": "rimc_onnx.jobs.reports",
    "CalibratedNodeReport": "rimc_onnx.jobs.reports",
    "ConvertConfig": "rimc_onnx.crossbar.config",
    "ConvertReport": "rimc_onnx.jobs.reports",
    "CostReport": "rimc_onnx.cost.model_cost",
    "EqualizeReport": "rimc_onnx.jobs.reports",
    "EqualizedNodeReport": "rimc_onnx.jobs.reports",
    "EvaluationReport": "rimc_onnx.jobs.evaluate",
    "FinetuneConfig": "rimc_onnx.training.config",
    "FinetuneReport": "rimc_onnx.jobs.reports",
    "InspectReport": "rimc_onnx.jobs.reports",
    "NodeRangesReport": "rimc_onnx.jobs.reports",
    "NodeReport": "rimc_onnx.jobs.reports",
    "PeripheryConfig": "rimc_onnx.crossbar.config",
    "ReadNoiseLaw": "rimc_onnx.crossbar.config",
    "StatisticsReport": "rimc_onnx.jobs.reports",
    "advise": "rimc_onnx.jobs.advise",
    "ValidationReport": "rimc_onnx.jobs.reports",
    "age": "rimc_onnx.jobs.age",
    "calibrate": "rimc_onnx.jobs.calibrate",
    "convert": "rimc_onnx.jobs.convert",
    "equalize": "rimc_onnx.jobs.equalize",
    "evaluate": "rimc_onnx.jobs.evaluate",
    "finetune": "rimc_onnx.jobs.finetune",
    "get_ep_name": "rimc_onnx.execution.plugin",
    "get_ep_names": "rimc_onnx.execution.plugin",
    "get_library_path": "rimc_onnx.execution.plugin",
    "inference_cost": "rimc_onnx.jobs.cost",
    "inspect": "rimc_onnx.jobs.inspect",
    "write_statistics": "rimc_onnx.jobs.statistics",
}


def __getattr__(name: str) -> Any:
    # At first use: a command imports what its own job needs, not what all of them do.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
