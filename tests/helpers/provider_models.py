# SPDX-License-Identifier: Apache-2.0
"""Ordinary models for the tests of the execution provider."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx.device import Scaling

HAS_PROVIDERS = hasattr(onnxruntime, "register_execution_provider_library") and tuple(
    int(part) for part in onnxruntime.__version__.split(".")[:2]
) >= (1, 24)
needs_providers = pytest.mark.skipif(not HAS_PROVIDERS, reason="providers need ONNX Runtime 1.24")

RELATIVE = {"preset": "gaussian-relative"}
PLAIN: dict[str, Any] = {"scaling": Scaling.NODE, "clip_sigma": math.inf}
"""The mapping of the provider's option ``preset`` by itself."""
Array = np.ndarray[Any, Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    x_shape: Sequence[int | str],
    constants: Mapping[str, Array],
    *,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    """A model from x to y; ``inputs`` are more of them."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, dtype, shape)
            for name, shape in {"x": x_shape, **(inputs or {})}.items()
        ],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def one_node(op: str, w: Array, **attributes: object) -> bytes:
    return model_of(
        [helper.make_node(op, ["x", "w"], ["y"], name=f"the {op}", **attributes)],
        [f"d{i}" for i in range(w.ndim)],
        {"w": w},
    )


def graph_of_all() -> tuple[bytes, dict[str, Array]]:
    """Conv with groups, strides and a bias, Gemm with all attributes, MatMul on three axes."""
    constants = {
        "w1": normal(4, 24, 3, 3, 3),
        "b1": normal(5, 24),
        "w2": normal(6, 10, 24) / np.float32(5),
        "c2": normal(7, 1, 10),
        "w3": normal(8, 10, 31),
    }
    shape = numpy_helper.from_array(np.array([-1, 4, 10]))
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "w1", "b1"],
            ["h1"],
            name="conv",
            group=2,
            strides=[2, 1],
            pads=[1, 0, 2, 1],
            dilations=[1, 2],
        ),
        helper.make_node("GlobalAveragePool", ["h1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node(
            "Gemm", ["f", "w2", "c2"], ["h2"], name="gemm", transB=1, alpha=0.5, beta=2.0
        ),
        helper.make_node("Constant", [], ["shape"], value=shape, name="const"),
        helper.make_node("Reshape", ["h2", "shape"], ["r"], name="reshape"),
        helper.make_node("MatMul", ["r", "w3"], ["y"], name="matmul"),
    ]
    return model_of(nodes, ["n", 6, "h", "w"], constants), constants
