# SPDX-License-Identifier: Apache-2.0
"""The job ``finetune``: a model trained for a device, the same file with other weights.

Where the arrays are there already, in a converted model, its adapters are trained on their answers;
with ``adapters_only`` adapters are trained for devices that are still to come.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rimc_onnx import passes
from rimc_onnx.calibration.converter_ranges import measure_ranges
from rimc_onnx.calibration.report.record import peak_rss_bytes
from rimc_onnx.errors import DataError, UsageError
from rimc_onnx.execution.sessions import SessionFactory, digital_session, native_session
from rimc_onnx.io.feeds import data_beside, feeds_of, graph_inputs, range_samples
from rimc_onnx.io.model_files import blame_model, files_of, load_model, sha256_of
from rimc_onnx.io.outputs import check_outputs, output_of
from rimc_onnx.io.samples import Data, Samples, files_of_data, load_samples
from rimc_onnx.jobs.calibrated_state import CalibratedState
from rimc_onnx.jobs.convert import convert
from rimc_onnx.jobs.input_ranges import INPUT_RANGES, ranges_text, recorded_ranges
from rimc_onnx.jobs.reports import FinetuneReport, ValidationReport
from rimc_onnx.jobs.teacher import check_converted, teacher_of
from rimc_onnx.jobs.trained_adapters import coded, few_feeds, write_with_adapters
from rimc_onnx.runtime.programming import native_programmer
from rimc_onnx.training import load, need_torch, write_back
from rimc_onnx.training.config import FinetuneConfig, Loss

if TYPE_CHECKING:
    import onnx_ir as ir

    from rimc_onnx.crossbar import ConvertConfig, NodeRanges
    from rimc_onnx.ops.adapter import QuantizedAdapter
    from rimc_onnx.training.adapter_branch import AdapterBranch
    from rimc_onnx.training.analog_model import AnalogModel
    from rimc_onnx.training.batches import Augment, Batches
    from rimc_onnx.training.device_model import DeviceModel
    from rimc_onnx.training.finetune import Calibrated, Trainer

__all__ = ["finetune"]

_DEFAULT_LABELS = "labels"
_STATE_SUFFIX = ".training"
_WARN_CLEAN_LOSS = 0.05
"""Share of held-out samples that the trained weights lose without a device."""


def finetune(
    model: str | Path,
    output: str | Path | None = None,
    *,
    data: Data | None = None,
    validation: Data | None = None,
    labels: str | None = None,
    loss: Callable[..., Any] | None = None,
    augment: Augment | None = None,
    config: FinetuneConfig | None = None,
    teacher: str | Path | None = None,
    swappable: bool = False,
    adapter_file: str | Path | None = None,
    device: SessionFactory | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> FinetuneReport:
    """Train a float model for a device, and write the same file with other weights.

    A converted model keeps its arrays, and its adapters are trained: forward the device answers,
    backward the ideal graph has the slopes. ``config.convert`` says nothing then, and the result is
    the same model with other adapters.

    A state is kept in ``<output>.training`` until the job is done: the same call after a kill goes
    on where it was, and ends with the same weights.

    Args:
        model: an .onnx file, converted or not.
        output: default ``<model>.finetuned.onnx``, with ``adapters_only`` of a float model
            ``<model>.finetuned.rimc.onnx``.
        data: samples to train on; default is ``calibration.npz`` beside the model.
        validation: samples that states are compared on; default is a part of ``data``.
        labels: name of the array of class indices; default is ``labels`` where the data has one.
        loss: a function of (outputs, other arrays), both dicts of tensors, that gives the mean loss
            of a batch; with ``Loss.CUSTOM``.
        augment: a function of (arrays of a batch by name, generator) that gives them as they are to
            be trained on: flipped, shifted, masked. The generator is a function of seed and step.
            The teacher answers what it gives; held-out samples are left as they are.
        config: device, loss and recipe.
        teacher: of a converted model; default is the file that it records.
        swappable: make the adapters graph inputs too, so that a live session can change them.
        adapter_file: write the adapters alone there (``.onnx_adapter``).
        device: makes a session from the bytes of a converted model's array; default is the native
            simulator.
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
    is_converted = passes.is_converted(graph)
    of_adapters = is_converted or config.adapters_only
    _check_asked_for(config, is_converted, teacher, swappable, adapter_file, device)
    suffix = ".finetuned.rimc.onnx" if of_adapters and not is_converted else ".finetuned.onnx"
    target = output_of(source, output, suffix)
    used = data_beside(source, data)
    teacher_path = source
    if is_converted:
        check_converted(graph, source)
        passes.check_rimc_model(graph)
        teacher_path = teacher_of(graph, source, teacher, force=force)
    given = [*files_of(source), *files_of_data(used), *files_of_data(validation)]
    adapters_path = None if adapter_file is None else Path(adapter_file)
    outputs = [target, *([] if adapters_path is None else [adapters_path])]
    check_outputs(outputs, force=force, reads=[*given, *files_of(teacher_path)])
    samples = load_samples(used, graph_inputs(graph))
    held_out = None if validation is None else load_samples(validation, graph_inputs(graph))
    labels = _labels(samples, labels, config.loss)
    with blame_model(teacher_path), blame_model(source):
        job = _Job(
            source=source,
            teacher=teacher_path,
            samples=samples,
            data=used,
            config=_recipe(config, is_converted),
            device=device,
        )
        trainer = job.trainer(graph if is_converted else None, held_out, labels, loss, augment)
    state = target.with_name(target.name + _STATE_SUFFIX)
    if not resume:
        state.unlink(missing_ok=True)
    identity = _identity(
        [source, *([teacher_path] if is_converted else [])],
        [samples, *([] if held_out is None else [held_out])],
        config,
        labels,
        [f for f in (loss, augment) if f is not None],
    )
    result = trainer.run(state, identity=identity, progress=progress)
    sram_bytes = None
    if of_adapters:
        adapters = job.write(
            graph if is_converted else None,
            target,
            swappable=swappable,
            adapter_file=adapters_path,
            force=force,
        )
        changed = len(adapters) if result.best is not None and result.best.step else 0
        sram_bytes = sum(a.sram_bytes for a in adapters.values())
    else:
        weights = trainer.model.module.weights()
        changed = len(write_back(source, target, weights, metadata=job.metadata(), force=force))
    state.unlink(missing_ok=True)
    history = [ValidationReport(**asdict(v)) for v in result.history]
    best = next(v for v in history if result.best is not None and v.step == result.best.step)
    arrays = passes.rram_branches(graph)[0].rram.attributes if is_converted else None
    return FinetuneReport(
        output=str(target),
        device=arrays["device"].as_string() if arrays else config.convert.device.preset,
        time_s=arrays["time_s"].as_float() if arrays else config.convert.time_s,
        trained=len(trainer.trained),
        trained_weights=sum(p.numel() for p in trainer.trained.values()),
        changed=changed,
        samples=trainer.data.num_samples,
        validation_samples=trainer.held_out.num_samples,
        steps=result.step,
        best=best,
        validations=history,
        runs_on=str(trainer.device),
        seconds=time.perf_counter() - start,
        peak_rss_bytes=peak_rss_bytes(),
        adapter_file=None if adapters_path is None else str(adapters_path),
        sram_bytes=sram_bytes,
        warning=None
        if of_adapters
        else _warning(history[0], best, is_held_out_new=held_out is not None),
    )


