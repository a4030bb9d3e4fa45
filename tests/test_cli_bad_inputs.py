# SPDX-License-Identifier: Apache-2.0
"""Bad input of every kind is one line that names the file: none is "this should not happen"."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from rimc_onnx.cli import main as command_line
from rimc_onnx.jobs.convert import convert
from rimc_onnx.jobs.statistics import write_statistics

Kind = Callable[[Path], list[str]]
"""Makes the bad input in a folder; gives the command that meets it."""

HEADERS = {
    "no dict": b"no dict at all",
    "no end": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8",
    "a call": b"__import__('os').abort()",
    "no shape": b"{'descr': '<f4', 'fortran_order': False}",
    "negative shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 8, 8)}",
    "huge shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 1, 8, 8)}",
    "shape of text": b"{'descr': '<f4', 'fortran_order': False, 'shape': ('1', 1, 8, 8)}",
    "unknown type": b"{'descr': '<q9', 'fortran_order': False, 'shape': (1, 1, 8, 8)}",
    "nested": b"[" * 5000,
}


def _npz(folder: Path, header: bytes, *, rest: bytes = bytes(256)) -> None:
    size = len(header).to_bytes(4, "little")
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("input.npy", b"\x93NUMPY\x02\x00" + size + header + rest)


def _header(header: bytes) -> Kind:
    def make(folder: Path) -> list[str]:
        _npz(folder, header)
        return ["evaluate", "model.rimc.onnx", "--data", "bad.npz"]

    return make


def _member(change: Callable[[bytearray, int], None]) -> Kind:
    """An .npz whose directory is changed at the entry of its only member."""

    def make(folder: Path) -> list[str]:
        _npz(folder, b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 8, 8)}")
        content = bytearray((folder / "bad.npz").read_bytes())
        change(content, content.index(b"PK\x01\x02"))
        (folder / "bad.npz").write_bytes(content)
        return ["evaluate", "model.rimc.onnx", "--data", "bad.npz"]

    return make


def _cut_short(content: bytearray, entry: int) -> None:
    del content[60 : entry - 100]


def _other_sum(content: bytearray, entry: int) -> None:
    content[entry + 16] ^= 1


def _unknown_compression(content: bytearray, entry: int) -> None:
    content[entry + 10] = 77


def _encrypted(content: bytearray, entry: int) -> None:
    content[entry + 8] |= 1


def _metadata(key: str, value: str) -> Kind:
    def make(folder: Path) -> list[str]:
        model = onnx.load(folder / "model.rimc.onnx")
        for entry in model.metadata_props:
            if entry.key == key:
                entry.value = value
        onnx.save(model, folder / "bad.rimc.onnx")
        return ["calibrate", "bad.rimc.onnx", "--samples", "2"]

    return make


def _attribute(name: str, value: object) -> Kind:
    def make(folder: Path) -> list[str]:
        model = onnx.load(folder / "model.rimc.onnx")
        node = next(n for n in model.graph.node if n.op_type == "RramConv")
        (old,) = (a for a in node.attribute if a.name == name)
        node.attribute.remove(old)
        node.attribute.append(onnx.helper.make_attribute(name, value))
        onnx.save(model, folder / "bad.rimc.onnx")
        return ["age", "bad.rimc.onnx", "--time", "1d", "-o", "aged.rimc.onnx"]

    return make


def _no_text(folder: Path) -> list[str]:
    model = onnx.load(folder / "model.onnx")
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    node.attribute.add(name="auto_pad", type=onnx.AttributeProto.STRING, s=b"\xff\xfe")
    onnx.save(model, folder / "bad.onnx")
    return ["convert", "bad.onnx"]


def _statistics(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Kind:
    def make(folder: Path) -> list[str]:
        with np.load(write_statistics(folder / "model.onnx").output) as made:
            arrays = dict(made)
        arrays[name] = change(arrays[name])
        np.savez(folder / "bad.npz", **arrays)
        command = ["calibrate", "model.rimc.onnx", "--read-out", "--samples", "0"]
        return [*command, "--statistics", "bad.npz", "-o", "new.onnx"]

    return make


def _with_nan(array: np.ndarray) -> np.ndarray:
    array.flat[-1] = np.nan
    return array


def _loop(*command: str) -> Kind:
    def make(folder: Path) -> list[str]:
        for name in ("bad.npz", "bad.onnx", "bad.rimc.onnx", "bad.toml"):
            (folder / name).symlink_to(f"other.{name}")
            (folder / f"other.{name}").symlink_to(name)
        return list(command)

    return make


def _plain(*command: str) -> Kind:
    return lambda _: list(command)


LONG = "bad" * 100
KINDS: dict[str, tuple[Kind, str]] = {
    **{f"npz: header is {name}": (_header(text), "bad.npz") for name, text in HEADERS.items()},
    "npz: member is cut short": (_member(_cut_short), "bad.npz"),
    "npz: member has another sum": (_member(_other_sum), "bad.npz"),
    "npz: compression is not known": (_member(_unknown_compression), "bad.npz"),
    "npz: member is encrypted": (_member(_encrypted), "bad.npz"),
    "metadata: nodes are no JSON": (_metadata("rimc.nodes", "[["), "bad.rimc.onnx"),
    "metadata: nodes are numbers": (_metadata("rimc.nodes", "[1, 2]"), "bad.rimc.onnx"),
    "metadata: rank is no number": (_metadata("rimc.rank", "four"), "bad.rimc.onnx"),
    "metadata: teacher is a folder": (_metadata("rimc.teacher_path", "/"), "teacher"),
    "metadata: teacher has a zero byte": (_metadata("rimc.teacher_path", "a\0b"), "teacher"),
    "metadata: teacher's name is long": (_metadata("rimc.teacher_path", LONG), "teacher"),
    "attribute: device is no JSON": (_attribute("device_config", "{"), "node_conv2d"),
    "attribute: device is a number": (_attribute("device_config", "3"), "node_conv2d"),
    "attribute: pads are no text": (_no_text, "auto_pad"),
    "attribute: time is not finite": (_attribute("time_s", float("nan")), "node_conv2d"),
    "statistics: a power is beyond squares": (
        _statistics("node_conv2d/x_cov", lambda a: np.full_like(a, 3e38)), "bad.npz"
    ),
    "statistics: a mean is a truth value": (
        _statistics("node_conv2d/y_mean", lambda a: a.astype(bool)), "bad.npz"
    ),
    "statistics: a mean is NaN": (_statistics("node_conv2d/x_mean", _with_nan), "bad.npz"),
    "statistics: a variance is NaN": (_statistics("node_conv2d/y_variance", _with_nan), "bad.npz"),
    "statistics: no row is within the limit": (
        _statistics("node_conv2d/row_limit", lambda a: np.full_like(a, 1e-45)), "bad.npz"
    ),
    "statistics: a matrix is cut": (
        _statistics("node_conv2d/x_cov", lambda a: a[:, 1:]), "bad.npz"
    ),
    "statistics: a mean is text": (
        _statistics("node_conv2d/x_mean", lambda a: a.astype("U8")), "bad.npz"
    ),
    "long name: model": (_plain("inspect", f"{LONG}.onnx"), "bad"),
    "long name: data": (_plain("evaluate", "model.rimc.onnx", "--data", f"{LONG}.npz"), "bad"),
    "long name: output": (_plain("convert", "model.onnx", "-o", f"{LONG}.onnx"), "bad"),
    "link loop: model": (_loop("inspect", "bad.onnx"), "bad.onnx"),
    "link loop: converted model": (_loop("calibrate", "bad.rimc.onnx"), "bad.rimc.onnx"),
    "link loop: data": (_loop("evaluate", "model.rimc.onnx", "--data", "bad.npz"), "bad.npz"),
    "link loop: output": (_loop("convert", "model.onnx", "-o", "bad.rimc.onnx"), "bad.rimc.onnx"),
    "link loop: study": (_loop("study", "bad.toml"), "bad.toml"),
}  # fmt: skip
"""By name: what makes it, and what the line names."""
OF_USAGE = {"link loop: study"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_bad_input_is_one_line_that_names_it(
    fails: Callable[..., str], digits_job: Path, kind: str
) -> None:
    # Errors of numpy, zipfile, json and the system that nobody expected where they came up.
    make, names = KINDS[kind]
    command = make(digits_job)
    line = fails(digits_job, 2 if kind in OF_USAGE else 1, *command)
    assert names in line
    assert len(line) < 1000


LOW_MEMORY = """
import os, resource, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # libraries' threads die in their own ways
import rimc_onnx.jobs.convert, rimc_onnx.jobs.calibrate, rimc_onnx.jobs.evaluate
import rimc_onnx.cli.main, onnx, onnxruntime, scipy.linalg
onnx.defs.get_all_schemas()  # registered at the first use, with words of its own where that fails
with open("/proc/self/statm") as pages:
    used = int(pages.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)), -1))
