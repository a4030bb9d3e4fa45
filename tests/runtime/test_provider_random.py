# SPDX-License-Identifier: Apache-2.0
"""Random ordinary nodes on ideal crossbars of the provider against the CPU provider."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import needs_providers

from rimc_onnx.runtime.provider import last_mapping, provider_session

Array = npt.NDArray[Any]

pytestmark = needs_providers

PER_MODEL = 12
IDEAL = {"preset": "gaussian-relative", "drift_frac": 0}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        count = metafunc.config.getoption("--random-cases") // 4
        metafunc.parametrize("first", range(0, count, PER_MODEL))


class Graph:
    """Nodes side by side, each with an input and an output of its own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.feeds: dict[str, Array] = {}
        self.inputs: list[Any] = []
        self.bounds: list[Array] = []
        """How far apart two orders of the sums of each output may be."""

    def add(
        self, op: str, x: Array, constants: list[Array], bound: Array, **attributes: Any
    ) -> None:
        name = f"n{len(self.nodes)}"
        names = [f"{name}/{i}" for i in range(len(constants))]
        self.initializers += map(numpy_helper.from_array, constants, names)
        x_name = f"{name}/x"
        self.nodes.append(
            helper.make_node(op, [x_name, *names], [f"{name}/y"], name=name, **attributes)
        )
        shape = [f"{name}/{axis}" for axis in range(x.ndim)]
        self.inputs.append(helper.make_tensor_value_info(x_name, TensorProto.FLOAT, shape))
        self.feeds[x_name] = x
        self.bounds.append(bound)

    def model(self) -> bytes:
        outputs = [
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
            for node in self.nodes
        ]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", 17)]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
        return bytes(proto.SerializeToString())


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def add_conv(graph: Graph, rng: np.random.Generator, random_cases: ModuleType) -> None:
    g = random_cases.geometry(rng)
    x = normal(rng, g.batch, g.group * g.depth, *[max(size, 1) for size in g.size])
    w = normal(rng, g.group * g.columns, g.depth, *g.kernel)
    constants = [w] + [normal(rng, len(w))] * int(rng.integers(2))
    # Of magnitude 1 each: the largest of that many normals stays below 6.
    depth = g.depth * int(np.prod(g.kernel))
    graph.add("Conv", x, constants, np.float32(8 * depth * 36), **g.attributes)


def add_gemm(graph: Graph, rng: np.random.Generator, random_cases: ModuleType) -> None:
    depth, columns = random_cases.log_uniform(rng, 500), random_cases.log_uniform(rng, 200)
    x = normal(rng, int(rng.integers(0, 9)), depth)
    trans_b = int(rng.integers(2))
    w = normal(rng, *((columns, depth) if trans_b else (depth, columns)))
    shapes = [(columns,), (1, columns), (1,), (1, 1), ()]
    constants = [w] + [normal(rng, *shapes[rng.integers(5)])] * int(rng.integers(2))
    alpha, beta = (float(rng.choice([1.0, 0.5, -2.0, 0.0])) for _ in range(2))
    graph.add(
        "Gemm", x, constants, np.float32(8 * depth * 36), transB=trans_b, alpha=alpha, beta=beta
    )


def add_matmul(graph: Graph, rng: np.random.Generator, random_cases: ModuleType) -> None:
    depth, columns = random_cases.log_uniform(rng, 500), random_cases.log_uniform(rng, 200)
    lead = rng.integers(0, 5, rng.integers(0, 4)).tolist()
    x = normal(rng, *lead, depth)
    graph.add("MatMul", x, [normal(rng, depth, columns)], np.float32(8 * depth * 36))


def test_random_nodes_agree_with_the_cpu_provider(random_cases: ModuleType, first: int) -> None:
    # A default of an attribute that ONNX has otherwise, an axis of a bias, an empty batch.
    graph = Graph()
    adders = (add_conv, add_gemm, add_matmul)
    for i in range(PER_MODEL):
        rng = np.random.default_rng([20260918, first + i])
        adders[i % 3](graph, rng, random_cases)
    model = graph.model()
    session = provider_session(model, provider_options=IDEAL, num_threads=1 + first % 3)
    assert [m.name for m in last_mapping() if m.reason is not None] == []
    assert len(last_mapping()) == PER_MODEL
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = (s.run(None, graph.feeds) for s in (session, cpu))
    for i, (got, want) in enumerate(zip(*outputs, strict=True)):
        assert got.shape == want.shape
        limit = graph.bounds[i] * random_cases.EPS
        off = np.abs(got - want).max(initial=0)
        assert off <= limit, f"{graph.nodes[i].op_type} {first + i}: {off} over {limit}"
