# SPDX-License-Identifier: Apache-2.0
"""Adapters that were trained, in a converted model: what a training of adapters alone writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.calibration.problem import NodeProblem, Statistics
from rimc_onnx.calibration.quantize import quantize
from rimc_onnx.calibration.solvers.closed_form import Adapter
from rimc_onnx.calibration.walk import teacher_moments
from rimc_onnx.execution.feed import Feed
from rimc_onnx.execution.sessions import digital_session
from rimc_onnx.io.adapter_file import put_adapters
from rimc_onnx.io.feeds import feeds_of
from rimc_onnx.io.model_files import put_model
from rimc_onnx.io.outputs import Outputs
from rimc_onnx.io.samples import Samples
from rimc_onnx.jobs.teacher import TEACHER_PATH, recorded_path
from rimc_onnx.ops.adapter import QuantizedAdapter

if TYPE_CHECKING:
    from rimc_onnx.training.adapter_branch import AdapterBranch

__all__ = ["coded", "few_feeds", "write_with_adapters"]

_CODE_SAMPLES = 32
"""Samples that say how large the inputs of the adapters are."""


def few_feeds(samples: Samples, seed: int) -> list[Feed]:
    """Samples for :func:`coded`."""
    return feeds_of(samples.draw_at_most(_CODE_SAMPLES, seed=seed))


def coded(
    branches: Mapping[str, AdapterBranch],
    teacher: ir.Model,
    feeds: Sequence[Feed],
    biases: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> dict[str, QuantizedAdapter]:
    """Int8 codes of trained adapters, by node.

    Args:
        branches: by node.
        teacher: in the form that is converted; its inputs give the scale of the codes.
        feeds: what it is run on.
        biases: of the nodes, where the branches' come on top of them.
    """
    units = passes.find_units(teacher)
    found = {}
    wanted = [unit for name, unit in units.items() if name in branches]
    for unit, moments in teacher_moments(teacher, wanted, feeds, digital_session):
        a, b, m, s, bias = branches[unit.name].matrices()
        target = np.ascontiguousarray(unit.geometry.matrices(unit.weight.float32()))
        problem = NodeProblem(
            name=unit.name,
            geometry=unit.geometry,
            statistics=Statistics.of(moments),
            target=target,
            error=np.zeros_like(target),
            bias_frac=0.0,
        )
        whole = bias if biases is None else bias + biases[unit.name]
        adapter = Adapter(a=a, b=b, m=m, s=s)
        found[unit.name], _ = quantize(adapter, problem, whole.astype(np.float32), dense=False)
    return found


def write_with_adapters(
    student: ir.Model,
    adapters: Mapping[str, QuantizedAdapter],
    target: Path,
    *,
    teacher: Path,
    swappable: bool,
    adapter_file: Path | None,
    force: bool,
) -> None:
    """Write ``student`` with ``adapters``, and these alone where a file is named, both or none."""
    passes.AttachAdaptersPass(adapters)(student)
    student.metadata_props[TEACHER_PATH] = recorded_path(teacher, target)
    if swappable or passes.is_swappable(student):
        passes.MakeAdaptersSwappablePass()(student)
    with Outputs(force=force) as out:
        put_model(student, target, out)
        if adapter_file is not None:
            put_adapters(adapter_file, adapters, student, out)