from rimc_onnx.cli.entry import main
main()
"""


def _nothing(_folder: Path) -> list[str]:
    return ["calibrate", "model.rimc.onnx", "-o", "new.onnx", "--json"]


def _an_array(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    with (folder / "data" / "input.npy").open("wb") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 25, 1, 8, 8)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.truncate(file.tell() + (1 << 33))  # a hole, which takes no disk
    return [*_nothing(folder), "--data", "data"]


def _a_run(folder: Path) -> list[str]:
    """A value of 4 GiB between small ones."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        agraph (float[batch, 1, 8, 8] input) => (float[batch, 4] y) {
          x = Flatten(input)
          row = MatMul(x, wide)
          axis_1 = Constant<value_ints = [1]>()
          axis_2 = Constant<value_ints = [2]>()
          across = Unsqueeze(row, axis_1)
          down = Unsqueeze(row, axis_2)
          large = Mul(across, down)
          most = ReduceMax<axes = [1, 2], keepdims = 0>(large)
          column = Unsqueeze(most, axis_1)
          product = MatMul(x, w)
          y = Add(product, column) }""")
    rng = np.random.default_rng(0)
    for name, width in (("wide", 1 << 15), ("w", 4)):
        weight = rng.standard_normal((64, width)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "model.onnx")
    convert(folder / "model.onnx", force=True)
    return _nothing(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize(
    ("spare", "make"),
    [(1 << 22, _nothing), (1 << 30, _an_array), (1 << 30, _a_run)],
    ids=["for the command", "for an array", "for a run"],
)
def test_low_memory_is_one_line(
    digits_job: Path, spare: int, make: Callable[[Path], list[str]]
) -> None:
    # numpy has a class of its own, and ONNX Runtime's errors have none. With less to spare than
    # threads and stacks take, libraries end the process themselves.
    command = make(digits_job)
    before = {p.name: p.stat().st_size for p in digits_job.iterdir()}
    run = subprocess.run(
        [sys.executable, "-c", LOW_MEMORY, str(spare), *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=digits_job,
        timeout=60,
    )
    assert run.returncode == 1, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert "not enough memory" in run.stderr
    assert {p.name: p.stat().st_size for p in digits_job.iterdir()} == before


def test_an_error_while_leaving_is_not_told_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoExit(Exception):
        def __init__(self, _code: int) -> None:
            raise MemoryError

    monkeypatch.setattr(command_line.typer, "Exit", NoExit)
    monkeypatch.setattr(sys, "argv", ["rimc-onnx", "inspect", "no_such_file.onnx"])
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
