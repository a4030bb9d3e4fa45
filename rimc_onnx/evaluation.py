# SPDX-License-Identifier: Apache-2.0
"""How good a model is: labels, a metric of the user's own, or agreement with its teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rimc_onnx.data import Samples
from rimc_onnx.errors import DataError

__all__ = ["EvaluationReport", "Metric", "evaluate_session"]

Array = npt.NDArray[Any]
Metric = Callable[[dict[str, Array], dict[str, Array]], "float | Mapping[str, float]"]
"""Called with all outputs and all extra arrays of the data, samples on axis 0."""


class Session(Protocol):
    """What evaluation needs of ``onnxruntime.InferenceSession``."""

    def run(self, output_names: Sequence[str] | None, feeds: dict[str, Array]) -> list[Array]:
        """Outputs in the order of their names."""


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
