# SPDX-License-Identifier: Apache-2.0
"""Parameters of an RRAM device model, checked when they are written down."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum, unique
from typing import Any

import numpy as np

from rimc_onnx.device.curves import Curve
from rimc_onnx.device.duration import format_time, round_time
from rimc_onnx.device.iv_curve import IvPolynomial
from rimc_onnx.device.random.normal import Float64Array
from rimc_onnx.device.read_noise_curve import ReadNoiseCurve
from rimc_onnx.device.serialization import check_number, check_numbers, from_plain, to_plain
from rimc_onnx.device.time_laws import TimeLaw
from rimc_onnx.errors import ConfigError, suggest
from rimc_onnx.ops.schema import MAX_IV_SINH

__all__ = ["AUTO", "DeviceConfig", "DriftLaw", "Scaling", "read_clip_sigma", "read_scaling"]

AUTO = "auto"
"""Name of a scaling or clipping that is left open."""


@unique
class DriftLaw(Enum):
    """How far a device's conductance may be from its target G_t. The value is its name in files.

    In all laws G_r = max(0, G_t + G_drift), with a draw of its own for each device.
    """

    GAUSSIAN_RELATIVE = "gaussian-relative"
    """G_drift ~ N(mu * G_t, (rho * G_t)^2): a device at zero conductance stays perfect."""
    GAUSSIAN_ABSOLUTE = "gaussian-absolute"
    """G_drift ~ N(mu * G_max, (rho * G_max)^2): the same for all devices, whatever they hold."""
    MEASURED = "measured"
    """G_drift ~ N(0, sigma(G_t)^2) with the curve ``programming_sigma_us``."""


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
    scaling: Scaling | None = None
    """Weights that share one W_max. None: a conversion chooses
    (:mod:`rimc_onnx.crossbar.mapping_choice`); where nothing does, all of a node."""
    programming_sigma_us: Curve | None = None
    """Standard deviation of a programmed device, a function of G_t; law ``measured`` only."""
    time_law: TimeLaw | None = None
    """What happens after programming; without one a model has no time axis."""
    g_range_us: tuple[float, float] | None = None
    """Conductances that the law holds for; targets outside are an error."""
    stuck_min_frac: float = 0.0
    """Share of devices that are stuck at ``g_min_us``."""
    stuck_max_frac: float = 0.0
    """Share of devices that are stuck at ``g_min_us + g_max_us``."""
    clip_sigma: float | None = None
    """Weights beyond so many standard deviations (of the weights that share a W_max) are clipped
    before they are mapped; infinity clips none. None: a conversion chooses; where nothing does,
    none is clipped."""
    level_bits: int | None = None
    """A device has 2^level_bits levels from ``g_min_us`` up, equally far apart; None is any."""
    num_slices: int = 1
    """Pairs that share a weight's bits, ``level_bits`` each, added with their significance."""
    devices_per_weight: int = 1
    """Pairs in parallel that hold the same; their mean counts."""
    read_noise_frac: float | None = None
    """Standard deviation of a device from one read to the next, as a fraction of ``g_max_us``, that
    goes with this model; None where nothing is known of it."""
    read_noise_curve: ReadNoiseCurve | None = None
    """The same, where it follows the conductance."""
    iv_sinh: float | None = None
    """K of the devices' current, sinh(K u) over the input range, that goes with this model."""
    iv_polynomial: IvPolynomial | None = None
    """Current over voltage that goes with this model, where it follows the conductance."""
    source: str = ""
    """Where the parameters of a model of one's own come from."""

    def __post_init__(self) -> None:
        if not self.preset:
            raise ConfigError("device: preset must be a name, got an empty string")
        for name, kind in (("law", DriftLaw), ("scaling", Scaling)):
            value = getattr(self, name)
            if not isinstance(value, kind) and (name != "scaling" or value is not None):
                raise ConfigError(
                    f"device: {name} must be a {kind.__name__}, got {getattr(self, name)!r}"
                )
        for name in ("drift_frac", "drift_mean_frac", "g_max_us", "g_min_us"):
            # + 0.0: one spelling of every number (0, 0.0 and -0.0 are one), hence one JSON text
            object.__setattr__(self, name, check_number("device", name, getattr(self, name)))
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
        self._check_law()
        self._check_faults()
        self._check_mapping()
        self._check_reads()

    def _check_law(self) -> None:
        measured = self.law is DriftLaw.MEASURED
        if measured != (self.programming_sigma_us is not None):
            raise ConfigError(
                f"device: programming_sigma_us goes with law 'measured' and no other, got it "
                f"{'missing' if measured else 'with law ' + repr(self.law.value)}"
            )
        if measured and (self.drift_frac or self.drift_mean_frac):
            raise ConfigError(
                f"device '{self.preset}': its error is measured (programming_sigma_us), so "
                f"drift_frac and drift_mean_frac must be 0, got {self.drift_frac} and "
                f"{self.drift_mean_frac}; `drift_frac` belongs to the gaussian presets"
            )
        if self.g_range_us is None:
            return
        low, high = _pair("g_range_us", self.g_range_us)
        object.__setattr__(self, "g_range_us", (low, high))
        top = self.g_min_us + self.g_max_us
        slack = 1e-9 * high  # 9 + 79.2 is not 88.2 in every binary
        if not (low - slack <= self.g_min_us and top <= high + slack):
            raise ConfigError(
                f"device '{self.preset}': its law holds for g_range_us {low} .. {high} "
                f"microsiemens, but devices would be set to {self.g_min_us} .. {top} "
                f"(g_min_us .. g_min_us + g_max_us)"
            )

    def _check_faults(self) -> None:
        for name in ("stuck_min_frac", "stuck_max_frac"):
            value = check_number("device", name, getattr(self, name))
            object.__setattr__(self, name, value)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"need 0 <= {name} <= 1, got {value} (a fraction: 20 % is 0.2)")
        if self.stuck_min_frac + self.stuck_max_frac > 1.0:
            raise ConfigError(
                f"need stuck_min_frac + stuck_max_frac <= 1, got {self.stuck_min_frac} and "
                f"{self.stuck_max_frac}"
            )

    def _check_mapping(self) -> None:
        if self.clips:
            value = check_number("device", "clip_sigma", self.clip_sigma)
            object.__setattr__(self, "clip_sigma", value)
            if not value > 0:
                raise ConfigError(f"clip_sigma must be above 0, got {value} (standard deviations)")
        for name, most in (("level_bits", 12), ("num_slices", 8), ("devices_per_weight", 64)):
            count = getattr(self, name)
            if count is None and name == "level_bits":
                continue
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
                raise ConfigError(f"{name} must be a whole number in 1..{most}, got {count!r}")
        if self.num_slices > 1 and self.level_bits is None:
            raise ConfigError(
                f"num_slices {self.num_slices} needs level_bits: the bits that one device holds"
            )
        if (self.level_bits or 0) * self.num_slices > _MAX_WEIGHT_BITS:
            raise ConfigError(
                f"num_slices * level_bits must be {_MAX_WEIGHT_BITS} or less, the bits of a "
                f"float32; got {self.num_slices} * {self.level_bits}"
            )

    def _check_reads(self) -> None:
        for name, most in (("read_noise_frac", 1.0), ("iv_sinh", MAX_IV_SINH)):
            value = getattr(self, name)
            if value is not None:
                value = check_number("device", name, value)
                object.__setattr__(self, name, value)
                if not 0.0 < value <= most:
                    raise ConfigError(f"device: need 0 < {name} <= {most:g}, got {value}")
        self._check_read_noise_curve()
        if self.iv_polynomial is None:
            return
        if self.iv_sinh is not None:
            raise ConfigError(
                f"device '{self.preset}': iv_sinh and iv_polynomial are two curves, give one"
            )
        low, high = self.iv_polynomial.g_range_us
        top = self.g_min_us + self.g_max_us
        if not (low * (1 - 1e-9) <= self.g_min_us and top <= high * (1 + 1e-9)):
            raise ConfigError(
                f"device '{self.preset}': its iv_polynomial holds for g_range_us {low} .. {high} "
                f"microsiemens, but devices would be set to {self.g_min_us} .. {top} "
                f"(g_min_us .. g_min_us + g_max_us)"
            )

    def _check_read_noise_curve(self) -> None:
        curve = self.read_noise_curve
        if curve is None:
            return
        if self.read_noise_frac is not None:
            raise ConfigError(
                f"device '{self.preset}': read_noise_frac and read_noise_curve are two laws, give "
                f"one"
            )
        first = 0.0 if self.time_range_s is None else self.time_range_s[0]
        if curve.t_read_s is not None and not first > curve.t_read_s:
            raise ConfigError(
                f"device '{self.preset}': read_noise_curve grows from t_read_s on, so it needs a "
                f"time_law whose first time is above {curve.t_read_s:g} s, got {first:g}"
            )

    @property
    def closed(self) -> DeviceConfig:
        """The same with an open mapping as it is programmed: one W_max a node, none clipped."""
        clip_sigma = math.inf if self.clip_sigma is None else self.clip_sigma
        return replace(self, scaling=self.scaling or Scaling.NODE, clip_sigma=clip_sigma)

    @property
    def clips(self) -> bool:
        """True where weights beyond a limit are cut."""
        return self.clip_sigma is not None and self.clip_sigma != math.inf

    @property
    def read_noise_law(self) -> str | None:
        """``absolute`` or ``curve``; None where no read noise is stated."""
        if self.read_noise_curve is not None:
            return "curve"
        return None if self.read_noise_frac is None else "absolute"

    @property
    def iv_curve(self) -> str | None:
        """Family of the I-V curve, ``sinh`` or ``polynomial``; None where none is stated."""
        if self.iv_sinh is not None:
            return "sinh"
        return None if self.iv_polynomial is None else "polynomial"

    @property
    def time_range_s(self) -> tuple[float, float] | None:
        """First and last valid time since programming; None without a time axis."""
        return None if self.time_law is None else self.time_law.time_range_s

    def resolve_time(self, time_s: float | None) -> float:
        """The time that files record: ``time_s`` as float32; None is the first one, or 0.

        Raises:
            ConfigError: the model has no time axis, or its law does not reach to that time.
        """
        valid = self.time_range_s
        if valid is None:
            if time_s is None:
                return 0.0
            raise ConfigError(
                f"device '{self.preset}' has no time axis, so time_s can't be {time_s:g}. Convert "
                f"without `time_s`, or with a preset that has one (rimc-onnx devices)."
            )
        if time_s is None:
            return valid[0]
        time_s = round_time(time_s)
        if not valid[0] <= time_s <= valid[1]:
            raise ConfigError(
                f"device '{self.preset}': time_s must lie in {format_time(valid[0])} .. "
                f"{format_time(valid[1])} ({valid[0]:g} .. {valid[1]:g} seconds), got "
                f"{format_time(time_s)} ({time_s:g}). Its law is not known beyond."
            )
        return time_s

    def programming_sigma(self, g_us: Float64Array) -> Float64Array:
        """Standard deviation of programmed devices in microsiemens at targets [n], [n]."""
        if self.programming_sigma_us is not None:
            return np.maximum(self.programming_sigma_us.at(g_us), 0.0)
        if self.law is DriftLaw.GAUSSIAN_RELATIVE:
            return g_us * self.drift_frac
        return np.zeros_like(g_us) + self.g_max_us * self.drift_frac

    def to_json(self) -> str:
        """One line of JSON, the same text for equal configurations (keys sorted, no spaces).

        Fields that came after the first release's are left out where they have their defaults. An
        open mapping is written :attr:`closed`.
        """
        closed = self.closed
        values = {f.name: (getattr(closed, f.name), f.default) for f in fields(self)}
        if not closed.clips:
            del values["clip_sigma"]
        plain = {
            name: to_plain(value)
            for name, (value, default) in values.items()
            if name in _ALWAYS_WRITTEN or value != default
        }
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> DeviceConfig:
        """The configuration that :meth:`to_json` wrote, its mapping closed.

        Raises:
            ConfigError: not JSON, not exactly the fields of this class, or a value out of range.
        """
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"device configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"device configuration must be a JSON object, got {text!r}")
        return cls.from_mapping({"clip_sigma": "none", **values}, required=_ALWAYS_WRITTEN)

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], *, required: frozenset[str] = frozenset({"preset", "law"})
    ) -> DeviceConfig:
        """The configuration of plain values: a JSON object, or a TOML table.

        Raises:
            ConfigError: a field that is not known or missing, or a value out of range.
        """
        found = dict(values)
        if found.get("scaling") == AUTO:
            del found["scaling"]
        if isinstance(found.get("clip_sigma"), str):
            found["clip_sigma"] = read_clip_sigma(found["clip_sigma"])
        if "programming_sigma_us" in found:
            found.setdefault("drift_frac", 0.0)
        return from_plain("device configuration", cls, found, required=sorted(required))


