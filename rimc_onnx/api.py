# SPDX-License-Identifier: Apache-2.0
"""The jobs as functions, with their configurations and reports: files in, files out.

Everything that the command line does is here; the command line only parses and renders.
"""

from __future__ import annotations

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.jobs.age import age
from rimc_onnx.jobs.calibrate import calibrate
from rimc_onnx.jobs.convert import convert
from rimc_onnx.jobs.evaluate import EvaluationReport, evaluate
from rimc_onnx.jobs.inspect import inspect
from rimc_onnx.jobs.reports import (
    AgeReport,
    CalibratedNodeReport,
    CalibrateReport,
    ConvertReport,
    InspectReport,
    NodeRangesReport,
    NodeReport,
    StatisticsReport,
)
from rimc_onnx.jobs.statistics import write_statistics

__all__ = [
    "AgeReport",
    "CalibrateConfig",
    "CalibrateReport",
    "CalibratedNodeReport",
    "ConvertConfig",
    "ConvertReport",
    "EvaluationReport",
    "InspectReport",
    "NodeRangesReport",
    "NodeReport",
    "PeripheryConfig",
    "ReadNoiseLaw",
    "StatisticsReport",
    "age",
    "calibrate",
    "convert",
    "evaluate",
    "inspect",
    "write_statistics",
]
