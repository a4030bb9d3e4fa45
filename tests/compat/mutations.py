# SPDX-License-Identifier: Apache-2.0
"""Small models of every kind, and ways to spoil them; what ``fuzz.py`` starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
Random = np.random.Generator

NAMES = [
    "",
    "\n",
    "a\nb",
    "x" * 100_000,
    "a/b",
    "../x",
    "\0",
    "[/x]",
    "\u202e",
    "w",
    "x",
    "y",
    "'",
]
NUMBERS = [0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -1.0, 1e-45, 3e38, -3e38, float("nan"), float("inf"), float("-inf"), 0.5]
_OPERATORS = ["Conv", "MatMul", "Gemm", "Add", "Relu", "Reshape", "Transpose", "Cast", "Identity"]
_OPERATORS += ["ConvTranspose", "If", "Loop", "Scan", "ConstantOfShape", "Expand", "Optional"]
_OPERATORS += ["SplitToSequence", "Nothing", "RramMatMul", "DoraConv", "BatchNormalization", "LSTM"]

_TEXTS = [
    """g (float[N,1,8,8] x) => (float[N,5] y) <float[4] b = {1, 2, 3, 4}> {
    h = Conv <pads = [1,1,1,1]> (x, w, b)
    r = Relu(h)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, v) }""",
    """g (float[N,6] x, float gain) => (float[N,4] y, float[N,4] z) <float[4] c = {1, 2, 3, 4}> {
    h = MatMul(x, m)
    z = Add(h, c)
    y = Mul(z, gain) }""",
    """g (float[T,1,6] x, bool flag) => (float[T,1,4] y) {
    h = MatMul(x, m)
    y = If (flag) <then_branch = t () => (float[T,1,4] a) { a = Relu(h) },
                   else_branch = e () => (float[T,1,4] b) { b = Neg(h) }> }""",
    """g (float[N,6] x) => (float[N,4] y) <int64 i = {1}> {
    s = SplitToSequence <axis = 1> (x, i)
    l = SequenceAt(s, i)
    o = Optional(x)
    h = MatMul(x, m)
    g = OptionalGetElement(o)
    q = ReduceMean <axes = [1]> (g)
    k = Add(h, l)
    y = Add(k, q) }""",
]
_FUNCTION = (
    '<domain: "f", opset_import: ["" : 17]> F (a, b) => (c) { p = MatMul(a, b) c = Relu(p) }'
)


def sample() -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """A network of three nodes as an exporter leaves it, and images with labels for it."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,1,8,8] input) => (float[N,5] output) {
    h = Conv <pads = [1,1,1,1]> (input, w0, b0)
    r = Relu(h)
    k = Conv <strides = [2,2]> (r, w1)
    s = Relu(k)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    output = Gemm(f, w2, b2) }"""
    model = parser.parse_model(text)
    random = np.random.default_rng(2)
    shapes = {"w0": (4, 1, 3, 3), "b0": (4,), "w1": (6, 4, 3, 3), "w2": (6, 5), "b2": (5,)}
    for name, shape in shapes.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    images = random.standard_normal((20, 1, 8, 8)).astype(np.float32)
    return model, {"input": images, "labels": random.integers(0, 5, 20)}


def models() -> list[onnx.ModelProto]:
    """Small models of every kind."""
    random = np.random.default_rng(0)
    found = [sample()[0]]
    for text in [
        *_TEXTS,
        "g (float[N,6] x) => (float[N,4] y) { y = f.F(x, m) } " + _FUNCTION,
    ]:
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]> {text}')
        for name, shape in {"w": (4, 1, 3, 3), "v": (4, 5), "m": (6, 4)}.items():
            if any(name in node.input for node in model.graph.node):
                array = random.standard_normal(shape).astype(np.float32)
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        found.append(model)
    return found


# ------------------------------------------------------------------------------------- mutations


def pick(random: Random, values: Any) -> Any:
    """One of ``values``."""
    return values[int(random.integers(len(values)))]


def name(random: Random, model: onnx.ModelProto) -> str:
    """A name of the model's, or a strange one."""
    own = [o for n in model.graph.node for o in n.output] + [i.name for i in model.graph.input]
    return str(pick(random, own if own and random.random() < 0.6 else NAMES)).replace("\0", "0")


def mutate_node(random: Random, model: onnx.ModelProto) -> None:
    """Another operator, domain, input, output or attribute; a node more or less."""
    nodes = model.graph.node
    if not nodes:
        return
    node = pick(random, nodes)
    kind = random.integers(8)
    if kind == 0:
        node.op_type = pick(random, _OPERATORS)
    elif kind == 1:
        node.domain = pick(random, ["", "ai.onnx", "ai.rimc", "com.microsoft", "f", "x" * 300])
    elif kind == 2 and node.input:
        node.input[int(random.integers(len(node.input)))] = name(random, model)
    elif kind == 3 and node.output:
        node.output[int(random.integers(len(node.output)))] = name(random, model)
    elif kind == 4:
        node.name = name(random, model)
    elif kind == 5:
        nodes.remove(node) if random.random() < 0.5 else nodes.append(node)
    elif kind == 6:
        node.input.append(name(random, model))
    else:
        mutate_attribute(random, node)


