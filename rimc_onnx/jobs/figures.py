# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation: hits of classes, power of the error, a metric of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import DataError, one_line
from rimc_onnx.execution.array_file import power

__all__ = ["Hits", "Metric", "Sqnr", "apply_metric"]

Array = npt.NDArray[Any]
Metric = Callable[[dict[str, Any], dict[str, Any]], "float | Mapping[str, float]"]
"""Called with all outputs and all extra arrays of the data: arrays with samples on axis 0 or, where
samples lie elsewhere or come from a reader, lists with an entry for each run."""

_TEXT = "OSU"
"""Kinds of arrays of strings."""


class Hits:
    """Largest logits, or class indices, that are the label's or the teacher's, added up."""

    def __init__(self, name: str) -> None:
        """``name`` is the output's."""
        self._name = name
        self.total = self.top1 = self.top5 = self.agree = self.compared = 0

    def add(self, output: Any, expected: Any, labels: Array | None) -> None:
        """Compare with class indices and with the teacher's output, as far as they are given."""
        if labels is not None:
            self.add_labels(output, labels)
        if expected is not None:
            self.add_teacher(expected, output, labels)

    def add_labels(self, output: Any, labels: Array) -> None:
        """Compare with class indices, shaped as the output without its axis of classes."""
        self._require_array(output)
        if output.dtype.kind in _TEXT:
            raise DataError(f"output {self._name!r} holds strings, no classes. Give a metric.")
        if labels.dtype.kind not in "iu":
            raise DataError(f"labels are {labels.dtype}, need whole numbers (class indices).")
        if output.dtype.kind in "iub":
            if labels.shape != output.shape:
                raise self._misshapen(output, labels, output.shape)
            if labels.size and labels.min() < 0 <= output.min():
                raise DataError(
                    f"labels lie in {labels.min()}..{labels.max()}, the model's class indices in "
                    f"{int(output.min())}..{int(output.max())}. Count classes from 0."
                )
            self.total += labels.size
            self.top1 += int((output == labels).sum())
            self.top5 += int((output == labels).sum())
            return
        if output.ndim == 1 and labels.ndim:
            raise DataError(
                f"output {self._name!r} of shape {list(output.shape)} has one number a sample, no "
                "classes that labels could name. Give a metric."
            )
        logits = self._logits(output, labels)
        classes = logits.shape[-1]
        if labels.size and not (labels.min() >= 0 and labels.max() < classes):
            raise DataError(
                f"labels lie in {labels.min()}..{labels.max()}, output {self._name!r} has "
                f"{classes} classes. Give labels of the first output, or a metric."
            )
        self.total += labels.size
        self.top1 += int((logits.argmax(-1) == labels).sum())
        best = np.argpartition(-logits, min(5, classes) - 1, axis=-1)[..., :5]
        self.top5 += int((best == labels[..., None]).any(-1).sum())

    def add_teacher(self, expected: Any, output: Any, labels: Array | None) -> None:
        """Compare with the teacher's output; ``labels`` tell the axis of classes.

        Numbers without an axis of classes and strings are left out.
        """
        self._require_array(output)
        if expected.shape != output.shape:
            raise DataError(
                f"output {self._name!r} is {list(output.shape)}, the teacher's is "
                f"{list(expected.shape)}: they can't agree. Give a metric."
            )
        if expected.dtype.kind in "iub":
            same = expected == output
        elif expected.dtype.kind in _TEXT or expected.ndim == 0 or not expected.size:
            return
        elif expected.ndim == 1 and (labels is None or labels.ndim):
            return  # one number a sample
        else:
            logits = self._logits(expected, labels)
            if logits.shape[-1] == 1 and expected.size > len(expected):
                return  # an image or a signal of one channel
            if logits.shape[-1] == 1:
                raise DataError(
                    f"output {self._name!r} of shape {list(expected.shape)} has a single class, on "
                    "which any two models agree. Give a metric."
                )
            same = logits.argmax(-1) == self._logits(output, labels).argmax(-1)
        self.agree += int(same.sum())
        self.compared += same.size

    def _require_array(self, output: Any) -> None:
        if not isinstance(output, np.ndarray):
            raise DataError(
                f"output {self._name!r} is no array, so it has no classes. Give a metric."
            )

    def _logits(self, output: Array, labels: Array | None) -> Array:
        """The output with its classes last.

        Axes of size 1 behind the others go ([N, M, 1, 1]). What is left of [N, M, ...] has its
        classes on the axis that the labels lack; without labels on the last one, or on axis 1 of an
        image [N, M, H, W].
        """
        kept = output.ndim
        while kept > 2 and output.shape[kept - 1] == 1:
            kept -= 1
        logits = output.reshape(output.shape[:kept])
        if labels is None:
            return np.moveaxis(logits, 1, -1) if kept >= 4 else logits
        for form in (logits, output):
            for axis in (form.ndim - 1, *range(1, form.ndim - 1)):
                if axis >= 0 and form.shape[:axis] + form.shape[axis + 1 :] == labels.shape:
                    return np.moveaxis(form, axis, -1)
        raise self._misshapen(output, labels, logits.shape[:-1])

    def _misshapen(self, output: Array, labels: Array, want: tuple[int, ...]) -> DataError:
        return DataError(
            f"labels have shape {list(labels.shape)}, an output of {list(output.shape)} needs "
            f"{list(want)}."
        )


