# SPDX-License-Identifier: Apache-2.0
"""Values of any kind between the nodes of a model: containers, constants, empty, not finite."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from rimc_onnx import calibrate, convert, evaluate, runtime, write_statistics
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.calibration.solvers.registry import Solver
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig

EIGHT_BITS = ConvertConfig(periphery=PeripheryConfig(dac_bits=8, adc_bits=8))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def save(path: Path, body: str, **arrays: np.ndarray) -> Path:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.save(model, path)
    return path


W = {"w": normal(6, 3)}
BODIES = {
    "sequence": (
        """g (float[N,6] x) => (float[N,3] y) <int64 i = {1}> {
        parts = SplitToSequence <axis = 1> (x, i)
        h = MatMul(x, w)
        last = SequenceAt(parts, i)
        y = Add(h, last) }""",
        W,
    ),
    "optional": (
        """g (float[N,6] x) => (float[N,3] y) {
        o = Optional(x)
        h = MatMul(x, w)
        z = OptionalGetElement(o)
        s = ReduceMean <axes = [1]> (z)
        y = Add(h, s) }""",
        W,
    ),
    "initializer is output": (
        """g (float[N,6] x) => (float[N,3] y, float[4] anchors)
        <float[4] anchors = {1, 2, 3, 4}> { y = MatMul(x, w) }""",
        W,
    ),
    "input is output": ("g (float[N,6] x) => (float[N,3] y, float[N,6] x) { y = MatMul(x, w) }", W),
    "products before sums": (
        """g (float[N,6] x) => (float[N,3] y, float[N,2] z) {
        h = MatMul(x, w)
        k = MatMul(x, v)
        y = Add(h, b)
        z = Add(k, c) }""",
        {**W, "v": normal(6, 2, seed=1), "b": normal(3, seed=2), "c": normal(2, seed=3)},
    ),
}


@pytest.mark.parametrize("kind", BODIES)
def test_model_is_converted_and_calibrated_whatever_lives_between_its_nodes(
    tmp_path: Path, kind: str
) -> None:
    # A piece whose input has another type than the value; a value freed before the bias that waits
    # for it; an output that no node makes.
    body, arrays = BODIES[kind]
    model = save(tmp_path / "m.onnx", body, **arrays)
    data = {"x": normal(10, 6, seed=9)}
    convert(model, data=data, config=EIGHT_BITS)
    calibrate(tmp_path / "m.rimc.onnx", data=data, config=CalibrateConfig(rank=3))
    write_statistics(model, data=data)
    before, after = (
        evaluate(tmp_path / name, data=data, teacher=model).sqnr_db
        for name in ("m.rimc.onnx", "m.rimc.calibrated.onnx")
    )
    assert before is not None
    assert after is not None
    assert float(after["y"] or 0) > float(before["y"] or 0) + 6


@pytest.mark.parametrize("native", [True, False], ids=["native", "stock"])
@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("g (float[N,T,6] x) => (float[N,T,3] y) { y = MatMul(x, w) }", (1, 0, 6)),
        ("g (float[N,T,6] x) => (float[N,T,3] y) { y = MatMul(x, w) }", (0, 2, 6)),
        ("g (float[N,T,6] x) => (float[N,T,3] y) { y = MatMul(x, w) }", (2, 3, 6)),
        ("g (float[N,6] x) => (float[N,3] y) { y = MatMul(x, w) }", (0, 6)),
        ("g (float[N,2,8,8] x) => (float[N,4,6,6] y) { y = Conv(x, k) }", (0, 2, 8, 8)),
    ],
)
def test_value_without_rows_runs_in_body_and_kernel(
    tmp_path: Path, body: str, shape: tuple[int, ...], native: bool
) -> None:
    # A 0 in the shape of a Reshape copies the input's dimension: stock ONNX Runtime stopped there.
    weights = {"k": normal(4, 2, 3, 3)} if "Conv" in body else W
    model = save(tmp_path / "m.onnx", body, **weights)
    (x,) = ort.InferenceSession(str(model)).get_inputs()
    full = {"x": normal(*[4 if isinstance(d, str) else d for d in x.shape])}
    config = replace(EIGHT_BITS, periphery=replace(EIGHT_BITS.periphery, tile_rows=18))
    convert(model, data=full, config=config)
    calibrate(tmp_path / "m.rimc.onnx", data=full, config=CalibrateConfig(num_samples=4, rank=2))
    given = normal(*shape)
    (want,) = ort.InferenceSession(str(model)).run(None, {"x": given})
    for name in ("m.rimc.onnx", "m.rimc.calibrated.onnx"):
        session = runtime.make_session(tmp_path / name, native=native)
        (found,) = session.run(None, {"x": given})
        assert found.shape == want.shape


SLICE = """g (float[1,T,6] x, int64[1] start) => (float[1,K,3] y)
<int64[1] end = {100}, int64[1] axis = {1}> {
  h = Slice(x, start, end, axis)
  y = MatMul(h, w) }"""


@pytest.mark.parametrize("empty", [[0], range(10)], ids=["one", "all"])
@pytest.mark.parametrize("solver", ["closed-form", "adam"])
def test_samples_that_give_a_node_no_rows_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: list[int], solver: str
) -> None:
    # A mean over nothing is NaN, and so was every later output of the node.
    if solver == "adam":
        pytest.importorskip("torch")
    feeds = [
        {"x": normal(1, 4, 6, seed=i), "start": np.array([4 * (i in empty)])} for i in range(10)
    ]
    reader = types.ModuleType("some_reader")
    vars(reader)["feeds"] = lambda: feeds
    monkeypatch.setitem(sys.modules, "some_reader", reader)
    model = save(tmp_path / "m.onnx", SLICE, **W)
    convert(model, data="some_reader:feeds", config=EIGHT_BITS)
    config = CalibrateConfig(solver=Solver(solver), rank=2)
    calibrate(
        tmp_path / "m.rimc.onnx", tmp_path / "c.onnx", data="some_reader:feeds", config=config
    )
    write_statistics(model, data="some_reader:feeds")
    full = {"x": feeds[1]["x"], "start": np.array([0])}
    want, drifted, found = (
        ort.InferenceSession(str(tmp_path / name)).run(None, full)[0]
        for name in ("m.onnx", "m.rimc.onnx", "c.onnx")
    )
    assert np.isfinite(found).all()
    if len(empty) == 1:
        assert np.square(found - want).sum() < np.square(drifted - want).sum()


@pytest.mark.parametrize("solver", ["closed-form", "adam"])
def test_rows_that_are_not_finite_are_left_out(tmp_path: Path, solver: str) -> None:
    # A log of 0: scipy refused its matrix, or a converter got the range infinity.
    if solver == "adam":
        pytest.importorskip("torch")
    body = """g (float[N,6] x) => (float[N,3] y) { l = Log(x)
    h = MatMul(l, w)
    y = Sigmoid(h) }"""
    model = save(tmp_path / "m.onnx", body, w=np.abs(W["w"]))
    x = np.abs(normal(20, 6))
    x[0, 0] = 0
    data = {"x": x}
    config = CalibrateConfig(num_samples=20, solver=Solver(solver), rank=3)
    for name, periphery in (("i", ConvertConfig()), ("q", EIGHT_BITS)):
        convert(model, tmp_path / f"{name}.onnx", data=data, config=periphery)
        calibrate(tmp_path / f"{name}.onnx", tmp_path / f"{name}c.onnx", data=data, config=config)
        before, after = (
            evaluate(tmp_path / f"{n}.onnx", data=data, teacher=model).sqnr_db
            for n in (name, f"{name}c")
        )
        assert before is not None
        assert after is not None
        assert float(after["y"] or 0) > float(before["y"] or 0)
    write_statistics(model, data=data)
