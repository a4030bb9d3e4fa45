# SPDX-License-Identifier: Apache-2.0
"""Published RRAM macros, their energy recomputed by the cost model from their own parameters.

    python -m rimc_onnx.cost.macros

Each is one product of a vector and a matrix: what the model counts of it, constants as the
publication (or the open model of its authors, or of CiMLoop) states them, and the energy that was
published. No constant is fitted here. docs/cost.md shows the table; tests/cost/test_macros.py holds
it within the tolerances, which are spreads of the publications.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rimc_onnx.cost.constants import default_constants
from rimc_onnx.cost.counts import ArrayCounts
from rimc_onnx.cost.energy import activation_pj

__all__ = ["MACROS", "Macro", "default_pj_per_op"]


@dataclass(frozen=True, kw_only=True)
class Macro:
    """One published operating point."""

    name: str
    bits: str
    """Of an input / a weight / an output."""
    counts: ArrayCounts
    constants: Mapping[str, float]
    """Of the publication, in place of the package's."""
    other_pj: float
    """Of the product, in parts that the model counts elsewhere: registers of a tile."""
    ops: int
    """Two for a multiplication."""
    published_fj_per_op: float
    tolerance_frac: float
    """What the publication's own numbers differ by."""

    @property
    def ours_fj_per_op(self) -> float:
        """Recomputed."""
        at = {**default_constants().values(), **self.constants}
        return 1e3 * (sum(activation_pj(self.counts, at).values()) + self.other_pj) / self.ops

    @property
    def error_frac(self) -> float:
        """Of ours, over what was published."""
        return self.ours_fj_per_op / self.published_fj_per_op - 1


def _counts(
    *,
    columns: int,
    word_lines: int,
    bit_lines: int,
    cycles: int,
    pulses: int,
    input_bits: int,
    adc_bits: int,
    conductance_us: float,
    weights: int,
    devices: int,
) -> ArrayCounts:
    return ArrayCounts(
        activations=1,
        macs=weights,
        columns=columns,
        word_lines=word_lines,
        bit_lines=bit_lines,
        cycles=cycles,
        pulses=pulses,
        input_bits=input_bits,
        adc_bits=adc_bits,
        in_turn=1,
        adcs=columns,
        devices=devices,
        conductance_us=conductance_us,
        row_tiles=1,
        weights=weights,
    )


_NEURRAM_FJ_PER_OP = {
    # bits in: total by 1 / (TOPS/W), Wan et al., Nature 608, 504 (2022), fig. 12c of the extended
    # data with two phases from 5 bits on, as CiMLoop (wan_nature_2022) digitised it
    1: 1e3 / 43.07875866,
    2: 1e3 / 40.33412834,
    3: 1e3 / 23.09069279,
    4: 1e3 / 15.95409517,
    5: 1e3 / 11.03166076,
    6: 1e3 / 8.257196816,
    7: 1e3 / 7.750037817,
    8: 1e3 / 6.437388185,
}
_NEURRAM_WORD_LINES_FJ = {
    # planes of input bits: switching of word lines in an operation, fig. 12b, as above
    1: (8.99015248, 8.270951256),
    2: (15.46307324,),
    3: (21.75617998,),
    4: (30.92613276,),
    5: (37.2192395,),
    6: (43.69214654,),
    7: (50.52466791,),
}
_NEURRAM = {
    # pJ, of a neuron in 130 nm at 1.8 V (Wan et al., as in Accelergy's library): sampling 1.2,
    # integration 0.25 a step, ADC 0.3 and shift-and-add 0.1 a step; a word line of 256 cells has
    # 48 fF and 2.1 fF a cell, at 1.8 V.
    "bit_line.cycle_pj": 1.2 + (48 + 256 * 2.1) * 1e-3 * 1.8**2,
    "bit_line.pulse_pj": 0.25,
    "adc.energy_pj_per_bit": 0.4,
    "shift_add.energy_pj": 0.0,
    "dac.energy_pj": 0.0,
    "array.read_voltage_v": 0.5,
    "array.read_pulse_ns": 10.0,
    # Of a plane of bits, half are set.
    "array.input_activity": 0.5,
}


