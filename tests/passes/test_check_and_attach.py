# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from rimc_onnx import reference
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import ModelError
from rimc_onnx.ops.adapter import QuantizedAdapter
from rimc_onnx.ops.geometry import NodeGeometry
from rimc_onnx.passes import (
    AttachAdaptersPass,
    check_rimc_model,
    convert_model,
    rram_branches,
)

RNG = np.random.default_rng(23)
FC = NodeGeometry(weight_shape=(100, 5))
PERFECT = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.0), rank=2)


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


@pytest.fixture
def converted(build) -> ir.Model:
    model = build(
        "g (float[2,3,5,5] x) => (float y) "
        "{ h = Conv<pads=[1,1,1,1]>(x, w) f = Flatten(h) y = MatMul(f, v) }",
        w=_normal(4, 3, 3, 3),
        v=_normal(100, 5),
    )
    for name, node in zip(("conv", "flat", "fc"), model.graph, strict=True):
        node.name = name
    convert_model(model, PERFECT)
    return model


def _node(model: ir.Model, name: str) -> ir.Node:
    return model.graph.node(name)


def _set(model: ir.Model, name: str, index: int, array: np.ndarray) -> None:
    value = _node(model, name).inputs[index]
    value.const_value, value.dtype = ir.tensor(array), ir.DataType.from_numpy(array.dtype)


def _drop_attribute(model: ir.Model) -> None:
    del _node(model, "conv/rram").attributes["seed"]


def _attribute(model: ir.Model, node: str, attribute: ir.Attr) -> None:
    _node(model, node).attributes[attribute.name] = attribute


