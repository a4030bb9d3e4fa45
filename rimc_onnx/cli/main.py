# SPDX-License-Identifier: Apache-2.0
"""The command line: parses, calls :mod:`rimc_onnx.api`, renders. Nothing is decided here."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rimc_onnx.cli import (
    advise_command,
    calibration_commands,
    device_commands,
    equalize_command,
    hints,
    lifetime_command,
    study_commands,
    training_commands,
)
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.cost_options import NO_COST, CostOptions
from rimc_onnx.cli.data_options import sample_source
from rimc_onnx.cli.entry import INTERRUPTED, INTERRUPTED_CODE
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
    Report,
    Seed,
    TileRows,
    Uncalibrated,
    convert_config,
    with_options,
)
from rimc_onnx.cli.provider_options import NATIVE_PROVIDER, ProviderOptions
from rimc_onnx.cli.tables import (
    show_conversion,
    show_evaluation,
    show_inspection,
)
from rimc_onnx.errors import RimcError, UsageError, is_of_memory, one_line

__all__ = ["app", "main"]

app = typer.Typer(
    name="rimc-onnx",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Put ONNX networks on RRAM crossbars: convert, calibrate from a few samples, evaluate.",
)

_SILENT = logging.NullHandler()


def _handled(command: Callable[..., None]) -> Callable[..., None]:
    """One line and an exit code for everything that goes wrong; a traceback only with --debug."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            with _interruptible(), warnings.catch_warnings():
                if not _Settings.debug:
                    warnings.simplefilter("ignore")
                command(*args, **kwargs)
                sys.stdout.flush()
        except (typer.Exit, BrokenPipeError, SystemExit):
            raise
        except BaseException as error:
            # What an interrupt ran into may have made an error of its own of it.
            if _Settings.interrupted or isinstance(error, KeyboardInterrupt):
                _tell(INTERRUPTED)
                raise typer.Exit(INTERRUPTED_CODE) from None
            _debug()
            _tell(f"error: {_line_of(error)}")
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    return wrapper


