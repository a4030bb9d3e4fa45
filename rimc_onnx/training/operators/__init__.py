# SPDX-License-Identifier: Apache-2.0
"""The operator table: operators of ONNX's own domain as functions of torch tensors."""

from __future__ import annotations

from rimc_onnx.training.node_spec import Table
from rimc_onnx.training.operators import (
    elementwise,
    images,
    normalisation,
    products,
    recurrent,
    reductions,
    shapes,
)

__all__ = ["OPERATORS"]

OPERATORS: Table = {
    **elementwise.TABLE,
    **images.TABLE,
    **normalisation.TABLE,
    **products.TABLE,
    **recurrent.TABLE,
    **reductions.TABLE,
    **shapes.TABLE,
}
"""By op type; the semantics of opset 13 and later."""
