# SPDX-License-Identifier: Apache-2.0
"""What a calibration is asked to do, checked when it is written down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from rimc_onnx.calibration.allocate import Kinds
from rimc_onnx.calibration.solvers.closed_form import ClosedFormConfig
from rimc_onnx.calibration.solvers.registry import Solver, solver_of
from rimc_onnx.errors import CalibrationError, ConfigError, UsageError, suggest
from rimc_onnx.ops.schema import MAX_RANK

__all__ = [
    "DEFAULT_BUDGET_FRAC",
    "READ_OUT_NOISE_FRAC",
    "CalibrateConfig",
    "Propagate",
    "Solver",
    "one_of",
    "parse_adapter",
    "parse_budget",
]

DEFAULT_BUDGET_FRAC = 0.05
"""SRAM of all adapters where nothing is said, as a share of the weights (docs/calibration.md)."""
READ_OUT_NOISE_FRAC = 0.02
"""``read_out_noise_frac`` where none is given."""

_ADAPTERS = {
    "dora": Kinds(low_rank=True, magnitude=True),
    "lora": Kinds(low_rank=True, magnitude=False),
    "magnitude": Kinds(low_rank=False, magnitude=True),
    "bias": Kinds(low_rank=False, magnitude=False),
    "sparse": Kinds(low_rank=False, magnitude=False, sparse=True),
    "dense": Kinds(low_rank=False, magnitude=False, dense=True),
}


class Propagate(Enum):
    """Whose inputs the nodes are fitted on. The value is the name in reports and options."""

    TEACHER = "teacher"
    STUDENT = "student"
    """Those of the calibrated student, after a first fit on the teacher's."""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Samples, adapters, SRAM and what may be known of the device."""

    num_samples: int = 10
    """0 needs ``read_out`` and a statistics file."""
    sample_seed: int = 0
    """Key of the draw of samples from the data."""
    read_out_seed: int = 0
    """Key of the noise of a read-out."""
    sensitivity_seed: int = 0
    """Key of the test errors by which nodes are compared."""
    solver_seed: int = 0
    """Key of what the solver draws: the start of ``adam``."""
    adapter: str | None = None
    """Parts of the adapters, see :func:`parse_adapter`; ``None`` is ``dora+sparse``, with a rank
    ``dora``."""
    rank: int | None = None
    """One rank for all nodes. ``None``: one SRAM budget, spent where it helps most."""
    sram_budget_bytes: int | None = None
    sram_budget_frac: float | None = None
    """The budget, in bytes or as a share of the bytes of the mapped weights, one each. Neither is
    :data:`DEFAULT_BUDGET_FRAC`, and a byte for every bit line at least."""
    solver: Solver = Solver.CLOSED_FORM
    propagate: Propagate = Propagate.TEACHER
    read_out: bool = False
    """The arrays can be measured; otherwise the device is a black box."""
    read_out_noise_frac: float = READ_OUT_NOISE_FRAC
    """Standard deviation of a measured weight, as a fraction of the weight."""
    allow_identity: bool = False
    """Where no adapter brings the model's outputs nearer to the teacher's, adapters that do nothing
    are a result, not an error."""
    closed_form: ClosedFormConfig = field(default_factory=ClosedFormConfig)

    @property
    def kinds(self) -> Kinds:
        """Parts of the adapters."""
        default = "dora+sparse" if self.rank is None else "dora"
        return parse_adapter(default if self.adapter is None else self.adapter)

    def budget_bytes(self, *, num_weights: int, num_lines: int) -> int:
        """The SRAM budget of a model with so many mapped weights and bit lines.

        Raises:
            CalibrationError: it does not hold magnitudes that every bit line has to have.
        """
        magnitudes = num_lines if self.kinds.magnitude else 0
        if self.sram_budget_bytes is not None:
            budget = self.sram_budget_bytes
        elif self.sram_budget_frac is not None:
            budget = int(self.sram_budget_frac * num_weights)
        else:
            budget = max(int(DEFAULT_BUDGET_FRAC * num_weights), magnitudes)
        if budget < magnitudes and not self.kinds.sparse:
            raise CalibrationError(
                f"the SRAM budget of {budget} bytes does not hold the {magnitudes} bytes of the "
                "magnitudes. Give a larger one, or `adapter` without a magnitude (sparse, lora)."
            )
        return budget

    def __post_init__(self) -> None:
        if self.num_samples < 0 or (self.num_samples == 0 and not self.read_out):
            raise ConfigError(
                f"`num_samples` must be 1 or more, got {self.num_samples}. "
                "Only `read_out` with `statistics` needs none."
            )
        for name, known in (("solver", Solver), ("propagate", Propagate)):
            if not isinstance(getattr(self, name), known):
                raise ConfigError(
                    f"`{name}` must be one of {', '.join(map(str, known))}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"`rank` must lie in 1..{MAX_RANK}, got {self.rank}")
        given = [self.rank, self.sram_budget_bytes, self.sram_budget_frac]
        if sum(value is not None for value in given) > 1:
            raise UsageError("give either one rank for all nodes or one SRAM budget, not both")
        for name in ("sram_budget_bytes", "sram_budget_frac", "read_out_noise_frac"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"`{name}` must be 0 or more, got {value}")
        if self.read_out_noise_frac >= 1:
            raise ConfigError(
                "a read-out with noise as large as the weights tells nothing: "
                "`read_out_noise_frac` must be below 1 (0.02 is 2 %), "
                f"got {self.read_out_noise_frac}"
            )
        if self.rank is not None and (self.kinds.sparse or self.kinds.dense):
            raise UsageError(
                "one rank for all nodes leaves no room for sparse or dense adapters. "
                "Give `adapter` dora or lora with `rank`, or an SRAM budget."
            )
        if self.propagate is Propagate.STUDENT and self.read_out:
            raise UsageError(
                "`propagate=student` asks the device for its answers: leave out `read_out`."
            )
        if solver_of(self.solver).needs_features and (
            self.rank is None
            or not self.kinds.low_rank
            or self.read_out
            or self.propagate is Propagate.STUDENT
        ):
            raise UsageError(
                f"the solver {self.solver.value} fits one rank for all nodes on the teacher's "
                "inputs: give `rank` with `adapter` dora or lora, without `read_out` and "
                "`propagate=student`."
            )


def parse_adapter(text: str) -> Kinds:
    """``dora``, ``lora``, ``magnitude``, ``bias``, ``sparse``, ``dense``, or several with ``+``.

    Every adapter has a digital bias.

    Raises:
        UsageError: a name is not known.
    """
    parts = []
    for name in text.split("+"):
        if name not in _ADAPTERS:
            raise UsageError(f"`adapter` {name!r} is not known. {suggest(name, _ADAPTERS)}")
        parts.append(_ADAPTERS[name])
    return Kinds(
        low_rank=any(p.low_rank for p in parts),
        magnitude=any(p.magnitude for p in parts),
        sparse=any(p.sparse for p in parts),
        dense=any(p.dense for p in parts),
    )


def parse_budget(text: str | None) -> tuple[int | None, float | None]:
    """``sram_budget_bytes`` and ``sram_budget_frac`` of ``14000``, ``2%`` or nothing, the default.

    Raises:
        UsageError: neither.
    """
    if text is None:
        return None, None
    try:
        if text.endswith("%"):
            return None, float(text[:-1]) / 100
        return int(text), None
    except ValueError:
        raise UsageError(
            f"`sram_budget_frac` {text!r} is neither bytes (14000) nor a share (2%)."
        ) from None


def one_of(what: str, value: str, *known: str) -> str:
    """``value``, if it is one of ``known``.

    Raises:
        UsageError: it is not.
    """
    if value not in known:
        raise UsageError(f"{what} {value!r} is not known. {suggest(value, known)}")
    return value
