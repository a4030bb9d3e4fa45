# SPDX-License-Identifier: Apache-2.0
"""What the commands report; as JSON, an interface: fields are added, never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rimc_onnx.cost.model_cost import CostReport

__all__ = [
    "AgeReport",
    "CalibrateReport",
    "CalibratedNodeReport",
    "ConvertReport",
    "EqualizeReport",
    "EqualizedNodeReport",
    "FinetuneReport",
    "InspectReport",
    "NodeRangesReport",
    "NodeReport",
    "OutputsReport",
    "StatisticsReport",
    "ValidationReport",
]


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """Where one matrix node went, and why not to RRAM."""

    name: str
    op_type: str
    mapped: bool
    reason: str | None
    scaling: str | None = None
    """Weights that share one W_max, ``node`` or ``column``; ``None`` of a digital node."""
    clip_sigma: float | None = None
    """Standard deviations beyond which its weights are clipped; ``None`` clips none."""


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion did; ``output`` is ``None`` for a dry run."""

    output: str | None
    nodes: list[NodeReport]
    mapped: int
    digital: int
    rram_weights: int
    device: str
    seed: int
    time_s: float | None
    """Seconds since programming; ``None`` for a device model without a time axis."""
    teacher_sha256: str
    seconds: float
    read_noise_frac: float | None = None
    """Read noise in the file, of the device model or as asked for; of the law ``curve`` the largest
    of a pair of devices."""
    iv_curve: str | None = None
    """I-V curve in the file: ``sinh`` or ``polynomial``; ``None`` is a straight line."""
    reads_of_device: bool = False
    """True where either comes from the device model."""
    read_noise_law: str | None = None
    """``absolute``, ``relative`` or ``curve``."""
    data: str = ""
    """What samples of the model are: what a calibration will need."""
    clipped: int = 0
    """Nodes in RRAM whose largest weights are clipped."""
    uncalibrated: bool = False
    """True where the mapping was chosen for use without a calibration."""
    unequal: int = 0
    """Nodes in RRAM of which ``equalize`` would leave a quarter of the error or less; 0 on a device
    whose errors are a share of each weight."""


@dataclass(frozen=True, kw_only=True)
class NodeRangesReport:
    """Tiles of one RRAM node, and what its converters reach."""

    name: str
    num_tiles: int
    dac_range: tuple[float, float] | None
    """Lowest and highest input; ``None`` without a DAC and without a curve of the current."""
    adc_range: tuple[float, float] | None
    """Smallest and largest range of the bit lines; ``None`` is an ideal ADC."""


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """What a model holds: an unconverted one as ``convert`` would map it."""

    model: str
    converted: bool
    nodes: list[NodeReport]
    mapped: int
    digital: int
    rram_weights: int
    sram_bytes: int | None
    device: dict[str, Any] | None
    """Parameters of the device model, converted models only; scaling and clipping are those of the
    first node."""
    seed: int | None
    time_s: float | None
    """Seconds since programming; ``None`` without a time axis, and for unconverted models."""
    teacher_sha256: str | None
    periphery: dict[str, float | bool | str | None] | None = None
    """Converters, reads and wires of the first node, as a calibration's report has them."""
    ranges: list[NodeRangesReport] | None = None
    """Of every RRAM node."""
    adapters: int | None = None
    """Adapters that do something, a bias apart; 0 in a file as ``convert`` writes it."""
    swappable: bool | None = None
    """Whether a session can be given other adapters."""
    cost: CostReport | None = None
    """Energy, latency and area, where the command line was asked for them; in Python
    :func:`rimc_onnx.inference_cost` gives them."""


