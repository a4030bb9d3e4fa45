# SPDX-License-Identifier: Apache-2.0
"""Writes a device's law, random nodes and what this machine's library makes of them, for host.cc.

``python host_cases.py OUT COUNT``, with tests/helpers and tests/runtime on the path.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import random_cases
import test_random_cases

from rimc_onnx import runtime
from rimc_onnx.device import cell_law, get_preset, table_file
from rimc_onnx.ops import schema

RUNS = 4
"""Of one session, all at once."""


def _number(value: int) -> bytes:
    return struct.pack("<q", value)


def _bytes(value: bytes) -> bytes:
    return _number(len(value)) + value


def _attribute(name: str, value: Any) -> bytes:
    proto = onnx.helper.make_attribute(name, value)
    if proto.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
        data = np.atleast_1d(np.asarray(value, "<f4")).tobytes()
    elif proto.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
        data = np.atleast_1d(np.asarray(value, "<i8")).tobytes()
    else:
        data = b""
    return _bytes(name.encode()) + _number(proto.type) + _bytes(data)


def _shape(value: np.ndarray) -> bytes:
    return _number(value.ndim) + b"".join(_number(size) for size in value.shape)


def node_bytes(node: Any, outputs: list[np.ndarray], *, constant_adapter: bool) -> bytes:
    """One node as host.cc reads it."""
    data = _bytes(node.op.encode()) + _bytes(str(node.number).encode())
    data += _number(len(node.attributes))
    data += b"".join(_attribute(name, value) for name, value in node.attributes.items())
    data += _number(len(schema.OPS[node.op].inputs))
    for name in schema.OPS[node.op].inputs:
        value = np.ascontiguousarray({**node.feeds, **node.constants}[name])
        data += _number(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        data += _number(int(name in node.constants and constant_adapter))
        data += _shape(value) + _bytes(value.tobytes())
    data += _number(len(outputs)) + _shape(outputs[0])
    return data + b"".join(_bytes(np.ascontiguousarray(y).tobytes()) for y in outputs)


def main(out: str, count: str) -> None:
    """Write the law of a measured preset, then the first ``count`` random nodes."""
    device = get_preset("wan2022-aihwkit")
    law = cell_law(device, device.resolve_time(None))
    with Path(out).open("wb") as file:
        file.write(_bytes(table_file(law.values())))
        for number in range(int(count)):
            node = random_cases.random_node(number)
            session = runtime.make_session(test_random_cases.model_of([node]), num_threads=1)
            feeds = test_random_cases.feeds_of([node])
            outputs = [session.run(None, feeds)[0] for _ in range(RUNS)]
            constant = not test_random_cases.is_runtime_adapter(node)
            file.write(node_bytes(node, outputs, constant_adapter=constant))


if __name__ == "__main__":
    main(*sys.argv[1:])
