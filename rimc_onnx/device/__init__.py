# SPDX-License-Identifier: Apache-2.0
"""Device physics: from a target weight to the weight that RRAM conductances hold."""

from __future__ import annotations

from rimc_onnx.device.cell_law import CellLaw, CellProgrammer, cell_law
from rimc_onnx.device.config import (
    AUTO,
    DeviceConfig,
    DriftLaw,
    Scaling,
    read_clip_sigma,
    read_scaling,
)
from rimc_onnx.device.duration import format_time, parse_time
from rimc_onnx.device.iv_curve import IvPolynomial, sinh, sinh_curve
from rimc_onnx.device.mapping import largest_weight, pair_shares
from rimc_onnx.device.presets.entry import Preset
from rimc_onnx.device.presets.registry import get_preset, list_presets
from rimc_onnx.device.programming import ConductancePair, ProgrammedWeight, has_error, program
from rimc_onnx.device.random.keyed_draws import Purpose, random_words, standard_normals
from rimc_onnx.device.random.philox import philox4x32
from rimc_onnx.device.random.read_draws import read_key, read_normals
from rimc_onnx.device.read_noise_curve import ReadNoiseCurve
from rimc_onnx.device.read_noise_knots import ReadNoiseTable, read_noise_table
from rimc_onnx.device.table_file import table_file
from rimc_onnx.device.toml_file import read_toml
from rimc_onnx.device.user_file import (
    DeviceDescription,
    describe_device,
    list_devices,
    load_device,
)

__all__ = [
    "AUTO",
    "CellLaw",
    "CellProgrammer",
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
    "Scaling",
    "cell_law",
    "describe_device",
    "format_time",
    "get_preset",
    "has_error",
    "largest_weight",
    "list_devices",
    "list_presets",
    "load_device",
    "pair_shares",
    "parse_time",
    "philox4x32",
    "program",
    "random_words",
    "read_clip_sigma",
    "read_key",
    "read_noise_table",
    "read_normals",
    "read_scaling",
    "read_toml",
    "sinh",
    "sinh_curve",
    "standard_normals",
    "table_file",
]