def _warning(
    start: ValidationReport, best: ValidationReport, *, is_held_out_new: bool
) -> str | None:
    if start.clean_hits is None or best.clean_hits is None:
        return None
    if start.clean_hits - best.clean_hits <= _WARN_CLEAN_LOSS:
        return None
    calibrated = ""
    if start.calibrated_hits is not None and best.calibrated_hits is not None:
        calibrated = (
            f" (calibrated on a device {100 * best.calibrated_hits:.1f} %, "
            f"before {100 * start.calibrated_hits:.1f} %)"
        )
    seen = ""
    if not is_held_out_new:
        seen = (
            "The network may have known them by heart, if it was trained on them: "
            "`validation` takes samples that it has not seen. "
        )
    return (
        f"without a device the trained model is right on {100 * best.clean_hits:.1f} % of the "
        f"held-out samples, before it was {100 * start.clean_hits:.1f} %{calibrated}. {seen}Train "
        "longer, on more data, or with a smaller `noise_scale`."
    )


def _check_asked_for(
    config: FinetuneConfig,
    is_converted: bool,
    teacher: str | Path | None,
    swappable: bool,
    adapter_file: str | Path | None,
    device: SessionFactory | None,
) -> None:
    """Refuse what has no meaning for the model."""
    if not is_converted and (teacher is not None or device is not None):
        raise UsageError("`teacher` and `device` go with a converted model, and this is none.")
    if not (is_converted or config.adapters_only) and (swappable or adapter_file is not None):
        raise UsageError(
            "`swappable` and `adapter_file` go with a converted model or `adapters_only`: "
            "training of the weights writes the float model."
        )
    has_draws = config.noise_scale not in {None, FinetuneConfig.noise_scale}
    if is_converted and (has_draws or config.life_s is not None):
        raise UsageError(
            "the arrays of a converted model are as they are: leave `noise_scale` and `life_s` "
            "out. Train the model before conversion with `adapters_only` for devices that are "
            "drawn."
        )
    if config.learn_input_ranges and (is_converted or config.adapters_only):
        raise UsageError(
            "`learn_input_ranges` goes with training of the weights: a converted model has its "
            "ranges already."
        )
    if config.learn_input_ranges and not config.convert.needs_ranges:
        raise UsageError(
            "`learn_input_ranges` needs word lines with a range: give `dac_bits` or an I-V curve."
        )
    if is_converted and config.loss is Loss.FEATURES:
        raise UsageError("the loss features trains weights: calibrate the converted model instead.")


