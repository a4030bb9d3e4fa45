# SPDX-License-Identifier: Apache-2.0
"""A crossbar of a matrix with its adapter, residual and activation as one node of the provider."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import needs_providers

from rimc_onnx import runtime
from rimc_onnx.bodies import operators
from rimc_onnx.ops import schema
from rimc_onnx.runtime.provider import provider_session

pytestmark = needs_providers

Array = np.ndarray[Any, Any]
READS = {
    "ideal": (),
    "noise": ("absolute", "sinh"),
    "errors": ("gain", "offset"),
    # Sums of these are stored before they are read.
    "planes": ("serial", "absolute"),
    "relative": ("relative",),
    "curve": ("curve",),
}


def _chain(
    cases: ModuleType,
    seed: int,
    names: tuple[str, ...],
    *,
    adapter: bool = True,
    tail: tuple[str, ...] = ("Add", "Relu"),
    rows: int | None = None,
) -> tuple[bytes, dict[str, Array]]:
    """A model of one chain, and its feeds."""
    rng = np.random.default_rng(seed)
    crossbar = cases.rram_matmul_case(rng, names=names, adc=True if names else None)
    x, w = crossbar.feeds["x"], crossbar.constants["w"]
    if rows is not None:
        x = rng.standard_normal((rows, len(w)), dtype=np.float32)
    nodes = [
        helper.make_node(
            schema.RRAM_MATMUL, ["x", "w"], ["h"], "crossbar", domain=schema.DOMAIN,
            **crossbar.attributes,
        )
    ]  # fmt: skip
    constants = {"w": w}
    if adapter:
        rank = int(rng.integers(0, 7))
        constants |= cases.adapter(
            rng,
            a_shape=[len(w), rank],
            b_shape=[rank, w.shape[1]],
            ranks=rank,
            columns=w.shape[1],
            num_cells=w.size,
            sparse_frac=None,
        )
        inputs = list(schema.OPS[schema.DORA_MATMUL].inputs)
        nodes.append(
            helper.make_node(schema.DORA_MATMUL, inputs, ["b"], "adapter", domain=schema.DOMAIN)
        )
    feeds = {"x": x}
    if "Add" in tail:
        feeds["r"] = rng.standard_normal((*x.shape[:-1], w.shape[1]), dtype=np.float32)
        # The residual is the first input of some.
        inputs = [nodes[-1].output[0], "r"]
        nodes.append(helper.make_node("Add", inputs[:: rng.choice([-1, 1])], ["s"]))
    if "Relu" in tail:
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["t"]))
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, name) for name, v in constants.items()],
    )
    imports = [
        helper.make_opsetid("", operators.FUNCTION_OPSET_VERSION),
        helper.make_opsetid(schema.DOMAIN, schema.VERSION),
    ]
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=8, functions=operators.function_protos()
    )
    return onnx.shape_inference.infer_shapes(model).SerializeToString(), feeds


def _outputs(session: onnxruntime.InferenceSession, feeds: dict[str, Array]) -> list[bytes]:
    # Two runs: draws of read noise go on in both in the same way.
    return [session.run(None, feeds)[0].tobytes() for _ in range(2)]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("seed", range(6))
def test_chain_gives_the_bits_of_its_nodes(cases: ModuleType, read: str, seed: int) -> None:
    # Catches another order of operations behind the sums, columns or rows of the adapter that
    # belong to another block, and a run that draws the noise of another.
    model, feeds = _chain(cases, seed, READS[read])
    apart = runtime.make_session(model, num_threads=1)
    before = runtime.kernels_created()
    fused = provider_session(model, num_threads=2)
    assert runtime.kernels_created() - before == 1
    assert _outputs(fused, feeds) == _outputs(apart, feeds)


@pytest.mark.parametrize(
    ("adapter", "tail"),
    [(True, ()), (True, ("Add",)), (True, ("Relu",)), (False, ("Add", "Relu")), (False, ("Relu",))],
)
def test_part_of_a_chain_gives_the_bits_of_its_nodes(
    cases: ModuleType, adapter: bool, tail: tuple[str, ...]
) -> None:
    # Catches a term that is read although the chain does not have it.
    for seed in range(20, 24):
        model, feeds = _chain(cases, seed, ("absolute",), adapter=adapter, tail=tail)
        apart = runtime.make_session(model, num_threads=1)
        fused = provider_session(model, num_threads=2)
        assert _outputs(fused, feeds) == _outputs(apart, feeds)


@pytest.mark.parametrize("rows", [1, 700])
def test_large_chain_gives_the_bits_of_its_nodes(cases: ModuleType, rows: int) -> None:
    # Catches a task that finishes rows of another: random cases are too small to be split.
    model, feeds = _chain(cases, 7, ("absolute", "sinh"), rows=rows)
    apart = runtime.make_session(model, num_threads=1)
    fused = provider_session(model, num_threads=3)
    assert _outputs(fused, feeds) == _outputs(apart, feeds)


def test_nan_in_x_gives_the_bits_of_its_nodes(cases: ModuleType) -> None:
    # Catches sums of integer kernels where x has no code, which the floats' path has to make.
    model, feeds = _chain(cases, 3, (), tail=("Add",))
    feeds["x"].reshape(-1)[5] = np.nan
    apart = runtime.make_session(model, num_threads=1)
    fused = provider_session(model, num_threads=1)
    assert _outputs(fused, feeds) == _outputs(apart, feeds)


def test_adapter_that_reads_another_input_stays_apart(cases: ModuleType) -> None:
    # Catches a chain that takes the x of the crossbar for that of the adapter.
    model, feeds = _chain(cases, 5, (), tail=())
    proto = onnx.load_model_from_string(model)
    proto.graph.input.append(
        helper.make_tensor_value_info("x2", TensorProto.FLOAT, feeds["x"].shape)
    )
    proto.graph.node[1].input[0] = "x2"
    feeds["x2"] = -feeds["x"]
    apart = runtime.make_session(proto.SerializeToString(), num_threads=1)
    before = runtime.kernels_created()
    fused = provider_session(proto.SerializeToString(), num_threads=1)
    assert runtime.kernels_created() - before == 2
    assert _outputs(fused, feeds) == _outputs(apart, feeds)


def test_chain_gives_the_same_bits_with_every_isa(
    cases: ModuleType, isa: str, tmp_path: Path
) -> None:
    # Catches a finish that vectors make in another way, and the path without integer kernels.
    program = (
        "import sys, numpy as np\n"
        "from rimc_onnx.runtime.provider import provider_session\n"
        "with np.load(sys.argv[2]) as file: feeds = dict(file)\n"
        "session = provider_session(sys.argv[1], num_threads=1)\n"
        "sys.stdout.buffer.write(session.run(None, feeds)[0].tobytes())\n"
    )
    for seed in (31, 32, 33):
        model, feeds = _chain(cases, seed, ("absolute", "sinh"), rows=50)
        if seed == 33:
            feeds["x"][7, 0] = np.nan
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(model)
        np.savez(tmp_path / "feeds.npz", **feeds)
        found = subprocess.run(
            [sys.executable, "-c", program, str(path), str(tmp_path / "feeds.npz")],
            check=True,
            capture_output=True,
            env={**os.environ, "RIMC_ISA": isa},
        ).stdout
        fused = provider_session(model, num_threads=1)
        assert found == fused.run(None, feeds)[0].tobytes()
