# SPDX-License-Identifier: Apache-2.0
"""What an application may do to the provider for a long time, in a process of its own.

``python provider_stress.py JOB`` prints one JSON object; see test_provider_stress.py.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import threading
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx.runtime.provider import PROVIDER_NAME, last_mapping, provider_session

SIZE = 512
"""One weight is 1 MiB."""
OPTIONS = {"preset": "gaussian-relative", "seed": 1}


def model(name: str = "fc", size: int = SIZE) -> bytes:
    """One MatMul of a size x size weight."""
    w = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=name)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


def peak_mib() -> float:
    """Most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(session: onnxruntime.InferenceSession, size: int = SIZE) -> bytes:
    """The bytes of the output for ones."""
    return bytes(session.run(None, {"x": np.ones((4, size), np.float32)})[0].tobytes())


def sessions() -> dict[str, Any]:
    """200 sessions, one after the other."""
    data, outputs = model(), set()
    for _ in range(10):
        outputs.add(run(provider_session(data, provider_options=OPTIONS, num_threads=1)))
    gc.collect()
    before = peak_mib()
    for _ in range(200):
        outputs.add(run(provider_session(data, provider_options=OPTIONS, num_threads=1)))
    return {"growth_mib": peak_mib() - before, "outputs": len(outputs)}


def refusals() -> dict[str, Any]:
    """200 sessions that are refused when options are read, and 200 when a weight is programmed."""
    bad = np.frombuffer(model(), np.uint8).copy()
    bad[-4000:-3996] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    sources = [(model(), {**OPTIONS, "seed": "x"}), (bad.tobytes(), OPTIONS)]

    def refused() -> int:
        count = 0
        for data, options in sources:
            try:
                provider_session(data, provider_options=options, num_threads=1)
            except Exception:  # which one is tested elsewhere
                count += 1
        return count

    for _ in range(10):
        refused()
    before = peak_mib()
    count = sum(refused() for _ in range(200))
    return {"growth_mib": peak_mib() - before, "refused": count}


def registrations() -> dict[str, Any]:
    """100 times: register, make a session, run, unregister."""
    data, outputs = model(), set()

    def once() -> None:
        session = provider_session(data, provider_options=OPTIONS, num_threads=1)
        outputs.add(run(session))
        del session
        gc.collect()
        onnxruntime.unregister_execution_provider_library(PROVIDER_NAME)

    for _ in range(10):
        once()
    before = peak_mib()
    for _ in range(100):
        once()
    left = [d.ep_name for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER_NAME]
    return {"growth_mib": peak_mib() - before, "outputs": len(outputs), "left": left}


def outlive() -> dict[str, Any]:
    """A session that is run, and closed, after its provider was unregistered."""
    session = provider_session(model(), provider_options=OPTIONS, num_threads=2)
    first = run(session)
    onnxruntime.unregister_execution_provider_library(PROVIDER_NAME)
    same = run(session) == first
    del session
    gc.collect()
    again = run(provider_session(model(), provider_options=OPTIONS)) == first
    return {"same": same, "again": again}


def threads() -> dict[str, Any]:
    """Four threads make and run sessions of their own at once; one session serves four threads."""
    sizes = {"a": 64, "b": 128, "c": 200, "d": 333}
    alone = {
        name: run(provider_session(model(name, n), provider_options=OPTIONS), n)
        for name, n in sizes.items()
    }
    wrong: list[str] = []

    def own(name: str) -> None:
        for _ in range(15):
            session = provider_session(
                model(name, sizes[name]), provider_options=OPTIONS, num_threads=2
            )
            if [m.name for m in last_mapping()] != [name]:
                wrong.append(f"mapping of {name}")
            if run(session, sizes[name]) != alone[name]:
                wrong.append(f"output of {name}")

    shared = provider_session(model(), provider_options=OPTIONS, num_threads=2)
    want = run(shared)

    def share(name: str) -> None:
        for _ in range(50):
            if run(shared) != want:
                wrong.append(f"shared session in {name}")

    for job in (own, share):
        workers = [threading.Thread(target=job, args=(name,)) for name in sizes]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return {"wrong": wrong}


JOBS = {f.__name__: f for f in (sessions, refusals, registrations, outlive, threads)}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]]()))
