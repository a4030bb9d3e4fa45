# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, validations on simulated devices, and a state that survives a kill."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rimc_onnx.device import CellProgrammer
from rimc_onnx.errors import CalibrationError
from rimc_onnx.training.analog_layer import Cells, Draw
from rimc_onnx.training.batches import Augment, Batches, Rows, augmented
from rimc_onnx.training.config import FinetuneConfig, Optimizer, PenaltyWeight, Schedule
from rimc_onnx.training.graph_module import GraphModule
from rimc_onnx.training.losses import Objective

__all__ = ["Calibrated", "Run", "Trainable", "Trainer", "Validation"]

_LEAST_RATE = 0.01
"""Of the first learning rate, at the end of a schedule."""
_FISHER_BATCH = 4
"""Samples whose slopes are squared together: every batch is one draw of them."""
_TEACHER_BYTES = 256 << 20
"""Outputs of the teacher that are kept from one epoch to the next."""
_KNOWN_FRAC = 0.1
"""Share of the start's hits that a training may lose on samples which its network may have seen."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Figures of one state on held-out samples."""

    step: int
    clean_loss: float
    """Of the weights as they are."""
    device_loss: float
    """Mean over simulated devices at the conversion's time, not calibrated but for the scale that
    :attr:`.AnalogLayer.corrects_gain` means."""
    clean_hits: float | None
    """Share of samples with the label's class, or the teacher's; None without classes."""
    device_hits: float | None
    calibrated_loss: float | None = None
    """On the first of these devices, converted and calibrated; None where the training is for
    another use, or an earlier state has less :attr:`loss`."""
    calibrated_hits: float | None = None

    @property
    def loss(self) -> float:
        """What the best state has least of.

        Both count: calibration takes a device from its own figure towards the clean one.
        """
        return self.clean_loss + self.device_loss


@dataclass(kw_only=True)
class _State:
    """What a resumed training needs beside weights and optimiser."""

    step: int = 0
    best: Validation | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[Validation] = field(default_factory=list)
    since_best: int = 0


Run = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Outputs by name of arrays by the names of inputs."""
Calibrated = Callable[[Mapping[str, Any], int], Run]
"""The converted and calibrated model of arrays by the names of initializers and a device's key."""


class Trainable(Protocol):
    """What a :class:`Trainer` needs of a model: of all layers together."""

    module: GraphModule

    @property
    def num_times(self) -> int:
        """Ages that deviations are drawn for; the last is the conversion's."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name; everything else has no gradient."""

    def start_measuring(self) -> None:
        """From now on the power of inputs is measured."""

    def end_measuring(self) -> None:
        """The mean power counts."""

    def start_slopes(self) -> None:
        """From now on slopes of the weights are seen."""

    def take_slopes(self, rows: int) -> None:
        """Those of the last backward pass, of a mean of ``rows`` likelihoods."""

    def end_slopes(self, num_batches: int) -> None:
        """Their squares weight the penalty."""

    def set_cells(self, cells: Cells) -> None:
        """What the arrays hold."""

    def set_draw(self, draw: Draw) -> None:
        """Deviations from now on."""

    def on_device(
        self,
        seed: int,
        time_s: float | None,
        programmer: CellProgrammer | None,
        run: int | None = None,
    ) -> AbstractContextManager[None]:
        """One device while it lasts."""

    def penalty(self, index: int = 0) -> Tensor:
        """Of the deviations at time ``index``."""

    def clip_limits(self, clip_sigma: float | None) -> dict[str, Tensor]:
        """Largest weights, from today's; of ``None`` what the mapping clips."""

    def clip(self, limits: Mapping[str, Tensor]) -> None:
        """Cut the weights."""


