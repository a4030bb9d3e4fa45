# SPDX-License-Identifier: Apache-2.0
"""The execution provider: what it claims, what it programs, what it computes, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from rimc_onnx import convert, evaluate, opset, passes, runtime
from rimc_onnx.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import Scaling, get_preset, presets
from rimc_onnx.errors import ConfigError, ModelError, NodeMappingError
from rimc_onnx.runtime.provider import (
    PROVIDER_NAME,
    NodeMapping,
    last_mapping,
    provider_session,
    register_provider,
)

HAS_PROVIDERS = hasattr(onnxruntime, "register_execution_provider_library") and tuple(
    int(part) for part in onnxruntime.__version__.split(".")[:2]
) >= (1, 24)
needs_providers = pytest.mark.skipif(not HAS_PROVIDERS, reason="providers need ONNX Runtime 1.24")

RELATIVE = {"preset": "gaussian-relative"}
Array = np.ndarray[Any, Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    x_shape: Sequence[int | str],
    constants: Mapping[str, Array],
    *,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    """A model from x to y; ``inputs`` are more of them."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, dtype, shape)
            for name, shape in {"x": x_shape, **(inputs or {})}.items()
        ],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def one_node(op: str, w: Array, **attributes: object) -> bytes:
    return model_of(
        [helper.make_node(op, ["x", "w"], ["y"], name=f"the {op}", **attributes)],
        [f"d{i}" for i in range(w.ndim)],
        {"w": w},
    )


def converted_weight(model: bytes, config: ConvertConfig) -> Array:
    """The realised weight that a conversion writes for the only crossbar."""
    graph = ir.serde.deserialize_model(onnx.load_model_from_string(model))
    passes.convert_model(graph, config)
    (branch,) = passes.rram_branches(graph)
    proto = ir.serde.serialize_model(graph)
    (node,) = (n for n in proto.graph.node if n.name == f"{branch.node}/rram")
    (w,) = (t for t in proto.graph.initializer if t.name == node.input[1])
    return numpy_helper.to_array(w)


# One-hot inputs make a session tell its weights: every output is one weight times 1, and zeros.
def weight_of_matmul(session: onnxruntime.InferenceSession, depth: int) -> Array:
    return session.run(None, {"x": np.eye(depth, dtype=np.float32)})[0]


def weight_of_conv(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> Array:
    columns, *window = shape
    x = np.eye(int(np.prod(window)), dtype=np.float32).reshape(-1, *window)
    return session.run(None, {"x": x})[0].reshape(-1, columns).T.reshape(shape)


@needs_providers
@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize(
    ("preset", "numbers"),
    [
        ("gaussian-absolute", {}),
        ("pcm-natcomm2020", {"stuck_min_frac": 0.02, "stuck_max_frac": 0.1}),
        ("cmo-hfox-2025-2pct", {"level_bits": 3, "num_slices": 2, "devices_per_weight": 2}),
        ("gaussian-relative", {"drift_frac": 0.0, "level_bits": 4}),
        ("gaussian-relative", {"drift_frac": 0.35, "drift_mean_frac": -0.0625}),
        ("gaussian-absolute", {"drift_frac": 0.1, "g_max_us": 23.7, "g_min_us": 1e-3}),
        ("gaussian-relative", {"drift_frac": 0.0}),
    ],
)
@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("MatMul", (70, 33), {}),
        ("Gemm", (70, 33), {}),
        ("Gemm", (33, 70), {"transB": 1, "alpha": 0.75}),
        ("Conv", (19, 5, 3, 3), {}),
        ("Conv", (12, 7, 4), {"auto_pad": "VALID"}),
    ],
)
def test_programmed_weight_is_that_of_a_conversion(
    op: str,
    shape: tuple[int, ...],
    attributes: dict[str, Any],
    preset: str,
    numbers: dict[str, float],
    scaling: Scaling,
) -> None:
    # A preset whose numbers differ in C++, draws keyed by another name, columns of the wrong axis,
    # W_max before alpha, a seed of more than 32 bits cut. Adding 0 to a weight changes no bit, but
    # for the sign of a zero.
    model = one_node(op, normal(1, *shape), **attributes)
    seed = 2**40 + 3
    config = ConvertConfig(device=get_preset(preset, scaling=scaling, **numbers), seed=seed, rank=1)
    options = {"preset": preset, "scaling": scaling.value, "seed": seed, **numbers}
    session = provider_session(model, provider_options=options)
    want = converted_weight(model, config)
    got = weight_of_conv(session, shape) if op == "Conv" else weight_of_matmul(session, len(want))
    np.testing.assert_array_equal(got, want)
    assert session.get_providers()[0] == PROVIDER_NAME


