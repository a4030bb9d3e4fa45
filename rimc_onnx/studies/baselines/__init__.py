# SPDX-License-Identifier: Apache-2.0
"""Ways of others, and our own with fewer means, to give a drifted model its accuracy back.

docs/baselines.md names the source of each, what it claims, and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from rimc_onnx.studies.baselines.base import Baseline, BaselineProblem, BaselineResult
from rimc_onnx.studies.baselines.calibrated import (
    ADAM_DORA,
    BUDGET,
    CLOSED_FORM,
    LORA,
    MAGNITUDE,
    SPARSE,
)
from rimc_onnx.studies.baselines.output_matching import (
    batch_norm,
    bias_correction,
    drift_compensation,
    drift_compensation_column,
)
from rimc_onnx.studies.baselines.trained import back_propagation, vera_plus

__all__ = ["BASELINES", "Baseline", "BaselineProblem", "BaselineResult"]

BASELINES: Final[Mapping[str, Baseline]] = MappingProxyType(
    {
        "back-propagation": back_propagation,
        "batch-norm": batch_norm,
        "bias": bias_correction,
        "drift-compensation": drift_compensation,
        "drift-compensation-column": drift_compensation_column,
        "vera-plus": vera_plus,
        "magnitude": MAGNITUDE,
        "lora": LORA,
        "adam-dora": ADAM_DORA,
        "closed-form": CLOSED_FORM,
        "sparse": SPARSE,
        "budget": BUDGET,
    }
)
"""By name. torch is imported when one that needs it is called."""
