# SPDX-License-Identifier: Apache-2.0
"""The recovery study: its figures are those of the single steps, its spread is right."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimc_onnx import api
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import DataError, UsageError
from rimc_onnx.studies.recovery import (
    RecoveryNode,
    RecoveryReport,
    RecoveryRun,
    Spread,
    recovery_study,
)
from rimc_onnx.studies.rows import read_rows

Array = np.ndarray[Any, Any]

TEN = CalibrateConfig(num_samples=10)


@pytest.fixture(scope="module")
def study(digits: Path) -> RecoveryReport:
    """Two devices, two draws each."""
    return recovery_study(
        digits / "model.onnx",
        test=digits / "test.npz",
        seeds=[0, 7],
        draws=[0, 1],
        calibrate=TEN,
    )


def test_a_run_is_what_the_single_steps_give(
    study: RecoveryReport, digits: Path, tmp_path: Path
) -> None:
    # A seed or a draw that is passed on to the wrong step, or to none.
    converted = tmp_path / "m.rimc.onnx"
    api.convert(digits / "model.onnx", converted, config=ConvertConfig(seed=7))
    report = api.calibrate(
        converted,
        data=digits / "calibration.npz",
        config=CalibrateConfig(num_samples=10, sample_seed=1),
    )
    run = study.runs[3]
    assert (run.seed, run.draw) == (7, 1)
    test = digits / "test.npz"
    assert run.uncalibrated == api.evaluate(converted, data=test).top1
    assert run.calibrated == api.evaluate(report.output, data=test).top1
    assert run.sram_bytes == report.sram_bytes
    assert study.clean == api.evaluate(digits / "model.onnx", data=test, native=False).top1


def test_summary_is_of_the_runs(study: RecoveryReport) -> None:
    # n for n - 1, seeds counted once for each draw, a share of the wrong difference.
    calibrated = [r.calibrated for r in study.runs]
    assert study.calibrated.mean == pytest.approx(sum(calibrated) / 4, rel=1e-12)
    assert study.calibrated.std == pytest.approx(np.std(calibrated, ddof=1), rel=1e-9)
    assert (study.calibrated.min, study.calibrated.max) == (min(calibrated), max(calibrated))
    assert (study.calibrated.count, study.uncalibrated.count) == (4, 2)
    uncalibrated = [study.runs[0].uncalibrated, study.runs[2].uncalibrated]
    assert study.uncalibrated == Spread.of(uncalibrated)
    lost = study.clean - sum(uncalibrated) / 2
    restored = (study.calibrated.mean - sum(uncalibrated) / 2) / lost
    assert study.restored_frac == pytest.approx(restored, rel=1e-9)
    pooled = [statistics.variance(calibrated[:2]), statistics.variance(calibrated[2:])]
    assert study.draws_std == pytest.approx(np.sqrt(sum(pooled) / 2), rel=1e-9)
    assert (study.figure, study.samples, study.test_samples) == ("top1", 10, 500)


def test_calibration_restores_most_of_what_drift_took(study: RecoveryReport) -> None:
    # Calibrated and uncalibrated exchanged.
    assert study.restored_frac is not None
    assert 0.8 < study.restored_frac < 1.2


def test_worst_nodes_come_first(study: RecoveryReport) -> None:
    assert len(study.nodes) == 11
    after = [n.error_after for n in study.nodes]
    assert after == sorted(after, reverse=True)
    for node in study.nodes:
        assert 0 <= node.error_after <= node.error_after_max
        assert node.error_after < node.error_before


def test_report_is_json(study: RecoveryReport) -> None:
    # A numpy scalar or a range in a field.
    found = json.loads(json.dumps(asdict(study), allow_nan=False))
    assert len(found["runs"]) == 4
    assert found["calibrated"]["count"] == 4


def test_files_are_gone_and_runs_are_told_at_once(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gigabytes of converted models left behind; a bar that jumps from 0 to 100 %.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = sorted(digits_folder.iterdir())
    steps: list[tuple[int, int]] = []
    told: list[tuple[RecoveryRun, int, int]] = []

    def on_run(run: RecoveryRun) -> None:
        files = sum(p.suffix == ".onnx" for p in scratch.rglob("*"))
        told.append((run, len(steps), files))

    report = recovery_study(
        digits_folder / "model.onnx",
        test=digits_folder / "test.npz",
        seeds=range(2),
        draws=range(1),
        calibrate=TEN,
        progress=lambda done, total: steps.append((done, total)),
        on_run=on_run,
    )
    assert steps == [(i + 1, 5) for i in range(5)]
    assert [run for run, _, _ in told] == report.runs
    assert [(count, files <= 2) for _, count, files in told] == [(3, True), (5, True)]
    assert list(scratch.iterdir()) == []
    assert sorted(digits_folder.iterdir()) == before
    assert report.draws_std is None


def test_without_labels_models_are_compared_with_the_clean_one(digits: Path) -> None:
    # A user without labels gets an error about labels, or the agreement with itself.
    with np.load(digits / "test.npz") as file:
        images = file["input"]
    report = recovery_study(
        digits / "model.onnx", test={"input": images}, seeds=[0], draws=[0], calibrate=TEN
    )
    assert (report.figure, report.clean) == ("agreement", 1.0)
    assert report.uncalibrated.mean < report.calibrated.mean <= 1.0
    assert report.calibrated.std is None


def test_metric_where_less_is_better_gives_the_same_share(
    study: RecoveryReport, digits: Path
) -> None:
    # (after - before) / (clean - before) has the right sign either way; a guard on it has not.
    def errors(outputs: dict[str, Array], extras: dict[str, Array]) -> float:
        (logits,) = outputs.values()
        return float((logits.argmax(-1) != extras["labels"]).mean())

    report = recovery_study(
        digits / "model.onnx",
        test=digits / "test.npz",
        metric=errors,
        seeds=[0],
        draws=[0],
        calibrate=TEN,
    )
    first = study.runs[0]
    share = (first.calibrated - first.uncalibrated) / (study.clean - first.uncalibrated)
    assert report.figure == "errors"
    assert report.uncalibrated.mean > report.calibrated.mean
    assert report.restored_frac == pytest.approx(share, rel=1e-9)


def test_nothing_lost_is_no_share(digits: Path) -> None:
    # Division by zero with a device that does not drift.
    ideal = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.0))
    report = recovery_study(
        digits / "model.onnx",
        test=digits / "test.npz",
        seeds=[0],
        draws=[0],
        config=ideal,
        calibrate=TEN,
    )
    assert report.uncalibrated.mean == report.clean
    assert report.restored_frac is None


def test_wrong_calls_are_refused_before_the_work(digits: Path, tmp_path: Path) -> None:
    model, test = digits / "model.onnx", digits / "test.npz"
    with pytest.raises(UsageError, match="`seeds` must be 1 or more, got 0"):
        recovery_study(model, test=test, seeds=[])
    with pytest.raises(UsageError, match="`draws` must be 1 or more, got 0"):
        recovery_study(model, test=test, draws=range(0))
    # Twice the same result would halve the spread.
    with pytest.raises(UsageError, match=r"seeds \[3, 3\] repeat themselves"):
        recovery_study(model, test=test, seeds=[3, 3])
    with pytest.raises(UsageError, match="the metric gives 2: a, b"):
        recovery_study(model, test=test, metric=lambda _outputs, _extras: {"a": 1.0, "b": 2.0})
    alone = tmp_path / "model.onnx"
    alone.write_bytes(model.read_bytes())
    with pytest.raises(DataError, match=r"no calibration\.npz beside the model"):
        recovery_study(alone, test=test)


def test_command_studies_the_devices_of_convert(
    cli: Callable[..., Any], digits_folder: Path
) -> None:
    # An option of the device that the help lists and the study's conversions leave out.
    options = ["--stuck-min", 0.1, "--level-bits", 3, "--clip-sigma", 2, "--devices-per-weight", 2]
    study = ["study", "recovery", "model.onnx", "--test", "test.npz", "--seeds", 1, "--draws", 1]
    found = cli(*study, *options, "--json", cwd=digits_folder).json()
    assert cli("convert", "model.onnx", *options, cwd=digits_folder).code == 0
    alone = cli("evaluate", "model.rimc.onnx", "--data", "test.npz", "--json", cwd=digits_folder)
    assert found["uncalibrated"]["mean"] == alone.json()["top1"] < found["clean"]


def test_folder_has_the_page_and_goes_on(cli: Callable[..., Any], digits_folder: Path) -> None:
    # A page of other runs than the report's; a folder that is measured again, or not added to.
    pytest.importorskip("pyarrow", reason="the rows of a study need pyarrow (extra `study`)")
    options = ["study", "recovery", "model.onnx", "--test", "test.npz", "-o", "out", "--json"]
    first = cli(*options, "--seeds", 1, "--draws", 1, cwd=digits_folder).json()
    (before,) = read_rows(digits_folder / "out" / "rows.parquet")
    assert [before["calibrated"]] == [run["calibrated"] for run in first["runs"]]
    both = cli(*options, "--seeds", 1, "--draws", 2, cwd=digits_folder).json()
    rows = read_rows(digits_folder / "out" / "rows.parquet")
    assert rows[0] == before  # times, too
    assert [r["calibrated"] for r in rows] == [run["calibrated"] for run in both["runs"]]
    page = (digits_folder / "out" / "study.html").read_text("utf-8")
    assert f"{100 * both['calibrated']['mean']:.1f} ± " in page
    assert "study recovery model.onnx" in page


def test_documentation_lists_the_fields() -> None:
    # A field that is renamed in the code and not in docs/report.md.
    text = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text("utf-8")
    study = text.partition("## The recovery study")[2]
    assert re.findall(r"(?m)^\| `(\w+)` \|", study) == [f.name for f in fields(RecoveryReport)]
    (nodes,) = re.findall(r"(?m)^\| `nodes` \| (.*) \|$", study)
    assert re.findall(r"`(\w+)`", nodes) == [f.name for f in fields(RecoveryNode)]
    (runs,) = re.findall(r"(?m)^\| `runs` \| (.*) \|$", study)
    assert re.findall(r"`(\w+)`", runs) == [f.name for f in fields(RecoveryRun)]
