# SPDX-License-Identifier: Apache-2.0
"""Initializers behind a model's bytes: what any reader of protobuf finds in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from rimc_onnx.execution import model_bytes
from rimc_onnx.execution.model_bytes import bytes_with_initializers

Array = np.ndarray[Any, Any]

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 300] x) => (float[N, 200] y) { h = MatMul(x, w) y = Add(h, b) }
"""


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def test_stock_onnxruntime_reads_them() -> None:
    # Lengths of one byte too few, or a graph that replaces the one before it.
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 300), np.float32), rng.standard_normal((300, 200), np.float32)
    b = rng.standard_normal(200, np.float32)
    content = bytes_with_initializers(model(), [("b", ir.tensor(b)), ("w", ir.tensor(w))])
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, x @ w + b, rtol=1e-4, atol=1e-4)
    onnx.checker.check_model(onnx.load_model_from_string(content))


@pytest.mark.parametrize("small_bytes", [0, 1 << 30])
def test_every_type_is_what_it_was(monkeypatch: pytest.MonkeyPatch, small_bytes: int) -> None:
    # Four bits that are not packed, text as pointers, transposed arrays in memory's order.
    monkeypatch.setattr(model_bytes, "_SMALL_BYTES", small_bytes)
    numbers = np.arange(24).reshape(4, 6)
    given: dict[str, ir.TensorProtocol] = {
        "f32": ir.tensor(numbers.astype(np.float32)),
        "turned": ir.tensor(numbers.astype(np.float32).T),
        "f16": ir.tensor(numbers.astype(np.float16)),
        "bf16": ir.tensor(numbers.astype(ml_dtypes.bfloat16), dtype=ir.DataType.BFLOAT16),
        "i4": ir.tensor((numbers % 8).astype(ml_dtypes.int4), dtype=ir.DataType.INT4),
        "bool": ir.tensor(numbers > 7),
        "i64": ir.tensor(numbers),
        "scalar": ir.tensor(np.float32(3)),
        "empty": ir.tensor(np.zeros((0, 3), np.float32)),
        "text": ir.StringTensor(np.array([b"a", b"bc"], object), shape=ir.Shape([2])),
    }
    content = bytes_with_initializers(model(), list(given.items()))
    found = {t.name: t for t in onnx.load_model_from_string(content).graph.initializer}
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        array = numpy_helper.to_array(found[name])
        assert found[name].data_type == tensor.dtype
        wanted = tensor.numpy() if name != "text" else np.array(["a", "bc"], object)
        np.testing.assert_array_equal(array, wanted)


def test_files_of_their_own_are_read_into_the_bytes(tmp_path: Path) -> None:
    # A session of bytes has no folder in which to look for a file.
    w = np.random.default_rng(0).standard_normal((300, 200), np.float32)
    (tmp_path / "w.data").write_bytes(b"1234" + w.tobytes())
    tensor = ir.ExternalTensor(
        "w.data",
        offset=4,
        length=w.nbytes,
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(w.shape),
        name="w",
        base_dir=tmp_path,
    )
    content = bytes_with_initializers(model(), [("w", tensor)])
    (found,) = onnx.load_model_from_string(content).graph.initializer
    assert found.data_location == onnx.TensorProto.DEFAULT
    np.testing.assert_array_equal(numpy_helper.to_array(found), w)
