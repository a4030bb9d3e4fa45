# SPDX-License-Identifier: Apache-2.0
"""Recurrent operators against ONNX Runtime, with every input and attribute that they have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from rimc_onnx.errors import ModelError  # noqa: E402
from rimc_onnx.training import load  # noqa: E402

STEPS, SAMPLES, INPUTS, HIDDEN = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INFO = helper.make_tensor_value_info


def model(op_type: str, *, num_directions: int, given: set[str], **attributes: Any) -> Any:
    """A recurrent node whose weights are initializers and whose sequence is an input."""
    random = np.random.default_rng(1)
    rows = GATES[op_type] * HIDDEN
    shapes = {
        "w": (num_directions, rows, INPUTS),
        "r": (num_directions, rows, HIDDEN),
        "b": (num_directions, 2 * rows),
        "h": (num_directions, SAMPLES, HIDDEN),
        "c": (num_directions, SAMPLES, HIDDEN),
        "p": (num_directions, 3 * HIDDEN),
    }
    arrays: dict[str, Any] = {
        n: random.standard_normal(s, np.float32) for n, s in shapes.items() if n in given | {*"wr"}
    }
    if "lengths" in given:
        arrays["lengths"] = np.array([5, 2, 4], np.int32)
    names = ["w", "r", "b", "lengths", "h", *(["c", "p"] if op_type == "LSTM" else [])]
    outputs = ["y", "y_h", *(["y_c"] if op_type == "LSTM" else [])]
    node = helper.make_node(
        op_type,
        ["x", *(n if n in arrays else "" for n in names)],
        outputs,
        name="layer",
        hidden_size=HIDDEN,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [INFO("x", TensorProto.FLOAT, ["T", SAMPLES, INPUTS])],
        [INFO(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def assert_equal(proto: onnx.ModelProto) -> None:
    x = np.random.default_rng(0).standard_normal((STEPS, SAMPLES, INPUTS), np.float32)
    wants = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    module = load(proto)
    for found, want in zip(module(torch.from_numpy(x)), wants, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("given", [set(), {"b", "h", "c", "p"}, {"b", "h", "c", "lengths"}])
def test_inputs_and_directions(op_type: str, direction: str, given: set[str]) -> None:
    # Gates in another order, a direction read from the wrong end, steps behind a sequence's end.
    num_directions = 2 if direction == "bidirectional" else 1
    assert_equal(model(op_type, num_directions=num_directions, given=given, direction=direction))


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"activations": ["Relu", "Softsign"]}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Softplus"]}),
        ("LSTM", {"clip": 0.3}),
        ("RNN", {"activations": ["Relu"], "clip": 0.5}),
    ],
)
def test_attributes(op_type: str, attributes: dict[str, Any]) -> None:
    # An attribute that is not read: the module would be another network, without a word.
    assert_equal(model(op_type, num_directions=1, given={"b", "h", "c"}, **attributes))


def test_activation_that_is_not_known_is_refused() -> None:
    # Computed as the default one.
    proto = model("RNN", num_directions=1, given=set(), activations=["Elu"], activation_alpha=[1.0])
    with pytest.raises(ModelError, match=r"node 'layer' \(RNN\): the activation 'elu'"):
        load(proto)
