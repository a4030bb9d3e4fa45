# SPDX-License-Identifier: Apache-2.0
"""Kinds of adapters and SRAM budgets, end to end on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sample_jobs import top1

from rimc_onnx import calibrate, convert, inspect
from rimc_onnx.calibration.config import (
    CalibrateConfig,
    Propagate,
    Solver,
    parse_adapter,
    parse_budget,
)
from rimc_onnx.errors import CalibrationError, ConfigError, UsageError
from rimc_onnx.io.model_files import load_model
from rimc_onnx.ops import schema
from rimc_onnx.passes import rram_branches

KINDS = ["dora", "lora", "magnitude", "bias", "sparse", "dora+sparse", "lora+sparse", "dora+dense"]


@pytest.mark.parametrize("kinds", [*KINDS, "sparse+dense", "magnitude+sparse", "dora+sparse+dense"])
def test_adapter_has_the_parts_asked_for_within_its_budget(digits_job: Path, kinds: str) -> None:
    # A part that is written though it was not asked for; SRAM counted without groups or indices.
    out = digits_job / "new.onnx"
    budget = 1500
    asked = parse_adapter(kinds)
    report = calibrate(
        digits_job / "model.rimc.onnx",
        out,
        config=CalibrateConfig(adapter=kinds, sram_budget_bytes=budget),
    )
    assert report.sram_bytes <= budget
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    for node in onnx.load(out).graph.node:
        if not node.op_type.startswith("Dora"):
            continue
        parts = dict(
            zip(schema.OPS[node.op_type].inputs[2:], map(tensors.get, node.input[2:]), strict=True)
        )
        assert asked.low_rank or parts["lora_a"].size == 0
        assert asked.sparse or asked.dense or parts["sparse_values"].size == 0
        assert asked.magnitude or (parts["magnitude"] == 64).all()
    if "lora" in kinds or "dora" in kinds or "sparse" in kinds:
        assert report.sram_bytes > 0.9 * budget
        assert top1(out) > top1(digits_job / "model.rimc.onnx") + 0.05
    # Both are measured, in float32.
    assert all(n.error_after <= n.error_before * (1 + 1e-5) for n in report.nodes)


def test_budget_is_a_share_of_the_weights_or_what_is_given(digits_job: Path) -> None:
    # A budget in percent of something else; more SRAM that is not used, or is of no use.
    bound = {"1200": 1200, "5%": 0, "9%": 0}
    spent = {}
    errors = {}
    weights = inspect(digits_job / "model.rimc.onnx").rram_weights
    for text, given in bound.items():
        in_bytes, frac = parse_budget(text)
        report = calibrate(
            digits_job / "model.rimc.onnx",
            digits_job / "new.onnx",
            config=CalibrateConfig(sram_budget_bytes=in_bytes, sram_budget_frac=frac),
            force=True,
        )
        most = given or int(weights * int(text[0]) / 100)
        assert 0.9 * most < report.sram_bytes <= most
        spent[text] = report.sram_bytes
        errors[text] = sum(n.error_after for n in report.nodes)
    assert errors["1200"] < errors["9%"] < errors["5%"]
    # When nothing is said it is 5 %.
    report = calibrate(digits_job / "model.rimc.onnx", digits_job / "new.onnx", force=True)
    assert report.sram_bytes == spent["5%"]


def test_budget_that_does_not_hold_the_magnitudes_is_refused(digits_job: Path) -> None:
    # A budget that is silently exceeded.
    source, out = digits_job / "model.rimc.onnx", digits_job / "new.onnx"
    config = CalibrateConfig(sram_budget_bytes=5, adapter="dora")
    with pytest.raises(CalibrationError, match=r"does not hold the .* magnitudes"):
        calibrate(source, out, config=config)
    assert not out.exists()
    for adapter in ("lora+sparse", "dora+sparse"):
        config = CalibrateConfig(sram_budget_bytes=5, adapter=adapter)
        report = calibrate(source, out, config=config, force=True)
        assert report.sram_bytes <= 5


def test_adapters_without_a_magnitude_have_a_digital_gain(digits_job: Path) -> None:
    # Arrays that are too loud or too quiet, and no part of the adapter that could say so.
    out = digits_job / "new.onnx"
    calibrate(digits_job / "model.rimc.onnx", out, config=CalibrateConfig(rank=2, adapter="bias"))
    adapters = [branch.adapter() for branch in rram_branches(load_model(out))]
    assert not any(a.has_magnitude for a in adapters)
    gains = [float(a.magnitude[0] * a.magnitude_scale[0]) for a in adapters]
    assert 0.7 < min(gains) < max(gains) < 1.4
    assert sum(gain != 1 for gain in gains) > 5
    assert all(a.sram_bytes == 0 for a in adapters)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"num_samples": 0}, ConfigError),
        ({"num_samples": -1, "read_out": True}, ConfigError),
        ({"rank": 0}, ConfigError),
        ({"rank": 2000}, ConfigError),
        ({"sram_budget_bytes": -1}, ConfigError),
        ({"sram_budget_frac": float("nan")}, ConfigError),
        ({"sram_budget_frac": float("inf")}, ConfigError),
        ({"read_out_noise_frac": -0.1}, ConfigError),
        ({"rank": 2, "sram_budget_bytes": 100, "adapter": "dora"}, UsageError),
        ({"solver": "adam", "rank": 2}, ConfigError),
        ({"propagate": "student"}, ConfigError),
        ({"sram_budget_frac": 0.1, "sram_budget_bytes": 100}, UsageError),
        ({"rank": 2, "adapter": "dora+sparse"}, UsageError),
        ({"solver": Solver.ADAM}, UsageError),
        (
            {
                "solver": Solver.ADAM,
                "rank": 2,
                "adapter": "dora",
                "propagate": Propagate.STUDENT,
            },
            UsageError,
        ),
    ],
)
def test_configuration_that_can_not_be_met_is_refused(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    # Refused after ten minutes of running the network, or ignored.
    with pytest.raises(error):
        CalibrateConfig(**wrong)


def test_adapters_and_budgets_are_read_as_they_are_written() -> None:
    # "2" percent, or bytes of "2%".
    assert parse_budget("14000") == (14000, None)
    assert parse_budget("2%") == (None, 0.02)
    for text in ("2 KB", "%", "", "1.5", "two"):
        with pytest.raises(UsageError, match="neither bytes"):
            parse_budget(text)
    kinds = parse_adapter("lora+sparse")
    assert (kinds.low_rank, kinds.magnitude, kinds.sparse, kinds.dense) == (
        True, False, True, False,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"'spars' is not known. Did you mean 'sparse'\?"):
        parse_adapter("dora+spars")


def test_default_budget_holds_the_magnitudes_of_a_tiny_network(tmp_path: Path) -> None:
    # 5 % of 48 weights are 2 bytes: "the budget does not hold the magnitudes" of a default.
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 8)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    graph = onnx.helper.make_graph(
        [node],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 8])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "tiny.onnx")
    convert(tmp_path / "tiny.onnx")
    x = rng.standard_normal((12, 6)).astype(np.float32)
    for adapter in (None, "dora"):
        config = CalibrateConfig(adapter=adapter)
        report = calibrate(tmp_path / "tiny.rimc.onnx", data={"x": x}, config=config, force=True)
        assert report.nodes[0].error_after < report.nodes[0].error_before
        assert 0 < report.nodes[0].sram_bytes <= 8 + 4