@needs_providers
@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_that_of_the_package_at_every_time(preset: str) -> None:
    # A coefficient mistyped, a time on the wrong side of a measured one, an exponential or a
    # logarithm with another last bit: 4000 weights of all sizes read most of a table.
    model = one_node("MatMul", normal(5, 80, 50))
    device = get_preset(preset)
    times: list[float | None] = [None]
    if device.time_range_s is not None:
        first, last = device.time_range_s
        shares = (0.0, 1e-6, 1e-3, 0.1, 0.33, 0.5, 0.7, 1.0)
        times += sorted({float(np.float32(first + (last - first) * s)) for s in shares})
    for time_s in times:
        time = {} if time_s is None else {"time_s": repr(time_s)}
        session = provider_session(model, provider_options={"preset": preset, **time})
        ideal = PeripheryConfig(device_reads=False)
        config = ConvertConfig(device=device, rank=1, time_s=time_s, periphery=ideal)
        want = converted_weight(model, config)
        np.testing.assert_array_equal(weight_of_matmul(session, 80), want, err_msg=str(time_s))


@needs_providers
def test_weight_of_a_fused_matmul_is_keyed_by_the_matmul() -> None:
    # ONNX Runtime shows a Gemm of another name in place of MatMul and Add.
    w, bias = normal(2, 40, 9), normal(3, 9)
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
            helper.make_node("Add", ["h", "b"], ["y"], name="add"),
        ],
        ["n", 40],
        {"w": w, "b": bias},
    )
    session = provider_session(model, provider_options=RELATIVE)
    assert [m.name for m in last_mapping()] == ["fc"]
    want = converted_weight(model, ConvertConfig(rank=1))
    np.testing.assert_array_equal(weight_of_matmul(session, 40), want + bias)


def graph_of_all() -> tuple[bytes, dict[str, Array]]:
    """Conv with groups, strides and a bias, Gemm with all attributes, MatMul on three axes."""
    constants = {
        "w1": normal(4, 24, 3, 3, 3),
        "b1": normal(5, 24),
        "w2": normal(6, 10, 24) / np.float32(5),
        "c2": normal(7, 1, 10),
        "w3": normal(8, 10, 31),
    }
    shape = numpy_helper.from_array(np.array([-1, 4, 10]))
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "w1", "b1"],
            ["h1"],
            name="conv",
            group=2,
            strides=[2, 1],
            pads=[1, 0, 2, 1],
            dilations=[1, 2],
        ),
        helper.make_node("GlobalAveragePool", ["h1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node(
            "Gemm", ["f", "w2", "c2"], ["h2"], name="gemm", transB=1, alpha=0.5, beta=2.0
        ),
        helper.make_node("Constant", [], ["shape"], value=shape, name="const"),
        helper.make_node("Reshape", ["h2", "shape"], ["r"], name="reshape"),
        helper.make_node("MatMul", ["r", "w3"], ["y"], name="matmul"),
    ]
    return model_of(nodes, ["n", 6, "h", "w"], constants), constants


@needs_providers
@pytest.mark.parametrize("num_threads", [1, 2])
def test_without_drift_outputs_are_those_of_the_cpu_provider(num_threads: int) -> None:
    # A bias on the wrong axis, beta left out, an attribute read as its default. Sums of up to 54
    # products: rtol as for exact rewrites of a graph.
    model, _ = graph_of_all()
    options = {**RELATIVE, "drift_frac": 0}
    session = provider_session(model, provider_options=options, num_threads=num_threads)
    assert last_mapping() == [
        NodeMapping(name="conv", op_type="Conv", reason=None),
        NodeMapping(name="gemm", op_type="Gemm", reason=None),
        NodeMapping(name="matmul", op_type="MatMul", reason=None),
    ]
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch, size in ((4, 9), (8, 60), (12, 14)):  # one session, several shapes
        x = normal(9, batch, 6, size, size + 3)
        got, want = (s.run(None, {"x": x})[0] for s in (session, cpu))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@needs_providers
def test_empty_batch_gives_an_empty_output() -> None:
    for model, shape in (
        (one_node("Conv", normal(0, 3, 2, 2)), (0, 2, 5)),
        (one_node("MatMul", normal(0, 4, 6)), (0, 4)),
    ):
        session = provider_session(model, provider_options=RELATIVE)
        assert session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape[0] == 0


@needs_providers
def test_wrong_shape_is_an_error_when_run() -> None:
    session = provider_session(one_node("MatMul", normal(0, 4, 6)), provider_options=RELATIVE)
    with pytest.raises(Exception, match=r"input x must have the shape \[\.\.\., 4\], got \[2, 5\]"):
        session.run(None, {"x": np.zeros((2, 5), np.float32)})


