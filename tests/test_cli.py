# SPDX-License-Identifier: Apache-2.0
"""The commands as typed in a folder, what they write and what they print."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
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


# ------------------------------------------------------------------------------------------ JSON


def test_convert_json_has_the_decision_on_every_node(cli: Cli, digits_folder: Path) -> None:
    # A key renamed, or a table printed in front of the object.
    report = cli("convert", "model.onnx", "--json", "--seed", 3, cwd=digits_folder).json()
    assert report["output"] == "model.rimc.onnx"
    assert report["seed"] == 3
    assert report["device"] == "gaussian-relative"
    assert (report["mapped"], report["digital"]) == (11, 0)
    model = onnx.load(digits_folder / "model.onnx")
    multiplying = [n for n in model.graph.node if n.op_type in {"Conv", "Gemm"}]
    assert [n["name"] for n in report["nodes"]] == [n.name for n in multiplying]
    for node in report["nodes"]:
        assert set(node) == {"name", "op_type", "mapped", "reason", "scaling", "clip_sigma"}
        assert (node["scaling"], node["clip_sigma"]) == ("node", None)  # the error scales with w
        assert node["mapped"] is True
        assert node["reason"] is None
    sizes = {t.name: np.prod(t.dims) for t in model.graph.initializer}
    assert report["rram_weights"] == sum(sizes[n.input[1]] for n in multiplying)
    assert report["seconds"] > 0


def test_inspect_json_is_the_same_before_and_after_conversion(
    cli: Cli, digits_folder: Path
) -> None:
    # The converted file forgets a node that stayed digital, or why.
    keep = ["--keep-digital", "node_linear"]
    before = cli("inspect", "model.onnx", *keep, "--json", cwd=digits_folder).json()
    assert before["converted"] is False
    assert before["device"] is None
    cli("convert", "model.onnx", *keep, "--seed", 5, cwd=digits_folder)
    after = cli("inspect", "model.rimc.onnx", "--json", cwd=digits_folder).json()
    assert after["converted"] is True
    assert after["seed"] == 5
    assert after["device"]["drift_frac"] == 0.2
    assert after["sram_bytes"] > 0
    for report in (before, after):
        assert (report["mapped"], report["digital"]) == (10, 1)
    assert before["rram_weights"] == after["rram_weights"]
    by_name = {n["name"]: n for n in before["nodes"]}
    for node in after["nodes"]:
        assert node["mapped"] == by_name[node["name"]]["mapped"]
        assert node["reason"] == by_name[node["name"]]["reason"]
    assert len(after["nodes"]) == len(by_name)


def test_inspect_shows_people_the_hardware_and_the_state_of_the_adapters(
    cli: Cli, digits_job: Path
) -> None:
    # Bits and noise are in the file, and only --json says so.
    text = cli("inspect", "model.rimc.onnx", cwd=digits_job).stdout
    assert "converters and reads = ideal" in text
    assert "0 of 11 fitted" in text
    assert "ADC ranges" not in text
    assert "11 of 11 fitted" in cli(
        "inspect", "model.rimc.calibrated.onnx", cwd=digits_job
    ).stdout  # fmt: skip
    hard = ["--adc-bits", 6, "--tile-rows", 64, "--read-noise", 0.01, "-o", "hard.rimc.onnx"]
    cli("convert", "model.onnx", *hard, cwd=digits_job)
    text = cli("inspect", "hard.rimc.onnx", cwd=digits_job).stdout
    for line in ("adc_bits = 6", "read_noise = 0.01", "read_noise_law = absolute"):
        assert f"  {line}\n" in text
    assert "ADC ranges" in text
    assert "dac_bits" not in text


def test_calibrate_json_has_every_node(cli: Cli, digits_folder: Path) -> None:
    # gamma is eq. 7: parameters of the adapters over weights in RRAM, not over the model's size.
    converted = cli("convert", "model.onnx", "--json", cwd=digits_folder).json()
    report = cli("calibrate", "--samples", 7, "--rank", 2, "--json", cwd=digits_folder).json()
    assert report["output"] == "model.rimc.calibrated.onnx"
    assert report["samples"] == 7
    assert report["solver"] == "closed-form"
    assert report["seconds"] > 0
    assert [n["name"] for n in report["nodes"]] == [n["name"] for n in converted["nodes"]]
    for node in report["nodes"]:
        assert set(node) == {"name", "rank", "sram_bytes", "error_before", "error_after"}
        assert 1 <= node["rank"] <= 2
        assert 0 <= node["error_after"] < node["error_before"]
    assert report["sram_bytes"] == sum(n["sram_bytes"] for n in report["nodes"])
    assert report["gamma"] == pytest.approx(report["sram_bytes"] / converted["rram_weights"])


def test_names_in_brackets_are_shown_as_they_are(
    cli: Cli, tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # Taken for markup: [red] disappears, and [/x] is an error that should not happen.
    model = matmul_model(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))
    model.graph.node[0].name, model.graph.node[2].name = "[red]fc", "block[/x]"
    onnx.save(model, tmp_path / "model.onnx")
    result = cli("inspect", "model.onnx", cwd=tmp_path)
    assert (result.code, result.stderr) == (0, "")
    assert "[red]fc" in result.stdout
    assert "block[/x]" in result.stdout


def test_calibrate_names_every_file_that_it_writes(cli: Cli, digits_job: Path) -> None:
    # --adapter-file and --twin are written, and nothing says so.
    extras = ["--adapter-file", "task.onnx_adapter", "--twin", "twin.onnx"]
    call = ["calibrate", "model.rimc.onnx", "--samples", 1, *extras, "--force"]
    shown = [line[6:] for line in cli(*call, cwd=digits_job).stdout.splitlines() if "wrote" in line]
    report = cli(*call, "--json", cwd=digits_job).json()
    names = ["report", "adapter_file", "twin", "output"]
    assert shown == [report[name] for name in names]
    assert all((digits_job / name).is_file() for name in shown)


def test_evaluate_json_counts_labels_and_the_teacher(cli: Cli, digits_job: Path) -> None:
    # Percent in place of fractions; agreement of the model with itself below 1.
    clean = cli(
        "evaluate", "model.onnx", "--data", "test.npz", "--teacher", "model.onnx", "--json",
        cwd=digits_job,
    ).json()  # fmt: skip
    assert clean["samples"] == 500
    assert clean["top1"] == 0.982
    assert 0.99 < clean["top5"] <= 1
    assert clean["agreement"] == 1
    assert clean["sqnr_db"] == {"logits": None}
    assert clean["seconds"] > 0
    drifted = cli(
        "evaluate", "model.rimc.onnx", "--data", "test.npz", "--teacher", "model.onnx", "--json",
        cwd=digits_job,
    ).json()  # fmt: skip
    assert drifted["top1"] < clean["top1"]
    assert drifted["agreement"] < 1
    assert 0 < drifted["sqnr_db"]["logits"] < 40
    alone = cli("evaluate", "model.rimc.onnx", "--data", "test.npz", "--json", cwd=digits_job)
    assert alone.json()["top1"] == drifted["top1"]
    assert alone.json()["agreement"] is None


def test_evaluate_without_labels_takes_the_recorded_teacher(cli: Cli, digits_job: Path) -> None:
    # Field data has no labels; the converted file knows its teacher.
    with np.load(digits_job / "test.npz") as data:
        np.savez(digits_job / "field.npz", input=data["input"][:50])
    report = cli(
        "evaluate", "model.rimc.calibrated.onnx", "--data", "field.npz", "--json", cwd=digits_job
    ).json()
    assert report["agreement"] > 0.9
    assert report["top1"] is None


def test_batch_size_and_form_change_no_count(cli: Cli, digits_job: Path) -> None:
    # The last, smaller batch is dropped or counted twice.
    base = ["evaluate", "model.rimc.calibrated.onnx", "--data", "test.npz", "--json"]
    reports = [
        cli(*base, *more, cwd=digits_job).json()
        for more in ([], ["--batch-size", 7], ["--batch-size", 1000], ["--stock"])
    ]
    assert all(r["samples"] == 500 for r in reports)
    # An int8 code on a rounding tie may fall either way with the shape of a run: three images.
    assert max(r["top1"] for r in reports) - min(r["top1"] for r in reports) <= 3 / 500


METRICS = """\
import numpy as np


