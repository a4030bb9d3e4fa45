# SPDX-License-Identifier: Apache-2.0
"""Random one-node models with their oracle, for the tests of the native kernels.

Run as a program it computes cases with the kernels of the environment and saves the outputs:
``python cases.py OUT.npz NUM_THREADS NUM_SEEDS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from rimc_onnx import reference, runtime
from rimc_onnx.bodies import operators
from rimc_onnx.crossbar import CODED_BITS, on_grid
from rimc_onnx.device import get_preset
from rimc_onnx.ops import schema

Array = npt.NDArray[Any]
EPS = float(np.finfo(np.float32).eps)

ANNOTATIONS = {
    "node": "n",
    "device": "d",
    "device_config": get_preset("gaussian-relative").to_json(),
    "seed": 0,
    "time_s": 0.0,
    "wire_ohm": 0.0,
    "g_max_us": 150.0,
    "w_max": [1.0],
}

NO_EXTRAS = {
    "dac_serial_bits": 0,
    "iv_sinh": 0.0,
    "input_shrink": 1.0,
    "iv_square": [0.0] * schema.IV_TERMS,
    "iv_cube": [0.0] * schema.IV_TERMS,
    "adc_gain": [1.0],
    "adc_offset": [0.0],
    "read_noise": 0.0,
    "read_noise_relative": 0,
    "read_noise_curve": [0.0],
    "read_key": 0,
}
"""What a word line, a converter and a read can do beyond the ideal, switched off."""

IDEAL = {
    "tile_rows": 0,
    "num_tiles": 1,
    "dac_bits": 0,
    "dac_range": 1.0,
    "dac_signed": 1,
    "adc_bits": 0,
    "adc_range": [1.0],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One node: its inputs, its attributes, and what numpy says it gives."""

    op: str
    feeds: dict[str, Array]
    constants: dict[str, Array]
    attributes: dict[str, Any]
    oracle: Callable[..., Array]
    """Of a crossbar, ``oracle(run=n)``: what run n of a session gives."""
    depth: int = 0
    """Word lines of a column, 0 where the result is exact."""

    def model(
        self,
        *,
        constant_adapter: bool = True,
        shapes: dict[str, list[int | str]] | None = None,
        **attributes: object,
    ) -> bytes:
        """The model; ``attributes`` replace those of the case, ``None`` leaves one out."""
        inputs = dict(self.feeds) if constant_adapter else self.all_inputs()
        initializers = self.constants if constant_adapter else {}
        written = {k: v for k, v in {**self.attributes, **attributes}.items() if v is not None}
        node = onnx.helper.make_node(
            self.op,
            list(schema.OPS[self.op].inputs),
            ["y"],
            name="the_node",
            domain=schema.DOMAIN,
            **written,
        )
        graph = onnx.helper.make_graph(
            [node],
            "g",
            [
                onnx.helper.make_tensor_value_info(
                    name,
                    onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
                    (shapes or {}).get(name, list(value.shape)),
                )
                for name, value in inputs.items()
            ],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(v, name) for name, v in initializers.items()],
        )
        model = onnx.helper.make_model(
            graph,
            opset_imports=[
                onnx.helper.make_opsetid("", operators.FUNCTION_OPSET_VERSION),
                onnx.helper.make_opsetid(schema.DOMAIN, schema.VERSION),
            ],
            ir_version=8,
            functions=operators.function_protos(),
        )
        return model.SerializeToString()

    def all_inputs(self) -> dict[str, Array]:
        """Feeds of a model whose constants are inputs."""
        return {**self.feeds, **self.constants}

    def run(self, *, native: bool = True, num_threads: int = 1) -> Array:
        """The output with every constant a constant."""
        session = runtime.make_session(self.model(), native=native, num_threads=num_threads)
        return session.run(None, self.feeds)[0]

    def rounding(self) -> Array:
        """Bound on the rounding of the fp32 sum of an ideal ADC: 4 K eps sum |x| |w|."""
        curves = ("iv_square", "iv_cube")
        names = ("dac_bits", "dac_range", "dac_signed", "iv_sinh", "input_shrink", *curves)
        line = reference.Periphery(**{k: self.attributes[k] for k in names})
        ((_, x_line),) = reference.word_lines(self.feeds["x"], line)
        x = np.abs(x_line)
        ideal = {"dac_bits": 0, "adc_bits": 0, "num_tiles": 1, **NO_EXTRAS}
        total = rram_oracle(self.op, x, np.abs(self.constants["w"]), {**self.attributes, **ideal})()
        # u and t are at most 1, so a curve's terms are no larger than their coefficients say
        terms = 1 + sum(float(np.abs(self.attributes[name]).sum()) for name in curves)
        return 4 * self.depth * EPS * total * terms

    def merge_rounding(self) -> Array:
        """Bound on the rounding of a Dora node whose scales were multiplied into its matrices.

        ONNX Runtime does that to a function body. 4 eps times the terms of the merge, of which
        the branch is a sum over the rank, and one over sparse cells, of codes up to 127.
        """
        c = self.constants
        oracle = reference.dora_matmul if self.op == schema.DORA_MATMUL else reference.dora_conv
        zeros = {name: np.zeros_like(c[name]) for name in ("lora_b", "sparse_values", "bias")}
        h = np.abs(oracle(**{**self.all_inputs(), **zeros}, **self.attributes))
        rank_axis = 0 if self.op == schema.DORA_MATMUL else 1
        ranks = c["lora_b"].shape[rank_axis]
        v = 127 * np.abs(c["lora_b"].astype(np.float32)).sum(axis=rank_axis).max()
        v *= c["lora_b_scale"].max() * ranks
        # The products of a column are added in some order, so each adds a rounding.
        steps, column = _columns(self.op, c)
        sums = np.bincount(column, np.abs(c["sparse_values"].astype(np.float64)), minlength=1)
        s = 127 * sums.max() * c["sparse_scale"].max() * steps
        m = 127 * c["magnitude_scale"][0]
        return 4 * EPS * (h + (v + s) * m + np.abs(c["bias"]).max())


