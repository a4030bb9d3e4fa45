# SPDX-License-Identifier: Apache-2.0
"""A device model at one time as one file: all that the execution provider knows of it."""

from __future__ import annotations

from typing import Final

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.crossbar.periphery import PeripheryConfig, ideal_attributes, reads_of_device
from rimc_onnx.device import DeviceConfig, Scaling, cell_law, has_error, table_file

__all__ = ["DEVICE_SUFFIX", "compiled_device"]

DEVICE_SUFFIX: Final = ".rimcdev"
"""Ending of the names of such files."""


def compiled_device(
    device: DeviceConfig, *, time_s: float | None = None, device_reads: bool = True
) -> bytes:
    """The device ``time_s`` seconds after programming, None the first time of its law.

    Its law and what it brings along in every read are numbers and tables; weights, seeds and names
    of nodes are no part of it. ``device_reads`` False leaves out read noise and I-V curve.

    Raises:
        ConfigError: the law does not reach to that time, or no node can have the device's reads.
    """
    # What a conversion checks, and how it resolves what a device brings along.
    config = ConvertConfig(
        device=device, time_s=time_s, periphery=PeripheryConfig(device_reads=device_reads)
    )
    resolved_s = device.resolve_time(time_s)
    return table_file(
        {
            "device": device.preset,
            "time_s": resolved_s,
            "has_error": has_error(device),
            # What is open is as plain as the library can have it: weights of a node share W_max.
            "scaling": (device.scaling or Scaling.NODE).value,
            "clip_sigma": (device.clip_sigma or 0.0) if device.clips else 0.0,
            "law": cell_law(device, resolved_s).values(),
            "attributes": ideal_attributes(),
            "reads": reads_of_device(config),
        }
    )
