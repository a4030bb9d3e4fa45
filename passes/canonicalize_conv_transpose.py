# SPDX-License-Identifier: Apache-2.0
"""Every transposed convolution with a constant weight as a 1 x 1 convolution and an overlap-add."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rimc_onnx.errors import ModelError
from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    add_initializer,
    derived_initializer,
    float_products,
    lazy_tensor,
    remove_dead,
)
from rimc_onnx.passes.constants import Constant, find_constant

__all__ = ["CanonicalizeConvTransposePass", "is_overlap_add", "is_transposed_product"]

_METADATA = {PASS_KEY: "CanonicalizeConvTransposePass"}


class CanonicalizeConvTransposePass(ir.passes.InPlacePass):
    """Rewrite ConvTranspose as a 1 x 1 Conv with all its weights and a digital overlap-add.

    1. ConvTranspose with a constant weight W [C, M / group, *kernel] of float32 or float16: a Conv
       with the weight [M * taps, C / group, 1, ..] and the same groups, which multiplies every
       position of x [N, C, *S] once with all taps of the kernel. Behind it a ConvTranspose with
       ``group`` M and a kernel of zeros and ones [M * taps, 1, *kernel] adds the taps up where they
       overlap. It takes over the attributes (strides, pads, dilations, output_padding,
       output_shape, auto_pad) and the bias.
    2. Such an overlap-add, ConvTranspose with another weight, in a subgraph or kept digital
       (``skip``): left alone, so the pass is idempotent.

    The Conv has the node's name, the overlap-add ``<name>/overlap``; the output keeps its name.

    Raises:
        ModelError: the weight does not fit ``group`` or ``kernel_shape``.
    """

    def __init__(self, skip: Callable[[str], bool] = lambda _: False) -> None:
        self._skip = skip

    def __str__(self) -> str:
        return "CanonicalizeConvTransposePass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        names = Names(model)
        modified = False
        for node, weight in float_products(model, "ConvTranspose", self._skip):
            if len(weight.shape) < 3 or 0 in weight.shape or is_overlap_add(node):
                continue
            _rewrite(model.graph, node, weight, names)
            modified = True
        return ir.passes.PassResult(model, modified)


def is_overlap_add(node: ir.Node) -> bool:
    """True for a ConvTranspose that only adds up taps: it multiplies by nothing but 0 and 1."""
    if node.domain != "" or node.op_type != "ConvTranspose":
        return False
    weight = find_constant(node.inputs[1])
    if weight is None or len(weight.shape) < 3 or weight.shape[1] != 1 or 0 in weight.shape:
        return False
    taps = int(np.prod(weight.shape[2:]))
    group = node.attributes.get_int("group", 1)
    if weight.shape[0] != group * taps:
        return False
    return bool((weight.numpy().reshape(group, taps, taps) == np.eye(taps)).all())


def is_transposed_product(node: ir.Node) -> bool:
    """True for the Conv that the pass made of a ConvTranspose."""
    return node.op_type == "Conv" and node.metadata_props.get(PASS_KEY) == _METADATA[PASS_KEY]


def _rewrite(graph: ir.Graph, node: ir.Node, weight: Constant, names: Names) -> None:
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None:
        raise ValueError(f"node '{node.name}' (ConvTranspose) has no input")
    channels, columns, *kernel = weight.shape
    group = node.attributes.get_int("group", 1)
    _check(node, channels, kernel, group)
    taps = int(np.prod(kernel))
    outputs = columns * group
    ones = [1] * len(kernel)

    name = names.value(f"{node.name}/weight")
    tensor = lazy_tensor(
        # [C, M / group, *kernel] to a bit line for every output channel and tap
        lambda: weight.numpy().reshape(group, channels // group, columns * taps).transpose(0, 2, 1),
        name=name,
        dtype=weight.dtype,
        shape=(outputs * taps, channels // group, *ones),
    )
    conv = ir.Node(
        "",
        "Conv",
        [x, derived_initializer(graph, name, tensor, w)],
        [
            ir.AttrInt64s("kernel_shape", ones),
            ir.AttrInt64s("strides", ones),
            ir.AttrInt64s("pads", [0] * (2 * len(kernel))),
            ir.AttrInt64s("dilations", ones),
            ir.AttrInt64("group", group),
        ],
        name=node.name,
        doc_string=node.doc_string,
        metadata_props={**node.metadata_props, **_METADATA},
    )
    product = conv.outputs[0]
    product.name = names.value(f"{node.outputs[0].name}/taps")
    product.type = ir.TensorType(weight.dtype)
    graph.insert_before(node, conv)

    name = names.value(f"{node.name}/overlap/kernel")
    routes = np.tile(np.eye(taps, dtype=weight.dtype.numpy()), (outputs, 1))
    kernel_value = add_initializer(
        graph, name, ir.tensor(routes.reshape(-1, 1, *kernel), dtype=weight.dtype, name=name)
    )
    node.replace_input_with(0, product)
    node.replace_input_with(1, kernel_value)
    node.attributes["group"] = ir.AttrInt64("group", outputs)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", kernel)
    node.name = names.node(f"{node.name}/overlap")
    node.metadata_props.update(_METADATA)
    remove_dead([w])


def _check(node: ir.Node, channels: int, kernel: list[int], group: int) -> None:
    if group < 1 or channels % group:
        raise ModelError(
            f"node '{node.name}' (ConvTranspose): {channels} input channels of the weight can't be "
            f"split in {group} groups"
        )
    stated = node.attributes.get_ints("kernel_shape", kernel)
    if list(stated) != kernel:
        raise ModelError(
            f"node '{node.name}' (ConvTranspose): kernel_shape {list(stated)} is not the weight's, "
            f"{kernel}"
        )
