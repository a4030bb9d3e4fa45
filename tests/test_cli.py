# SPDX-License-Identifier: Apache-2.0
"""The commands as typed in a folder, what they write and what they print."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer.main

from rimc_onnx.cli.main import app
from rimc_onnx.cli.options import IDEAL_PERIPHERY, with_options
from rimc_onnx.cli.provider_options import NATIVE_PROVIDER, ProviderOptions
from rimc_onnx.crossbar.config import PeripheryConfig

Cli = Callable[..., Any]

COMMANDS = (*("convert", "age", "devices", "calibrate", "evaluate", "inspect", "quickstart"),)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# ------------------------------------------------------------------------------ the road as typed


def test_convert_and_calibrate_as_typed_in_the_folder_of_the_model(
    digits_folder: Path,
) -> None:
    # The three lines of the README, in processes of their own: defaults that only work with paths.
    def typed(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", "from rimc_onnx.cli.main import main; main()", *arguments],
            cwd=digits_folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""  # progress is for terminals
        return result.stdout

    assert typed("convert", "model.onnx").splitlines()[-1] == "wrote model.rimc.onnx"
    last = typed("calibrate", "--samples", "10").splitlines()[-1]
    assert last == "wrote model.rimc.calibrated.onnx"
    figures = json.loads(
        typed("evaluate", "model.rimc.calibrated.onnx", "--data", "test.npz", "--json")
    )
    assert figures["top1"] > 0.95
    assert names(digits_folder) == {
        "model.onnx",
        "calibration.npz",
        "test.npz",
        "model.rimc.onnx",
        "model.rimc.calibrated.onnx",
        "model.rimc.calibrated.report.json",
    }


def test_output_names_follow_the_model(cli: Cli, digits_folder: Path) -> None:
    # with_suffix on a name with dots of its own: net.v2.onnx must not become net.rimc.onnx.
    (digits_folder / "model.onnx").rename(digits_folder / "net.v2.onnx")
    assert cli("convert", "net.v2.onnx", cwd=digits_folder).code == 0
    assert cli("calibrate", "net.v2.rimc.onnx", cwd=digits_folder).code == 0
    assert {"net.v2.rimc.onnx", "net.v2.rimc.calibrated.onnx"} <= names(digits_folder)


def test_output_option_names_the_file(cli: Cli, digits_folder: Path) -> None:
    # -o relative to the folder of the call, not to that of the model.
    (digits_folder / "sub").mkdir()
    where = digits_folder / "sub"
    assert cli("convert", "../model.onnx", "-o", "a.onnx", cwd=where).code == 0
    arguments = ["a.onnx", "--output", "b.onnx", "--data", "../calibration.npz"]
    assert cli("calibrate", *arguments, cwd=where).code == 0
    assert names(where) == {"a.onnx", "b.onnx", "b.report.json"}


def test_dry_run_decides_and_writes_nothing(cli: Cli, digits_folder: Path) -> None:
    # A dry run that fails because the output exists, or that needs samples, or that writes.
    (digits_folder / "model.rimc.onnx").write_bytes(b"precious")
    (digits_folder / "calibration.npz").unlink()
    before = names(digits_folder)
    arguments = ["model.onnx", "--dry-run", "--dac-bits", 8]
    report = cli("convert", *arguments, "--json", cwd=digits_folder).json()
    assert report["output"] is None
    assert report["mapped"] == 11
    people = cli("convert", *arguments, cwd=digits_folder)
    assert people.stdout.splitlines()[-1] == "dry run: nothing was written"
    assert names(digits_folder) == before
    assert (digits_folder / "model.rimc.onnx").read_bytes() == b"precious"


def test_dry_run_shows_a_model_of_which_nothing_can_be_mapped(
    cli: Cli, tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # The error of convert sends people to --dry-run: it has to answer.
    onnx.save(matmul_model(np.ones((3, 2), np.float64)), tmp_path / "model.onnx")
    assert cli("convert", "model.onnx", cwd=tmp_path).code == 1
    report = cli("convert", "model.onnx", "--dry-run", "--json", cwd=tmp_path).json()
    assert report["mapped"] == 0
    assert report["nodes"][0]["reason"]


PLAIN = ["--scaling", "node", "--clip-sigma", "none"]
PERIPHERY = {
    "read noise": ["--read-noise", 0.03, *PLAIN],  # clipped for it, more would be lost at first
    "relative read noise": ["--read-noise", 0.05, "--read-noise-law", "relative"],
    "curve": ["--iv-sinh", 0.5, "--input-shrink", 0.5],
    "bit serial": ["--dac-bits", 6, "--adc-bits", 8, "--dac-serial-bits", 1],
    "converters": ["--adc-bits", 8, "--adc-gain-error", 0.01, "--adc-offset-error", 0.002],
    "percentile": ["--dac-bits", 6, "--range-percentile", 99.9],
    "wires": ["--tile-rows", 64, "--wire-ohm", 1],
}


@pytest.mark.parametrize("arguments", PERIPHERY.values(), ids=PERIPHERY)
def test_periphery_runs_from_conversion_to_calibration(
    cli: Cli, digits_folder: Path, arguments: list[object]
) -> None:
    # An option that no part reads: the file must differ. Then every step on it has to work, in
    # both forms; such mild errors cost a few images, and a calibration gives most of them back.
    plain = cli("convert", "model.onnx", "-o", "plain.onnx", cwd=digits_folder)
    assert plain.code == 0, plain.stderr
    result = cli("convert", "model.onnx", *arguments, cwd=digits_folder)
    assert result.code == 0, result.stderr
    assert (digits_folder / "model.rimc.onnx").read_bytes() != (
        digits_folder / "plain.onnx"
    ).read_bytes()
    assert cli("calibrate", "model.rimc.onnx", cwd=digits_folder).code == 0
    test = ["--data", "test.npz", "--json"]
    drifted = cli("evaluate", "model.rimc.onnx", *test, cwd=digits_folder).json()["top1"]
    again = cli("evaluate", "model.rimc.onnx", *test, cwd=digits_folder).json()["top1"]
    assert again == drifted  # a fresh session starts at run 0
    assert drifted > 0.8
    for stock in ([], ["--stock"]):
        figures = cli("evaluate", "model.rimc.calibrated.onnx", *test, *stock, cwd=digits_folder)
        assert figures.json()["top1"] > 0.9


def test_keep_digital_takes_patterns(cli: Cli, digits_folder: Path) -> None:
    # A pattern that matches by prefix only, or a second one that replaces the first.
    arguments = ["--keep-digital", "node_linear", "--keep-digital", "*_1", "--json"]
    report = cli("convert", "model.onnx", *arguments, cwd=digits_folder).json()
    digital = {n["name"]: n["reason"] for n in report["nodes"] if not n["mapped"]}
    every = {n["name"] for n in report["nodes"]}
    assert set(digital) == {n for n in every if n == "node_linear" or n.endswith("_1")}
    assert len(digital) == 2
    assert all("kept digital by the pattern" in reason for reason in digital.values())


# ------------------------------------------------------------------------------------------ help


def test_root_help_imports_nothing_heavy() -> None:
    # Half a second of ONNX Runtime and torch before the first line of help.
    code = (
        "import sys\n"
        "from rimc_onnx.cli.main import main\n"
        "sys.argv = ['rimc-onnx', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'onnxscript', 'scipy'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "heavy: []"
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_two_examples(cli: Cli, tmp_path: Path, command: str) -> None:
    # Examples that name an option which is gone: every word of theirs has to be in the help.
    result = cli(command, "--help", cwd=tmp_path)
    assert result.code == 0
    text = " ".join(result.stdout.split())
    assert text.count(f"rimc-onnx {command}") >= 3  # usage and two examples
    examples = text.split("Examples:")[1].split("Options")[0]
    for word in examples.split():
        if word.startswith("--"):
            assert word in result.stdout.split("Options")[1]


@pytest.mark.parametrize(
    ("command", "prepare"),
    [
        ("convert", []),
        ("inspect", ["convert model.onnx"]),
        ("evaluate", ["convert model.onnx"]),
        ("calibrate", ["convert model.onnx"]),
        ("statistics", ["convert model.onnx"]),
        ("age", ["convert model.onnx --device wan2022-aihwkit", "calibrate model.rimc.onnx"]),
        ("devices", []),
        ("quickstart", []),
    ],
)
def test_examples_in_help_run(
    cli: Cli, digits_folder: Path, command: str, prepare: list[str]
) -> None:
    # Documentation that was right once.
    for name in ("samples.npz", "unlabelled.npz"):
        (digits_folder / name).write_bytes((digits_folder / "test.npz").read_bytes())
    for line in prepare:
        assert cli(*line.split(), cwd=digits_folder).code == 0
    help_text = typer.main.get_group(app).commands[command].help or ""
    lines = [
        line.split() for line in help_text.splitlines() if line.strip().startswith("rimc-onnx ")
    ]
    assert len(lines) == 2
    for line in lines:
        if command == "calibrate":
            for made in digits_folder.glob("*.calibrated.*"):
                made.unlink()
        result = cli(*line[1:], cwd=digits_folder)
        assert result.code == 0, result.stderr


def test_version_is_that_of_the_package(cli: Cli, tmp_path: Path) -> None:
    # A version written twice.
    import importlib.metadata

    result = cli("--version", cwd=tmp_path)
    assert result.stdout.strip() == importlib.metadata.version("rimc-onnx")


# ------------------------------------------------------------------------- options in groups


def test_options_not_given_are_the_defaults_of_the_configuration() -> None:
    # The command line states them once more, since --help must not load the configuration.
    assert IDEAL_PERIPHERY.config() == PeripheryConfig()


def test_group_of_options_is_its_fields_in_its_place() -> None:
    # typer reads the signature; a group that comes last, or that keeps its defaults, goes unseen.
    seen = []

    @with_options
    def command(first: int, runs_on: ProviderOptions = NATIVE_PROVIDER, last: int = 2) -> None:
        seen.append((first, runs_on, last))

    names = list(inspect.signature(command).parameters)
    assert names == ["first", "provider", "provider_option", "provider_library", "last"]
    command(first=1, provider="P", provider_option=["a=b"], provider_library=None, last=3)
    assert seen == [(1, ProviderOptions(provider="P", provider_option=["a=b"]), 3)]
