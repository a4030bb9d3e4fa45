# SPDX-License-Identifier: Apache-2.0
"""Programming by the native library gives the bits of the numpy code.

Run as a program it programs the cases with the kernels of the environment and saves the weights:
``python test_programming.py OUT.npz``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimc_onnx import convert, runtime
from rimc_onnx.device import (
    CellProgrammer,
    DeviceConfig,
    DriftLaw,
    Scaling,
    cell_law,
    get_preset,
    list_presets,
    program,
)
from rimc_onnx.device.conductance_table import make_table
from rimc_onnx.device.curves import Points, Polynomial
from rimc_onnx.device.programming import Cells
from rimc_onnx.device.time_laws import PowerDecay
from rimc_onnx.errors import ConfigError
from rimc_onnx.runtime.programming import native_programmer, program_cells

SHAPES = [((1,), 0), ((5, 1), 1), ((64, 3, 5, 5), 0), ((333, 130), 1), ((40, 1000), 0)]
"""Shape and axis of columns; less than a block, a rest of a block, runs of 1 and of many cells."""
KEYS = [(0, "conv1"), (2**64 - 1, ""), (2**33 + 7, "/layer1/conv/Conv"), (3, "\u5c64/" + "x" * 70)]
"""Seed and node: both words of the key, UTF-8, names of more than one block of sha256."""
GAUSSIANS = ("gaussian-relative", "gaussian-absolute")
DEVICES: list[dict[str, Any]] = [
    {},
    {"drift_frac": 1.0},
    {"g_min_us": 2.0, "drift_mean_frac": -0.3},
    {"drift_frac": 0.0, "drift_mean_frac": 0.125, "g_max_us": 37.0},
    {"drift_frac": 0.0, "level_bits": 2},
    {"drift_frac": 0.0, "clip_sigma": 0.5},
]
"""For the gaussian presets."""
OPTIONS: list[dict[str, Any]] = [
    {},
    {"stuck_min_frac": 0.03, "stuck_max_frac": 0.02},
    {"stuck_min_frac": 1.0},
    {"stuck_max_frac": 1.0},
    {"clip_sigma": 1.5},
    {"level_bits": 1},
    {"devices_per_weight": 3},
    {"level_bits": 12, "num_slices": 2, "stuck_max_frac": 0.5},
    {"level_bits": 3, "num_slices": 4, "devices_per_weight": 2, "clip_sigma": 0.7},
]
"""For every preset, at every time."""
ONE = Polynomial(coefficients=(1.0,))
FADING = DeviceConfig(
    preset="fading",
    law=DriftLaw.GAUSSIAN_ABSOLUTE,
    time_law=PowerDecay(
        t0_s=1.0,
        t_max_s=1e9,
        nu_mean=Points(g_us=(0.0, 10.0, 40.0), values=(-3.0, 0.5, 80.0)),
        nu_sigma=Polynomial(coefficients=(0.25,)),
    ),
)
"""Exponents of both signs, and decays beyond what exp can do."""


def law_of(config: DeviceConfig) -> Mapping[str, Any]:
    return cell_law(config, config.resolve_time(None)).values()


def weight(shape: tuple[int, ...]) -> np.ndarray:
    """Both zeros, subnormals, a dead column and sizes far apart."""
    rng = np.random.default_rng(sum(shape))
    w = rng.standard_normal(shape, dtype=np.float32)
    w.flat[::7], w.flat[3::11] = 0.0, -0.0
    w.flat[5::13] *= np.float32(1e-20)
    w.flat[6::17] = np.float32(1e-42)
    if w.ndim > 1:
        w[1 % len(w)] = 0
        w[..., -1] = 0 if w.shape[-1] > 1 else w[..., -1]
    return w


def realised(programmer: CellProgrammer | None) -> dict[str, np.ndarray]:
    """W_r of every case, which are all laws and times with all else in turn."""
    found: dict[str, np.ndarray] = {}

    def add(config: DeviceConfig, shape: tuple[int, ...], axis: int, time_s: float | None) -> None:
        seed, node = KEYS[len(found) % len(KEYS)]
        programmed = program(
            weight(shape),
            node=node,
            seed=seed,
            config=config,
            column_axis=axis,
            time_s=time_s,
            programmer=programmer,
        )
        found[f"{len(found)} {shape} {time_s} {config}"] = programmed.w_realised

    for shape, axis in SHAPES:
        for preset in GAUSSIANS:
            for scaling in Scaling:
                for device in DEVICES:
                    add(get_preset(preset, scaling=scaling, **device), shape, axis, None)
    for plain in [*map(get_preset, list_presets()), FADING]:
        for time_s in times_of(plain):
            for i, options in enumerate(OPTIONS):
                shape, axis = SHAPES[i % len(SHAPES)]
                for scaling in Scaling:
                    add(replace(plain, scaling=scaling, **options), shape, axis, time_s)
    return found


def times_of(config: DeviceConfig) -> list[float | None]:
    """The first time, one on the way and the last."""
    if config.time_range_s is None:
        return [None]
    first, last = config.time_range_s
    return sorted({first, float(np.float32(np.sqrt(max(first, 1.0) * last))), last})


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    return realised(None)


def test_native_programming_has_the_bits_of_numpy(
    isa: str, oracle: dict[str, np.ndarray], tmp_path: Path
) -> None:
    # A constant of the normal mistyped, a product and a sum contracted, a draw that a vector lane
    # shares with its neighbour, -0 or W_max = 0 treated otherwise; a table read one knot off, the
    # drift's draw taken for programming's, a slice that has its neighbour's devices.
    out = tmp_path / "out.npz"
    subprocess.run(
        [sys.executable, __file__, str(out)], check=True, env={**os.environ, "RIMC_ISA": isa}
    )
    with np.load(out) as saved:
        assert str(saved["isa"]) == isa
        for name, want in oracle.items():
            assert saved[name].tobytes() == want.tobytes(), name


@pytest.mark.parametrize("preset", GAUSSIANS)
def test_every_word_gives_the_normal_of_numpy(preset: str) -> None:
    # The tails and the border between the two branches: a million cells meet both some thousand
    # times, in all 64 places of a block.
    w = np.ones(1_000_003, np.float32)
    config = get_preset(preset, drift_frac=0.01)
    want, got = (
        program(w, node="n", seed=11, config=config, column_axis=0, programmer=r).w_realised
        for r in (None, program_cells)
    )
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 255, 256, 257, 999, 29_999])
@pytest.mark.parametrize("max_threads", [1, 2, 7])
@pytest.mark.parametrize("axis", [0, 1])
def test_cells_do_not_depend_on_where_a_part_starts(
    axis: int, start: int, max_threads: int
) -> None:
    # A part that starts within a draw, a block or a column; a thread that draws another's numbers.
    w = weight((300, 1000))
    config = get_preset("gaussian-absolute", scaling=Scaling.COLUMN)
    programmed = program(w, node="n", seed=4, config=config, column_axis=axis)
    got = program_cells(
        w.reshape(-1)[start:],
        w_max=programmed.w_max,
        run=1000 if axis == 0 else 1,
        node="n",
        seed=4,
        law=law_of(config),
        first_cell=start,
        max_threads=max_threads,
    )
    assert got.tobytes() == programmed.w_realised.reshape(-1)[start:].tobytes()


def test_last_cells_of_a_node_can_be_drawn() -> None:
    # Counter 0 is 32 bits wide: a cell number cut to 32 bits would repeat draws after a while.
    config = get_preset("gaussian-relative")
    programmer = partial(
        program_cells,
        np.ones(7, np.float32),
        w_max=np.ones(1, np.float32),
        run=1,
        node="n",
        seed=0,
        law=law_of(config),
    )
    last = programmer(first_cell=2**34 - 7)
    cells = Cells("n", 0, config, make_table(config, 0.0))
    want = cells.program(np.ones(7), np.ones(7), 2**34 - 7, is_ideal=False).astype(np.float32)
    assert last.tobytes() == want.tobytes()
    with pytest.raises(runtime.NativeLibraryError, match=r"node 'n': cells lie outside 0\.\.2\^34"):
        programmer(first_cell=2**34 - 6)
    with pytest.raises(runtime.NativeLibraryError, match="run and num_columns must be 1 or more"):
        programmer(first_cell=0, run=0)


def test_conductances_are_kept_beside_native_programming() -> None:
    # Wires would be left out if the library, which returns no conductances, did these cells.
    arguments: dict[str, Any] = {
        "node": "n",
        "seed": 5,
        "config": replace(get_preset("gaussian-relative"), level_bits=4, num_slices=2),
        "column_axis": 1,
    }
    w = weight((33, 13))
    plain = program(w, **arguments, programmer=program_cells)
    kept = program(w, **arguments, programmer=program_cells, keep_conductances=True)
    assert plain.pairs == ()
    assert len(kept.pairs) == 2
    assert kept.w_realised.tobytes() == plain.w_realised.tobytes()


def test_seed_out_of_range_is_refused_before_the_library_sees_it() -> None:
    # ctypes would cut it to 64 bits without a word.
    with pytest.raises(ConfigError, match="seed must lie in"):
        program(
            np.ones(3, np.float32),
            node="n",
            seed=2**64,
            config=get_preset("gaussian-relative"),
            column_axis=0,
            programmer=program_cells,
        )


def test_law_that_the_library_does_not_know_is_refused() -> None:
    # A law that gains a number which the library would leave out of account.
    with pytest.raises(runtime.NativeLibraryError, match="its law has no field 'stuck_frac'"):
        program_cells(
            np.ones(1, np.float32),
            w_max=np.ones(1, np.float32),
            run=1,
            node="n",
            seed=0,
            law={**law_of(get_preset("gaussian-relative")), "stuck_frac": 0.1},
        )


def test_convert_writes_the_same_file_without_the_library(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A conversion whose bytes depend on whether the library was built.
    model = digits_folder / "model.onnx"
    used = []

    def spy() -> CellProgrammer:
        programmer = native_programmer()
        assert programmer is not None
        used.append(programmer)
        return programmer

    monkeypatch.setattr("rimc_onnx.jobs.convert.native_programmer", spy)
    convert(model, digits_folder / "native.onnx")
    assert used == [program_cells]
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "_FILE_NAME", "librimc_absent.so")
    assert native_programmer() is None
    convert(model, digits_folder / "numpy.onnx")
    native, plain = (digits_folder / f"{n}.onnx" for n in ("native", "numpy"))
    assert native.read_bytes() == plain.read_bytes()


def test_cell_law_holds_every_number_of_the_device() -> None:
    # A parameter that numpy reads and the library is never told.
    plain = get_preset("gaussian-relative")
    power = replace(plain, time_law=PowerDecay(t0_s=1.0, t_max_s=9.0, nu_mean=ONE, nu_sigma=ONE))
    changes: dict[str, Any] = {
        "law": DriftLaw.GAUSSIAN_ABSOLUTE,
        "drift_frac": 0.3,
        "drift_mean_frac": 0.1,
        "g_max_us": 50.0,
        "g_min_us": 1.0,
        "stuck_min_frac": 0.1,
        "stuck_max_frac": 0.1,
        "clip_sigma": 2.0,
        "level_bits": 4,
        "devices_per_weight": 2,
    }
    for name, value in changes.items():
        assert law_of(replace(plain, **{name: value})) != law_of(plain), name
    sliced = replace(plain, level_bits=4, num_slices=2)
    assert law_of(sliced) != law_of(replace(plain, level_bits=4))
    assert cell_law(power, 1.0).values() != cell_law(power, 9.0).values()
    measured = replace(plain, law=DriftLaw.MEASURED, drift_frac=0.0, programming_sigma_us=ONE)
    assert law_of(measured)["programming_sigma_us"] == 1.0
    tested = {*changes, "num_slices", "time_law", "programming_sigma_us"}
    # scaling reaches the library as w_max; the others say where numbers come from, or are checks,
    # or belong to reads
    apart = {"preset", "source", "scaling", "g_range_us"}
    apart |= {"read_noise_frac", "read_noise_curve", "iv_sinh", "iv_polynomial"}
    assert set(DeviceConfig.__dataclass_fields__) == tested | apart


def test_table_of_another_size_is_refused() -> None:
    # Cells that read beyond the end of the knots.
    law = {**law_of(get_preset("gaussian-relative")), "mean_us": np.zeros(4096)}
    with pytest.raises(runtime.NativeLibraryError, match="mean_us must have 4097 knots, got 4096"):
        program_cells(
            np.ones(1, np.float32), w_max=np.ones(1, np.float32), run=1, node="n", seed=0, law=law
        )


def test_slices_that_no_weight_has_are_refused() -> None:
    # Shifts by more bits than a number has.
    law = {**law_of(get_preset("gaussian-relative")), "level_bits": 12, "num_slices": 3}
    with pytest.raises(runtime.NativeLibraryError, match="can't have 3 slices of 12 bits"):
        program_cells(
            np.ones(1, np.float32), w_max=np.ones(1, np.float32), run=1, node="n", seed=0, law=law
        )


if __name__ == "__main__":
    np.savez(sys.argv[1], isa=runtime.build_info()["isa"], **realised(native_programmer()))
