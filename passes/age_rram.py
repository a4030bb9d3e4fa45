# SPDX-License-Identifier: Apache-2.0
"""Crossbars of a converted model at another time since programming."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from rimc_onnx.device import CellProgrammer, DeviceConfig, largest_weight, read_noise_table
from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
from rimc_onnx.passes._bodies import write_bodies
from rimc_onnx.passes.programmed_tensor import programmed_tensor
from rimc_onnx.passes.rram_branch import RramBranch, rram_branches
from rimc_onnx.passes.rram_unit import RramUnit

__all__ = ["AgeRramPass"]


class AgeRramPass(ir.passes.InPlacePass):
    """Move every crossbar along its own path, to ``time_s`` seconds after programming.

    1. The weight of an RRAM node is computed again from the teacher's unit of the same name, with
       the device, the seed and the draws that the node records; by ``programmer`` instead of numpy,
       with the same bits.
    2. ``time_s`` of the node and of the model's metadata is set, and ``read_noise_curve`` with its
       ``read_noise`` is that of the new time, where a node has one.
    3. Everything else, adapters included, is left alone; a model that is at that time already, too.

    Raises:
        ModelError: the teacher has no such node, or one whose weight the arrays were not made from;
            or a node has a ``read_noise_curve``, and its device has none.
        ConfigError: the device has no time axis, or its law does not reach to that time.
    """

    def __init__(
        self,
        units: Mapping[str, RramUnit],
        time_s: float,
        *,
        programmer: CellProgrammer | None = None,
    ) -> None:
        self._units = units
        self._time_s = time_s
        self._programmer = programmer

    def __str__(self) -> str:
        return f"AgeRramPass(time_s={self._time_s:g})"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Age in place."""
        branches = rram_branches(model)
        # All before the first edit, so that an error leaves the model as it was.
        plans = [(branch, self._unit(branch), _device(branch)) for branch in branches]
        times = [device.resolve_time(self._time_s) for _, _, device in plans]
        noises = [
            _read_noise(branch, device, time_s)
            for (branch, _, device), time_s in zip(plans, times, strict=True)
        ]
        modified = False
        for (branch, unit, device), time_s, noise in zip(plans, times, noises, strict=True):
            attributes = branch.rram.attributes
            if attributes["time_s"].as_float() == time_s:
                continue
            value = branch.rram.inputs[1]
            if value is None or value.name is None:
                raise ModelError(f"node '{branch.node}': its weight is not an initializer.")
            value.const_value = programmed_tensor(
                unit,
                name=value.name,
                device=device,
                seed=attributes["seed"].as_int(),
                time_s=time_s,
                wire_ohm=attributes["wire_ohm"].as_float() or None,
                num_tiles=attributes["num_tiles"].as_int(),
                tile_rows=attributes["tile_rows"].as_int() or None,
                dac_bits=attributes["dac_bits"].as_int(),
                programmer=self._programmer,
            )
            attributes["time_s"] = ir.AttrFloat32("time_s", time_s)
            attributes.update({attribute.name: attribute for attribute in noise})
            modified = True
        if modified:
            model.metadata_props[schema.TIME_KEY] = f"{times[0]:.9g}"
            write_bodies(model)
        return ir.passes.PassResult(model, modified)

    def _unit(self, branch: RramBranch) -> RramUnit:
        unit = self._units.get(branch.node)
        if unit is None:
            raise ModelError(
                f"node '{branch.node}' is not in the teacher, so its arrays can't be aged. Give "
                f"the model that it was converted from with `teacher`."
            )
        held, given = branch.geometry.weight_shape, unit.geometry.weight_shape
        if held != given:
            raise ModelError(
                f"node '{branch.node}': its arrays hold {list(held)}, the teacher's "
                f"weight is {list(given)}. Give the model that it was converted from "
                f"with `teacher`."
            )
        recorded = np.asarray(branch.rram.attributes["w_max"].as_floats(), np.float32)
        found = largest_weight(unit.weight.float32(), _device(branch), unit.geometry.column_axis)
        if not np.array_equal(recorded, found):
            raise ModelError(
                f"node '{branch.node}': the teacher's largest weight is not the one that its "
                f"arrays were programmed with. Convert the new teacher instead."
            )
        return unit


def _read_noise(branch: RramBranch, device: DeviceConfig, time_s: float) -> list[ir.Attr]:
    """The attributes of the device's read noise at another time, if it follows the time."""
    if len(branch.rram.attributes["read_noise_curve"].as_floats()) == 1:
        return []
    if device.read_noise_curve is None:
        raise ModelError(
            f"node '{branch.node}': its read_noise_curve is not one of its device "
            f"'{device.preset}', so it can't be aged. Convert again."
        )
    table = read_noise_table(device, time_s)
    return [
        ir.AttrFloat32("read_noise", table.read_noise),
        ir.AttrFloat32s("read_noise_curve", table.knots),
    ]


def _device(branch: RramBranch) -> DeviceConfig:
    return DeviceConfig.from_json(branch.rram.attributes["device_config"].as_string())
