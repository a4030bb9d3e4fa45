# SPDX-License-Identifier: Apache-2.0
"""Opens, runs and closes sessions, and prints by how much the memory of the process grew.

``python sessions.py JOB COUNT``; see test_sessions.py.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import runtime
from rimc_onnx.ops import schema

SIZE = 128
WARM_UP = 20
"""Sessions until allocators and pools have what they keep."""

_RNG = np.random.default_rng(0)
_X = _RNG.standard_normal((4, SIZE), dtype=np.float32)


def resident_mib() -> float:
    """Memory of the process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _constants() -> dict[str, np.ndarray]:
    def codes(*shape: int) -> np.ndarray:
        return _RNG.integers(-20, 21, shape).astype(np.int8)

    one = np.ones(1, np.float32)
    return {
        "w": _RNG.standard_normal((SIZE, SIZE), dtype=np.float32),
        "lora_a": codes(SIZE, 4),
        "lora_b": codes(4, SIZE),
        "magnitude": codes(SIZE),
        "x_scale": one,
        "rank_step": np.ones(4, np.float32),
        "lora_b_scale": one,
        "magnitude_scale": one,
        "bias": np.zeros(SIZE, np.float32),
        "sparse_values": codes(50),
        "sparse_index": np.arange(50),
        "sparse_scale": one,
    }


def _model(nodes: list[Any], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(schema.DOMAIN, schema.VERSION)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return bytes(proto.SerializeToString())


def converted(**attributes: Any) -> bytes:
    """A crossbar with converters and noise, and its adapter."""
    periphery = {
        "tile_rows": 64, "num_tiles": 2, "dac_bits": 8, "dac_range": 3.0, "dac_signed": 1,
        "dac_serial_bits": 0, "iv_sinh": 1.0, "input_shrink": 1.0, "adc_bits": 8,
        "adc_range": [20.0], "adc_gain": [1.0], "adc_offset": [0.0], "read_noise": 0.01,
        "read_noise_relative": 1, "read_noise_curve": [0.0], "read_key": 1, "w_max": [3.0],
        "iv_square": [0.1] * schema.IV_TERMS, "iv_cube": [0.0] * schema.IV_TERMS,
    }  # fmt: skip
    names = [n for n in schema.OPS[schema.DORA_MATMUL].inputs if n not in ("x", "h")]
    nodes = [
        helper.make_node(
            schema.RRAM_MATMUL,
            ["x", "w"],
            ["h"],
            name="xbar",
            domain=schema.DOMAIN,
            **{**periphery, **attributes},
        ),
        helper.make_node(
            schema.DORA_MATMUL, ["x", "h", *names], ["y"], name="dora", domain=schema.DOMAIN
        ),
    ]
    return _model(nodes, _constants())


def ordinary() -> bytes:
    """A MatMul."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
    return _model(nodes, {"w": _constants()["w"]})


def _custom_ops() -> Callable[[], bytes]:
    model = converted()

    def once() -> bytes:
        session = runtime.make_session(model, num_threads=2)
        return bytes(session.run(None, {"x": _X})[0].tobytes())

    return once


def _refusals() -> Callable[[], bytes]:
    models = [converted(adc_bits=-1), converted(num_tiles=9), converted(adc_range=[np.nan])]
    wrong_when_run = converted()

    def once() -> bytes:
        refused = 0
        for model in models:
            try:
                runtime.make_session(model, num_threads=1)
            except Exception:  # which one is tested elsewhere
                refused += 1
        session = runtime.make_session(wrong_when_run, num_threads=1)
        try:
            session.run(None, {"x": _X[:, :-1]})
        except Exception:
            refused += 1
        return bytes([refused])

    return once


def _at_once(make: Callable[[], Any]) -> Callable[[], bytes]:
    """Four threads open, run and close sessions at once, while one session serves all of them."""
    shared = make()

    def once() -> bytes:
        outputs: list[bytes] = []

        def work() -> None:
            session = make()
            for each in (session, shared):
                outputs.append(each.run(None, {"x": _X})[0].tobytes())

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(outputs) == 8
        (output,) = set(outputs)
        return output

    return once


def _threads() -> Callable[[], bytes]:
    model = converted(read_noise=0.0)
    return _at_once(lambda: runtime.make_session(model, num_threads=2))


def _provider_threads() -> Callable[[], bytes]:
    from rimc_onnx.runtime.provider import provider_session

    model = ordinary()
    options = {"preset": "gaussian-relative", "seed": 1}
    return _at_once(lambda: provider_session(model, provider_options=options, num_threads=2))


def _provider() -> Callable[[], bytes]:
    from rimc_onnx.runtime.provider import provider_session

    model = ordinary()
    options = {"preset": "gaussian-relative", "seed": 1}

    def once() -> bytes:
        session = provider_session(model, provider_options=options, num_threads=2)
        return bytes(session.run(None, {"x": _X})[0].tobytes())

    return once


def _provider_converted() -> Callable[[], bytes]:
    from rimc_onnx.runtime.provider import provider_session

    model = converted()

    def once() -> bytes:
        session = provider_session(model, num_threads=2)
        return bytes(session.run(None, {"x": _X})[0].tobytes())

    return once


JOBS = {
    "custom_ops": _custom_ops,
    "refusals": _refusals,
    "threads": _threads,
    "provider": _provider,
    "provider_converted": _provider_converted,
    "provider_threads": _provider_threads,
}


def main(name: str, count: str) -> None:
    once = JOBS[name]()
    outputs = {once() for _ in range(WARM_UP)}
    gc.collect()
    before = resident_mib()
    for _ in range(int(count)):
        outputs.add(once())
    gc.collect()
    growth = resident_mib() - before
    print(json.dumps({"growth_mib": growth, "outputs": len(outputs), "before_mib": before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