def _line_of(error: BaseException) -> str:
    if is_of_memory(error):
        return (
            f"not enough memory ({one_line(error) or 'for an array'}). Free some, or use less data."
        )
    if isinstance(error, RimcError):
        return in_options(str(error))
    return (
        f"{type(error).__name__}: {one_line(error)}. This should not happen; run again with "
        "rimc-onnx --debug and report what it prints."
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Signals raise KeyboardInterrupt here, so that what was begun is cleaned up."""
    _Settings.interrupted = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Settings:
    debug = False
    interrupted = False
    told = False
    """A command's line is printed: where memory is short, leaving can fail once more."""


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
    _Settings.told = True


def _debug() -> None:
    if _Settings.debug:
        traceback.print_exc()


def _interrupt(_signal: int, _frame: object) -> None:
    _Settings.interrupted = True
    raise KeyboardInterrupt


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(importlib.metadata.version("rimc-onnx"))
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _Settings.debug = debug
    if not debug:
        # Warnings of libraries would stand beside our one line; --debug shows them.
        logging.getLogger().addHandler(_SILENT)


@app.command()
@_handled
@with_options
def convert(
    model: Model,
    output: Output = None,
    device: DeviceOptions = PRESET,
    seed: Seed = 0,
    rank: Rank = 4,
    periphery: PeripheryOptions = IDEAL_PERIPHERY,
    data: DataOption = None,
    batch_axis: BatchAxis = None,
    mapping: MappingOptions = EVERY_NODE,
    uncalibrated: Uncalibrated = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, write nothing.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Rewrite a model into RRAM nodes with SRAM branches; writes MODEL.rimc.onnx.

    Examples:
        rimc-onnx convert model.onnx --drift 0.2 --seed 0

        rimc-onnx convert model.onnx --tile-rows 128 --dac-bits 8 --adc-bits 8 --dry-run
    """
    from rimc_onnx import api

    console = Console(as_json=as_json)
    config = convert_config(
        device=device,
        mapping=mapping,
        periphery=periphery,
        seed=seed,
        rank=rank,
        uncalibrated=uncalibrated,
    )
    with console.progress("convert") as progress:
        report = api.convert(
            model,
            output,
            config=config,
            data=sample_source(data, batch_axis),
            reads=device.files,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    console.result(report, lambda: show_conversion(console, report))
    console.advise(hints.better_mapping(model, device, PRESET))
    console.advise(hints.equal_word_lines(model, report))
    console.suggest(hints.after_conversion(model, report))


app.command("age")(_handled(device_commands.age))
app.command("advise")(_handled(with_options(advise_command.advise)))
app.command("devices")(_handled(device_commands.devices))
app.command("equalize")(_handled(equalize_command.equalize))


app.command("calibrate")(_handled(with_options(calibration_commands.calibrate)))
app.command("statistics")(_handled(calibration_commands.statistics))


@app.command()
@_handled
@with_options
def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="An .npz with arrays named after the inputs, a folder of .npy, or "
            "module:callable.",
        ),
    ],
    labels: Labels = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Model to agree with.", show_default="as recorded, where there are no labels"
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="module:callable of (outputs, other arrays).")
    ] = None,
    batch_axis: BatchAxis = None,
    batch_size: BatchSize = 64,
    stock: Annotated[
        bool, typer.Option("--stock", help="Run the function bodies, not the native library.")
    ] = False,
    runs_on: ProviderOptions = NATIVE_PROVIDER,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Accuracy by labels or a metric, or agreement with the teacher.

    Examples:
        rimc-onnx evaluate model.rimc.onnx --data test.npz

        rimc-onnx evaluate model.rimc.onnx --data test.npz --teacher model.onnx --json
    """
    from rimc_onnx import api

    console = Console(as_json=as_json, report=report, force=force)
    if stock and runs_on.provider:
        raise UsageError(
            "--stock and --provider exclude each other: both say what runs the arrays."
        )
    device = runs_on.device()
    with console.progress("evaluate") as progress:
        found = api.evaluate(
            model,
            data=sample_source(data, batch_axis) or data,
            labels=labels,
            teacher=teacher,
            metric=metric,
            native=not stock,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    figures = asdict(found)
    metrics = figures.pop("metrics")
    console.result(figures | metrics, lambda: show_evaluation(console, found))
    console.suggest(hints.after_evaluation(model))


@app.command()
@_handled
@with_options
def inspect(
    model: Model,
    tile_rows: TileRows = "none",
    mapping: MappingOptions = EVERY_NODE,
    cost: CostOptions = NO_COST,
    batch_axis: BatchAxis = None,
    as_json: Json = False,
) -> None:
    """Show which nodes are, or would be, in RRAM, why the others are not, and what it costs.

    Examples:
        rimc-onnx inspect model.onnx

        rimc-onnx inspect model.rimc.onnx --cost --json
    """
    from rimc_onnx import api

    console = Console(as_json=as_json)
    periphery = PeripheryOptions(tile_rows=tile_rows)
    config = convert_config(mapping=mapping, periphery=periphery)
    cost.check()
    with console.progress("inspect"):
        report = api.inspect(model, config=config)
        if cost.cost:
            found = api.inference_cost(
                model,
                data=sample_source(cost.data, batch_axis),
                constants=cost.constants,
                explain=cost.explain,
            )
            report = replace(report, cost=found)
    console.result(report, lambda: show_inspection(console, report))
    console.suggest(hints.after_inspection(report))


app.command("finetune")(_handled(training_commands.finetune))
app.command("lifetime")(_handled(lifetime_command.lifetime))
app.command("quickstart")(_handled(study_commands.quickstart))
study = typer.Typer(
    cls=study_commands.StudyGroup,
    no_args_is_help=True,
    help="Studies: the main job many times over, with its spread.",
)
study.command("run")(_handled(study_commands.study_run))
study.command("recovery")(_handled(study_commands.study_recovery))
app.add_typer(study, name="study")


def main() -> None:
    """Entry point of ``rimc-onnx``."""
    _Settings.told = False
    try:
        code = app(standalone_mode=False, prog_name=str(app.info.name))
    except Exception as error:
        # A wrong call. typer brings a click of its own, so its errors have no class to import.
        if is_of_memory(error):  # before any command runs
            if not _Settings.told:
                _tell(f"error: {_line_of(error)}")
            sys.exit(1)
        if not hasattr(error, "format_message"):
            raise
        text = " ".join(error.format_message().split())
        if text:  # empty where the help has been shown instead
            context = getattr(error, "ctx", None)
            command = context.command_path if context else app.info.name
            stop = "" if text.endswith((".", "?")) else "."
            print(f"error: {text}{stop} See {command} --help.", file=sys.stderr)
        code = UsageError.exit_code
    sys.exit(code)
