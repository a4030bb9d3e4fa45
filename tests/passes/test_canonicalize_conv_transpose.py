# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions as a 1 x 1 convolution and an overlap-add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import rimc_onnx
from rimc_onnx import runtime
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import ModelError
from rimc_onnx.ops import schema
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.passes import (
    CanonicalizeConvTransposePass,
    find_units,
    prepare_pipeline,
    select_rram_nodes,
)

RNG = np.random.default_rng(29)
# STYLE: exact graph rewrites. Inputs are of order 1 / 4, sums of order 1.
REWRITE = {"rtol": 1e-5, "atol": 1e-6}
IDEAL = get_preset("gaussian-relative", drift_frac=0.0)


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


GEOMETRIES = {
    "plain": ("", (2, 6, 5, 4), (6, 4, 3, 2)),
    "upsampling by 2": ("<strides=[2,2]>", (1, 6, 5, 4), (6, 4, 2, 2)),
    "overlapping, cropped": ("<strides=[2,2], pads=[1,1,1,1]>", (1, 6, 5, 4), (6, 4, 4, 4)),
    "gaps": ("<strides=[3,3]>", (1, 6, 3, 4), (6, 4, 2, 2)),
    "uneven": (
        "<strides=[2,3], pads=[1,0,0,2], output_padding=[1,2], dilations=[2,1]>",
        (2, 6, 4, 3),
        (6, 4, 3, 4),
    ),
    "output_shape": ("<strides=[2,2], output_shape=[11,8]>", (1, 6, 5, 4), (6, 4, 3, 3)),
    "same upper": ('<strides=[2,2], auto_pad="SAME_UPPER">', (1, 6, 5, 4), (6, 4, 3, 3)),
    "same lower": ('<strides=[2,2], auto_pad="SAME_LOWER">', (1, 6, 5, 4), (6, 4, 3, 3)),
    "valid": ('<strides=[2,2], auto_pad="VALID">', (1, 6, 5, 4), (6, 4, 3, 3)),
    "groups": ("<strides=[2,2], group=2>", (2, 6, 5, 4), (6, 3, 3, 2)),
    "depthwise": ("<strides=[2,2], group=6>", (1, 6, 5, 4), (6, 1, 3, 3)),
    "one tap": ("<strides=[2,2]>", (1, 6, 5, 4), (6, 4, 1, 1)),
    "1d": ("<strides=[2], pads=[1,0]>", (2, 6, 9), (6, 4, 4)),
    "3d": ("<strides=[2,1,2], group=3>", (1, 6, 3, 2, 3), (6, 2, 2, 2, 3)),
}
by_geometry = pytest.mark.parametrize("name", GEOMETRIES)


def make(build, name: str, *, bias: bool = True) -> tuple[ir.Model, np.ndarray]:
    attributes, x_shape, w_shape = GEOMETRIES[name]
    group = 1
    if "group=" in attributes:
        group = int(attributes.split("group=")[1].split(">")[0])
    more = {"b": normal(w_shape[1] * group)} if bias else {}
    sizes = ",".join(map(str, x_shape))
    model = build(
        f"g (float[{sizes}] x) => (float y) {{ y = ConvTranspose{attributes}(x, w"
        f"{', b' if bias else ''}) }}",
        w=normal(*w_shape),
        **more,
    )
    model.graph[0].name = "up"
    return model, normal(*x_shape)


@by_geometry
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_convolution_and_an_overlap_add(build, check_rewrite, name: str, bias: bool):
    # Taps in another order than the kernel's, a bit line in the group of another output channel, a
    # crop that is applied twice, a bias for every tap.
    model, x = make(build, name, bias=bias)
    kernel = GEOMETRIES[name][2][2:]
    check_rewrite(model, CanonicalizeConvTransposePass(), x=x, **REWRITE)
    assert ops(model) == ["Conv", "ConvTranspose"]
    conv, overlap = model.graph
    assert (conv.name, overlap.name) == ("up", "up/overlap")
    taps = int(np.prod(kernel))
    weight = conv.inputs[1].const_value.numpy()
    assert weight.size == int(np.prod(GEOMETRIES[name][2]))
    assert weight.shape[2:] == (1,) * len(kernel)
    routes = overlap.inputs[1].const_value.numpy().reshape(-1, taps)
    assert (routes.sum(axis=1) == 1).all()
    assert set(routes.reshape(-1)) <= {0.0, 1.0}
    # the weight as it was is gone
    assert sorted(model.graph.initializers) == sorted(
        ["up/weight", "up/overlap/kernel", *(["b"] if bias else [])]
    )


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("g (float[1,6,5,4] x, float[6,4,2,2] w) => (float y) { y = ConvTranspose(x, w) }", {}),
        (
            "g (double[1,6,5,4] x) => (double y) { y = ConvTranspose(x, w) }",
            {"w": normal(6, 4, 2, 2).astype(np.float64)},
        ),
    ],
)
def test_other_weights_are_left_alone(build, text: str, more: dict[str, np.ndarray]):
    # A product of two activations that is taken for a layer; doubles cut to float32.
    model = build(text, **more)
    assert CanonicalizeConvTransposePass()(model).modified is False
    assert ops(model) == ["ConvTranspose"]


