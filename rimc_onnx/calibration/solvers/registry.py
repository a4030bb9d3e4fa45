# SPDX-License-Identifier: Apache-2.0
"""The solvers by name, and what each of them is given: one node and its share of the SRAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from rimc_onnx.calibration.allocate import Share
from rimc_onnx.calibration.moments import Features
from rimc_onnx.calibration.solvers.adam import fit_adam
from rimc_onnx.calibration.solvers.closed_form import Adapter, Draft, finish

__all__ = ["NodeSolver", "NodeTask", "Solver", "solver_of"]


class Solver(Enum):
    """Ways to find the adapter of a node. The value is the name in reports and options."""

    CLOSED_FORM = "closed-form"
    ADAM = "adam"
    """The paper's own (Dong 2025)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeTask:
    """One node to be fitted."""

    draft: Draft
    """What the node lacks."""
    features: Features | None
    """What teacher and device gave there; only for solvers that say ``needs_features``."""
    chunk_samples: Sequence[int]
    """Samples in each chunk of the features."""
    magnitude: bool
    """Whether the adapter may have one."""
    seed: int
    """Key of what the solver draws."""


class NodeSolver(Protocol):
    """Finds the adapter of one node."""

    @property
    def needs_features(self) -> bool:
        """True where moments are not enough.

        Such a solver fits one rank for all nodes on the teacher's inputs, as soon as the device has
        answered.
        """

    @property
    def num_workers(self) -> int | None:
        """Nodes that it may fit beside each other; ``None`` is one for each core."""

    def fit(self, task: NodeTask, share: Share) -> Adapter:
        """The adapter in real numbers."""


class _ClosedForm:
    needs_features = False
    num_workers = None

    def fit(self, task: NodeTask, share: Share) -> Adapter:
        return finish(task.draft, rank=share.rank, s=share.kept(task.draft.need))


class _Adam:
    needs_features = True
    num_workers = 1
    """Torch has threads of its own."""

    def fit(self, task: NodeTask, share: Share) -> Adapter:
        problem, features = task.draft.problem, task.features
        assert features is not None, "the configuration asks for samples"
        return fit_adam(
            problem.geometry,
            features.x,
            features.h,
            features.y,
            problem.target,
            rank=share.rank,
            magnitude=task.magnitude,
            node=problem.name,
            seed=task.seed,
            chunk_samples=task.chunk_samples,
        )


_SOLVERS: dict[Solver, NodeSolver] = {Solver.CLOSED_FORM: _ClosedForm(), Solver.ADAM: _Adam()}


def solver_of(solver: Solver) -> NodeSolver:
    """What ``solver`` names."""
    return _SOLVERS[solver]
