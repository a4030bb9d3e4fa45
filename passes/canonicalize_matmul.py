# SPDX-License-Identifier: Apache-2.0
"""Every matrix product with a constant matrix in one form: rows times a matrix, and Add."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    Shapes,
    add_initializer,
    constant_add,
    derived_initializer,
    float_products,
    lazy_tensor,
    remove_dead,
    take_over,
)
from rimc_onnx.passes.constants import Constant, find_constant

__all__ = ["CanonicalizeMatMulPass"]

_METADATA = {PASS_KEY: "CanonicalizeMatMulPass"}


class CanonicalizeMatMulPass(ir.passes.InPlacePass):
    """Rewrite Gemm with a constant B, and MatMul of odd ranks, as MatMul(X, W [K, N]) and Add.

    1. transB and alpha: into the weight, computed when it is read. A B that several Gemm read the
       same way stays one initializer.
    2. transA: a Transpose in front.
    3. C and beta: Add of beta C, shaped [N] where C is a constant row or scalar. C that is no
       constant: Mul by beta where it is not 1, then Add.
    4. No C, or beta 0: no Add.
    5. MatMul of a vector [K]: Unsqueeze in front and Squeeze behind, behind the Add of a constant
       row where that alone reads the product.
    6. MatMul with a W of [1, ..., 1, K, N]: those axes go, and X gets as many as the product needs.
    7. A product whose matrix is no constant of float32 or float16, one inside a subgraph or kept
       digital (``skip``), a left-hand side of unknown rank, or a C of more than two axes:
       left alone.

    The MatMul has the Gemm's name, the Add ``<name>/bias``; the output keeps its name.
    """

    def __init__(self, skip: Callable[[str], bool] = lambda _: False) -> None:
        self._skip = skip

    def __str__(self) -> str:
        return "CanonicalizeMatMulPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        rewrite = _Rewrite(model)
        modified = False
        for node, weight in float_products(model, "MatMul", self._skip):
            modified |= rewrite.matmul(node, weight)
        for node, weight in float_products(model, "Gemm", self._skip):
            if len(weight.shape) != 2 or rewrite.is_odd_addend(node):
                continue
            rewrite.gemm(node, weight)
            modified = True
        return ir.passes.PassResult(model, modified)


class _Rewrite:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._shapes = Shapes(model)
        self._weights: dict[tuple[ir.Value, bool, float], ir.Value] = {}

    def gemm(self, node: ir.Node, weight: Constant) -> None:
        """Rewrite one Gemm."""
        inputs = list(node.inputs)
        x, b = inputs[0], inputs[1]
        if x is None or b is None:
            raise ValueError(f"node '{node.name}' (Gemm) has no input")
        transposed = bool(node.attributes.get_int("transB", 0))
        alpha = node.attributes.get_float("alpha", 1.0)
        w = self._weight(str(node.name), b, weight, transposed, alpha)
        if node.attributes.get_int("transA", 0):
            x = self._new(node, "Transpose", [x], "transpose_a", ir.AttrInt64s("perm", [1, 0]))
        columns = weight.shape[0] if transposed else weight.shape[1]
        addend = self._addend(node, columns, weight.dtype)

        out = ir.Value()
        y = node.outputs[0]
        take_over(y, out)
        product = out
        if addend is not None:
            product = ir.Value(
                name=self._names.value(f"{out.name}/matmul"), type=out.type, shape=out.shape
            )
        matmul = ir.Node(
            "",
            "MatMul",
            [x, w],
            outputs=[product],
            name=node.name,
            doc_string=node.doc_string,
            metadata_props={**node.metadata_props, **_METADATA},
        )
        self._graph.insert_before(node, matmul)
        if addend is not None:
            add = ir.Node(
                "",
                "Add",
                [product, addend],
                outputs=[out],
                name=self._names.node(f"{node.name}/bias"),
                metadata_props=dict(_METADATA),
            )
            self._graph.insert_before(node, add)
        self._graph.remove(node, safe=True)
        remove_dead(inputs[1:])

    def is_odd_addend(self, node: ir.Node) -> bool:
        """Of a C with more axes than the output: ONNX Runtime refuses it, an Add would not."""
        c = node.inputs[2] if len(node.inputs) > 2 else None
        rank = None if c is None else self._shapes.rank(c)
        return rank is not None and rank > 2

    def matmul(self, node: ir.Node, weight: Constant) -> bool:
        """Bring one MatMul to rows times a matrix; False where it is, or can't be."""
        x, b = node.inputs[0], node.inputs[1]
        rank, lead = len(weight.shape), weight.shape[:-2]
        if x is None or b is None or rank < 2 or any(d != 1 for d in lead):
            return False
        x_rank = self._shapes.rank(x)
        if x_rank is None or x_rank == 0 or (rank == 2 and x_rank > 1):
            return False
        # The axes that the product takes from W, and the row that a vector becomes.
        missing = max(rank, 2) - x_rank
        is_vector = x_rank == 1
        name = str(node.name)
        if missing > 0:
            axes = self._initializer(
                f"{name}/axes", np.arange(missing, dtype=np.int64), ir.DataType.INT64
            )
            x = self._new(node, "Unsqueeze", [x, axes], "unsqueeze")
            node.replace_input_with(0, x)
        if rank > 2:
            fresh = self._names.value(f"{name}/weight")
            shape = weight.shape[-2:]
            tensor = lazy_tensor(
                lambda: weight.numpy().reshape(shape), name=fresh, dtype=weight.dtype, shape=shape
            )
            node.replace_input_with(1, derived_initializer(self._graph, fresh, tensor, b))
            remove_dead([b])
        if is_vector:
            self._squeeze(node, max(rank, 2) - 2)
        return True

    def _squeeze(self, matmul: ir.Node, axis: int) -> None:
        """Take the row's axis away again, behind the Add of a constant row where there is one."""
        last = matmul
        found = constant_add(matmul.outputs[0])
        if found is not None and len(found[1].shape) <= 1:
            last = found[0]
            _forget_shape(matmul.outputs[0])
        name = str(matmul.name)
        axes = self._initializer(f"{name}/axis", np.array([axis]), ir.DataType.INT64)
        y = last.outputs[0]
        squeezed = ir.Value(type=y.type, shape=y.shape)
        take_over(y, squeezed)
        _forget_shape(y)
        y.name = self._names.value(f"{name}/row")
        node = ir.Node(
            "",
            "Squeeze",
            [y, axes],
            outputs=[squeezed],
            name=self._names.node(f"{name}/squeeze"),
            metadata_props=dict(_METADATA),
        )
        self._graph.insert_after(last, node)

    def _weight(
        self, name: str, b: ir.Value, weight: Constant, transposed: bool, alpha: float
    ) -> ir.Value:
        if not transposed and alpha == 1.0:
            return b
        key = (b, transposed, alpha)
        if key not in self._weights:
            rows, columns = weight.shape[::-1] if transposed else weight.shape
            scale = weight.dtype.numpy().type(alpha)
            fresh = self._names.value(f"{name}/weight")
            tensor = lazy_tensor(
                lambda: (weight.numpy().T if transposed else weight.numpy()) * scale,
                name=fresh,
                dtype=weight.dtype,
                shape=(rows, columns),
            )
            self._weights[key] = derived_initializer(self._graph, fresh, tensor, b)
        return self._weights[key]

    def _addend(self, node: ir.Node, columns: int, dtype: ir.DataType) -> ir.Value | None:
        """Beta C as one value, or None if nothing is added."""
        c = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if c is None or beta == 0.0:
            return None
        constant = find_constant(c)
        scale = dtype.numpy().type(beta)
        if constant is None:
            if beta == 1.0:
                return c
            factor = self._initializer(f"{node.name}/beta", np.full(1, scale), dtype)
            return self._new(node, "Mul", [c, factor], "scale_c")
        if constant.shape[-1:] == (columns,) and int(np.prod(constant.shape)) == columns:
            if beta == 1.0 and constant.shape == (columns,):
                return c
            array = constant.numpy().reshape(columns)
        elif int(np.prod(constant.shape)) == 1:
            array = np.broadcast_to(constant.numpy().reshape(1), (columns,))
        elif beta == 1.0:
            return c
        else:
            array = constant.numpy()
        return self._initializer(f"{node.name}/bias", array * scale, dtype)

    def _initializer(
        self, name: str, array: np.typing.NDArray[np.generic], dtype: ir.DataType
    ) -> ir.Value:
        name = self._names.value(name)
        tensor = ir.tensor(np.ascontiguousarray(array), dtype=dtype, name=name)
        return add_initializer(self._graph, name, tensor)

    def _new(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value], name: str, *attributes: ir.Attr
    ) -> ir.Value:
        new = ir.Node(
            "",
            op_type,
            inputs,
            attributes,
            name=self._names.node(f"{node.name}/{name}"),
            metadata_props=dict(_METADATA),
        )
        new.outputs[0].name = self._names.value(f"{node.name}/{name}")
        new.outputs[0].type = inputs[0].type
        self._graph.insert_before(node, new)
        return new.outputs[0]


def _forget_shape(value: ir.Value) -> None:
    """What was known of ``value`` before it got another axis."""
    value.shape = None
