# SPDX-License-Identifier: Apache-2.0
"""Nodes of ONNX's domain that ONNX does not know are refused; all others are let through."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from rimc_onnx import convert
from rimc_onnx.errors import ModelError
from rimc_onnx.passes import CheckOperatorsPass, prepare_pipeline

W = np.ones((4, 3), np.float32)
NET = """g (float[n,4] x) => (float[n,3] y) {
    h = MatMul(x, w)
    y = %s
}"""


@pytest.mark.parametrize(
    ("node", "opset", "message"),
    [
        (
            "Rleu(h)",
            17,
            r"node '\S+' \(Rleu\): ONNX has no such operator\. Did you mean 'Relu'.*needs a domain",
        ),
        ("FusedMatMul(h, h)", 17, r"\(FusedMatMul\): ONNX has no such operator\."),
        ("Gelu(h)", 17, r"\(Gelu\): ONNX has it from opset 20 on, and the model's is 17\. Export"),
        (
            "Upsample(h, h)",
            17,
            r"\(Upsample\): ONNX dropped it with opset 10, and the model's is 17\.",
        ),
    ],
)
def test_operator_that_onnx_lacks_is_refused(build, run, node, opset, message):
    # A conversion that writes a file which no ONNX Runtime loads.
    model = build(NET % node, opset=opset, w=W)
    with pytest.raises(Exception, match=r"(?i)registered"):
        run(model, x=np.ones((1, 4), np.float32))
    with pytest.raises(ModelError, match=message):
        prepare_pipeline()(model)


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("com.microsoft.Gelu(h)", 17),
        ("com.microsoft.OfNobody(h)", 17),
        ("Gelu(h)", 20),
        ("SimplifiedLayerNormalization(h, s)", 17),
        ("LayerNormalization(h, s)", 16),
        ("Relu(h)", onnx.defs.onnx_opset_version()),
        ("FromTheFuture(h)", onnx.defs.onnx_opset_version() + 1),
    ],
)
def test_operator_that_somebody_has_is_let_through(build, node, opset):
    # Domains of others, what ONNX Runtime adds to ONNX's own, an opset newer than this package.
    model = build(NET % node, opset=opset, w=W, s=np.ones(3, np.float32))
    assert CheckOperatorsPass()(model).modified is False


@pytest.mark.parametrize("domain", ["my", "ai.onnx"])
def test_function_of_the_model_may_have_any_name(domain):
    # A function is asked for in ONNX's schemas before it is inlined.
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, w)  y = my.Rleu(h) }
    <opset_import: ["" : 17], domain: "my"> Rleu (a) => (b) { b = Relu(a) }"""
    if domain == "ai.onnx":
        text = text.replace('["" : 17]', '["ai.onnx" : 17]')
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    model = ir.from_proto(proto)
    prepare_pipeline()(model)
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu"]


def test_node_inside_a_branch_and_of_a_function_is_found(build, tmp_path):
    # A loop over the graph's own nodes alone; a message without the file.
    text = """g (float[n,4] x, bool c) => (float[n,3] y) {
        h = MatMul(x, w)
        y = If (c) <
            then_branch = t () => (float[n,3] a) { a = Relu(h) },
            else_branch = e () => (float[n,3] b) { b = Relo(h) }
        >
    }"""
    with pytest.raises(ModelError, match=r"\(Relo\): ONNX has no such operator"):
        CheckOperatorsPass()(build(text, w=W))
    inner = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, w)  y = my.F(h) }
    <opset_import: ["" : 17], domain: "my"> F (a) => (b) { b = Relo(a) }"""
    proto = onnx.parser.parse_model(inner)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"\(Relo\): ONNX has no such operator") as error:
        convert(tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.rimc.onnx").exists()
