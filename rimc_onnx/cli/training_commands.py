# SPDX-License-Identifier: Apache-2.0
"""The command ``finetune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from rimc_onnx.cli import hints
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.data_options import sample_source
from rimc_onnx.cli.field_options import in_options
from rimc_onnx.cli.options import (
    EVERY_NODE,
    IDEAL_PERIPHERY,
    PRESET,
    BatchAxis,
    BatchSize,
    DataOption,
    DeviceOptions,
    Force,
    Json,
    Labels,
    MappingOptions,
    Model,
    Output,
    PeripheryOptions,
    Rank,
    Seed,
    Teacher,
    Uncalibrated,
    convert_config,
    with_options,
)
from rimc_onnx.cli.tables import show_finetuning
from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.crossbar import ConvertConfig
    from rimc_onnx.training.config import FinetuneConfig

__all__ = ["OWN_WEIGHTS", "RECIPE", "AdapterOptions", "RecipeOptions", "finetune"]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What is minimised, how long and how fast; the defaults are those of ``FinetuneConfig``."""

    panel: ClassVar[str] = "Training"

    loss: Annotated[
        str,
        typer.Option(help="distill, features, task, span, or module:callable of one's own."),
    ] = "distill"
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:CALLABLE",
            help="A function that changes the arrays of a batch: flips, shifts, masks.",
            show_default="none",
        ),
    ] = None
    temperature: Annotated[float, typer.Option(help="Of softened classes.")] = 2.0
    noise_scale: Annotated[
        str,
        typer.Option(
            metavar="SCALE|none", help="Draw the device's deviations for every batch, times this."
        ),
    ] = "1.0"
    noise_ramp: Annotated[
        float, typer.Option(help="Share of the steps over which --noise-scale grows from 0.")
    ] = 0.3
    life: Annotated[
        str | None,
        typer.Option(
            metavar="FROM..TO",
            help="Ages that deviations are drawn for, such as 1s..1d.",
            show_default="--time",
        ),
    ] = None
    penalty: Annotated[
        float,
        typer.Option(help="Weight of the expected error of all nodes' outputs at --time."),
    ] = 1.0
    penalty_weight: Annotated[
        str, typer.Option(help="What a squared deviation costs in --penalty: power or fisher.")
    ] = "power"
    learn_ranges: Annotated[
        bool,
        typer.Option("--learn-ranges", help="Train input ranges of DACs and word lines, too."),
    ] = False
    weight_clip: Annotated[
        str,
        typer.Option(
            metavar="SIGMAS|none",
            help="Keep weights within so many standard deviations of their start.",
        ),
    ] = "2.5"
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam"
    learning_rate: Annotated[float, typer.Option(help="Of the first step.")] = 5e-4
    weight_decay: Annotated[float, typer.Option(help="Of the optimizer.")] = 0.0
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = "cosine"
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 3
    steps: Annotated[
        int | None, typer.Option(help="Steps in place of --epochs.", show_default="--epochs")
    ] = None
    batch_size: BatchSize = 32
    validation_samples: Annotated[int, typer.Option(help="Samples held out of --data.")] = 256
    validation_devices: Annotated[
        int, typer.Option(help="Simulated devices that a state is tested on.")
    ] = 2
    validations: Annotated[int, typer.Option(help="Tests of a state over the training.")] = 8
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many tests without a better state.", show_default="never"),
    ] = None

    def config(
        self, convert: ConvertConfig, seed: int, *, adapters_only: bool = False
    ) -> FinetuneConfig:
        """The recipe that these options ask for."""
        from rimc_onnx.calibration.config import one_of
        from rimc_onnx.training.config import (
            FinetuneConfig,
            Loss,
            Optimizer,
            PenaltyWeight,
            Schedule,
        )

        weights = [w.value for w in PenaltyWeight]
        known = [loss.value for loss in Loss if loss is not Loss.CUSTOM]
        loss = Loss.CUSTOM if ":" in self.loss else Loss(one_of("--loss", self.loss, *known))
        optimizer = one_of("--optimizer", self.optimizer, *(o.value for o in Optimizer))
        schedule = one_of("--schedule", self.schedule, *(s.value for s in Schedule))
        return FinetuneConfig(
            convert=convert,
            loss=loss,
            temperature=self.temperature,
            noise_scale=_number("--noise-scale", self.noise_scale),
            noise_ramp_frac=self.noise_ramp,
            life_s=_life(self.life),
            penalty=self.penalty,
            penalty_weight=PenaltyWeight(one_of("--penalty-weight", self.penalty_weight, *weights)),
            learn_input_ranges=self.learn_ranges,
            weight_clip_sigma=_number("--weight-clip", self.weight_clip),
            adapters_only=adapters_only,
            optimizer=Optimizer(optimizer),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=Schedule(schedule),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            validation_samples=self.validation_samples,
            validation_devices=self.validation_devices,
            validations=self.validations,
            patience=self.patience,
            seed=seed,
        )