def _recipe(config: FinetuneConfig, is_converted: bool) -> FinetuneConfig:
    """Adapters have no W_max to clip and nothing to penalise, and arrays at hand are not drawn."""
    if not (is_converted or config.adapters_only):
        return config
    plain = replace(config, penalty=0.0, weight_clip_sigma=None)
    if is_converted:
        return replace(plain, noise_scale=None, validation_devices=1)
    return plain


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


class _Job:
    """What is trained, and how it is written."""

    def __init__(
        self,
        *,
        source: Path,
        teacher: Path,
        samples: Samples,
        data: Data | None,
        config: FinetuneConfig,
        device: SessionFactory | None,
    ) -> None:
        self.source, self.teacher, self.samples = source, teacher, samples
        self.data, self.config, self.device = data, config, device
        self.analog: AnalogModel | None = None
        self.branches: dict[str, AdapterBranch] = {}
        self.biases: dict[str, Any] = {}
        """Of the nodes, where the branches' come on top."""

    def trainer(
        self,
        student: ir.Model | None,
        held_out: Samples | None,
        labels: str | None,
        loss: Callable[..., Any] | None,
        augment: Augment | None,
    ) -> Trainer:
        """``student`` is the converted model, where there is one."""
        from rimc_onnx.training.finetune import Trainer
        from rimc_onnx.training.losses import Objective, output_kinds

        config = self.config
        if (loss is not None) != (config.loss is Loss.CUSTOM):
            raise UsageError(f"a `loss` of one's own goes with Loss.CUSTOM, got {config.loss}")
        features: dict[str, str] = {}
        model: AnalogModel | DeviceModel
        if student is None:
            model = analog = self._analog()
            features = analog.module.outputs_of(analog.layers)
        else:
            model = self._on_device(student)
        kinds = output_kinds(load_model(self.teacher))
        objective = Objective(
            config.loss,
            {n: kinds[n] for n in model.module.output_names},
            temperature=config.temperature,
            labels=labels,
            custom=loss,
            features=features,
        )
        train, held = _split(self.samples, held_out, config)
        return Trainer(
            model,
            load(self.teacher),
            objective,
            train,
            held,
            config,
            augment=augment,
            programmer=native_programmer(),
            device=None if student is None else "cpu",  # a session answers arrays of numpy
            calibrated=self._calibrated() if student is None else None,
            is_held_out_new=held_out is not None,
        )

    def _calibrated(self) -> Calibrated | None:
        """Judges weights of a use with calibration; a loss of inner features needs the module."""
        config = self.config
        is_for_it = not (config.adapters_only or config.convert.uncalibrated)
        if not is_for_it or config.loss is Loss.FEATURES:
            return None
        state = CalibratedState(
            self.source, self.samples, self.data, config.convert, seed=config.seed
        )
        return lambda weights, key: state.run(weights, self.metadata(), key)

    def _analog(self) -> AnalogModel:
        from rimc_onnx.training.adapter_branch import AdapterBranch
        from rimc_onnx.training.analog_model import AnalogModel

        config = self.config
        ranges = _ranges(self.source, config.convert, self.data)
        analog = AnalogModel(
            load_model(self.source),
            config.convert,
            ranges,
            times_s=_times(config),
        )
        self.analog = analog
        if not (config.adapters_only or config.convert.uncalibrated):
            analog.correct_gains()
        if config.learn_input_ranges:
            analog.learn_ranges()
        if config.adapters_only:
            for node, layer in analog.layers.items():
                geometry = layer.unit.geometry
                branch = AdapterBranch.fresh(
                    geometry, rank=config.convert.rank, node=node, seed=config.seed
                )
                analog.put_branch(node, branch)
                self.branches[node], self.biases[node] = branch, layer.unit.bias
        return analog

    def _on_device(self, student: ir.Model) -> DeviceModel:
        from rimc_onnx.training.device_model import DeviceModel

        units = passes.find_units(self._prepared_teacher())
        model = DeviceModel(
            student, units, seed=self.config.seed, device=self.device or native_session
        )
        self.branches = model.branches
        return model

    def _prepared_teacher(self) -> ir.Model:
        graph = load_model(self.teacher)
        passes.prepare_pipeline(keep_digital=self.config.convert.keep_digital)(graph)
        return graph

    def metadata(self) -> dict[str, str]:
        """What the file says of the training beside its weights."""
        ranges = {} if self.analog is None else self.analog.input_ranges()
        return {INPUT_RANGES: ranges_text(ranges)} if ranges else {}

    def write(
        self, student: ir.Model | None, target: Path, **options: Any
    ) -> dict[str, QuantizedAdapter]:
        """The converted model with the adapters, which are given back, by node."""
        feeds = few_feeds(self.samples, self.config.seed)
        adapters = coded(self.branches, self._prepared_teacher(), feeds, self.biases or None)
        if student is not None:
            write_with_adapters(student, adapters, target, teacher=self.teacher, **options)
            return adapters
        with tempfile.TemporaryDirectory(prefix="rimc-finetune-") as folder:
            converted = Path(folder) / "model.rimc.onnx"
            convert(self.source, converted, config=self.config.convert, data=self.data)
            graph = load_model(converted)
            write_with_adapters(graph, adapters, target, teacher=self.teacher, **options)
        return adapters


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
    return measure_ranges(
        prepared,
        units,
        feeds_of(samples),
        digital_session,
        config=config,
        input_ranges=recorded_ranges(graph),
    )


def _times(config: FinetuneConfig) -> list[float | None]:
    """Ages that deviations are drawn for; the conversion's is the last one."""
    if config.life_s is None:
        return [config.convert.time_s]
    first, last = config.life_s
    between = np.geomspace(first, last, 8)
    return [*(float(np.clip(t, first, last)) for t in between), config.convert.time_s]


def _identity(
    models: Sequence[Path],
    data: Sequence[Samples],
    config: FinetuneConfig,
    labels: str | None,
    functions: Sequence[Callable[..., Any]],
) -> str:
    """What a state belongs to: another model, data or recipe starts anew."""
    digest = hashlib.sha256()
    for model in models:
        digest.update(sha256_of(model).encode())
    digest.update(repr((config, labels)).encode())
    for function in functions:
        name = getattr(function, "__qualname__", type(function).__name__)
        digest.update(f"{function.__module__}:{name}".encode())
    for samples in data:
        digest.update(str(samples.num_samples).encode())
        for batch in samples.batches(16):
            for name, array in sorted({**batch.feeds, **batch.extras}.items()):
                digest.update(f"{name}{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
