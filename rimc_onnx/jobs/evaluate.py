# SPDX-License-Identifier: Apache-2.0
"""The job ``evaluate``: labels, a metric of the user's own, or agreement with the teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rimc_onnx.errors import DataError, UsageError
from rimc_onnx.execution.array_file import ArrayFile
from rimc_onnx.execution.sessions import (
    Session,
    SessionFactory,
    open_session,
    return_free_memory,
    run_session,
)
from rimc_onnx.io.feeds import graph_inputs
from rimc_onnx.io.model_files import files_of, load_model, model_bytes
from rimc_onnx.io.samples import Batch, Data, Samples, import_callable, load_samples
from rimc_onnx.jobs.figures import Hits, Metric, Sqnr, apply_metric
from rimc_onnx.jobs.teacher import TEACHER_PATH, teacher_of

__all__ = ["EvaluationReport", "Metric", "evaluate", "evaluate_session"]

_DEFAULT_LABELS = "labels"
_BOTH_OPEN_BYTES = 256 << 20
"""Weights up to here are held twice, the teacher's beside the model's; a session may take three
times its weights."""
_WAITING_BYTES = 4 << 30
"""Outputs of a large teacher that wait in a file for the model's turn."""


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
        labels: name of the label array; default is ``labels`` where the data has one. With a metric
            that array may be of any kind: it counts where it holds class indices.
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
    samples = load_samples(data, graph_inputs(graph))
    asked = labels
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
    compared = Path(teacher) if teacher else None
    weight_bytes = sum(path.stat().st_size for path in files_of(source))
    both = compared is None or weight_bytes <= _BOTH_OPEN_BYTES
    return _evaluate(
        _Turn(
            lambda: device(model_bytes(source)) if device else open_session(source, native=native),
            stays=both,
        ),
        samples,
        outputs=[output.name or "" for output in graph.graph.outputs],
        name=str(source),
        labels=labels,
        strict=metric is None or asked is not None,
        teacher=None
        if compared is None
        else _Turn(lambda: open_session(compared, native=False), stays=both),
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
    strict: bool = True,
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
        labels: name of the array of class indices; the first output holds the logits.
        strict: False leaves out hits where labels or outputs have no classes.
        teacher: compared with, output by output.
        metric: the user's own figure.
        batch_size: samples a run.
        progress: called with (samples done, samples in all).
    """
    return _evaluate(
        _Turn(lambda: session, stays=True),
        samples,
        outputs=outputs,
        name=model,
        labels=labels,
        strict=strict,
        teacher=None if teacher is None else _Turn(lambda: teacher, stays=True),
        metric=metric,
        batch_size=batch_size,
        progress=progress,
    )


class _Turn:
    """A session that is opened when its turn comes, and let go after it where it is large."""

    def __init__(self, opener: Callable[[], Session], *, stays: bool) -> None:
        self._opener = opener
        self.stays = stays
        self._session: Session | None = opener() if stays else None

    def run(self, outputs: Sequence[str], batch: Batch, name: str) -> tuple[list[Any], float]:
        """Outputs, and the seconds inside the session. An output keeps its session's memory."""
        if self._session is None:
            self._session = self._opener()
        start = time.perf_counter()
        values = run_session(self._session, outputs, batch.feeds, name)
        return values, time.perf_counter() - start

    def end(self) -> None:
        if not self.stays:
            self._session = None
            return_free_memory()


def _runs(
    model: _Turn, teacher: _Turn | None, batches: Iterable[Batch], outputs: Sequence[str], name: str
) -> Iterator[tuple[Batch, list[Any], list[Any] | None, float]]:
    """Every batch with the model's outputs, the teacher's and the seconds in the model.

    Sessions of large models are never open at once: the teacher runs until its outputs fill the
    temporary file that they wait in, then it is the model's turn. A consumer that keeps outputs
    keeps the memory of their session.
    """
    if teacher is None or teacher.stays:
        for batch in batches:
            expected = None if teacher is None else teacher.run(outputs, batch, "the teacher")[0]
            values, seconds = model.run(outputs, batch, name)
            yield batch, values, expected, seconds
            del values, expected
        return
    pending = iter(batches)
    while True:
        with closing(ArrayFile()) as file:
            waiting: list[tuple[Batch, list[Any]]] = []
            held = 0
            while held < _WAITING_BYTES and (asked := next(pending, None)) is not None:
                expected, _ = teacher.run(outputs, asked, "the teacher")
                waiting.append((asked, [file.put(value) for value in expected]))
                held += sum(getattr(value, "nbytes", 0) for value in expected)
                del expected
            teacher.end()
            if not waiting:
                return
            for batch, places in waiting:
                values, seconds = model.run(outputs, batch, name)
                yield batch, values, [file.take(place) for place in places], seconds
                del values
            model.end()


def _evaluate(
    model: _Turn,
    samples: Samples,
    *,
    outputs: Sequence[str],
    name: str,
    labels: str | None,
    strict: bool,
    teacher: _Turn | None,
    metric: Metric | None,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> EvaluationReport:
    if labels is not None and labels not in samples.extras:
        raise DataError(
            f"the data has no array {labels!r} for the labels; beside the inputs it has "
            f"{', '.join(map(repr, sorted(samples.extras))) or 'nothing'}."
        )
    hits: Hits | None = Hits(outputs[0])
    sqnr = Sqnr(outputs)
    kept: list[tuple[list[Any], dict[str, Any]]] = []
    done = 0
    seconds = 0.0
    runs = _runs(model, teacher, samples.batches(batch_size), outputs, name)
    for batch, values, expected, run_seconds in runs:
        seconds += run_seconds
        if expected is not None:
            sqnr.add(expected, values)
        try:
            if hits is not None:
                hits.add(values[0], expected and expected[0], batch.extras.get(labels or ""))
        except DataError:
            if strict:
                raise
            hits = None
        if metric is not None:
            kept.append((values, batch.extras))
        del values, expected
        done += batch.num_samples
        progress(done, samples.num_samples)
    taken = {f.name for f in fields(EvaluationReport)}
    hits = hits or Hits(outputs[0])
    sqnr_db = sqnr.db() if teacher is not None else None
    if teacher is not None and metric is None and not (sqnr_db or hits.total or hits.compared):
        raise DataError(
            f"{name}: its outputs hold no numbers to compare with the teacher's. Give a metric, or "
            "a model that gives its logits too."
        )
    return EvaluationReport(
        model=name,
        samples=samples.num_samples,
        top1=hits.top1 / hits.total if hits.total else None,
        top5=hits.top5 / hits.total if hits.total else None,
        agreement=hits.agree / hits.compared if hits.compared else None,
        sqnr_db=sqnr_db,
        metrics={}
        if metric is None
        else apply_metric(metric, outputs, kept, stacked=samples.stacked, taken=taken),
        seconds=seconds,
    )
