# SPDX-License-Identifier: Apache-2.0
"""What training minimises, and the figures that a validation shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.errors import DataError
from rimc_onnx.execution.outputs import classes_axis
from rimc_onnx.training.config import Loss

__all__ = ["CustomLoss", "Objective", "OutputKind", "output_kinds"]

CustomLoss = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]
"""(outputs by name, the data's other arrays) -> the mean loss of a batch."""

_IGNORED = -100
"""Label of a position that does not count."""


class OutputKind(Enum):
    """What an output holds."""

    LOGITS = auto()
    PROBABILITIES = auto()
    VALUES = auto()


_MOVES = {"Cast", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
_PRODUCTS = {"Add", "Conv", "Gemm", "MatMul", "GlobalAveragePool", "ReduceMean"}


def output_kinds(model: ir.Model) -> dict[str, OutputKind]:
    """Of every output, by the operator that makes it.

    Softmax gives probabilities, a product logits. What another operator makes (a normalisation, an
    activation) are values.
    """
    found = {}
    for value in model.graph.outputs:
        node = value.producer()
        while node is not None and node.op_type in _MOVES:
            first = node.inputs[0]
            node = None if first is None else first.producer()
        op_type = "" if node is None else node.op_type
        kind = OutputKind.LOGITS if op_type in _PRODUCTS else OutputKind.VALUES
        if op_type in ("Softmax", "Sigmoid"):
            kind = OutputKind.PROBABILITIES if op_type == "Softmax" else OutputKind.VALUES
        found[str(value.name)] = kind
    return found


def _log_classes(values: Tensor, kind: OutputKind, temperature: float) -> Tensor:
    """Logarithms of softened classes, which come last; axes of one value behind them go."""
    axis = classes_axis(values.shape)
    assert axis is not None
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values.squeeze(-1)
    values = values.movedim(axis, -1)
    if kind is OutputKind.PROBABILITIES:
        values = values.clamp_min(1e-12).log()
    return functional.log_softmax(values / temperature, -1)


def _relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Squared error over the target's power."""
    power = target.square().mean().clamp_min(1e-12)
    return functional.mse_loss(values, target) / power


class Objective:
    """A loss of a batch. ``kinds`` are those of the outputs."""

    def __init__(
        self,
        loss: Loss,
        kinds: Mapping[str, OutputKind],
        *,
        temperature: float = 1.0,
        labels: str | None = None,
        custom: CustomLoss | None = None,
        features: Mapping[str, str] | None = None,
    ) -> None:
        """``labels`` names an array of the data; ``features`` are the values compared, by node."""
        self.loss, self.kinds, self.temperature = loss, dict(kinds), temperature
        self.labels, self.custom = labels, custom
        self.taps = tuple((features or {}).values()) if loss is Loss.FEATURES else ()
        self.needs_teacher = loss in (Loss.DISTILL, Loss.FEATURES)

    def __call__(
        self,
        outputs: dict[str, Tensor],
        extras: dict[str, Tensor],
        teacher: Mapping[str, Tensor],
    ) -> Tensor:
        """The mean loss of the batch."""
        if self.loss is Loss.CUSTOM and self.custom is not None:
            return self.custom(outputs, extras)
        if self.loss is Loss.FEATURES:
            errors = [_relative_error(outputs[t], teacher[t]) for t in self.taps]
            return torch.stack(errors).mean()
        if self.loss is Loss.DISTILL:
            return self._distilled(outputs, teacher)
        names = list(self.kinds)
        if self.loss is Loss.TASK:
            return self._cross_entropy(outputs[names[0]], names[0], _array(extras, self.labels))
        found = [
            self._cross_entropy(outputs[name], name, _array(extras, key))
            for name, key in zip(names[:2], ("start_positions", "end_positions"), strict=True)
        ]
        return torch.stack(found).mean()

    def _distilled(self, outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        found = []
        for name, kind in self.kinds.items():
            target = teacher[name]
            if not target.is_floating_point():
                continue
            if not self._has_classes(name, target):
                found.append(_relative_error(outputs[name], target))
                continue
            student = _log_classes(outputs[name], kind, self.temperature)
            wanted = _log_classes(target, kind, self.temperature)
            apart = (wanted.exp() * (wanted - student)).sum(-1).mean()
            found.append(apart * self.temperature**2)
        if not found:
            raise DataError("the model has no output of floats that a teacher could be met in.")
        return torch.stack(found).mean()

    def drawn_likelihood(
        self, outputs: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Mean of minus the logarithm of the likelihood of outputs that the model itself draws.

        Classes by their probabilities, other values with their own standard deviation. Slopes of it
        have no mean, and their squares are the Fisher information. Also the number of rows.
        """
        losses, rows = [], 1
        for name, kind in self.kinds.items():
            y = outputs[name]
            if not y.is_floating_point():
                continue
            if not self._has_classes(name, y):
                rows = len(y) if y.ndim else 1
                z = torch.randn(y.shape, generator=generator, device=y.device)
                unit = (y - y.detach()) / y.detach().std(correction=0).clamp_min(1e-12)
                losses.append(0.5 * (unit - z).square().sum() / rows)
                continue
            log_classes = _log_classes(y, kind, 1.0).flatten(0, -2)
            rows = len(log_classes)
            wanted = torch.multinomial(log_classes.detach().exp(), 1, generator=generator)
            losses.append(functional.nll_loss(log_classes, wanted[:, 0]))
        if not losses:
            raise DataError("the model has no output of floats whose likelihood could be told.")
        return torch.stack(losses).sum(), rows

    def _has_classes(self, name: str, values: Tensor) -> bool:
        return self.kinds[name] is not OutputKind.VALUES and classes_axis(values.shape) is not None

    def _cross_entropy(self, logits: Tensor, name: str, labels: Tensor) -> Tensor:
        if classes_axis(logits.shape) is None:
            raise DataError(
                f"output {name!r} of {list(logits.shape)} has no axis of classes for labels. Give "
                "a loss of your own (module:callable), or distill."
            )
        log_classes = _log_classes(logits, self.kinds[name], 1.0)
        if log_classes.shape[:-1] != labels.shape:
            raise DataError(
                f"labels have shape {list(labels.shape)}, output {name!r} of "
                f"{list(logits.shape)} needs {list(log_classes.shape[:-1])}."
            )
        flat, wanted = log_classes.flatten(0, -2), labels.flatten().long()
        counted, classes = wanted[wanted != _IGNORED], flat.shape[-1]
        if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
            raise DataError(
                f"labels lie in {int(counted.min())}..{int(counted.max())}, output {name!r} has "
                f"{classes} classes. Count classes from 0; {_IGNORED} leaves a position out."
            )
        return functional.nll_loss(flat, wanted, ignore_index=_IGNORED)

    def hits(
        self,
        outputs: Mapping[str, Tensor],
        extras: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
    ) -> float | None:
        """Share of samples whose largest class is the label's, or the teacher's without labels.

        None where the loss asks for something else than either: places of spans, a user's own.
        """
        name, kind = next(iter(self.kinds.items()))
        if self.loss in (Loss.SPAN, Loss.CUSTOM) or not self._has_classes(name, outputs[name]):
            return None
        found = _log_classes(outputs[name], kind, 1.0).argmax(-1)
        if self.labels is not None and self.labels in extras:
            wanted = extras[self.labels]
        elif name in teacher:
            wanted = _log_classes(teacher[name], kind, 1.0).argmax(-1)
        else:
            return None
        if wanted.shape != found.shape:
            return None
        counted = wanted != _IGNORED
        return float((found == wanted)[counted].float().mean()) if bool(counted.any()) else None


def _array(extras: Mapping[str, Tensor], name: str | None) -> Tensor:
    if name is None or name not in extras:
        raise DataError(
            f"the loss needs an array {name or 'labels'!r}; beside the inputs the data has "
            f"{', '.join(map(repr, sorted(extras))) or 'nothing'}."
        )
    return extras[name]
