# SPDX-License-Identifier: Apache-2.0
"""Baselines that train: all weights by back-propagation, or two vectors a node for an age."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from rimc_onnx.crossbar import ConvertConfig
from rimc_onnx.device import DeviceConfig
from rimc_onnx.errors import UsageError
from rimc_onnx.io.feeds import graph_inputs
from rimc_onnx.io.model_files import blame_model, files_of, load_model, save_model
from rimc_onnx.io.outputs import check_output
from rimc_onnx.io.samples import Samples, files_of_data, load_samples
from rimc_onnx.jobs.trained_adapters import coded, few_feeds, write_with_adapters
from rimc_onnx.passes import AttachAdaptersPass, find_units, prepare_pipeline, rram_branches
from rimc_onnx.runtime.programming import native_programmer
from rimc_onnx.studies.baselines.base import BaselineProblem, BaselineResult, chosen
from rimc_onnx.training import load, need_torch
from rimc_onnx.training.config import FinetuneConfig, Loss, Schedule

if TYPE_CHECKING:
    from rimc_onnx.training.finetune import Trainable, Trainer

__all__ = ["back_propagation", "vera_plus"]


def back_propagation(problem: BaselineProblem) -> BaselineResult:
    """All weights trained on the device, which is written anew at every step.

    The comparison of Dong et al., fig. 4 (20 epochs over the samples). In its favour, writing puts
    exactly what is asked for into the cells, word lines and converters are ideal while it trains,
    and the model at the end is the better one, on the samples, of this and the first.

    Options: ``num_samples`` (10), ``epochs`` (20), ``batch_size`` (1), ``learning_rate`` (3e-5),
    ``loss`` (``task``, cross-entropy with the labels; ``distill`` needs none).
    """
    start = time.perf_counter()
    need_torch("the baseline back-propagation")
    defaults = {
        "num_samples": 10,
        "epochs": 20,
        "batch_size": 1,
        "learning_rate": 3e-5,
        "loss": "task",
    }
    options = chosen(problem, defaults)
    student, teacher, samples = _opened(problem)
    samples = samples.draw(options.pop("num_samples"), seed=problem.seed)
    from rimc_onnx.training.device_model import DeviceModel

    with blame_model(problem.converted):
        model = DeviceModel(student, find_units(teacher), seed=problem.seed, writes=True)
    config = FinetuneConfig(
        loss=Loss(options.pop("loss")),
        temperature=1.0,
        noise_scale=None,
        penalty=0.0,
        weight_clip_sigma=None,
        schedule=Schedule.CONSTANT,
        validation_devices=1,
        validations=1,
        seed=problem.seed,
        **options,
    )
    trainer = _trainer(problem, model, samples, samples, config)
    trainer.run(None)
    changed, written = {}, 0
    for branch in rram_branches(student):
        value, adapter = branch.rram.inputs[1], branch.adapter()
        if value is None:
            raise ValueError(f"node '{branch.rram.name}' has no weight")
        weight = model.arrays[branch.node].weight.detach().cpu().numpy()
        written += weight.size * trainer.num_steps
        value.const_value = ir.tensor(np.array(weight), name=value.name)
        bias = model.branches[branch.node].bias.detach().cpu().numpy()
        changed[branch.node] = replace(adapter, bias=np.array(bias))
    AttachAdaptersPass(changed)(student)
    save_model(student, problem.out, force=False)
    return BaselineResult(
        model=problem.out,
        sram_bytes=0,
        rram_writes=written,
        seconds=time.perf_counter() - start,
    )


def vera_plus(problem: BaselineProblem) -> BaselineResult:
    """Projections that all nodes share, and two trained vectors a node for an age of the device.

    VeRA+ (arXiv 2603.26016): the vectors of every age are trained off line, on deviations drawn by
    the device's law, and chosen by the clock. No sample of the field, and no answer of the device
    is used. The age here is the nearest of ``ages_s`` to the model's, on a logarithmic scale; only
    its vectors are trained, since a run asks for one age. ``sram_bytes`` counts these vectors and
    the projections, once.

    Options: ``num_samples`` (all of the data, which is the training set), ``ages_s`` (the model's
    own), ``rank`` (16), ``steps`` (300), ``batch_size`` (32), ``learning_rate`` (3e-2), ``loss``
    (``distill``).
    """
    start = time.perf_counter()
    need_torch("the baseline vera-plus")
    defaults = {
        "num_samples": None,
        "ages_s": None,
        "rank": 16,
        "steps": 300,
        "batch_size": 32,
        "learning_rate": 3e-2,
        "loss": "distill",
    }
    options = chosen(problem, defaults)
    student, teacher, samples = _opened(problem)
    if options["num_samples"] is not None:
        samples = samples.draw(options["num_samples"], seed=problem.seed)
    from rimc_onnx.training.adapter_branch import VeraBranch, vera_projections
    from rimc_onnx.training.analog_model import AnalogModel
    from rimc_onnx.training.batches import Batches

    convert = _convert_config(student, options["ages_s"])
    with blame_model(problem.teacher):
        model = AnalogModel(load_model(problem.teacher), convert, {})
    geometries = {node: layer.unit.geometry for node, layer in model.layers.items()}
    depth, columns = (
        max(getattr(g, name) for g in geometries.values()) for name in ("depth", "columns")
    )
    projections = vera_projections(depth, columns, options["rank"], problem.seed)
    for node, geometry in geometries.items():
        model.put_branch(node, VeraBranch(geometry, projections))
    config = FinetuneConfig(
        convert=convert,
        loss=Loss(options["loss"]),
        adapters_only=True,
        noise_scale=1.0,
        penalty=0.0,
        weight_clip_sigma=None,
        steps=options["steps"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        validations=4,
        seed=problem.seed,
    )
    whole = Batches(samples)
    held_out = min(config.validation_samples, max(whole.num_samples // 8, 1))
    train, held = whole.split(held_out, problem.seed)
    trainer = _trainer(problem, model, train, held, config)
    trainer.run(None)
    biases = {node: layer.unit.bias for node, layer in model.layers.items()}
    adapters = coded(model.branches, teacher, few_feeds(samples, problem.seed), biases)
    write_with_adapters(
        student,
        adapters,
        problem.out,
        teacher=problem.teacher,
        swappable=False,
        adapter_file=None,
        force=False,
    )
    vectors = sum(p.numel() for p in trainer.trained.values())
    return BaselineResult(
        model=problem.out,
        sram_bytes=vectors + sum(p.size for p in projections),
        rram_writes=0,
        seconds=time.perf_counter() - start,
    )


def _opened(problem: BaselineProblem) -> tuple[ir.Model, ir.Model, Samples]:
    """Converted model, prepared teacher and samples, the output checked."""
    paths: list[Path] = [*files_of(problem.teacher), *files_of(problem.converted)]
    check_output(problem.out, force=False, reads=[*paths, *files_of_data(problem.data)])
    student, teacher = load_model(problem.converted), load_model(problem.teacher)
    with blame_model(problem.teacher):
        prepare_pipeline()(teacher)
    return student, teacher, load_samples(problem.data, graph_inputs(student))


def _trainer(
    problem: BaselineProblem, model: Trainable, train: Any, held: Any, config: FinetuneConfig
) -> Trainer:
    from rimc_onnx.training.batches import Batches
    from rimc_onnx.training.finetune import Trainer
    from rimc_onnx.training.losses import Objective, output_kinds

    train, held = (Batches(s) if isinstance(s, Samples) else s for s in (train, held))
    kinds = output_kinds(load_model(problem.teacher))
    objective = Objective(
        config.loss,
        {n: kinds[n] for n in model.module.output_names},
        temperature=config.temperature,
        labels=problem.labels,
    )
    teacher = load(problem.teacher)
    return Trainer(model, teacher, objective, train, held, config, programmer=native_programmer())


def _convert_config(student: ir.Model, ages_s: Any) -> ConvertConfig:
    """Devices of the nodes as the file has them, at the age that is nearest to the file's."""
    attributes = {b.node: b.rram.attributes for b in rram_branches(student)}
    devices = {
        node: DeviceConfig.from_json(a["device_config"].as_string())
        for node, a in attributes.items()
    }
    first = next(iter(attributes.values()))
    device = next(iter(devices.values()))
    time_s = first["time_s"].as_float() if device.time_law else None
    if ages_s is not None:
        if time_s is None:
            raise UsageError("option 'ages_s': the device model has no time axis.")
        ages = np.asarray(list(ages_s), np.float64)
        time_s = float(ages[np.abs(np.log(ages / max(time_s, 1e-9))).argmin()])
    return ConvertConfig(device=device, node_devices=devices, time_s=time_s)
