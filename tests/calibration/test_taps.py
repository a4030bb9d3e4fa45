# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from rimc_onnx.execution import taps
from rimc_onnx.execution.taps import StagedRun, changed_runs, nodes_session

Array = np.ndarray[Any, Any]

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'

DIAMOND = """
g (float[N, 4] x, float[4] c) => (float[N, 4] y)
{
  a = Relu(x)
  b = Neg(a)
  d = Add(b, x)
  e = Mul(d, a)
  f = Add(e, c)
  y = Abs(f)
}
"""

CAPTURE = """
g (float[N, 4] x, bool flag) => (float[N, 4] y)
{
  a = Relu(x)
  b = Neg(x)
  h = Exp(b)
  p = If(flag) <
    then_branch = t () => (float[N, 4] tv) { tv = Add(a, h) },
    else_branch = e () => (float[N, 4] ev)
    { ev = If(flag) <
        then_branch = tt () => (float[N, 4] ttv) { ttv = Identity(h) },
        else_branch = te () => (float[N, 4] tev) { tev = Mul(a, b) }
      > }
  >
  y = Abs(p)
}
"""

SPLIT = """
g (float[N, 4] x) => (float[N, 2] l, float[N, 2] z)
{
  l, r = Split <axis = 1> (x, sizes)
  s = Neg(r)
  z = Add(s, l)
}
"""


def build(text: str, **initializers: Array) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    for name, array in initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


class Factory:
    """Sessions of stock ONNX Runtime, and what they were asked."""

    def __init__(self) -> None:
        self.pieces: list[onnx.ModelProto] = []

    def __call__(self, content: bytes) -> ort.InferenceSession:
        self.pieces.append(onnx.ModelProto.FromString(content))
        return ort.InferenceSession(content, providers=["CPUExecutionProvider"])

    @property
    def nodes(self) -> list[str]:
        return [n.output[0] for p in self.pieces for n in p.graph.node]


def xs(num: int = 3) -> list[dict[str, Array]]:
    random = np.random.default_rng(0)
    return [
        {"x": random.standard_normal((n + 1, 4), dtype=np.float32), "c": np.float32([1, 2, 3, 4])}
        for n in range(num)
    ]


def every_value(
    model: onnx.ModelProto, feed: dict[str, Array], names: Sequence[str]
) -> list[Array]:
    """The values by a single run with all of them as outputs."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    result: list[Array] = session.run(names, {n: a for n, a in feed.items() if n in wanted})
    return result


@pytest.mark.parametrize("watched", [["a"], ["y"], ["a", "b", "d", "e", "f", "y"], ["y", "b"]])
def test_watched_values_are_those_of_one_run(watched: list[str]) -> None:
    # A piece that reads a value of the wrong chunk, or values that come in the order of asking.
    model = build(DIAMOND)
    feeds = xs()
    run = StagedRun(ir.from_proto(model), feeds, watched, Factory())
    seen = []
    for name, chunks in run:
        seen.append(name)
        for feed, chunk in zip(feeds, chunks, strict=True):
            (expected,) = every_value(model, feed, [name])
            assert np.array_equal(chunk, expected)
    assert seen == sorted(watched, key="abdefy".index)


def test_every_node_runs_once_and_none_after_the_last_watched_value() -> None:
    # Prefixes run again and again: n^2 instead of n.
    factory = Factory()
    for _ in StagedRun(ir.from_proto(build(DIAMOND)), xs(), ["e", "a"], factory):
        pass
    assert factory.nodes == ["a", "b", "d", "e"]
    assert len(factory.pieces) == 2


@pytest.mark.parametrize(
    ("together_bytes", "pieces"),
    [(1 << 20, ["a", "bd", "efy"]), (200, ["a", "bd", "ef", "y"])],
)
def test_small_values_are_made_by_one_piece(together_bytes: int, pieces: list[str]) -> None:
    # A session for every one of a hundred small nodes; or a piece of many large ones. What a stage
    # gives is 96 bytes here: six rows of four numbers, and 200 bytes hold no three of them.
    model, factory, feeds = build(DIAMOND), Factory(), xs()
    watched = ["a", "b", "d", "e", "f", "y"]
    run = StagedRun(ir.from_proto(model), feeds, watched, factory, together_bytes=together_bytes)
    alone = StagedRun(ir.from_proto(model), feeds, watched, Factory())
    for (name, chunks), (expected, _) in zip(run, alone, strict=True):
        assert name == expected
        assert set(run.values) >= set(alone.values)
        for feed, chunk in zip(feeds, chunks, strict=True):
            assert np.array_equal(chunk, every_value(model, feed, [name])[0])
    assert set(run.values) == set()
    assert ["".join(n.output[0] for n in p.graph.node) for p in factory.pieces] == pieces


FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[N, 4] x) => (float[N, 4] y)
{
  a = own.Twice(x)
  c = Abs(a)
  flag = Constant <value = bool {1}> ()
  y = If(flag) <
    then_branch = t () => (float[N, 4] tv) { tv = own.Square(c) },
    else_branch = e () => (float[N, 4] ev) { ev = Neg(c) }
  >
}
<domain: "own", opset_import: ["" : 17, "own" : 1]>
Twice (v) => (w) { w = own.Sum2(v, v) }
<domain: "own", opset_import: ["" : 17]>
Sum2 (u, v) => (w) { w = Add(u, v) }
<domain: "own", opset_import: ["" : 17]>
Square (v) => (w) { w = Mul(v, v) }
"""