def cells(w: Array, attributes: dict[str, Any], column_axis: int) -> Array:
    """Cells of a crossbar; on the grid that conversion leaves them on, of most behind a DAC."""
    if not 0 < attributes["dac_bits"] <= CODED_BITS or w.size % 5 == 0:
        return w
    return on_grid(w, np.asarray(attributes["w_max"], np.float32), column_axis)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def rram_oracle(op: str, x: Array, w: Array, attributes: dict[str, Any]) -> Callable[..., Array]:
    """What numpy says of an RRAM node."""
    drop = {*ANNOTATIONS, "tile_rows", "tile_group"} - {"w_max"}
    kept = {k: v for k, v in attributes.items() if k not in drop}
    oracle = reference.rram_matmul if op == schema.RRAM_MATMUL else reference.rram_conv
    return lambda run=0: oracle(x, w, run=run, **kept)


EXTRAS = ("serial", "sinh", "poly", "gain", "offset", "absolute", "relative", "curve")


def extras(
    rng: np.random.Generator, converters: dict[str, Any], columns: int, names: Sequence[str]
) -> dict[str, Any]:
    """Attributes of the named extras, as far as the converters allow them."""
    found: dict[str, Any] = dict(NO_EXTRAS)
    count = columns * converters["num_tiles"]
    if "serial" in names and converters["dac_bits"]:
        found["dac_serial_bits"] = int(rng.integers(1, converters["dac_bits"]))
    if "sinh" in names:
        found |= {"iv_sinh": float(np.float32(rng.uniform(0.1, 6))), "input_shrink": 0.75}
    if "poly" in names:
        for name in ("iv_square", "iv_cube"):
            found[name] = rng.uniform(-0.3, 0.3, schema.IV_TERMS).astype(np.float32).tolist()
        found["w_max"] = rng.uniform(1, 3, columns).astype(np.float32).tolist()
    for name, middle in (("gain", 1.0), ("offset", 0.0)):
        if name in names:
            errors = middle + 0.05 * rng.standard_normal(count if rng.integers(2) else 1)
            found[f"adc_{name}"] = [float(e) for e in errors.astype(np.float32)]
    if {"absolute", "relative", "curve"} & set(names):
        found |= {
            "read_noise": float(np.float32(rng.uniform(0.01, 0.2))),
            "read_noise_relative": int("relative" in names),
            "read_key": int(rng.integers(-(2**63), 2**63)),
            "w_max": [float(v) for v in rng.uniform(1, 3, columns).astype(np.float32)],
        }
    if "curve" in names:
        curve = rng.uniform(0, 1, schema.NOISE_KNOTS).astype(np.float32)
        found |= {"read_noise_relative": 0, "read_noise_curve": curve.tolist()}
    return found


