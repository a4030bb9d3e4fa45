# SPDX-License-Identifier: Apache-2.0
"""Ageing of a converted or calibrated model: files in, files out."""

from __future__ import annotations

import time
from pathlib import Path

from rimc_onnx import passes
from rimc_onnx.io.model_files import blame_model, files_of, load_model, save_model
from rimc_onnx.io.outputs import check_output, output_of
from rimc_onnx.jobs.reports import AgeReport
from rimc_onnx.jobs.teacher import TEACHER_PATH, check_converted, recorded_path, teacher_of
from rimc_onnx.runtime.programming import native_programmer

__all__ = ["age"]


def age(
    model: str | Path,
    output: str | Path | None = None,
    *,
    time_s: float,
    teacher: str | Path | None = None,
    force: bool = False,
) -> AgeReport:
    """Move the arrays of a converted or calibrated model to another time since programming.

    Every device continues its own path: the result is what ``convert`` at that time gives. Adapters
    are copied byte for byte.

    Args:
        model: a converted model.
        output: default ``<model>.aged.onnx`` (``net.rimc.aged.onnx``).
        time_s: seconds since programming, not since the model's own time.
        teacher: default is the file that the model records.
        force: replace an existing output, and accept a teacher with another sha256.

    Raises:
        RimcError: see the subclasses; nothing is written then.
    """
    start = time.perf_counter()
    source = Path(model)
    student = load_model(source)
    target = output_of(source, output, ".aged.onnx")
    check_converted(student, source)
    passes.check_rimc_model(student)
    branches = passes.rram_branches(student)
    first = branches[0].rram.attributes
    before = first["time_s"].as_float()
    teacher_path = teacher_of(student, source, teacher, force=force)
    check_output(target, force=force, reads=[*files_of(source), *files_of(teacher_path)])
    teacher_graph = load_model(teacher_path)
    with blame_model(teacher_path):
        passes.prepare_pipeline()(teacher_graph)
    units = passes.find_units(teacher_graph)
    passes.AgeRramPass(units, time_s, programmer=native_programmer())(student)
    student.metadata_props[TEACHER_PATH] = recorded_path(teacher_path, target)
    save_model(student, target, force=force)
    return AgeReport(
        output=str(target),
        nodes=len(branches),
        rram_weights=sum(b.geometry.num_weights for b in branches),
        device=first["device"].as_string(),
        seed=first["seed"].as_int(),
        time_s_before=before,
        time_s=branches[0].rram.attributes["time_s"].as_float(),
        seconds=time.perf_counter() - start,
    )
