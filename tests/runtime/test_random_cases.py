# SPDX-License-Identifier: Apache-2.0
"""Random shapes, attributes and values of all operators against the numpy oracle.

``pytest tests/runtime/test_random_cases.py --random-cases 10000`` runs many; a failure names the
number of its node, and ``random_node`` of random_cases.py makes that node again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from rimc_onnx import runtime
from rimc_onnx.ops import schema

Array = npt.NDArray[Any]

PER_MODEL = 20
"""Nodes of one model: sessions take longer than the nodes do."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        count = metafunc.config.getoption("--random-cases")
        metafunc.parametrize("first", range(0, count, PER_MODEL))


def is_runtime_adapter(node: Any) -> bool:
    """Whether the adapter is an input of the graph: every other one."""
    return node.op in (schema.DORA_MATMUL, schema.DORA_CONV) and node.number // 4 % 2 == 1


def _name(node: Any, value: str) -> str:
    return f"{node.number}/{value}"


def model_of(nodes: list[Any]) -> bytes:
    """One model of all nodes side by side, every size of an input open."""
    protos, inputs, outputs, initializers = [], [], [], []
    for node in nodes:
        fed = {**node.feeds, **(node.constants if is_runtime_adapter(node) else {})}
        for name, value in {**node.feeds, **node.constants}.items():
            if name in fed:
                shape = [_name(node, f"{name}{axis}") for axis in range(value.ndim)]
                dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                info = onnx.helper.make_tensor_value_info(_name(node, name), dtype, shape)
                inputs.append(info)
            else:
                initializers.append(onnx.numpy_helper.from_array(value, _name(node, name)))
        y = _name(node, "y")
        protos.append(
            onnx.helper.make_node(
                node.op,
                [_name(node, name) for name in schema.OPS[node.op].inputs],
                [y],
                name=str(node.number),
                domain=schema.DOMAIN,
                **node.attributes,
            )
        )
        outputs.append(onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None))
    graph = onnx.helper.make_graph(protos, "g", inputs, outputs, initializers)
    imports = [
        onnx.helper.make_opsetid("", 17),
        onnx.helper.make_opsetid(schema.DOMAIN, schema.VERSION),
    ]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    return bytes(model.SerializeToString())


def feeds_of(nodes: list[Any]) -> dict[str, Array]:
    """What a run gives."""
    return {
        _name(node, name): value
        for node in nodes
        for name, value in (
            {**node.feeds, **node.constants} if is_runtime_adapter(node) else node.feeds
        ).items()
    }


def _same(got: Array, want: Array) -> Array:
    return np.equal(got, want) | (np.isnan(got) & np.isnan(want))


def check_crossbar(random_cases: ModuleType, node: Any, got: Array, run: int) -> None:
    """Between the bounds; where a value has no number, what the oracle says."""
    want = node.oracle(run)
    low, high = random_cases.bounds(node, run)
    known = np.isfinite(low) & np.isfinite(high) & (np.abs(high) < 1e38) & (np.abs(low) < 1e38)
    for who, y in (("kernel", got), ("oracle", want)):
        inside = (low <= y) & (y <= high)
        wrong = np.argwhere(known & ~inside)
        assert not wrong.size, f"{who}: {y[tuple(wrong[0])]} at {wrong[0]} of {len(wrong)}"
    # A sum over huge values may leave float32 on the way, in one order and not in another.
    values = (node.feeds["x"], node.constants["w"])
    if all(np.abs(v[np.isfinite(v)]).max(initial=0) < 1e15 for v in values):
        assert _same(got, want)[~known].all()


def check_branch(node: Any, got: Array) -> None:
    """The bits of the oracle; a NaN in x has no code, so it spoils the outputs that depend on it.

    An output may show that or keep its value, but may not become another number.
    """
    x = node.feeds["x"]
    if not np.isnan(x).any():
        want = node.oracle()
        assert _same(got, want).all()
        assert (np.signbit(got) == np.signbit(want))[~np.isnan(want)].all()
        return
    wants = []
    for filled in (-1e30, 1e30):
        other = {**node.feeds, "x": np.where(np.isnan(x), np.float32(filled), x)}
        wants.append(type(node)(**{**node.__dict__, "feeds": other}).oracle())
    assert np.isnan(got[~_same(*wants)]).all()
    kept = ~np.isnan(got)
    np.testing.assert_array_equal(got[kept], wants[0][kept])


def check(random_cases: ModuleType, node: Any, got: Array, run: int) -> None:
    assert got.dtype == np.float32
    if node.op in (schema.DORA_MATMUL, schema.DORA_CONV):
        assert got.shape == node.feeds["h"].shape
        check_branch(node, got)
    else:
        assert got.shape == node.oracle(run).shape
        check_crossbar(random_cases, node, got, run)


def test_random_nodes_agree_with_the_oracle(random_cases: ModuleType, first: int) -> None:
    # Whatever shape, attribute or value the other tests did not think of; and, by a second run with
    # half of the batch, what a session keeps from the run before.
    nodes = [random_cases.random_node(n) for n in range(first, first + PER_MODEL)]
    session = runtime.make_session(model_of(nodes), num_threads=1 + first // PER_MODEL % 3)
    for run in range(2):
        outputs = session.run(None, feeds_of(nodes))
        for node, got in zip(nodes, outputs, strict=True):
            try:
                check(random_cases, node, got, run)
            except AssertionError as error:
                raise AssertionError(
                    f"node {node.number} ({node.op}), run {run}: {error}"
                ) from error
        nodes = [node.cut() for node in nodes]


def test_bounds_notice_a_wrong_code(random_cases: ModuleType) -> None:
    # Bounds that hold for anything: an output that is one step of the converter, or one part in a
    # thousand, off has to be outside of them nearly always.
    noticed = total = 0
    for number in range(400):
        node = random_cases.random_node(number)
        if number % 4 > 1 or not node.feeds["x"].size:
            continue
        want = node.oracle()
        low, high = random_cases.bounds(node)
        known = np.isfinite(want) & np.isfinite(low) & np.isfinite(high) & (want != 0)
        step = np.float32(max(node.attributes["adc_range"]))
        step /= 2.0 ** (node.attributes["adc_bits"] - 1) - 1 if node.attributes["adc_bits"] else 1
        want = want[known]
        wrong = want + (step if node.attributes["adc_bits"] else np.abs(want) / 1000)
        noticed += int(np.sum(wrong > high[known]))
        total += int(known.sum())
    assert noticed > 0.9 * total
