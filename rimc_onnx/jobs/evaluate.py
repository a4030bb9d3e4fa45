# SPDX-License-Identifier: Apache-2.0
"""The job ``evaluate``: labels, a metric of the user's own, or agreement with the teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import DataError, UsageError
from rimc_onnx.execution.sessions import Session, SessionFactory, open_session
from rimc_onnx.io.feeds import Data, graph_inputs
from rimc_onnx.io.model_files import load_model, model_bytes
from rimc_onnx.io.samples import Samples, import_callable, load_samples
from rimc_onnx.jobs.teacher import TEACHER_PATH, teacher_of

__all__ = ["EvaluationReport", "Metric", "evaluate", "evaluate_session"]

Array = npt.NDArray[Any]
Metric = Callable[[dict[str, Array], dict[str, Array]], "float | Mapping[str, float]"]
"""Called with all outputs and all extra arrays of the data, samples on axis 0."""


_DEFAULT_LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Figures of one model on one data set; what was not asked for or can't be had is ``None``."""

    model: str
    samples: int
    top1: float | None
    """Share of samples whose largest logit is the label's."""
    top5: float | None
    agreement: float | None
    """Share of samples whose largest logit is the teacher's."""
    sqnr_db: dict[str, float | None] | None
    """Teacher power over error power of every output, dB; ``None`` where there is no error."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The user's own metric."""
    seconds: float
    """Time inside the model's session."""


class _Counts:
    """Hits of the largest logits, added up batch by batch."""

    def __init__(self) -> None:
        self.total = self.top1 = self.top5 = self.agree = 0

    def add_labels(self, logits: Array, labels: Array) -> None:
        if labels.shape != logits.shape[:-1]:
            raise DataError(
                f"labels have shape {list(labels.shape)}, an output of {list(logits.shape)} needs "
                f"{list(logits.shape[:-1])}."
            )
        if labels.dtype.kind not in "iu":
            raise DataError(f"labels are {labels.dtype}, need whole numbers (class indices).")
        classes = logits.shape[-1]
        if labels.size and not (labels.min() >= 0 and labels.max() < classes):
            raise DataError(
                f"labels lie in {labels.min()}..{labels.max()}, the model has {classes} classes."
            )
        self.total += labels.size
        self.top1 += int((logits.argmax(-1) == labels).sum())
        best = np.argpartition(-logits, min(5, classes) - 1, axis=-1)[..., :5]
        self.top5 += int((best == labels[..., None]).any(-1).sum())


class _Sqnr:
    """Power of the teacher's outputs and of the error, added up batch by batch."""

    def __init__(self, names: Sequence[str]) -> None:
        self.signal = dict.fromkeys(names, 0.0)
        self.error = dict.fromkeys(names, 0.0)

    def add(self, name: str, teacher: Array, student: Array) -> None:
        reference = teacher.astype(np.float64)
        self.signal[name] += float(np.square(reference).sum())
        self.error[name] += float(np.square(reference - student).sum())

    def db(self) -> dict[str, float | None]:
        for name, power in self.error.items():
            if not math.isfinite(power):
                raise DataError(f"output {name!r} of the model or its teacher is NaN or infinite.")
        return {
            n: 10 * math.log10(s / self.error[n]) if self.error[n] and s else None
            for n, s in self.signal.items()
        }


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
                "`labels`, or give `metric` or `teacher`."
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


def evaluate_session(
    session: Session,
    samples: Samples,
    *,
    outputs: Sequence[str],
    model: str,
    labels: str | None = None,
    teacher: Session | None = None,
    metric: Metric | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> EvaluationReport:
    """Run ``session`` over ``samples`` batch by batch; only a metric needs all outputs at once.

    Args:
        session: the model under test.
        samples: checked data.
        outputs: names of the graph's outputs, in its order.
        model: name for the report.
        labels: name of the array of class indices; the first output holds the logits, classes last.
        teacher: compared with, output by output.
        metric: the user's own figure.
        batch_size: samples a run.
        progress: called with (samples done, samples in all).
    """
    if labels is not None and labels not in samples.extras:
        raise DataError(
            f"the data has no array {labels!r} for the labels; beside the inputs it has "
            f"{', '.join(map(repr, sorted(samples.extras))) or 'nothing'}."
        )
    counts, sqnr = _Counts(), _Sqnr(outputs)
    kept: list[tuple[list[Array], dict[str, Array]]] = []
    compared = done = 0
    seconds = 0.0
    for batch in samples.batches(batch_size):
        start = time.perf_counter()
        values = session.run(outputs, batch.feeds)
        seconds += time.perf_counter() - start
        if labels is not None:
            counts.add_labels(values[0], batch.extras[labels])
        if teacher is not None:
            expected = teacher.run(outputs, batch.feeds)
            for name, want, got in zip(outputs, expected, values, strict=True):
                if want.dtype.kind == "f":
                    sqnr.add(name, want, got)
            if expected[0].ndim:
                same = expected[0].argmax(-1) == values[0].argmax(-1)
                counts.agree += int(same.sum())
                compared += same.size
        if metric is not None:
            kept.append((values, batch.extras))
        done += batch.num_samples
        progress(done, samples.num_samples)
    return EvaluationReport(
        model=model,
        samples=samples.num_samples,
        top1=counts.top1 / counts.total if counts.total else None,
        top5=counts.top5 / counts.total if counts.total else None,
        agreement=counts.agree / compared if compared else None,
        sqnr_db=sqnr.db() if teacher is not None else None,
        metrics=_apply(metric, outputs, kept) if metric is not None else {},
        seconds=seconds,
    )


def _apply(
    metric: Metric, names: Sequence[str], kept: Sequence[tuple[list[Array], dict[str, Array]]]
) -> dict[str, float]:
    outputs = {n: np.concatenate([o[i] for o, _ in kept]) for i, n in enumerate(names)}
    common = set.intersection(*(set(e) for _, e in kept))
    extras = {n: np.concatenate([e[n] for _, e in kept]) for n in sorted(common)}
    title = getattr(metric, "__name__", "metric")
    try:
        value = metric(outputs, extras)
        named = value if isinstance(value, Mapping) else {title: value}
        figures = {str(n): float(v) for n, v in named.items()}
    except Exception as error:
        text = " ".join(str(error).split())
        raise DataError(f"metric {title!r} fails: {type(error).__name__}: {text}.") from error
    taken = {f.name for f in fields(EvaluationReport)}
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise DataError(f"metric {name!r} is {figure}, need a finite number.")
        if name in taken:
            raise DataError(f"metric {name!r} has the name of a figure of the report. Rename it.")
    return figures
