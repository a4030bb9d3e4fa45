# SPDX-License-Identifier: Apache-2.0
"""Malformed nodes of every operator, each of them wrong in one way.

``python malformed.py NUM_PARTS PART`` loads and runs a part of them all and prints a JSON object
per line: what it was, and what ONNX Runtime said. With ``chain`` behind it, each is a part of a
chain that the execution provider runs as one node, and what it gives is compared with the nodes one
by one. See test_malformed.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from cases import ANNOTATIONS, NO_EXTRAS
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import runtime
from rimc_onnx.bodies import operators
from rimc_onnx.crossbar import attribute_types
from rimc_onnx.ops import schema

Array = npt.NDArray[Any]

UNREAD = ("node", "device", "device_config", "seed", "time_s", "wire_ohm", "g_max_us")
"""Attributes that say where cells come from; no kernel reads them."""

_PERIPHERY: dict[str, Any] = {
    **ANNOTATIONS,
    **NO_EXTRAS,
    "tile_rows": 18,
    "num_tiles": 2,
    "dac_bits": 8,
    "dac_range": 2.0,
    "dac_signed": 1,
    "adc_bits": 8,
    "adc_range": [4.0],
    "read_noise": 0.01,
    "read_key": 7,
}
_CONV = {"strides": [1, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 2}


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """One node, and how it is put into a model."""

    label: str
    op: str
    inputs: dict[str, Array]
    attributes: dict[str, Any]
    fed: tuple[str, ...] = ("x", "h")
    """Inputs of the graph; the others are initializers."""
    names: tuple[str, ...] | None = None
    """What the node names as inputs, if not all of them."""
    outputs: tuple[str, ...] = ("y",)
    refused: bool | None = True
    """False: fine; None: either, as long as nothing breaks."""

    def node_proto(self, name: str, outputs: list[str]) -> onnx.NodeProto:
        node = helper.make_node(
            self.op,
            list(self.names or schema.OPS[self.op].inputs),
            outputs,
            name=name,
            domain=schema.DOMAIN,
            **{k: v for k, v in self.attributes.items() if v != []},
        )
        for key, value in self.attributes.items():
            if value == []:  # make_node does not know of which type
                kind = attribute_types(self.op)[key].upper()
                type_ = onnx.AttributeProto.AttributeType.Value(kind)
                node.attribute.append(onnx.AttributeProto(name=key, type=type_))
        return node

    def model(self, *, chain: bool = False) -> bytes:
        """``chain``: a crossbar makes h, and a Relu takes y."""
        nodes = [self.node_proto("the_node", list(self.outputs))]
        infos, initializers = [], []
        if chain:
            nodes.append(helper.make_node("Relu", ["y"], ["z"], name="the_relu"))
        if chain and "h" in self.inputs:
            rram = sound(_CROSSBAR_OF[self.op])
            nodes.insert(0, rram.node_proto("the_crossbar", ["h"]))
            initializers.append(numpy_helper.from_array(rram.inputs["w"], "w"))
        for name, value in self.inputs.items():
            if chain and name == "h":
                continue
            if name in self.fed:
                dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
                shape = [f"{name}{axis}" for axis in range(value.ndim)]
                infos.append(helper.make_tensor_value_info(name, dtype, shape))
            else:
                initializers.append(numpy_helper.from_array(value, name))
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in (["z"] if chain else self.outputs)
            if name
        ]
        graph = helper.make_graph(nodes, "g", infos, outputs, initializers)
        imports = [
            helper.make_opsetid("", operators.FUNCTION_OPSET_VERSION),
            helper.make_opsetid(schema.DOMAIN, schema.VERSION),
        ]
        # With the function bodies that converted files carry, which must not run instead.
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=8, functions=_function_protos()
        )
        return bytes(model.SerializeToString())

    def feeds(self) -> dict[str, Array]:
        return {name: value for name, value in self.inputs.items() if name in self.fed}


_CROSSBAR_OF = {schema.DORA_MATMUL: schema.RRAM_MATMUL, schema.DORA_CONV: schema.RRAM_CONV}


@cache
def _function_protos() -> list[onnx.FunctionProto]:
    return operators.function_protos()


def sound(op: str) -> Malformed:
    """A node without a fault."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Array:
        return rng.uniform(0.1, 1, shape).astype(np.float32)

    def codes(*shape: int) -> Array:
        return rng.integers(-127, 128, shape).astype(np.int8)

    if op in (schema.RRAM_MATMUL, schema.DORA_MATMUL):
        x, h, w, a, b = (3, 36), (3, 5), (36, 5), (36, 2), (2, 5)
        columns, ranks, attributes = 5, 2, {}
    else:
        x, h, w, a, b = (2, 8, 6, 7), (2, 6, 6, 4), (6, 4, 3, 3), (4, 4, 3, 3), (6, 2, 1, 1)
        columns, ranks, attributes = 6, 4, dict(_CONV)
    if op == schema.RRAM_MATMUL:
        return Malformed(
            label="sound",
            op=op,
            inputs={"x": floats(*x), "w": floats(*w)},
            attributes=dict(_PERIPHERY),
            refused=False,
        )
    if op == schema.RRAM_CONV:
        return Malformed(
            label="sound",
            op=op,
            inputs={"x": floats(*x), "w": floats(*w)},
            attributes={**_PERIPHERY, **attributes, "tile_group": 4},
            refused=False,
        )
    inputs = {
        "x": floats(*x),
        "h": floats(*h),
        "lora_a": codes(*a),
        "lora_b": codes(*b),
        "magnitude": codes(columns),
        "x_scale": floats(1),
        "rank_step": floats(ranks),
        "lora_b_scale": floats(columns),
        "magnitude_scale": floats(1),
        "bias": floats(columns),
        "sparse_values": codes(3),
        "sparse_index": np.array([1, 5, 17], np.int64),
        "sparse_scale": floats(columns),
    }
    return Malformed(label="sound", op=op, inputs=inputs, attributes=attributes, refused=False)


