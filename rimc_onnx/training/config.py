# SPDX-License-Identifier: Apache-2.0
"""What a training for the device is asked to do, checked when it is written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, unique

from rimc_onnx.crossbar import ConvertConfig
from rimc_onnx.errors import ConfigError

__all__ = ["FinetuneConfig", "Loss", "Optimizer", "PenaltyWeight", "Schedule"]


@unique
class Loss(Enum):
    """What is minimised. The value is its name on the command line."""

    DISTILL = "distill"
    """Distance of the outputs from the clean teacher's: the divergence of softened classes where an
    output holds logits or probabilities, else the relative squared error. Needs no labels."""
    FEATURES = "features"
    """Relative squared error of every mapped node's output from the teacher's."""
    TASK = "task"
    """Cross-entropy of the first output with class indices."""
    SPAN = "span"
    """Cross-entropy of two outputs with ``start_positions`` and ``end_positions``."""
    CUSTOM = "custom"
    """A function of the user's own."""


@unique
class Optimizer(Enum):
    """Rule of the steps."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"
    """With momentum 0.9."""


@unique
class PenaltyWeight(Enum):
    """What the squared deviation of a weight costs in the penalty."""

    POWER = "power"
    """The power of its input over that of the node's outputs: all nodes count alike."""
    FISHER = "fisher"
    """Half the Fisher information of the weight, on the held-out samples with the weights of the
    start: what it adds to the divergence of the outputs, to second order."""


@unique
class Schedule(Enum):
    """Learning rate over the steps."""

    COSINE = "cosine"
    """From the given one to a hundredth of it."""
    LINEAR = "linear"
    """The same, straight."""
    CONSTANT = "constant"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The recipe. The defaults are the one that won on average (docs/training.md)."""

    convert: ConvertConfig = field(default_factory=ConvertConfig)
    """Device, time, periphery and nodes as the conversion will have them."""
    loss: Loss = Loss.DISTILL
    temperature: float = 2.0
    """Of softened classes."""
    noise_scale: float | None = 1.0
    """Deviations of the device's law, drawn for every batch, times this; None draws none."""
    noise_ramp_frac: float = 0.3
    """Share of the steps over which the scale grows from 0."""
    life_s: tuple[float, float] | None = None
    """Ages that deviations are drawn for, log-uniform; None is the conversion's time alone."""
    penalty: float = 1.0
    """Weight of the expected squared error that deviations add to the nodes' outputs, relative to
    the outputs: their variance and mean shift in closed form, at the conversion's time."""
    penalty_weight: PenaltyWeight = PenaltyWeight.POWER
    learn_input_ranges: bool = False
    """Train the input range of every node with a DAC or an I-V curve, too. The file that is written
    records them, and a conversion takes them in place of measured ones."""
    weight_clip_sigma: float | None = 2.5
    """Weights are kept within so many standard deviations of their start; None: anywhere."""
    adapters_only: bool = False
    """Weights stay as they are, adapters of the conversion's rank are trained under deviations.
    What is written is the converted model."""
    optimizer: Optimizer = Optimizer.ADAM
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.COSINE
    epochs: int = 3
    steps: int | None = None
    """In place of ``epochs``."""
    batch_size: int = 32
    validation_samples: int = 256
    """Held out of the data, at most a quarter of it; unless data for validation are given."""
    validation_devices: int = 2
    """Simulated devices that a state is tested on."""
    validations: int = 8
    """Over the whole training, the start left out."""
    patience: int | None = None
    """Stop after so many validations without a better state; None never stops early."""
    seed: int = 0
    """Key of the order of the data and of the deviations."""

    def __post_init__(self) -> None:
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be above 0, got {getattr(self, name)}")
        for name in ("penalty", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` must be 0 or more, got {getattr(self, name)}")
        for name in ("noise_scale", "weight_clip_sigma"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"`{name}` must be above 0, got {value}. Use none for none.")
        if not 0 <= self.noise_ramp_frac <= 1:
            raise ConfigError(f"`noise_ramp_frac` must lie in 0..1, got {self.noise_ramp_frac}")
        counts = ("epochs", "batch_size", "validation_devices", "validations")
        for name in (*counts, "steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be 1 or more, got {value}")
        if self.validation_samples < 0 or self.seed < 0:
            raise ConfigError(
                f"`validation_samples` and `seed` must be 0 or more, got "
                f"{self.validation_samples} and {self.seed}"
            )
        self._check_life()

    def _check_life(self) -> None:
        if self.life_s is None:
            return
        if self.noise_scale is None:
            raise ConfigError("`life_s` are the ages of drawn deviations. Set `noise_scale` too.")
        first, last = self.life_s
        if not 0 < first <= last:
            raise ConfigError(f"`life_s` must be two rising times above 0, got {first} and {last}")
        for time_s in self.life_s:
            self.convert.device.resolve_time(time_s)
