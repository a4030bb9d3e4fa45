# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test modules share: the sample, the command line in one process, models."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

_DIGITS = Path(__file__).resolve().parents[1] / "samples" / "digits"
_DIGITS_FILES = ("model.onnx", "calibration.npz", "test.npz")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of the tests that can go on for ever; the defaults take seconds."""
    parser.addoption("--random-cases", type=int, default=400, help="random nodes to run")
    parser.addoption("--sessions", type=int, default=50, help="sessions to open and close")


@dataclass(frozen=True, kw_only=True)
class CliResult:
    """What one call of the command line left behind."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        assert self.code == 0, self.stderr
        assert len(self.stdout.splitlines()) == 1
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CliResult]]:
    """``cli("convert", "model.onnx", cwd=folder)`` as typed, through the entry point itself."""
    from rimc_onnx.cli.main import main

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object, cwd: Path) -> CliResult:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr("sys.argv", ["rimc-onnx", *map(str, arguments)])
        stdout, stderr = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
        assert isinstance(code, int)
        return CliResult(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def listing(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones too, with a digest of what it holds."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else "folder"
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts
    }


@pytest.fixture
def fails(cli: Callable[..., CliResult]) -> Callable[..., str]:
    """``fails(folder, code, *arguments)`` gives the one line; anything else is a failure."""

    def run(folder: Path, code: int, *arguments: object) -> str:
        before = listing(folder)
        result = cli(*arguments, cwd=folder)
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert "should not happen" not in lines[0]
        assert "Traceback" not in lines[0]
        assert result.code == code
        assert listing(folder) == before
        return str(lines[0])

    return run


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the sample; read only."""
    return _DIGITS


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """A copy of the sample's model and data, to work in."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for name in _DIGITS_FILES:
        shutil.copy(_DIGITS / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def _digits_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rimc_onnx import calibrate, convert

    folder = tmp_path_factory.mktemp("job")
    for name in _DIGITS_FILES:
        shutil.copy(_DIGITS / name, folder / name)
    convert(folder / "model.onnx")
    calibrate(folder / "model.rimc.onnx")
    return folder


@pytest.fixture
def digits_job(_digits_job: Path, tmp_path: Path) -> Path:
    """The sample with ``model.rimc.onnx`` (drift 0.2, seed 0) and ``model.rimc.calibrated.onnx``.

    A copy for every test, so none can spoil it for another one.
    """
    return Path(shutil.copytree(_digits_job, tmp_path / "job"))


@pytest.fixture(scope="session")
def matmul_model() -> Callable[..., onnx.ModelProto]:
    """Makes a chain of MatMul and Relu: ``matmul_model(w1, w2)``; nodes fc1, fc2, ..."""

    def make(*weights: np.ndarray, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
        nodes, initializers, value = [], [], "x"
        for i, weight in enumerate(weights, start=1):
            last = i == len(weights)
            initializers.append(numpy_helper.from_array(weight, f"w{i}"))
            product = "y" if last else f"p{i}"
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [product], name=f"fc{i}"))
            if not last:
                value = f"a{i}"
                nodes.append(helper.make_node("Relu", [product], [value], name=f"relu{i}"))
        float_type = TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("x", float_type, ["N", weights[0].shape[0]])],
            [helper.make_tensor_value_info("y", float_type, ["N", weights[-1].shape[-1]])],
            initializers,
        )
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)

    return make
