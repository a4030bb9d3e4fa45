# SPDX-License-Identifier: Apache-2.0
"""Errors of the library name fields and arguments; here they become the options that set them."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["OPTIONS", "in_options"]

OPTIONS: Final = {
    "adapter": "--adapter",
    "adapter_file": "--adapter-file",
    "allow_identity": "--allow-identity",
    "adc_bits": "--adc-bits",
    "adc_gain_error_frac": "--adc-gain-error",
    "adc_offset_error_frac": "--adc-offset-error",
    "batch_axis": "--batch-axis",
    "batch_size": "--batch-size",
    "checkpoints": "--checkpoints",
    "dac_bits": "--dac-bits",
    "dac_serial_bits": "--dac-serial-bits",
    "data": "--data",
    "device_reads=False": "--ideal-reads",
    "draws": "--draws",
    "drift_frac": "--drift",
    "dry_run": "--dry-run",
    "epochs": "--epochs",
    "force": "--force",
    "growth": "--growth",
    "input_shrink": "--input-shrink",
    "iv_sinh": "--iv-sinh",
    "first_s": "--time",
    "keep_digital": "--keep-digital",
    "labels": "--labels",
    "learning_rate": "--learning-rate",
    "last_s": "--last",
    "levels": "--levels",
    "library": "--provider-library",
    "life_s": "--life",
    "loss": "--loss",
    "map_shared": "--map-shared",
    "metric": "--metric",
    "noise_ramp_frac": "--noise-ramp",
    "noise_scale": "--noise-scale",
    "num_samples": "--samples",
    "patience": "--patience",
    "penalty": "--penalty",
    "period_s": "--period",
    "policies": "--policy",
    "probe_samples": "--probe-samples",
    "propagate": "--propagate",
    "range_percentile": "--range-percentile",
    "rank": "--rank",
    "read_noise_frac": "--read-noise",
    "read_noise_law": "--read-noise-law",
    "read_out": "--read-out",
    "read_out_noise_frac": "--read-out-noise",
    "sample_seed": "--seed",
    "seed": "--seed",
    "seeds": "--seeds",
    "solver": "--solver",
    "sram_budget_bytes": "--sram-budget",
    "sram_budget_frac": "--sram-budget",
    "statistics": "--statistics",
    "steps": "--steps",
    "teacher": "--teacher",
    "temperature": "--temperature",
    "threshold": "--threshold",
    "tile_rows": "--tile-rows",
    "time_s": "--time",
    "validation": "--validation",
    "validation_devices": "--validation-devices",
    "validation_samples": "--validation-samples",
    "validations": "--validations",
    "weight_clip_sigma": "--weight-clip",
    "weight_decay": "--weight-decay",
    "wire_ohm": "--wire-ohm",
    "workers": "--workers",
}
"""Option by field or argument, or by both of a field and a value."""


def in_options(text: str) -> str:
    """The line of an error with options in place of the fields in backticks."""
    return re.sub(r"`(\w+)(?:=(\w+))?`", _option, text)


def _option(match: re.Match[str]) -> str:
    field, value = match.groups()
    if value is None:
        return OPTIONS.get(field, field)
    whole = f"{field}={value}"
    return OPTIONS.get(whole) or f"{OPTIONS.get(field, field)} {value}"
