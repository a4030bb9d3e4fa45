# SPDX-License-Identifier: Apache-2.0
"""Baselines: each gives back what its source says that it does, and leaves the arrays alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rimc_onnx import ConvertConfig, api
from rimc_onnx.device import get_preset
from rimc_onnx.errors import OutputError, UsageError
from rimc_onnx.io.adapter_file import rram_digest
from rimc_onnx.io.model_files import load_model
from rimc_onnx.passes import rram_branches
from rimc_onnx.studies.baselines import BASELINES, BaselineProblem, BaselineResult

AGED = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.25, drift_mean_frac=-0.12))
RELATIVE = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.4), seed=3)
LOST = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.1, drift_mean_frac=-0.6))


@pytest.fixture(scope="module")
def models(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digits on arrays with independent errors, and on arrays that all lost conductance."""
    folder = tmp_path_factory.mktemp("baselines")
    found = {}
    other = replace(AGED, seed=AGED.seed + 1)
    configs = {"relative": RELATIVE, "lost": LOST, "aged": AGED, "aged_too": other}
    for name, config in configs.items():
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


def trained(
    name: str, digits: Path, converted: Path, out: Path, **options: object
) -> tuple[BaselineResult, float, float]:
    """The result, and agreement before and after."""
    pytest.importorskip("torch")
    with np.load(digits / "test.npz") as file:
        images = {n: file[n][200:] for n in file.files}
    problem = replace(problem_of(digits, converted, out, **options), data=images)
    result = BASELINES[name](problem)
    return result, agreement(converted, digits), agreement(result.model, digits)


def test_back_propagation_rewrites_the_arrays_and_gains_with_many_samples(
    digits: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # Weights that are trained and not written, or writes that nobody counts.
    options = {"num_samples": 200, "epochs": 3, "batch_size": 16, "learning_rate": 1e-4}
    converted = models["relative"]
    result, before, after = trained(
        "back-propagation", digits, converted, tmp_path / "m.onnx", **options
    )
    assert after >= before + 0.03
    student = load_model(converted)
    weights = sum(b.geometry.num_weights for b in rram_branches(student))
    assert result.rram_writes == 3 * 13 * weights
    assert result.sram_bytes == 0
    assert rram_digest(load_model(result.model)) != rram_digest(student)


def test_vera_plus_helps_without_seeing_the_device(
    digits: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # Vectors of one device in place of the law's: another seed would not be helped.
    options = {"steps": 80}
    results = [
        trained("vera-plus", digits, models[name], tmp_path / f"{name}.onnx", **options)
        for name in ("aged", "aged_too")
    ]
    adapters = []
    for name, (result, before, after) in zip(("aged", "aged_too"), results, strict=True):
        assert after >= before + 0.05
        assert result.rram_writes == 0
        student = load_model(result.model)
        assert rram_digest(load_model(models[name])) == rram_digest(student)
        adapters.append([b.adapter().tensors() for b in rram_branches(student)])
    for one, other in zip(*adapters, strict=True):
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])


def test_vera_plus_takes_the_vectors_of_the_nearest_age(digits: Path, tmp_path: Path) -> None:
    # The age of the list, not the model's; a device without a time axis has none.
    from rimc_onnx.studies.baselines.trained import _convert_config

    converted = tmp_path / "wan.rimc.onnx"
    config = ConvertConfig(device=get_preset("wan2022-aihwkit"), time_s=7200.0)
    api.convert(digits / "model.onnx", converted, config=config)
    found = _convert_config(load_model(converted), [1.0, 3600.0, 86400.0])
    assert found.time_s == 3600.0
    assert len(found.node_devices) == 11


def test_example_of_the_page_runs_and_the_page_names_every_baseline(
    digits_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page of an earlier interface; a baseline without a source.
    page = (Path(__file__).resolve().parents[2] / "docs" / "baselines.md").read_text("utf-8")
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(digits_job)
    exec(compile(found[1], "baselines.md", "exec"), {"__name__": "example"})
    assert Path("bias.onnx").is_file()
    table = page.partition("## What they are")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([\w-]+)` \| ", table, re.MULTILINE)
    assert sorted(named) == sorted(BASELINES)
