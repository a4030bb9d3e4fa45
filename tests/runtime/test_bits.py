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

from rimc_onnx import runtime

NUM_SEEDS = 12
ISAS = ("scalar", "avx2", "avx512")


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


@pytest.mark.parametrize("isa", ISAS[1:])
def test_isa_gives_the_bits_of_the_scalar_kernels(
    cases: ModuleType, scalar_outputs: dict[str, np.ndarray], isa: str, tmp_path: Path
) -> None:
    # Catches contraction, another order of a sum, a reciprocal in place of a division, and NaN or
    # negative zero treated differently by a vector instruction.
    if isa not in runtime.build_info()["available_isas"]:
        pytest.skip(f"this machine has no {isa}")
    outputs = _outputs(tmp_path / "out.npz", cases, isa=isa, num_threads=2)
    assert outputs.keys() == scalar_outputs.keys()
    for name, value in outputs.items():
        assert value.tobytes() == scalar_outputs[name].tobytes(), name


@pytest.mark.parametrize("seed", range(8))
def test_thread_count_does_not_change_bits(cases: ModuleType, seed: int) -> None:
    # Catches two tasks that share memory, and a split that cuts a sum.
    for maker in cases.MAKERS.values():
        case = maker(np.random.default_rng(100 + seed))
        one = case.run(num_threads=1)
        for num_threads in (2, 3):
            assert case.run(num_threads=num_threads).tobytes() == one.tobytes()


def test_large_shapes_split_into_tasks_without_changing_bits(cases: ModuleType) -> None:
    # The random cases are too small to be split: these take the paths of many tasks, of panels
    # shared between them, of bands of an image and of columns of a group that share an input.
    rng = np.random.default_rng(5)
    converters = {
        "tile_rows": 128,
        "dac_bits": 8,
        "dac_range": 3.0,
        "dac_signed": 1,
        "adc_bits": 8,
        "adc_range": [40.0],
        **cases.ANNOTATIONS,
    }

    def matmul(rows: int, depth: int, columns: int) -> object:
        return cases.Case(
            op="RramMatMul",
            feeds={"x": rng.standard_normal((rows, depth), dtype=np.float32)},
            constants={"w": rng.standard_normal((depth, columns), dtype=np.float32)},
            attributes={**converters, "num_tiles": -(-depth // 128)},
            oracle=lambda: np.empty(0),
        )

    def conv(batch: int, channels: int, columns: int, size: int, group: int) -> object:
        depth = channels // group
        num_tiles = -(-depth // (128 // 9))
        geometry = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": group}
        return cases.Case(
            op="RramConv",
            feeds={"x": rng.standard_normal((batch, channels, size, size), dtype=np.float32)},
            constants={"w": rng.standard_normal((columns, depth, 3, 3), dtype=np.float32)},
            attributes={
                **converters,
                **geometry,
                "num_tiles": num_tiles,
                "tile_group": group * num_tiles,
            },
            oracle=lambda: np.empty(0),
        )

    shapes = [matmul(200, 300, 200), matmul(3, 512, 600), conv(2, 16, 24, 40, 1)]
    shapes += [conv(3, 96, 96, 5, 1), conv(9, 32, 64, 2, 1), conv(2, 64, 64, 20, 64)]
    for case in shapes:
        assert case.run(num_threads=3).tobytes() == case.run(num_threads=1).tobytes()  # type: ignore[attr-defined]


def test_unknown_isa_is_refused_when_registering(cases: ModuleType, tmp_path: Path) -> None:
    # Catches a misspelt RIMC_ISA that silently tests the default kernels.
    command = [sys.executable, cases.__file__, str(tmp_path / "out.npz"), "1", "1"]
    result = subprocess.run(
        command, check=False, env={**os.environ, "RIMC_ISA": "sse9"}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "RIMC_ISA must be one of" in result.stderr
    assert "got 'sse9'" in result.stderr