# --- what stays digital

W = normal(1, 6, 5)
KERNEL = normal(1, 4, 3, 3, 3)


def refused(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], **more: Any) -> bytes:
    """A model of one MatMul that goes to a crossbar and ``nodes``, which give z, added up."""
    digital = [
        *nodes,
        helper.make_node("MatMul", ["x", "own"], ["mapped"], name="own"),
        helper.make_node("ReduceSum", ["z"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Add", ["mapped", "sum"], ["y"], name="total"),
    ]
    return model_of(digital, ["n", 6], {**constants, "own": normal(9, 6, 2)}, **more)


REFUSALS: dict[str, tuple[bytes, str]] = {
    "weight is an input": (
        refused(
            [helper.make_node("MatMul", ["x", "v"], ["z"], name="it")], {}, inputs={"v": [6, 5]}
        ),
        "the weight is no constant initializer",
    ),
    "constant on the left": (
        refused(
            [helper.make_node("MatMul", ["w", "v"], ["z"], name="it")],
            {"w": W},
            inputs={"v": [5, 3]},
        ),
        "the weight is no constant initializer",
    ),
    "SAME": (
        refused(
            [helper.make_node("Conv", ["v", "w"], ["z"], name="it", auto_pad="SAME_UPPER")],
            {"w": KERNEL},
            inputs={"v": [1, 3, 8, 8]},
        ),
        "auto_pad SAME_UPPER is not written as pads",
    ),
    "transA": (
        refused(
            [helper.make_node("Gemm", ["v", "w"], ["z"], name="it", transA=1)],
            {"w": W},
            inputs={"v": [6, 3]},
        ),
        "transA is set",
    ),
    "batch of matrices": (
        refused(
            [helper.make_node("MatMul", ["v", "w"], ["z"], name="it")],
            {"w": normal(1, 2, 6, 5)},
            inputs={"v": [2, 3, 6]},
        ),
        "the weight has rank 3: one array holds one matrix",
    ),
    "bias is an input": (
        refused(
            [helper.make_node("Gemm", ["x", "w", "v"], ["z"], name="it")],
            {"w": W},
            inputs={"v": [5]},
        ),
        "the bias is no constant initializer",
    ),
    "bias is a column": (
        refused(
            [helper.make_node("Gemm", ["v", "w", "c"], ["z"], name="it")],
            {"w": W, "c": normal(2, 3, 1)},
            inputs={"v": [3, 6]},
        ),
        "the bias of shape [3, 1] is no row",
    ),
    "no name": (
        refused([helper.make_node("MatMul", ["x", "w"], ["z"])], {"w": W}),
        "the node has no name, which its draws need as a key",
    ),
}


@needs_providers
@pytest.mark.parametrize("case", list(REFUSALS))
def test_node_that_can_not_be_mapped_stays_with_the_cpu_provider(case: str) -> None:
    # A node that is claimed and then computed with a default in place of what it says.
    model, reason = REFUSALS[case]
    options = {**RELATIVE, "drift_frac": 0}
    session = provider_session(model, provider_options=options)
    mapping = {m.name: m.reason for m in last_mapping()}
    assert mapping == {"own": None, "" if case == "no name" else "it": reason}
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {
        i.name: normal(3, *(2 if isinstance(size, str) else size for size in i.shape))
        for i in cpu.get_inputs()
    }
    # As for exact rewrites of a graph.
    want = cpu.run(None, feeds)[0]
    np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-5, atol=1e-5)


@needs_providers
def test_double_weight_stays_with_the_cpu_provider() -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="it")],
        ["n", 6],
        {"w": W.astype(np.float64)},
        dtype=TensorProto.DOUBLE,
    )
    with pytest.raises(NodeMappingError, match=r"no node can go .*'it': the weight is not float32"):
        provider_session(model, provider_options=RELATIVE)


@needs_providers
def test_body_of_control_flow_stays_digital() -> None:
    # A conversion leaves bodies alone; a provider that claims there gives the model other arrays.
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    otherwise = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["z2"], name="other")],
        "else",
        [],
        [helper.make_tensor_value_info("z2", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0, name="s"),
        helper.make_node("Cast", ["s"], ["flag"], to=TensorProto.BOOL, name="cast"),
        helper.make_node(
            "If", ["flag"], ["h"], then_branch=inner, else_branch=otherwise, name="if"
        ),
        helper.make_node("MatMul", ["h", "u"], ["y"], name="outer"),
    ]
    model = model_of(nodes, ["n", 6], {"w": W, "v": -W, "u": normal(0, 5, 3)})
    session = provider_session(model, provider_options={**RELATIVE, "drift_frac": 0})
    assert [m.name for m in last_mapping()] == ["outer"]
    x = normal(2, 3, 6)
    want = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want[0], rtol=1e-5, atol=1e-5)


