# SPDX-License-Identifier: Apache-2.0
"""Ordinary nodes and provider options that are wrong in one way, for the execution provider.

``python malformed_ordinary.py`` prints JSON: a line before each one, and one with what became of
it: an error, or by how much the output is off that of the CPU provider.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx.runtime.provider import provider_session

IDEAL = {"preset": "gaussian-relative", "drift_frac": "0"}
LONG = "x" * 100_000

_RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape, dtype=np.float32)


_INTS = (-1, 0, 3, 2**12, 2**20, 2**31, 2**32 + 1, 2**40, 2**62, -(2**63))
_CONV = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}
_WORDS = ("SAME_UPPER", "SAME_LOWER", "VALID", "", "nothing", LONG)


Node = tuple[str, str, tuple[int, ...], list[np.ndarray], dict[str, Any]]
"""What, operator, shape of x, constants, attributes."""


def convs() -> Iterator[Node]:
    x, w, bias = (1, 4, 6, 6), normal(2, 4, 3, 3), normal(2)
    for name in ("strides", "pads", "dilations", "kernel_shape"):
        count = 4 if name == "pads" else 2
        for value in _INTS:
            if name == "pads" and value > 2**15:
                continue  # the sizes that they make wrap around in ONNX Runtime itself
            yield f"{name} {value}", "Conv", x, [w], {**_CONV, name: [value] * count}
        for length in (1, count + 1, 30):
            yield f"{length} {name}", "Conv", x, [w], {**_CONV, name: [1] * length}
    for value in _INTS:
        yield f"group {value}", "Conv", x, [w], {**_CONV, "group": value}
    for word in _WORDS:
        attributes = {"strides": [1, 1], "auto_pad": word}
        yield f"auto_pad {word[:20]}", "Conv", x, [w], attributes
    for name in _CONV:
        yield f"{name} of another type", "Conv", x, [w], {**_CONV, name: 1.5}
    for shape in ((2, 4), (2, 4, 3), (2, 4, 3, 3, 3, 3), (0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)):
        yield f"w {shape}", "Conv", x, [np.ones(shape, np.float32)], _CONV
    for size in (0, 1, 3):
        yield f"{size} biases", "Conv", x, [w, np.ones(size, np.float32)], _CONV
    yield "x of 3 axes", "Conv", (1, 4, 6), [w, bias], _CONV
    yield "x without channels", "Conv", (1, 0, 6, 6), [w, bias], _CONV
    yield "x without pixels", "Conv", (1, 4, 0, 6), [w, bias], _CONV
    yield "six spatial axes", "Conv", (1, 1, *[2] * 6), [normal(1, 1, *[1] * 6)], {}


def products() -> Iterator[Node]:
    v = normal(5, 3)
    for bad in (float("nan"), float("inf"), -0.0):
        yield f"alpha {bad}", "Gemm", (2, 5), [v, normal(3)], {"alpha": bad}
        yield f"beta {bad}", "Gemm", (2, 5), [v, normal(3)], {"beta": bad}
    for value in (-1, 2, 2**40):
        yield f"transB {value}", "Gemm", (2, 5), [normal(3, 5)], {"transB": value}
        yield f"transA {value}", "Gemm", (5, 2), [v], {"transA": value}
    for shape in ((2, 3), (2, 1), (4,), (3, 1), (1, 1, 3), (0,)):
        yield f"C {shape}", "Gemm", (2, 5), [v, np.ones(shape, np.float32)], {}
    yield "alpha of another type", "Gemm", (2, 5), [v], {"alpha": 1}
    for shape in ((5,), (5, 0), (0, 3), (1, 5, 3), (2, 5, 3), (1, 1, 1, 5, 3), (6, 3), ()):
        yield f"w {shape}", "MatMul", (2, 5), [np.ones(shape, np.float32)], {}
    for what, name in (
        ("long name", LONG),
        ("odd name", '"\\\n\t\x01é☃'),
        ("star", "*"),
        ("no name", ""),
    ):
        yield what, "MatMul", (2, 5), [v], {"name": name}


def bad_options() -> Iterator[tuple[str, dict[str, str]]]:
    for name in (
        "preset", "time_s", "drift_frac", "drift_mean_frac", "g_max_us", "g_min_us",
        "stuck_min_frac", "stuck_max_frac", "level_bits", "num_slices", "devices_per_weight",
        "scaling", "mapping", "seed", "keep_digital", "device_reads", "other",
    ):  # fmt: skip
        for value in ("", " ", "-", "-1", "1e-308", "3e38", "9" * 400, "é", "1\n2", ";;;", LONG):
            yield f"{name} {value[:20]}", {**IDEAL, name: value}
    yield "a pattern of stars", {**IDEAL, "keep_digital": "*a" * 5000 + "b"}
    yield "many patterns", {**IDEAL, "keep_digital": "no;" * 50_000}


def model(op: str, x: tuple[int, ...], constants: list[np.ndarray], attributes: Any) -> bytes:
    names = [f"c{i}" for i in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], **{"name": "the_node", **attributes})
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"d{i}" for i in range(len(x))])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(map(numpy_helper.from_array, constants, names)),
    )
    imports = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return bytes(proto.SerializeToString())


def compare(data: bytes, x: np.ndarray) -> dict[str, Any]:
    """``error``, or ``off``; ``cpu`` is the error of the CPU provider, if it has one."""
    found: dict[str, Any] = {"cpu": None}
    want = None
    try:
        cpu = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        want = cpu.run(None, {"x": x})[0]
    except Exception as error:
        found["cpu"] = str(error)
    try:
        session = provider_session(data, provider_options=IDEAL, num_threads=2)
        got = session.run(None, {"x": x})[0]
    except Exception as error:
        return {**found, "error": f"{type(error).__name__}: {error}"}
    if want is None:
        return {**found, "off": "an output where there is none"}
    if want.shape != got.shape:
        return {**found, "off": f"shape {got.shape} for {want.shape}"}
    with np.errstate(invalid="ignore"):
        same = np.isclose(got, want, rtol=1e-5, atol=1e-4, equal_nan=True)
    return {**found, "off": None if same.all() else f"{got[~same][0]} for {want[~same][0]}"}


def programmed(options: dict[str, str]) -> dict[str, Any]:
    try:
        session = provider_session(
            model("MatMul", (2, 5), [normal(5, 3)], {}), provider_options=options, num_threads=1
        )
        y = session.run(None, {"x": normal(2, 5)})[0]
    except Exception as error:
        return {"cpu": None, "error": f"{type(error).__name__}: {error}"}
    return {"cpu": None, "off": None if np.isfinite(y).all() else "not finite"}


def main() -> None:
    for what, op, shape, constants, attributes in (*convs(), *products()):
        print(json.dumps({"op": op, "label": what}), flush=True)
        found = compare(model(op, shape, constants, attributes), normal(*shape))
        print(json.dumps(found), flush=True)
    for what, options in bad_options():
        print(json.dumps({"op": "options", "label": what}), flush=True)
        print(json.dumps(programmed(options)), flush=True)


if __name__ == "__main__":
    main()
