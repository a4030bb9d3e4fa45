# SPDX-License-Identifier: Apache-2.0
"""The check of a converted model refuses every malformed node that the kernels refuse."""

from __future__ import annotations

from typing import Any

import malformed
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
from rimc_onnx.passes import check_rimc_model

PARTNER = {
    schema.RRAM_MATMUL: schema.DORA_MATMUL,
    schema.RRAM_CONV: schema.DORA_CONV,
    schema.DORA_MATMUL: schema.RRAM_MATMUL,
    schema.DORA_CONV: schema.RRAM_CONV,
}
SEEN_IN_A_RUN = ("input x ", "input h ", "filled with", "axes padded by", "13 axes")
"""What depends on x and h, on every weight, or on the memory of the machine."""


def pair(node: Any) -> ir.Model:
    """The node with a sound partner: a crossbar gives h to its adapter."""
    partner = malformed.sound(PARTNER[node.op])
    crossbar, adapter = (node, partner) if "w" in node.inputs else (partner, node)
    outputs = ["h", *crossbar.outputs[1:]] if crossbar.outputs else []
    protos = [
        crossbar.node_proto("crossbar", outputs),
        adapter.node_proto("adapter", list(adapter.outputs)),
    ]
    infos, initializers = [], []
    for each in (crossbar, adapter):
        for name, value in each.inputs.items():
            if name == "h" or (name == "x" and each is adapter):
                continue
            if name in each.fed:
                dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
                infos.append(helper.make_tensor_value_info(name, dtype, None))
            else:
                initializers.append(numpy_helper.from_array(value, name))
    y = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(protos, "g", infos, y, initializers)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(schema.DOMAIN, schema.VERSION)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


@pytest.mark.parametrize("op", list(schema.OPS))
def test_malformed_nodes_are_model_errors(op: str) -> None:
    # A fault that passes here and is met by a deployed session; an exception of Python in its
    # place, which the command line would call a bug.
    nodes = [node for node in malformed.all_malformed() if node.op == op]
    errors = {node.label: error_of(pair(node)) for node in nodes}
    for node in nodes:
        error = errors[node.label]
        assert error is None or isinstance(error, ModelError), f"{node.label}: {error!r}"
        assert error is None or node.refused is not False, f"{node.label}: {error}"
        assert "\n" not in str(error)
    accepted = [
        node
        for node in nodes
        if errors[node.label] is None
        and node.refused is not False
        and not any(word in node.label for word in SEEN_IN_A_RUN)
    ]
    assert not [n.label for n in accepted if n.refused or malformed.outcome(n) is not None]


def error_of(model: ir.Model) -> Exception | None:
    try:
        check_rimc_model(model)
    except Exception as error:
        return error
    return None


def test_files_of_every_fault_are_still_onnx() -> None:
    # A table of nodes that can't even be written tests nothing.
    for node in malformed.all_malformed()[::50]:
        assert onnx.load_from_string(node.model()).graph.node[0].op_type == node.op