def test_a_piece_carries_the_functions_it_calls_and_no_other() -> None:
    # One left out that only another function or a body calls: the piece can't be opened; all in
    # every piece: each is read by ONNX Runtime again for every node of a model.
    model = onnx.parser.parse_model(FUNCTIONS)
    onnx.checker.check_model(model)
    factory, x = Factory(), np.float32([[1, -2, 3, -4]])
    run = StagedRun(ir.from_proto(model), [{"x": x}], ["a", "c", "y"], factory)
    found = {name: chunks[0] for name, chunks in run}
    assert np.array_equal(found["y"], 4 * x * x)
    carried = [{f.name for f in piece.functions} for piece in factory.pieces]
    assert carried == [{"Twice", "Sum2"}, set(), {"Square"}]


def test_factory_with_kernels_gets_no_functions_of_rimc() -> None:
    # Bodies that are read again with every piece and never run; or, with them, functions of other
    # domains that the model needs.
    text = FUNCTIONS.replace('"own" : 1', '"own" : 1, "ai.rimc" : 1').replace(
        "own.Square(c)", "ai.rimc.Square(c)"
    )
    text = text.replace(
        '<domain: "own", opset_import: ["" : 17]>\nSquare',
        '<domain: "ai.rimc", opset_import: ["" : 17]>\nSquare',
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    carried = []

    class Sessions:
        has_kernels = True

        def __call__(self, content: bytes) -> Any:
            carried.append({f.name for f in onnx.ModelProto.FromString(content).functions})
            return self

        def run(self, output_names: Sequence[str], _feeds: dict[str, Array]) -> list[Array]:
            return [np.zeros((1, 4), np.float32) for _ in output_names]

    for _ in StagedRun(model, [{"x": np.zeros((1, 4), np.float32)}], ["a", "y"], Sessions()):
        pass
    assert carried == [{"Twice", "Sum2"}, set()]


def test_values_are_freed_after_the_last_piece_that_reads_them() -> None:
    # All activations of a network in memory at the end.
    run = StagedRun(ir.from_proto(build(DIAMOND)), xs(), ["a", "b", "d", "e", "f"], Factory())
    alive = {name: set(run.values) for name, _ in run}
    assert alive["a"] == {"x", "c", "a"}
    assert alive["b"] == {"x", "c", "a", "b"}
    assert alive["d"] == {"x", "c", "a", "b", "d"}  # x and b are read here for the last time
    assert alive["e"] == {"c", "a", "d", "e"}
    assert alive["f"] == {"c", "e", "f"}
    assert set(run.values) == set()


def test_kept_values_are_alive_where_they_are_read() -> None:
    # The input of a node that is made and read inside one piece, as calibration needs it.
    run = StagedRun(ir.from_proto(build(DIAMOND)), xs(), ["e"], Factory(), keep={"e": "d"})
    for name, _ in run:
        assert name == "e"
        assert "d" in run.values
        assert "b" not in run.values


def test_changed_value_is_what_later_pieces_read() -> None:
    # The student's bias: node by node, each on the corrected output of those before.
    run = StagedRun(ir.from_proto(build(DIAMOND)), xs(1), ["a", "d", "y"], Factory())
    found = {}
    for name, chunks in run:
        found[name] = chunks
        if name == "a":
            run.values["a"] = [np.zeros_like(c) for c in chunks]
    feed = xs(1)[0]
    assert np.array_equal(found["d"][0], feed["x"])
    assert np.array_equal(found["y"][0], np.broadcast_to(feed["c"], feed["x"].shape))


@pytest.mark.parametrize("flag", [True, False])
def test_bodies_read_values_from_outside(flag: bool) -> None:
    # A value that only the body of an If reads, one level down or two, is freed or never made.
    model = build(CAPTURE)
    feeds = [{"x": f["x"], "flag": np.array(flag)} for f in xs()]
    watched = ["a", "b", "h", "p", "y"]
    run = StagedRun(ir.from_proto(model), feeds, watched, Factory())
    for name, chunks in run:
        for feed, chunk in zip(feeds, chunks, strict=True):
            assert np.array_equal(chunk, every_value(model, feed, [name])[0])
        if name == "h":
            assert {"a", "b", "h"} <= set(run.values)
        if name == "p":
            assert "a" in run.values
            assert "x" not in run.values
    only = StagedRun(ir.from_proto(model), feeds, ["y"], Factory())
    assert [name for name, _ in only] == ["y"]


def test_graph_outputs_are_watched_as_well_as_read() -> None:
    # A value that is an output and an input of later nodes, and two watched outputs of one node.
    model = build(SPLIT, sizes=np.array([2, 2]))
    feeds = [{"x": f["x"]} for f in xs()]
    for watched in (["l", "z"], ["l", "r"], ["l", "r", "z"], ["z", "r", "l"]):
        run = StagedRun(ir.from_proto(model), feeds, watched, Factory())
        found = {
            name: [np.array_equal(c, every_value(model, f, [name])[0])
                   for f, c in zip(feeds, chunks, strict=True)]
            for name, chunks in run
        }  # fmt: skip
        assert found == {name: [True] * 3 for name in watched}


def test_pieces_carry_only_their_own_initializers() -> None:
    # A piece with all weights of the model: n copies of it.
    text = """
    g (float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, v)  y = MatMul(h, w) }
    """
    model = build(text, v=np.eye(4, dtype=np.float32), w=np.eye(4, dtype=np.float32))
    factory = Factory()
    for _ in StagedRun(ir.from_proto(model), [{"x": xs()[0]["x"]}], ["h", "y"], factory):
        pass
    names = [[t.name for t in p.graph.initializer] for p in factory.pieces]
    assert names == [["v"], ["w"]]


def test_parts_of_a_shape_have_their_lengths_in_the_next_piece() -> None:
    # Without them ONNX Runtime counts no axes for a Resize and refuses the piece (DINOv2, BEiT).
    text = """
    g (float[N, C, H, W] x) => (float[A, B, D, E] y)
    { s = Shape(x) hw = Slice(s, two, four) w = Gather<axis = 0>(s, three) a = Relu(x)
      row = Unsqueeze(w, zero) sizes = Concat<axis = 0>(nc, hw) wide = Concat<axis = 0>(nch, row)
      t = Resize<mode = "linear">(table, , , sizes) u = Resize<mode = "linear">(t, , , wide)
      r = ReduceMean<keepdims = 1>(u) y = Add(a, r) }
    """
    shapes = {"two": [2], "four": [4], "zero": [0], "nc": [1, 4], "nch": [1, 4, 2], "three": 3}
    model = build(
        text,
        table=np.random.default_rng(0).standard_normal((1, 4, 3, 3), dtype=np.float32),
        **{name: np.array(value) for name, value in shapes.items()},
    )
    feeds = [{"x": np.ones((2, 3, 5, 6), np.float32)}]
    run = StagedRun(ir.from_proto(model), feeds, ["hw", "w", "a", "y"], Factory())
    found = {name: chunks[0] for name, chunks in run}
    (want,) = every_value(model, feeds[0], ["y"])
    np.testing.assert_array_equal(found["y"], want)


def test_types_of_values_between_pieces_are_kept() -> None:
    # float32 assumed for token ids and masks.
    text = """
    g (int64[N] ids) => (float16[N] y)
    { b = Cast <to = 9> (ids) h = Cast <to = 10> (b) i = Identity(ids)
      m = Cast <to = 10> (i) y = Add(h, m) }
    """
    model = build(text)
    feeds = [{"ids": np.array([0, 3, 7])}]
    run = StagedRun(ir.from_proto(model), feeds, ["b", "h", "i", "m", "y"], Factory())
    kinds = {name: chunks[0].dtype for name, chunks in run}
    assert kinds["b"] == np.bool_
    assert kinds["h"] == np.float16
    assert kinds["i"] == np.int64
    assert kinds["y"] == np.float16


def test_session_of_nodes_runs_them_beside_each_other(
    matmul_model: Callable[..., onnx.ModelProto],
) -> None:
    # The black box of calibration: crossbars fed with the teacher's inputs, not one by the other.
    first, weight = np.eye(3, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)
    model = ir.from_proto(matmul_model(first, weight))
    nodes = {n.name: n for n in model.graph}
    factory = Factory()
    inputs = {nodes[name].inputs[0].name or "": [nodes[name]] for name in ("fc1", "fc2")}
    session = nodes_session(model, inputs, factory)
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    h, y = session.run(None, dict(zip(inputs, [x, x + 1], strict=True)))
    assert np.array_equal(h, x @ first)
    assert np.array_equal(y, (x + 1) @ weight)
    assert [n.name for p in factory.pieces for n in p.graph.node] == ["fc1", "fc2"]


def test_changed_runs_are_those_of_the_changed_value() -> None:
    # Values before the changed one that change too, a branch of the diamond that is not run again,
    # the first run's values overwritten by another; a piece opened again for every change.
    model = ir.serde.deserialize_model(onnx.parser.parse_model(HEADER + DIAMOND))
    x = np.array([[1.0, -2.0, 3.0, 0.0]], np.float32)
    c = np.ones(4, np.float32)
    a, d = np.maximum(x, 0), x - np.maximum(x, 0)
    pieces: list[bytes] = []

    def factory(content: bytes) -> Any:
        pieces.append(content)
        return ort.InferenceSession(content)

    def change(name: str, values: Mapping[str, Array]) -> list[Array]:
        np.testing.assert_array_equal(values["x"], x)
        return [np.asarray(values[name] + more) for more in ((1, 2) if name == "d" else (1,))]

    runs = changed_runs(
        model,
        {"x": x, "c": c},
        ["a", "d"],
        factory,
        change,
        outputs=["y"],
        keep={"a": "x", "d": "x"},
    )
    found = {(name, index): rest for name, index, *rest in runs}
    expected = {
        ("a", 0): (x - (a + 1)) * (a + 1) + c,
        ("d", 0): (d + 1) * a + c,
        ("d", 1): (d + 2) * a + c,
    }
    assert list(found) == list(expected)
    for key, (output, before, after) in found.items():
        assert output == "y"
        np.testing.assert_array_equal(before, np.abs(d * a + c))
        np.testing.assert_array_equal(after, np.abs(expected[key]))
    assert len(pieces) == 3


def test_a_piece_has_a_bound_on_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    # All weights of a model in one session, where its values are small.
    monkeypatch.setattr(taps, "PIECE_WEIGHT_BYTES", 2 * 4 * 16)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(8)],
        "g",
        [onnx.helper.make_tensor_value_info("v0", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("v8", onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), f"w{i}") for i in range(8)],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    factory = Factory()
    watched = [f"v{i + 1}" for i in range(8)]
    feeds = [{"v0": np.ones((1, 4), np.float32)}]
    list(StagedRun(model, feeds, watched, factory, together_bytes=1 << 20))
    assert [len(piece.graph.initializer) for piece in factory.pieces] == [1, 2, 2, 2, 1]
