# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation folded into the matrix before or behind it.

At inference BN(z) = a z + b per channel with a = scale / sqrt(var + epsilon), b = B - mean a.

    behind:    a (W x + c) + b = (a W) x + (a c + b)          a scales output channels
    in front:  W (a x + b) + c = (W a) x + (W b + c)          a scales input channels

In front of a padded convolution the second line fails at the border: the padding is 0, not b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    Shapes,
    add_initializer,
    derived_initializer,
    is_private,
    lazy_tensor,
    remove_dead,
    take_over,
)
from rimc_onnx.passes.constants import Constant, explain_variable, find_constant
from rimc_onnx.passes.node_geometry import node_geometry

__all__ = ["FoldBatchNormPass"]

Array = npt.NDArray[np.float64]


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Fold BatchNormalization nodes of the main graph where the result is the same function.

    1. BN behind Conv, ConvTranspose or Gemm: into weight and bias.
    2. BN behind MatMul, or MatMul and Add of a constant, of rank 2: into weight and Add; a MatMul
       alone gets an Add.
    3. BN in front of Gemm or MatMul of rank 2: the same.
    4. BN in front of a Conv that pads nothing: into weight and bias.
    5. Identity nodes in between are dropped if nothing else reads them.
    6. Anything else is left alone, with the reason in ``reasons``: the value in between is read
       elsewhere or is an output, statistics or weight are no constants, training mode, padding,
       channels that are not the matrix's columns or rows.

    A weight that other nodes read too is copied for the fold, never changed. The value behind the
    fold keeps the name of the last value folded.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        """BN node -> why it was not folded, of the last run."""

    def __str__(self) -> str:
        return "FoldBatchNormPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place."""
        self.reasons = {}
        fold = _Fold(graph=model.graph, shapes=Shapes(model), names=Names(model))
        modified = False
        for node in list(model.graph):
            if node.domain != "" or node.op_type != "BatchNormalization":
                continue
            reason = fold.try_fold(node)
            if reason is None:
                modified = True
            else:
                self.reasons[str(node.name)] = reason
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, kw_only=True)
class _Affine:
    """BN as z -> a z + b, one value a channel."""

    a: Array
    b: Array


class _Refusal(Exception):
    """Why one way to fold is closed."""


def _affine(node: ir.Node) -> _Affine:
    attributes = node.attributes
    if attributes.get_int("training_mode", 0):
        raise _Refusal("it is in training mode")
    used = [o for o in node.outputs if o.uses() or o.is_graph_output()]
    if any(o.index() != 0 for o in used):
        raise _Refusal("its running statistics are outputs")
    if attributes.get_int("spatial", 1) != 1:
        raise _Refusal("it has statistics per position (spatial = 0)")
    arrays = []
    for value in node.inputs[1:5]:
        constant = find_constant(value)
        if constant is None:
            name = None if value is None else value.name
            raise _Refusal(f"its parameter '{name}' is {explain_variable(value)}")
        arrays.append(constant.numpy().astype(np.float64).reshape(-1))
    scale, shift, mean, var = arrays
    with np.errstate(invalid="ignore", divide="ignore"):
        a = scale / np.sqrt(var + attributes.get_float("epsilon", 1e-5))
        b = shift - mean * a
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise _Refusal("its statistics are not finite")
    return _Affine(a=a, b=b)


