# SPDX-License-Identifier: Apache-2.0
"""Parts that the bodies of both crossbar operators have: word lines, I-V curves and bit lines."""

from __future__ import annotations

from rimc_onnx.bodies.builder import Body, Term
from rimc_onnx.bodies.uses import VALUE

__all__ = [
    "adc_top",
    "bit_lines",
    "iv_share",
    "read_cells",
    "sums_condition",
    "terms_condition",
    "word_lines",
]


def word_lines(b: Body, x: Term) -> tuple[Term, Term]:
    """What the word lines carry, and what stands for u = 1 on them.

    Planes of a bit-serial input come one after the other along axis 0.
    """
    top = _dac_top(b)
    step = b.attribute("dac_range") / top
    base = b.op("Pow", 2.0, b.op("Cast", b.attribute("dac_serial_bits"), to=1))
    # Nothing is computed outside an If that only one branch reads: ONNX Runtime 1.17 mixes up the
    # memory of a value that nobody reads from the second run on.
    lines = b.choose(
        "serial",
        lambda: b.attribute("dac_serial_bits") > 0,
        lambda: _planes(b, x, top, step, base),
        lambda: b.choose(
            "dac",
            lambda: b.attribute("dac_bits") > 0,
            lambda: _codes(b, x, top, step) * step,
            lambda: x,
        ),
    )
    full_scale = b.choose(
        "serial",
        lambda: b.attribute("dac_serial_bits") > 0,
        lambda: (base - 1.0) * step,
        lambda: b.attribute("dac_range"),
    )
    return _bent(b, lines, full_scale), full_scale


def _dac_top(b: Body) -> Term:
    """The largest code of the DAC."""
    bits = _bits_of_either_sign(b)
    if bits is not None:
        return b.constant(2.0**bits - 1.0) - _signed(b) * 2.0 ** (bits - 1)
    magnitude_bits = b.attribute("dac_bits") - b.attribute("dac_signed")
    return b.op("Pow", 2.0, b.op("Cast", magnitude_bits, to=1)) - 1.0


def _dac_bottom(b: Body, top: Term) -> Term:
    """The smallest code: -0.0 of a DAC without a sign."""
    bits = _bits_of_either_sign(b)
    if bits is not None:
        return _signed(b) * (1.0 - 2.0 ** (bits - 1))
    return b.op("Neg", top) * _signed(b)


def _bits_of_either_sign(b: Body) -> int | None:
    """Bits of the DAC where nodes have as many and differ in the sign; ``None`` elsewhere."""
    bits = b.uses(f"{VALUE}dac_bits")
    return bits if bits and b.uses(f"{VALUE}dac_signed") is None else None


def _signed(b: Body) -> Term:
    return b.op("Cast", b.attribute("dac_signed"), to=1)


def _codes(b: Body, x: Term, top: Term, step: Term) -> Term:
    return b.op("Clip", b.op("Round", x / step), _dac_bottom(b, top), top)


def _planes(b: Body, x: Term, top: Term, step: Term, base: Term) -> Term:
    codes = _codes(b, x, top, step)
    magnitude_bits = b.attribute("dac_bits") - b.attribute("dac_signed")
    shifts = b.op("Reshape", b.op("Cast", _shifts(b, magnitude_bits), to=1), [-1, 1])
    magnitude = b.op("Reshape", b.op("Abs", codes), [1, -1])
    weights = b.op("Pow", 2.0, shifts)
    lower = b.op("Floor", magnitude / weights)
    upper = b.op("Floor", magnitude / (weights * base))
    digits = (lower - base * upper) * b.op("Reshape", b.op("Sign", codes), [1, -1])
    x_shape = b.op("Shape", x)
    runs = x_shape.part(0, 1) * b.op("Shape", shifts).part(0, 1)
    return b.reshape(digits * step, b.op("Concat", runs, x_shape.part(1), axis=0))


def _shifts(b: Body, magnitude_bits: Term) -> Term:
    """Bits below every plane."""
    return b.op("Range", 0, magnitude_bits, b.op("Max", b.attribute("dac_serial_bits"), 1))