class Trainer:
    """Trains a model on devices."""

    def __init__(
        self,
        model: Trainable,
        teacher: GraphModule,
        objective: Objective,
        data: Batches,
        held_out: Batches,
        config: FinetuneConfig,
        *,
        augment: Augment | None = None,
        programmer: CellProgrammer | None = None,
        device: str | None = None,
        calibrated: Calibrated | None = None,
        is_held_out_new: bool = True,
    ) -> None:
        """``device`` is a GPU where there is one, else the CPU; ``augment`` changes batches.

        With ``calibrated`` a state that is worse than the start once calibrated is never the best.
        ``is_held_out_new`` False: the network that came may know samples of ``held_out`` by heart,
        and then any training forgets some of them.
        """
        self.model, self.teacher, self.objective = model, teacher, objective
        self.data, self.held_out, self.config = data, held_out, config
        self._augment, self._programmer, self._calibrated = augment, programmer, calibrated
        self._is_held_out_new = is_held_out_new
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or found)
        self.model.module.to(self.device)
        self.teacher.to(self.device).requires_grad_(False)
        self._known_outputs: dict[tuple[bool, int, int], dict[str, Tensor]] = {}
        self._are_apart: bool | None = None
        self._known_bytes = 0
        self.trained = model.trained()
        self._limits = {} if config.adapters_only else model.clip_limits(config.weight_clip_sigma)
        self._optimizer = self._make_optimizer()
        self._per_epoch = len(data.epoch(config.batch_size, config.seed))
        self.num_steps = config.steps or config.epochs * self._per_epoch
        self._times = model.num_times
        self.state = _State()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config, parameters = self.config, list(self.trained.values())
        rate, decay = config.learning_rate, config.weight_decay
        if config.optimizer is Optimizer.SGD:
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
        kind = torch.optim.AdamW if config.optimizer is Optimizer.ADAMW else torch.optim.Adam
        return kind(parameters, lr=rate, weight_decay=decay)

    def _rate(self, step: int) -> float:
        done = step / max(self.num_steps, 1)
        left = {
            Schedule.CONSTANT: 1.0,
            Schedule.LINEAR: 1.0 - done,
            Schedule.COSINE: 0.5 * (1.0 + math.cos(math.pi * done)),
        }[self.config.schedule]
        return self.config.learning_rate * (_LEAST_RATE + (1.0 - _LEAST_RATE) * left)

    # --- the loop -----------------------------------------------------------------------------

    def run(
        self,
        checkpoint: Path | None,
        *,
        identity: str = "",
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> _State:
        """Train, and leave the best state's weights in the module.

        ``checkpoint`` is read where it is there and is of the same ``identity``, and written at
        every validation and at an interruption. A resumed training ends with the weights of one
        that was never interrupted.

        Raises:
            CalibrationError: the loss is not finite.
        """
        self._measure_powers()
        if not (checkpoint is not None and self._resume(checkpoint, identity)):
            # Of the weights as they came: doing nothing is a state like the others.
            self._validate()
            self.model.clip(self._limits)
        every = max(self.num_steps // self.config.validations, 1)
        order: list[Rows] = []
        with _interrupts_between_steps() as was_interrupted:
            while self.state.step < self.num_steps and not self._is_stale():
                at = self.state.step % self._per_epoch
                if at == 0 or not order:
                    epoch = self.state.step // self._per_epoch
                    order = self.data.epoch(self.config.batch_size, self.config.seed, epoch)
                self._step(order[at])
                self.state.step += 1
                progress(self.state.step, self.num_steps)
                if self.state.step % every == 0 or self.state.step == self.num_steps:
                    self._validate()
                    self._save(checkpoint, identity)
                if was_interrupted():
                    self._save(checkpoint, identity)
                    raise KeyboardInterrupt
        self._restore_best()
        return self.state

    def _is_stale(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.since_best >= patience

    def _step(self, rows: Rows) -> None:
        config, step = self.config, self.state.step
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step)
        feeds, extras, teacher = self._batch(self.data, rows, self._augment)
        self._set_cells(step)
        outputs = self.model.module.run(feeds, self.objective.taps)
        loss = self.objective(outputs, extras, teacher)
        if config.penalty:
            loss = loss + config.penalty * self.model.penalty(self._times - 1)
        if not bool(torch.isfinite(loss)):
            raise CalibrationError(
                f"the loss is {float(loss.detach())} at step {step}. Give a smaller "
                "`learning_rate`, or check the samples."
            )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.model.clip(self._limits)

    def _set_cells(self, step: int) -> None:
        config = self.config
        if config.noise_scale is None:
            self.model.set_cells(Cells.IDEAL)
            return
        ramp = config.noise_ramp_frac * self.num_steps
        scale = config.noise_scale * min(1.0, (step + 1) / ramp if ramp else 1.0)
        digest = hashlib.sha256(f"{config.seed}\0{step}\0age".encode()).digest()
        index = int.from_bytes(digest[:4], "little") % self._times
        self.model.set_draw(Draw(seed=config.seed, step=step, scale=scale, time_index=index))

    def _batch(
        self, data: Batches, rows: Rows, augment: Augment | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Feeds, other arrays and the teacher's outputs."""
        read = data.read(rows)
        if augment is not None:
            read = augmented(*read, augment, seed=self.config.seed, step=self.state.step)
        feeds, extras = (
            {n: torch.from_numpy(a).to(self.device) for n, a in arrays.items() if _fits(a)}
            for arrays in read
        )
        if self.objective.loss.value in ("task", "span", "custom") and data is self.data:
            return feeds, extras, {}
        if augment is not None:  # no batch comes twice
            with torch.no_grad():
                return feeds, extras, self.teacher.run(feeds, self.objective.taps)
        return feeds, extras, self._teacher_of(data, feeds, rows)

    def _teacher_of(
        self, data: Batches, feeds: Mapping[str, Tensor], rows: Rows
    ) -> dict[str, Tensor]:
        keys = [(data is self.data, rows.chunk, int(r)) for r in rows.rows]
        if all(key in self._known_outputs for key in keys):
            known = [self._known_outputs[key] for key in keys]
            return {n: torch.stack([k[n] for k in known]) for n in known[0]}
        with torch.no_grad():
            found = self.teacher.run(feeds, self.objective.taps)
        is_kept = data.stacked and self._known_bytes < _TEACHER_BYTES
        if is_kept and self._has_samples_first(found, feeds, len(keys)):
            for i, key in enumerate(keys):
                self._known_outputs[key] = {n: v[i].clone() for n, v in found.items()}
            self._known_bytes += sum(v.nbytes for v in found.values())
        return found

    def _has_samples_first(
        self, found: Mapping[str, Tensor], feeds: Mapping[str, Tensor], count: int
    ) -> bool:
        """Whether axis 0 of every output counts samples: it is shorter for one sample less."""
        if not all(v.ndim and len(v) == count for v in found.values()):
            return False
        if self._are_apart is None and count > 1:
            fewer = {n: v[:-1] if v.ndim and len(v) == count else v for n, v in feeds.items()}
            try:
                with torch.no_grad():
                    less = self.teacher.run(fewer, self.objective.taps)
            except Exception:  # of whatever kind: the graph has its batch inside
                self._are_apart = False
            else:
                self._are_apart = all(len(v) == count - 1 for v in less.values())
        return bool(self._are_apart)

    def _measure_powers(self) -> None:
        """Power of every node's inputs on the held-out samples, with the weights of the start."""
        self.model.start_measuring()
        self.model.set_cells(Cells.IDEAL)
        with torch.no_grad():
            for rows in self.held_out.epoch(self.config.batch_size):
                self.model.module.run(self._batch(self.held_out, rows)[0])
        self.model.end_measuring()
        if self.config.penalty and self.config.penalty_weight is PenaltyWeight.FISHER:
            self._measure_fisher()

    def _measure_fisher(self) -> None:
        """Fisher information of every weight, of the model as it is, on the held-out samples."""
        self.model.start_slopes()
        self.model.set_cells(Cells.FILE)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        batches = self.held_out.epoch(_FISHER_BATCH)
        for rows in batches:
            outputs = self.model.module.run(self._batch(self.held_out, rows)[0])
            likelihood, count = self.objective.drawn_likelihood(outputs, generator)
            torch.autograd.backward(likelihood)
            self.model.take_slopes(count)
        self.model.end_slopes(len(batches))
        self._optimizer.zero_grad(set_to_none=True)

    # --- validation ---------------------------------------------------------------------------

    def _validate(self) -> None:
        clean = self._figures(self._cells(Cells.FILE))
        config, found = self.config.convert, []
        for i in range(self.config.validation_devices):
            with self.model.on_device(self._device_key(i), config.time_s, self._programmer, run=0):
                found.append(self._figures(self._cells(Cells.DEVICE)))
        hits = [h for _, h in found if h is not None]
        validation = Validation(
            step=self.state.step,
            clean_loss=clean[0],
            device_loss=float(np.mean([loss for loss, _ in found])),
            clean_hits=clean[1],
            device_hits=float(np.mean(hits)) if hits else None,
        )
        best = self.state.best
        is_better = best is None or self._score(validation) < self._score(best)
        if is_better and self._calibrated is not None:
            loss, calibrated_hits = self._calibrated_figures(self._calibrated)
            validation = replace(validation, calibrated_loss=loss, calibrated_hits=calibrated_hits)
        self.state.history.append(validation)
        if is_better and self._is_no_worse_calibrated(validation):
            self.state.best, self.state.since_best = validation, 0
            self.state.best_weights = {n: p.detach().cpu().clone() for n, p in self.trained.items()}
        else:
            self.state.since_best += 1

    def _device_key(self, index: int) -> int:
        """Not the seed of the conversion: weights must not be chosen for one device."""
        text = f"{self.config.seed}\0{index}\0validation"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    def _score(self, state: Validation) -> float:
        """What the best state has least of: adapters serve the device, not the clean weights."""
        return state.device_loss if self.config.adapters_only else state.loss

    def _is_no_worse_calibrated(self, state: Validation) -> bool:
        """Than the start: by hits, or by the loss where there are none.

        Within a standard error, or :data:`_KNOWN_FRAC` of samples that may be known by heart.
        """
        start = self.state.history[0]
        if state.calibrated_hits is not None and start.calibrated_hits is not None:
            # Of the share after one hit and one miss more: a sample counts where all were right.
            count = self.held_out.num_samples
            share = (start.calibrated_hits * count + 1) / (count + 2)
            within = math.sqrt(share * (1.0 - share) / count)
            if not self._is_held_out_new:
                within = max(within, _KNOWN_FRAC * start.calibrated_hits)
            return state.calibrated_hits >= start.calibrated_hits - within
        if state.calibrated_loss is not None and start.calibrated_loss is not None:
            return state.calibrated_loss <= start.calibrated_loss
        return True

    def _cells(self, cells: Cells) -> Run:
        """The module with these cells."""
        self.model.set_cells(cells)
        return lambda feeds: self.model.module.run(feeds, self.objective.taps)

    def _calibrated_figures(self, calibrated: Calibrated) -> tuple[float, float | None]:
        run = calibrated(self.model.module.weights(), self._device_key(0))
        return self._figures(
            lambda feeds: {
                name: torch.from_numpy(value).to(self.device)
                for name, value in run({n: v.cpu().numpy() for n, v in feeds.items()}).items()
                if _fits(value)
            }
        )

    def _figures(self, run: Run) -> tuple[float, float | None]:
        """Mean loss and share of hits on the held-out samples."""
        loss, hits, count = 0.0, 0.0, 0
        any_hits = True
        with torch.no_grad():
            for rows in self.held_out.epoch(self.config.batch_size):
                feeds, extras, teacher = self._batch(self.held_out, rows)
                outputs = dict(run(feeds))
                size = len(rows.rows)
                loss += float(self.objective(outputs, extras, teacher)) * size
                share = self.objective.hits(outputs, extras, teacher)
                any_hits = any_hits and share is not None
                hits += (share or 0.0) * size
                count += size
        return loss / count, hits / count if any_hits else None

    # --- states -------------------------------------------------------------------------------

    def _restore_best(self) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.state.best_weights[name])

    def _save(self, checkpoint: Path | None, identity: str) -> None:
        if checkpoint is None:
            return
        state = self.state
        content = {
            "identity": identity,
            "step": state.step,
            "weights": {n: p.detach().cpu() for n, p in self.trained.items()},
            "optimizer": self._optimizer.state_dict(),
            "best": asdict(state.best) if state.best else None,
            "best_weights": state.best_weights,
            "history": [asdict(v) for v in state.history],
            "since_best": state.since_best,
        }
        part = checkpoint.with_name(f".{checkpoint.name}.part")
        torch.save(content, part)
        os.replace(part, checkpoint)

    def _resume(self, checkpoint: Path, identity: str) -> bool:
        if not checkpoint.is_file():
            return False
        try:
            content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        except Exception:  # a file of another program: training starts anew
            return False
        if content.get("identity") != identity:
            return False
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(content["weights"][name])
        self._optimizer.load_state_dict(content["optimizer"])
        best = content["best"]
        self.state = _State(
            step=content["step"],
            best=None if best is None else Validation(**best),
            best_weights=content["best_weights"],
            history=[Validation(**v) for v in content["history"]],
            since_best=content["since_best"],
        )
        return True


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, so that a state is never one in the middle of a step.

    Gives a function that tells whether one came. Other threads than the main one have no signals.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _frame: came.append(n)) for number in numbers]
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _fits(array: np.ndarray[Any, Any]) -> bool:
    """Strings and the like are no tensors."""
    return array.dtype.kind in "biuf"