_CURVES = ("iv_square", "iv_cube")


def curved(op: str) -> Malformed:
    """A crossbar whose I-V curve follows the weight, without a fault."""
    node = sound(op)
    curve = [0.1, -0.2, 0.05, 0.0, 0.1, 0.0, -0.1, 0.2]
    attributes = {**node.attributes, **dict.fromkeys(_CURVES, curve), "read_noise": 0.0}
    return Malformed(**{**node.__dict__, "label": "sound, curved", "attributes": attributes})


def noisy(op: str) -> Malformed:
    """A crossbar whose read noise follows the weight, without a fault."""
    node = sound(op)
    knots = [i / 64 for i in range(schema.NOISE_KNOTS)]
    attributes = {**node.attributes, "read_noise_curve": knots}
    return Malformed(**{**node.__dict__, "label": "sound, noisy", "attributes": attributes})


def _but(node: Malformed, label: str, **changes: Any) -> Malformed:
    return Malformed(**{**node.__dict__, "label": label, "refused": True, **changes})


_OTHER_TYPE: dict[str, Any] = {"int": 1.5, "float": 3, "ints": 1, "floats": "x", "string": 1}
_INTS = (-1, 0, 1, 2, 25, 63, 64, 2**31, 2**32 + 8, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e-45, 1e-38, 3e38)


