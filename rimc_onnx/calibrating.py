# SPDX-License-Identifier: Apache-2.0
"""The jobs ``calibrate`` and ``write_statistics``: adapters, and what is known of the teacher."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rimc_onnx import passes
from rimc_onnx.adapter_file import write_adapter_file
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.fit import CalibratedNode, fit_adapters
from rimc_onnx.calibration.problem import Statistics
from rimc_onnx.calibration.report import (
    NATIVE_LIBRARY,
    check_report,
    gamma_of,
    make_record,
    peak_rss_bytes,
    write_report,
)
from rimc_onnx.calibration.sensitivity import measure_sensitivities
from rimc_onnx.calibration.statistics_file import TeacherKnowledge, read_statistics
from rimc_onnx.calibration.statistics_file import write_statistics as save_statistics
from rimc_onnx.calibration.taps import SessionFactory
from rimc_onnx.calibration.walk import Sessions, teacher_moments
from rimc_onnx.data import load_samples
from rimc_onnx.errors import ModelError, UsageError
from rimc_onnx.feeds import CHUNK_SAMPLES, Data, data_beside, graph_inputs
from rimc_onnx.files import check_output, load_model, output_of, save_model, sha256_of
from rimc_onnx.opset import DOMAIN
from rimc_onnx.reports import CalibratedNodeReport, CalibrateReport, StatisticsReport
from rimc_onnx.sessions import digital_session, native_session
from rimc_onnx.teacher import check_converted, teacher_of

__all__ = ["calibrate", "write_statistics"]

Array = npt.NDArray[Any]


def calibrate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Data | None = None,
    teacher: str | Path | None = None,
    statistics: str | Path | None = None,
    config: CalibrateConfig | None = None,
    swappable: bool = False,
    adapter_file: str | Path | None = None,
    twin: str | Path | None = None,
    device: SessionFactory | None = None,
    report: bool = True,
    page: bool = False,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> CalibrateReport:
    """Fit the SRAM adapters of a converted model and write the deployable graph.

    Args:
        model: a converted model; its RRAM weights are copied byte for byte.
        output: default ``<model>.calibrated.onnx`` (``net.rimc.calibrated.onnx``).
        data: samples; default is ``calibration.npz`` beside the model.
        teacher: default is the file that the model records.
        statistics: a file that :func:`write_statistics` wrote.
        config: samples, adapters, SRAM, solver, knowledge.
        swappable: make the adapters graph inputs too, so that a live session can change them.
        adapter_file: write the adapters alone there (``.onnx_adapter``).
        twin: write a plain fp32 model of the same function there, standard operators only.
        device: makes a session from the bytes of a model; default is the native simulator.
        report: write ``<output>.report.json`` (``net.rimc.calibrated.report.json``).
        page: write ``<output>.report.html`` too; needs matplotlib, the extra ``report``.
        force: replace an existing output, and accept a teacher with another sha256.
        progress: called with (pass, nodes done, nodes in all).

    Raises:
        RimcError: see the subclasses; nothing is written then.
    """
    start = time.perf_counter()
    config = config or CalibrateConfig()
    if config.num_samples == 0 and statistics is None:
        raise UsageError("no samples: give --statistics with --read-out, or --samples 1 or more.")
    source = Path(model)
    student = load_model(source)
    target = output_of(source, output, ".calibrated.onnx")
    check_converted(student, source)
    check_output(target, force=force)
    extras = [Path(extra) for extra in (adapter_file, twin) if extra is not None]
    for extra in extras:
        check_output(extra, force=force)
    paths = [source, target, *extras]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("every output needs a file of its own, and none may be the model itself.")
    path_json = target.with_suffix(".report.json") if report else None
    path_html = target.with_suffix(".report.html") if page else None
    check_report(path_json, path_html, force=force)
    teacher_path = teacher_of(student, source, teacher, force=force)
    teacher_graph = load_model(teacher_path)
    if DOMAIN in teacher_graph.opset_imports:
        raise ModelError(
            f"{teacher_path} is a converted model. Give the one before conversion with --teacher."
        )
    passes.prepare_pipeline()(teacher_graph)
    known = None
    if statistics is not None:
        known = read_statistics(Path(statistics), teacher_sha256=sha256_of(teacher_path))
    feeds: list[dict[str, Array]] = []
    if config.num_samples:
        samples = load_samples(data_beside(source, data), graph_inputs(student)).draw(
            config.num_samples, seed=config.sample_seed
        )
        feeds = [b.feeds for b in samples.batches(CHUNK_SAMPLES)]
    nodes = fit_adapters(
        student,
        teacher_graph,
        feeds,
        num_samples=config.num_samples,
        config=config,
        sessions=Sessions(device=device or native_session, digital=digital_session),
        known=known,
        progress=progress,
    )
    result = CalibrateReport(
        output=str(target),
        report=str(path_json) if path_json else None,
        page=str(path_html) if path_html else None,
        samples=config.num_samples,
        solver=config.solver,
        gamma=gamma_of(nodes),
        sram_bytes=sum(n.adapter.sram_bytes for n in nodes),
        seconds=time.perf_counter() - start,
        peak_rss_bytes=peak_rss_bytes(),
        nodes=[_node_report(n) for n in nodes],
    )
    # Made before anything is written: it refuses errors that are NaN.
    record = make_record(
        result,
        nodes,
        student,
        model=str(source),
        config=config,
        teacher_sha256=sha256_of(teacher_path),
        runs_on=_name_of(device),
    )
    if swappable or passes.is_swappable(student):
        passes.MakeAdaptersSwappablePass()(student)
    save_model(student, target, force=force)
    if adapter_file is not None:
        write_adapter_file(adapter_file, {n.name: n.adapter for n in nodes}, student, force=force)
    if twin is not None:
        passes.FoldAdaptersPass()(student)
        save_model(student, Path(twin), force=force)
    write_report(path_json, path_html, record, force=force)
    return result


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
    target = Path(output) if output else source.with_suffix(".statistics.npz")
    graph = load_model(source)
    check_output(target, force=force)
    samples = load_samples(data_beside(source, data), graph_inputs(graph))
    passes.prepare_pipeline()(graph)
    units = list(passes.find_units(graph).values())
    kept = samples.draw(min(keep_samples, samples.num_samples), seed=0) if keep_samples else None
    reference = [b.feeds for b in kept.batches(CHUNK_SAMPLES)] if kept else []
    feeds = [b.feeds for b in samples.batches(CHUNK_SAMPLES)]
    felt = measure_sensitivities(graph, units, reference or feeds, digital_session, seed=0)
    found = {}
    for unit, moments in teacher_moments(graph, units, feeds, digital_session):
        found[unit.name] = Statistics.of(moments, felt.get(unit.name))
        progress(len(found), len(units))
    if not found:
        raise ModelError(f"{source}: has no node that could go to RRAM. See rimc-onnx inspect.")
    save_statistics(
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


def _node_report(node: CalibratedNode) -> CalibratedNodeReport:
    return CalibratedNodeReport(
        name=node.name,
        rank=node.rank,
        sram_bytes=node.adapter.sram_bytes,
        error_before=node.error_before,
        error_after=node.error_after,
    )


def _name_of(device: SessionFactory | None) -> str:
    """What a report calls the device."""
    if device is None:
        return NATIVE_LIBRARY
    for name in ("name", "__name__"):
        if isinstance(found := getattr(device, name, None), str):
            return found
    return type(device).__name__
