# SPDX-License-Identifier: Apache-2.0
"""Crossbars with what follows them: one node of the provider against the nodes one by one.

Run as a program it compares random cases with the kernels of the environment, prints what differs
and ends with 1 if something does: ``python chain_cases.py FIRST_SEED NUM_SEEDS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cases
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import runtime
from rimc_onnx.bodies import operators
from rimc_onnx.ops import schema
from rimc_onnx.runtime.provider import provider_session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ChainCase:
    """A model from x (and the residual r) to y, and its inputs."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, Array]
    feeds: dict[str, Array]
    outputs: tuple[str, ...] = ("y",)
    batch: int | str = "N"
    about: str = ""

    def model(self, shapes: dict[str, list[int | str]] | None = None) -> bytes:
        given = {name: [self.batch, *x.shape[1:]] for name, x in self.feeds.items()}
        graph = helper.make_graph(
            self.nodes,
            "g",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, (shapes or given)[name])
                for name in self.feeds
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", operators.FUNCTION_OPSET_VERSION)]
        opsets.append(helper.make_opsetid(schema.DOMAIN, schema.VERSION))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=8, functions=operators.function_protos()
        )
        return bytes(model.SerializeToString())

    def differences(self) -> list[str]:
        """What differs from the operators one by one, of two runs with 1 to 3 threads each."""
        model = self.model()
        want_session = runtime.make_session(model, num_threads=1)
        want = [want_session.run(None, self.feeds) for _ in range(2)]
        found = []
        for num_threads in (1, 2, 3):
            session = provider_session(model, num_threads=num_threads)
            for run in range(2):
                got = session.run(None, self.feeds)
                if any(a.tobytes() != b.tobytes() for a, b in zip(got, want[run], strict=True)):
                    found.append(f"{self.about}: {num_threads} threads, run {run}")
        return found


def converted_nodes(
    attributes: dict[str, Any], geometry: dict[str, Any], tail: list[str]
) -> list[onnx.NodeProto]:
    """RramConv, DoraConv, and of ``tail`` Add (of r), AddX (of x), Relu, Clip."""
    dora = list(schema.OPS[schema.DORA_CONV].inputs)
    values = ["h", "d", *[f"t{i}" for i in range(len(tail))]]
    values[-1] = "y"
    nodes = [
        helper.make_node(
            schema.RRAM_CONV, ["x", "w"], [values[0]], "rram", domain=schema.DOMAIN, **attributes
        ),
        helper.make_node(
            schema.DORA_CONV,
            ["x", values[0], *dora[2:]],
            [values[1]],
            "dora",
            domain=schema.DOMAIN,
            **geometry,
        ),
    ]
    for i, op in enumerate(tail):
        inputs = {
            "Add": ["r", values[1 + i]],
            "AddX": [values[1 + i], "x"],
            "Relu": [values[1 + i]],
        }
        inputs["Clip"] = [values[1 + i], "low", "high"]
        name = op.removesuffix("X")
        nodes.append(helper.make_node(name, inputs[op], [values[2 + i]], f"n{i}"))
    return nodes


def chain_case(seed: int) -> ChainCase:
    """Every geometry, converter and adapter; a residual and an activation, or not."""
    rng = np.random.default_rng(seed)
    names = [name for name in cases.EXTRAS if rng.random() < 0.25]
    if "absolute" in names and "relative" in names:
        names.remove("relative")
    case = cases.rram_conv_case(rng, names=names)
    if seed % 3 == 0:
        case = _common_conv(rng, names)
    if seed % 3 == 1:
        case = cases.strip_conv_case(rng)
    geometry = {k: case.attributes[k] for k in ("strides", "pads", "dilations", "group")}
    w, x = case.constants["w"], case.feeds["x"]
    columns, depth, *kernel = w.shape
    group = geometry["group"]
    rank = int(rng.choice([0, 1, 2, 4, 5, 9]))
    adapter = cases.adapter(
        rng,
        a_shape=[group * rank, depth, *kernel],
        b_shape=[columns, rank, *[1] * len(kernel)],
        ranks=group * rank,
        columns=columns,
        num_cells=w.size,
        sparse_frac=None,
    )
    for name in ("lora_a", "sparse_values"):  # the sums of long columns have to be exact
        adapter[name] //= np.int8(2)
    if rng.random() < 0.1:
        adapter["lora_b"][:] = 0
    y_shape = case.oracle().shape
    tails: list[list[str]] = [[], ["Relu"], ["Clip"], ["Add"], ["Add", "Relu"], ["Add", "Clip"]]
    if y_shape == x.shape:
        tails += [["AddX", "Relu"]] * 3
    tail = tails[rng.integers(len(tails))]
    feeds = {"x": x.copy()}
    if rng.random() < 0.1:
        feeds["x"].flat[:: max(7, x.size // 5)] = np.nan
    if "Add" in tail:
        feeds["r"] = rng.standard_normal(y_shape, dtype=np.float32)
        feeds["r"].flat[::5] *= -0.0
    constants = {"w": w, **adapter}
    if "Clip" in tail:
        constants |= {"low": np.array(-0.5, np.float32), "high": np.array(0.75, np.float32)}
    return ChainCase(
        nodes=converted_nodes(case.attributes, geometry, tail),
        constants=constants,
        feeds=feeds,
        batch="N" if rng.integers(2) else len(x),
        about=f"seed {seed}, x {x.shape}, w {w.shape}, {geometry}, rank {rank}, {tail}, {names}",
    )


def _common_conv(rng: np.random.Generator, names: list[str]) -> Any:
    """Sizes with tasks, blocks and passes of every kind: 1 x 1 and 3 x 3 with many channels."""
    kernel = int(rng.choice([1, 3]))
    depth, columns = int(rng.choice([16, 40, 130])), int(rng.choice([16, 40, 130, 160]))
    size, stride = int(rng.choice([4, 7, 14, 16, 23])), int(rng.choice([1, 1, 2]))
    x = rng.standard_normal((int(rng.integers(1, 4)), depth, size, size), dtype=np.float32)
    w = rng.standard_normal((columns, depth, kernel, kernel), dtype=np.float32)
    converters = cases.periphery(
        rng, columns=columns, depth=depth, window=kernel**2, adc=None, names=names
    )
    geometry = {
        "strides": [stride] * 2,
        "pads": [kernel // 2] * 4,
        "dilations": [1, 1],
        "group": 1,
        "tile_group": converters["num_tiles"],
    }
    attributes = cases.ANNOTATIONS | converters | geometry
    w = cases.cells(w, attributes, 0)
    return cases.Case(
        op=schema.RRAM_CONV,
        feeds={"x": x},
        constants={"w": w},
        attributes=attributes,
        oracle=cases.rram_oracle(schema.RRAM_CONV, x, w, attributes),
    )


def compare(make_case: Callable[[int], ChainCase], first_seed: str, num_seeds: str) -> None:
    """Compare the cases of some seeds."""
    found = []
    for seed in range(int(first_seed), int(first_seed) + int(num_seeds)):
        found += make_case(seed).differences()
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    compare(chain_case, *sys.argv[1:])
