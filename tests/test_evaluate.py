# SPDX-License-Identifier: Apache-2.0
"""Classes where the output has them, and a metric that is used whatever else the data holds."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import rimc_onnx.jobs.evaluate as evaluate_job
from rimc_onnx import calibrate, convert, evaluate
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import DataError
from rimc_onnx.execution.sessions import open_session
from rimc_onnx.jobs.figures import Hits, Sqnr

ALL_DRIFTED = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=1.0))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def model_of(folder: Path, body: str, **arrays: np.ndarray) -> Path:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.save(model, folder / "m.onnx")
    convert(folder / "m.onnx", config=ALL_DRIFTED)
    return folder / "m.rimc.onnx"


HEADS = {
    "pooled": "g (float[N,3,8,8] x) => (float[N,C,1,1] y) "
    "{ h = Conv(x, w) y = GlobalAveragePool(h) }",
    "image": "g (float[N,3,8,8] x) => (float[N,C,6,6] y) { y = Conv(x, w) }",
}


@pytest.mark.parametrize("head", HEADS)
def test_classes_of_an_image_are_on_axis_1(tmp_path: Path, head: str) -> None:
    # The argmax over an axis of size 1 is always 0: an agreement of 1.0 whatever the drift.
    model = model_of(tmp_path, HEADS[head], w=normal(10, 3, 3, 3))
    x = normal(60, 3, 8, 8)
    agreement = evaluate(model, data={"x": x}, teacher=tmp_path / "m.onnx").agreement
    assert agreement is not None
    assert 0.05 < agreement < 0.9
    shape = (60,) if head == "pooled" else (60, 6, 6)
    labels = np.random.default_rng(1).integers(0, 10, shape)
    found = evaluate(model, data={"x": x, "labels": labels}).top1
    assert found is not None
    assert 0 < found < 0.4


def test_agreement_on_a_single_class_is_an_error(tmp_path: Path) -> None:
    # A regression, or a sigmoid of two classes: any two models agree.
    body = "g (float[N,6] x) => (float[N,1] y) { y = MatMul(x, w) }"
    model = model_of(tmp_path, body, w=normal(6, 1))
    data = {"x": normal(20, 6)}
    with pytest.raises(DataError, match=r"has a single class.*Give a metric"):
        evaluate(model, data=data, teacher=tmp_path / "m.onnx")
    report = evaluate(
        model, data=data, teacher=tmp_path / "m.onnx", metric=lambda o, _: float(o["y"].mean())
    )
    assert report.agreement is None
    assert report.sqnr_db is not None


def test_image_of_one_channel_has_no_agreement(tmp_path: Path) -> None:
    # A decoder or a mask: its columns taken for classes, or refused though it has an SQNR.
    body = "g (float[N,3,8,8] x) => (float[N,1,6,6] y) { y = Conv(x, w) }"
    model = model_of(tmp_path, body, w=normal(1, 3, 3, 3))
    report = evaluate(model, data={"x": normal(8, 3, 8, 8)}, teacher=tmp_path / "m.onnx")
    assert report.agreement is None
    assert report.sqnr_db is not None


def test_one_number_a_sample_has_no_agreement(tmp_path: Path) -> None:
    # The largest sample of a batch taken for its class: 100 % whatever the drift. Labels were
    # asked for in the shape [].
    body = "g (float[N,6] x) => (float[N] y) { h = MatMul(x, w) y = Squeeze(h, axis) }"
    model = model_of(tmp_path, body, w=normal(6, 1), axis=np.array([1]))
    report = evaluate(model, data={"x": normal(20, 6)})
    assert report.agreement is None
    assert report.sqnr_db is not None
    assert report.sqnr_db["y"] is not None
    labels = np.zeros(20, np.int64)
    with pytest.raises(DataError, match=r"'y' of shape \[20\] has one number a sample.*a metric"):
        evaluate(model, data={"x": normal(20, 6), "labels": labels})


def test_names_of_classes_are_calibrated_and_not_compared(tmp_path: Path) -> None:
    # A table of names that shapes can't be inferred with; the largest string as the class.
    body = "g (float[N,6] x) => (string[N] y) { h = MatMul(x, w) i = ArgMax<axis = 1, keepdims = 0>"
    body += "(h) y = Gather(names, i) }"
    model = model_of(tmp_path, body, w=normal(6, 4), names=np.array(list("abcd"), object))
    data = {"x": normal(20, 6)}
    calibrated = calibrate(model, data=data).output
    with pytest.raises(DataError, match=r"no numbers to compare.*Give a metric"):
        evaluate(calibrated, data=data)
    with pytest.raises(DataError, match="'y' holds strings"):
        evaluate(calibrated, data=data | {"labels": np.zeros(20, np.int64)})
    found = evaluate(calibrated, data=data, metric=lambda o, _: float((o["y"] == "a").mean()))
    assert found.agreement is None


def test_metric_is_used_whatever_else_the_data_holds(tmp_path: Path) -> None:
    # Boxes called labels: refused as class indices, though nobody asked for any.
    body = "g (float[N,6] x) => (float[N,3] y) { y = MatMul(x, w) }"
    model = model_of(tmp_path, body, w=normal(6, 3))
    data = {"x": normal(20, 6), "labels": normal(20, 7, 4)}
    report = evaluate(model, data=data, metric=lambda _, others: float(len(others["labels"])))
    assert list(report.metrics.values()) == [20.0]
    assert report.top1 is None


def test_metric_gets_the_runs_of_a_reader_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Outputs of any length, glued to one array that belongs to no run; a metric that exits.
    body = "g (float[T,6] x) => (float[T,3] y) { y = MatMul(x, w) }"
    model = model_of(tmp_path, body, w=normal(6, 3))
    reader = types.ModuleType("some_reader")
    vars(reader)["feeds"] = lambda: [{"x": normal(n, 6), "n": np.array(n)} for n in (3, 5, 2)]
    monkeypatch.setitem(sys.modules, "some_reader", reader)

    def right(outputs: dict[str, list[np.ndarray]], others: dict[str, list[np.ndarray]]) -> float:
        pairs = zip(outputs["y"], others["n"], strict=True)
        return float(np.mean([len(y) == n for y, n in pairs]))

    report = evaluate(model, data="some_reader:feeds", metric=right)
    assert report.samples == 3
    assert report.metrics == {"right": 1.0}

    def leaves(_outputs: object, _others: object) -> float:
        sys.exit(3)

    with pytest.raises(DataError, match="metric 'leaves' fails: SystemExit: 3"):
        evaluate(model, data="some_reader:feeds", metric=leaves)


@pytest.mark.parametrize(
    ("shape", "labels", "axis"),
    [
        ((4, 5), (4,), 1),
        ((4, 5, 1, 1), (4,), 1),
        ((4, 5, 6, 6), (4, 6, 6), 1),
        ((4, 7, 5), (4, 7), 2),
        ((4, 4), (4,), 1),
        ((4, 5, 1, 1), (4, 1, 1), 1),
        ((4, 5, 1, 1), None, 1),
        ((4, 5, 6, 6), None, 1),
        ((4, 7, 5), None, 2),
    ],
)
def test_axis_of_classes(shape: tuple[int, ...], labels: tuple[int, ...] | None, axis: int) -> None:
    # Classes taken from the first axis that fits, or always from the last.
    logits = normal(*shape)
    best = logits.argmax(axis)
    hits = Hits("y")
    if labels is None:
        sharper = np.where(logits == logits.max(axis, keepdims=True), np.float32(9), logits)
        hits.add_teacher(logits, sharper, None)
        assert hits.agree == hits.compared == best.size
    else:
        hits.add_labels(logits, best.reshape(labels))
        assert hits.top1 == hits.total == best.size


def test_labels_that_no_class_index_can_be() -> None:
    # Labels -1 and 1 beside a model that answers 0 and 1: half of them counted as missed.
    answers = np.array([0, 1, 1], np.int64)
    with pytest.raises(DataError, match=r"labels lie in -1\.\.1, .* in 0\.\.1"):
        Hits("y").add_labels(answers, np.array([-1, 1, 1]))
    hits = Hits("y")
    hits.add_labels(2 * answers - 1, np.array([-1, 1, 1]))
    assert hits.top1 == 3


@pytest.mark.parametrize("waiting_bytes", [1, 1 << 20])
def test_large_models_are_open_one_at_a_time_with_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting_bytes: int
) -> None:
    # Two sessions of a model that just fits, or outputs that keep the memory of one; batches that
    # the other session never sees, or pairs with the outputs of another batch.
    model = model_of(tmp_path, "g (float[N,6] x) => (float[N,5] y) { y = MatMul(x, w) }",
                     w=normal(6, 5))  # fmt: skip
    x = normal(70, 6)
    given = {"data": {"x": x}, "teacher": tmp_path / "m.onnx", "batch_size": 16}
    want = evaluate(model, **given)
    opened = []
    held: list[weakref.ref[object]] = []

    class Output(np.ndarray):
        """Keeps its session's memory, as outputs of ONNX Runtime do."""

    class Opened:
        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, names: list[str], feeds: dict[str, Any]) -> list[Output]:
            values = [value.view(Output) for value in self.session.run(names, feeds)]
            held.extend(map(weakref.ref, values))
            return values

    def opener(path: Path, *, native: bool) -> object:
        gc.collect()
        assert all(owner() is None for owner in held), "two are in memory"
        session = Opened(open_session(path, native=native))
        opened.append(path.name)
        held.append(weakref.ref(session))
        return session

    monkeypatch.setattr(evaluate_job, "open_session", opener)
    monkeypatch.setattr(evaluate_job, "_BOTH_OPEN_BYTES", 0)
    monkeypatch.setattr(evaluate_job, "_WAITING_BYTES", waiting_bytes)
    done: list[int] = []
    found = evaluate(model, **given, progress=lambda count, _all: done.append(count))
    assert replace(found, seconds=0) == replace(want, seconds=0)
    assert done == [16, 32, 48, 64, 70]
    assert opened == ["m.onnx", "m.rimc.onnx"] * (5 if waiting_bytes == 1 else 1)