def test_kept_digital_keeps_its_form(build):
    model, _ = make(build, "groups")
    prepare_pipeline(keep_digital=["up"])(model)
    assert ops(model) == ["ConvTranspose"]
    (decision,) = select_rram_nodes(model, ConvertConfig(keep_digital=("up",)))
    assert decision.reason == Refusal.KEPT_DIGITAL.of("up")


def test_weight_that_contradicts_the_node_is_an_error(build):
    model, _ = make(build, "plain")
    model.graph[0].attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [3, 3])
    with pytest.raises(ModelError, match=r"'up' \(ConvTranspose\): kernel_shape \[3, 3\] is not"):
        prepare_pipeline()(model)
    model, _ = make(build, "plain")
    model.graph[0].attributes["group"] = ir.AttrInt64("group", 4)
    with pytest.raises(ModelError, match="6 input channels of the weight can't be split in 4"):
        prepare_pipeline()(model)


def test_batch_norm_behind_it_goes_into_the_arrays(build, check_rewrite):
    # The canonical form comes first and hides the weight from the batch norm.
    model = build(
        "g (float[1,6,5,4] x) => (float y) { a = ConvTranspose<strides=[2,2]>(x, w) "
        "y = BatchNormalization(a, s, c, m, v) }",
        w=normal(6, 4, 2, 2),
        s=normal(4),
        c=normal(4),
        m=normal(4),
        v=np.full(4, 0.5, np.float32),
    )
    check_rewrite(model, prepare_pipeline(), x=normal(1, 6, 5, 4), **REWRITE)
    assert ops(model) == ["Conv", "ConvTranspose"]


def test_overlap_add_is_no_layer(build):
    # A decision on the kernel of zeros and ones: mapped, it would be an array of a layer that the
    # model does not have; listed, a layer that is left digital without a reason.
    model, _ = make(build, "groups")
    prepare_pipeline()(model)
    (unit,) = find_units(model).values()
    assert (unit.name, unit.op_type) == ("up", schema.RRAM_CONV)


def test_nodes_that_share_a_weight_are_refused_as_ever(build):
    # The weight is another initializer for every node, made of one.
    model = build(
        "g (float[1,6,5,4] x) => (float y) { a = ConvTranspose(x, w) b = ConvTranspose(x, w) "
        "y = Add(a, b) }",
        w=normal(6, 4, 2, 2),
    )
    for node, name in zip(model.graph, ("up1", "up2", "sum"), strict=True):
        node.name = name
    prepare_pipeline()(model)
    reasons = [d.reason for d in select_rram_nodes(model, ConvertConfig())]
    assert len(reasons) == 2
    assert all("shared by nodes up1, up2" in str(reason) for reason in reasons)
    assert len(find_units(model)) == 2


@by_geometry
def test_converted_model_agrees_at_drift_zero(build, tmp_path: Path, name: str):
    # What ONNX Runtime's own ConvTranspose gives, with kernels and without.
    model, x = make(build, name)
    onnx.save(ir.to_proto(model), tmp_path / "m.onnx")
    rimc_onnx.convert(tmp_path / "m.onnx", config=ConvertConfig(device=IDEAL))
    (want,) = runtime.make_session(tmp_path / "m.onnx", native=False).run(None, {"x": x})
    for native in (True, False):
        session = runtime.make_session(tmp_path / "m.rimc.onnx", native=native)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, **REWRITE)


