# SPDX-License-Identifier: Apache-2.0
"""What the outputs of a model feel of each node's error."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from rimc_onnx.calibration.sensitivity import (
    NodeSensitivity,
    _change,
    measure_sensitivities,
    row_limit,
)
from rimc_onnx.execution import parallel
from rimc_onnx.execution.feed import Feed
from rimc_onnx.passes import find_units, prepare_pipeline

Array = np.ndarray


def measured(model: onnx.ModelProto, x: Array, seed: int = 0) -> dict[str, float]:
    found = sensitivities(model, x, seed=seed).items()
    return {name: node.power for name, node in found if node.power is not None}


def sensitivities(
    model: onnx.ModelProto, *runs: Array, seed: int = 0, loud_only: bool = False
) -> dict[str, NodeSensitivity]:
    teacher = ir.serde.deserialize_model(model)
    prepare_pipeline()(teacher)
    units = list(find_units(teacher).values())
    return measure_sensitivities(
        teacher,
        units,
        [Feed({"x": x}, num_samples=len(x), axes={"x": 0}) for x in runs],
        ort.InferenceSession,
        seed=seed,
        loud_only=loud_only,
    )


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_linear_chain_gives_the_closed_form(matmul_model: Callable[..., onnx.ModelProto]) -> None:
    # The error of another node, power over rows mixed up with power over bit lines, a mean that
    # stays: for one MatMul the output is the node, so a unit of its error power is 1 over the
    # power of the output there. Rows of equal outputs but the sign have no mean.
    x = rng(0).standard_normal((4, 6)).astype(np.float32)
    weight = rng(1).standard_normal((6, 5)).astype(np.float32)
    y = np.concatenate([x, -x]) @ weight
    found = measured(matmul_model(weight), np.concatenate([x, -x]))
    assert found["fc1"] == pytest.approx(1 / np.square(y).sum(axis=1).mean(), rel=1e-4)


def test_gain_behind_a_node_is_felt_squared() -> None:
    # A sensitivity that looks at the node alone: the same node before gains of 1 and 3.
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 6] x) => (float[N, 5] y)
        <float three = {3}>
        { p = MatMul(x, w)  q = MatMul(x, w)  r = Mul(q, three)  y = Add(p, r) }
        """)
    model.graph.node[0].name, model.graph.node[1].name = "one", "three"
    weight = rng(1).standard_normal((6, 5)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = measured(model, rng(0).standard_normal((8, 6)).astype(np.float32))
    assert found["three"] == pytest.approx(9 * found["one"], rel=1e-4)


@pytest.mark.parametrize("part", [1 << 20, 7])
def test_change_of_an_output_is_relative_to_it(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    # A quotient of every part, values that are not finite counted in one of the two.
    monkeypatch.setattr(parallel, "PART", part)
    before, after = np.float32(rng(0).standard_normal((2, 5, 6)))
    before[2, 3] = np.inf
    known = np.isfinite(before)
    power = np.square(after - before, dtype=np.float64)[known].sum()
    expected = power / np.square(before[known], dtype=np.float64).sum()
    assert _change(before, after) == pytest.approx(expected, rel=1e-6)
    assert _change(before[:0], after[:0]) == 0


def test_node_that_no_output_feels_costs_nothing() -> None:
    # SRAM for a node whose output is multiplied by zero, or a division by its power of zero.
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 6] x) => (float[N, 5] y)
        <float none = {0}>
        { p = MatMul(x, w)  q = MatMul(x, w)  r = Mul(q, none)  y = Add(p, r) }
        """)
    model.graph.node[0].name, model.graph.node[1].name = "one", "none"
    weight = rng(1).standard_normal((6, 5)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = measured(model, rng(0).standard_normal((8, 6)).astype(np.float32))
    assert found["none"] == 0 < found["one"]
    assert measured(model, np.zeros((8, 6), np.float32)) == {}


def test_numbers_behind_labels_tell() -> None:
    # A change of an index taken for a power; nothing known of the nodes before a label.
    weight = rng(1).standard_normal((6, 5)).astype(np.float32)
    found = []
    for graph in (
        "(float[N, 6] x) => (float[N, 5] p) { p = MatMul(x, w) }",
        """(float[N, 6] x) => (bool[N] y, int64[N, 1] k)
        { p = MatMul(x, w)  i = ArgMax <axis = 1, keepdims = 0> (p)
          y = Equal(i, two)  v, k = TopK<axis = 1>(p, one) }""",
    ):
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {graph}')
        for name, value in (("w", weight), ("two", np.int64(2)), ("one", np.array([1]))):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        found.append(measured(model, rng(0).standard_normal((8, 6)).astype(np.float32)))
    assert found[0] == found[1]
    assert all(power > 0 for power in found[0].values())


def test_same_seed_gives_the_same_figures(matmul_model: Callable[..., onnx.ModelProto]) -> None:
    # A stream of random numbers that depends on what was drawn before.
    model = matmul_model(*(rng(i).standard_normal((4, 4)).astype(np.float32) for i in range(3)))
    x = rng(9).standard_normal((8, 4)).astype(np.float32)
    first, again, other = (measured(model, x, seed) for seed in (0, 0, 1))
    assert first == again != other


NORMALIZED = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 6] x) => (float[N, 5] y)
    <float[5] ones = {1, 1, 1, 1, 1}>
    { p = MatMul(x, w)  y = LayerNormalization(p, ones) }
    """
