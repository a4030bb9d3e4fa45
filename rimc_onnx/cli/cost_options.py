# SPDX-License-Identifier: Apache-2.0
"""Options of the cost of an inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from rimc_onnx.errors import UsageError

__all__ = ["NO_COST", "Constants", "CostOptions"]

Constants = Annotated[
    Path | None,
    typer.Option(help="A TOML file of constants of the cost.", show_default="the package's"),
]


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What an inference takes, and by which constants."""

    panel: ClassVar[str] = "Cost"

    cost: Annotated[
        bool, typer.Option("--cost", help="Energy, latency and area of one inference.")
    ] = False
    constants: Constants = None
    explain: Annotated[
        bool, typer.Option("--explain", help="Every constant of the cost, and its source.")
    ] = False
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A sample, for shapes that can't be inferred: as of calibrate.",
            show_default="inferred",
        ),
    ] = None

    def check(self) -> None:
        """Refuse what says something about a cost that nobody asked for."""
        for option, value in (
            ("--constants", self.constants),
            ("--explain", self.explain),
            ("--data", self.data),
        ):
            if value and not self.cost:
                raise UsageError(f"{option} is about the cost. Give --cost too.")


NO_COST = CostOptions()