@pytest.fixture
def decoder(build, tmp_path: Path) -> Path:
    """Three layers that make an image of a code, with samples beside it."""
    model = build(
        "g (float[N,8,4,4] x) => (float[N,1,16,16] y) {"
        "a = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)"
        "c = ConvTranspose<strides=[2,2], group=2>(r, w2) s = Relu(c)"
        "y = Conv<pads=[1,1,1,1]>(s, w3) }",
        w1=normal(8, 12, 4, 4), b1=normal(12), w2=normal(12, 3, 2, 2), w3=normal(1, 6, 3, 3),
    )  # fmt: skip
    for node, name in zip(model.graph, ("up1", "r1", "up2", "r2", "out"), strict=True):
        node.name = name
    onnx.save(ir.to_proto(model), tmp_path / "net.onnx")
    np.savez(tmp_path / "calibration.npz", x=normal(64, 8, 4, 4) * 4)
    np.savez(tmp_path / "test.npz", x=normal(64, 8, 4, 4) * 4)
    return tmp_path


def test_decoder_is_calibrated_evaluated_aged_and_folded(decoder: Path):
    # Any step that knows convolutions by their input's size, or a unit by the teacher's node.
    x = np.load(decoder / "test.npz")["x"]

    def output(name: str, native: bool = True) -> np.ndarray:
        return runtime.make_session(decoder / name, native=native).run(None, {"x": x})[0]

    clean = output("net.onnx", native=False)
    config = ConvertConfig(
        device=get_preset("wan2022-aihwkit"),
        time_s=1.0,
        periphery=PeripheryConfig(device_reads=False),
    )
    report = rimc_onnx.convert(decoder / "net.onnx", config=config)
    assert (report.mapped, report.digital) == (3, 0)
    assert report.rram_weights == 8 * 12 * 16 + 12 * 3 * 4 + 6 * 9
    assert [n.name for n in rimc_onnx.inspect(decoder / "net.rimc.onnx").nodes] == [
        "up1", "up2", "out",
    ]  # fmt: skip
    drifted = np.abs(output("net.rimc.onnx") - clean).std()
    calibrated = rimc_onnx.calibrate(decoder / "net.rimc.onnx", twin=decoder / "twin.onnx")
    assert all(n.error_after < n.error_before for n in calibrated.nodes)
    after = np.abs(output("net.rimc.calibrated.onnx") - clean).std()
    assert after < 0.8 * drifted
    # the branch rounds its inputs to 8 bits, the twin does not: a part in 127 of the correction
    twin = output("twin.onnx", native=False)
    scale = np.abs(clean).max()
    assert np.abs(twin - output("net.rimc.calibrated.onnx")).max() < 0.05 * scale
    assert {n.domain for n in onnx.load(decoder / "twin.onnx").graph.node} == {""}
    found = rimc_onnx.evaluate(
        decoder / "net.rimc.calibrated.onnx", data=decoder / "test.npz", batch_size=16
    )
    assert found.sqnr_db is not None
    rimc_onnx.age(decoder / "net.rimc.calibrated.onnx", decoder / "aged.onnx", time_s=86400.0)
    assert not np.array_equal(output("aged.onnx"), output("net.rimc.calibrated.onnx"))


def test_converters_read_every_tap_by_itself(decoder: Path):
    # Ranges that are measured on sums that overlap, larger than a bit line's.
    config = ConvertConfig(
        device=IDEAL, periphery=PeripheryConfig(tile_rows=4, dac_bits=8, adc_bits=8)
    )
    rimc_onnx.convert(decoder / "net.onnx", config=config)
    model = onnx.load(decoder / "net.rimc.onnx")
    tiles = {
        n.name: next(a.i for a in n.attribute if a.name == "num_tiles")
        for n in model.graph.node
        if n.op_type == schema.RRAM_CONV and n.name.startswith("up")
    }
    # one word line for a channel, whatever the kernel: 8 / 4 and 6 / 4 tiles
    assert tiles == {"up1/rram": 2, "up2/rram": 2}
    x = np.load(decoder / "test.npz")["x"]
    clean, read = (
        runtime.make_session(decoder / name, native=True).run(None, {"x": x})[0]
        for name in ("net.onnx", "net.rimc.onnx")
    )
    # 8-bit converters: their step is 1 / 254 of the range, some 3 layers and 4 taps deep
    assert np.abs(read - clean).std() < 0.05 * clean.std()
