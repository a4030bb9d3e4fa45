# SPDX-License-Identifier: Apache-2.0
"""Training for the device. torch is imported when it is needed, not with this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from rimc_onnx.errors import RimcError
from rimc_onnx.io.model_files import load_model
from rimc_onnx.passes import structure_pipeline
from rimc_onnx.training.write_back import write_back

if TYPE_CHECKING:
    from rimc_onnx.training.graph_module import GraphModule

__all__ = ["load", "need_torch", "write_back"]


def load(
    model: str | Path | onnx.ModelProto, *, outputs: Sequence[str] | None = None
) -> GraphModule:
    """An ONNX model as a torch module that can be trained.

    Its parameters have the names of the file's initializers, so that :func:`write_back` can put
    them into the file again.

    Args:
        model: an .onnx file of opset 7 or later, or the model itself.
        outputs: of the graph, all where ``None``; nodes that none of them needs are left out.

    Raises:
        ModelError: the model can't be read, or an operator on the way of gradients is not known.
        RimcError: torch is missing.
    """
    need_torch("training.load")
    from rimc_onnx.training.graph_module import GraphModule

    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else load_model(Path(model))
    structure_pipeline()(graph)
    return GraphModule(graph, outputs)


def need_torch(what: str) -> None:
    """Check that torch can be imported.

    Raises:
        RimcError: it can't.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise RimcError(f'{what} needs torch. Run pip install "rimc-onnx[torch]".') from error
