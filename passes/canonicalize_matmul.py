# SPDX-License-Identifier: Apache-2.0
"""Every matrix product with a constant matrix in one form: MatMul and Add."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnxscript import ir

from rimc_onnx.passes._graph import (
    PASS_KEY,
    Names,
    add_initializer,
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
    """Rewrite Gemm with a constant B as MatMul(X, W [K, N]) and Add.

    1. transB and alpha: into the weight, computed when it is read. A B that several Gemm read the
       same way stays one initializer.
    2. transA: a Transpose in front.
    3. C and beta: Add of beta C, shaped [N] where C is a constant row or scalar. C that is no
       constant: Mul by beta where it is not 1, then Add.
    4. No C, or beta 0: no Add.
    5. Gemm whose B is no constant of float32 or float16, Gemm inside a subgraph or kept digital
       (``skip``): left alone.

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
        for node, weight in float_products(model, "Gemm", self._skip):
            if len(weight.shape) != 2:
                continue
            rewrite.gemm(node, weight)
            modified = True
        return ir.passes.PassResult(model, modified)


class _Rewrite:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
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