@dataclass(frozen=True, kw_only=True)
class _Fold:
    graph: ir.Graph
    shapes: Shapes
    names: Names

    def try_fold(self, node: ir.Node) -> str | None:
        """Fold one BN, or say why not."""
        try:
            affine = _affine(node)
        except _Refusal as refusal:
            return str(refusal)
        try:
            self._fold_behind(node, affine)
        except _Refusal as behind:
            try:
                self._fold_in_front(node, affine)
            except _Refusal as front:
                return f"{behind}; {front}"
        return None

    # --- behind -------------------------------------------------------------------------------

    def _fold_behind(self, bn: ir.Node, affine: _Affine) -> None:
        value = _through_identities_up(bn.inputs[0])
        producer = value.producer()
        if producer is None or producer.domain != "":
            raise _Refusal("no matrix is before it")
        scale = _scale_columns(producer, affine.a)
        if producer.op_type in {"Conv", "ConvTranspose"}:
            weight, bias = _weight(producer), _optional_constant(producer, 2)
            c = np.zeros_like(affine.b) if bias is None else bias.numpy().astype(np.float64)
            self._set_weight(producer, weight, scale)
            self._set_bias(producer, affine.a * c + affine.b, weight.dtype)
            last = producer
        elif producer.op_type == "Gemm":
            weight, bias = _weight(producer), _optional_constant(producer, 2)
            beta = producer.attributes.get_float("beta", 1.0)
            c = np.zeros(1) if bias is None else beta * bias.numpy().astype(np.float64)
            self._set_weight(producer, weight, scale)
            self._set_bias(producer, affine.a * c + affine.b, weight.dtype)
            last = producer
        elif producer.op_type == "MatMul":
            self._need_rank_2(value)
            last = self._scale_matmul(producer, scale, affine.b)
        elif producer.op_type == "Add":
            self._need_rank_2(value)
            matmul, constant, index = _matmul_before(producer)
            weight = _weight(matmul)
            c = np.broadcast_to(constant.numpy().reshape(-1).astype(np.float64), affine.b.shape)
            self._set_weight(matmul, weight, _scale_columns(matmul, affine.a))
            self._set_addend(producer, index, affine.a * c + affine.b, weight.dtype)
            last = producer
        else:
            raise _Refusal(f"node '{producer.name}' ({producer.op_type}) before it is no matrix")
        take_over(bn.outputs[0], last.outputs[0])
        _drop_between(bn, value)

    def _scale_matmul(
        self, matmul: ir.Node, scale: Callable[[Array], Array], shift: Array
    ) -> ir.Node:
        weight = _weight(matmul)
        self._set_weight(matmul, weight, scale)
        return self._append_add(matmul, shift, weight.dtype)

    # --- in front -----------------------------------------------------------------------------

    def _fold_in_front(self, bn: ir.Node, affine: _Affine) -> None:
        value = _through_identities_down(bn.outputs[0])
        (use,) = value.uses()
        node = use.node
        if node.graph is not self.graph:
            raise _Refusal(f"node '{node.name}' behind it is inside a subgraph")
        if node.domain != "" or node.op_type not in {"Conv", "Gemm", "MatMul"} or use.idx != 0:
            raise _Refusal(f"node '{node.name}' ({node.op_type}) behind it is no matrix")
        weight = _weight(node)
        if node.op_type == "Conv":
            self._fold_before_conv(node, weight, affine)
        elif node.op_type == "Gemm":
            self._fold_before_gemm(node, weight, affine)
        else:
            self._fold_before_matmul(node, weight, affine)
        node.replace_input_with(0, bn.inputs[0])
        remove_dead([value])

    def _fold_before_conv(self, node: ir.Node, weight: Constant, affine: _Affine) -> None:
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        geometry = node_geometry(node, weight.shape)
        if auto_pad.startswith("SAME") or (auto_pad == "NOTSET" and geometry.is_padded):
            raise _Refusal(f"node '{node.name}' behind it pads its input with zeros")
        bias = _optional_constant(node, 2)
        channels, depth, *kernel = weight.shape
        # Channel c of group g of the weight [M, C / group, *kernel] is input g * (C / group) + c.
        group_of = np.repeat(np.arange(geometry.group), channels // geometry.group)
        inputs = group_of[:, None] * depth + np.arange(depth)
        tail = (1,) * len(kernel)
        w = weight.numpy().astype(np.float64)
        shift = (w * affine.b[inputs].reshape(channels, depth, *tail)).reshape(channels, -1).sum(1)
        c = 0.0 if bias is None else bias.numpy().astype(np.float64)
        self._set_weight(
            node, weight, lambda w: w * affine.a[inputs].reshape(channels, depth, *tail)
        )
        self._set_bias(node, shift + c, weight.dtype)

    def _fold_before_gemm(self, node: ir.Node, weight: Constant, affine: _Affine) -> None:
        if node.attributes.get_int("transA", 0):
            raise _Refusal(f"node '{node.name}' behind it transposes its input")
        bias = _optional_constant(node, 2)
        transposed = node.attributes.get_int("transB", 0)
        alpha = node.attributes.get_float("alpha", 1.0)
        w = weight.numpy().astype(np.float64)
        shift = alpha * (affine.b @ (w.T if transposed else w))
        beta = node.attributes.get_float("beta", 1.0)
        c = 0.0 if bias is None else beta * bias.numpy().astype(np.float64)
        rows = affine.a if transposed else affine.a[:, None]
        self._set_weight(node, weight, lambda w: w * rows)
        self._set_bias(node, shift + c, weight.dtype)

    def _fold_before_matmul(self, node: ir.Node, weight: Constant, affine: _Affine) -> None:
        if node.inputs[0] is None:
            raise _Refusal(f"node '{node.name}' behind it has no input")
        self._need_rank_2(node.inputs[0])
        shift = affine.b @ weight.numpy().astype(np.float64)
        self._set_weight(node, weight, lambda w: w * affine.a[:, None])
        add = _bias_add_after(node, len(shift))
        if add is None:
            self._append_add(node, shift, weight.dtype)
        else:
            bias, constant, index = add
            c = constant.numpy().reshape(-1).astype(np.float64)
            self._set_addend(bias, index, shift + c, weight.dtype)

    # --- edits --------------------------------------------------------------------------------

    def _need_rank_2(self, value: ir.Value) -> None:
        rank = self.shapes.rank(value)
        if rank != 2:
            got = "is not known" if rank is None else f"is {rank}"
            raise _Refusal(
                f"the rank of '{value.name}' {got}: channels are columns of a MatMul at rank 2 only"
            )

    def _set_weight(
        self, node: ir.Node, weight: Constant, change: Callable[[Array], Array]
    ) -> None:
        value = node.inputs[1]
        if value is None:
            raise ValueError(f"node '{node.name}' has no weight")
        in_place = value.is_initializer() and is_private(value)
        name = str(value.name) if in_place else self.names.value(f"{node.name}/weight")
        numpy_dtype = weight.dtype.numpy()
        tensor = lazy_tensor(
            lambda: change(weight.numpy().astype(np.float64)).astype(numpy_dtype),
            name=name,
            dtype=weight.dtype,
            shape=weight.shape,
        )
        if in_place:
            value.const_value = tensor
            return
        node.replace_input_with(1, derived_initializer(self.graph, name, tensor, value))
        remove_dead([value])

    def _vector(self, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
        name = self.names.value(name)
        return add_initializer(
            self.graph, name, ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        )

    def _set_bias(self, node: ir.Node, bias: Array, dtype: ir.DataType) -> None:
        """Input 2 of a Conv or Gemm; beta of a Gemm is 1 from now on."""
        node.attributes.pop("beta", None)
        old = node.inputs[2] if len(node.inputs) > 2 else None
        node.resize_inputs(3)
        node.replace_input_with(2, self._vector(f"{node.name}/bias", bias, dtype))
        remove_dead([old])

    def _set_addend(self, node: ir.Node, index: int, bias: Array, dtype: ir.DataType) -> None:
        old = node.inputs[index]
        node.replace_input_with(index, self._vector(f"{node.name}/bias", bias, dtype))
        remove_dead([old])

    def _append_add(self, matmul: ir.Node, shift: Array, dtype: ir.DataType) -> ir.Node:
        """An Add behind ``matmul`` whose output has the name that the MatMul's had."""
        product = matmul.outputs[0]
        out = ir.Value()
        name = product.name
        take_over(product, out)
        product.name = self.names.value(f"{name}/matmul")
        product.type, product.shape = out.type, out.shape
        add = ir.Node(
            "",
            "Add",
            [product, self._vector(f"{matmul.name}/bias", shift, dtype)],
            outputs=[out],
            name=self.names.node(f"{matmul.name}/bias"),
            metadata_props={PASS_KEY: "FoldBatchNormPass"},
        )
        self.graph.insert_after(matmul, add)
        return add


def _weight(node: ir.Node) -> Constant:
    value = node.inputs[1]
    constant = find_constant(value)
    if constant is None:
        raise _Refusal(f"the weight of node '{node.name}' is {explain_variable(value)}")
    if node.op_type in {"Gemm", "MatMul"} and len(constant.shape) != 2:
        raise _Refusal(f"the weight of node '{node.name}' has {len(constant.shape)} axes")
    return constant


def _optional_constant(node: ir.Node, index: int) -> Constant | None:
    if len(node.inputs) <= index or node.inputs[index] is None:
        return None
    constant = find_constant(node.inputs[index])
    if constant is None:
        raise _Refusal(f"the bias of node '{node.name}' is {explain_variable(node.inputs[index])}")
    return constant


def _scale_columns(node: ir.Node, a: Array) -> Callable[[Array], Array]:
    """Multiply the weight of ``node`` by one factor an output channel."""
    if node.op_type == "Conv":
        return lambda w: w * a.reshape(-1, *[1] * (w.ndim - 1))
    if node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1)

        def scale(w: Array) -> Array:
            # [C, M / group, *kernel]: the C / group rows of group g make its M / group outputs
            per_row = np.repeat(a.reshape(group, -1), w.shape[0] // group, axis=0)
            return w * per_row.reshape(*per_row.shape, *[1] * (w.ndim - 2))

        return scale
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return lambda w: w * a[:, None]
    return lambda w: w * a


def _matmul_before(add: ir.Node) -> tuple[ir.Node, Constant, int]:
    """The MatMul whose product ``add`` shifts by a constant per column, and which input that is."""
    for index in (0, 1):
        product, addend = add.inputs[1 - index], add.inputs[index]
        constant = find_constant(addend)
        matmul = None if product is None else product.producer()
        if constant is None or product is None or matmul is None or matmul.op_type != "MatMul":
            continue
        if matmul.domain == "" and is_private(product) and matmul.graph is add.graph:
            columns = _weight(matmul).shape[-1]
            if _is_per_column(constant, columns):
                return matmul, constant, index
    raise _Refusal(f"node '{add.name}' (Add) before it is no bias of a MatMul")


def _bias_add_after(matmul: ir.Node, columns: int) -> tuple[ir.Node, Constant, int] | None:
    product = matmul.outputs[0]
    if not is_private(product):
        return None
    (use,) = product.uses()
    if use.node.op_type != "Add" or use.node.domain != "" or use.node.graph is not matmul.graph:
        return None
    constant = find_constant(use.node.inputs[1 - use.idx])
    if constant is None or not _is_per_column(constant, columns):
        return None
    return use.node, constant, 1 - use.idx


def _is_per_column(constant: Constant, columns: int) -> bool:
    size = int(np.prod(constant.shape))
    is_row = size == columns and constant.shape[-1:] == (columns,)
    return len(constant.shape) <= 2 and (is_row or size == 1)


def _through_identities_up(value: ir.Value | None) -> ir.Value:
    while True:
        if value is None:
            raise _Refusal("it has no input")
        if value.is_graph_output():
            raise _Refusal(f"its input '{value.name}' is an output of the model")
        if len(value.uses()) != 1:
            raise _Refusal(f"its input '{value.name}' is read by {len(value.uses())} nodes")
        producer = value.producer()
        if producer is None or producer.op_type != "Identity" or producer.domain != "":
            return value
        value = producer.inputs[0]


def _through_identities_down(value: ir.Value) -> ir.Value:
    while True:
        if value.is_graph_output():
            raise _Refusal(f"its output '{value.name}' is an output of the model")
        if len(value.uses()) != 1:
            raise _Refusal(f"its output '{value.name}' is read by {len(value.uses())} nodes")
        (use,) = value.uses()
        if use.node.op_type != "Identity" or use.node.domain != "":
            return value
        if use.node.outputs[0].is_graph_output():
            return value
        value = use.node.outputs[0]


def _drop_between(bn: ir.Node, value: ir.Value) -> None:
    """Remove ``bn`` and the Identity nodes from ``value`` to it."""
    graph = bn.graph
    if graph is None:
        raise ValueError(f"node '{bn.name}' belongs to no graph")
    inputs = list(bn.inputs)
    graph.remove(bn, safe=True)
    remove_dead(i for i in inputs if i is not value)