@needs_providers
@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("gemm", {"gemm"}),
        (["conv", "mat*"], {"conv", "matmul"}),
        ("*m*", {"gemm", "matmul"}),
        ("g?mm;", {"gemm"}),
        ("gem;emm;xgemm", set()),
    ],
)
def test_patterns_keep_nodes_digital(patterns: str | list[str], kept: set[str]) -> None:
    model, _ = graph_of_all()
    provider_session(model, provider_options={**RELATIVE, "keep_digital": patterns})
    assert {m.name for m in last_mapping() if m.reason} == kept
    assert all("kept digital by the pattern" in m.reason for m in last_mapping() if m.reason)


# --- converted models


@needs_providers
@pytest.mark.parametrize("op", list(opset.OPS))
def test_converted_model_runs_on_the_kernels(cases: ModuleType, op: str) -> None:
    # Domains that ONNX Runtime does not take from the provider: the function bodies would run.
    case = cases.MAKERS[op](np.random.default_rng(3))
    before = runtime.kernels_created()
    session = provider_session(case.model(), num_threads=1)
    assert runtime.kernels_created() == before + 1
    assert session.run(None, case.feeds)[0].tobytes() == case.run().tobytes()


@needs_providers
def test_provider_and_registered_library_go_together(cases: ModuleType) -> None:
    # An application that moves to the provider and still registers the library.
    case = cases.rram_matmul_case(np.random.default_rng(3))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    runtime.register(options)
    options.add_provider_for_devices(register_provider(), {})
    session = onnxruntime.InferenceSession(case.model(), options)
    assert session.run(None, case.feeds)[0].tobytes() == case.run().tobytes()


@needs_providers
def test_sample_has_the_accuracy_of_its_conversion(digits_folder: Path) -> None:
    # Batch norms: ONNX Runtime folds them into the weights before it asks the provider, to other
    # last bits than a conversion, so that draws land on nearly the same weights. Logits go to 11.
    model, out = digits_folder / "model.onnx", digits_folder / "converted.onnx"
    convert(model, out)
    images, labels = np.load(digits_folder / "test.npz").values()
    (logits,) = provider_session(model, provider_options=RELATIVE).run(None, {"input": images})
    assert len(last_mapping()) == 11
    (converted,) = provider_session(out).run(None, {"input": images})
    assert np.abs(logits - converted).max() < 1e-4
    top1 = evaluate(out, data=digits_folder / "test.npz").top1
    assert abs(float((logits.argmax(1) == labels).mean()) - float(top1 or 0)) <= 1 / len(labels)


# --- errors


@needs_providers
def test_preset_on_a_converted_model_is_refused(cases: ModuleType) -> None:
    # Nodes that a user kept digital would get arrays, beside those that the file holds.
    case = cases.rram_matmul_case(np.random.default_rng(0))
    with pytest.raises(
        ConfigError, match=r"preset is for ordinary models, but this one has ai\.rimc"
    ):
        provider_session(case.model(), provider_options=RELATIVE)


@needs_providers
@pytest.mark.parametrize("scaling", ["node", "column"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_weight_without_a_value_is_an_error(bad: float, scaling: str) -> None:
    w = W.copy()
    w[2, 3] = bad
    with pytest.raises(
        ModelError, match=r"^node 'the MatMul' \(MatMul\): the weight has NaN or inf"
    ):
        provider_session(one_node("MatMul", w), provider_options={**RELATIVE, "scaling": scaling})


@needs_providers
def test_session_that_simulates_nothing_is_an_error() -> None:
    # The trap of a provider: what it does not claim runs elsewhere, and nobody hears of it.
    relu = model_of([helper.make_node("Relu", ["x"], ["y"], name="r")], ["n", 6], {})
    with pytest.raises(NodeMappingError, match=r"\(it has no Conv, Gemm or MatMul\)\.$"):
        provider_session(relu, provider_options=RELATIVE)
    with pytest.raises(NodeMappingError, match="Give the provider option preset to program"):
        provider_session(one_node("MatMul", W))


def test_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(
        runtime.NativeLibraryError, match=r"needs ONNX Runtime 1\.24 .*, got 1\.23\.2"
    ):
        register_provider()


def test_import_does_not_load_onnxruntime() -> None:
    code = "import sys, rimc_onnx.runtime.provider; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