_MAX_WEIGHT_BITS = 24
_ALWAYS_WRITTEN = frozenset(
    {"preset", "law", "drift_frac", "drift_mean_frac", "g_max_us", "g_min_us", "scaling"}
)


def _pair(name: str, values: Any) -> tuple[float, float]:
    numbers = check_numbers("device", name, values)
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ConfigError(f"device: {name} must be two rising numbers, got {values!r}")
    return numbers[0], numbers[1]


def read_scaling(text: object) -> Scaling | None:
    """A scaling by its name; ``auto`` leaves it open.

    Raises:
        ConfigError: the name is not known.
    """
    if text == AUTO:
        return None
    try:
        return Scaling(text)
    except ValueError as error:
        known = [AUTO, *(member.value for member in Scaling)]
        what = f"device: scaling '{text}' is not known"
        raise ConfigError(f"{what}. {suggest(str(text), known)}") from error


def read_clip_sigma(text: str) -> float | None:
    """A number of standard deviations; ``none`` clips nothing, ``auto`` leaves it open.

    Raises:
        ConfigError: none of them.
    """
    if text == AUTO:
        return None
    try:
        value = math.inf if text == "none" else float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise ConfigError(
            f"clip_sigma must be a number above 0 (standard deviations), none or auto, got {text!r}"
        )
    return value
