# SPDX-License-Identifier: Apache-2.0
"""The job ``calibrate``: fits the adapters of a converted model and writes the merged one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.fit import CalibratedNode
from rimc_onnx.calibration.guard import fit_adapters
from rimc_onnx.calibration.output_error import OutputFigures
from rimc_onnx.calibration.report.record import (
    NATIVE_LIBRARY,
    CalibrationRecord,
    gamma_of,
    make_record,
    peak_rss_bytes,
)
from rimc_onnx.calibration.walk import Sessions
from rimc_onnx.cost.constants import default_constants
from rimc_onnx.cost.model_cost import CostReport
from rimc_onnx.errors import ModelError, UsageError
from rimc_onnx.execution.external_data import forget_pages
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import SessionFactory, digital_session, native_session
from rimc_onnx.io.adapter_file import put_adapters
from rimc_onnx.io.feeds import data_beside, feeds_of, graph_inputs
from rimc_onnx.io.model_files import blame_model, files_of, load_model, put_model, sha256_of
from rimc_onnx.io.outputs import Outputs, check_output, check_outputs, output_of
from rimc_onnx.io.report_files import put_report, require_page_modules
from rimc_onnx.io.samples import Data, files_of_data, load_samples
from rimc_onnx.io.statistics_file import read_statistics
from rimc_onnx.jobs.cost import cost_of
from rimc_onnx.jobs.reports import CalibratedNodeReport, CalibrateReport, OutputsReport
from rimc_onnx.jobs.teacher import TEACHER_PATH, check_converted, recorded_path, teacher_of

__all__ = ["calibrate"]

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
    report: bool | str | Path = True,
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
        report: write ``<output>.report.json`` (``net.rimc.calibrated.report.json``), or the file
            that is named.
        page: write ``<output>.report.html`` too; needs jinja2 and matplotlib, the extra ``report``.
        force: replace an existing output, and accept a teacher with another sha256.
        progress: called with (pass, nodes done, nodes in all).

    Raises:
        RimcError: see the subclasses; nothing is written then.
    """
    start = time.perf_counter()
    config = config or CalibrateConfig()
    if config.num_samples == 0 and statistics is None:
        raise UsageError(
            "no samples: give `statistics` with `read_out`, or `num_samples` of 1 or more."
        )
    source = Path(model)
    student = load_model(source)
    target = output_of(source, output, ".calibrated.onnx")
    check_converted(student, source)
    passes.check_rimc_model(student)
    check_output(target, force=force)  # first: a folder may have no name to derive others from
    files = _Outputs(
        model=target,
        report=_report_path(target, report),
        page=target.with_suffix(".report.html") if page else None,
        adapters=None if adapter_file is None else Path(adapter_file),
        twin=None if twin is None else Path(twin),
    )
    teacher_path = teacher_of(student, source, teacher, force=force)
    used = data_beside(source, data) if config.num_samples else None
    reads = [*files_of(source), *files_of(teacher_path), *files_of_data(used)]
    files.check([*reads, *([] if statistics is None else [Path(statistics)])], force=force)
    teacher_graph = _prepared_teacher(teacher_path)
    teacher_sha256 = sha256_of(teacher_path)
    known = None
    if statistics is not None:
        known = read_statistics(Path(statistics), teacher_sha256=teacher_sha256)
    with blame_model(teacher_path), blame_model(source):
        calibration = fit_adapters(
            student,
            teacher_graph,
            _drawn_feeds(student, source, data, config) if config.num_samples else [],
            num_samples=config.num_samples,
            config=config,
            sessions=Sessions(device=device or native_session, digital=digital_session),
            known=known,
            progress=progress,
        )
    nodes = calibration.nodes
    cost = _cost(student, used, device or native_session)
    # Conductances were read for it, and the file is written from the same pages.
    forget_pages(student)
    result = CalibrateReport(
        **files.names(),
        samples=config.num_samples,
        solver=config.solver.value,
        gamma=gamma_of(nodes),
        sram_bytes=sum(n.adapter.sram_bytes for n in nodes),
        seconds=time.perf_counter() - start,
        peak_rss_bytes=peak_rss_bytes(),
        drifted=_outputs_report(calibration.drifted),
        calibrated=_outputs_report(calibration.calibrated),
        taken_back=calibration.taken_back,
        is_identity=calibration.is_identity,
        warning=calibration.warning,
        cost=cost,
        nodes=[_node_report(n) for n in nodes],
    )
    # Made before anything is written: it refuses errors that are NaN.
    record = make_record(
        result,
        nodes,
        student,
        model=str(source),
        config=config,
        teacher_sha256=teacher_sha256,
        runs_on=_name_of(device),
    )
    student.metadata_props[TEACHER_PATH] = recorded_path(teacher_path, target)
    if swappable or passes.is_swappable(student):
        passes.MakeAdaptersSwappablePass()(student)
    files.write(student, nodes, record, force=force)
    return result


