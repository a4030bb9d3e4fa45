# SPDX-License-Identifier: Apache-2.0
"""Random nodes of every operator, and the two bounds that the output of a crossbar lies between.

A case is a pure function of its number: ``random_node(n)`` is node n on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from cases import ANNOTATIONS, NO_EXTRAS, cells

from rimc_onnx import reference
from rimc_onnx.ops import schema

Array = npt.NDArray[Any]
_F32 = np.float32
EPS = float(np.finfo(_F32).eps)
DENORMAL = 2.0**-149
"""Rounding of a float32 below the normal numbers."""

MAX_PRODUCTS = 4e5
"""Of one node, so that thousands take minutes; one node in fifty may have ten times as many."""


@dataclass(frozen=True, kw_only=True)
class RandomNode:
    """One node; ``feeds`` are what a run gives, ``constants`` the other inputs."""

    number: int
    op: str
    feeds: dict[str, Array]
    constants: dict[str, Array]
    attributes: dict[str, Any]
    kernel: list[int] = field(default_factory=list)
    """Of a convolution."""

    def cut(self) -> RandomNode:
        """The same node fed with the first half of its batch, possibly nothing."""
        feeds = {k: v[: len(v) // 2] if v.ndim > 1 else v for k, v in self.feeds.items()}
        return RandomNode(**{**self.__dict__, "feeds": feeds})

    def oracle(self, run: int = 0) -> Array:
        """What numpy says."""
        operands = {**self.feeds, **self.constants}
        names = {*reference.Periphery.__dataclass_fields__, "num_tiles"}
        names |= {"strides", "pads", "dilations", "group"}
        kept = {k: v for k, v in self.attributes.items() if k in names}
        functions = {
            schema.RRAM_MATMUL: reference.rram_matmul,
            schema.RRAM_CONV: reference.rram_conv,
            schema.DORA_MATMUL: reference.dora_matmul,
            schema.DORA_CONV: reference.dora_conv,
        }
        if self.op in (schema.RRAM_MATMUL, schema.RRAM_CONV):
            kept["run"] = run
        with np.errstate(all="ignore"):
            return functions[self.op](**operands, **kept)


def log_uniform(rng: np.random.Generator, most: int) -> int:
    """1 .. most, small numbers more often."""
    return int(np.exp(rng.uniform(0, np.log(most + 1))))


def _values(rng: np.random.Generator, shape: Sequence[int], *, finite: bool = False) -> Array:
    """Normals; a tenth of all tensors is tiny, huge, has ties, or is not finite in some places."""
    x = rng.standard_normal(tuple(shape), dtype=_F32)
    kind = rng.integers(40)
    if kind == 0:
        x *= _F32(10.0) ** _F32(rng.integers(-42, 0))
    elif kind == 1:
        x *= _F32(10.0) ** _F32(rng.integers(1, 38))
    elif kind == 2:
        x = (np.rint(x * 4) / 4).astype(_F32)
    elif kind == 3 and x.size and not finite:
        odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38, 1e-45], _F32)
        at = rng.integers(x.size, size=int(rng.integers(1, 4)))
        x.reshape(-1)[at] = rng.choice(odd, len(at))
    return x


def _bits(rng: np.random.Generator, least: int) -> int:
    return 0 if rng.random() < 0.35 else int(rng.choice([rng.integers(least, 25), 4, 8]))


def _floats(values: Any) -> list[float]:
    return [float(v) for v in np.atleast_1d(np.asarray(values, _F32))]


def periphery(rng: np.random.Generator, *, columns: int, depth: int, window: int) -> dict[str, Any]:
    """Converters, tiles and noise; each is absent as often as not."""
    tile_rows = 0
    if rng.random() < 0.6:
        tile_rows = window * int(rng.integers(1, depth + 2)) + int(rng.integers(0, window))
    num_tiles = schema.num_tiles(depth, window, tile_rows or None)
    signed = int(rng.integers(2))
    dac_bits = _bits(rng, 1)
    dac_bits = 2 if dac_bits == 1 and signed else dac_bits
    ranges = rng.uniform(0.2, 4, columns if rng.integers(2) else 1) * np.sqrt(depth * window)
    far = 10.0 ** rng.integers(-30, 31) if rng.random() < 0.03 else 1.0
    found: dict[str, Any] = {
        **NO_EXTRAS,
        "tile_rows": tile_rows,
        "num_tiles": num_tiles,
        "dac_bits": dac_bits,
        "dac_range": _floats(rng.uniform(0.5, 4) * (far if rng.integers(2) else 1.0))[0],
        "dac_signed": signed,
        "adc_bits": _bits(rng, 2),
        "adc_range": _floats(ranges * far),
        "w_max": [1.0],
    }
    if dac_bits > signed and rng.random() < 0.3:
        found["dac_serial_bits"] = int(rng.integers(1, dac_bits - signed + 1))
    if rng.random() < 0.3:
        found["iv_sinh"] = _floats(rng.uniform(0, schema.MAX_IV_SINH))[0]
        found["input_shrink"] = _floats(rng.uniform(0.1, 1))[0]
    count = columns * num_tiles
    if rng.random() < 0.3:
        gain = 1.0 + 0.1 * rng.uniform(-1, 1, count if rng.integers(2) else 1)
        found["adc_gain"] = _floats(gain)
    if rng.random() < 0.3:
        found["adc_offset"] = _floats(0.1 * rng.standard_normal(count if rng.integers(2) else 1))
    if rng.random() < 0.35:
        found |= {
            "read_noise": _floats(rng.choice([1e-3, 0.1, 1.0]))[0],
            "read_noise_relative": int(rng.integers(2)),
            "read_key": int(rng.integers(-(2**63), 2**63)),
            "w_max": _floats(rng.uniform(0, 3, columns if rng.integers(2) else 1)),
        }
        if rng.random() < 0.4:
            knots = rng.uniform(0, 1, schema.NOISE_KNOTS) * rng.integers(2, size=schema.NOISE_KNOTS)
            found |= {"read_noise_relative": 0, "read_noise_curve": _floats(knots)}
    if rng.random() < 0.25:
        found |= _polynomial(rng, columns)
    return found


def _polynomial(rng: np.random.Generator, columns: int) -> dict[str, list[float]]:
    """An I-V curve that follows the weight: both terms, or one; a W_max that cells go beyond."""
    both = ("iv_square", "iv_cube")
    names = (both[:1], both[1:], both)[rng.integers(3)]
    curve = {name: _floats(rng.uniform(-0.3, 0.3, schema.IV_TERMS)) for name in names}
    return curve | {"w_max": _floats(rng.uniform(0, 4, columns if rng.integers(2) else 1))}


def _most(rng: np.random.Generator) -> float:
    return MAX_PRODUCTS * (10 if rng.random() < 0.02 else 1)


def _lead(rng: np.random.Generator, row_products: int) -> list[int]:
    """Up to four leading axes, one case in twenty without a row."""
    most = _most(rng) / row_products
    lead: list[int] = []
    for _ in range(int(rng.integers(0, 5))):
        lead.append(log_uniform(rng, int(max(1, min(300, most)))))
        most /= lead[-1]
    if lead and rng.random() < 0.05:
        lead[int(rng.integers(len(lead)))] = 0
    return lead


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    attributes: dict[str, Any]
    kernel: list[int]
    size: list[int]
    out: list[int]
    group: int
    depth: int
    columns: int
    """Of a group."""
    batch: int


def geometry(rng: np.random.Generator) -> _Geometry:
    rank = int(rng.integers(1, 4))
    plain = rng.random() < 0.4  # the common case has code of its own
    kernel = [int(rng.choice([1, 3]))] * rank if plain else rng.integers(1, 6, rank).tolist()
    strides = [int(rng.integers(1, 3))] * rank if plain else rng.integers(1, 5, rank).tolist()
    dilations = [1] * rank if plain else rng.integers(1, 4, rank).tolist()
    pads = [kernel[0] // 2] * (2 * rank) if plain else rng.integers(0, 5, 2 * rank).tolist()
    depthwise = rng.random() < 0.2
    group = log_uniform(rng, 24) if depthwise or rng.random() < 0.3 else 1
    depth = 1 if depthwise else log_uniform(rng, 24)
    columns = int(rng.integers(1, 3)) if depthwise else log_uniform(rng, 40)
    most = _most(rng) / (group * columns * depth * int(np.prod(kernel)))
    size, out = [], []
    for axis in range(rank):
        window = dilations[axis] * (kernel[axis] - 1) + 1
        padded = window + strides[axis] * (log_uniform(rng, int(max(1, min(80, most)))) - 1)
        size.append(max(padded - pads[axis] - pads[rank + axis], 0))
        padded = size[-1] + pads[axis] + pads[rank + axis]
        out.append((padded - window) // strides[axis] + 1)
        most /= out[-1]
    batch = 0 if rng.random() < 0.03 else log_uniform(rng, int(max(1, min(9, most))))
    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return _Geometry(
        attributes=attributes,
        kernel=kernel,
        size=size,
        out=out,
        group=group,
        depth=depth,
        columns=columns,
        batch=batch,
    )


def _rram_matmul(rng: np.random.Generator, number: int) -> RandomNode:
    depth, columns = log_uniform(rng, 700), log_uniform(rng, 250)
    x = _values(rng, [*_lead(rng, depth * columns), depth])
    w = _values(rng, [depth, columns], finite=True)
    attributes = ANNOTATIONS | periphery(rng, columns=columns, depth=depth, window=1)
    return RandomNode(
        number=number,
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": cells(w, attributes, 1)},
        attributes=attributes,
    )


def _rram_conv(rng: np.random.Generator, number: int) -> RandomNode:
    g = geometry(rng)
    columns, window = g.group * g.columns, int(np.prod(g.kernel))
    attributes = periphery(rng, columns=columns, depth=g.depth, window=window) | g.attributes
    attributes["tile_group"] = g.group * attributes["num_tiles"]
    return RandomNode(
        number=number,
        op=schema.RRAM_CONV,
        feeds={"x": _values(rng, [g.batch, g.group * g.depth, *g.size])},
        constants={
            "w": cells(_values(rng, [columns, g.depth, *g.kernel], finite=True), attributes, 0)
        },
        attributes=ANNOTATIONS | attributes,
        kernel=g.kernel,
    )


def _rank(rng: np.random.Generator) -> int:
    """0 one time in five, up to 12 most times, up to the most there may be one time in fifty."""
    kind = rng.random()
    if kind < 0.2:
        return 0
    return int(rng.integers(1, schema.MAX_RANK + 1)) if kind > 0.98 else log_uniform(rng, 12)


def _adapter(
    rng: np.random.Generator, *, a: list[int], b: list[int], ranks: int, columns: int, cells: int
) -> dict[str, Array]:
    frac = float(rng.choice([0.0, 0.0, 0.01, 0.1, 0.3, 0.35, 1.0]))
    count = min(cells, int(np.ceil(frac * cells)))
    index = rng.permutation(cells)[:count].astype(np.int64)
    if rng.integers(2):
        index = np.sort(index)
    silent = rng.random() < 0.05

    def scale(least: float, most: float) -> Array:
        shape = columns if rng.integers(2) else 1
        return rng.uniform(least, most, shape).astype(_F32)

    return {
        "lora_a": rng.integers(-128, 128, a).astype(np.int8),
        "lora_b": (rng.integers(-128, 128, b) * (not silent)).astype(np.int8),
        "magnitude": rng.integers(-128, 128, columns).astype(np.int8),
        "x_scale": _floats_array(rng.choice([0.02, 0.3, 1e-6])),
        "rank_step": rng.uniform(0.3, 300, ranks).astype(_F32),
        "lora_b_scale": scale(1e-4, 1e-3),
        "magnitude_scale": _floats_array(1 / 64),
        "bias": _values(rng, [columns]),
        "sparse_values": rng.integers(-128, 128, count).astype(np.int8),
        "sparse_index": np.ascontiguousarray(index),
        "sparse_scale": scale(1e-4, 1e-3),
    }


def _floats_array(value: float) -> Array:
    return np.array([value], _F32)


def _dora_matmul(rng: np.random.Generator, number: int) -> RandomNode:
    depth, columns, rank = log_uniform(rng, 700), log_uniform(rng, 250), _rank(rng)
    lead = _lead(rng, (depth + columns) * (rank + 1) + depth * columns)
    adapter = _adapter(
        rng,
        a=[depth, rank],
        b=[rank, columns],
        ranks=rank,
        columns=columns,
        cells=depth * columns,
    )
    return RandomNode(
        number=number,
        op=schema.DORA_MATMUL,
        feeds={"x": _values(rng, [*lead, depth]), "h": _values(rng, [*lead, columns])},
        constants=adapter,
        attributes={},
    )


def _dora_conv(rng: np.random.Generator, number: int) -> RandomNode:
    g = geometry(rng)
    columns, steps = g.group * g.columns, g.depth * int(np.prod(g.kernel))
    products = g.batch * int(np.prod(g.out)) * columns * steps
    rank = min(_rank(rng), max(1, int(10 * MAX_PRODUCTS // max(1, products))))
    # A sum of |lora_a| or |sparse_values| over more cells might be beyond schema.MAX_CODE_SUM.
    assert steps * 127 <= schema.MAX_CODE_SUM * 3
    adapter = _adapter(
        rng,
        a=[g.group * rank, g.depth, *g.kernel],
        b=[columns, rank, *[1] * len(g.kernel)],
        ranks=g.group * rank,
        columns=columns,
        cells=columns * steps,
    )
    for name in ("lora_a", "sparse_values"):
        adapter[name] //= np.int8(1 + steps * 127 // schema.MAX_CODE_SUM)
    return RandomNode(
        number=number,
        op=schema.DORA_CONV,
        feeds={
            "x": _values(rng, [g.batch, g.group * g.depth, *g.size]),
            "h": _values(rng, [g.batch, columns, *g.out]),
        },
        constants=adapter,
        attributes=g.attributes,
        kernel=g.kernel,
    )


_MAKERS = (_rram_matmul, _rram_conv, _dora_matmul, _dora_conv)


def random_node(number: int) -> RandomNode:
    """Node ``number``; the four operators take turns."""
    rng = np.random.default_rng([20260917, number])
    return _MAKERS[number % 4](rng, number)


def _rows(node: RandomNode, x: Array) -> Array:
    """What the word lines carry, by output position: [P, groups, channels, window]."""
    if node.op == schema.RRAM_MATMUL:
        return x.reshape(-1, 1, x.shape[-1], 1)
    a = node.attributes
    windows = reference.im2col(x, node.kernel, a["strides"], a["pads"], a["dilations"])
    window = int(np.prod(node.kernel))
    positions = int(np.prod(windows.shape[: 1 + len(node.kernel)]))
    return windows.reshape(positions, a["group"], x.shape[1] // a["group"], window)


def _cells(node: RandomNode, w: Array) -> Array:
    """[groups, columns of a group, channels, window]."""
    if node.op == schema.RRAM_MATMUL:
        return np.ascontiguousarray(w.T)[None, :, :, None]
    return w.reshape(node.attributes["group"], -1, w.shape[1], int(np.prod(node.kernel)))


def _sums(rows: Array, cells: Array) -> Array:
    """[P, M], float64."""
    products = np.einsum(
        "pgck,gmck->pgm", rows.astype(np.float64), cells.astype(np.float64), optimize=True
    )
    return products.reshape(len(rows), cells.shape[0] * cells.shape[1])


def _noise_cells(node: RandomNode, p: reference.Periphery) -> Array:
    """What x^2 is multiplied by, as _cells."""
    w = node.constants["w"]
    if p.read_noise_relative:
        return _cells(node, np.square(w, dtype=_F32))
    if len(p.read_noise_curve) == 1:
        return _cells(node, np.ones_like(w))
    by_column = np.float32(np.maximum(p.w_max, 1e-30))
    if node.op == schema.RRAM_CONV:
        by_column = by_column.reshape(-1, *[1] * (w.ndim - 1))
    at = 64 * np.sqrt(np.minimum(np.abs(w) / by_column, _F32(1)))
    # numpy's own interpolation, in float64: a few float32 roundings away
    q = np.interp(at, np.arange(schema.NOISE_KNOTS), p.read_noise_curve) * by_column
    return _cells(node, np.square(q))


def _noise(p: reference.Periphery, rows: Array, cells: Array, z: Array) -> tuple[Array, Array]:
    """Noise of the sums [P, M] with ``cells`` of _noise_cells, and how far that of a kernel may be
    from it."""
    variance = _sums(np.square(rows, dtype=_F32), cells)
    deviation = np.full(1, p.read_noise)
    by_cell = p.read_noise_relative or len(p.read_noise_curve) > 1
    if not by_cell:
        deviation = np.sqrt(2.0) * p.read_noise * np.asarray(p.w_max)
    steps = rows.shape[2] * rows.shape[3]
    # A root halves what is relative, and makes much of what is not.
    error = 4 * steps * EPS * np.sqrt(variance) + np.sqrt(2 * steps * DENORMAL)
    if len(p.read_noise_curve) > 1:
        # A knot's place is 64 sqrt(t), off by 4 eps of up to 64, and knots are up to 1 apart.
        largest = np.sqrt(_sums(np.square(rows, dtype=_F32), np.ones_like(cells)))
        error += 300 * EPS * largest * max(*p.w_max, 1e-30)
    spread = np.abs(z) * deviation
    return np.sqrt(variance) * deviation * z, error * spread


def _codes(p: reference.Periphery, value: Array, tile: int, up: bool) -> Array:
    """The largest (``up``) or least code that a converter may make of sums [P, M] of a tile."""
    top, columns = 2.0 ** (p.adc_bits - 1) - 1, value.shape[1]
    gain, offset = (
        v if len(v) == 1 else v[tile * columns : (tile + 1) * columns]
        for v in (np.asarray(p.adc_gain, _F32), np.asarray(p.adc_offset, _F32))
    )
    scale = gain * (_F32(top) / np.asarray(p.adc_range, _F32))
    analog = value * scale.astype(np.float64) + offset.astype(np.float64) * top
    # The products and the sum before the rounding are float32.
    slack = 4 * EPS * (np.abs(analog) + np.abs(offset * top))
    return np.clip(np.rint(analog + (slack if up else -slack)), -top, top)


def bounds(node: RandomNode, run: int = 0) -> tuple[Array, Array]:
    """The least and the largest output that an RRAM node may give, not finite where unknown.

    A kernel adds K float32 products in an order of its own: each sum is within 4 K eps sum |x w| of
    the exact one, and so is what a converter, which is monotone, makes of it.
    """
    names = reference.Periphery.__dataclass_fields__
    p = reference.Periphery(**{k: v for k, v in node.attributes.items() if k in names})
    with np.errstate(all="ignore"):
        low, high = _bounds(node, p, run)
    return _as_output(node, low), _as_output(node, high)


def _bounds(node: RandomNode, p: reference.Periphery, run: int) -> tuple[Array, Array]:
    x, w = node.feeds["x"], node.constants["w"]
    column_axis = 1 if node.op == schema.RRAM_MATMUL else 0
    cells = _cells(node, w)
    reads = node.attributes["num_tiles"] if p.adc_bits else 1
    tile = -(-cells.shape[2] // reads)
    shape = (len(_rows(node, x)), cells.shape[0] * cells.shape[1])
    low, high, size = (np.zeros(shape) for _ in range(3))
    by_channel = node.op == schema.RRAM_CONV
    noisy = _noise_cells(node, p)
    planes = reference.word_lines(x, p)
    for plane, (weight, v) in enumerate(planes):
        terms = reference.iv_terms(v, w, p, column_axis)
        products = [(_rows(node, a), _cells(node, b)) for a, b in [(v, w), *terms]]
        for t in range(reads):
            part = slice(t * tile, (t + 1) * tile)
            parts = [(a[:, :, part], b[:, :, part]) for a, b in products]
            r = parts[0][0]
            steps = r.shape[2] * r.shape[3]
            value = np.sum([_sums(a, b) for a, b in parts], axis=0)
            # The sums of up to three products are added: two roundings more.
            rounds = 4 * (steps + 2 * len(terms))
            size_of_all = np.sum([_sums(np.abs(a), np.abs(b)) for a, b in parts], axis=0)
            error = rounds * EPS * size_of_all + rounds * DENORMAL
            if p.read_noise:
                z = reference.read_noise(
                    p, run=run, stream=plane * reads + t, shape=shape, by_channel=by_channel
                )
                noise, noise_error = _noise(p, r, noisy[:, :, part], z)
                value, error = value + noise, error + noise_error + 4 * EPS * np.abs(noise)
            ends = value - error, value + error
            if p.adc_bits:
                ends = _codes(p, ends[0], t, False), _codes(p, ends[1], t, True)
            low += float(weight) * ends[0]
            high += float(weight) * ends[1]
            size += float(weight) * np.abs(ends).max(axis=0)
    rounding = 4 * EPS * reads * len(planes) * size
    step = np.asarray(p.adc_range) / (2.0 ** (p.adc_bits - 1) - 1) if p.adc_bits else 1.0
    return (low - rounding) * step - 4 * DENORMAL, (high + rounding) * step + 4 * DENORMAL


def _as_output(node: RandomNode, y: Array) -> Array:
    """[P, M] as the node gives it."""
    x = node.feeds["x"]
    if node.op == schema.RRAM_MATMUL:
        return y.reshape(*x.shape[:-1], y.shape[1])
    a = node.attributes
    image = reference.im2col(x, node.kernel, a["strides"], a["pads"], a["dilations"]).shape
    return np.moveaxis(y.reshape(*image[: 1 + len(node.kernel)], y.shape[1]), -1, 1)