def _bad_attributes(node: Malformed) -> Iterator[Malformed]:
    for name, kind in attribute_types(node.op).items():
        unread = None if name in UNREAD else True
        kept = {k: v for k, v in node.attributes.items() if k != name}
        yield _but(node, f"{name} missing", attributes=kept, refused=unread)
        other = {**kept, name: _OTHER_TYPE[kind]}
        yield _but(node, f"{name} mistyped", attributes=other, refused=unread)
        values: list[Any] = []
        if kind == "int":
            values += _INTS
        elif kind == "float":
            values += _FLOATS
        elif kind == "floats":
            values += [[v] for v in _FLOATS] + [[1.0] * 7, [1.0] * 999]
        elif kind == "ints":
            count = len(node.attributes[name])
            values += [[v] * count for v in _INTS] + [[1] * (count + 1), [1] * 999]
            count = len(node.attributes[name])
            values += [[0.5] * (count - 1) + [v] for v in _FLOATS if count > 1]
        for value in values:
            text = str(value) if len(str(value)) < 60 else f"{len(value)} values"
            attributes = {**node.attributes, name: value}
            is_curve = name in _CURVES and not np.isfinite(value).all()
            refused = True if is_curve else None
            yield _but(node, f"{name} = {text}", attributes=attributes, refused=refused)
        if kind in ("ints", "floats"):
            yield _but(node, f"{name} empty", attributes={**kept, name: []})


def _wrong_values(value: Array) -> Iterator[tuple[str, Array]]:
    """Of another rank or shape."""
    yield "one more axis", value[None]
    yield "doubled", np.concatenate([value, value], axis=-1)
    yield "empty", value[..., :0]
    if value.ndim > 1:
        yield "flat", value.reshape(-1)
        yield "first axis doubled", np.concatenate([value, value])
    yield "scalar", np.array(value.reshape(-1)[0])
    yield "13 axes", value.reshape(*[1] * 13, -1)


def _bad_inputs(node: Malformed) -> Iterator[Malformed]:
    names = schema.OPS[node.op].inputs
    for i, name in enumerate(names):
        value = node.inputs[name]
        is_rram = node.op in (schema.RRAM_MATMUL, schema.RRAM_CONV)
        everywhere = [node.fed] if name in node.fed or is_rram else [node.fed, names]
        for fed in everywhere:
            where = "initializer" if name not in fed else "input"
            for what, wrong in _wrong_values(value):
                # Of a batch, of columns without a size of their own, or of a scale for all of them.
                loose = is_rram or (what == "empty" and name in ("x", "h"))
                refused = None if loose else True
                inputs = {**node.inputs, name: wrong}
                label = f"{where} {name} {what}"
                yield _but(node, label, inputs=inputs, fed=fed, refused=refused)
            other = value.astype(np.float64 if value.dtype == np.float32 else np.float32)
            inputs = {**node.inputs, name: other}
            yield _but(node, f"{where} {name} of another type", inputs=inputs, fed=fed)
            for bad in (np.nan, np.inf, -1.0, 0.0):
                if value.dtype == np.float32:
                    filled = {**node.inputs, name: np.full_like(value, bad)}
                    label = f"{where} {name} filled with {bad}"
                    yield _but(node, label, inputs=filled, fed=fed, refused=None)
        gone = (*names[:i], "", *names[i + 1 :])
        yield _but(node, f"input {name} left out", names=gone)
        yield _but(node, f"inputs from {name} on cut off", names=names[:i] or ("",))
    yield _but(node, "one input too many", names=(*names, "x"))
    if "w" in names:
        yield _but(node, "w a run-time input", fed=("x", "w"))


def _bad_cells(node: Malformed) -> Iterator[Malformed]:
    if "sparse_index" not in node.inputs:
        return
    names = schema.OPS[node.op].inputs
    for fed in (node.fed, names):
        for index in ([1, 1, 2], [-1, 0, 1], [0, 1, 2**62], [0, 1, -(2**63)], [0, 1, 10**6]):
            inputs = {**node.inputs, "sparse_index": np.array(index, np.int64)}
            yield _but(node, f"sparse_index {index}", inputs=inputs, fed=fed)
        rank = schema.MAX_RANK + 1
        if node.op == schema.DORA_MATMUL:
            shapes = {"lora_a": (36, rank), "lora_b": (rank, 5), "rank_step": (rank,)}
        else:
            shapes = {"lora_a": (2 * rank, 4, 3, 3), "lora_b": (6, rank, 1, 1)}
            shapes["rank_step"] = (2 * rank,)
        large = {name: np.ones(s, node.inputs[name].dtype) for name, s in shapes.items()}
        yield _but(node, "rank over the most", inputs={**node.inputs, **large}, fed=fed)
        for sizes in ((2**40, 0), (0, 2**40), (0, 0)):
            tail = node.inputs["lora_a"].shape[2:]
            empty = {**node.inputs, "lora_a": np.zeros((*sizes, *tail), np.int8)}
            yield _but(node, f"lora_a of sizes {sizes}", inputs=empty, fed=fed)


