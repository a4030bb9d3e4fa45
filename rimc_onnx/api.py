# SPDX-License-Identifier: Apache-2.0
"""The main job as functions: convert, age, calibrate, evaluate, inspect. Files in, files out.

Everything the command line does is here; the command line only parses and renders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rimc_onnx.ageing import age
from rimc_onnx.calibrating import calibrate, write_statistics
from rimc_onnx.calibration.taps import SessionFactory
from rimc_onnx.converting import convert, inspect
from rimc_onnx.data import import_callable, load_samples
from rimc_onnx.errors import UsageError
from rimc_onnx.evaluation import EvaluationReport, Metric, evaluate_session
from rimc_onnx.feeds import Data, graph_inputs
from rimc_onnx.files import load_model, model_bytes
from rimc_onnx.reports import (
    AgeReport,
    CalibratedNodeReport,
    CalibrateReport,
    ConvertReport,
    InspectReport,
    NodeRangesReport,
    NodeReport,
    StatisticsReport,
)
from rimc_onnx.sessions import open_session
from rimc_onnx.teacher import TEACHER_PATH, teacher_of

__all__ = [
    "AgeReport",
    "CalibrateReport",
    "CalibratedNodeReport",
    "ConvertReport",
    "InspectReport",
    "NodeRangesReport",
    "NodeReport",
    "StatisticsReport",
    "age",
    "calibrate",
    "convert",
    "evaluate",
    "inspect",
    "write_statistics",
]

_DEFAULT_LABELS = "labels"


def evaluate(
    model: str | Path,
    *,
    data: Data,
    labels: str | None = None,
    teacher: str | Path | None = None,
    metric: str | Metric | None = None,
    native: bool = True,
    device: SessionFactory | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> EvaluationReport:
    """Accuracy of any model, converted or not.

    Args:
        model: an .onnx file.
        data: samples, with labels where there are any.
        labels: name of the label array; default is ``labels`` where the data has one.
        teacher: compared with; default, where there are neither labels nor a metric, is the file
            that a converted model records.
        metric: a function, or ``module:callable``, of (outputs, extra arrays).
        native: run RRAM nodes on the crossbar library, not by their function bodies.
        device: makes a session from the bytes of the model, in place of both.
        batch_size: samples a run.
        progress: called with (samples done, samples in all).
    """
    source = Path(model)
    graph = load_model(source)
    samples = load_samples(data if isinstance(data, Mapping) else str(data), graph_inputs(graph))
    if labels is None and _DEFAULT_LABELS in samples.extras:
        labels = _DEFAULT_LABELS
    if teacher is None and labels is None and metric is None:
        if TEACHER_PATH not in graph.metadata_props:
            raise UsageError(
                f"{source}: nothing to compare with. The data has no labels; name them with "
                "--labels, or give --metric or --teacher."
            )
        teacher = teacher_of(graph, source, None, force=False)
    elif teacher is not None:
        load_model(Path(teacher))
    return evaluate_session(
        device(model_bytes(source)) if device else open_session(source, native=native),
        samples,
        outputs=[output.name or "" for output in graph.graph.outputs],
        model=str(source),
        labels=labels,
        teacher=open_session(Path(teacher), native=False) if teacher else None,
        metric=import_callable(metric) if isinstance(metric, str) else metric,
        batch_size=batch_size,
        progress=progress,
    )
