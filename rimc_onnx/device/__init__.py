# SPDX-License-Identifier: Apache-2.0
"""Device physics: from a target weight to the weight that RRAM conductances realise."""

from __future__ import annotations

from rimc_onnx.device.cell_law import CellLaw, Realise, cell_law
from rimc_onnx.device.config import DeviceConfig, DriftLaw, Scaling
from rimc_onnx.device.draws import Purpose, random_words, standard_normals
from rimc_onnx.device.grid import CODED_BITS, CURVE_STEPS, on_grid
from rimc_onnx.device.ir_drop import ArrayLayout, apply_ir_drop, wire_loss
from rimc_onnx.device.iv_curve import IvPolynomial, sinh, sinh_curve
from rimc_onnx.device.mapping import largest_weight, pair_shares
from rimc_onnx.device.philox import philox4x32
from rimc_onnx.device.preset import Preset
from rimc_onnx.device.presets import get_preset, presets
from rimc_onnx.device.programming import ConductancePair, ProgrammedWeight, program
from rimc_onnx.device.read_noise import read_key, read_normals
from rimc_onnx.device.read_noise_curve import ReadNoiseCurve
from rimc_onnx.device.read_noise_table import ReadNoiseTable, read_noise_table
from rimc_onnx.device.read_out import read_out
from rimc_onnx.device.times import format_time, parse_time
from rimc_onnx.device.user_file import (
    DeviceDescription,
    describe_device,
    list_devices,
    load_device,
)

__all__ = [
    "CODED_BITS",
    "CURVE_STEPS",
    "ArrayLayout",
    "CellLaw",
    "ConductancePair",
    "DeviceConfig",
    "DeviceDescription",
    "DriftLaw",
    "IvPolynomial",
    "Preset",
    "ProgrammedWeight",
    "Purpose",
    "ReadNoiseCurve",
    "ReadNoiseTable",
    "Realise",
    "Scaling",
    "apply_ir_drop",
    "cell_law",
    "describe_device",
    "format_time",
    "get_preset",
    "largest_weight",
    "list_devices",
    "load_device",
    "on_grid",
    "pair_shares",
    "parse_time",
    "philox4x32",
    "presets",
    "program",
    "random_words",
    "read_key",
    "read_noise_table",
    "read_normals",
    "read_out",
    "sinh",
    "sinh_curve",
    "standard_normals",
    "wire_loss",
]
