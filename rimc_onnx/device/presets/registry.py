# SPDX-License-Identifier: Apache-2.0
"""Named device models, each with the publication its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, Final

from rimc_onnx.device.config import DeviceConfig, DriftLaw
from rimc_onnx.device.presets.entry import Preset
from rimc_onnx.device.presets.measured import MEASURED_PRESETS
from rimc_onnx.errors import ConfigError, suggest

__all__ = ["get_preset", "list_presets"]

_NEURRAM = "Wan et al., Nature 608, 504 (2022), doi 10.1038/s41586-022-04992-8"


_PRESETS: Final = (
    Preset(
        config=DeviceConfig(
            preset="gaussian-relative", law=DriftLaw.GAUSSIAN_RELATIVE, drift_frac=0.20
        ),
        summary="each device is off by a normal error of 20 % of its own conductance",
        source=(
            "Law and drift_frac: Dong et al. 2025, eq. 1 and 2, headline case. "
            f"g_max_us: upper end of the NeuRRAM array, {_NEURRAM}."
        ),
    ),
    Preset(
        config=DeviceConfig(
            preset="gaussian-absolute", law=DriftLaw.GAUSSIAN_ABSOLUTE, drift_frac=0.08
        ),
        summary="each device is off by a normal error of 8 % of G_max, zero weights included",
        source=(
            "g_max_us and drift_frac: the NeuRRAM array one day after programming, "
            f"{_NEURRAM}, Extended Data Fig. 3d, in the fit of the IBM analog hardware "
            "acceleration kit: 2.45, 3.90, 3.91 and 2.65 uS at 4, 12, 20 and 40 uS, "
            "on average 3.2 of 40 uS."
        ),
    ),
    *MEASURED_PRESETS,
)
_BY_NAME: Final = MappingProxyType({preset.config.preset: preset for preset in _PRESETS})
_FIXED: Final = frozenset(
    {"preset", "law", "programming_sigma_us", "time_law", "g_range_us", "source"}
)


def list_presets() -> Mapping[str, Preset]:
    """All presets by name, the default (``gaussian-relative``) first."""
    return _BY_NAME


def get_preset(name: str, **overrides: Any) -> DeviceConfig:
    """The parameters of a preset, with ``overrides`` (fields of :class:`DeviceConfig`) applied.

    ``preset`` and the laws can't be overridden, since they say which model it is; a model of one's
    own is a :class:`DeviceConfig`.

    Raises:
        ConfigError: the preset or a field is not known, or a value is out of range.
    """
    if name not in _BY_NAME:
        raise ConfigError(f"device preset '{name}' is not known. {suggest(name, _BY_NAME)}")
    known = {f.name for f in fields(DeviceConfig)} - _FIXED
    for field in overrides:
        if field not in known:
            raise ConfigError(
                f"device preset '{name}': '{field}' can't be set. {suggest(field, known)}"
            )
    return replace(_BY_NAME[name].config, **overrides)
