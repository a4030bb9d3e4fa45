# SPDX-License-Identifier: Apache-2.0
"""What the commands report: JSON, tables for people, files of samples and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

Cli = Callable[..., Any]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


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
