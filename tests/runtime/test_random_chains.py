# SPDX-License-Identifier: Apache-2.0
"""Random chains of crossbar, adapter, residual and activation: provider and operators agree.

A provider may run a whole chain as one node; what it gives are the bits of the nodes one by one.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import needs_providers

from rimc_onnx import runtime
from rimc_onnx.ops import schema
from rimc_onnx.runtime.provider import provider_session

pytestmark = needs_providers

PER_MODEL = 6


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        count = metafunc.config.getoption("--random-cases") // 4
        metafunc.parametrize("first", range(0, count, PER_MODEL))


class Chains:
    """Chains side by side in one model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def add(self, random_cases: ModuleType, number: int) -> None:
        """The adapter of random node ``number`` behind a crossbar of its shape, and more."""
        rng = np.random.default_rng([20260919, number])
        dora = random_cases.random_node(4 * number + 2 + number % 2)
        name = f"chain{number}"
        rram = _crossbar(random_cases, rng, dora)
        self.inputs[f"{name}/x"] = dora.feeds["x"]
        self._node(name, rram, "rram", ["x"], "h")
        value = "h"
        if rng.random() < 0.8:
            self._node(name, dora, "dora", ["x", "h"], "d")
            value = "d"
        if rng.random() < 0.5:
            self._residual(name, rng, value, dora.feeds["h"])
            value = "sum"
        activation = rng.choice(["none", "Relu", "Clip", "Clip with one bound", "Sigmoid"])
        if activation != "none":
            self._activation(name, rng, str(activation), value)
            value = "y"
        self.outputs.append(f"{name}/{value}")
        if value != "h" and rng.random() < 0.15:
            self.outputs.append(f"{name}/h")  # another reader: nothing may swallow it

    def _node(self, name: str, node: Any, role: str, read: list[str], written: str) -> None:
        names = [n for n in schema.OPS[node.op].inputs if n not in ("x", "h")]
        self.initializers += [
            numpy_helper.from_array(node.constants[n], f"{name}/{role}/{n}") for n in names
        ]
        proto = helper.make_node(
            node.op,
            [f"{name}/{n}" for n in read] + [f"{name}/{role}/{n}" for n in names],
            [f"{name}/{written}"],
            name=f"{name}/{role}",
            domain=schema.DOMAIN,
            **node.attributes,
        )
        self.nodes.append(proto)

    def _residual(self, name: str, rng: np.random.Generator, value: str, h: np.ndarray) -> None:
        residual = rng.standard_normal(h.shape, dtype=np.float32)
        if rng.random() < 0.2 and h.ndim > 1:
            residual = residual[..., :1]  # broadcast
        self.inputs[f"{name}/residual"] = residual
        operands = [f"{name}/{value}", f"{name}/residual"]
        if rng.integers(2):
            operands.reverse()
        self.nodes.append(helper.make_node("Add", operands, [f"{name}/sum"], name=f"{name}/add"))

    def _activation(self, name: str, rng: np.random.Generator, activation: str, value: str) -> None:
        op, *one = activation.split(" with ")
        operands = [f"{name}/{value}"]
        if op == "Clip":
            low, high = sorted(rng.uniform(-2, 2, 2))
            for bound, number in (("low", low), ("high", high)):
                if one and bound == "low":
                    operands.append("")
                    continue
                operands.append(f"{name}/{bound}")
                array = np.array(number, np.float32)
                self.initializers.append(numpy_helper.from_array(array, operands[-1]))
        self.nodes.append(helper.make_node(op, operands, [f"{name}/y"], name=f"{name}/activation"))

    def model(self) -> bytes:
        kind = TensorProto.FLOAT
        inputs = [
            helper.make_tensor_value_info(name, kind, list(value.shape))
            for name, value in self.inputs.items()
        ]
        outputs = [helper.make_tensor_value_info(name, kind, None) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(schema.DOMAIN, schema.VERSION)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        return bytes(model.SerializeToString())


def _crossbar(random_cases: ModuleType, rng: np.random.Generator, dora: Any) -> Any:
    """A crossbar that takes the adapter's x and gives its h."""
    lora_a = dora.constants["lora_a"]
    columns = len(dora.constants["magnitude"])
    if dora.op == schema.DORA_MATMUL:
        w = rng.standard_normal((len(lora_a), columns), dtype=np.float32)
        depth, window, attributes = len(w), 1, {}
    else:
        w = rng.standard_normal((columns, *lora_a.shape[1:]), dtype=np.float32)
        depth, window, attributes = w.shape[1], int(np.prod(w.shape[2:])), dict(dora.attributes)
    found = random_cases.periphery(rng, columns=columns, depth=depth, window=window)
    if dora.op == schema.DORA_CONV:
        found["tile_group"] = attributes["group"] * found["num_tiles"]
    return random_cases.RandomNode(
        number=dora.number,
        op=schema.RRAM_MATMUL if dora.op == schema.DORA_MATMUL else schema.RRAM_CONV,
        feeds={},
        constants={"w": w},
        attributes={**random_cases.ANNOTATIONS, **found, **attributes},
    )


def test_chains_have_the_bits_of_their_nodes(random_cases: ModuleType, first: int) -> None:
    # A chain that is taken although another node reads from its middle, a residual of another
    # shape, an activation that treats NaN otherwise, a draw that is counted twice.
    chains = Chains()
    for number in range(first, first + PER_MODEL):
        chains.add(random_cases, number)
    model = chains.model()
    threads = 1 + first // PER_MODEL % 3
    provider = provider_session(model, num_threads=threads)
    operators = runtime.make_session(model, num_threads=threads)
    for run in range(2):
        outputs = [s.run(None, chains.inputs) for s in (provider, operators)]
        for name, got, want in zip(chains.outputs, *outputs, strict=True):
            assert got.shape == want.shape, name
            same = np.equal(got, want) | (np.isnan(got) & np.isnan(want))
            assert same.all(), f"{name}, run {run}: {got[~same][:3]} for {want[~same][:3]}"
