# SPDX-License-Identifier: Apache-2.0
"""Files of a job: whole, all or none, and never in the place of what the job reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx import convert
from rimc_onnx.errors import OutputError, UsageError
from rimc_onnx.io import outputs as outputs_module
from rimc_onnx.io.model_files import data_files, load_model, put_model, save_model
from rimc_onnx.io.outputs import Outputs, check_output, check_outputs

Cli = Callable[..., Any]


def write(out: Outputs, path: Path, text: str) -> None:
    (out.folder(path) / path.name).write_text(text)


def write_all(folder: Path, names: list[str], *, force: bool) -> None:
    with Outputs(force=force) as out:
        for name in names:
            write(out, folder / name, f"new {name}")


def listing(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.mark.parametrize("force", [False, True])
def test_second_file_that_fails_takes_the_first_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    # A new model beside the report of an old one, and "Nothing was changed" above it.
    before = {"a": "old a", "b": "old b"} if force else {}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    place = outputs_module._place

    def fails(made: Path, target: Path, *, force: bool) -> None:
        if target.name == "a":
            raise OSError(28, "no space")
        place(made, target, force=force)

    monkeypatch.setattr(outputs_module, "_place", fails)
    with pytest.raises(OutputError, match=r"the disk is full\). Nothing was changed"):
        write_all(tmp_path, ["a", "b"], force=force)
    assert listing(tmp_path) == before


def test_nothing_has_a_name_before_all_is_made(tmp_path: Path) -> None:
    # The first file of two, of a job that fails while it makes the second.
    with pytest.raises(OutputError, match="no folder"):
        write_all(tmp_path, ["a", "nowhere/b"], force=False)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_two_runs_to_one_name_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    # Both look, both see nothing, and the later one replaces what the earlier one made.
    if not links:
        monkeypatch.setattr(os, "link", lambda *_a, **_k: (_ for _ in ()).throw(OSError(95, "no")))
    ready, results, errors = threading.Barrier(2), [], []

    def run(text: str) -> None:
        try:
            with Outputs(force=False) as out:
                write(out, tmp_path / "a", text)
                ready.wait(10)
            results.append(text)
        except OutputError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(t,)) for t in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    assert "came into being while this job ran" in errors[0]
    assert listing(tmp_path) == {"a": results[0]}


def test_links_count_as_the_files_that_they_are(tmp_path: Path) -> None:
    # A link that dangles looks like nothing; a hard link of the model looks like another file.
    (tmp_path / "model").write_text("m")
    os.link(tmp_path / "model", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("model")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("hard", "soft", "model"):
        with pytest.raises(UsageError, match="is read by this job"):
            check_output(tmp_path / name, force=True, reads=[tmp_path / "model"])
    for name in ("dangling", "circle"):
        with pytest.raises(OutputError, match="exists already"):
            check_output(tmp_path / name, force=False)
    with pytest.raises(UsageError, match="a file of its own"):
        check_outputs([tmp_path / "x", Path(f"{tmp_path}//x")], force=False, reads=[])


def test_longest_name_works_and_a_longer_one_is_a_line(
    cli: Cli, fails: Callable[..., str], digits_folder: Path
) -> None:
    # The hidden folder beside the output had the output's name and more.
    name = "n" * 250 + ".onnx"
    assert cli("convert", "model.onnx", "-o", name, cwd=digits_folder).code == 0
    line = fails(digits_folder, 1, "convert", "model.onnx", "-o", f"n{name}")
    assert "can't be a file (File name too long)" in line
    assert "calibrated.onnx" in fails(digits_folder, 1, "calibrate", name)
    # Weights in a file of their own: its name is longer than the model's.
    model = load_model(digits_folder / "model.onnx")
    long = digits_folder / f"\N{GREEK SMALL LETTER ALPHA}{'n' * 253}"
    save_model(model, long, force=False, external_data_bytes=1)
    (data,) = data_files(long)
    assert data.is_file()
    assert len(data.name.encode()) <= 255


def test_graph_is_never_beside_the_weights_of_another(digits_folder: Path) -> None:
    # One name for the weights of all runs: killed between the two renames, a graph of one model
    # reads the weights of another.
    path = digits_folder / "big.onnx"
    model = load_model(digits_folder / "model.onnx")
    save_model(model, path, force=False, external_data_bytes=1)
    (first,) = data_files(path)
    kept = first.read_bytes()
    name, value = next(iter(model.graph.initializers.items()))
    assert value.const_value is not None
    array = value.const_value.numpy() + 1
    value.const_value = ir.tensor(array, name=name)
    with Outputs(force=True) as out:
        put_model(model, path, out, external_data_bytes=1)
        assert first.read_bytes() == kept
    (second,) = data_files(path)
    assert second.name != first.name
    assert not first.exists()
    onnx.checker.check_model(str(path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "model.onnx", "--dac-bits", 8, "-o", "calibration.npz"],
        ["convert", "model.onnx", "--device", "mine.toml", "-o", "mine.toml"],
        ["calibrate", "model.rimc.onnx", "-o", "calibration.npz"],
        ["calibrate", "model.rimc.onnx", "--data", "arrays", "-o", "arrays/input.npy"],
        ["statistics", "model.onnx", "-o", "calibration.npz"],
        ["convert", "external.onnx", "-o", "external.data"],
        ["age", "model.rimc.onnx", "--time", "1d", "-o", "hard.onnx"],
    ],
    ids=lambda a: f"{a[0]} {a[-1]}",
)
def test_force_replaces_nothing_that_the_job_reads(
    fails: Callable[..., str], digits_job: Path, arguments: list[str]
) -> None:
    # The samples, the weights of the model itself, or the device's file.
    (digits_job / "mine.toml").write_text('base = "gaussian-relative"\ndrift_frac = 0.1\n')
    (digits_job / "arrays").mkdir()
    np.save(digits_job / "arrays" / "input.npy", np.load(digits_job / "calibration.npz")["input"])
    model = onnx.load(digits_job / "model.onnx")
    onnx.save(
        model,
        digits_job / "external.onnx",
        save_as_external_data=True,
        location="external.data",
        size_threshold=0,
    )
    os.link(digits_job / "model.onnx", digits_job / "hard.onnx")
    assert "is read by this job" in fails(digits_job, 2, *arguments, "--force")


def test_every_output_is_checked_before_anything_is_computed(
    digits_job: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Minutes of calibration, and then the last of five files can't be written.
    from rimc_onnx.jobs import calibrate as job

    monkeypatch.setattr(job, "fit_adapters", lambda *_a, **_k: pytest.fail("computed"))
    (digits_job / "new.report.json").write_text("{}")
    for more in ([], ["--twin", "nowhere/twin.onnx"], ["--adapter-file", "model.rimc.onnx"]):
        code = 2 if "model.rimc.onnx" in more else 1
        fails(digits_job, code, "calibrate", "model.rimc.onnx", "-o", "new.onnx", *more)


def test_conversion_with_external_data_brings_its_own(tmp_path: Path, digits_folder: Path) -> None:
    # The output's weights under the name of the model's, or beside the wrong folder.
    model = onnx.load(digits_folder / "model.onnx")
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    convert(path)
    (data,) = data_files(tmp_path / "net.rimc.onnx")
    assert data.name.startswith("net.rimc.onnx.")
    before = data.read_bytes()
    convert(path, force=True)
    assert data.read_bytes() == before


def test_file_in_the_place_of_a_link_finds_its_teacher(cli: Cli, digits_folder: Path) -> None:
    # The path to the teacher counted from the folder that the link led to; a circle led nowhere,
    # and its error was one that should not happen.
    elsewhere = digits_folder / "some" / "where"
    elsewhere.mkdir(parents=True)
    (elsewhere / "old.onnx").write_text("old")
    (digits_folder / "link.onnx").symlink_to(elsewhere / "old.onnx")
    (digits_folder / "circle.onnx").symlink_to("circle.onnx")
    for name in ("link.onnx", "circle.onnx"):
        assert cli("convert", "model.onnx", "-o", name, "--force", cwd=digits_folder).code == 0
        assert not (digits_folder / name).is_symlink()
        made = cli("calibrate", name, "--samples", 2, "-o", f"of.{name}", cwd=digits_folder)
        assert made.code == 0, made.stderr
    assert (elsewhere / "old.onnx").read_text() == "old"