RECIPE = RecipeOptions()


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Training of adapters in place of weights."""

    panel: ClassVar[str] = "Adapters"

    adapters_only: Annotated[
        bool,
        typer.Option(
            "--adapters-only",
            help="Train adapters beside frozen weights; writes the converted model.",
        ),
    ] = False
    rank: Rank = 4
    swappable: Annotated[
        bool, typer.Option("--swappable", help="Adapters that a live session can change.")
    ] = False
    adapter_file: Annotated[
        Path | None, typer.Option(help="Write the adapters alone (.onnx_adapter).")
    ] = None
    teacher: Teacher = None


OWN_WEIGHTS = AdapterOptions()


def _number(option: str, text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is neither a number nor 'none'.") from None


def _life(text: str | None) -> tuple[float, float] | None:
    from rimc_onnx.device import parse_time

    if text is None:
        return None
    first, dots, last = text.partition("..")
    if not (first and dots and last):
        raise UsageError(f"--life {text!r} is not of the form FROM..TO, such as 1s..1d.")
    return parse_time(first), parse_time(last)


@with_options
def finetune(
    model: Model,
    output: Output = None,
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Samples to test states on.", show_default="a part of --data"),
    ] = None,
    labels: Labels = None,
    device: DeviceOptions = PRESET,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    mapping: MappingOptions = EVERY_NODE,
    recipe: RecipeOptions = RECIPE,
    adapters: AdapterOptions = OWN_WEIGHTS,
    uncalibrated: Uncalibrated = False,
    seed: Seed = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start anew, whatever an earlier call left.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a model for a device; writes MODEL.finetuned.onnx, the same file with other weights.

    A converted model keeps its arrays: its adapters are trained on what these answer.

    Examples:
        rimc-onnx finetune model.onnx --device wan2022-aihwkit --time 1d --data train.npz

        rimc-onnx finetune model.onnx --data train.npz --loss task --noise-scale 2 --epochs 10

        rimc-onnx finetune model.rimc.onnx --data train.npz --adapter-file a.onnx_adapter
    """
    from rimc_onnx import api
    from rimc_onnx.io.samples import import_callable

    console = Console(as_json=as_json)
    converted = convert_config(
        device=device,
        mapping=mapping,
        periphery=periphery,
        rank=adapters.rank,
        uncalibrated=uncalibrated,
    )
    config = recipe.config(converted, seed, adapters_only=adapters.adapters_only)
    with console.progress("finetune") as progress:
        report = api.finetune(
            model,
            output,
            data=sample_source(data, batch_axis),
            validation=sample_source(validation, batch_axis) if validation else None,
            labels=labels,
            loss=import_callable(recipe.loss) if ":" in recipe.loss else None,
            augment=import_callable(recipe.augment) if recipe.augment else None,
            config=config,
            teacher=adapters.teacher,
            swappable=adapters.swappable,
            adapter_file=adapters.adapter_file,
            resume=not restart,
            force=force,
            progress=progress,
        )
    console.result(report, lambda: show_finetuning(console, report))
    if report.warning is not None:
        console.warn(in_options(report.warning))
    if converted.iv_curve is not None and report.sram_bytes is None:
        console.advise(hints.teacher_of_bent(model, report))
    options = [
        *hints.typed_options(device, PRESET),
        *hints.typed_options(periphery, IDEAL_PERIPHERY),
        *hints.typed_options(mapping, EVERY_NODE),
        *hints.typed_option("uncalibrated", uncalibrated),
    ]
    console.suggest(hints.after_finetuning(report, options))
