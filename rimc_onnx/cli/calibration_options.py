# SPDX-License-Identifier: Apache-2.0
"""Options of a calibration, and of the calibrations of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from rimc_onnx.cli.options import ReadOutNoise
from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.calibration.config import CalibrateConfig

__all__ = [
    "TEN_SAMPLES",
    "AdapterParts",
    "FitOptions",
    "SamplesOfOne",
    "SramBudget",
    "study_calibration",
]

SramBudget = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES|SHARE%",
        help="SRAM for all adapters.",
        show_default="5% of the weights",
    ),
]
AdapterParts = Annotated[str, typer.Option(help="Parts of the adapters.")]
SamplesOfOne = Annotated[int, typer.Option(help="Samples of one calibration.")]


def study_calibration(*, samples: int, adapter: str, sram_budget: str | None) -> CalibrateConfig:
    """The calibration that a study repeats."""
    from rimc_onnx.calibration.config import CalibrateConfig, parse_budget

    budget_bytes, budget_frac = parse_budget(sram_budget)
    return CalibrateConfig(
        num_samples=samples,
        adapter=adapter,
        sram_budget_bytes=budget_bytes,
        sram_budget_frac=budget_frac,
    )


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How many samples a calibration takes, what it fits and what it may know."""

    panel: ClassVar[str] = "Calibration"

    samples: Annotated[int, typer.Option(help="Number of samples.")] = 10
    adapter: Annotated[
        str | None,
        typer.Option(
            help="dora, lora, magnitude, bias, sparse, dense, or several joined by +.",
            show_default="dora+sparse, dora with --rank",
        ),
    ] = None
    rank: Annotated[
        int | None, typer.Option(help="One rank for all nodes.", show_default="an SRAM budget")
    ] = None
    sram_budget: SramBudget = None
    solver: Annotated[str, typer.Option(help="closed-form or adam.")] = "closed-form"
    propagate: Annotated[
        str, typer.Option(help="Whose inputs the nodes are fitted on: teacher or student.")
    ] = "teacher"
    read_out: Annotated[
        bool, typer.Option("--read-out", help="Measure the arrays instead of asking them.")
    ] = False
    read_out_noise: ReadOutNoise = None
    allow_identity: Annotated[
        bool,
        typer.Option(
            "--allow-identity",
            help="Write adapters that do nothing where none helps; exit code 3.",
        ),
    ] = False
    seed: Annotated[int, typer.Option(help="Key of the draw of samples.")] = 0

    def config(self) -> CalibrateConfig:
        """The calibration that these options ask for."""
        from rimc_onnx.calibration.config import (
            READ_OUT_NOISE_FRAC,
            CalibrateConfig,
            Propagate,
            Solver,
            one_of,
            parse_budget,
        )

        noise = self.read_out_noise
        if noise is not None and not self.read_out:
            raise UsageError(
                "--read-out-noise says how well arrays are measured, and none is. "
                "Give --read-out too."
            )
        budget_bytes, budget_frac = parse_budget(self.sram_budget)
        return CalibrateConfig(
            num_samples=self.samples,
            sample_seed=self.seed,
            adapter=self.adapter,
            rank=self.rank,
            sram_budget_bytes=budget_bytes,
            sram_budget_frac=budget_frac,
            solver=Solver(one_of("--solver", self.solver, *(s.value for s in Solver))),
            propagate=Propagate(
                one_of("--propagate", self.propagate, *(p.value for p in Propagate))
            ),
            read_out=self.read_out,
            allow_identity=self.allow_identity,
            read_out_noise_frac=READ_OUT_NOISE_FRAC if noise is None else noise,
        )


TEN_SAMPLES = FitOptions()
