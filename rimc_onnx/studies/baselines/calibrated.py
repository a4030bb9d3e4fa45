# SPDX-License-Identifier: Apache-2.0
"""Baselines that are a calibration with one of its configurations."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig, Solver
from rimc_onnx.studies.baselines.base import BaselineProblem, BaselineResult, chosen

__all__ = ["CalibratedBaseline"]


@dataclass(frozen=True, kw_only=True)
class CalibratedBaseline:
    """``rimc-onnx calibrate`` with ``settings`` of its configuration, which are its options too.

    Where no adapter brings the outputs nearer to the teacher's, the result has adapters that do
    nothing.
    """

    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, problem: BaselineProblem) -> BaselineResult:
        """Calibrate.

        Raises:
            RimcError: see :func:`rimc_onnx.api.calibrate`.
        """
        start = time.perf_counter()
        settings = chosen(problem, {"num_samples": 10, "read_out": False, **self.settings})
        config = CalibrateConfig(
            sample_seed=problem.seed, solver_seed=problem.seed, allow_identity=True, **settings
        )
        report = api.calibrate(
            problem.converted,
            problem.out,
            data=problem.data,
            teacher=problem.teacher,
            config=config,
            report=False,
        )
        return BaselineResult(
            model=problem.out,
            sram_bytes=report.sram_bytes,
            rram_writes=0,
            seconds=time.perf_counter() - start,
        )


LORA = CalibratedBaseline(settings={"adapter": "lora", "rank": 8})
MAGNITUDE = CalibratedBaseline(settings={"adapter": "magnitude", "sram_budget_bytes": None})
ADAM_DORA = CalibratedBaseline(settings={"adapter": "dora", "rank": 2, "solver": Solver.ADAM})
CLOSED_FORM = CalibratedBaseline(settings={"adapter": "dora", "rank": 2})
SPARSE = CalibratedBaseline(settings={"adapter": "sparse", "sram_budget_frac": None})
BUDGET = CalibratedBaseline(settings={"adapter": None, "sram_budget_frac": None})
