# SPDX-License-Identifier: Apache-2.0
"""The command ``equalize``."""

from __future__ import annotations

from rimc_onnx.cli import hints
from rimc_onnx.cli.console import Console
from rimc_onnx.cli.options import Force, Json, KeepDigital, Model, Output
from rimc_onnx.cli.tables import show_equalizing

__all__ = ["equalize"]


def equalize(
    model: Model,
    output: Output = None,
    keep_digital: KeepDigital = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Scale inputs of unequal strength by powers of two; writes MODEL.equalized.onnx.

    Weights are scaled by the inverse, so the output gives the same results. Convert it in place of
    the model: its arrays err less on devices whose errors are a share of the largest weight.

    Examples:
        rimc-onnx equalize model.onnx

        rimc-onnx equalize model.onnx -o equal.onnx --keep-digital head
    """
    from rimc_onnx import api

    console = Console(as_json=as_json)
    with console.progress("equalize"):
        report = api.equalize(model, output, keep_digital=tuple(keep_digital or ()), force=force)
    console.result(report, lambda: show_equalizing(console, report))
    console.suggest(hints.command("convert", report.output))