def mutate_attribute(random: Random, node: onnx.NodeProto) -> None:
    """Another value, type or name, or an attribute more or less."""
    if not node.attribute or random.random() < 0.3:
        key = pick(random, ["pads", "group", "strides", "axis", "alpha", "to", "perm", "auto_pad"])
        value = pick(random, [1, -1, 1.5, "SAME_UPPER", [1, 2], [0], [2**40]])
        node.attribute.append(helper.make_attribute(key, value))
        return
    attribute = pick(random, node.attribute)
    kind = random.integers(5)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        attribute.type = pick(random, list(AttributeProto.AttributeType.values()))
    elif kind == 2 and attribute.ints:
        attribute.ints[int(random.integers(len(attribute.ints)))] = pick(random, NUMBERS)
    elif kind == 3:
        attribute.i, attribute.f = pick(random, NUMBERS), pick(random, FLOATS)
    else:
        attribute.s = bytes(random.integers(0, 256, 20, dtype=np.uint8))


def mutate_tensor(random: Random, model: onnx.ModelProto) -> None:
    """Another shape, type, content or place of a weight."""
    if not model.graph.initializer:
        return
    tensor = pick(random, model.graph.initializer)
    kind = random.integers(7)
    if kind == 0 and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = pick(random, NUMBERS)
    elif kind == 1:
        tensor.data_type = pick(random, list(TensorProto.DataType.values()))
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: int(random.integers(len(tensor.raw_data) + 1))]
    elif kind == 3 and tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= 4:
        value = np.array(pick(random, FLOATS), np.float32).tobytes()
        tensor.raw_data = value + tensor.raw_data[4:]
    elif kind == 4:
        tensor.name = name(random, model)
    elif kind == 5:
        tensor.data_location = TensorProto.EXTERNAL
        for key in ("location", "offset", "length"):
            entry = tensor.external_data.add()
            places = ["calibration.npz", "/dev/zero", "..", "", "nothing", "-1", str(2**60), "0"]
            entry.key, entry.value = key, str(pick(random, places))
    else:
        model.graph.initializer.remove(tensor)


def mutate_values(random: Random, model: onnx.ModelProto) -> None:
    """Other inputs and outputs, types and dimensions; any value as an output."""
    graph = model.graph
    kind = random.integers(4)
    values = [*graph.input, *graph.output]
    if kind == 0:
        output = onnx.ValueInfoProto(name=name(random, model))
        graph.output.insert(int(random.integers(len(graph.output) + 1)), output)
    elif kind == 1 and values:
        value = pick(random, values)
        value.type.tensor_type.elem_type = pick(random, list(TensorProto.DataType.values()))
    elif kind == 2 and values:
        dims = pick(random, values).type.tensor_type.shape.dim
        if dims:
            pick(random, dims).dim_value = pick(random, NUMBERS)
    elif values:
        pick(random, values).name = name(random, model)


def mutate_model(random: Random, model: onnx.ModelProto) -> None:
    """Versions, metadata, functions."""
    kind = random.integers(5)
    if kind == 0 and model.opset_import:
        pick(random, model.opset_import).version = pick(random, [*range(1, 30), *NUMBERS])
    elif kind == 1:
        model.ir_version = pick(random, [1, 3, 4, 8, 13, 99])
    elif kind == 2 and model.metadata_props:
        entry = pick(random, model.metadata_props)
        texts = [*NAMES, "{}", "[1]", "[{}]", "nan", "1e999", "9" * 5000, "[" * 5000, "../m.onnx"]
        entry.value = pick(random, texts).replace("\0", "0")
    elif kind == 3:
        text = f'<ir_version: 8, opset_import: ["" : 17]> g () => () {{}} {_FUNCTION}'
        model.functions.extend(parser.parse_model(text).functions)
        if model.functions and random.random() < 0.5:
            function = pick(random, model.functions)
            function.node.append(helper.make_node(function.name, ["a", "b"], ["c"], domain="f"))
    elif model.functions:
        function = pick(random, model.functions)
        if function.node:
            pick(random, function.node).op_type = pick(random, _OPERATORS)


def mutated(random: Random, model: onnx.ModelProto) -> bytes:
    """The bytes of a model with a few mutations, now and then of the bytes themselves."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    ways = (mutate_node, mutate_node, mutate_tensor, mutate_values, mutate_model)
    for _ in range(int(random.integers(1, 5))):
        pick(random, ways)(random, copy)
    content = copy.SerializeToString()
    return mutated_bytes(random, content) if random.random() < 0.1 else content


def mutated_bytes(random: Random, content: bytes) -> bytes:
    """Bytes changed, taken away or put in."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(len(data) + 1))
        kind = random.integers(3)
        if kind == 0 and at < len(data):
            data[at] = int(random.integers(256))
        elif kind == 1:
            del data[at : at + int(random.integers(1, 200))]
        else:
            data[at:at] = bytes(
                random.integers(0, 256, int(random.integers(1, 20)), dtype=np.uint8)
            )
    return bytes(data[: int(random.integers(len(data) + 1))] if random.random() < 0.1 else data)
