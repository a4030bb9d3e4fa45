# SPDX-License-Identifier: Apache-2.0
"""A model's bytes with large initializers, which are copied once.

Fields of a serialised message may come in pieces: what follows a message is merged into it, and
what is repeated appended (protobuf's encoding, "last one wins"). So initializers are written behind
the bytes of a model that has none of them, where messages of their own would be copied five times.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from rimc_onnx.execution.wire_format import header

__all__ = ["bytes_with_initializers"]

_SMALL_BYTES = 1 << 16
"""Initializers up to here are messages."""


def bytes_with_initializers(
    model: onnx.ModelProto, initializers: Sequence[tuple[str, ir.TensorProtocol]]
) -> bytes:
    """``model`` serialised as if its graph had ``initializers``, too, after its own.

    Those that lie in files of their own are read into the bytes.
    """
    parts: list[bytes | memoryview] = []
    for name, tensor in initializers:
        content = _content(tensor)
        if content is None:
            model.graph.initializer.append(_message(name, tensor))
            continue
        head = onnx.TensorProto(
            name=name, dims=tensor.shape.numpy(), data_type=int(tensor.dtype)
        ).SerializeToString()
        head += header(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, content.nbytes)
        size = len(head) + content.nbytes
        in_graph = header(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, size)
        graph = header(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(in_graph) + size)
        parts += [graph, in_graph, head, content]
    return b"".join([model.SerializeToString(), *parts])


def _content(tensor: ir.TensorProtocol) -> memoryview | None:
    """The bytes of ``raw_data``; ``None`` of small tensors, and where memory has others."""
    if tensor.nbytes <= _SMALL_BYTES or sys.byteorder != "little":
        return None
    array = np.ascontiguousarray(tensor.numpy())
    # Values of less than a byte are packed, text has no bytes of its own.
    is_plain = array.dtype.isnative and not array.dtype.hasobject
    if array.nbytes != tensor.nbytes or not is_plain:
        return None
    return array.reshape(-1).view(np.uint8).data


def _message(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto
