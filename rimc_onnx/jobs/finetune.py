# SPDX-License-Identifier: Apache-2.0
"""The job ``finetune``: a model trained for a device, the same file with other weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rimc_onnx.calibration.converter_ranges import measure_ranges
from rimc_onnx.calibration.report.record import peak_rss_bytes
from rimc_onnx.errors import DataError, UsageError
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.feeds import data_beside, feeds_of, graph_inputs, range_samples
from rimc_onnx.io.model_files import blame_model, files_of, load_model, sha256_of
from rimc_onnx.io.outputs import check_output, output_of
from rimc_onnx.io.samples import Data, Samples, files_of_data, load_samples
from rimc_onnx.jobs.reports import FinetuneReport, ValidationReport
from rimc_onnx.runtime.programming import native_programmer
from rimc_onnx.training import load, need_torch, write_back
from rimc_onnx.training.config import FinetuneConfig, Loss

if TYPE_CHECKING:
    from rimc_onnx.crossbar import ConvertConfig, NodeRanges
    from rimc_onnx.training.batches import Batches
    from rimc_onnx.training.finetune import Trainer

__all__ = ["finetune"]

_DEFAULT_LABELS = "labels"
_STATE_SUFFIX = ".training"


def finetune(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Data | None = None,
    validation: Data | None = None,
    labels: str | None = None,
    loss: Callable[..., Any] | None = None,
    config: FinetuneConfig | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> FinetuneReport:
    """Train a float model for a device, and write the same file with other weights.

    A state is kept in ``<output>.training`` until the job is done: the same call after a kill goes
    on where it was, and ends with the same weights.

    Args:
        model: an .onnx file, not converted.
        output: default ``<model>.finetuned.onnx``.
        data: samples to train on; default is ``calibration.npz`` beside the model.
        validation: samples that states are compared on; default is a part of ``data``.
        labels: name of the array of class indices; default is ``labels`` where the data has one.
        loss: a function of (outputs, other arrays), both dicts of tensors, that gives the mean loss
            of a batch; with ``Loss.CUSTOM``.
        config: device, loss and recipe.
        resume: go on from a state of an earlier call.
        force: replace an existing output.
        progress: called with (steps done, steps in all).

    Raises:
        RimcError: see the subclasses; no output is written then.
    """
    start = time.perf_counter()
    need_torch("finetune")
    config = config or FinetuneConfig()
    source = Path(model)
    graph = load_model(source)
    target = output_of(source, output, ".finetuned.onnx")
    used = data_beside(source, data)
    given = [*files_of(source), *files_of_data(used), *files_of_data(validation)]
    check_output(target, force=force, reads=given)
    samples = load_samples(used, graph_inputs(graph))
    held_out = None if validation is None else load_samples(validation, graph_inputs(graph))
    labels = _labels(samples, labels, config.loss)
    with blame_model(source):
        trainer = _trainer(source, samples, held_out, labels, loss, config, data)
    state = target.with_name(target.name + _STATE_SUFFIX)
    if not resume:
        state.unlink(missing_ok=True)
    identity = _identity(source, samples, config)
    result = trainer.run(state, identity=identity, progress=progress)
    changed = write_back(source, target, trainer.model.module.weights(), force=force)
    state.unlink(missing_ok=True)
    history = [ValidationReport(**asdict(v)) for v in result.history]
    best = next(v for v in history if result.best is not None and v.step == result.best.step)
    return FinetuneReport(
        output=str(target),
        device=config.convert.device.preset,
        time_s=config.convert.time_s,
        trained=len(trainer.trained),
        trained_weights=sum(p.numel() for p in trainer.trained.values()),
        changed=len(changed),
        samples=trainer.data.num_samples,
        validation_samples=trainer.held_out.num_samples,
        steps=result.step,
        best=best,
        validations=history,
        runs_on=str(trainer.device),
        seconds=time.perf_counter() - start,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _labels(samples: Samples, labels: str | None, loss: Loss) -> str | None:
    if labels is None and _DEFAULT_LABELS in samples.extras:
        labels = _DEFAULT_LABELS
    if labels is not None and labels not in samples.extras:
        raise DataError(
            f"the data has no array {labels!r} for the `labels`; beside the inputs it has "
            f"{', '.join(map(repr, sorted(samples.extras))) or 'nothing'}."
        )
    if loss is Loss.TASK and labels is None:
        raise DataError("the loss task needs `labels`, and the data has none. Use distill.")
    return labels


def _trainer(
    source: Path,
    samples: Samples,
    held_out: Samples | None,
    labels: str | None,
    loss: Callable[..., Any] | None,
    config: FinetuneConfig,
    data: Data | None,
) -> Trainer:
    from rimc_onnx.training.analog_model import AnalogModel
    from rimc_onnx.training.finetune import Trainer
    from rimc_onnx.training.losses import Objective, output_kinds

    if (loss is not None) != (config.loss is Loss.CUSTOM):
        raise UsageError(f"a `loss` of one's own goes with Loss.CUSTOM, got {config.loss}")
    ranges = _ranges(source, config.convert, data)
    analog = AnalogModel(load_model(source), config.convert, ranges, times_s=_times(config))
    kinds = output_kinds(load_model(source))
    objective = Objective(
        config.loss,
        {n: kinds[n] for n in analog.module.output_names},
        temperature=config.temperature,
        labels=labels,
        custom=loss,
        features=analog.module.outputs_of(analog.layers),
    )
    train, held = _split(samples, held_out, config)
    return Trainer(
        analog, load(source), objective, train, held, config, programmer=native_programmer()
    )


def _split(
    samples: Samples, held_out: Samples | None, config: FinetuneConfig
) -> tuple[Batches, Batches]:
    from rimc_onnx.training.batches import Batches

    train = Batches(samples)
    if held_out is not None:
        return train, Batches(held_out)
    count = min(config.validation_samples, train.num_samples // 4)
    if count == 0:
        raise DataError(
            f"{train.num_samples} samples are too few to hold some out. Give more, or `validation`."
        )
    return train.split(count, config.seed)


def _ranges(source: Path, config: ConvertConfig, data: Data | None) -> dict[str, NodeRanges]:
    """Ranges of converters, as the conversion of the teacher has them."""
    if not config.needs_ranges:
        return {}
    from rimc_onnx.training.analog_model import mapped_units

    graph = load_model(source)
    prepared, units = mapped_units(graph, config)
    samples = range_samples(graph, source, data)
    return measure_ranges(prepared, units, feeds_of(samples), digital_session, config=config)


def _times(config: FinetuneConfig) -> list[float | None]:
    """Ages that deviations are drawn for; the conversion's is the last one."""
    if config.life_s is None:
        return [config.convert.time_s]
    first, last = config.life_s
    between = np.geomspace(first, last, 8)
    return [*(float(np.clip(t, first, last)) for t in between), config.convert.time_s]


def _identity(source: Path, samples: Samples, config: FinetuneConfig) -> str:
    """What a state belongs to: another model, data or recipe starts anew."""
    digest = hashlib.sha256(sha256_of(source).encode())
    digest.update(repr(config).encode())
    digest.update(str(samples.num_samples).encode())
    for batch in samples.batches(16):
        for name, array in sorted({**batch.feeds, **batch.extras}.items()):
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