def _neurram(input_bits: int) -> Macro:
    """256 x 256 cells: 128 signed weights of 4 bits, 256 outputs of 2 more bits than the inputs.

    A signed input has a magnitude bit less. From 5 bits on it goes in in two phases, the ADC then
    works for both. The integrator takes 2^n - 1 steps for n bits of a phase.
    """
    magnitude, output_bits = max(input_bits - 1, 1), input_bits + 2
    phases = [magnitude] if magnitude < 4 else [-(-magnitude // 2), magnitude // 2]
    steps = sum(2**n - 1 for n in phases)
    adc_steps = sum(output_bits - sum(phases[:i]) for i in range(len(phases)))
    # Cells of 250 kohm to 1 Mohm; weights spread evenly over the levels: one device of a pair is
    # at the least conductance, the other half way on average.
    pair_us = 1.0 + (1.0 + 4.0) / 2
    counts = _counts(
        columns=256,
        word_lines=256,
        bit_lines=256,
        cycles=magnitude,
        # One plane at a time: pulses of the cells are planes, those of the integrator are steps.
        pulses=steps,
        input_bits=input_bits,
        adc_bits=adc_steps,
        conductance_us=128 * 256 * pair_us * magnitude / steps,
        weights=128 * 256,
        devices=256 * 256,
    )
    # The model converts in every cycle; the neuron does once, with all its steps.
    constants = {**_NEURRAM, "adc.energy_pj_per_bit": 0.4 / magnitude}
    return Macro(
        name="NeuRRAM (chip, 130 nm, 2022)",
        bits=f"{input_bits} / 4 / {output_bits}",
        counts=counts,
        constants=constants,
        other_pj=0.0,
        ops=2 * 128 * 256,
        published_fj_per_op=_NEURRAM_FJ_PER_OP[input_bits],
        tolerance_frac=_neurram_spread(),
    )


def _neurram_spread() -> float:
    """What the chip's own figures differ by where they should not: a plane on a word line.

    From lowest to highest, over the mean.
    """
    planes = [e / n for n, energies in _NEURRAM_WORD_LINES_FJ.items() for e in energies]
    return (max(planes) - min(planes)) / (sum(planes) / len(planes))


def _isaac() -> Macro:
    """One in-situ unit: 8 arrays of 128 x 128 cells of 2 bits, 16-bit inputs, bit after bit."""
    outputs = 8 * 128 // 8
    counts = _counts(
        columns=outputs,
        word_lines=8 * 128,
        bit_lines=8 * 128,
        cycles=16,
        pulses=16,
        input_bits=16,
        adc_bits=8,
        conductance_us=0.0,  # its arrays have a power, not a conductance: see other_pj
        weights=128 * outputs,
        devices=8 * 128 * 128,
    )
    cycle_ns = 100.0
    mw_ns = 16 * cycle_ns
    return Macro(
        name="ISAAC (design, 32 nm, 2016)",
        bits="16 / 16 / 16",
        counts=counts,
        constants={
            "adc.energy_pj_per_bit": 16e3 / (8 * 1.2e3) / 8,  # 16 mW, 8 ADCs of 1.2 GS/s
            "dac.energy_pj": 4e3 / (8 * 128 * 10.0),  # 4 mW, 10 MHz
            "shift_add.energy_pj": 0.2e3 / (8 * 1.2e3),
            "bit_line.cycle_pj": 0.01e3 / (8 * 128 * 10.0),  # sample and hold, 10 uW
        },
        # Arrays 2.4 mW, input register 1.24 mW, output register 0.23 mW.
        other_pj=(2.4 + 1.24 + 0.23) * mw_ns,
        ops=2 * 128 * outputs,
        # 289 mW for 12 units.
        published_fj_per_op=1e3 * 289 / 12 * mw_ns / (2 * 128 * outputs),
        # 128 conversions in 100 ns are 1.28 GS/s, the ADC is counted at 1.2 GS/s: 7 %.
        tolerance_frac=0.07,
    )


def _puma() -> Macro:
    """One unit of PUMA: as ISAAC's, 16-bit weights on 8 arrays; the chip's peak is published."""
    counts = _counts(
        columns=128,
        word_lines=8 * 128,
        bit_lines=8 * 128,
        cycles=16,
        pulses=16,
        input_bits=16,
        adc_bits=8,
        conductance_us=0.0,
        weights=128 * 128,
        devices=8 * 128 * 128,
    )
    mw_ns = 16 * 100.0
    # What the model leaves out of a core of two such units, by the same tables: memories of data
    # and instructions, vector unit, activations, control.
    left_out_mw = 0.57 + 0.33 + (0.65 + 0.33) * 8**0.5 + (2.4 + 0.27) * 32 / 45 + 0.26 + 0.25
    published = 1e3 / 0.837  # 837 GOPS/W of the whole chip (abstract)
    return Macro(
        name="PUMA (design, 32 nm, 2019)",
        bits="16 / 16 / 16",
        counts=counts,
        constants={
            # puma-simulator, include/constants.py: ADC 2 mW for 128 columns in 100 ns, DAC
            # 0.0039 mW, shift-and-add 0.05 mW for 1 ns.
            "adc.energy_pj_per_bit": 2.0 * 100 / 128 / 8,
            "dac.energy_pj": (0.00350625 + 0.000390625) * 100,
            "shift_add.energy_pj": 0.05,
            "bit_line.cycle_pj": 9.7e-6 * 100,
        },
        other_pj=8 * 0.3 * mw_ns,  # an array 0.3 mW
        ops=2 * 128 * 128,
        published_fj_per_op=published,
        tolerance_frac=left_out_mw * mw_ns / 2 / (published * 2 * 128 * 128 / 1e3),
    )


MACROS = [*(_neurram(bits) for bits in _NEURRAM_FJ_PER_OP), _isaac(), _puma()]
"""All operating points."""


def default_pj_per_op(*, bits: int = 8) -> float:
    """The package's own constants on an array of 128 x 128 weights, inputs and outputs of 8 bits.

    Devices are taken half way to 40 uS on average.
    """
    counts = _counts(
        columns=128,
        word_lines=128,
        bit_lines=128,
        cycles=1,
        pulses=1,
        input_bits=bits,
        adc_bits=bits,
        conductance_us=20.0 * 128 * 128,
        weights=128 * 128,
        devices=2 * 128 * 128,
    )
    return sum(activation_pj(counts, default_constants().values()).values()) / (2 * 128 * 128)


def _main() -> None:
    """The table of docs/cost.md."""
    print("| macro | bits in / weight / out | published, fJ/op | ours, fJ/op | error | tolerance |")
    print("|---|---|---|---|---|---|")
    for m in MACROS:
        print(
            f"| {m.name} | {m.bits} | {m.published_fj_per_op:.1f} | {m.ours_fj_per_op:.1f} | "
            f"{100 * m.error_frac:+.1f} % | {100 * m.tolerance_frac:.0f} % |"
        )
    fj = 1e3 * default_pj_per_op()
    print(f"the package's constants, 128 x 128, 8 bits: {fj:.1f} fJ/op, {1e3 / fj:.1f} TOPS/W")


if __name__ == "__main__":
    _main()
