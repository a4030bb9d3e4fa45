# SPDX-License-Identifier: Apache-2.0
"""What every baseline is given and gives: a converted model, and one with its accuracy back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rimc_onnx.errors import UsageError, suggest
from rimc_onnx.io.samples import Data

__all__ = ["Baseline", "BaselineProblem", "BaselineResult", "chosen"]


@dataclass(frozen=True, kw_only=True)
class BaselineProblem:
    """A deployed model and what may be used to give it its accuracy back."""

    teacher: Path
    """The float model that ``converted`` was made from."""
    converted: Path
    """The model on its drifted arrays, without adapters that do anything."""
    data: Data
    """Samples; how many of them are used is the option ``num_samples`` of each baseline."""
    labels: str | None = None
    """Array of class indices in the data, for losses that need one."""
    out: Path
    """Where the result goes; it must not be there."""
    seed: int = 0
    """Key of the draw of samples, and of everything else that is drawn."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the baseline, by name; its defaults where one is not given."""


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """A model that runs where the converted one does, and what it cost."""

    model: Path
    sram_bytes: int
    """Of all adapters, as :attr:`rimc_onnx.ops.adapter.QuantizedAdapter.sram_bytes` counts them:
    digital scales and biases are not in it."""
    rram_writes: int
    """Weights written into arrays, all steps together; over the number of weights it is what a
    cell has gone through. 0: the arrays are as they were, bit for bit."""
    seconds: float


Baseline: TypeAlias = Callable[[BaselineProblem], BaselineResult]


def chosen(problem: BaselineProblem, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The problem's options over ``defaults``.

    Raises:
        UsageError: the baseline has no such option.
    """
    for name in problem.options:
        if name not in defaults:
            raise UsageError(f"option {name!r} of a baseline: {suggest(name, defaults)}")
    return {**defaults, **problem.options}