@dataclass(frozen=True, kw_only=True)
class AgeReport:
    """Arrays at another time."""

    output: str
    nodes: int
    """RRAM nodes aged."""
    rram_weights: int
    device: str
    seed: int
    time_s_before: float
    time_s: float
    """Seconds since programming."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EqualizedNodeReport:
    """A node whose inputs are scaled."""

    name: str
    op_type: str
    channels: int
    """Input channels, each with a power of two of its own."""
    error_share: float
    """What is left of an error that all cells have alike, for channels of one power."""


@dataclass(frozen=True, kw_only=True)
class EqualizeReport:
    """A model with equal word lines; ``nodes`` is empty where none gains."""

    output: str
    nodes: list[EqualizedNodeReport]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CalibratedNodeReport:
    """One adapter; errors are relative to the power of the teacher's feature."""

    name: str
    rank: int
    sram_bytes: int
    error_before: float
    error_after: float


@dataclass(frozen=True, kw_only=True)
class OutputsReport:
    """Outputs of one model beside its teacher's, on the samples of the calibration."""

    error: float | None
    """Error power over the variance of the teacher's output, mean over floating-point outputs;
    ``None`` where none tells, or one is not finite."""
    agreement: float | None
    """Share of best classes that are the teacher's."""
    sqnr_db: dict[str, float | None]
    """Teacher power over error power of every floating-point output, dB; ``None`` where there is no
    error."""


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """What a calibration did."""

    output: str
    report: str | None
    """JSON beside the output."""
    page: str | None
    """HTML beside the output."""
    adapter_file: str | None = None
    """The adapters alone."""
    twin: str | None = None
    """The plain fp32 model."""
    samples: int
    solver: str
    gamma: float
    """New parameters over original parameters of the nodes with an adapter (Dong, eq. 7)."""
    sram_bytes: int
    seconds: float
    peak_rss_bytes: int | None
    """Most memory that the process has held so far; ``None`` where the system does not tell."""
    drifted: OutputsReport | None
    """Outputs with adapters that do nothing; ``None`` without a sample to run."""
    calibrated: OutputsReport | None
    """Outputs of what was written."""
    taken_back: str | None
    """The step of the calibration that made the outputs worse and was left out."""
    is_identity: bool
    """True where no step helped: the adapters do nothing."""
    warning: str | None
    """Where the outputs are far from the teacher's all the same."""
    cost: CostReport | None = None
    """Energy, latency and area of an inference; ``None`` where no shape and no sample tells how
    often its arrays are used."""
    nodes: list[CalibratedNodeReport]


@dataclass(frozen=True, kw_only=True)
class StatisticsReport:
    """A statistics file."""

    output: str
    samples: int
    kept_samples: int
    """Of these, samples that the file holds."""
    nodes: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """Figures of one state of a training on held-out samples."""

    step: int
    clean_loss: float
    """Of the weights as they are."""
    device_loss: float
    """Mean over simulated devices, not calibrated; trained for a use with calibration, a digital
    scale makes up for what their law takes from all weights in common."""
    clean_hits: float | None
    """Share of samples with the label's class, or the teacher's; ``None`` without classes."""
    device_hits: float | None
    calibrated_loss: float | None
    """On the first of these devices, converted and calibrated; ``None`` where the training is for
    a use without a calibration or for inner features, or an earlier state has less ``loss``."""
    calibrated_hits: float | None

    @property
    def loss(self) -> float:
        """Sum of both losses: the best state that is no worse once calibrated has least of it."""
        return self.clean_loss + self.device_loss


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What a training for the device did."""

    output: str
    device: str
    time_s: float | None
    trained: int
    """Initializers that were trained."""
    trained_weights: int
    changed: int
    """Initializers with other values in the output; 0 where no state was better than the file."""
    samples: int
    validation_samples: int
    steps: int
    best: ValidationReport
    """The state that was written; step 0 is the file as it came."""
    validations: list[ValidationReport]
    runs_on: str
    seconds: float
    peak_rss_bytes: int | None
    adapter_file: str | None = None
    """The adapters alone."""
    sram_bytes: int | None = None
    """Of the adapters, where these were trained; then ``changed`` counts them."""
    warning: str | None = None
    """One line where the trained weights without a device are far less often right."""
