# SPDX-License-Identifier: Apache-2.0
"""Small models in ONNX text, run before and after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

Arrays = list[npt.NDArray[np.generic]]


def _build(text: str, *, opset: int = 17, ir_version: int = 8, **initializers: object) -> ir.Model:
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    proto = onnx.parser.parse_model(header + text)
    for name, array in initializers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def _run(model: ir.Model | bytes, **feeds: object) -> Arrays:
    data = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(array) for name, array in feeds.items()})


def _check_rewrite(
    model: ir.Model,
    rewrite: ir.passes.PassBase,
    *,
    rtol: float,
    atol: float,
    modified: bool = True,
    **feeds: object,
) -> None:
    before = _run(model, **feeds)
    outputs = [v.name for v in model.graph.outputs]
    assert rewrite(model).modified is modified
    onnx.checker.check_model(ir.to_proto(model))
    assert [v.name for v in model.graph.outputs] == outputs
    for got, want in zip(_run(model, **feeds), before, strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    assert rewrite(model).modified is False


@pytest.fixture
def build() -> Callable[..., ir.Model]:
    """Model from ONNX text and initializers by name."""
    return _build


@pytest.fixture
def run() -> Callable[..., Arrays]:
    """Outputs of a model for feeds by name, in stock ONNX Runtime."""
    return _run


@pytest.fixture
def check_rewrite() -> Callable[..., None]:
    """Same numbers before and after, accepted by the checker, and a second run does nothing."""
    return _check_rewrite
