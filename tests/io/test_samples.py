# SPDX-License-Identifier: Apache-2.0
"""What one sample is: a dict of a reader, or a place on the axis of an array that counts them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from rimc_onnx import calibrate, convert, evaluate, write_statistics
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.errors import DataError, UsageError
from rimc_onnx.io import samples as samples_module
from rimc_onnx.io.samples import InputSpec, SampleArrays, load_samples, stacked_axes

EIGHT_BITS = ConvertConfig(periphery=PeripheryConfig(dac_bits=8, adc_bits=8))
RANK_3 = CalibrateConfig(rank=3)
F32 = np.dtype(np.float32)

TIME_MAJOR = """g (float[{T},1,6] x) => (float[1,5] y) {{
  h = MatMul(x, w)
  r = Relu(h)
  p = ReduceMean <axes = [0], keepdims = 0> (r)
  y = MatMul(p, v) }}"""
STATE = """g (float[N,6] x, float[2,N,5] s) => (float[N,5] y) <int64 first = {0}> {
  h = Gather <axis = 0> (s, first)
  u = MatMul(x, w)
  v = MatMul(h, r)
  z = Add(u, v)
  y = Tanh(z) }"""
SCALAR = """g (float[N,6] x, float gain) => (float[N,3] y) { h = MatMul(x, w)
  y = Mul(h, gain) }"""
GRAPH = """g (float[V,6] x, int64[2,E] edges) => (float[E,5] y)
<int64 first = {0}, int64 second = {1}> {
  from = Gather <axis = 0> (edges, first)
  to = Gather <axis = 0> (edges, second)
  h = MatMul(x, w)
  a = Gather <axis = 0> (h, from)
  b = Gather <axis = 0> (h, to)
  s = Add(a, b)
  r = Relu(s)
  y = MatMul(r, v) }"""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape, dtype=np.float32)


def save(path: Path, body: str, **shapes: tuple[int, ...]) -> Path:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    for index, (name, shape) in enumerate(shapes.items()):
        model.graph.initializer.append(numpy_helper.from_array(normal(*shape, seed=index), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Makes ``module:callable`` of a list of dicts, or of a function."""

    def make(dicts: Any) -> str:
        module = types.ModuleType("some_reader")
        vars(module)["feeds"] = dicts if callable(dicts) else lambda: iter(dicts)
        monkeypatch.setitem(sys.modules, "some_reader", module)
        return "some_reader:feeds"

    return make


def error_db(model: Path, teacher: Path, data: Any) -> float:
    found = evaluate(model, data=data, teacher=teacher).sqnr_db
    assert found is not None
    return float(found["y"] or np.inf)


