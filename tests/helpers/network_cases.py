# SPDX-License-Identifier: Apache-2.0
"""Networks of crossbars with adapters: blocks with residuals, and other nodes between them.

Run as a program it compares random networks with the kernels of the environment, prints what
differs and ends with 1 if something does: ``python network_cases.py FIRST_SEED NUM_SEEDS``.
"""

from __future__ import annotations

import sys
from typing import Any

import cases
import numpy as np
import onnx
from chain_cases import ChainCase, compare
from onnx import TensorProto, helper

from rimc_onnx.ops import schema

Array = np.ndarray[Any, Any]

NOISE = {"read_noise": 0.05, "adc_bits": 8, "adc_range": [40.0]}
RELATIVE_NOISE = {**NOISE, "read_noise_relative": 1}
"""Draws that are another in every run and for every image; of each column, or of each device."""


class Network:
    """Convolutions that follow one another, from the value ``x`` on."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.channels = {"x": shape[1]}
        self.shape = shape

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """A node of ONNX that keeps the channels of its last input."""
        made = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], f"n{made}", **attributes))
        self.channels[made] = self.channels.get(inputs[-1], 0)
        return made

    def conv(
        self, x: str, columns: int, *, kernel: int = 1, stride: int = 1, **periphery: Any
    ) -> str:
        """A crossbar and its adapter."""
        rng, name, depth = self.rng, f"c{len(self.nodes)}", self.channels[x]
        w_shape = [columns, depth, kernel, kernel]
        rank = int(rng.choice([0, 2, 5]))
        constants = {
            "w": rng.standard_normal(w_shape, dtype=np.float32) / np.float32(kernel * depth**0.5),
            **cases.adapter(
                rng,
                a_shape=[rank, *w_shape[1:]],
                b_shape=[columns, rank, 1, 1],
                ranks=rank,
                columns=columns,
                num_cells=columns * depth * kernel**2,
                sparse_frac=float(rng.choice([0.0, 0.01])),
            ),
        }
        geometry = {
            "strides": [stride] * 2,
            "pads": [kernel // 2] * 4,
            "dilations": [1, 1],
            "group": 1,
        }
        attributes = cases.ANNOTATIONS | cases.IDEAL | cases.NO_EXTRAS | geometry | periphery
        self.constants |= {f"{name}.{key}": value for key, value in constants.items()}
        dora = [f"{name}.{key}" for key in schema.OPS[schema.DORA_CONV].inputs[2:]]
        self._own(schema.RRAM_CONV, [x, f"{name}.w"], f"{name}.h", **attributes, tile_group=1)
        self._own(schema.DORA_CONV, [x, f"{name}.h", *dora], name, **geometry)
        self.channels[name] = columns
        return name

    def _own(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(
            helper.make_node(op, inputs, [output], output, domain=schema.DOMAIN, **attributes)
        )

    def residual(self, x: str, added: str, **conv: Any) -> str:
        """``Relu(conv(x) + added)``."""
        summed = self.node("Add", [self.conv(x, self.channels[added], **conv), added])
        return self.node("Relu", [summed])

    def down(self, x: str, columns: int) -> str:
        """Two paths of half the size, added."""
        inner = self.node("Relu", [self.conv(x, columns, kernel=3, stride=2)])
        beside = self.conv(x, columns, stride=2)
        return self.residual(inner, beside, kernel=3)

    def conditional(self, x: str) -> str:
        """Twice ``x`` by an If whose bodies read it from outside."""
        name = f"if{len(self.nodes)}"
        self.constants[f"{name}.zero"] = np.array(0, np.float32)
        self.constants[f"{name}.two"] = np.array([2], np.float32)
        total = self.node("ReduceSum", ["x"], keepdims=0)
        is_positive = self.node("Greater", [total, f"{name}.zero"])
        out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
        bodies = {
            branch: helper.make_graph(
                [helper.make_node("Mul", [x, f"{name}.two"], ["out"])], branch, [], out
            )
            for branch in ("then_branch", "else_branch")
        }
        made = self.node("If", [is_positive], **bodies)
        self.channels[made] = self.channels[x]
        return made

    def case(self, *outputs: str, batch: int | str = "N", about: str = "") -> ChainCase:
        """The network up to some of its values."""
        x = self.rng.standard_normal(self.shape, dtype=np.float32)
        return ChainCase(
            nodes=self.nodes,
            constants=self.constants,
            feeds={"x": x},
            outputs=outputs,
            batch=batch,
            about=f"{about} x {self.shape}, {[node.op_type for node in self.nodes]}",
        )


def random_network(seed: int) -> ChainCase:
    """Images large enough that some go through a few blocks before the others do."""
    rng = np.random.default_rng(seed)
    channels, size = ((16, 40), (16, 57), (16, 64), (8, 128))[rng.integers(4)]
    shape = (int(rng.choice([1, 3, 7, 11, 13])), channels, size, size)
    periphery = {3: RELATIVE_NOISE, 4: NOISE}.get(seed % 5, {})
    network = Network(rng, shape)
    value, outputs = "x", []
    for _ in range(int(rng.integers(2, 5))):
        kind = rng.choice(["plain", "residual", "residual", "down", "other", "aside", "if"])
        kernel = int(rng.choice([1, 3]))
        columns = network.channels[value]
        if kind == "plain":
            value = network.conv(value, int(rng.choice([8, 32])), kernel=kernel, **periphery)
            value = network.node("Relu", [value]) if rng.integers(2) else value
        elif kind == "residual":
            inner = network.node("Relu", [network.conv(value, 8, kernel=kernel, **periphery)])
            value = network.residual(inner, value, **periphery)
        elif kind == "down":
            value = network.down(value, 2 * columns)
        elif kind == "other":
            value = network.node("Tanh", [value])
        elif kind == "aside":  # what is added follows from the block's input by another way
            value = network.residual(value, network.node("Sigmoid", [value]), kernel=kernel)
        else:
            value = network.residual(value, network.conditional(value), kernel=kernel)
        if rng.random() < 0.3 and value != "x":
            outputs.append(value)
    if not network.constants:  # no crossbar yet
        value = network.conv(value, 8)
    if not outputs or outputs[-1] != value:
        outputs.append(value)
    batch = "N" if rng.integers(2) else shape[0]
    return network.case(*outputs, batch=batch, about=f"seed {seed},")


if __name__ == "__main__":
    compare(random_network, *sys.argv[1:])
