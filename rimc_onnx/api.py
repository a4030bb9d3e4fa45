# SPDX-License-Identifier: Apache-2.0
"""The main job as functions: convert, age, calibrate, evaluate, inspect. Files in, files out.

Everything the command line does is here; the command line only parses and renders.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxscript import ir

from rimc_onnx import passes, runtime
from rimc_onnx.adapter_file import write_adapter_file
from rimc_onnx.ageing import age
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.fit import CalibratedNode, fit_adapters
from rimc_onnx.calibration.problem import Statistics
from rimc_onnx.calibration.ranges import measure_ranges
from rimc_onnx.calibration.report import (
    check_report,
    gamma_of,
    make_record,
    peak_rss_bytes,
    write_report,
)
from rimc_onnx.calibration.sensitivity import measure_sensitivities
from rimc_onnx.calibration.statistics_file import TeacherKnowledge, read_statistics
from rimc_onnx.calibration.statistics_file import write_statistics as save_statistics
from rimc_onnx.calibration.taps import Session, SessionFactory
from rimc_onnx.calibration.walk import Sessions, teacher_moments
from rimc_onnx.config import ConvertConfig
from rimc_onnx.data import InputSpec, Samples, import_callable, load_samples
from rimc_onnx.errors import DataError, ModelError, UsageError
from rimc_onnx.evaluation import EvaluationReport, Metric, evaluate_session
from rimc_onnx.files import blame_model, check_output, load_model, save_model, sha256_of
from rimc_onnx.opset import DOMAIN
from rimc_onnx.reports import (
    AgeReport,
    CalibratedNodeReport,
    CalibrateReport,
    ConvertReport,
    InspectReport,
    NodeReport,
    StatisticsReport,
)
from rimc_onnx.runtime.programming import native_realise
from rimc_onnx.teacher import (
    TEACHER_PATH,
    TEACHER_SHA256,
    VERSION,
    check_converted,
    package_version,
    teacher_of,
)

__all__ = [
    "AgeReport",
    "CalibrateReport",
    "CalibratedNodeReport",
    "ConvertReport",
    "InspectReport",
    "NodeReport",
    "StatisticsReport",
    "age",
    "calibrate",
    "convert",
    "evaluate",
    "inspect",
    "write_statistics",
]

Array = npt.NDArray[Any]
Data = str | Path | Mapping[str, Array]
Progress = Callable[[int, int], None]

_NODES = "rimc.nodes"

_DEFAULT_LABELS = "labels"

_RANGE_SAMPLES = 32
"""Samples that set the converters' ranges."""
_CHUNK_SAMPLES = 8
"""Samples that run through the network together while features are taken."""


def _no_progress(_done: int, _total: int) -> None:
    return None


