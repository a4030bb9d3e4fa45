# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimc_onnx.calibration.gram import Gram
from rimc_onnx.calibration.problem import Statistics
from rimc_onnx.errors import CalibrationError, OutputError
from rimc_onnx.execution.feed import Feed
from rimc_onnx.io.statistics_file import (
    TeacherKnowledge,
    read_statistics,
    write_statistics,
)

SHA = "0" * 64


def statistics(seed: int, group: int = 2, depth: int = 5, columns: int = 3) -> Statistics:
    random = np.random.default_rng(seed)
    x = random.standard_normal((group, 20, depth)).astype(np.float32)
    return Statistics(
        x_mean=x.mean(axis=1),
        x_cov=Gram(matrix=x.transpose(0, 2, 1) @ x),
        y_mean=random.standard_normal((group, columns)).astype(np.float32),
        y_variance=random.uniform(size=(group, columns)).astype(np.float32),
        x_abs_max=float(np.abs(x).max()),
        sensitivity=None if seed % 3 else float(seed),
        row_limit=math.inf if seed % 2 else float(seed + 1),
    )


def written(path: Path, *reference: Feed, **nodes: Statistics) -> Path:
    knowledge = TeacherKnowledge(
        statistics=nodes or {"n": statistics(0)}, reference=list(reference)
    )
    write_statistics(path, knowledge, teacher_sha256=SHA, force=True)
    return path


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    # The lower half of X'X from the upper one, of another group; names with slashes, as PyTorch
    # exports them, or that look like a part; a sensitivity of 0 for one that is not known.
    nodes = {
        "/layer1/conv/Conv": statistics(1),
        "fc": statistics(2, group=1, depth=1, columns=1),
        "a/x_mean": statistics(3),
        "": statistics(4),
        "Gemm_3.npy": statistics(5),
        "n\N{LATIN SMALL LETTER O WITH DIAERESIS}de": statistics(6),
    }
    path = written(tmp_path / "t.npz", **nodes)
    found = read_statistics(path, teacher_sha256=SHA).statistics
    assert found.keys() == nodes.keys()
    for name, given in nodes.items():
        for field in dataclasses.fields(Statistics):
            got, want = getattr(found[name], field.name), getattr(given, field.name)
            if isinstance(want, Gram):
                got, want = got.dense(), want.dense()
            assert np.array_equal(got, want), (name, field.name)
            assert np.asarray(got).dtype == np.asarray(want).dtype


def test_samples_come_back_chunk_by_chunk(tmp_path: Path) -> None:
    # Chunks in the order of their names as text (10 before 2), or taken for nodes.
    chunks = [
        Feed(
            {"input/ids": np.full((1, 3), i), "mask": np.zeros((2, i), np.int8)}, num_samples=1 + i
        )
        for i in range(12)
    ]
    path = written(tmp_path / "t.npz", *chunks)
    found = read_statistics(path, teacher_sha256=SHA)
    assert set(found.statistics) == {"n"}
    assert len(found.reference) == 12
    for got, want in zip(found.reference, chunks, strict=True):
        assert got.keys() == want.keys()
        assert got.num_samples == want.num_samples
        for name, array in want.items():
            assert np.array_equal(got[name], array)
            assert got[name].dtype == array.dtype


def test_same_statistics_are_the_same_bytes(tmp_path: Path) -> None:
    # A time of day in the file.
    a, b = (written(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert a == b


def test_symmetric_matrix_is_written_once(tmp_path: Path) -> None:
    # A file of twice the size.
    path = written(tmp_path / "t.npz", n=statistics(0, group=1, depth=200))
    assert path.stat().st_size < 0.55 * 4 * 200 * 200


def test_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    path.write_bytes(b"mine")
    knowledge = TeacherKnowledge(statistics={"n": statistics(0)}, reference=[])
    with pytest.raises(OutputError, match=r"t\.npz"):
        write_statistics(path, knowledge, teacher_sha256=SHA, force=False)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_statistics_of_another_teacher_are_refused(tmp_path: Path) -> None:
    # Inputs of one network for the nodes of another, which may well have the same names.
    path = written(tmp_path / "t.npz")
    with pytest.raises(CalibrationError, match=r"t.npz: these are statistics of another teacher"):
        read_statistics(path, teacher_sha256="1" * 64)


def _npz(path: Path, header: Any = ("4", SHA), **arrays: Any) -> None:
    np.savez(path, **{"rimc.statistics": np.array(header), **arrays})


def _without(path: Path, part: str) -> None:
    with np.load(written(path)) as archive:
        arrays = {n: archive[n] for n in archive.files if n != part}
    np.savez(path, **arrays)


def _cut(path: Path) -> None:
    content = written(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flipped(path: Path) -> None:
    content = bytearray(written(path).read_bytes())
    # In the numbers themselves: a zip says much about itself twice.
    content[content.index(statistics(0).x_mean.tobytes())] ^= 1
    path.write_bytes(bytes(content))


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("statistics"),
    "a zip that is none": lambda p: p.write_bytes(b"PK\x03\x04junk"),
    "cut in half": _cut,
    "a bit flipped": _flipped,
    "samples": lambda p: np.savez(p, x=np.zeros(3)),
    "one array": lambda p: np.save(p.open("wb"), np.zeros(3)),
    "objects": lambda p: np.savez(p, **{"rimc.statistics": np.array([{}, {}], object)}),
    "a header of another shape": lambda p: _npz(p, ["1", SHA, "3"]),
    "a header of no shape": lambda p: _npz(p, 3),
    "a version in words": lambda p: _npz(p, ["one", SHA]),
    "a node without a part": lambda p: _without(p, "n/x_cov"),
    "parts of other shapes": lambda p: _npz(
        p, **{f"n/{k}": np.zeros((1, 2), np.float32)
              for k in ("x_mean", "x_cov", "y_mean", "y_variance", "x_abs_max", "row_limit",
                        "sensitivity")}
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_file_that_holds_no_statistics_is_refused(name: str, tmp_path: Path) -> None:
    # A traceback out of numpy or zipfile.
    path = tmp_path / "t.npz"
    BROKEN[name](path)
    with pytest.raises(CalibrationError, match=r"t.npz: not a statistics file"):
        read_statistics(path, teacher_sha256=SHA)


def test_newer_format_and_missing_file_say_so(tmp_path: Path) -> None:
    # What a later version wrote, read as if it meant what this one means.
    path = tmp_path / "t.npz"
    with pytest.raises(CalibrationError, match=r"t.npz: no such file. Write it with"):
        read_statistics(path, teacher_sha256=SHA)
    _npz(path, ["1", SHA])
    with pytest.raises(CalibrationError, match=r"t.npz: written by an older rimc-onnx"):
        read_statistics(path, teacher_sha256=SHA)
    _npz(path, ["5", SHA])
    with pytest.raises(CalibrationError, match=r"t.npz: written by a newer rimc-onnx"):
        read_statistics(path, teacher_sha256=SHA)