@pytest.mark.parametrize("serial_bits", [None, 2])
def test_inputs_without_rows_run_with_and_without_the_library(
    tmp_path: Path, serial_bits: int | None
) -> None:
    # A frame without a detection: a Reshape in a body that takes 0 or -1 for another axis.
    model = model_of(tmp_path, "g (float[N,T,6] x) => (float[N,T,5] y) { y = MatMul(x, w) }",
                     w=normal(6, 5))  # fmt: skip
    reads = PeripheryConfig(dac_bits=8, adc_bits=8, dac_serial_bits=serial_bits)
    config = replace(ALL_DRIFTED, periphery=reads)
    convert(tmp_path / "m.onnx", config=config, data={"x": normal(10, 4, 6)}, force=True)
    for native in (True, False):
        (y,) = open_session(model, native=native).run(None, {"x": normal(1, 0, 6)})
        assert y.shape == (1, 0, 5)


@pytest.mark.parametrize(
    ("teacher", "model", "says"),
    [
        (np.nan, np.nan, "output 'y' of the teacher is NaN or infinite. Give samples"),
        (1.0, np.inf, "output 'y' of the model is NaN or infinite where the teacher has numbers"),
    ],
)
def test_value_that_is_no_number_is_told_of_by_whose_it_is(
    teacher: float, model: float, says: str
) -> None:
    # "The model or its teacher": samples that the teacher itself can't use look like a fault here.
    sqnr = Sqnr(["y"])
    sqnr.add([np.float32([1.0, teacher])], [np.float32([1.0, model])])
    with pytest.raises(DataError, match=says):
        sqnr.db()
