# SPDX-License-Identifier: Apache-2.0
"""Inputs of unequal strength: a model that a device loses, and its equal word lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from rimc_onnx import CalibrateConfig, ConvertConfig, PeripheryConfig, calibrate, convert, equalize
from rimc_onnx.device import get_preset
from rimc_onnx.errors import ModelError
from rimc_onnx.io.samples import SampleArrays

STRENGTH = np.geomspace(1e-2, 1e3, 16).astype(np.float32)


def inputs(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 16))
    return (rows * STRENGTH).astype(np.float32)


@pytest.fixture
def tabular(tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]) -> Path:
    """A network whose input scaler is folded into its first layer: strong inputs, small weights."""
    random = np.random.default_rng(3)
    first = random.standard_normal((16, 24)) / STRENGTH[:, None] / 4
    second = random.standard_normal((24, 5)) / 5
    onnx.save(
        matmul_model(first.astype(np.float32), second.astype(np.float32)), tmp_path / "m.onnx"
    )
    np.savez(tmp_path / "calibration.npz", x=inputs(40, 0))
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("periphery", [PeripheryConfig(), PeripheryConfig(dac_bits=8, adc_bits=8)])
def test_a_network_that_the_device_loses_comes_back(
    tabular: Path, periphery: PeripheryConfig
) -> None:
    # Absolute errors of cells times strong inputs, or steps of a DAC that weak inputs never reach.
    report = equalize(tabular)
    assert [node.channels for node in report.nodes] == [16]
    config = ConvertConfig(device=get_preset("milo2021"), periphery=periphery)
    error, unequal = [], []
    for path in (tabular, Path(report.output)):
        converted = convert(path, config=config, data=tabular.with_name("calibration.npz"))
        unequal.append(converted.unequal)
        found = calibrate(converted.output, teacher=path)
        error.append(found.calibrated.error)
    assert unequal == [1, 0]
    assert error[0] > 0.2
    assert error[1] < 0.05


def test_relative_errors_do_not_ask_for_it(tabular: Path) -> None:
    assert convert(tabular).unequal == 0
    config = ConvertConfig(periphery=PeripheryConfig(dac_bits=8))
    data = tabular.with_name("calibration.npz")
    assert convert(tabular, config=config, data=data, force=True).unequal == 1


def test_the_file_gives_the_same_bits(tabular: Path) -> None:
    output = equalize(tabular, tabular.with_name("other.onnx")).output
    x = inputs(7, 1)
    before, after = (
        onnxruntime.InferenceSession(path).run(None, {"x": x})[0] for path in (tabular, output)
    )
    np.testing.assert_array_equal(after, before)


BODIES = {
    # A normalisation that makes word lines unequal when it is folded.
    "norm": ("[N,16]", "[N,5]", "a = BatchNormalization(x, g, o, o, v)\nh = Gemm(a, even, b)"),
    "batched": ("[1,N,16]", "[1,N,5]", "h = MatMul(x, batched)"),
    "transposed": ("[16,N]", "[N,5]", "h = Gemm<transA = 1>(x, first)"),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_a_conversion_tells_of_is_scaled(tmp_path: Path, name: str) -> None:
    # The advice to equalize a model on which `equalize` does nothing: it looked at the file's own
    # weights, the advice at those of the model as it is mapped.
    x_shape, y_shape, body = BODIES[name]
    random = np.random.default_rng(3)
    even = random.standard_normal((16, 24)).astype(np.float32) / 4
    first = even / STRENGTH[:, None]
    arrays = {
        "g": np.ones(16), "o": np.zeros(16), "v": np.square(STRENGTH), "even": even,
        "b": np.zeros(24), "first": first, "batched": first[None],
        "second": random.standard_normal((24, 5)) / 5,
    }  # fmt: skip
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float{x_shape} x) => (float{y_shape} y) '
        f"{{ {body}\nr = Relu(h)\ny = MatMul(r, second) }}"
    )
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), key)
        for key, array in arrays.items()
        if any(key in node.input for node in model.graph.node)
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    x = inputs(40, 0)
    x = {"norm": x, "batched": x[None], "transposed": np.ascontiguousarray(x.T)}[name]
    data = SampleArrays(arrays={"x": x}, batch_axis=0 if name == "norm" else 1)

    report = equalize(path)
    assert [node.channels for node in report.nodes] == [16]
    assert not equalize(report.output).nodes
    before, after = (
        onnxruntime.InferenceSession(file).run(None, {"x": x})[0] for file in (path, report.output)
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)

    config = ConvertConfig(device=get_preset("milo2021"))
    found = []
    for file in (path, Path(report.output)):
        converted = convert(file, config=config, data=data)
        calibrated = calibrate(
            converted.output, data=data, config=CalibrateConfig(allow_identity=True)
        )
        found.append((converted.unequal, calibrated))
    assert [unequal for unequal, _ in found] == [1, 0]
    (_, plain), (_, equal) = found
    assert "equalize the teacher first" in (plain.warning or "")
    assert equal.warning is None
    assert equal.calibrated.error < 0.2 * plain.calibrated.error


def test_weights_of_functions_and_old_files_are_found(tmp_path: Path) -> None:
    # A weight that is an input too (IR 3); a product inside a function.
    weight = np.random.default_rng(0).standard_normal((16, 4)) / STRENGTH[:, None]
    for name, head, body in (
        ("old", '<ir_version: 3, opset_import: ["": 7]> g (float[N,16] x, float[16,4] w)',
         "{ y = MatMul(x, w) }"),
        ("function", '<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[N,16] x)',
         "{ y = own.product(x, w) }\n"
         '<domain: "own", opset_import: ["": 17]> product (a, b) => (c) { c = MatMul(a, b) }'),
    ):  # fmt: skip
        model = onnx.parser.parse_model(f"{head} => (float[N,4] y) {body}")
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), "w"))
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        report = equalize(path)
        assert len(report.nodes) == 1
        x = inputs(5, 2)
        before, after = (
            onnxruntime.InferenceSession(file).run(None, {"x": x})[0]
            for file in (path, report.output)
        )
        np.testing.assert_array_equal(after, before)


def test_command(tabular: Path, cli: Callable[..., Any]) -> None:
    # An overwritten file; a converted model whose arrays would not match its weights.
    folder = tabular.parent
    done = cli("equalize", "m.onnx", "--json", cwd=folder)
    report = json.loads(done.stdout)
    assert (report["output"], len(report["nodes"])) == ("m.equalized.onnx", 1)
    again = cli("equalize", "m.onnx", cwd=folder)
    assert again.code != 0
    assert "--force" in again.stderr
    assert "error left" in cli("equalize", "m.onnx", "--force", cwd=folder).stdout
    assert "no node gains" in cli("equalize", "m.equalized.onnx", cwd=folder).stdout
    name = report["nodes"][0]["name"]
    kept = cli("equalize", "m.onnx", "-o", "kept.onnx", "--keep-digital", name, cwd=folder)
    assert "no node gains" in kept.stdout
    convert(tabular)
    with pytest.raises(ModelError, match="has its weights in RRAM"):
        equalize(folder / "m.rimc.onnx")


def test_advice_has_what_equal_word_lines_give(tabular: Path, cli: Callable[..., Any]) -> None:
    # Ways that differ by tenths beside the one that brings the network back, which is not named; a
    # command line that leaves out an option, and so makes another model than the one forecast.
    typed = ("--device", "milo2021", "--keep-digital", "fc2", "--seed", "3", "--read-noise", "0.01")
    found = cli(
        *("advise", "m.onnx", "--data", "calibration.npz", "--sram-budget", "5%", "--json"),
        *("--devices-per-weight", "1", *typed),
        cwd=tabular.parent,
    ).json()
    best = min(found["options"], key=lambda option: option["node_error"])
    assert best["equalized"]
    others = [o["node_error"] for o in found["options"] if not o["equalized"]]
    assert best["node_error"] < 0.2 * min(others)
    first, second, _ = (command.split() for command in best["commands"])
    assert first == ["rimc-onnx", "equalize", "m.onnx", "--keep-digital", "fc2"]
    for name, value in zip(typed[::2], typed[1::2], strict=True):
        assert second[second.index(name) + 1] == value
    for command in best["commands"]:
        done = cli(*command.split()[1:], cwd=tabular.parent)
        assert done.code == 0, done.stderr
    after = json.loads((tabular.parent / "m.equalized.rimc.calibrated.report.json").read_text())
    assert after["nodes"][0]["error_after"] == pytest.approx(best["node_error"], rel=0.5)


def test_advice_on_equal_word_lines_is_as_before(
    digits_folder: Path, cli: Callable[..., Any]
) -> None:
    arguments = ("advise", "model.onnx", "--device", "milo2021", "--sram-budget", "5%", "--json")
    found = cli(*arguments, cwd=digits_folder).json()
    assert not any(option["equalized"] for option in found["options"])
