# SPDX-License-Identifier: Apache-2.0
"""The job ``inference_cost``: what one inference of a converted model takes, and where it goes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.cost.constants import Constants, load_constants
from rimc_onnx.cost.model_cost import CostReport, model_cost
from rimc_onnx.cost.shapes import inferred_shapes, seen_shapes, zero_feed
from rimc_onnx.errors import ModelError
from rimc_onnx.execution.sessions import SessionFactory, native_session
from rimc_onnx.io.feeds import graph_inputs
from rimc_onnx.io.model_files import blame_model, load_model
from rimc_onnx.io.samples import Data, load_samples
from rimc_onnx.jobs.teacher import check_converted

__all__ = ["cost_of", "inference_cost"]


def inference_cost(
    model: str | Path,
    *,
    data: Data | None = None,
    constants: str | Path | None = None,
    explain: bool = False,
) -> CostReport:
    """Energy, latency and area of one inference of a converted or calibrated model.

    Args:
        model: a converted model.
        data: a sample, for models whose shapes can't be inferred; a run of a reader is one
            inference.
        constants: a TOML file of constants in place of some of the package's.
        explain: put the constants into the report, with their sources.

    Raises:
        RimcError: the model is not converted, a shape is not known, or a constant is wrong.
    """
    source = Path(model)
    found = load_constants(None if constants is None else Path(constants))
    graph = load_model(source)
    check_converted(graph, source)
    passes.check_rimc_model(graph)
    with blame_model(source):
        return cost_of(graph, found, data=data, explain=explain)


def cost_of(
    graph: ir.Model,
    constants: Constants,
    *,
    data: Data | None = None,
    device: SessionFactory = native_session,
    explain: bool = False,
) -> CostReport:
    """The same of a model in memory; ``device`` runs the sample."""
    if data is None:
        try:
            return model_cost(graph, inferred_shapes(graph), constants, explain=explain)
        except ModelError:
            feed = zero_feed(graph)
            if feed is None:
                raise
    else:
        batch = next(load_samples(data, graph_inputs(graph)).draw(1, seed=0).batches(1))
        feed = batch.feeds
    shapes = seen_shapes(graph, feed, device)
    return model_cost(graph, shapes, constants, complete=True, explain=explain)