def dicts_of(kind: str) -> list[dict[str, np.ndarray]]:
    random = rng(1)

    def f(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    if kind == "time":
        return [{"x": f(16, 1, 6)} for _ in range(10)]
    if kind == "state":
        return [{"x": f(1, 6), "s": f(2, 1, 5)} for _ in range(10)]
    sizes = [(4 + i, 9 + i) for i in range(10)]
    return [{"x": f(v, 6), "edges": random.integers(0, v, (2, e))} for v, e in sizes]


@pytest.mark.parametrize(
    ("kind", "body", "shapes"),
    [
        ("time", TIME_MAJOR.format(T="T"), {"w": (6, 4), "v": (4, 5)}),
        ("time", TIME_MAJOR.format(T="16"), {"w": (6, 4), "v": (4, 5)}),
        ("state", STATE, {"w": (6, 5), "r": (5, 5)}),
        ("graph", GRAPH, {"w": (6, 4), "v": (4, 5)}),
    ],
    ids=["time free", "time fixed", "state", "edges"],
)
def test_dict_of_a_reader_is_one_run_and_one_sample(
    tmp_path: Path,
    reader: Callable[[Any], str],
    kind: str,
    body: str,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    # Ten time steps drawn from ten sequences; states and edges refused for their axis 0; ranges and
    # statistics of rows glued to runs that the model never gets.
    model = save(tmp_path / "m.onnx", body, **shapes)
    data = reader(dicts_of(kind))
    convert(model, tmp_path / "m.rimc.onnx", data=data, config=EIGHT_BITS)
    drifted = error_db(tmp_path / "m.rimc.onnx", model, data)
    report = calibrate(tmp_path / "m.rimc.onnx", tmp_path / "c.onnx", data=data, config=RANK_3)
    assert report.samples == 10
    assert error_db(tmp_path / "c.onnx", model, data) > drifted + 6
    statistics = write_statistics(model, tmp_path / "s.npz", data=data)
    assert (statistics.samples, statistics.kept_samples) == (10, 10)
    read_out = CalibrateConfig(num_samples=0, read_out=True, rank=3)
    calibrate(
        tmp_path / "m.rimc.onnx", tmp_path / "r.onnx", statistics=statistics.output, config=read_out
    )
    assert error_db(tmp_path / "r.onnx", model, data) > drifted + 6


def test_scalar_is_part_of_every_run(tmp_path: Path) -> None:
    # It was dropped when samples were drawn, and then missed.
    model = save(tmp_path / "m.onnx", SCALAR, w=(6, 3))
    data = {"x": normal(12, 6, seed=5), "gain": np.float32(2)}
    convert(model, tmp_path / "m.rimc.onnx", data=data, config=EIGHT_BITS)
    calibrate(tmp_path / "m.rimc.onnx", tmp_path / "c.onnx", data=data, config=RANK_3)
    assert error_db(tmp_path / "c.onnx", model, data) > 20
    assert write_statistics(model, tmp_path / "s.npz", data=data).samples == 12


def test_axis_of_samples_is_asked_for_where_the_model_fixes_axis_0(tmp_path: Path) -> None:
    # Layers of a state taken for samples; the advice must be one that works.
    model = save(tmp_path / "m.onnx", STATE, w=(6, 5), r=(5, 5))
    arrays = {"x": normal(12, 6), "s": normal(2, 12, 5)}
    report = convert(model, tmp_path / "m.rimc.onnx")
    assert "input 's' float32[2, N, 5] has a fixed axis 0" in report.data
    assert "`batch_axis` s=1" in report.data
    with pytest.raises(DataError, match="`batch_axis` s=1"):
        calibrate(tmp_path / "m.rimc.onnx", tmp_path / "c.onnx", data=arrays)
    data = SampleArrays(arrays=arrays, batch_axis={"s": 1})
    calibrate(tmp_path / "m.rimc.onnx", tmp_path / "c.onnx", data=data, config=RANK_3)
    # Whoever named the axis was told of another.
    report = convert(model, tmp_path / "n.rimc.onnx", data=data)
    assert "axis 0 of 'x'" in report.data
    assert "axis 1 of 's' float32[2, N, 5]" in report.data
    want = error_db(tmp_path / "c.onnx", model, data)
    assert want > 20
    # The same samples by a reader are the same samples.
    one_by_one = [{"x": arrays["x"][i : i + 1], "s": arrays["s"][:, i : i + 1]} for i in range(12)]
    session = ort.InferenceSession(str(model))
    whole = session.run(None, arrays)[0]
    apart = [session.run(None, one)[0] for one in one_by_one]
    np.testing.assert_allclose(whole, np.concatenate(apart), rtol=1e-5, atol=1e-6)


def spec(name: str, *shape: int | None, **more: Any) -> InputSpec:
    return InputSpec(name=name, dtype=F32, shape=shape, **more)


@pytest.mark.parametrize(
    ("inputs", "batch_axis", "axes"),
    [
        ([spec("x", None, 3)], {}, {"x": 0}),
        ([spec("x", 1, 3), spec("gain")], {}, {"x": 0}),
        ([spec("x", None, None, 3)], 1, {"x": 1}),
        ([spec("x", None, 3), spec("s", 2, None)], {"s": None}, {"x": 0}),
        ([spec("x", 32, 3)], {"x": 0}, {"x": 0}),
        ([spec("x", None, 3), spec("t", 4)], None, {}),
    ],
)
def test_axes_of_samples(inputs: Any, batch_axis: Any, axes: dict[str, int]) -> None:
    # An axis that the model fixes, or an array of every run, cut into samples.
    assert stacked_axes(inputs, batch_axis) == axes


def test_axis_that_an_input_does_not_have_is_a_usage_error() -> None:
    # An index out of range deep inside numpy.
    with pytest.raises(UsageError, match="has no axis 2"):
        stacked_axes([spec("x", None, 3)], {"x": 2})
    with pytest.raises(UsageError, match="'y' is no input"):
        stacked_axes([spec("x", None, 3)], {"y": 0})


def test_fixed_batch_is_never_filled_up_or_cut() -> None:
    # The last batch of a model that takes four samples a run.
    inputs = [spec("x", 4, 3)]
    data = SampleArrays(arrays={"x": normal(8, 3)}, batch_axis=0)
    assert [len(b.feeds["x"]) for b in load_samples(data, inputs).batches(64)] == [4, 4]
    odd = SampleArrays(arrays={"x": normal(10, 3)}, batch_axis=0)
    with pytest.raises(DataError, match="Give a multiple of 4"):
        list(load_samples(odd, inputs).batches(64))


def test_a_run_is_drawn_whole(reader: Callable[[Any], str]) -> None:
    # A draw by rows: half a sequence, or two halves of two.
    dicts = dicts_of("time")
    drawn = load_samples(reader(dicts), [spec("x", None, 1, 6)]).draw(4, seed=3)
    batches = list(drawn.batches(8))
    assert len(batches) == drawn.num_samples == 4
    for batch in batches:
        assert any(np.array_equal(batch.feeds["x"], d["x"]) for d in dicts)


def test_reader_that_never_ends_is_refused(
    reader: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Memory fills up until the machine stands still.
    monkeypatch.setattr(samples_module, "_MOST_RUNS", 50)

    def forever() -> Any:
        while True:
            yield {"x": normal(1, 3)}

    with pytest.raises(DataError, match="Does it end"):
        load_samples(reader(forever), [spec("x", None, 3)])


def test_reader_that_exits_is_a_line(reader: Callable[[Any], str]) -> None:
    # sys.exit() in the user's code ended the program with its own code and no word.
    def leaves() -> Any:
        sys.exit(3)

    with pytest.raises(DataError, match="fails with SystemExit: 3"):
        load_samples(reader(leaves), [spec("x", None, 3)])


def test_negative_dimension_is_a_free_one(tmp_path: Path) -> None:
    # -1 of older exporters: "no samples" for calibrate, a shape that no array has for evaluate.
    model = onnx.load(
        save(
            tmp_path / "m.onnx", "g (float[N,6] x) => (float[N,3] y) { y = MatMul(x, w) }", w=(6, 3)
        )
    )
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "m.onnx")
    data = {"x": normal(10, 6)}
    convert(tmp_path / "m.onnx", data=data, config=EIGHT_BITS)
    report = calibrate(tmp_path / "m.rimc.onnx", data=data)
    assert report.samples == 10


def test_batch_axis_of_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    # An option that is parsed and dropped.
    save(tmp_path / "m.onnx", STATE, w=(6, 5), r=(5, 5))
    np.savez(tmp_path / "calibration.npz", x=normal(10, 6), s=normal(2, 10, 5))
    assert cli("convert", "m.onnx", cwd=tmp_path).code == 0
    refused = cli("calibrate", "m.rimc.onnx", cwd=tmp_path)
    assert refused.code == 1
    assert "--batch-axis s=1" in refused.stderr
    assert cli("calibrate", "m.rimc.onnx", "--batch-axis", "s=1", cwd=tmp_path).code == 0
    wrong = cli("calibrate", "m.rimc.onnx", "--batch-axis", "s:1", "--force", cwd=tmp_path)
    assert wrong.code == 2
    assert "'s:1' is not of the form" in wrong.stderr


def test_samples_that_nobody_counted_fill_the_runs_of_a_fixed_batch(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    # 32 samples for the ranges of a model that takes 3 a run, whatever the data; an option that
    # advise asked for and did not have, and that the commands it gives left out.
    body = "g (float[3,6] x) => (float[3,5] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    save(tmp_path / "m.onnx", body, w=(6, 5), v=(5, 5))
    np.savez(tmp_path / "d.npz", x=normal(48, 6))
    source = ("--data", "d.npz", "--batch-axis", "0")
    assert cli("convert", "m.onnx", "--dac-bits", "8", *source, cwd=tmp_path).code == 0
    budget = ("--sram-budget", "5%", "--devices-per-weight", "1")
    found = cli("advise", "m.onnx", *source, *budget, "--json", cwd=tmp_path).json()
    assert found["samples"] == 9
    for line in found["options"][0]["commands"]:
        assert cli(*line.split()[1:], "--force", cwd=tmp_path).code == 0
    alone = cli("advise", "m.onnx", "--batch-axis", "0", cwd=tmp_path)
    assert "Give them with --data" in alone.stderr


@pytest.mark.parametrize(
    ("fixed", "held", "asked", "want"),
    [(3, 48, 32, 30), (3, 48, 2, 3), (3, 2, 2, 2), (64, 64, 32, 64), (1, 5, 10, 10)],
)
def test_whole_runs(fixed: int, held: int, asked: int, want: int) -> None:
    # Rounded to no run at all, or beyond the data, whose error then asks for what is there.
    arrays = SampleArrays(arrays={"x": normal(held, 6)}, batch_axis=0)
    samples = load_samples(arrays, [InputSpec(name="x", dtype=F32, shape=(fixed, 6))])
    assert samples.whole_runs(asked) == want


@pytest.mark.parametrize(("bad", "is_taken"), [(np.nan, True), (np.inf, False)])
def test_missing_values_that_the_model_replaces_are_taken(
    tmp_path: Path, bad: float, is_taken: bool
) -> None:
    # Samples as they come to a model with an imputer in front, refused as unclean.
    text = """
    <ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 3] y)
    { n = IsNaN(x) f = Where(n, mean, x) y = MatMul(f, w) }
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("mean", (4,)), ("w", (4, 3))):
        array = random.standard_normal(shape, dtype=np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = tmp_path / "model.onnx"
    onnx.save(proto, model)
    x = random.standard_normal((16, 4), dtype=np.float32)
    x[3, 1] = bad
    converted = Path(convert(model).output)
    if is_taken:
        calibrate(converted, data={"x": x})
        assert evaluate(converted, data={"x": x}).samples == 16
    else:
        with pytest.raises(DataError, match="'x' holds NaN or infinity"):
            calibrate(converted, data={"x": x})
