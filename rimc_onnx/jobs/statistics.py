# SPDX-License-Identifier: Apache-2.0
"""The job ``write_statistics``: what is known of a teacher, measured once and shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rimc_onnx import passes
from rimc_onnx.calibration.problem import Statistics, TeacherKnowledge
from rimc_onnx.calibration.sensitivity import measure_sensitivities
from rimc_onnx.calibration.walk import teacher_moments
from rimc_onnx.errors import ModelError, UsageError
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io import statistics_file
from rimc_onnx.io.feeds import data_beside, feeds_of, graph_inputs
from rimc_onnx.io.model_files import blame_model, files_of, load_model, sha256_of
from rimc_onnx.io.outputs import check_output, output_of
from rimc_onnx.io.samples import Data, files_of_data, load_samples
from rimc_onnx.jobs.reports import StatisticsReport

__all__ = ["write_statistics"]


def write_statistics(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Data | None = None,
    keep_samples: int = 32,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> StatisticsReport:
    """Measure a teacher once, on any unlabelled data, for calibrations that read arrays out.

    Args:
        model: the teacher, not converted.
        output: default ``<model>.statistics.npz``.
        data: all its samples are used; default is ``calibration.npz`` beside the model.
        keep_samples: so many samples go into the file as they are, drawn with seed 0. A calibration
            without field samples then runs a model of the measured arrays on them.
        force: replace an existing output.
        progress: called with (nodes done, nodes in all).
    """
    if keep_samples < 0:
        raise UsageError(f"keep_samples must be 0 or more, got {keep_samples}")
    source = Path(model)
    target = output_of(source, output, ".statistics.npz")
    graph = load_model(source)
    chosen = data_beside(source, data)
    check_output(target, force=force, reads=[*files_of(source), *files_of_data(chosen)])
    inputs = graph_inputs(graph)
    if keep_samples and not all(spec.is_tensor for spec in inputs):
        raise UsageError(
            f"{source}: an input is a sequence or an optional, which a statistics file does not "
            "hold. keep_samples has to be 0."
        )
    samples = load_samples(chosen, inputs)
    found = {}
    with blame_model(source):
        passes.prepare_pipeline()(graph)
        units = list(passes.find_units(graph).values())
        kept = samples.draw_at_most(keep_samples, seed=0) if keep_samples else None
        reference = feeds_of(kept) if kept else []
        feeds = feeds_of(samples)
        sensitivities = measure_sensitivities(
            graph, units, reference or feeds, digital_session, seed=0
        )
        for unit, moments in teacher_moments(
            graph, units, feeds, digital_session, sensitivities=sensitivities
        ):
            found[unit.name] = Statistics.of(moments, sensitivities[unit.name].power)
            progress(len(found), len(units))
    if not found:
        raise ModelError(f"{source}: has no node that could go to RRAM. See rimc-onnx inspect.")
    statistics_file.write_statistics(
        target,
        TeacherKnowledge(statistics=found, reference=reference),
        teacher_sha256=sha256_of(source),
        force=force,
    )
    return StatisticsReport(
        output=str(target),
        samples=samples.num_samples,
        kept_samples=kept.num_samples if kept else 0,
        nodes=len(found),
        bytes=target.stat().st_size,
    )
