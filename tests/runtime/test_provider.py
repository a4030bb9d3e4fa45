# SPDX-License-Identifier: Apache-2.0
"""The execution provider: what it claims, what it programs, what it computes, what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from provider_models import (
    PLAIN,
    RELATIVE,
    Array,
    graph_of_all,
    model_of,
    needs_providers,
    normal,
    one_node,
)

from rimc_onnx import convert, evaluate, passes, runtime
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig
from rimc_onnx.device import Scaling, get_preset, list_presets
from rimc_onnx.errors import ConfigError, ModelError, NodeMappingError
from rimc_onnx.ops import schema
from rimc_onnx.runtime.provider import (
    PROVIDER_NAME,
    NodeMapping,
    last_mapping,
    provider_session,
    register_provider,
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
    ideal = PeripheryConfig(device_reads=False)
    device = get_preset(preset, scaling=scaling, clip_sigma=math.inf, **numbers)
    config = ConvertConfig(device=device, seed=seed, rank=1, periphery=ideal)
    options = {"preset": preset, "scaling": scaling.value, "seed": seed, **numbers}
    options["device_reads"] = False  # noise would be added to the weight
    session = provider_session(model, provider_options=options)
    want = converted_weight(model, config)
    got = weight_of_conv(session, shape) if op == "Conv" else weight_of_matmul(session, len(want))
    np.testing.assert_array_equal(got, want)
    assert session.get_providers()[0] == PROVIDER_NAME


@needs_providers
@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_is_that_of_the_package_at_every_time(preset: str) -> None:
    # A coefficient mistyped, a time on the wrong side of a measured one, an exponential or a
    # logarithm with another last bit: 4000 weights of all sizes read most of a table.
    model = one_node("MatMul", normal(5, 80, 50))
    device = get_preset(preset, **PLAIN)
    times: list[float | None] = [None]
    if device.time_range_s is not None:
        first, last = device.time_range_s
        shares = (0.0, 1e-6, 1e-3, 0.1, 0.33, 0.5, 0.7, 1.0)
        times += sorted({float(np.float32(first + (last - first) * s)) for s in shares})
    for time_s in times:
        time = {} if time_s is None else {"time_s": repr(time_s)}
        options = {"preset": preset, "device_reads": False, **time}
        session = provider_session(model, provider_options=options)
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


# --- converted models


@needs_providers
@pytest.mark.parametrize("op", list(schema.OPS))
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
    w = normal(1, 6, 5)
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
        provider_session(one_node("MatMul", normal(1, 6, 5)))


def test_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(
        runtime.NativeLibraryError, match=r"needs ONNX Runtime 1\.24 .*, got 1\.23\.2"
    ):
        register_provider()


def test_import_does_not_load_onnxruntime() -> None:
    code = "import sys, rimc_onnx.runtime.provider; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
