# SPDX-License-Identifier: Apache-2.0
"""A device model compiled for the execution provider, as a file."""

from __future__ import annotations

from pathlib import Path

from rimc_onnx.crossbar import compiled_device
from rimc_onnx.device import DeviceConfig
from rimc_onnx.io.outputs import Outputs

__all__ = ["write_device_file"]


def write_device_file(
    device: DeviceConfig,
    output: str | Path,
    *,
    time_s: float | None = None,
    device_reads: bool = True,
    force: bool = False,
) -> Path:
    """Write what the provider takes as ``device=@FILE``; gives the file's absolute path.

    Args:
        device: the model; its parameters are part of the file.
        output: file to write.
        time_s: seconds since programming; None is the first time of the device's law.
        device_reads: False leaves out read noise and I-V curve of the model.
        force: replace an existing file.

    Raises:
        ConfigError: the law does not reach to that time, or no node can have the device's reads.
        OutputError: the file exists, or it can't be written.
    """
    content = compiled_device(device, time_s=time_s, device_reads=device_reads)
    target = Path(output)
    with Outputs(force=force) as out:
        (out.folder(target) / target.name).write_bytes(content)
    return target.resolve()
