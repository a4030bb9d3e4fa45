# SPDX-License-Identifier: Apache-2.0
"""Baselines: each gives back what its source says that it does, and leaves the arrays alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rimc_onnx import ConvertConfig, api
from rimc_onnx.device import get_preset
from rimc_onnx.errors import OutputError, UsageError
from rimc_onnx.io.adapter_file import rram_digest
from rimc_onnx.io.model_files import load_model
from rimc_onnx.studies.baselines import BASELINES, BaselineProblem, BaselineResult

RELATIVE = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.4), seed=3)
LOST = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.1, drift_mean_frac=-0.6))


@pytest.fixture(scope="module")
def models(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digits on arrays with independent errors, and on arrays that all lost conductance."""
    folder = tmp_path_factory.mktemp("baselines")
    found = {}
    for name, config in (("relative", RELATIVE), ("lost", LOST)):
        found[name] = folder / f"{name}.rimc.onnx"
        api.convert(digits / "model.onnx", found[name], config=config)
    return found


def problem_of(digits: Path, converted: Path, out: Path, **options: object) -> BaselineProblem:
    return BaselineProblem(
        teacher=digits / "model.onnx",
        converted=converted,
        data=digits / "calibration.npz",
        labels="labels",
        out=out,
        options=options,
    )


def agreement(model: Path, digits: Path) -> float:
    """With the clean model."""
    with np.load(digits / "test.npz") as file:
        data = {"input": file["input"][:200]}
    report = api.evaluate(model, data=data, teacher=digits / "model.onnx")
    assert report.agreement is not None
    return report.agreement


def run(name: str, digits: Path, converted: Path, out: Path, **options: object) -> BaselineResult:
    result = BASELINES[name](problem_of(digits, converted, out, **options))
    assert result.model == out
    assert result.seconds > 0
    return result


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("batch-norm", 0.03),
        ("bias", 0.0),
        ("magnitude", 0.03),
        ("lora", 0.03),
        ("adam-dora", 0.03),
        ("closed-form", 0.05),
        ("sparse", 0.05),
        ("budget", 0.05),
    ],
)
def test_baseline_gives_accuracy_back_and_leaves_the_arrays(
    name: str, least: float, digits: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # An adapter of the wrong node or sign; a baseline that quietly writes weights.
    if name == "adam-dora":
        pytest.importorskip("torch")
    result = run(name, digits, models["relative"], tmp_path / "out.onnx")
    before, after = (agreement(m, digits) for m in (models["relative"], result.model))
    assert after >= before + least
    assert result.rram_writes == 0
    held, found = (rram_digest(load_model(m)) for m in (models["relative"], result.model))
    assert held == found
    assert (result.sram_bytes == 0) == (name == "bias")


def test_drift_compensation_gives_back_what_all_cells_lost(
    digits: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # The ratio upside down; a gain of the wrong bit line. A column's own gain must not be worse.
    before = agreement(models["lost"], digits)
    by_array = run("drift-compensation", digits, models["lost"], tmp_path / "a.onnx")
    by_column = run("drift-compensation-column", digits, models["lost"], tmp_path / "b.onnx")
    after = [agreement(r.model, digits) for r in (by_array, by_column)]
    assert after[0] >= before + 0.05
    assert after[1] >= after[0] - 0.02
    assert by_array.sram_bytes == 0  # one digital scale
    assert by_column.sram_bytes > 0


def test_batch_norm_meets_means_and_spreads_of_the_last_node(
    digits: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # Statistics of the teacher's inputs in place of the student's own: later nodes would be off.
    result = run("batch-norm", digits, models["relative"], tmp_path / "m.onnx", num_samples=64)
    with np.load(digits / "calibration.npz") as file:
        draw = np.random.default_rng(0).permutation(len(file["input"]))[:64]
        data = {"input": file["input"][draw]}
    from rimc_onnx.execution.sessions import open_session

    student, teacher = (
        open_session(path, native=native).run(None, data)[0]
        for path, native in ((result.model, True), (digits / "model.onnx", False))
    )
    np.testing.assert_allclose(student.mean(0), teacher.mean(0), atol=0.05 * teacher.std())
    np.testing.assert_allclose(student.std(0), teacher.std(0), rtol=0.05)


def test_unknown_option_is_refused_and_an_output_kept(
    digits: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="num_sample"):
        run("bias", digits, models["lost"], tmp_path / "m.onnx", num_sample=3)
    kept = tmp_path / "kept.onnx"
    kept.write_bytes(b"mine")
    with pytest.raises(OutputError):
        run("drift-compensation", digits, models["lost"], kept)
    assert kept.read_bytes() == b"mine"
