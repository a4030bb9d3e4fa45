# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rimc_onnx.errors import ModelError
from rimc_onnx.passes import MakePadsExplicitPass

RNG = np.random.default_rng(13)
REWRITE = {"rtol": 1e-5, "atol": 1e-6}  # STYLE: exact graph rewrites


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 2)])
@pytest.mark.parametrize("size", [(7, 8), (12, 9)])
@pytest.mark.parametrize("known", [True, False])
def test_auto_pad_is_written_out(build, check_rewrite, mode, strides, kernel, size, known):
    # Even kernels, remainders of every kind: catches UPPER and LOWER swapped. Where the kernel is
    # smaller than the stride by 2 or more, versions of ONNX Runtime differ: see below.
    dims = ",".join(map(str, size)) if known else "h,w"
    model = build(
        f'g (float[2,3,{dims}] x) => (float y) {{ y = Conv<auto_pad="{mode}", '
        f"strides=[{strides[0]},{strides[1]}]>(x, k, c) }}",
        k=_normal(4, 3, *kernel),
        c=_normal(4),
    )
    model.graph[0].name = "conv"
    check_rewrite(model, MakePadsExplicitPass(), x=_normal(2, 3, *size), **REWRITE)
    conv = model.graph[-1]
    assert "auto_pad" not in conv.attributes
    assert len(conv.attributes["pads"].as_ints()) == 4
    at_run_time = mode.startswith("SAME") and not known and strides != (1, 1)
    assert (len(model.graph) > 1) is at_run_time


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("known", [True, False])
def test_same_pads_nothing_where_the_stride_skips_more(build, run, mode, known):
    # ONNX's definition (and its reference) pads max(total, 0) = 0. ONNX Runtime crops instead, by
    # amounts that changed between 1.17 and 1.32, so that it can't be the oracle here.
    model = build(
        f"g (float[1,1,{12 if known else 'n'}] x) => (float y) "
        f'{{ y = Conv<auto_pad="{mode}", strides=[4]>(x, k) }}',
        k=np.ones((1, 1, 1), np.float32),
    )
    model.graph[0].name = "conv"
    MakePadsExplicitPass()(model)
    x = _normal(1, 1, 12)
    np.testing.assert_array_equal(run(model, x=x)[0][0, 0], x[0, 0, ::4])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_counts_the_dilated_kernel(build, run, mode, known, stride):
    # By ONNX's definition; the extent of a dilated kernel is 1 + dilation * (kernel - 1).
    size, extent = 9, 1 + 2 * 2
    model = build(
        f'g (float[1,1,{size if known else "n"}] x) => (float y) {{ y = Conv<auto_pad="{mode}", '
        f"strides=[{stride}], dilations=[2]>(x, k) }}",
        k=_normal(1, 1, 3),
    )
    model.graph[0].name = "conv"
    MakePadsExplicitPass()(model)
    x = _normal(1, 1, size)
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
    padded = np.pad(x[0, 0], (begin, total - begin))
    k = model.graph.initializers["k"].const_value.numpy()[0, 0]
    want = [padded[i : i + extent : 2] @ k for i in range(0, len(padded) - extent + 1, stride)]
    assert len(want) == -(-size // stride)
    np.testing.assert_allclose(run(model, x=x)[0][0, 0], want, **REWRITE)


def test_model_without_auto_pad_is_left(build):
    model = build(
        "g (float[2,3,7,7] x, float[4,3,3,3] k2) => (float y, float z) { y = Conv(x, k) "
        'z = Conv<auto_pad="SAME_UPPER">(x, k2) }',  # a weight that is fed: size not known
        k=_normal(4, 3, 3, 3),
    )
    text = ir.to_onnx_text(model)
    assert not MakePadsExplicitPass()(model).modified
    assert ir.to_onnx_text(model) == text


def test_skipped_conv_is_left(build):
    model = build(
        'g (float[2,3,7,7] x) => (float y) { y = Conv<auto_pad="SAME_UPPER">(x, k) }',
        k=_normal(4, 3, 3, 3),
    )
    model.graph[0].name = "conv"
    assert not MakePadsExplicitPass(skip=lambda name: name == "conv")(model).modified


def test_kernel_shape_of_another_weight_is_an_error(build):
    model = build(
        "g (float[2,3,7,7] x) => (float y) "
        '{ y = Conv<auto_pad="VALID", kernel_shape=[5,5]>(x, k) }',
        k=_normal(4, 3, 3, 3),
    )
    model.graph[0].name = "conv"
    with pytest.raises(ModelError, match=r"node 'conv' \(Conv\): kernel_shape is \[5, 5\], but"):
        MakePadsExplicitPass()(model)
