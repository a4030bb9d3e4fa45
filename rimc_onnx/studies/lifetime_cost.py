# SPDX-License-Identifier: Apache-2.0
"""Energy and time of a calibration, and of writing all arrays anew in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.cost.constants import load_constants
from rimc_onnx.errors import ModelError
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.samples import Data
from rimc_onnx.passes import rram_branches

__all__ = ["CalibrationCost", "calibration_cost"]

_DEVICE_RUNS = 4
"""Runs of the device on every sample: what each node gives for the teacher's inputs, what it gets
itself, and the outputs without and with adapters."""


@dataclass(frozen=True, kw_only=True)
class CalibrationCost:
    """What one calibration takes, by the constants of the cost."""

    inference_uj: float
    device_uj: float
    """Runs of the device."""
    fit_uj: float
    """On a host, an estimate: runs of the teacher, sums of squares, one solution for each node, in
    floating point."""
    write_uj: float
    """SRAM of the adapters."""
    device_seconds: float
    """Runs of the device, one sample after the other."""
    write_seconds: float
    rewrite_uj: float
    """All arrays programmed anew in its place."""
    rewrite_seconds: float
    """Cell by cell."""
    sram_byte_uj: float
    sram_byte_seconds: float
    sram_endurance: float
    rram_endurance: float


def calibration_cost(
    model: Path, data: Data, calibrate: CalibrateConfig, constants: str | Path | None
) -> CalibrationCost:
    """Of ``calibrate`` for a converted model; its shapes are inferred, or seen in a sample.

    Raises:
        RimcError: a constant is wrong, or the model can't be run.
    """
    try:
        cost = api.inference_cost(model, constants=constants)
    except ModelError:
        cost = api.inference_cost(model, data=data, constants=constants)
    at = load_constants(None if constants is None else Path(constants)).values()
    graph, runs = load_model(model), calibrate.num_samples * _DEVICE_RUNS
    activations = {node.name: node.activations for node in cost.nodes}
    macs = calibrate.num_samples * cost.macs
    for branch in rram_branches(graph):
        geometry = branch.geometry
        d, m = geometry.depth, geometry.group_columns
        rows = calibrate.num_samples * activations[branch.node]
        macs += geometry.group * (rows * (d * d // 2 + d * m) + d**3 + d * d * m)
    devices = sum(node.devices for node in cost.nodes)
    byte_uj = at["sram.energy_pj_per_byte"] / 1e6
    return CalibrationCost(
        inference_uj=cost.energy_nj / 1e3,
        device_uj=runs * cost.energy_nj / 1e3,
        fit_uj=macs * at["digital.float_mac_pj"] / 1e6,
        write_uj=cost.sram_bytes * byte_uj,
        device_seconds=runs * cost.latency_us / 1e6,
        write_seconds=cost.sram_bytes * at["sram.write_ns"] / 1e9,
        rewrite_uj=devices * at["rram.write_pulse_pj"] * at["rram.write_pulses"] / 1e6,
        rewrite_seconds=devices * at["rram.write_ns"] / 1e9,
        sram_byte_uj=byte_uj,
        sram_byte_seconds=at["sram.write_ns"] / 1e9,
        sram_endurance=at["sram.endurance"],
        rram_endurance=at["rram.endurance"],
    )