class Sqnr:
    """Power of the teacher's outputs and of the error, added up batch by batch."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` are those of the outputs."""
        self._names = names
        self._signal: dict[str, float] = {}
        self._error: dict[str, float] = {}

    def add(self, expected: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Add the floating-point outputs of one run; those of another shape have no error."""
        for name, want, got in zip(self._names, expected, outputs, strict=True):
            if not isinstance(want, np.ndarray) or want.dtype.kind != "f":
                continue
            signal = power(want)
            error = power(want, got) if want.shape == got.shape else signal
            self._signal[name] = self._signal.get(name, 0.0) + signal
            self._error[name] = self._error.get(name, 0.0) + error

    def db(self) -> dict[str, float | None]:
        """By output.

        Raises:
            DataError: an output is NaN or infinite.
        """
        for name, error in self._error.items():
            if not math.isfinite(self._signal[name]):
                raise DataError(
                    f"output {name!r} of the teacher is NaN or infinite. Give samples that it has "
                    "numbers for."
                )
            if not math.isfinite(error):
                raise DataError(
                    f"output {name!r} of the model is NaN or infinite where the teacher has "
                    "numbers. Convert and calibrate it anew, or keep the nodes before it digital."
                )
        return {
            n: 10 * math.log10(s / self._error[n]) if self._error[n] and s else None
            for n, s in self._signal.items()
        }


def apply_metric(
    metric: Metric,
    names: Sequence[str],
    kept: Sequence[tuple[list[Any], dict[str, Any]]],
    *,
    stacked: bool,
    taken: Collection[str],
) -> dict[str, float]:
    """The figures of the user's metric.

    Args:
        metric: a function of (outputs, other arrays).
        names: of the outputs.
        kept: outputs and other arrays of every run.
        stacked: samples lie on axis 0, so that runs can be joined there.
        taken: names that a figure can't have.

    Raises:
        DataError: the metric fails, or gives no finite numbers.
    """
    outputs = {n: _joined([o[i] for o, _ in kept], stacked) for i, n in enumerate(names)}
    common = set.intersection(*(set(e) for _, e in kept))
    extras = {n: _joined([e[n] for _, e in kept], stacked) for n in sorted(common)}
    title = getattr(metric, "__name__", "metric")
    try:
        value = metric(outputs, extras)
        named = value if isinstance(value, Mapping) else {title: value}
        figures = {str(n): float(v) for n, v in named.items()}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code; it may even exit
        raise DataError(
            f"metric {title!r} fails: {type(error).__name__}: {one_line(error)}."
        ) from error
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise DataError(f"metric {name!r} is {figure}, need a finite number.")
        if name in taken:
            raise DataError(f"metric {name!r} has the name of a figure of the report. Rename it.")
    return figures


def _joined(values: list[Any], stacked: bool) -> Any:
    """One array of all runs, or the list of what each gave."""
    shapes = {v.shape[1:] if isinstance(v, np.ndarray) and v.ndim else None for v in values}
    if not stacked or None in shapes or len(shapes) > 1:
        return values
    return np.concatenate(values)
