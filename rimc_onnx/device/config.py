# SPDX-License-Identifier: Apache-2.0
"""Parameters of an RRAM device model, checked when they are written down."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from enum import Enum, unique
from typing import Any

from rimc_onnx.errors import ConfigError, suggest

__all__ = ["DeviceConfig", "DriftLaw", "Scaling"]


@unique
class DriftLaw(Enum):
    """How far a device's conductance may be from its target G_t. The value is its name in files.

    In both laws G_r = max(0, G_t + G_drift), with a draw of its own for each device.
    """

    GAUSSIAN_RELATIVE = "gaussian-relative"
    """G_drift ~ N(mu * G_t, (rho * G_t)^2): a device at zero conductance stays perfect."""
    GAUSSIAN_ABSOLUTE = "gaussian-absolute"
    """G_drift ~ N(mu * G_max, (rho * G_max)^2): the same for all devices, whatever they hold."""


@unique
class Scaling(Enum):
    """Which weights share one W_max. The value is the name in files."""

    NODE = "node"
    """All weights of a node."""
    COLUMN = "column"
    """The weights of one bit line, that is of one output."""


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """A device model: how a weight becomes two conductances, and how far these end up off target.

    A weight w is the difference of a pair: (G_min + g, G_min) for w >= 0, swapped for w < 0, with
    g = G_max |w| / W_max. G_max is thus the conductance of the largest weight above G_min.
    """

    preset: str
    """Name of the preset these parameters come from, or a name of the user's own."""
    law: DriftLaw
    """Distribution of the deviation from the target."""
    drift_frac: float = 0.20
    """rho: standard deviation of the drift, as a fraction of what ``law`` names (G_t or G_max)."""
    drift_mean_frac: float = 0.0
    """mu: mean of the drift, as a fraction of the same; negative is a loss of conductance."""
    g_max_us: float = 40.0
    """Conductance of the largest weight, above ``g_min_us``, microsiemens. The default is the upper
    end of the range programmed in the NeuRRAM array (Wan et al., Nature 608, 504, 2022)."""
    g_min_us: float = 0.0
    """Conductance of weight zero, microsiemens."""
    scaling: Scaling = Scaling.NODE
    """Weights that share one W_max."""

    def __post_init__(self) -> None:
        if not self.preset:
            raise ConfigError("device: preset must be a name, got an empty string")
        for name, kind in (("law", DriftLaw), ("scaling", Scaling)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(
                    f"device: {name} must be a {kind.__name__}, got {getattr(self, name)!r}"
                )
        for name in ("drift_frac", "drift_mean_frac", "g_max_us", "g_min_us"):
            # + 0.0: one spelling of every number (0, 0.0 and -0.0 are one), hence one JSON text
            object.__setattr__(self, name, _number(name, getattr(self, name)) + 0.0)
        if not 0.0 <= self.drift_frac <= 1.0:
            raise ConfigError(
                f"need 0 <= drift_frac <= 1, got {self.drift_frac} (a fraction: 20 % is 0.2)"
            )
        if not -1.0 <= self.drift_mean_frac <= 1.0:
            raise ConfigError(
                f"need -1 <= drift_mean_frac <= 1, got {self.drift_mean_frac} "
                f"(a fraction: 20 % is 0.2)"
            )
        if not 0.0 <= self.g_min_us < self.g_max_us:
            raise ConfigError(
                f"need 0 <= g_min_us < g_max_us, got {self.g_min_us} and {self.g_max_us} "
                f"(microsiemens)"
            )

    def to_json(self) -> str:
        """One line of JSON, the same text for equal configurations (keys sorted, no spaces)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> DeviceConfig:
        """The configuration that :meth:`to_json` wrote.

        Raises:
            ConfigError: not JSON, not exactly the fields of this class, or a value out of range.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"device configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"device configuration must be a JSON object, got {text!r}")
        known = {f.name for f in fields(cls)}
        for name in sorted(values.keys() - known):
            raise ConfigError(f"device configuration has no field '{name}'. {suggest(name, known)}")
        if missing := sorted(known - values.keys()):
            raise ConfigError(f"device configuration lacks {', '.join(missing)}")
        if not isinstance(values["preset"], str):
            raise ConfigError(f"device: preset must be a name, got {values['preset']!r}")
        values["law"] = _member("law", DriftLaw, values["law"])
        values["scaling"] = _member("scaling", Scaling, values["scaling"])
        return cls(**values)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"device: {name} must be a finite number, got {value!r}")
    return float(value)


def _member(name: str, kind: type[DriftLaw] | type[Scaling], value: object) -> DriftLaw | Scaling:
    try:
        return kind(value)
    except ValueError as error:
        known = [member.value for member in kind]
        raise ConfigError(
            f"device: {name} '{value}' is not known. {suggest(str(value), known)}"
        ) from error
