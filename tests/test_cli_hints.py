# SPDX-License-Identifier: Apache-2.0
"""What a command tells people at a terminal beside its result: the next step, a better setting."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rimc_onnx.cli.main import main

Typed = Callable[..., list[str]]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Hints of a command that is typed in the folder of the digits, at a terminal."""
    monkeypatch.chdir(digits_folder)
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["rimc-onnx", *arguments])
        stdout, stderr = Terminal(), Terminal()
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            pytest.raises(SystemExit) as stop,
        ):
            main()
        assert not stop.value.code, stderr.getvalue()
        assert "next:" not in stdout.getvalue()  # results alone
        lines = stderr.getvalue().splitlines()
        return [line for line in lines if line.startswith(("next: ", "advice: "))]

    return run


def test_following_the_hints_leads_from_a_model_to_its_accuracy(typed: Typed) -> None:
    # A hint that names a file that is not there, or a command that fails as it is printed.
    command, walked = "rimc-onnx inspect model.onnx", []
    while command:
        program, *arguments = shlex.split(command)
        assert program == "rimc-onnx"
        walked.append(arguments[0])
        hints = typed(*arguments)
        command = hints[-1].removeprefix("next: ") if hints else ""
    assert walked == ["inspect", "convert", "calibrate", "evaluate"]


def test_samples_that_are_not_beside_the_model_are_asked_for(typed: Typed) -> None:
    Path("calibration.npz").unlink()
    (hint,) = typed("convert", "model.onnx")
    assert hint.endswith("calibrate model.rimc.onnx --samples 10 --data SAMPLES.npz")


def test_better_settings_are_told_where_others_were_named(typed: Typed) -> None:
    # Advice for what is the default already, or a budget that differs from what the rank took.
    advice, _ = typed("convert", "model.onnx", "--scaling", "node", "--device", "milo2021")
    assert "rimc-onnx advise model.onnx --device milo2021" in advice
    advice, _ = typed("calibrate", "--rank", "2", "--report", "own.json")
    report = json.loads(Path("own.json").read_text("utf-8"))
    assert not Path("model.rimc.calibrated.report.json").exists()
    total = sum(node["sram_bytes"] for node in report["nodes"])
    assert advice.endswith(f"--sram-budget {total}")


def test_trained_weights_and_adapters_have_their_own_next_step(typed: Typed) -> None:
    # Weights behind a curve as their own teacher; a conversion of a file that has its arrays.
    short = ["--data", "calibration.npz", "--steps", "2", "--validations", "1"]
    (hint,) = typed("finetune", "model.onnx", "-o", "plain.onnx", *short)
    assert hint == "next: rimc-onnx convert plain.onnx"
    advice, hint = typed("finetune", "model.onnx", "-o", "bent.onnx", "--iv-sinh", "1", *short)
    # A conversion without the curve that the weights were trained behind.
    assert hint == "next: rimc-onnx convert bent.onnx --iv-sinh 1.0"
    assert advice.endswith("rimc-onnx calibrate bent.rimc.onnx --teacher model.onnx --force")
    typed("convert", "model.onnx")
    (hint,) = typed("finetune", "model.rimc.onnx", "-o", "adapted.onnx", *short)
    assert hint == "next: rimc-onnx evaluate adapted.onnx --data test.npz"


def test_scripts_get_results_alone(cli: Callable[..., Any], digits_folder: Path) -> None:
    assert cli("convert", "model.onnx", cwd=digits_folder).stderr == ""
    assert cli("inspect", "model.rimc.onnx", "--json", cwd=digits_folder).stderr == ""


def test_report_is_the_json_object_in_a_file(cli: Callable[..., Any], digits_folder: Path) -> None:
    # A file that is replaced unasked, or found out after the work is done.
    command = ["evaluate", "model.onnx", "--data", "test.npz", "--report", "found.json"]
    shown = cli(*command, "--json", cwd=digits_folder).json()
    found = json.loads((digits_folder / "found.json").read_text("utf-8"))
    assert found == shown
    assert found["top1"] == 0.982
    again = cli(*command, cwd=digits_folder)
    assert again.code == 1
    assert "found.json: exists already. Give --force" in again.stderr
    assert cli(*command, "--force", cwd=digits_folder).stdout.endswith("wrote found.json\n")
