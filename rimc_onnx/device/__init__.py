# SPDX-License-Identifier: Apache-2.0
"""Device physics: from a target weight to the weight that RRAM conductances realise."""

from __future__ import annotations

from rimc_onnx.device.config import DeviceConfig, DriftLaw, Scaling
from rimc_onnx.device.draws import Purpose, random_words, standard_normals
from rimc_onnx.device.ir_drop import ArrayLayout, apply_ir_drop, wire_loss
from rimc_onnx.device.iv_curve import sinh, sinh_curve
from rimc_onnx.device.philox import philox4x32
from rimc_onnx.device.presets import Preset, get_preset, presets
from rimc_onnx.device.programming import ConductancePair, ProgrammedWeight, program
from rimc_onnx.device.read_noise import read_key, read_normals
from rimc_onnx.device.read_out import read_out

__all__ = [
    "ArrayLayout",
    "ConductancePair",
    "DeviceConfig",
    "DriftLaw",
    "Preset",
    "ProgrammedWeight",
    "Purpose",
    "Scaling",
    "apply_ir_drop",
    "get_preset",
    "philox4x32",
    "presets",
    "program",
    "random_words",
    "read_key",
    "read_normals",
    "read_out",
    "sinh",
    "sinh_curve",
    "standard_normals",
    "wire_loss",
]
