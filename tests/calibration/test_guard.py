# SPDX-License-Identifier: Apache-2.0
"""Bad fits, planted: the guard sees them at the model's outputs and takes them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from sample_jobs import top1
from typer.testing import CliRunner

from rimc_onnx import calibrate, convert
from rimc_onnx.calibration import guard, walk
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.fit import CalibratedNode, Fitted
from rimc_onnx.calibration.job import CalibrationJob
from rimc_onnx.calibration.output_error import OutputFigures, output_figures
from rimc_onnx.calibration.sensitivity import Sensitivities
from rimc_onnx.cli.main import app
from rimc_onnx.errors import CalibrationError
from rimc_onnx.execution.sessions import digital_session, native_session
from rimc_onnx.io.feeds import data_beside, feeds_of, graph_inputs
from rimc_onnx.io.model_files import load_model
from rimc_onnx.io.samples import load_samples
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.passes import rram_branches

Harm = Callable[[QuantizedAdapter], QuantizedAdapter]


def plant(
    monkeypatch: pytest.MonkeyPatch, harm: Harm, *, when: Callable[[CalibrationJob], bool]
) -> None:
    """Fits that look as good as before in the report of every node, and are not."""
    fit = guard.fit_nodes

    def fit_badly(job: CalibrationJob, sensitivities: Sensitivities) -> Fitted:
        fitted = fit(job, sensitivities)
        return replace(fitted, nodes=[bad(n) for n in fitted.nodes]) if when(job) else fitted

    def bad(node: CalibratedNode) -> CalibratedNode:
        return replace(node, adapter=harm(node.adapter))

    monkeypatch.setattr(guard, "fit_nodes", fit_badly)


def wrong_rank(adapter: QuantizedAdapter) -> QuantizedAdapter:
    return replace(adapter, lora_b_scale=-60 * adapter.lora_b_scale)


def one_line_left(adapter: QuantizedAdapter) -> QuantizedAdapter:
    magnitude = np.where(np.arange(adapter.magnitude.size) % 8 == 0, adapter.magnitude, 0)
    return replace(adapter, magnitude=magnitude.astype(np.int8))


def everything(adapter: QuantizedAdapter) -> QuantizedAdapter:
    return replace(adapter, magnitude=np.zeros_like(adapter.magnitude))


def run(folder: Path, **config: Any) -> Any:
    given = CalibrateConfig(**{"rank": 4, **config})
    return calibrate(folder / "model.rimc.onnx", folder / "new.onnx", config=given)


def test_nothing_is_taken_back_from_a_good_fit(digits_job: Path) -> None:
    report = run(digits_job)
    assert report.taken_back is None
    assert report.warning is None
    assert not report.is_identity
    assert report.drifted.error > 0.2
    assert report.calibrated.error < 0.05
    assert report.calibrated.agreement == 1
    assert list(report.calibrated.sqnr_db) == list(report.drifted.sqnr_db) == ["logits"]
    assert report.calibrated.sqnr_db["logits"] > report.drifted.sqnr_db["logits"] + 6


@pytest.mark.parametrize(
    ("harm", "part", "words"),
    [(wrong_rank, "low_rank", "low rank"), (one_line_left, "magnitude", "magnitude")],
)
def test_the_part_that_harms_is_taken_back(
    digits_job: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, part: str, words: str
) -> None:
    # SqueezeNet came back worse than drifted, with every node's error smaller and no word of it.
    plant(monkeypatch, harm, when=lambda job: getattr(job.config.kinds, part))
    report = run(digits_job)
    assert words in report.taken_back
    assert report.calibrated.error < min(0.1, report.drifted.error)
    assert top1(digits_job / "new.onnx") > top1(digits_job / "model.rimc.onnx") + 0.03
    written = json.loads((digits_job / "new.report.json").read_text())
    assert written["taken_back"] == report.taken_back
    assert written["calibrated"]["error"] == report.calibrated.error
    # The nodes' figures are those of what was written.
    adapters = [branch.adapter() for branch in rram_branches(load_model(digits_job / "new.onnx"))]
    assert [a.sram_bytes for a in adapters] == [n.sram_bytes for n in report.nodes]
    assert any(n.rank for n in report.nodes) == ("low rank" not in report.taken_back)


def test_the_last_step_is_taken_back_too(digits_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Biases that follow the noise of ten samples.
    shift = guard.bias_shift
    monkeypatch.setattr(
        guard,
        "bias_shift",
        lambda lacking, scale, **kw: shift(lacking, scale, **kw) + 3 * scale.max(),
    )
    report = run(digits_job)
    assert report.taken_back == "gains and biases of the student's inputs"
    assert report.calibrated.error < 0.1


def test_the_figures_are_those_of_a_run(digits_job: Path) -> None:
    # Outputs of the walk that moves gains and biases, without the gains' rounding to int8, or with
    # a bias that was scaled with them.
    report = run(digits_job)
    new = load_model(digits_job / "new.onnx")
    teacher = digital_session((digits_job / "model.onnx").read_bytes())
    data = data_beside(digits_job / "model.rimc.onnx", None)
    feeds = feeds_of(load_samples(data, graph_inputs(new)).draw(10, seed=0))
    given = walk.model_outputs(new, feeds, native_session)
    wanted = {name: [teacher.run([name], dict(feed))[0] for feed in feeds] for name in given}
    figures = output_figures(wanted, given)
    assert report.calibrated.error == pytest.approx(figures.error, rel=1e-4)
    assert report.calibrated.agreement == figures.agreement


def test_where_nothing_helps_nothing_is_written_unless_asked_for(
    digits_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that is worse than the one before calibration, or one that only looks calibrated.
    plant(monkeypatch, everything, when=lambda _job: True)
    monkeypatch.chdir(digits_job)
    with pytest.raises(CalibrationError, match=r"does not help: error .* without it"):
        run(digits_job)
    assert not (digits_job / "new.onnx").exists()
    call = ["calibrate", "model.rimc.onnx", "--rank", "4", "-o", "new.onnx", "--json"]
    assert CliRunner().invoke(app, call).exit_code == 1
    done = CliRunner().invoke(app, [*call, "--allow-identity"])
    assert done.exit_code == 3
    report = json.loads(done.stdout)
    assert report["is_identity"]
    assert report["calibrated"] == report["drifted"]
    assert {n["error_after"] == n["error_before"] for n in report["nodes"]} == {True}
    assert "adapters do nothing" in done.stderr
    assert top1(digits_job / "new.onnx") == top1(digits_job / "model.rimc.onnx")
    assert all(b.adapter().is_identity for b in rram_branches(load_model(digits_job / "new.onnx")))


def test_labels_are_judged_by_the_numbers_behind_them(
    digits_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that ends in ArgMax had no guard at all, and no figures of its outputs.
    path = digits_job / "model.onnx"
    model = onnx.load(path)
    model.graph.node.append(
        onnx.helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0, name="label")
    )
    label = onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["N"])
    del model.graph.output[:]
    model.graph.output.append(label)
    onnx.save(model, path)
    convert(path, force=True)
    plant(monkeypatch, wrong_rank, when=lambda job: job.config.kinds.low_rank)
    report = run(digits_job)
    assert "low rank" in report.taken_back
    assert list(report.calibrated.sqnr_db) == ["logits"]
    assert report.calibrated.error < min(0.1, report.drifted.error)


@pytest.mark.parametrize(
    ("error", "agreement", "share", "is_told"),
    [
        (0.2, 0.8, 1.0, False),
        (0.38, 0.8, 1.0, True),
        (0.38, 0.9, 1.0, False),
        (0.6, 0.9, 1.0, True),
        (0.6, 0.9, 1e-3, True),
    ],
)
def test_a_model_that_stays_far_off_is_said_to_be(
    error: float, agreement: float, share: float, is_told: bool
) -> None:
    # Better than drifted in error power and still useless: a network whose inputs a DAC drowns kept
    # 59 % of 98 at an error of 0.38, as many samples agreeing as before, and nothing was said.
    bad = SimpleNamespace(name="bad", error_after=0.4, equalized_share=share)
    found = guard.Calibration(
        nodes=[SimpleNamespace(name="good", error_after=0.1), bad],  # type: ignore[list-item]
        drifted=OutputFigures(error=1.3, agreement=0.8, sqnr_db={}),
        calibrated=OutputFigures(error=error, agreement=agreement, sqnr_db={}),
        taken_back=None,
        is_identity=False,
    )
    assert (found.warning is not None) == is_told
    assert not is_told or "Node 'bad' errs most (0.4)" in str(found.warning)
    assert ("equalize" in str(found.warning)) == (share < 1)


def test_errors_of_converters_are_not_put_down_to_a_node() -> None:
    # With three bits and no drift, a node of error 0 "erred most".
    found = guard.Calibration(
        nodes=[SimpleNamespace(name=n, error_after=0.01) for n in "ab"],  # type: ignore[misc]
        drifted=OutputFigures(error=1.3, agreement=0.8, sqnr_db={}),
        calibrated=OutputFigures(error=0.9, agreement=0.8, sqnr_db={}),
        taken_back=None,
        is_identity=False,
    )
    assert "`dac_bits`, `adc_bits`" in str(found.warning)
    assert "errs most" not in str(found.warning)


def test_without_a_sample_to_run_nothing_is_claimed(digits_job: Path) -> None:
    # A guard that compares nothing with nothing and finds it right.
    from rimc_onnx import write_statistics

    path = digits_job / "s.npz"
    write_statistics(digits_job / "model.onnx", path, keep_samples=0)
    config = CalibrateConfig(num_samples=0, read_out=True)
    report = calibrate(
        digits_job / "model.rimc.onnx", digits_job / "new.onnx", statistics=path, config=config
    )
    assert report.drifted is None
    assert report.calibrated is None
