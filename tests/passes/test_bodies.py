# SPDX-License-Identifier: Apache-2.0
"""Bodies in a file hold what its nodes use, and follow what passes change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rimc_onnx import passes, runtime
from rimc_onnx.crossbar import ConvertConfig, NodeRanges, PeripheryConfig
from rimc_onnx.ops import schema
from rimc_onnx.ops.adapter import QuantizedAdapter

Array = np.ndarray[Any, Any]

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits" / "model.onnx"


def converted(periphery: PeripheryConfig | None = None) -> ir.Model:
    model = ir.load(DIGITS)
    config = ConvertConfig(periphery=periphery or PeripheryConfig())
    passes.prepare_pipeline()(model)
    decisions = passes.select_rram_nodes(model, config)
    ranges = {d.name: NodeRanges(dac_range=3.0, adc_range=(9.0,)) for d in decisions}
    passes.convert_pipeline(decisions, config, ranges)(model)
    return model


def operators(model: ir.Model, op_type: str) -> list[str]:
    """What the body of an operator computes with, constants left out."""
    function = model.functions[(schema.DOMAIN, op_type, "")]
    found = [node.op_type for node in ir.traversal.RecursiveGraphIterator(function.graph)]
    return [op for op in found if op != "Constant"]


def test_ideal_crossbars_are_one_operator() -> None:
    # Everything of an operator in every file: ONNX Runtime takes 40 ms a node to read that.
    model = converted()
    assert operators(model, "RramConv") == ["Conv"]
    assert operators(model, "RramMatMul") == ["MatMul"]
    assert {key[:2] for key in model.functions} == {(schema.DOMAIN, op) for op in schema.OPS}


def test_converters_alike_on_all_nodes_need_no_choice() -> None:
    # An If for each node: ONNX Runtime takes longer for those than for all that is computed.
    model = converted(PeripheryConfig(tile_rows=64, dac_bits=8, adc_bits=8))
    for op_type in schema.OPS:
        found = operators(model, op_type)
        assert "If" not in found
        assert len(found) < 60


def adapters(model: ir.Model, *, rank: int) -> dict[str, QuantizedAdapter]:
    """Adapters that add something; those of the first node have no rank, but one sparse cell."""
    found = {}
    for branch in passes.rram_branches(model):
        own = QuantizedAdapter.identity(
            geometry=branch.geometry,
            rank=rank if found else 0,
            bias=branch.adapter().bias + np.float32(0.5),
        )
        if not found:
            cell = {"sparse_values": np.int8([100]), "sparse_index": np.int64([7])}
            own = replace(own, **cell)
        found[branch.node] = own
    return found


def outputs(model: ir.Model, *, native: bool) -> Array:
    content = ir.serde.serialize_model(model).SerializeToString()
    x = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    session = runtime.make_session(content, native=native)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def test_bodies_follow_the_adapters() -> None:
    # Adapters of another kind read by a body that leaves them out: an answer without them.
    model = converted()
    assert "ScatterElements" not in operators(model, "DoraConv")
    passes.AttachAdaptersPass(adapters(model, rank=2))(model)
    assert "If" in operators(model, "DoraConv")
    np.testing.assert_allclose(
        outputs(model, native=False), outputs(model, native=True), rtol=0, atol=1e-4
    )
    passes.AttachAdaptersPass(adapters(model, rank=0))(model)
    assert operators(model, "DoraConv").count("Conv") == 1
    passes.MakeAdaptersSwappablePass()(model)
    assert operators(model, "DoraConv").count("Conv") == 3
