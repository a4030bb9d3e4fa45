# SPDX-License-Identifier: Apache-2.0
"""A device model with its origin."""

from __future__ import annotations

from dataclasses import dataclass

from rimc_onnx.device.config import DeviceConfig

__all__ = ["Preset"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A device model with its origin."""

    config: DeviceConfig
    summary: str
    """The model in one line."""
    source: str
    """Where the law and every number come from."""
