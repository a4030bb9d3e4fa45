# SPDX-License-Identifier: Apache-2.0
"""Counts times constants: energies in picojoules, times in nanoseconds, areas in um^2."""

from __future__ import annotations

from collections.abc import Mapping

from rimc_onnx.cost.constants import Values
from rimc_onnx.cost.counts import ArrayCounts, BranchCounts, DigitalCounts

__all__ = [
    "PARTS",
    "activation_pj",
    "array_area_um2",
    "array_ns",
    "branch_ns",
    "branch_pj",
    "digital_ns",
    "digital_pj",
    "int8_pj",
    "node_pj",
    "shared_pj",
]

PARTS = (
    "arrays",
    "DAC",
    "ADC",
    "shift-and-add",
    "buffers",
    "buses",
    "SRAM branch",
    "digital rest",
)
"""What energy and area go to."""

_FJ = 1e-3
"""V^2 uS ns is a femtojoule."""


def activation_pj(counts: ArrayCounts, at: Values) -> dict[str, float]:
    """Energy of one activation of arrays, by part."""
    lines = counts.bit_lines * (
        counts.cycles * at["bit_line.cycle_pj"] + counts.pulses * at["bit_line.pulse_pj"]
    )
    cell_fj = at["array.read_voltage_v"] ** 2 * counts.conductance_us * at["array.read_pulse_ns"]
    cells = _FJ * cell_fj * at["array.input_activity"] * counts.pulses
    conversions = counts.bit_lines * counts.cycles
    return {
        "arrays": cells + lines,
        "DAC": counts.word_lines * counts.cycles * at["dac.energy_pj"],
        "ADC": conversions * counts.adc_bits * at["adc.energy_pj_per_bit"],
        "shift-and-add": conversions * at["shift_add.energy_pj"],
    }


def shared_pj(counts: ArrayCounts, at: Values) -> dict[str, float]:
    """Energy of an activation's inputs and outputs, which any engine has to move, by part."""
    return {
        "buffers": counts.vector_bytes * at["sram.energy_pj_per_byte"],
        "buses": counts.vector_bytes * at["bus.energy_pj_per_byte"],
    }


def node_pj(counts: ArrayCounts, branch: BranchCounts, at: Values) -> dict[str, float]:
    """Energy of a node in RRAM in one inference, by part."""
    one = {**activation_pj(counts, at), **shared_pj(counts, at)}
    parts = {part: counts.activations * energy for part, energy in one.items()}
    return {**parts, "SRAM branch": branch_pj(branch, at)}


def branch_pj(branch: BranchCounts, at: Values) -> float:
    """Energy of an adapter in one inference: its codes are read once, as int8 weights are."""
    return (
        branch.macs * at["digital.mac_pj"]
        + branch.adds * at["shift_add.energy_pj"]
        + branch.sram_bytes * at["sram.energy_pj_per_byte"]
    )


def int8_pj(counts: ArrayCounts, at: Values, *, in_dram: bool) -> float:
    """Energy of the same node in int8, on an array of multipliers of the crossbar's size.

    Inputs, outputs and partial sums move as those of the crossbar do; each weight is read once in
    an inference, from SRAM or from DRAM.
    """
    memory = "dram" if in_dram else "sram"
    sums = counts.activations * counts.columns * counts.row_tiles * at["shift_add.energy_pj"]
    moved = counts.activations * sum(shared_pj(counts, at).values())
    weights = counts.weights * at[f"{memory}.energy_pj_per_byte"]
    return counts.macs * at["digital.mac_pj"] + sums + moved + weights


def digital_pj(counts: DigitalCounts, at: Values) -> float:
    """Energy of a node outside of the arrays in one inference, its buffers and buses included."""
    moved = at["sram.energy_pj_per_byte"] + at["bus.energy_pj_per_byte"]
    return (
        counts.macs * at["digital.mac_pj"]
        + counts.elementwise * at["digital.elementwise_pj"]
        + counts.nonlinear * at["digital.nonlinear_pj"]
        + counts.weight_bytes * at["sram.energy_pj_per_byte"]
        + counts.moved_bytes * moved
    )


def array_ns(counts: ArrayCounts, at: Values) -> float:
    """Time of a node's arrays in one inference: tiles at once, activations one after the other.

    The ADCs of a cycle work while the next one is read.
    """
    read = counts.pulses * at["array.read_pulse_ns"]
    converted = counts.cycles * counts.in_turn * at["adc.ns_per_conversion"]
    return counts.activations * max(read, converted)


def branch_ns(branch: BranchCounts, at: Values) -> float:
    """Time of an adapter beside its arrays, on multipliers of one array's size at 1 GHz."""
    return branch.macs / (at["structure.rows"] * at["structure.columns"])


def digital_ns(counts: DigitalCounts, at: Values) -> float:
    """Time of a node outside of the arrays, at 1 GHz."""
    elements = counts.elementwise + counts.nonlinear
    products = counts.macs / (at["structure.rows"] * at["structure.columns"])
    return elements / at["structure.vector_lanes"] + products


def array_area_um2(counts: ArrayCounts, at: Values) -> Mapping[str, float]:
    """Area of a node's arrays by part; an ADC's grows with its bits."""
    return {
        "arrays": counts.devices * at["array.cell_area_um2"],
        "DAC": counts.word_lines * at["dac.area_um2"],
        "ADC": counts.adcs * at["adc.area_um2"] * counts.adc_bits / 8,
        "shift-and-add": counts.adcs * at["shift_add.area_um2"],
    }