LINEAR = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 6] x) => (float[N, 5] y)
    { y = MatMul(x, w) }
    """


def massive_rows(text: str) -> tuple[onnx.ModelProto, Array]:
    """One row of 50 has 100 times the others' size: 99.5 % of the power."""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = "fc"
    weight = rng(1).standard_normal((6, 5)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    x = rng(0).standard_normal((50, 6)).astype(np.float32)
    x[7] *= 100
    return model, x


def test_rows_before_a_normalization_cost_alike() -> None:
    # A metric of one token's power alone, where each token's error costs the same: MiniLM's
    # outputs were further off with its adapters than without them.
    model, x = massive_rows(NORMALIZED)
    found = sensitivities(model, x)["fc"]
    powers = np.square(x @ numpy_helper.to_array(model.graph.initializer[-1])).sum(axis=1)
    assert np.sort(powers)[-2] < found.row_limit < 0.1 * powers.max()
    calm = x.copy()
    calm[7] /= 100
    # What a unit of power costs is that of the other rows, not a share of the massive one's.
    expected = sensitivities(model, calm)["fc"]
    assert expected.row_limit == math.inf
    assert found.power == pytest.approx(expected.power, rel=0.3)


def test_loud_rows_that_the_outputs_are_made_of_have_no_limit() -> None:
    # A limit by the powers at the node alone: the outputs of this model are those of the loud row.
    assert sensitivities(*massive_rows(LINEAR))["fc"].row_limit == math.inf


def test_runs_without_loud_rows_leave_the_limit_of_the_others() -> None:
    # A mean over all runs, infinite where one has no loud row, while errors are counted as limited.
    model, x = massive_rows(NORMALIZED)
    calm = x.copy()
    calm[7] /= 100
    found = sensitivities(model, x, calm)["fc"]
    assert found.row_limit == sensitivities(model, x)["fc"].row_limit < math.inf
    assert found.power == pytest.approx(sensitivities(model, calm)["fc"].power, rel=0.3)


def test_loud_only_runs_what_has_loud_rows() -> None:
    # All errors of all nodes run on where one rank for all needs none of them.
    model, x = massive_rows(NORMALIZED)
    assert sensitivities(model, x, loud_only=True) == sensitivities(model, x)
    x[7] /= 100
    assert sensitivities(model, x, loud_only=True) == {}


@pytest.mark.parametrize(
    ("power", "limit"),
    [
        ([], math.inf),
        ([0.0, 0.0], math.inf),
        ([1.0] * 10, math.inf),
        # One loud row of ten: 4 (9 + L) / 10 = L.
        ([1.0] * 9 + [1000.0], 6.0),
        # A third of the rows is no exception.
        ([1.0, 1.0, 1000.0], math.inf),
        # Rows that are zero are not what others are loud beside.
        ([0.0] * 20 + [1.0] * 3, math.inf),
    ],
)
def test_limit_is_a_multiple_of_the_limited_mean(power: list[float], limit: float) -> None:
    # A mean that the loud rows themselves raise beyond them; a limit of zero, which leaves nothing.
    assert row_limit(np.array(power)) == pytest.approx(limit, rel=1e-4)