def _report_path(target: Path, report: bool | str | Path) -> Path | None:
    if isinstance(report, bool):
        return target.with_suffix(".report.json") if report else None
    return Path(report)


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """The files that a calibration writes; ``None`` is left out."""

    model: Path
    report: Path | None
    page: Path | None
    adapters: Path | None
    twin: Path | None

    def check(self, reads: Sequence[Path], *, force: bool) -> None:
        """Refuse early what :meth:`write` would refuse, and to replace what the job ``reads``."""
        paths = (self.model, self.adapters, self.twin, self.report, self.page)
        check_outputs([p for p in paths if p is not None], force=force, reads=reads)
        if self.page is not None:
            require_page_modules()

    def names(self) -> dict[str, Any]:
        """Fields of a :class:`CalibrateReport`."""
        texts = {
            "report": self.report,
            "page": self.page,
            "adapter_file": self.adapters,
            "twin": self.twin,
        }
        found = {name: None if path is None else str(path) for name, path in texts.items()}
        return {"output": str(self.model), **found}

    def write(
        self,
        student: ir.Model,
        nodes: Sequence[CalibratedNode],
        record: CalibrationRecord,
        *,
        force: bool,
    ) -> None:
        """Write all or none; the twin is the last that is made of ``student``, which it changes."""
        with Outputs(force=force) as out:
            put_model(student, self.model, out)
            if self.adapters is not None:
                put_adapters(self.adapters, {n.name: n.adapter for n in nodes}, student, out)
            put_report(self.report, self.page, record, out)
            if self.twin is not None:
                passes.FoldAdaptersPass()(student)
                put_model(student, self.twin, out)


def _prepared_teacher(path: Path) -> ir.Model:
    """The teacher's graph in the form that was converted."""
    graph = load_model(path)
    if passes.is_converted(graph):
        raise ModelError(
            f"{path} is a converted model. Give the one before conversion with `teacher`."
        )
    with blame_model(path):
        passes.prepare_pipeline()(graph)
    return graph


def _drawn_feeds(
    student: ir.Model, source: Path, data: Data | None, config: CalibrateConfig
) -> list[Feed]:
    """The samples of a calibration, in chunks."""
    samples = load_samples(data_beside(source, data), graph_inputs(student))
    drawn = samples.draw(config.num_samples, seed=config.sample_seed)
    return feeds_of(drawn)


def _cost(student: ir.Model, data: Data | None, device: SessionFactory) -> CostReport | None:
    """Of the calibrated model; a sample is run only where shapes can't be inferred."""
    try:
        return cost_of(student, default_constants(), device=device)
    except ModelError:
        if data is None:
            return None
        return cost_of(student, default_constants(), data=data, device=device)


def _outputs_report(figures: OutputFigures | None) -> OutputsReport | None:
    if figures is None:
        return None
    finite = figures.error is not None and math.isfinite(figures.error)
    return OutputsReport(
        error=figures.error if finite else None,
        agreement=figures.agreement,
        sqnr_db=figures.sqnr_db,
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
