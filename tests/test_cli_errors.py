# SPDX-License-Identifier: Apache-2.0
"""Bad input ends in one line on stderr, exit code 1 or 2, and leaves every folder as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from rimc_onnx.io import model_files

Cli = Callable[..., Any]

COMMAND = [sys.executable, "-c", "from rimc_onnx.cli.entry import main; main()"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "gausian-relative"], "Did you mean 'gaussian-relative'"),
        (["--device", "?"], "gaussian-absolute, gaussian-relative, milo2021"),
        (["--scaling", "colum"], "Did you mean 'column'"),
        (["--drift", "-0.1"], "drift_frac"),
        (["--drift", "20"], "20 % is 0.2"),
        (["--drift", "20%"], "'20%' is not a number. Write a fraction: 0.2 is 20 %."),
        (["--read-noise", "1 %"], "'1 %' is not a number"),
        (["--drift", "nan"], "drift_frac must be a finite number"),
        (["--dac-bits", "0"], "--dac-bits"),
        (["--adc-bits", "0"], "--adc-bits"),
        (["--tile-rows", "0"], "--tile-rows"),
        (["--tile-rows", "-128"], "--tile-rows"),
        (["--dac-bits", "8.5"], "--dac-bits"),
        (["--dac-bits", "1"], "2..16"),
        (["--adc-bits", "1"], "2..16"),
        (["--dac-bits", "17"], "2..16"),
        (["--adc-bits", "17"], "2..16"),
        (["--read-noise", "5"], "--read-noise must be above 0 and at most 1, got 5.0"),
        (["--read-noise", "0"], "--read-noise must be above 0"),
        (["--read-noise-law", "absolut"], "Did you mean 'absolute'"),
        (["--read-noise-law", "relative"], "Give --read-noise too"),
        (["--iv-sinh", "9"], "--iv-sinh must be above 0 and at most 6, got 9.0"),
        (["--input-shrink", "2"], "--input-shrink must be above 0 and at most 1, got 2.0"),
        (
            ["--adc-gain-error", "0.01"],
            "--adc-gain-error is an error of an ADC, and --adc-bits is none",
        ),
        (["--dac-serial-bits", "1"], "there are no input bits to take in turn"),
        (["--dac-serial-bits", "0"], "--dac-serial-bits"),
        (["--wire-ohm", "nan"], "--wire-ohm must be above 0 and at most 1000, got nan"),
        (["--range-percentile", "0.9999"], "--range-percentile must lie in 50..100 percent"),
        (["--seed", "-1"], "--seed must lie in 0..2^63-1, got -1"),
        (["--seed", str(2**63)], "--seed must lie in"),
        (["--seed", "one"], "--seed"),
        (["--rank", "0"], "--rank must lie in 1..1032, got 0"),
        (["--keep-digital", "node_conv2d_99"], "Did you mean 'node_conv2d"),
        (["--colour", "red"], "No such option: --colour"),
        (["-o", "model.onnx", "--force"], "is the model itself"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_wrong_option_of_convert_is_a_usage_error(
    fails: Callable[..., str], digits_folder: Path, arguments: list[str], says: str
) -> None:
    # A value out of range that is taken, or that ends in numpy's own words deep inside.
    assert says in fails(digits_folder, 2, "convert", "model.onnx", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--wire-ohm", "900"], "of a cell's current, beyond what first order describes"),
        (
            [
                "--device",
                "gaussian-absolute",
                "--read-noise",
                "0.1",
                "--read-noise-law",
                "relative",
            ],
            "needs both conductances of a pair",
        ),
    ],
    ids=["wires", "relative noise"],
)
def test_periphery_that_does_not_fit_the_arrays_is_a_model_error(
    fails: Callable[..., str], digits_folder: Path, arguments: list[str], says: str
) -> None:
    # Found while the file is written: a message of the writer in place of ours, or half a file.
    assert says in fails(digits_folder, 1, "convert", "model.onnx", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--samples", "0"], "--samples must be 1 or more, got 0"),
        (["--samples", "-3"], "--samples must be 1 or more, got -3"),
        (["--rank", "0"], "--rank must lie in 1..1032, got 0"),
        (["--seed", "-1"], "seed"),
        (["--epochs", "3"], "No such option: --epochs"),
        (["-o", "model.rimc.onnx", "--force"], "is the model itself"),
        (["--read-out-noise", "0.05"], "Give --read-out too"),
        (["--read-out", "--read-out-noise", "2"], "must be below 1 (0.02 is 2 %), got 2.0"),
        (["--data", "no_such_module:reader"], "no_such_module"),
        (["--data", "numpy:no_such_reader"], "no such callable"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_wrong_option_of_calibrate_is_a_usage_error(
    fails: Callable[..., str], digits_job: Path, arguments: list[str], says: str
) -> None:
    # As for convert; numpy's own message for a negative seed names no option.
    output = [] if "-o" in arguments else ["-o", "new.onnx"]
    assert says in fails(digits_job, 2, "calibrate", "model.rimc.onnx", *output, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert"], "Missing argument"),
        (["evaluate", "model.onnx"], "--data"),
        (["konvert", "model.onnx"], "Did you mean 'convert'"),
        (["--verbose"], "No such option: --verbose"),
    ],
    ids=" ".join,
)
def test_wrong_call_is_one_line(
    fails: Callable[..., str], digits_folder: Path, arguments: list[str], says: str
) -> None:
    # The parser's own error is a box of five lines.
    line = fails(digits_folder, 2, *arguments)
    assert says in line
    assert "--help" in line


def test_converted_model_is_no_teacher(fails: Callable[..., str], digits_job: Path) -> None:
    # "the model is already converted", of which of the two files?
    arguments = ["-o", "new.onnx", "--teacher", "model.rimc.onnx", "--force"]
    line = fails(digits_job, 1, "calibrate", "model.rimc.onnx", *arguments)
    assert "model.rimc.onnx is a converted model. Give the one before conversion" in line


def test_calibrate_without_a_model_lists_what_it_found(
    fails: Callable[..., str], digits_job: Path
) -> None:
    # Two candidates: picking one of them would be a guess.
    (digits_job / "other.rimc.onnx").write_bytes((digits_job / "model.rimc.onnx").read_bytes())
    line = fails(digits_job, 2, "calibrate", "--samples", 10)
    assert "model.rimc.onnx" in line
    assert "other.rimc.onnx" in line
    for name in ("model.rimc.onnx", "other.rimc.onnx"):
        (digits_job / name).unlink()
    assert "found none" in fails(digits_job, 2, "calibrate", "--samples", 10)


# ------------------------------------------------------------------------------------- outputs


def test_existing_output_is_kept_without_force(
    fails: Callable[..., str], cli: Cli, digits_job: Path
) -> None:
    # A calibrated model that took a lab session is replaced by a rerun.
    for arguments in (["convert", "model.onnx"], ["calibrate", "model.rimc.onnx"]):
        line = fails(digits_job, 1, *arguments)
        assert "exists already" in line
        assert "--force" in line
        assert cli(*arguments, "--force", cwd=digits_job).code == 0


@pytest.mark.parametrize(
    ("output", "says"),
    [("nowhere/out.onnx", "there is no folder nowhere"), (".", "is a folder")],
)
def test_output_that_can_not_be_made_is_refused(
    fails: Callable[..., str], digits_job: Path, output: str, says: str
) -> None:
    # Found out only after minutes of work.
    assert says in fails(digits_job, 1, "convert", "model.onnx", "-o", output)
    assert says in fails(digits_job, 1, "calibrate", "model.rimc.onnx", "-o", output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "model.rimc.onnx", "--twin", "model.onnx"],
        ["calibrate", "model.rimc.onnx", "-o", "model.onnx"],
        ["calibrate", "model.rimc.onnx", "--adapter-file", "model.rimc.onnx"],
        ["calibrate", "model.rimc.onnx", "--twin", "model.rimc.calibrated.report.json"],
        ["age", "model.rimc.onnx", "--time", "1d", "-o", "model.onnx"],
        ["statistics", "model.onnx", "-o", "model.onnx"],
    ],
)
def test_force_replaces_no_file_that_the_job_reads_or_writes_otherwise(
    fails: Callable[..., str], digits_job: Path, arguments: list[str]
) -> None:
    # The only copy of the trained model is replaced by its drifted twin, or by statistics.
    fails(digits_job, 2, *arguments, "--force")


def test_calibrated_model_in_another_folder_finds_its_teacher(cli: Cli, digits_job: Path) -> None:
    # The recorded path is relative to the file, and was that of the converted file's folder.
    (digits_job / "sub").mkdir()
    out = ["-o", "sub/out.onnx"]
    cli("calibrate", "model.rimc.onnx", "--samples", 1, *out, cwd=digits_job)
    np.savez(digits_job / "field.npz", input=np.load(digits_job / "test.npz")["input"][:20])
    found = cli("evaluate", "sub/out.onnx", "--data", "field.npz", "--json", cwd=digits_job)
    assert found.json()["agreement"] > 0.5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe in the file system")
def test_output_that_is_no_file_is_kept(fails: Callable[..., str], digits_folder: Path) -> None:
    # --force renames a file over it: as root, convert -o /dev/null --force takes /dev/null away.
    os.mkfifo(digits_folder / "pipe.onnx")
    command = ["convert", "model.onnx", "-o", "pipe.onnx", "--force"]
    assert "pipe.onnx: is a device or pipe" in fails(digits_folder, 1, *command)
    assert (digits_folder / "pipe.onnx").is_fifo()


def test_quickstart_refuses_a_folder_in_use(fails: Callable[..., str], digits_folder: Path) -> None:
    # The user's own model.onnx replaced by the sample's.
    assert "exists already" in fails(digits_folder, 1, "quickstart", ".")
    assert "can't be made" in fails(digits_folder, 1, "quickstart", "model.onnx")


@pytest.mark.parametrize("command", [["convert", "model.onnx"], ["calibrate", "model.rimc.onnx"]])
def test_full_disk_leaves_nothing(
    fails: Callable[..., str],
    digits_job: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A file of half the model's length that the next step takes for a model.
    def write(_model: ir.Model, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model_files, "write_inline", write)
    for path in ("new.onnx", None):
        output = ["-o", path] if path else ["--force"]
        line = fails(digits_job, 1, *command, *output)
        assert "the disk is full" in line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the file size")
def test_write_that_the_system_refuses_leaves_nothing(digits_folder: Path) -> None:
    # The same with a write that really fails in the middle of the file, in its own process.
    import resource

    before = {p.name: p.read_bytes() for p in digits_folder.iterdir()}
    limit = 20_000  # bytes; the model has about 50,000
    result = subprocess.run(
        [*COMMAND, "convert", "model.onnx"],
        cwd=digits_folder,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: model.rimc.onnx: can't be written (")
    assert result.stdout == ""
    assert {p.name: p.read_bytes() for p in digits_folder.iterdir()} == before


def large_model(folder: Path, matmul_model: Callable[..., onnx.ModelProto]) -> Path:
    """A MatMul of 64 million weights in a sparse file: seconds of programming, no disk."""
    size = 8000
    model = matmul_model(np.zeros((2, 2), np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [size, size]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.data", "offset": "0", "length": str(4 * size**2)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = size
    with (folder / "w.data").open("wb") as data:
        data.truncate(4 * size**2)
    path = folder / "large.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_interrupted_run_leaves_nothing(
    tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto], number: signal.Signals
) -> None:
    # A hidden folder of half a model beside the user's, or a traceback of forty lines.
    large_model(tmp_path, matmul_model)
    before = sorted(p.name for p in tmp_path.iterdir())
    process = subprocess.Popen(
        [*COMMAND, "convert", "large.onnx"],
        cwd=tmp_path,
        # A test run in the background passes on that it ignores interrupts.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while sorted(p.name for p in tmp_path.iterdir()) == before:
            assert process.poll() is None, "the run ended before it could be interrupted"
            assert time.monotonic() < deadline, "nothing was being written after 60 s"
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines() == ["error: interrupted. No file is half written."]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no broken pipes")
def test_reader_that_goes_away_gets_no_traceback(digits_folder: Path) -> None:
    # rimc-onnx inspect model.onnx | head -1
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [*COMMAND, "inspect", "model.onnx"],
        cwd=digits_folder,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert result.stderr == ""
    assert result.returncode == 1


def test_debug_shows_the_traceback(cli: Cli, digits_folder: Path) -> None:
    # The other half of the promise: whoever asks for it gets it, and the line comes last.
    result = cli("--debug", "convert", "nothing.onnx", cwd=digits_folder)
    assert result.code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: nothing.onnx")
    again = cli("convert", "nothing.onnx", cwd=digits_folder)
    assert len(again.stderr.splitlines()) == 1


def _wait_for_python(process: subprocess.Popen[str]) -> None:
    """Until the interpreter catches SIGINT: before, on a busy machine, nothing of ours runs."""
    status = Path(f"/proc/{process.pid}/status")
    while status.exists() and process.poll() is None:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if int(lines["SigCgt"], 16) >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("delay_s", [0.1, 0.4, 0.8])
def test_interrupt_in_the_first_second_is_one_line(digits_folder: Path, delay_s: float) -> None:
    # A traceback out of the import of some library, as the handlers came after it.
    before = sorted(p.name for p in digits_folder.iterdir())
    process = subprocess.Popen(
        [*COMMAND, "quickstart", "q"],
        cwd=digits_folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_python(process)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines() == ["error: interrupted. No file is half written."]
    left = sorted(p.name for p in digits_folder.iterdir() if p.name != "q")
    assert left == before


def test_file_that_is_no_regular_one_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    # Reading a pipe, or /dev/zero, never ends.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    assert "is no regular file" in fails(tmp_path, 1, "convert", "pipe")
    assert "is no regular file" in fails(tmp_path, 1, "convert", "/dev/zero", "-o", "x.onnx")
    (tmp_path / "pipe.toml").symlink_to("pipe")
    assert "is no regular file" in fails(tmp_path, 2, "devices", "pipe.toml")
    assert "nested too deeply" in fails(tmp_path, 2, "devices", "deep.toml")
    assert "loop.onnx" in fails(tmp_path, 1, "convert", "loop.onnx")