def convert(
    model: str | Path,
    output: str | Path | None = None,
    *,
    config: ConvertConfig | None = None,
    data: Data | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = _no_progress,
) -> ConvertReport:
    """Rewrite an ONNX model into RRAM nodes with SRAM branches and program the arrays.

    Args:
        model: the teacher, an .onnx file.
        output: default ``<model>.rimc.onnx`` beside the model.
        config: device, seed, rank, periphery; default: 20 % relative drift, ideal converters.
        data: samples that set the ranges of converters and word lines, needed with DAC or ADC bits
            or an I-V curve; default is ``calibration.npz`` beside the model.
        force: replace an existing output.
        dry_run: decide, write nothing.
        progress: called with (nodes done, nodes in all).

    Raises:
        RimcError: see the subclasses; nothing is written then.
    """
    start = time.perf_counter()
    config = config or ConvertConfig()
    source = Path(model)
    graph = load_model(source)
    target = Path(output) if output else source.with_suffix(".rimc.onnx")
    if target.resolve() == source.resolve():
        raise UsageError(f"{target}: is the model itself. Give another file with -o.")
    digest = sha256_of(source)
    with blame_model(source):
        passes.prepare_pipeline(keep_digital=config.keep_digital)(graph)
        decisions = passes.select_rram_nodes(graph, config)
    nodes = [
        NodeReport(name=d.name, op_type=d.op_type, mapped=d.accepted, reason=d.reason)
        for d in decisions
    ]
    report = ConvertReport(
        output=None if dry_run else str(target),
        nodes=nodes,
        mapped=sum(n.mapped for n in nodes),
        digital=sum(not n.mapped for n in nodes),
        rram_weights=sum(int(np.prod(d.unit.weight.shape)) for d in decisions if d.unit),
        device=config.device.preset,
        seed=config.seed,
        time_s=config.device.resolve_time(config.time_s) if config.device.time_law else None,
        teacher_sha256=digest,
        seconds=0.0,
        read_noise_frac=config.reads.read_noise_frac,
        iv_curve=config.iv_curve,
        reads_of_device=config.reads_of_device,
    )
    if dry_run:
        return _timed(report, start)
    passes.require_mapped(decisions)
    check_output(target, force=force)
    units = [d.unit for d in decisions if d.unit]
    ranges = {}
    if config.needs_ranges:
        samples = _range_samples(graph, source, data)
        feeds = [b.feeds for b in samples.batches(_CHUNK_SAMPLES)]
        ranges = measure_ranges(
            graph, units, feeds, _digital_session, config=config, progress=progress
        )
    with blame_model(source):
        passes.convert_pipeline(decisions, config, ranges, realise=native_realise())(graph)
        passes.check_rimc_model(graph)
    graph.metadata_props.update(
        {
            TEACHER_SHA256: digest,
            TEACHER_PATH: os.path.relpath(source.resolve(), target.resolve().parent),
            VERSION: package_version(),
            _NODES: json.dumps([n.__dict__ for n in nodes if not n.mapped], sort_keys=True),
        }
    )
    save_model(graph, target, force=force)
    return _timed(report, start)


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
    target = Path(output) if output else source.with_suffix(".calibrated.onnx")
    if target.resolve() == source.resolve():
        raise UsageError(f"{target}: is the model itself. Give another file with -o.")
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
    passes.prepare_pipeline()(teacher_graph)
    known = None
    if statistics is not None:
        known = read_statistics(Path(statistics), teacher_sha256=sha256_of(teacher_path))
    feeds: list[dict[str, Array]] = []
    if config.num_samples:
        samples = load_samples(_data_beside(source, data), _inputs(student)).draw(
            config.num_samples, seed=config.sample_seed
        )
        feeds = [b.feeds for b in samples.batches(_CHUNK_SAMPLES)]
    nodes = fit_adapters(
        student,
        teacher_graph,
        feeds,
        num_samples=config.num_samples,
        config=config,
        sessions=Sessions(device=device or _device_session, digital=_digital_session),
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
    progress: Progress = _no_progress,
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
    samples = load_samples(_data_beside(source, data), _inputs(graph))
    passes.prepare_pipeline()(graph)
    units = list(passes.find_units(graph).values())
    kept = samples.draw(min(keep_samples, samples.num_samples), seed=0) if keep_samples else None
    reference = [b.feeds for b in kept.batches(_CHUNK_SAMPLES)] if kept else []
    feeds = [b.feeds for b in samples.batches(_CHUNK_SAMPLES)]
    felt = measure_sensitivities(graph, units, reference or feeds, _digital_session, seed=0)
    found = {}
    for unit, moments in teacher_moments(graph, units, feeds, _digital_session):
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


def evaluate(
    model: str | Path,
    *,
    data: Data,
    labels: str | None = None,
    teacher: str | Path | None = None,
    metric: str | Metric | None = None,
    native: bool = True,
    batch_size: int = 64,
    progress: Progress = _no_progress,
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
        batch_size: samples a run.
        progress: called with (samples done, samples in all).
    """
    source = Path(model)
    graph = load_model(source)
    samples = load_samples(data if isinstance(data, Mapping) else str(data), _inputs(graph))
    if labels is None and _DEFAULT_LABELS in samples.extras:
        labels = _DEFAULT_LABELS
    if teacher is None and labels is None and metric is None:
        if TEACHER_PATH not in graph.metadata_props:
            raise UsageError(
                f"{source}: nothing to compare with. The data has no labels; name them with "
                "--labels, or give --metric or --teacher."
            )
        teacher = teacher_of(graph, source, None, force=False)
    elif teacher is not None:
        load_model(Path(teacher))
    return evaluate_session(
        _session(source, native=native),
        samples,
        model=str(source),
        labels=labels,
        teacher=_session(Path(teacher), native=False) if teacher else None,
        metric=import_callable(metric) if isinstance(metric, str) else metric,
        batch_size=batch_size,
        progress=progress,
    )


def inspect(model: str | Path, *, config: ConvertConfig | None = None) -> InspectReport:
    """What is in RRAM and what is not, and why; a plain model as ``convert`` would map it."""
    source = Path(model)
    graph = load_model(source)
    if DOMAIN not in graph.opset_imports:
        report = convert(source, config=config, dry_run=True)
        return InspectReport(
            model=str(source),
            converted=False,
            nodes=report.nodes,
            mapped=report.mapped,
            digital=report.digital,
            rram_weights=report.rram_weights,
            sram_bytes=None,
            device=None,
            seed=None,
            time_s=None,
            teacher_sha256=None,
        )
    check_converted(graph, source)
    passes.check_rimc_model(graph)
    branches = passes.rram_branches(graph)
    nodes = [
        NodeReport(name=b.node, op_type=b.rram.op_type, mapped=True, reason=None) for b in branches
    ]
    digital = [NodeReport(**n) for n in json.loads(graph.metadata_props.get(_NODES, "[]"))]
    first = branches[0].rram.attributes
    device = json.loads(first["device_config"].as_string())
    return InspectReport(
        model=str(source),
        converted=True,
        nodes=nodes + digital,
        mapped=len(nodes),
        digital=len(digital),
        rram_weights=sum(int(np.prod(b.weight_shape)) for b in branches),
        sram_bytes=sum(b.adapter().sram_bytes for b in branches),
        device=device,
        seed=first["seed"].as_int(),
        time_s=first["time_s"].as_float() if "time_law" in device else None,
        teacher_sha256=graph.metadata_props.get(TEACHER_SHA256),
    )


def _node_report(node: CalibratedNode) -> CalibratedNodeReport:
    return CalibratedNodeReport(
        name=node.name,
        rank=node.rank,
        sram_bytes=node.adapter.sram_bytes,
        error_before=node.error_before,
        error_after=node.error_after,
    )


def _timed(report: ConvertReport, start: float) -> ConvertReport:
    return replace(report, seconds=time.perf_counter() - start)


def _inputs(graph: ir.Model) -> list[InputSpec]:
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


def _range_samples(graph: ir.Model, source: Path, data: Data | None) -> Samples:
    """Samples for the converters' ranges, in the data's own order."""
    try:
        chosen = _data_beside(source, data)
    except DataError as error:
        raise DataError(
            f"{source}: converters with a resolution need samples to set their ranges. "
            "Give --data, or put calibration.npz beside the model."
        ) from error
    samples = load_samples(chosen, _inputs(graph))
    return samples.draw(min(_RANGE_SAMPLES, samples.num_samples), seed=0)


def _data_beside(model: Path, data: Data | None) -> str | Mapping[str, Array]:
    if isinstance(data, Mapping):
        return data
    if data is not None:
        return str(data)
    default = model.parent / "calibration.npz"
    if not default.is_file():
        raise DataError(
            f"{model}: no calibration.npz beside the model. Give samples with --data FILE."
        )
    return str(default)


def _session(model: Path | bytes, *, native: bool) -> Any:
    try:
        return runtime.make_session(model, native=native)
    except ModelError:
        raise
    except Exception as error:
        name = model if isinstance(model, Path) else "a piece of the model"
        raise ModelError(
            f"{name}: ONNX Runtime can't load it ({' '.join(str(error).split())[:300]})."
        ) from error


def _device_session(content: bytes) -> Session:
    session: Session = _session(content, native=True)
    return session


def _digital_session(content: bytes) -> Session:
    session: Session = _session(content, native=False)
    return session
