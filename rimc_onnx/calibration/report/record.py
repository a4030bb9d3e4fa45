# SPDX-License-Identifier: Apache-2.0
"""Record of a calibration: what was asked, what came out, with what.

docs/report.md lists the fields.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.fit import CalibratedNode
from rimc_onnx.device import DeviceConfig
from rimc_onnx.errors import CalibrationError
from rimc_onnx.passes import RramBranch, read_periphery, rram_branches

__all__ = [
    "NATIVE_LIBRARY",
    "CalibrationRecord",
    "NodeRecord",
    "gamma_of",
    "make_record",
    "peak_rss_bytes",
]

NATIVE_LIBRARY = "native library"
"""``runs_on`` where nothing else was asked for."""

_SAME_FRAC = 1e-3
_PROC_STATUS = Path("/proc/self/status")
_MODULES = ("numpy", "scipy", "onnx", "onnxruntime")
"""Packages whose version decides what a calibration gives."""


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """One adapter as it is stored; errors are relative to the variance of the teacher's output."""

    name: str
    op_type: str
    weight_shape: tuple[int, ...]
    """[M, C / group, *kernel] or [K, N]."""
    num_weights: int
    adapter: str
    """Parts in the words of ``--adapter``: ``dora+sparse``; ``bias`` where there is no more."""
    rank: int
    sparse_cells: int
    num_parameters: int
    """Values of A, B, M and S that are stored."""
    low_rank_bytes: int
    magnitude_bytes: int
    sparse_bytes: int
    sram_bytes: int
    """Sum of the three."""
    error_before: float
    error_after: float

    @property
    def is_same(self) -> bool:
        """True where the calibration changed no more than the last bits of sums in fp32."""
        return math.isclose(self.error_after, self.error_before, rel_tol=_SAME_FRAC)

    @property
    def is_worse(self) -> bool:
        """True where the node errs more than before."""
        return self.error_after > self.error_before and not self.is_same

    @classmethod
    def of(cls, node: CalibratedNode, branch: RramBranch) -> NodeRecord:
        """Read the parts off the codes.

        Raises:
            CalibrationError: an error is NaN or infinite.
        """
        if not (math.isfinite(node.error_before) and math.isfinite(node.error_after)):
            raise CalibrationError(
                f"node {node.name!r}: its error is {node.error_before} before and "
                f"{node.error_after} after calibration. The device or the teacher gives NaN or "
                "infinity there; look at the samples."
            )
        codes = node.adapter
        low_rank = codes.lora_a.size + codes.lora_b.size
        cells = codes.sparse_values.size
        dense = cells == node.num_weights
        sparse = codes.sparse_bytes
        magnitude = codes.sram_bytes - low_rank - sparse
        pair = {(True, True): "dora", (True, False): "lora", (False, True): "magnitude"}
        kinds = [pair.get((low_rank > 0, magnitude > 0)), "dense" if dense else cells and "sparse"]
        return cls(
            name=node.name,
            op_type=branch.rram.op_type,
            weight_shape=branch.geometry.weight_shape,
            num_weights=node.num_weights,
            adapter="+".join(k for k in kinds if k) or "bias",
            rank=node.rank,
            sparse_cells=cells,
            num_parameters=low_rank + magnitude + cells,
            low_rank_bytes=low_rank,
            magnitude_bytes=magnitude,
            sparse_bytes=sparse,
            sram_bytes=codes.sram_bytes,
            error_before=node.error_before,
            error_after=node.error_after,
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """Everything a report says, in plain values."""

    result: dict[str, Any]
    """What ``rimc-onnx calibrate --json`` prints, ``nodes`` apart."""
    model: str
    """The converted model."""
    teacher_sha256: str | None
    """Digest of the teacher that was used."""
    config: dict[str, Any]
    device: dict[str, Any]
    """Parameters of the device model."""
    periphery: dict[str, float | bool | str | None]
    """Of the first node; ``None`` is ideal."""
    runs_on: str = NATIVE_LIBRARY
    """What ran the arrays: the native library, an execution provider, or the user's device."""
    device_seed: int
    device_time_s: float | None = None
    """Seconds since programming; ``None`` for a device model without a time axis."""
    sample_seed: int
    versions: dict[str, str]
    nodes: list[NodeRecord]
    """In graph order."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: the fields of ``result`` and those of the record on one level."""
        own = asdict(self)
        result = own.pop("result")
        return {**result, **own}


def make_record(
    result: object,
    nodes: Sequence[CalibratedNode],
    student: ir.Model,
    *,
    model: str,
    config: CalibrateConfig,
    teacher_sha256: str | None,
    runs_on: str = NATIVE_LIBRARY,
) -> CalibrationRecord:
    """Collect what a report says.

    Args:
        result: the dataclass or mapping that ``--json`` prints.
        nodes: what was fitted, in graph order.
        student: the converted or the calibrated model.
        model: path of the converted model.
        config: what was asked for.
        teacher_sha256: digest of the teacher that was used.
        runs_on: name of what ran the arrays.

    Raises:
        CalibrationError: the error of a node is NaN or infinite.
    """
    if is_dataclass(result) and not isinstance(result, type):
        fields = asdict(result)
    elif isinstance(result, Mapping):
        fields = dict(result)
    else:
        raise TypeError(f"result must be a dataclass or a mapping, got {type(result).__name__}")
    fields.pop("nodes", None)
    branches = {branch.node: branch for branch in rram_branches(student)}
    first = branches[nodes[0].name].rram.attributes
    device = json.loads(DeviceConfig.from_json(first["device_config"].as_string()).to_json())
    return CalibrationRecord(
        result=fields,
        model=model,
        teacher_sha256=teacher_sha256,
        config=_plain(config),
        device=device,
        periphery=read_periphery(first),
        runs_on=runs_on,
        device_seed=first["seed"].as_int(),
        device_time_s=first["time_s"].as_float() if "time_law" in device else None,
        sample_seed=config.sample_seed,
        versions=_versions(),
        nodes=[NodeRecord.of(node, branches[node.name]) for node in nodes],
    )


def _plain(config: CalibrateConfig) -> dict[str, Any]:
    """The fields, choices by their names."""
    return asdict(
        config,
        dict_factory=lambda items: {
            name: value.value if isinstance(value, Enum) else value for name, value in items
        },
    )


def gamma_of(nodes: Sequence[CalibratedNode]) -> float:
    """New parameters over original ones, of the nodes with an adapter (Dong, eq. 7).

    For adapters of A, B and M this is sum(d r + r k + k) / sum(d k). A sparse cell is one parameter
    (and a byte and a half); a magnitude that stays at 1 is none.
    """
    parameters = 0
    for node in nodes:
        codes = node.adapter
        parameters += codes.sram_bytes - codes.sparse_bytes + codes.sparse_values.size
    return parameters / sum(node.num_weights for node in nodes)


def peak_rss_bytes(status: Path = _PROC_STATUS) -> int | None:
    """Most memory that this process has held so far, bytes; ``None`` where nothing tells.

    Linux: VmHWM. ``ru_maxrss`` would include the parent's memory at the time of the fork there, so
    it serves only where there is no ``status``. It counts KiB, on macOS bytes (getrusage(2)).
    """
    try:
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _versions() -> dict[str, str]:
    """Versions by import, not by distribution: ONNX Runtime is distributed under several names."""
    found = {
        "rimc-onnx": importlib.metadata.version("rimc-onnx"),
        "python": platform.python_version(),
    }
    return found | {name: str(importlib.import_module(name).__version__) for name in _MODULES}