def _curve_of_relative_noise(model: ir.Model, node: str) -> None:
    _attribute(model, node, ir.AttrInt64("read_noise_relative", 1))
    _attribute(model, node, ir.AttrFloat32s("read_noise_curve", [0.5] * 65))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_attribute, r"node 'conv/rram' \(RramConv\): lacks attribute 'seed'"),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrInt64("auto_pad", 1)),
            "'fc/rram' .*: has the unknown attribute 'auto_pad'",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32("seed", 1.0)),
            "'fc/rram' .*: attribute 'seed' must be of type int",
        ),
        (
            # Read as text where the bytes are damaged: a TypeError of onnx_ir from `inspect`.
            lambda m: _attribute(
                m,
                "fc/rram",
                ir.Attr("device_config", ir.AttributeType.STRING, b"\xd5@"),  # type: ignore[arg-type]
            ),
            "'fc/rram' .*: attribute 'device_config' is no UTF-8 text",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrInt64("num_tiles", 3)),
            "'fc/rram' .*: num_tiles must be 1, got 3",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrInt64("tile_rows", 10)),
            "'fc/rram' .*: num_tiles must be 10, got 1",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrInt64("tile_rows", 8)),
            "'conv/rram' .*: 9 word lines do not fit in a tile of 8",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrInt64("tile_group", 2)),
            "'conv/rram' .*: tile_group must be 1",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrInt64s("pads", [1, 1])),
            "'conv/rram' .*: pads must have 4 values, got \\[",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("adc_range", [1.0, 1.0])),
            "'fc/rram' .*: adc_range must have 1 or 5 values, got 2",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("adc_gain", [1.0, 1.0])),
            "'fc/rram' .*: adc_gain must have 1 or 5 values, got 2",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("adc_gain", [-1.0])),
            "'fc/rram' .*: adc_gain must be above 0 and adc_offset finite",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("adc_offset", [float("nan")])),
            "'fc/rram' .*: adc_gain must be above 0 and adc_offset finite",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrFloat32("read_noise", float("nan"))),
            r"'conv/rram' .*: read_noise must lie in 0\.\.1, got nan",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrFloat32("iv_sinh", -1.0)),
            r"'conv/rram' .*: iv_sinh must lie in 0\.\.6, got -1",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrFloat32s("iv_cube", [0.5])),
            r"'conv/rram' .*: iv_cube must have 8 finite values, got \(0\.5,\)",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrFloat32("input_shrink", 0.0)),
            "'conv/rram' .*: input_shrink must lie in .*, got 0",
        ),
        (
            lambda m: _attribute(m, "conv/rram", ir.AttrFloat32("wire_ohm", -2.0)),
            "'conv/rram' .*: wire_ohm must lie in .*, got -2",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrInt64("dac_serial_bits", 1)),
            r"'fc/rram' .*: dac_serial_bits must lie in 0\.\.0, got 1",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrInt64("read_noise_relative", 2)),
            "'fc/rram' .*: read_noise_relative must be 0 or 1, got 2",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("read_noise_curve", [0.5] * 9)),
            r"'fc/rram' .*: read_noise_curve must be one 0 or 65 values, got 9",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("read_noise_curve", [0.5])),
            r"'fc/rram' .*: read_noise_curve must be one 0 or 65 values, got 1",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrFloat32s("read_noise_curve", [-0.5] * 65)),
            r"'fc/rram' .*: read_noise_curve must lie in 0\.\.1",
        ),
        (
            lambda m: _curve_of_relative_noise(m, "conv/rram"),
            "'conv/rram' .*: read_noise_relative must be 0 with a read_noise_curve",
        ),
        (
            lambda m: _attribute(m, "conv/dora", ir.AttrInt64s("pads", [0, 0, 0, 0])),
            "'conv/dora' .*: attribute 'pads' is not that of its crossbar",
        ),
        (
            lambda m: _attribute(m, "fc/rram", ir.AttrString("node", "conv")),
            "'fc/rram' .*: is the second one of the teacher's node 'conv'",
        ),
        (
            lambda m: _set(m, "fc/dora", 2, np.zeros((100, 2), np.float32)),
            r"'fc/dora' \(DoraMatMul\): input 'lora_a' must be int8",
        ),
        (
            lambda m: _set(m, "fc/dora", 4, np.zeros(4, np.int8)),
            r"'fc/dora' .*: input 'magnitude' must have shape \[5\], got \[4\]",
        ),
        (
            lambda m: _set(m, "conv/dora", 3, np.zeros((4, 3, 1, 1), np.int8)),
            r"'conv/dora' .*: input 'lora_b' must have shape \[4, 2, 1, 1\], got \[4, 3, 1, 1\]",
        ),
        (
            lambda m: _set(m, "conv/dora", 7, np.ones(3, np.float32)),
            r"'lora_b_scale' must have shape \[1\] or \[4\], got \[3\]",
        ),
        (
            lambda m: _set(m, "conv/dora", 11, np.zeros(2, np.int64)),
            r"'conv/dora' .*: input 'sparse_index' must have shape \[0\], got \[2\]",
        ),
        (
            lambda m: _set(m, "fc/dora", 11, np.zeros(0, np.int32)),
            r"'fc/dora' .*: input 'sparse_index' must be int64",
        ),
        (
            lambda m: _set(m, "fc/dora", 10, np.zeros(0, np.float32)),
            r"'fc/dora' .*: input 'sparse_values' must be int8",
        ),
        (
            lambda m: _set(m, "fc/dora", 12, np.ones(2, np.float32)),
            r"'fc/dora' .*: input 'sparse_scale' must have shape \[1\] or \[5\], got \[2\]",
        ),
        (
            lambda m: _node(m, "fc/rram").replace_input_with(1, m.graph.inputs[0]),
            "'fc/rram' .*: input 'w' must be an initializer",
        ),
        (
            lambda m: _node(m, "fc/dora").replace_input_with(9, None),
            "'fc/dora' .*: needs the inputs x, h, lora_a",
        ),
        (
            lambda m: _node(m, "fc/dora").replace_input_with(0, m.graph.inputs[0]),
            "'fc/rram' .*: has no adapter of its own on the same input",
        ),
        (
            lambda m: m.opset_imports.pop("ai.rimc"),
            "does not import ai.rimc version 1",
        ),
    ],
)  # fmt: skip
def test_check_names_the_faulty_node(converted, damage, message):
    check_rimc_model(converted)
    damage(converted)
    with pytest.raises(ModelError, match=message):
        check_rimc_model(converted)


def test_branches_come_in_graph_order_with_their_values(converted):
    conv, fc = rram_branches(converted)
    assert (conv.node, conv.x.name, conv.h.name, conv.y.name) == ("conv", "x", "h/rram", "h")
    assert (fc.node, fc.x.name, fc.h.name, fc.y.name) == ("fc", "f", "y/rram", "y")
    assert (conv.geometry.weight_shape, conv.geometry.is_conv) == ((4, 3, 3, 3), True)
    assert fc.geometry == FC


def test_model_that_is_not_converted_is_an_error(build):
    model = build("g (float[2] x) => (float y) { y = Relu(x) }")
    for look in (rram_branches, check_rimc_model):
        with pytest.raises(
            ModelError, match=r"^not a converted model: run rimc-onnx convert first"
        ):
            look(model)


