# SPDX-License-Identifier: Apache-2.0
"""The same bits from every instruction set and any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rimc_onnx import reference
from rimc_onnx.ops import schema

NUM_SEEDS = 12


def _outputs(path: Path, cases: ModuleType, *, isa: str, num_threads: int) -> dict[str, np.ndarray]:
    command = [sys.executable, cases.__file__, str(path), str(num_threads), str(NUM_SEEDS)]
    subprocess.run(command, check=True, env={**os.environ, "RIMC_ISA": isa})
    with np.load(path) as saved:
        outputs = dict(saved)
    assert outputs.pop("isa") == isa
    return outputs


@pytest.fixture(scope="module")
def scalar_outputs(
    cases: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("scalar") / "out.npz"
    return _outputs(path, cases, isa="scalar", num_threads=1)


def test_isa_gives_the_bits_of_the_scalar_kernels(
    cases: ModuleType, scalar_outputs: dict[str, np.ndarray], isa: str, tmp_path: Path
) -> None:
    # Catches contraction, another order of a sum, a reciprocal in place of a division, and NaN or
    # negative zero treated differently by a vector instruction.
    outputs = _outputs(tmp_path / "out.npz", cases, isa=isa, num_threads=2)
    assert outputs.keys() == scalar_outputs.keys()
    for name, value in outputs.items():
        assert value.tobytes() == scalar_outputs[name].tobytes(), name


@pytest.mark.parametrize("seed", range(8))
def test_thread_count_does_not_change_bits(cases: ModuleType, seed: int) -> None:
    # Catches two tasks that share memory, and a split that cuts a sum.
    for maker in (*cases.MAKERS.values(), cases.strip_conv_case):
        case = maker(np.random.default_rng(100 + seed))
        one = case.run(num_threads=1)
        for num_threads in (2, 3):
            assert case.run(num_threads=num_threads).tobytes() == one.tobytes()


SUMS = [  # batch, input channels, output channels, kernel, stride, size, group
    # Inputs that are read where they are: several passes, few last positions, none, many.
    (1, 136, 64, 1, 1, 14, 1),
    (1, 300, 72, 1, 1, 7, 1),
    (2, 24, 40, 1, 1, 16, 1),
    (3, 20, 12, 1, 1, 15, 1),
    (1, 64, 64, 1, 1, 13, 2),
    (1, 16, 8, 1, 1, 1, 1),
    # Small images side by side.
    (5, 40, 64, 1, 1, 7, 1),
    (4, 24, 16, 3, 1, 5, 1),
    # Phases that are others shifted: to the left, to the right, of a stride, with gaps.
    (1, 24, 64, 3, 1, 14, 1),
    (2, 72, 64, 3, 2, 14, 1),
    (2, 17, 24, 3, 2, 27, 1),
    (1, 3, 64, 7, 2, 33, 1),
    (1, 20, 16, 5, 3, 23, 1),
    (2, 16, 24, 1, 2, 28, 1),
]


@pytest.mark.parametrize("shape", SUMS)
def test_sums_of_whole_numbers_are_exact(cases: ModuleType, shape: tuple[int, ...]) -> None:
    # Catches a position, channel or block of columns that is left out, read at another's place or
    # counted twice: sums of small whole numbers have no rounding that could hide it.
    batch, channels, columns, kernel, stride, size, group = shape
    rng = np.random.default_rng(11)
    x = rng.integers(-3, 4, (batch, channels, size, size)).astype(np.float32)
    w = rng.integers(-3, 4, (columns, channels // group, kernel, kernel)).astype(np.float32)
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        **cases.IDEAL,
        "strides": [stride] * 2,
        "pads": [kernel // 2] * 4,
        "dilations": [1, 1],
        "group": group,
        "tile_group": group,
    }
    oracle = cases.rram_oracle(schema.RRAM_CONV, x, w, attributes)
    case = cases.Case(
        op=schema.RRAM_CONV,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=oracle,
    )
    for num_threads in (1, 3):
        np.testing.assert_array_equal(case.run(num_threads=num_threads), oracle())


@pytest.mark.parametrize("seed", range(16))
def test_sums_of_strips_are_exact(cases: ModuleType, seed: int) -> None:
    # The same for sums whose vectors hold columns: rows of any length along any axis, bands of a
    # volume, pads of one side, strides, gaps and groups.
    case = cases.strip_conv_case(np.random.default_rng(seed))
    np.testing.assert_array_equal(case.run(num_threads=2), case.oracle())


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 17, 49, 196])
def test_last_positions_have_the_sums_of_others(cases: ModuleType, positions: int) -> None:
    # Catches another order of sums where few positions are left for the last vector: with more
    # positions behind them the same ones are in the middle of whole vectors.
    rng = np.random.default_rng(12)
    x = rng.standard_normal((1, 200, 1, positions + 64), dtype=np.float32)
    w = rng.standard_normal((88, 200, 1, 1), dtype=np.float32)
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        **cases.IDEAL,
        "strides": [1, 1],
        "pads": [0] * 4,
        "dilations": [1, 1],
        "group": 1,
        "tile_group": 1,
    }
    outputs = []
    for part in (x[..., :positions], x):
        case = cases.Case(
            op=schema.RRAM_CONV,
            feeds={"x": np.ascontiguousarray(part)},
            constants={"w": w},
            attributes=attributes,
            oracle=cases.rram_oracle(schema.RRAM_CONV, part, w, attributes),
        )
        outputs.append(case.run())
    assert outputs[0].tobytes() == outputs[1][..., :positions].tobytes()


MATMULS = [(200, 300, 200), (3, 512, 600)]  # rows, depth, columns
CONVS = [  # batch, input channels, output channels, size, group
    (2, 16, 24, 40, 1),
    (3, 96, 96, 5, 1),
    (9, 32, 64, 2, 1),
    (2, 64, 64, 20, 64),
    # Rows that don't fill vectors: of one image, of several, in bands.
    (2, 64, 64, 8, 1),
    (5, 32, 48, 7, 2),
    (1, 32, 32, 41, 1),
]


@pytest.mark.parametrize("shape", [*MATMULS, *CONVS])
def test_large_shape_splits_into_tasks_without_changing_bits(
    cases: ModuleType, shape: tuple[int, ...]
) -> None:
    # The random cases are too small to be split: these take the paths of many tasks, of panels
    # shared between them, of bands of an image and of columns that share an input.
    rng = np.random.default_rng(5)
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "tile_rows": 128,
        "dac_bits": 8,
        "dac_range": 3.0,
        "dac_signed": 1,
        "adc_bits": 8,
        "adc_range": [40.0],
    }
    if shape in MATMULS:
        rows, depth, columns = shape
        op, x_shape, w_shape = schema.RRAM_MATMUL, (rows, depth), (depth, columns)
        attributes["num_tiles"] = schema.num_tiles(depth, 1, 128)
    else:
        batch, channels, columns, size, group = shape
        op, x_shape = schema.RRAM_CONV, (batch, channels, size, size)
        w_shape = (columns, channels // group, 3, 3)
        num_tiles = schema.num_tiles(channels // group, 9, 128)
        attributes |= {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": group}
        attributes |= {"num_tiles": num_tiles, "tile_group": group * num_tiles}
    x = rng.standard_normal(x_shape, dtype=np.float32)
    w = rng.standard_normal(w_shape, dtype=np.float32)
    oracle = cases.rram_oracle(op, x, w, attributes)
    case = cases.Case(
        op=op, feeds={"x": x}, constants={"w": w}, attributes=attributes, oracle=oracle
    )
    one = case.run(num_threads=1)
    assert case.run(num_threads=3).tobytes() == one.tobytes()
    # One ADC code at a tie, seldom (see test_numbers.py).
    step = attributes["adc_range"][0] / 127
    assert np.mean(np.abs(one - oracle()) > 0.5 * step) <= 1e-4


@pytest.mark.parametrize("adc_bits", [0, 8])
@pytest.mark.parametrize("shape", [*MATMULS, (130, 384, 1000), (1030, 140, 70)])
def test_large_noisy_matmul_splits_into_tasks_without_changing_bits(
    cases: ModuleType, shape: tuple[int, int, int], adc_bits: int
) -> None:
    # Catches draws of another row or panel: chunks of rows, panels that tasks share, columns that
    # do not fill a group of draws, and word lines that a task drives for itself.
    rows, depth, columns = shape
    rng = np.random.default_rng(8)
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "tile_rows": 128,
        "num_tiles": schema.num_tiles(depth, 1, 128),
        "dac_bits": 8,
        "dac_range": 3.0,
        "dac_signed": 1,
        "adc_bits": adc_bits,
        "adc_range": [40.0],
        "iv_sinh": 2.0,
        "read_noise": 0.05,
        "read_key": 12345678901,
    }
    x = rng.standard_normal((rows, depth), dtype=np.float32)
    w = rng.standard_normal((depth, columns), dtype=np.float32)
    oracle = cases.rram_oracle(schema.RRAM_MATMUL, x, w, attributes)
    case = cases.Case(
        op=schema.RRAM_MATMUL,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=oracle,
    )
    one = case.run(num_threads=1)
    assert case.run(num_threads=3).tobytes() == one.tobytes()
    if adc_bits == 0:
        # Sums of K products and K squares, whose root is taken: 8 K eps of their size.
        size = np.abs(x) @ np.abs(w)
        assert np.all(np.abs(one - oracle()) <= 8 * depth * cases.EPS * size)
    else:
        # One ADC code at a tie, seldom.
        step = attributes["adc_range"][0] / 127
        assert np.mean(np.abs(one - oracle()) > 0.5 * step) <= 1e-3


NOISY_CONVS = [  # batch, input channels, output channels, size, kernel, stride, group
    # Whole vectors of a row; rows that run on; several images of few positions; bands of an image.
    (2, 16, 24, 40, 3, 1, 1),
    (3, 48, 20, 5, 3, 1, 1),
    (9, 32, 64, 2, 3, 1, 1),
    (1, 64, 16, 41, 3, 2, 1),
    # Panels: of one image, of many, with the last one not full.
    (2, 160, 40, 14, 1, 1, 1),
    (7, 130, 64, 7, 1, 1, 1),
    # One image whose last position goes apart from all blocks of columns, in several passes.
    (1, 300, 72, 7, 1, 1, 1),
    # Groups whose columns begin in the middle of a counter's eight, and of one column each.
    (3, 20, 30, 9, 3, 1, 5),
    (2, 11, 11, 13, 3, 1, 11),
]


@pytest.mark.parametrize("shape", NOISY_CONVS)
def test_noisy_convolution_draws_what_the_oracle_draws(
    cases: ModuleType, shape: tuple[int, ...]
) -> None:
    # Without an ADC every draw shows. Catches one of another channel, position or image, and a
    # deviation of another window: what vectors hold where rows run on, in bands, in panels, and
    # blocks of columns that share a counter.
    batch, channels, columns, size, kernel, stride, group = shape
    pad = kernel // 2
    attributes = {
        **cases.ANNOTATIONS,
        **cases.NO_EXTRAS,
        "strides": [stride, stride],
        "pads": [pad] * 4,
        "dilations": [1, 1],
        "group": group,
        "tile_rows": 128,
        "num_tiles": schema.num_tiles(channels // group, kernel * kernel, 128),
        "dac_bits": 8,
        "dac_range": 3.0,
        "dac_signed": 1,
        "adc_bits": 0,
        "adc_range": [40.0],
        "read_noise": 0.05,
        "read_key": 12345678901,
    }
    attributes["tile_group"] = group * attributes["num_tiles"]
    rng = np.random.default_rng(9)
    x = rng.standard_normal((batch, channels, size, size), dtype=np.float32)
    w = rng.standard_normal((columns, channels // group, kernel, kernel), dtype=np.float32)
    oracle = cases.rram_oracle(schema.RRAM_CONV, x, w, attributes)
    case = cases.Case(
        op=schema.RRAM_CONV,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=oracle,
    )
    one = case.run(num_threads=1)
    assert case.run(num_threads=3).tobytes() == one.tobytes()
    # Sums of K products and K squares, whose root is taken: 8 K eps of their size.
    depth = w[0].size
    size_of_sums = cases.rram_oracle(
        schema.RRAM_CONV, np.abs(x), np.abs(w), {**attributes, "read_noise": 0.0}
    )()
    noise = 10 * 0.05 * np.sqrt(depth) * 3.0  # |z| below 5, sqrt(2), inputs up to 3
    assert np.all(np.abs(one - oracle()) <= 8 * depth * cases.EPS * (size_of_sums + noise))


@pytest.mark.parametrize("sparse_frac", [0.03, 1.0])
@pytest.mark.parametrize("shape", [*MATMULS, *CONVS])
def test_large_adapter_splits_into_tasks_without_changing_bits(
    cases: ModuleType, shape: tuple[int, ...], sparse_frac: float
) -> None:
    # As above for adapters: chunks of rows and the last part of one, passes over a panel, bands and
    # groups that find their own cells.
    rng = np.random.default_rng(6)
    attributes: dict[str, object] = {}
    if shape in MATMULS:
        rows, depth, columns = shape
        op, x_shape, h_shape = schema.DORA_MATMUL, (rows, depth), (rows, columns)
        a_shape, b_shape, ranks = [depth, 3], [3, columns], 3
        num_cells = depth * columns
    else:
        batch, channels, columns, size, group = shape
        op, x_shape = schema.DORA_CONV, (batch, channels, size, size)
        h_shape = (batch, columns, size, size)
        ranks = 3 * group
        a_shape, b_shape = [ranks, channels // group, 3, 3], [columns, 3, 1, 1]
        num_cells = columns * channels // group * 9
        attributes = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": group}
    adapter = cases.adapter(
        rng,
        a_shape=a_shape,
        b_shape=b_shape,
        ranks=ranks,
        columns=columns,
        num_cells=num_cells,
        sparse_frac=sparse_frac,
    )
    x = rng.standard_normal(x_shape, dtype=np.float32)
    h = rng.standard_normal(h_shape, dtype=np.float32)
    oracle = reference.dora_matmul if op == schema.DORA_MATMUL else reference.dora_conv
    case = cases.Case(
        op=op,
        feeds={"x": x, "h": h},
        constants=adapter,
        attributes=attributes,
        oracle=lambda: oracle(x, h, **adapter, **attributes),
    )
    want = case.oracle().tobytes()
    for num_threads in (1, 3):
        assert case.run(num_threads=num_threads).tobytes() == want


def test_unknown_isa_is_refused_when_registering(cases: ModuleType, tmp_path: Path) -> None:
    # Catches a misspelt RIMC_ISA that silently tests the default kernels.
    command = [sys.executable, cases.__file__, str(tmp_path / "out.npz"), "1", "1"]
    result = subprocess.run(
        command, check=False, env={**os.environ, "RIMC_ISA": "sse9"}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "RIMC_ISA must be one of" in result.stderr
    assert "got 'sse9'" in result.stderr