def spearman(outputs, extras):
    assert sorted(outputs) == ["logits"]
    assert sorted(extras) == ["ids", "labels"]
    assert outputs["logits"].shape == (500, 10)
    assert extras["ids"].tolist() == list(range(500))
    return np.float32(0.75)


def several(outputs, extras):
    right = outputs["logits"].argmax(1) == extras["labels"]
    return {"even": right[::2].mean(), "odd": right[1::2].mean()}
"""


def test_metric_of_the_user_has_its_own_name_at_the_top(cli: Cli, digits_job: Path) -> None:
    # A metric that gets one batch, or whose figure hides below "metrics".
    (digits_job / "my_metrics.py").write_text(METRICS)
    with np.load(digits_job / "test.npz") as data:
        np.savez(digits_job / "more.npz", ids=np.arange(500), **data)
    base = ["evaluate", "model.onnx", "--data", "more.npz"]
    report = cli(*base, "--metric", "my_metrics:spearman", "--json", cwd=digits_job).json()
    assert report["spearman"] == 0.75
    assert report["top1"] == 0.982  # labels are there, so they count as well
    assert "metrics" not in report
    report = cli(*base, "--metric", "my_metrics:several", "--json", cwd=digits_job).json()
    assert report["even"] + report["odd"] == pytest.approx(2 * 0.982)
    people = cli(*base, "--metric", "my_metrics:spearman", cwd=digits_job)
    assert "spearman" in people.stdout
    assert "0.7500" in people.stdout


def test_samples_come_from_npz_folder_or_python_alike(cli: Cli, digits_job: Path) -> None:
    # A reader of one of the three forms that drops labels, reorders or forgets the last batch.
    with np.load(digits_job / "test.npz") as data:
        arrays = dict(data)
    (digits_job / "arrays").mkdir()
    for name, array in arrays.items():
        np.save(digits_job / "arrays" / f"{name}.npy", array)
    (digits_job / "my_readers.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    data = dict(np.load('test.npz'))\n"
        "    for start in range(0, 500, 150):\n"
        "        yield {n: a[start:start + 150] for n, a in data.items()}\n"
        "class Reader:\n"
        "    def __init__(self): self.rest = list(batches())\n"
        "    def get_next(self): return self.rest.pop(0) if self.rest else None\n"
    )
    reports = [
        cli("evaluate", "model.rimc.onnx", "--data", data, "--json", cwd=digits_job).json()
        for data in ("test.npz", "arrays", "my_readers:batches", "my_readers:Reader")
    ]
    for report in reports:
        assert report["top1"] == reports[0]["top1"]
    # A dict of a reader is a run and a sample, however many labels it has.
    assert [report["samples"] for report in reports] == [500, 500, 4, 4]


def test_quickstart_runs_the_main_job(cli: Cli, tmp_path: Path) -> None:
    # The first thing a new user types: it must work in an empty folder, and again with --force.
    report = cli("quickstart", "--json", cwd=tmp_path).json()
    assert names(tmp_path) == {"rimc-quickstart"}
    clean, drifted, calibrated = report["rows"]
    assert [r["state"] for r in report["rows"]] == ["clean", "drifted", "calibrated"]
    assert clean["top1"] == clean["top1_stock"] == 0.982
    assert drifted["top1"] < 0.93
    assert calibrated["top1"] > 0.97
    for row in report["rows"]:
        assert abs(row["top1"] - row["top1_stock"]) <= 3 / 500
        assert (tmp_path / "rimc-quickstart" / row["file"]).is_file()
    assert cli("quickstart", cwd=tmp_path).code == 1
    people = cli("quickstart", "--force", cwd=tmp_path)
    assert people.code == 0
    assert people.stdout.splitlines()[-1] == "wrote rimc-quickstart"


def test_tables_for_people_have_no_colour_codes_in_a_file(cli: Cli, digits_job: Path) -> None:
    # Escape sequences in logs.
    for arguments in (
        ["inspect", "model.rimc.onnx"],
        ["convert", "model.onnx", "--force"],
        ["calibrate", "model.rimc.onnx", "--force"],
        ["evaluate", "model.onnx", "--data", "test.npz"],
    ):
        result = cli(*arguments, cwd=digits_job)
        assert result.code == 0
        assert "\x1b" not in result.stdout
        assert result.stderr == ""
        assert len(result.stdout.splitlines()) > 2


def test_api_gives_the_reports_that_json_shows(cli: Cli, digits_job: Path) -> None:
    # Two renderings of one report drift apart.
    from rimc_onnx import inspect

    shown = cli("inspect", "model.rimc.onnx", "--json", cwd=digits_job).json()
    assert shown == asdict(inspect("model.rimc.onnx"))


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