def _adapter(rank: int = 3, num_cells: int = 40) -> QuantizedAdapter:
    base = QuantizedAdapter.identity(geometry=FC, rank=rank, bias=_normal(5))
    return replace(
        base,
        lora_a=RNG.integers(-127, 128, (100, rank)).astype(np.int8),
        lora_b=RNG.integers(-127, 128, (rank, 5)).astype(np.int8),
        magnitude=RNG.integers(50, 90, 5).astype(np.int8),
        x_scale=np.full(1, 0.01, np.float32),
        rank_step=np.array([300, 400, 500], np.float32)[:rank],
        lora_b_scale=RNG.uniform(1e-5, 1e-4, 5).astype(np.float32),
        sparse_values=RNG.integers(-127, 128, num_cells).astype(np.int8),
        sparse_index=np.sort(RNG.permutation(500)[:num_cells]),
        sparse_scale=RNG.uniform(1e-5, 1e-4, 5).astype(np.float32),
    )


@pytest.mark.parametrize(("rank", "num_cells"), [(3, 40), (3, 0), (0, 40), (0, 500)])
def test_attached_adapter_computes_and_the_crossbars_stay(converted, run, rank, num_cells):
    # Catches initializers in another order than the operator's inputs, a touched RRAM weight, and
    # inputs that keep the shape of the adapter before: this one may have another rank, or none.
    rram = {b.node: b.rram.inputs[1].const_value.tobytes() for b in rram_branches(converted)}
    adapter = _adapter(rank, num_cells)
    attach = AttachAdaptersPass({"fc": adapter})
    assert attach(converted).modified
    check_rimc_model(converted)
    assert not attach(converted).modified
    for b in rram_branches(converted):
        assert b.rram.inputs[1].const_value.tobytes() == rram[b.node]

    fc = rram_branches(converted)[1]
    assert fc.rank == rank
    for name, tensor in fc.adapter().tensors().items():
        np.testing.assert_array_equal(tensor, getattr(adapter, name))
    for value in (fc.x, fc.h):
        converted.graph.outputs.append(value)
    y, x, h = run(converted, x=_normal(2, 3, 5, 5))
    # Integers in between, so only the float epilogue rounds: 4 ulp of terms of order 1.
    np.testing.assert_allclose(
        y, reference.dora_matmul(x, h, **adapter.tensors()), rtol=1e-6, atol=5e-7
    )
    assert np.abs(y - h).max() > 0.005


def test_group_ranks_of_an_attached_adapter_may_be_none(build, run):
    # A rank of 0 makes [group * R, ...] an empty kernel, which no Conv takes.
    model = build(
        "g (float[2,4,5,5] x) => (float y) { y = Conv<group=2, pads=[1,1,1,1]>(x, w) }",
        w=_normal(6, 2, 3, 3),
    )
    model.graph[0].name = "conv"
    convert_model(model, PERFECT)
    x = _normal(2, 4, 5, 5)
    (before,) = run(model, x=x)
    geometry = rram_branches(model)[0].geometry
    nothing = QuantizedAdapter.identity(geometry=geometry, rank=0, bias=np.zeros(6, np.float32))
    assert nothing.lora_a.shape == (0, 2, 3, 3)
    assert AttachAdaptersPass({"conv": nothing})(model).modified
    check_rimc_model(model)
    np.testing.assert_array_equal(run(model, x=x)[0], before)
    one = replace(nothing, sparse_values=np.int8([2]), sparse_index=np.int64([3 * 18 + 4]))
    assert AttachAdaptersPass({"conv": one})(model).modified
    check_rimc_model(model)
    # Cell 3 * 18 + 4 is the middle of the kernel of output channel 3 on its group's first channel.
    want = before.copy()
    want[:, 3] += 2 * np.clip(np.rint(x[:, 2]), -127, 127)
    np.testing.assert_allclose(run(model, x=x)[0], want, rtol=1e-6, atol=1e-6)


def test_sram_counts_what_is_stored():
    # A sparse cell costs its code and its index; all cells need no index; M at 1 needs no code.
    identity = QuantizedAdapter.identity(geometry=FC, rank=2, bias=np.zeros(5, np.float32))
    assert identity.sram_bytes == 2 * 105
    assert _adapter(3, 40).sram_bytes == 3 * 105 + 5 + 2 * 40
    assert _adapter(0, 499).sram_bytes == 5 + 2 * 499
    assert _adapter(0, 500).sram_bytes == 5 + 500


def test_identity_adapters_change_nothing_when_attached(converted):
    same = QuantizedAdapter.identity(geometry=FC, rank=2, bias=np.zeros(5, np.float32))
    assert not AttachAdaptersPass({"fc": same})(converted).modified


def test_adapter_of_an_unknown_node_is_an_error(converted):
    with pytest.raises(ModelError, match=r"no RRAM node is named 'fcc'. Did you mean 'fc'\?"):
        AttachAdaptersPass({"fcc": _adapter()})(converted)
