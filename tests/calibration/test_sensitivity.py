# SPDX-License-Identifier: Apache-2.0
"""What the outputs of a model feel of each node's error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from rimc_onnx.calibration.sensitivity import measure_sensitivities
from rimc_onnx.execution.feed import Feed
from rimc_onnx.passes import find_units, prepare_pipeline

Array = np.ndarray


def measured(model: onnx.ModelProto, x: Array, seed: int = 0) -> dict[str, float]:
    teacher = ir.serde.deserialize_model(model)
    prepare_pipeline()(teacher)
    units = list(find_units(teacher).values())
    return measure_sensitivities(
        teacher,
        units,
        [Feed({"x": x}, num_samples=len(x), axes={"x": 0})],
        ort.InferenceSession,
        seed=seed,
    )


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_linear_chain_gives_the_closed_form(matmul_model: Callable[..., onnx.ModelProto]) -> None:
    # The error of another node, power over rows mixed up with power over bit lines, a mean that
    # stays: for one MatMul the output is the node, so a unit of its power is felt as 1 over the
    # power of the output. Rows of equal outputs but the sign have no mean.
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


def test_outputs_of_integers_tell_nothing() -> None:
    # A change of an index taken for a power.
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 6] x) => (int64[N] y)
        { p = MatMul(x, w)  y = ArgMax <axis = 1, keepdims = 0> (p) }
        """)
    weight = rng(1).standard_normal((6, 5)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    assert measured(model, rng(0).standard_normal((8, 6)).astype(np.float32)) == {}


def test_same_seed_gives_the_same_figures(matmul_model: Callable[..., onnx.ModelProto]) -> None:
    # A stream of random numbers that depends on what was drawn before.
    model = matmul_model(*(rng(i).standard_normal((4, 4)).astype(np.float32) for i in range(3)))
    x = rng(9).standard_normal((8, 4)).astype(np.float32)
    first, again, other = (measured(model, x, seed) for seed in (0, 0, 1))
    assert first == again != other