def _bad_volumes(node: Malformed) -> Iterator[Malformed]:
    """Outputs of more values than an int64 counts, and of more than any machine has."""
    # The operator new of AddressSanitizer ends the process where that of the system throws.
    if node.op != schema.RRAM_CONV or "asan" in os.environ.get("LD_PRELOAD", ""):
        return
    for pad, axes in ((2**20, 3), (2**20, 2), (2**15, 3)):
        inputs = {
            "x": np.ones((1, 1, *[1] * axes), np.float32),
            "w": np.ones((1, 1, *[1] * axes), np.float32),
        }
        conv = {"strides": [1] * axes, "pads": [pad] * (2 * axes), "dilations": [1] * axes}
        tiles = {"group": 1, "tile_rows": 0, "num_tiles": 1, "tile_group": 1}
        attributes = {**node.attributes, **conv, **tiles}
        yield _but(node, f"{axes} axes padded by {pad}", inputs=inputs, attributes=attributes)


def _bad_outputs(node: Malformed) -> Iterator[Malformed]:
    yield _but(node, "two outputs", outputs=("y", "z"))
    yield _but(node, "no output", outputs=())


def all_malformed() -> list[Malformed]:
    """Every node, the sound ones first."""
    crossbars = tuple(_CROSSBAR_OF.values())
    nodes = [*map(sound, schema.OPS), *map(curved, crossbars), *map(noisy, crossbars)]
    for op in crossbars:
        nodes += _bad_attributes(curved(op))
        nodes += [
            Malformed(**{**bad.__dict__, "label": f"noisy, {bad.label}"})
            for bad in _bad_attributes(noisy(op))
        ]
    for op in schema.OPS:
        for make in (_bad_attributes, _bad_inputs, _bad_cells, _bad_volumes, _bad_outputs):
            nodes += make(sound(op))
    return nodes


def outcome(node: Malformed) -> str | None:
    """What ONNX Runtime says, None if the node runs."""
    try:
        session = runtime.make_session(node.model(), num_threads=2)
        for _ in range(2):
            session.run(None, node.feeds())
    except Exception as error:  # its kind is tested elsewhere
        return f"{type(error).__name__}: {error}"
    return None


def chain_outcome(node: Malformed) -> str | None:
    """What ONNX Runtime says of a chain with the provider, None if it runs as without."""
    from rimc_onnx.runtime.provider import provider_session

    feeds = {k: v for k, v in node.feeds().items() if k != "h"}
    model = node.model(chain=True)
    outputs: list[bytes | str] = []
    for make in (runtime.make_session, provider_session):
        try:
            session = make(model, num_threads=2)
            for _ in range(2):
                outputs.append(session.run(None, feeds)[0].tobytes())
        except Exception as error:
            outputs = [o for o in outputs if isinstance(o, str)]
            outputs.append(f"{type(error).__name__}: {error}")
    texts = [o for o in outputs if isinstance(o, str)]
    if len(texts) == 1:
        return f"only one of both runs: {texts[0]}"
    if not texts and outputs[:2] != outputs[2:]:
        return "other bits"
    return texts[1] if texts else None


def main(num_parts: str, part: str, way: str = "") -> None:
    nodes = all_malformed()
    if way:
        # What a Relu needs is its output.
        nodes = [node for node in nodes if node.outputs == ("y",)]
    outcome_of = chain_outcome if way else outcome
    for node in nodes[int(part) :: int(num_parts)]:
        # Before the session, so that a crash leaves its name.
        print(json.dumps({"op": node.op, "label": node.label, "refused": node.refused}), flush=True)
        print(json.dumps(outcome_of(node)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
