# SPDX-License-Identifier: Apache-2.0
"""What a model is fed with: its inputs, and samples where the user names none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnxscript import ir

from rimc_onnx.errors import DataError, ModelError
from rimc_onnx.io.samples import InputSpec, Samples, load_samples

__all__ = ["CHUNK_SAMPLES", "Data", "data_beside", "graph_inputs", "range_samples"]

Array = npt.NDArray[Any]
Data = str | Path | Mapping[str, Array]
"""What ``--data`` takes, or arrays by the names of inputs."""

CHUNK_SAMPLES = 8
"""Samples that run through the network together while features are taken."""
_RANGE_SAMPLES = 32
"""Samples that set the converters' ranges."""


def graph_inputs(graph: ir.Model) -> list[InputSpec]:
    """What a run of the graph has to be fed."""
    specs = []
    for value in graph.graph.inputs:
        if value.name in graph.graph.initializers:
            continue
        if value.dtype is None:
            raise ModelError(f"input {value.name!r} has no type. Export the model again.")
        shape = value.shape
        specs.append(
            InputSpec(
                name=value.name or "",
                dtype=value.dtype.numpy(),
                shape=None
                if shape is None
                else tuple(d if isinstance(d, int) else None for d in shape),
            )
        )
    return specs


def range_samples(graph: ir.Model, source: Path, data: Data | None) -> Samples:
    """Samples for the converters' ranges, in the data's own order."""
    try:
        chosen = data_beside(source, data)
    except DataError as error:
        raise DataError(
            f"{source}: converters with a resolution need samples to set their ranges. "
            "Give `data`, or put calibration.npz beside the model."
        ) from error
    samples = load_samples(chosen, graph_inputs(graph))
    return samples.draw(min(_RANGE_SAMPLES, samples.num_samples), seed=0)


def data_beside(model: Path, data: Data | None) -> str | Mapping[str, Array]:
    """The data given, or ``calibration.npz`` beside the model.

    Raises:
        DataError: there is neither.
    """
    if isinstance(data, Mapping):
        return data
    if data is not None:
        return str(data)
    default = model.parent / "calibration.npz"
    if not default.is_file():
        raise DataError(f"{model}: no calibration.npz beside the model. Give samples with `data`.")
    return str(default)
