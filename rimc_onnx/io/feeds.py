# SPDX-License-Identifier: Apache-2.0
"""What a model is fed with: its inputs, and samples where the user names none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rimc_onnx.errors import DataError, ModelError
from rimc_onnx.execution.feed import Feed
from rimc_onnx.io.samples import (
    Data,
    InputSpec,
    SampleArrays,
    Samples,
    load_samples,
    stacked_axes,
)

__all__ = ["data_beside", "data_needed", "feeds_of", "graph_inputs", "range_data"]
__all__ += ["range_samples"]

_CHUNK_SAMPLES = 8
"""Samples that run through the network together while features are taken."""
_RANGE_SAMPLES = 32
"""Samples that set the converters' ranges."""
_REPLACES_NAN = {"Imputer", "IsNaN"}
"""Operators of models that take samples with values missing."""


def feeds_of(samples: Samples) -> list[Feed]:
    """Runs for taking features, of a few samples each."""
    return [batch.feeds for batch in samples.batches(_CHUNK_SAMPLES)]


def graph_inputs(graph: ir.Model) -> list[InputSpec]:
    """What a run of the graph has to be fed."""
    may_be_nan = any(node.op_type in _REPLACES_NAN for node in graph.graph)
    given = (v for v in graph.graph.inputs if v.name not in graph.graph.initializers)
    return [_spec(v, may_be_nan=may_be_nan) for v in given]


def _spec(value: ir.Value, *, may_be_nan: bool) -> InputSpec:
    is_tensor = isinstance(value.type, ir.TensorType)
    if is_tensor and value.dtype is None:
        raise ModelError(f"input {value.name!r} has no type. Export the model again.")
    if value.type is None:
        raise ModelError(f"input {value.name!r} has no type. Export the model again.")
    dims = None if value.shape is None else list(value.shape)
    return InputSpec(
        name=value.name or "",
        dtype=value.dtype.numpy() if is_tensor and value.dtype else np.dtype(object),
        # A negative dimension is a free one, as in ONNX Runtime.
        shape=None
        if dims is None
        else tuple(d if isinstance(d, int) and d >= 0 else None for d in dims),
        symbols=() if dims is None else tuple(getattr(d, "value", None) for d in dims),
        is_tensor=is_tensor,
        may_be_nan=may_be_nan,
    )


def data_needed(inputs: Sequence[InputSpec], data: Data | None = None) -> str:
    """What samples of a model are, in one line: for whoever has to provide them.

    ``data`` may name the axes.

    Raises:
        UsageError: it names no input, or an axis that an input does not have.
    """
    named = data.batch_axis if isinstance(data, SampleArrays) else {}
    try:
        axes = stacked_axes(inputs, named)
    except DataError as error:
        return str(error)
    if not axes:
        return f"runs of {', '.join(map(str, inputs))}"
    shown, last = [], None
    for spec in inputs:
        axis = axes.get(spec.name)
        if axis is None:
            shown.append(f"{spec} (of every run)")
        else:
            shown.append(f"{spec}" if axis == last else f"axis {axis} of {spec}")
            last = axis
    return f"samples on {', '.join(shown)}"


def range_data(source: Path, data: Data | None) -> Data:
    """The data for the converters' ranges.

    Raises:
        DataError: there is none.
    """
    try:
        return data_beside(source, data)
    except DataError as error:
        raise DataError(
            f"{source}: converters with a resolution and I-V curves need samples to set "
            "their ranges. Give `data`, or put calibration.npz beside the model."
        ) from error


def range_samples(graph: ir.Model, source: Path, data: Data | None) -> Samples:
    """Samples for the converters' ranges."""
    samples = load_samples(range_data(source, data), graph_inputs(graph))
    return samples.draw_at_most(_RANGE_SAMPLES, seed=0)


def data_beside(model: Path, data: Data | None) -> Data:
    """The data given, or ``calibration.npz`` beside the model.

    Raises:
        DataError: there is neither.
    """
    if data is not None and not (isinstance(data, SampleArrays) and data.arrays is None):
        return data
    default = model.parent / "calibration.npz"
    if not os.path.isfile(default):
        raise DataError(f"{model}: no calibration.npz beside the model. Give samples with `data`.")
    return replace(data, arrays=default) if isinstance(data, SampleArrays) else default