def _bent(b: Body, lines: Term, full_scale: Term) -> Term:
    """The current that the voltages of the word lines drive."""
    bend, bits = b.attribute("iv_sinh"), b.attribute("dac_bits")
    k = bend * b.attribute("input_shrink")

    def u() -> Term:
        return b.op("Clip", lines / full_scale, -1.0, 1.0)

    def on_grid() -> Term:
        current = b.op("Sinh", u() * k) * (b.op("Div", 2048.0, b.op("Sinh", k)))
        return b.op("Round", current) * (full_scale / 2048.0)

    return b.choose(
        "sinh_of_codes",
        lambda: b.op("And", bend > 0.0, b.op("And", bits > 0, b.op("LessOrEqual", bits, 8))),
        on_grid,
        lambda: b.choose(
            "sinh",
            lambda: bend > 0.0,
            lambda: b.op("Sinh", u() * k) * (full_scale / b.op("Sinh", k)),
            lambda: b.choose(
                "terms", lambda: terms_condition(b), lambda: u() * full_scale, lambda: lines
            ),
        ),
    )


def terms_condition(b: Body) -> Term:
    """Whether the current has terms of an I-V polynomial."""
    terms = b.op("Concat", b.attribute("iv_square"), b.attribute("iv_cube"), axis=0)
    return b.op("ReduceMax", b.op("Abs", terms), keepdims=0) > 0.0


def sums_condition(b: Body) -> Term:
    """Whether anything lies between the sums of tiles and the output."""
    bits = b.attribute("adc_bits") + b.attribute("dac_serial_bits")
    noise = b.op("Cast", b.attribute("read_noise") > 0.0, to=7)
    return bits + noise + b.op("Cast", terms_condition(b), to=7) > 0


def iv_share(b: Body, t: Term, coefficients: str) -> Term:
    """A polynomial in t by Horner's rule; schema.IV_TERMS coefficients, lowest power first."""
    c = b.attribute(coefficients)
    share = c.part(7, 8)
    for power in range(6, -1, -1):
        share = share * t + c.part(power, power + 1)
    return share


def read_cells(b: Body, t: Term) -> Term:
    """Read noise of pairs at t = |w| / w_max: straight lines between knots at t = (i / 64)^2."""
    knots = b.attribute("read_noise_curve")
    last = b.op("Cast", b.op("Size", knots) - 1, to=1)
    at = b.op("Sqrt", t) * last
    knot = b.op("Min", b.op("Floor", at), last - 1.0)
    i = b.op("Cast", knot, to=7)
    left = b.op("Gather", knots, i)
    return left + (b.op("Gather", knots, i + 1) - left) * (at - knot)


def adc_top(b: Body) -> Term:
    """The largest code of an ADC."""
    return b.op("Pow", 2.0, b.op("Cast", b.attribute("adc_bits") - 1, to=1)) - 1.0


def bit_lines(
    b: Body, sums: Term, tile_axes: list[int], gain: Term, offset: Term, back: Term
) -> Term:
    """The ADC of every tile, then the digital sum over tiles and over planes.

    Planes come one after the other along axis 0 of what is left. ``gain``, ``offset`` and ``back``
    are known at load (decision 0010).
    """

    def is_converted() -> Term:
        return b.attribute("adc_bits") > 0

    # Outside the If, too: a node may have an offset for every bit line.
    largest = b.op("ReduceMax", b.op("Abs", b.attribute("adc_offset")), keepdims=0)

    def codes() -> Term:
        top = adc_top(b)
        scaled = b.choose(
            "adc_offset",
            lambda: largest > 0.0,
            lambda: sums * gain + offset,
            lambda: sums * gain,
        )
        return b.op("Clip", b.op("Round", scaled), b.op("Neg", top), top)

    read = b.choose("adc", is_converted, codes, lambda: sums)
    total = b.op("ReduceSum", read, tile_axes, keepdims=0)

    def joined() -> Term:
        bits = b.attribute("dac_bits") - b.attribute("dac_signed")
        weights = b.op("Pow", 2.0, b.op("Cast", _shifts(b, bits), to=1))
        by_plane = b.op("Reshape", total, b.op("Concat", b.op("Shape", weights), [-1], axis=0))
        planes = by_plane * b.op("Reshape", weights, [-1, 1])
        summed = b.op("ReduceSum", planes, [0], keepdims=0)
        return b.op("Reshape", summed, b.op("Concat", [-1], b.op("Shape", total).part(1), axis=0))

    whole = b.choose("serial", lambda: b.attribute("dac_serial_bits") > 0, joined, lambda: total)
    return b.choose("adc", is_converted, lambda: whole * back, lambda: whole)
