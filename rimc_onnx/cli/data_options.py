# SPDX-License-Identifier: Apache-2.0
"""Samples as the command line names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.io.samples import Data

__all__ = ["sample_source"]


def sample_source(data: str | None, batch_axis: list[str] | None) -> Data | None:
    """What ``--data`` and ``--batch-axis`` say together; None where neither is given."""
    if not batch_axis:
        return data
    from rimc_onnx.io.samples import SampleArrays

    by_name: dict[str, int | None] = {}
    for text in batch_axis:
        name, _, value = text.rpartition("=")
        if not value.isdecimal() and value != "none":
            raise UsageError(f"--batch-axis {text!r} is not of the form AXIS or INPUT=AXIS.")
        by_name[name] = None if value == "none" else int(value)
    if "" not in by_name:
        return SampleArrays(arrays=data, batch_axis=by_name)
    if len(batch_axis) > 1:
        raise UsageError("--batch-axis without the name of an input is that of all. Give it once.")
    return SampleArrays(arrays=data, batch_axis=by_name[""])