def periphery(
    rng: np.random.Generator,
    *,
    columns: int,
    depth: int,
    window: int,
    adc: bool | None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Random converters and tiles; ``adc`` None is either."""
    tile_rows = int(rng.choice([0, window * max(1, depth // 3), window * max(1, depth // 2) + 1]))
    num_tiles = schema.num_tiles(depth, window, tile_rows or None)
    has_adc = bool(rng.integers(2)) if adc is None else adc
    ranges = rng.uniform(1, 4, columns if rng.integers(2) else 1) * np.sqrt(depth * window)
    converters = {
        "tile_rows": tile_rows,
        "num_tiles": num_tiles,
        "dac_bits": int(rng.choice([0, 4, 8])),
        "dac_range": 2.5,
        "dac_signed": int(rng.integers(2)),
        "adc_bits": int(rng.choice([4, 8])) if has_adc else 0,
        "adc_range": [float(r) for r in ranges.astype(np.float32)],
    }
    return converters | extras(rng, converters, columns, names)


def rram_matmul_case(
    rng: np.random.Generator, *, adc: bool | None = None, names: Sequence[str] = ()
) -> Case:
    """Depths over a cache block, widths over a panel, any number of leading axes; EXTRAS."""
    depth, columns = int(rng.integers(1, 400)), int(rng.integers(1, 120))
    lead = [int(n) for n in rng.integers(1, 8, rng.integers(0, 4))]
    x, w = _normal(rng, *lead, depth), _normal(rng, depth, columns)
    attributes = ANNOTATIONS | periphery(
        rng, columns=columns, depth=depth, window=1, adc=adc, names=names
    )
    w = cells(w, attributes, 1)
    return Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=rram_oracle(schema.RRAM_MATMUL, x, w, attributes),
        depth=depth,
    )


def _conv_geometry(rng: np.random.Generator) -> tuple[dict[str, Any], list[int], list[int], int]:
    """Attributes, kernel, input size, channels per group."""
    rank = int(rng.integers(1, 4))
    plain = rng.random() < 0.4  # the common case has code of its own
    kernel = [int(rng.choice([1, 3]))] * rank if plain else rng.integers(1, 4, rank).tolist()
    strides = [1] * rank if plain else rng.integers(1, 4, rank).tolist()
    dilations = [1] * rank if plain else rng.integers(1, 3, rank).tolist()
    pads = rng.integers(0, 3, 2 * rank).tolist()
    most = {1: 70, 2: 20, 3: 7}[rank]
    size = []
    for axis in range(rank):
        window = dilations[axis] * (kernel[axis] - 1) + 1
        least = max(1, window - pads[axis] - pads[rank + axis])
        size.append(int(rng.integers(least, most + window)))
    group = int(rng.choice([1, 1, 2, 3]))
    depth = int(rng.integers(1, 12))
    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return attributes, kernel, size, depth


def rram_conv_case(
    rng: np.random.Generator, *, adc: bool | None = None, names: Sequence[str] = ()
) -> Case:
    """One to three axes, groups (one in five is depthwise), strides, dilations, pads; EXTRAS."""
    geometry, kernel, size, depth = _conv_geometry(rng)
    columns_g = int(rng.integers(1, 20))
    if rng.random() < 0.2:
        geometry["group"], depth, columns_g = int(rng.integers(2, 20)), 1, 1
    group = geometry["group"]
    x = _normal(rng, int(rng.integers(1, 6)), group * depth, *size)
    w = _normal(rng, group * columns_g, depth, *kernel)
    window = int(np.prod(kernel))
    converters = periphery(rng, columns=len(w), depth=depth, window=window, adc=adc, names=names)
    tile_group = group * converters["num_tiles"]
    attributes = ANNOTATIONS | converters | geometry | {"tile_group": tile_group}
    w = cells(w, attributes, 0)
    return Case(
        op=schema.RRAM_CONV,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=rram_oracle(schema.RRAM_CONV, x, w, attributes),
        depth=depth * window,
    )


def strip_conv_case(rng: np.random.Generator) -> Case:
    """Ideal sums of many small whole numbers for full blocks of columns: exact in any order."""
    geometry, kernel, size, _ = _conv_geometry(rng)
    if len(kernel) > 1 and rng.random() < 0.25:  # rows along the axis before
        kernel[-1] = size[-1] = geometry["strides"][-1] = 1
        geometry["pads"][len(kernel) - 1] = geometry["pads"][-1] = 0
    group = geometry["group"]
    depth = 256 // int(np.prod(kernel)) + int(rng.integers(1, 9))
    columns = group * 32 * int(rng.integers(1, 3))
    x = rng.integers(-3, 4, (int(rng.integers(1, 4)), group * depth, *size)).astype(np.float32)
    w = rng.integers(-3, 4, (columns, depth, *kernel)).astype(np.float32)
    attributes = ANNOTATIONS | NO_EXTRAS | IDEAL | geometry | {"tile_group": group}
    return Case(
        op=schema.RRAM_CONV,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=rram_oracle(schema.RRAM_CONV, x, w, attributes),
    )


def _columns(op: str, adapter: dict[str, Array]) -> tuple[int, Array]:
    """Cells of a column of the matrix, and the column of every sparse value."""
    a_shape, index = adapter["lora_a"].shape, adapter["sparse_index"]
    if op == schema.DORA_MATMUL:
        return a_shape[0], index % adapter["lora_b"].shape[1]
    steps = int(np.prod(a_shape[1:]))
    return steps, index // steps


SPARSE_FRACS = (0.0, 0.03, 0.15, 0.6, 1.0)


def sparse_cells(rng: np.random.Generator, num_cells: int, frac: float) -> dict[str, Array]:
    """``frac`` of the cells, one at least unless it is 0; in order, in any order, or reversed."""
    count = min(num_cells, int(np.ceil(frac * num_cells)))
    index = rng.permutation(num_cells)[:count].astype(np.int64)
    order = rng.integers(3)
    if order > 0:
        index = np.sort(index)[:: 1 if order == 1 else -1]
    return {
        "sparse_values": rng.integers(-127, 128, count).astype(np.int8),
        "sparse_index": np.ascontiguousarray(index),
    }


def _rank(rng: np.random.Generator, most: int, has_rank: bool | None) -> int:
    """Where ``has_rank`` is None, rank 0 is one case of four."""
    if has_rank is None:
        has_rank = rng.random() >= 0.25
    return int(rng.integers(1, most)) if has_rank else 0


def adapter(
    rng: np.random.Generator,
    *,
    a_shape: list[int],
    b_shape: list[int],
    ranks: int,
    columns: int,
    num_cells: int,
    sparse_frac: float | None,
) -> dict[str, Array]:
    if sparse_frac is None:
        sparse_frac = float(rng.choice(SPARSE_FRACS))
    scales = columns if rng.integers(2) else 1
    sparse_scales = columns if rng.integers(2) else 1
    return {
        "lora_a": rng.integers(-127, 128, a_shape).astype(np.int8),
        "lora_b": rng.integers(-127, 128, b_shape).astype(np.int8),
        "magnitude": rng.integers(1, 128, columns).astype(np.int8),
        "x_scale": np.array([0.02], np.float32),
        "rank_step": rng.uniform(1, 200, ranks).astype(np.float32),
        "lora_b_scale": rng.uniform(1e-4, 1e-3, scales).astype(np.float32),
        "magnitude_scale": np.array([1 / 64], np.float32),
        "bias": _normal(rng, columns),
        **sparse_cells(rng, num_cells, sparse_frac),
        "sparse_scale": rng.uniform(1e-4, 1e-3, sparse_scales).astype(np.float32),
    }


def dora_matmul_case(
    rng: np.random.Generator, *, has_rank: bool | None = None, sparse_frac: float | None = None
) -> Case:
    """Ranks over what the kernels unroll and none, sparse cells from none to all."""
    depth, columns = (int(rng.integers(1, most)) for most in (300, 120))
    rank = _rank(rng, 11, has_rank)
    lead = [int(n) for n in rng.integers(1, 12, rng.integers(0, 4))]
    x, h = _normal(rng, *lead, depth), _normal(rng, *lead, columns)
    constants = adapter(
        rng,
        a_shape=[depth, rank],
        b_shape=[rank, columns],
        ranks=rank,
        columns=columns,
        num_cells=depth * columns,
        sparse_frac=sparse_frac,
    )
    return Case(
        op=schema.DORA_MATMUL,
        feeds={"x": x, "h": h},
        constants=constants,
        attributes={},
        oracle=lambda: reference.dora_matmul(x, h, **constants),
    )


def dora_conv_case(
    rng: np.random.Generator, *, has_rank: bool | None = None, sparse_frac: float | None = None
) -> Case:
    """Ranks over a block of rows and none, sparse cells from none to all, every geometry."""
    geometry, kernel, size, depth = _conv_geometry(rng)
    group, columns_g = geometry["group"], int(rng.integers(1, 20))
    columns, most = group * columns_g, 20 if rng.random() < 0.2 else 5
    rank = _rank(rng, most, has_rank)
    x = _normal(rng, int(rng.integers(1, 6)), group * depth, *size)
    windows = reference.im2col(
        x, kernel, geometry["strides"], geometry["pads"], geometry["dilations"]
    )
    h = _normal(rng, len(x), columns, *windows.shape[1 : 1 + len(kernel)])
    constants = adapter(
        rng,
        a_shape=[group * rank, depth, *kernel],
        b_shape=[columns, rank, *[1] * len(kernel)],
        ranks=group * rank,
        columns=columns,
        num_cells=columns * depth * int(np.prod(kernel)),
        sparse_frac=sparse_frac,
    )
    return Case(
        op=schema.DORA_CONV,
        feeds={"x": x, "h": h},
        constants=constants,
        attributes=geometry,
        oracle=lambda: reference.dora_conv(x, h, **constants, **geometry),
    )


MAKERS: dict[str, Callable[..., Case]] = {
    schema.RRAM_MATMUL: rram_matmul_case,
    schema.RRAM_CONV: rram_conv_case,
    schema.DORA_MATMUL: dora_matmul_case,
    schema.DORA_CONV: dora_conv_case,
}


def main(out: str, num_threads: str, num_seeds: str) -> None:
    """Save the outputs of the first seeds of every operator."""
    outputs = {
        f"{op}-{seed}": maker(np.random.default_rng(seed)).run(num_threads=int(num_threads))
        for op, maker in MAKERS.items()
        for seed in range(int(num_seeds))
    }
    for seed in range(int(num_seeds)):
        case = strip_conv_case(np.random.default_rng(seed))
        outputs[f"strips-{seed}"] = case.run(num_threads=int(num_threads))
    for op in (schema.RRAM_MATMUL, schema.RRAM_CONV):
        for seed in range(int(num_seeds)):
            rng = np.random.default_rng(100 + seed)
            names = [name for name in EXTRAS if rng.integers(2)]
            case = MAKERS[op](rng, names=names)
            outputs[f"{op}-extras-{seed}"] = case.run(num_threads=int(num_threads))
    np.savez(out, isa=runtime.build_info()["isa"], **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
