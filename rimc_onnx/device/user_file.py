# SPDX-License-Identifier: Apache-2.0
"""Device models of one's own, in TOML files whose keys carry their units."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rimc_onnx.device.config import DeviceConfig
from rimc_onnx.device.presets.registry import get_preset, list_presets
from rimc_onnx.device.read_noise_knots import read_noise_table
from rimc_onnx.device.serialization import check_keys
from rimc_onnx.device.toml_file import read_toml
from rimc_onnx.errors import ConfigError

__all__ = ["DeviceDescription", "describe_device", "list_devices", "load_device"]


@dataclass(frozen=True, kw_only=True)
class DeviceDescription:
    """A device model as people are shown it."""

    name: str
    summary: str
    parameters: dict[str, Any]
    """Plain values of the configuration, as files record them."""
    g_range_us: tuple[float, float] | None
    """Valid conductances in microsiemens; None is any."""
    time_range_s: tuple[float, float] | None
    """Valid times since programming in seconds; None is no time axis."""
    source: str
    read_noise_frac: float | None = None
    """Read noise that a conversion takes from it; None is none. Of the law ``curve`` the largest
    of a pair of devices, at the first time."""
    read_noise_law: str | None = None
    """``absolute`` or ``curve``."""
    iv_curve: str | None = None
    """I-V curve that a conversion takes from it, ``sinh`` or ``polynomial``; None is linear."""
    output: str | None = None
    """File that it was compiled into; None where it was only shown."""


def load_device(path: Path, **overrides: Any) -> DeviceConfig:
    """The device model of a TOML file, with ``overrides`` (fields of :class:`DeviceConfig`).

    Keys are the fields of :class:`DeviceConfig`; ``preset`` is the model's name, that of the file
    where it is left out. ``base`` names a preset to start from: keys then replace its fields.

    Raises:
        ConfigError: no such file, not TOML, a key that is not known or has another unit, or a value
            out of range; with the name of the file.
    """
    values = read_toml(path)
    try:
        return replace(_device(values, path.stem), **overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _device(values: dict[str, Any], name: str) -> DeviceConfig:
    values = {"preset": name, **values}
    base = values.pop("base", None)
    if base is None:
        return DeviceConfig.from_mapping(values)
    known = [f.name for f in fields(DeviceConfig)]
    check_keys("device configuration", values, ["base", *known], [])
    start = json.loads(get_preset(str(base)).to_json())
    if get_preset(str(base)).scaling is None:  # JSON closes what is open
        del start["scaling"]
    noise = {"read_noise_frac", "read_noise_curve"}
    if noise & values.keys():  # one law of read noise replaces another
        start = {name: value for name, value in start.items() if name not in noise}
    return DeviceConfig.from_mapping({**start, **values})


def list_devices() -> list[DeviceDescription]:
    """Every preset, the default first."""
    return [describe_device(name) for name in list_presets()]


def _read_noise_frac(config: DeviceConfig) -> float | None:
    if config.read_noise_curve is None:
        return config.read_noise_frac
    return read_noise_table(config, config.resolve_time(None)).top_frac


def describe_device(name: str) -> DeviceDescription:
    """A preset, or the model of a ``.toml`` file.

    Raises:
        ConfigError: neither is there, or the file is wrong.
    """
    if name.endswith(".toml"):
        config = load_device(Path(name))
        summary, source = f"device model of {name}", config.source or "not stated"
    else:
        config = get_preset(name)
        summary, source = list_presets()[name].summary, list_presets()[name].source
    return DeviceDescription(
        name=config.preset,
        summary=summary,
        parameters=json.loads(config.to_json()),
        g_range_us=config.g_range_us,
        time_range_s=config.time_range_s,
        source=source,
        read_noise_frac=_read_noise_frac(config),
        read_noise_law=config.read_noise_law,
        iv_curve=config.iv_curve,
    )
