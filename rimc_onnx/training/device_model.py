# SPDX-License-Identifier: Apache-2.0
"""A converted model whose arrays answer as they are, and whose adapters, or arrays, are trained.

Forward an array is a black box: the session that executes it. Backward it is the ideal product
with the target weight, which is known: a straight-through gradient (Tang et al., alg. 2). Arrays
that are rewritten are a product with what they hold, both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from rimc_onnx.device import CellProgrammer
from rimc_onnx.errors import ModelError
from rimc_onnx.execution.sessions import SessionFactory, native_session, run_session
from rimc_onnx.execution.taps import nodes_session
from rimc_onnx.passes import RramBranch, RramUnit, rram_branches
from rimc_onnx.training.adapter_branch import AdapterBranch, array_product
from rimc_onnx.training.analog_layer import Cells, Draw
from rimc_onnx.training.graph_module import GraphModule, Layer

__all__ = ["DeviceModel"]


class _DeviceArray(nn.Module):
    """One array, as a session answers."""

    target: Tensor

    def __init__(
        self, student: ir.Model, branch: RramBranch, target: Tensor, device: SessionFactory
    ) -> None:
        super().__init__()
        self._geometry = branch.geometry
        self._x, self._h = str(branch.x.name), str(branch.h.name)
        self._session = nodes_session(student, {self._x: [branch.rram]}, device)
        self._name = branch.node
        self.register_buffer("target", target)

    def forward(self, x: Tensor) -> Tensor:
        """What the array answers; its slope is the target weight's."""
        feed = {self._x: np.ascontiguousarray(x.detach().cpu().numpy())}
        (answer,) = run_session(self._session, [self._h], feed, f"node '{self._name}'")
        h = torch.from_numpy(np.asarray(answer)).to(x.device)
        if not x.requires_grad:
            return h
        y = array_product(self._geometry, x, self.target)
        return y + (h - y).detach()


class _WrittenArray(nn.Module):
    """One array that training writes anew at every step, without an error of its own."""

    def __init__(self, branch: RramBranch) -> None:
        super().__init__()
        self._geometry = branch.geometry
        self.weight = nn.Parameter(torch.from_numpy(np.array(branch.weight())))

    def forward(self, x: Tensor) -> Tensor:
        """The ideal product with what the array holds."""
        return array_product(self._geometry, x, self.weight)


class DeviceModel:
    """What a :class:`~rimc_onnx.training.finetune.Trainer` trains of a converted model.

    Adapters, weights of the arrays as they are; or with ``writes`` the weights of the arrays and
    the biases beside them.
    """

    num_times = 1

    def __init__(
        self,
        student: ir.Model,
        units: Mapping[str, RramUnit],
        *,
        seed: int,
        device: SessionFactory = native_session,
        writes: bool = False,
    ) -> None:
        """``units`` are the teacher's, by node; ``seed`` keys what starts at random.

        Raises:
            ModelError: the teacher is another model's, or the graph can't be imported.
        """
        self.writes = writes
        self.branches: dict[str, AdapterBranch] = {}
        self.arrays: dict[str, _WrittenArray] = {}
        layers: dict[str, Layer] = {}
        for branch in rram_branches(student):
            node, geometry = branch.node, branch.geometry
            unit = units.get(node)
            if unit is None or unit.geometry.weight_shape != geometry.weight_shape:
                raise ModelError(
                    f"node '{node}' is not in the teacher, or with another shape. Give the model "
                    "that this one was converted from with `teacher`."
                )
            x, h = str(branch.x.name), str(branch.h.name)
            array: nn.Module
            if writes:
                array = self.arrays[node] = _WrittenArray(branch)
            else:
                target = torch.from_numpy(np.array(unit.weight.float32()))
                array = _DeviceArray(student, branch, target, device)
            adapter = AdapterBranch.of(branch.adapter(), geometry, node=node, seed=seed)
            self.branches[node] = adapter
            layers[str(branch.rram.name)] = (array, [x])
            layers[str(branch.dora.name)] = (adapter, [x, h])
        self.module = GraphModule(student, layers=layers)

    def trained(self) -> dict[str, nn.Parameter]:
        """By ``<node>/<part>``."""
        self.module.requires_grad_(False)
        found: dict[str, nn.Parameter] = {}
        for node, branch in self.branches.items():
            parts = {n: p for n, p in branch.named_parameters() if n in branch.trained}
            if self.writes:
                parts = {"bias": branch.bias, "weight": self.arrays[node].weight}
            found.update({f"{node}/{part}": p for part, p in parts.items()})
        for parameter in found.values():
            parameter.requires_grad_(True)
        return found

    # --- there is one device, and it is as it is ----------------------------------------------

    def set_cells(self, _cells: Cells) -> None:
        """Nothing to choose."""

    def set_draw(self, _draw: Draw) -> None:
        """Nothing to draw."""

    @contextmanager
    def on_device(
        self,
        _seed: int,
        _time_s: float | None,
        _programmer: CellProgrammer | None,
        run: int | None = None,  # noqa: ARG002 - the session counts its runs
    ) -> Iterator[None]:
        """The device itself."""
        yield

    def start_measuring(self) -> None:
        """No penalty, nothing to measure."""

    def end_measuring(self) -> None:
        """No penalty, nothing to measure."""

    def start_slopes(self) -> None:
        """No penalty, nothing to weight."""

    def take_slopes(self, _rows: int) -> None:
        """No penalty, nothing to weight."""

    def end_slopes(self, _num_batches: int) -> None:
        """No penalty, nothing to weight."""

    def penalty(self, _index: int = 0) -> Tensor:
        """Adapters are digital."""
        return torch.zeros(())

    def clip_limits(self, _clip_sigma: float | None) -> dict[str, Tensor]:
        """Adapters have no W_max."""
        return {}

    def clip(self, limits: Mapping[str, Tensor]) -> None:
        """Nothing is clipped."""
