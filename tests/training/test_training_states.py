# SPDX-License-Identifier: Apache-2.0
"""States of a training: what they are judged by, and what they belong to."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch")

from training_runs import WAN, recipe, run  # noqa: E402

from rimc_onnx import (  # noqa: E402
    CalibrateConfig,
    ConvertConfig,
    PeripheryConfig,
    calibrate,
    convert,
    evaluate,
)
from rimc_onnx.io.samples import SampleArrays  # noqa: E402
from rimc_onnx.training.config import Loss, Optimizer  # noqa: E402
from rimc_onnx.training.finetune import Trainer  # noqa: E402

NOTHING_TO_LEARN: dict[str, Any] = {
    "convert": ConvertConfig(uncalibrated=True),  # no read noise
    "penalty": 0.0,
    "weight_clip_sigma": None,
    "optimizer": Optimizer.SGD,
    "learning_rate": 1e-3,
}
"""Asks for the answers of the teacher alone, which the weights give from the start."""


def test_state_of_other_labels_is_not_gone_on_with(folder: Path) -> None:
    # Weights that were trained for other labels, written as the result for these.
    with np.load(folder / "train.npz") as file:
        np.savez(folder / "two.npz", **dict(file), other=(file["labels"] + 1) % 10)

    def killed(done: int, _total: int) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    config, data = recipe(loss=Loss.TASK), folder / "two.npz"
    with pytest.raises(KeyboardInterrupt):
        run(folder, "out.onnx", config, data=data, labels="other", progress=killed)
    steps: list[int] = []
    run(folder, "out.onnx", config, data=data, progress=lambda done, _: steps.append(done))
    assert steps[0] == 1


def test_state_that_is_worse_once_calibrated_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few steps that gain on devices which nobody calibrates took 17 points from calibrated ones.
    def figures(trainer: Trainer, _calibrated: Any) -> tuple[float, float]:
        return 0.1, 0.9 if trainer.state.step == 0 else 0.7

    monkeypatch.setattr(Trainer, "_calibrated_figures", figures)
    report = run(folder, "out.onnx", recipe())
    assert min(report.validations, key=lambda v: v.loss).step > 0
    assert (report.best.step, report.changed) == (0, 0)
    monkeypatch.setattr(Trainer, "_calibrated_figures", lambda *_: (0.1, 0.9))
    assert run(folder, "kept.onnx", recipe()).best.step > 0
    # Without classes the loss tells.
    losses = {0: 0.1, 4: 0.11, 8: 0.09, 12: 0.12}
    monkeypatch.setattr(
        Trainer, "_calibrated_figures", lambda trainer, _: (losses[trainer.state.step], None)
    )
    assert run(folder, "by_loss.onnx", recipe()).best.step == 8


def test_calibrated_figures_are_those_of_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another device, adapters that never reach the session, or training samples for held-out ones.
    with np.load(folder / "test.npz") as file:
        np.savez(folder / "held.npz", **{n: file[n][200:] for n in file.files})
    monkeypatch.setattr(Trainer, "_score", lambda _self, state: -state.step)
    config = ConvertConfig()  # no read noise, which differs from run to run
    report = run(
        folder, "out.onnx", recipe(steps=1, convert=config), validation=folder / "held.npz"
    )
    key = int.from_bytes(hashlib.sha256(b"0\x000\x00validation").digest()[:6], "big")
    for state, name in zip(report.validations, ("model.onnx", "out.onnx"), strict=True):
        converted = folder / name.replace(".onnx", ".rimc.onnx")
        convert(folder / name, converted, config=replace(config, seed=key))
        calibrated = calibrate(converted, data=folder / "train.npz", config=CalibrateConfig())
        found = evaluate(calibrated.output, data=folder / "held.npz", native=True)
        assert state.calibrated_hits == pytest.approx(found.top1, abs=1e-9)
        assert state.device_hits < found.top1


def test_use_without_calibration_is_not_judged_with_one(folder: Path) -> None:
    # A training for --uncalibrated that waits for calibrations which nobody will make.
    report = run(folder, "out.onnx", recipe(steps=1, convert=replace(WAN, uncalibrated=True)))
    assert [v.calibrated_loss for v in report.validations] == [None, None]


def test_held_out_samples_have_answers_of_their_own(folder: Path) -> None:
    # Answers of the teacher kept by row alone: training samples got those of --validation.
    with np.load(folder / "test.npz") as file:
        np.savez(folder / "held.npz", **{n: file[n][200:] for n in file.files})
    report = run(
        folder,
        "out.onnx",
        recipe(**NOTHING_TO_LEARN, steps=26),
        validation=folder / "held.npz",
    )
    assert all(v.clean_loss < 1e-4 for v in report.validations)


def test_answers_of_a_fixed_axis_are_not_cut(folder: Path) -> None:
    # An output [C, N] whose classes are as many as the samples of a batch.
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [16, "N"])
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Transpose", ["h"], ["y"], name="turn"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]),
        folder / "turned.onnx",
    )
    data = {"x": np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)}
    config = recipe(**(NOTHING_TO_LEARN | {"learning_rate": 0.1}))
    report = run(folder, "out.onnx", config, model="turned.onnx", data=data)
    assert all(v.clean_loss < 1e-4 for v in report.validations)


def test_samples_beside_the_model_set_the_ranges_of_every_state(folder: Path) -> None:
    # A state is converted in a folder of its own, where no calibration.npz lies.
    config = recipe(steps=1, convert=replace(WAN, periphery=PeripheryConfig(dac_bits=8)))
    report = run(folder, "out.onnx", config, data=None)
    assert report.validations[0].calibrated_hits is not None


def test_models_of_a_fixed_batch_are_calibrated_in_whole_runs(folder: Path) -> None:
    # Ten samples of a model that takes four a run.
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, folder / "four.onnx")
    data = SampleArrays(arrays=folder / "train.npz", batch_axis=0)
    report = run(folder, "out.onnx", recipe(steps=1), model="four.onnx", data=data)
    assert report.validations[0].calibrated_hits is not None


@pytest.mark.parametrize(
    ("is_new", "right", "is_kept"), [(True, 0.93, False), (False, 0.93, True), (False, 0.87, False)]
)
def test_what_a_network_may_know_by_heart_may_be_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool, right: float, is_kept: bool
) -> None:
    # Held out of the network's own training data, where the model as it came has all answers by
    # heart: a training that gains on new samples was thrown away. One that ruins it must go.
    answers = iter([(1.0, 1.0), *[(1.0, right)] * 9])
    monkeypatch.setattr(Trainer, "_calibrated_figures", lambda *_: next(answers))
    monkeypatch.setattr(Trainer, "_score", lambda _self, validation: -validation.step)
    with np.load(folder / "train.npz") as file:
        new = {name: array[:64] for name, array in file.items()} if is_new else None
    report = run(folder, "out.onnx", recipe(steps=2), validation=new)
    assert (report.best.step > 0) == is_kept
