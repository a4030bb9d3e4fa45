# SPDX-License-Identifier: Apache-2.0
"""Weights that nodes make of constants, vectors on the left, matrices of three axes: all mapped."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from rimc_onnx import convert, inspect
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import ModelError

DRIFT_0 = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.0))


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def save(path: Path, body: str, **arrays: np.ndarray) -> Path:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.save(model, path)
    return path


CONV = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float half = {0.5}> { %s y = Conv(x, w) }"
KERNEL = {"s": normal(4, 3, 3, 3)}
SCALED = "g (float[N,6] x) => (float[N,5] y) { %s y = MatMul(x, w) }"


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        (CONV % "w = Cast <to = 1> (s)", {"s": normal(4, 3, 3, 3, dtype=np.float16)}),
        (CONV % "w = Mul(s, half)", KERNEL),
        (CONV % "l = ReduceL2 <axes = [1,2,3]> (s) w = Div(s, l)", KERNEL),
        (CONV % "q = Sqrt(half) n = Neg(q) m = Mul(s, n) w = Add(m, half)", KERNEL),
        (SCALED % "l = MatMul(a, b) w = Add(s, l)",
         {"a": normal(6, 2), "b": normal(2, 5), "s": normal(6, 5)}),
        (SCALED % "w, v = Split <axis = 0> (s)", {"s": normal(12, 5)}),
        (SCALED % "c = Concat <axis = 1> (s, t) w = Transpose(c)",
         {"s": normal(5, 4), "t": normal(5, 2)}),
        ("g (float[6] x) => (float[5] y) { y = MatMul(x, w) }", {"w": normal(6, 5)}),
        ("g (float[6] x) => (float[5] y) { h = MatMul(x, w) y = Add(h, b) }",
         {"w": normal(6, 5), "b": normal(5)}),
        ("g (float[6] x) => (float[1,5] y) { h = MatMul(x, w) y = Add(h, b) }",
         {"w": normal(6, 5), "b": normal(1, 5)}),
        ("g (float[N,6] x) => (float[1,N,5] y) { y = MatMul(x, w) }", {"w": normal(1, 6, 5)}),
        ("g (float[2,N,6] x) => (float[2,N,5] y) { y = MatMul(x, w) }", {"w": normal(1, 6, 5)}),
        ("g (float[6] x) => (float[1,5] y) { h = MatMul(x, w) y = Add(h, b) }",
         {"w": normal(1, 6, 5), "b": normal(5)}),
    ],
    ids=["cast", "mul", "weight norm", "chain", "merged lora", "split", "concat", "vector",
         "vector and bias", "vector and row", "1KN of 2", "1KN of 3", "1KN of a vector"],
)  # fmt: skip
def test_weight_is_mapped_and_the_function_stays(
    tmp_path: Path, body: str, arrays: dict[str, np.ndarray]
) -> None:
    # Left digital though ONNX Runtime folds it, or one axis more or less at the output.
    model = save(tmp_path / "m.onnx", body, **arrays)
    report = convert(model, config=DRIFT_0)
    assert any(n.mapped for n in report.nodes), report.nodes
    (x,) = ort.InferenceSession(str(model)).get_inputs()
    value = normal(*[3 if isinstance(d, str) else d for d in x.shape])
    want, found = (
        ort.InferenceSession(str(tmp_path / name)).run(None, {"x": value})[0]
        for name in ("m.onnx", "m.rimc.onnx")
    )
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(str(tmp_path / "m.rimc.onnx"))


@pytest.mark.parametrize("flat", [True, False], ids=["linear indices", "coordinates"])
def test_sparse_initializer_is_a_weight_like_any_other(tmp_path: Path, flat: bool) -> None:
    # "Nothing makes its input": pruned networks could not be read at all.
    model = onnx.load(save(tmp_path / "m.onnx", SCALED % ""))
    dense = np.zeros((6, 5), np.float32)
    dense[0, 1], dense[3, 2], dense[5, 4] = 2, -1, 0.5
    sparse = model.graph.sparse_initializer.add()
    sparse.dims.extend(dense.shape)
    sparse.values.CopyFrom(numpy_helper.from_array(dense[dense != 0], "w"))
    where = np.flatnonzero(dense) if flat else np.argwhere(dense)
    sparse.indices.CopyFrom(numpy_helper.from_array(where, "w_indices"))
    onnx.save(model, tmp_path / "m.onnx")
    assert convert(tmp_path / "m.onnx", config=DRIFT_0).mapped == 1
    x = normal(3, 6)
    (found,) = ort.InferenceSession(str(tmp_path / "m.rimc.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ dense, rtol=1e-5, atol=1e-6)
    # Coordinates outside of the tensor.
    sparse.indices.CopyFrom(numpy_helper.from_array(where + 40, "w_indices"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="sparse initializer 'w' contradicts itself"):
        inspect(tmp_path / "m.onnx")


def test_chain_of_thousands_of_sums_is_looked_at_once(tmp_path: Path) -> None:
    # Looked at from every node again, or deeper than Python can call.
    sums = " ".join(f"v{i + 1} = Add(v{i}, v{i})" for i in range(3000))
    body = (
        f"g (float[N,6] x) => (float[N,6] y) {{ v0 = MatMul(x, w) {sums} y = MatMul(v3000, w2) }}"
    )
    model = save(tmp_path / "m.onnx", body, w=normal(6, 6), w2=normal(6, 6))
    start = time.process_time()
    assert inspect(model).mapped == 2
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("g (float[N,6] x) => (float[N,5] y) <int64[2] s = {1000000, 1000000}> "
         "{ w = ConstantOfShape(s) y = MatMul(x, w) }", "makes a value of 4000000000000 bytes"),
        ("g (float[N,6] x) => (float[N,5] y) <int64[2] s = {1000000, 1000000}, float one = {1}> "
         "{ w = Expand(one, s) y = MatMul(x, w) }", "makes a value of 4000000000000 bytes"),
        ("g (float[N,20000] x) => (float[N,20000] y) <int64[2] s = {20000, 20000}> "
         "{ w = ConstantOfShape(s) y = MatMul(x, w) }", "has to be stored in the file"),
    ],
    ids=["filled", "expanded", "weight"],
)  # fmt: skip
def test_file_of_few_bytes_that_makes_terabytes_is_refused_at_once(
    tmp_path: Path, body: str, says: str
) -> None:
    # The machine stands still, or the process is killed.
    model = save(tmp_path / "m.onnx", body)
    start = time.process_time()
    with pytest.raises(ModelError, match=says):
        convert(model)
    assert time.process_time() - start < 1


def test_functions_that_explode_are_refused_at_once(tmp_path: Path) -> None:
    # Ten functions that call the one before ten times: 10^10 nodes of a file of 3 KB.
    text = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]> '
    text += "g (float[N,6] x) => (float[N,6] y) { y = f.F9(x) } "
    for i in range(10):
        inner = "Relu" if i == 0 else f"f.F{i - 1}"
        calls = " ".join(f"v{j + 1} = {inner}(v{j})" for j in range(10))
        text += f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F{i} (v0) => (v10) {{ {calls} }} '
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    start = time.process_time()
    with pytest.raises(ModelError, match="has 10000000000 nodes once its functions are inlined"):
        inspect(tmp_path / "m.onnx")
    assert time.process_time() - start < 1


def test_operator_of_the_optimizer_is_named_with_what_to_do(tmp_path: Path) -> None:
    # "domain com.microsoft is not ours", of a model that the user did not write so.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    body = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { h = Conv(x, s) y = Relu(h) }"
    model = save(tmp_path / "m.onnx", body, **KERNEL)
    ort.InferenceSession(str(model), options)
    (node,) = inspect(tmp_path / "o.onnx").nodes
    assert node.op_type == "com.microsoft:FusedConv"
    assert node.reason is not None
    assert "give the model before ONNX Runtime's optimizations" in node.reason
