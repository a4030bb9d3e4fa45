# SPDX-License-Identifier: Apache-2.0
"""The ONNX backend cases of convolutions and matrix products, through conversion at drift 0.

Cases are those that the onnx package ships. Their weight is an input; here it becomes an
initializer with the case's own value, so that there is something to put in an array.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_models import needs_providers

from rimc_onnx import convert, runtime
from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.errors import NodeMappingError
from rimc_onnx.ops import schema
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.runtime.provider import last_mapping, provider_session

Array = np.ndarray[Any, Any]

MAPPED = {
    "Conv": "RramConv",
    "ConvTranspose": "RramConv",
    "Gemm": "RramMatMul",
    "MatMul": "RramMatMul",
}

REFUSED = {
    "Attention": Refusal.ATTENTION,
    "ConvInteger": Refusal.INTEGER,
    "DeformConv": Refusal.DEFORMABLE,
    "Einsum": Refusal.EINSUM,
    "GRU": Refusal.RECURRENT,
    "LSTM": Refusal.RECURRENT,
    "MatMulInteger": Refusal.INTEGER,
    "QLinearConv": Refusal.INTEGER,
    "QLinearMatMul": Refusal.INTEGER,
    "RNN": Refusal.RECURRENT,
}

DRIFT_0 = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.0))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case with its weight as an initializer."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Array]
    outputs: list[Array]
    rtol: float
    atol: float

    @property
    def node(self) -> onnx.NodeProto:
        return self.model.graph.node[0]


def _tensor(file: Path) -> Array:
    proto = onnx.TensorProto()
    proto.ParseFromString(file.read_bytes())
    return numpy_helper.to_array(proto)


def _model_and_data(case: Any) -> tuple[onnx.ModelProto, list[Array], list[Array]]:
    """Of a case in memory, or of one in a folder."""
    if case.model is not None:
        inputs, outputs = case.data_sets[0]
        return case.model, list(inputs), list(outputs)
    folder = Path(case.model_dir)
    data = folder / "test_data_set_0"
    inputs, outputs = (
        [_tensor(data / f"{kind}_{i}.pb") for i in range(len(list(data.glob(f"{kind}_*.pb"))))]
        for kind in ("input", "output")
    )
    return onnx.load(folder / "model.onnx"), inputs, outputs


def _case(case: Any) -> Case | None:
    """The case with input 1 of its only node as an initializer; None if it is another operator."""
    model, inputs, outputs = _model_and_data(case)
    (node, *others) = model.graph.node
    if others or node.op_type not in MAPPED | REFUSED:
        return None
    if node.op_type == "Attention" and case.name != "test_attention_4d":
        return None  # 60 cases of one and the same refusal
    model = onnx.ModelProto.FromString(model.SerializeToString())
    node = model.graph.node[0]
    node.name = "case_node"
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    free = [i for i in model.graph.input if i.name not in known]
    # Some cases have an optional input that is not given, hence no value for it in between.
    feeds = dict(zip([i.name for i in free], inputs, strict=True))
    weight = node.input[1] if len(node.input) > 1 else ""
    if weight in feeds:
        initializer = numpy_helper.from_array(np.asarray(feeds.pop(weight)), weight)
        model.graph.initializer.append(initializer)
        model.graph.input.remove(next(i for i in model.graph.input if i.name == weight))
    if model.opset_import[0].version < 7:
        # Opset 7 is the first one that ONNX Runtime promises to read.
        model = onnx.version_converter.convert_version(model, 13)
    return Case(
        name=case.name,
        model=model,
        feeds={n: np.asarray(a) for n, a in feeds.items()},
        outputs=[np.asarray(o) for o in outputs],
        rtol=case.rtol,
        atol=case.atol,
    )


def _load() -> list[Case]:
    with warnings.catch_warnings():
        # The package makes the data of all its cases, overflows included, when they are loaded.
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        shipped = [*load_model_tests(kind="node"), *load_model_tests(kind="pytorch-converted")]
        cases = {c.name: c for c in map(_case, shipped) if c is not None}
    return sorted(cases.values(), key=lambda c: c.name)


CASES = _load()


def _refusal(case: Case) -> str | None:
    """Why the case's node must stay digital; None if it must be mapped."""
    if case.node.op_type in REFUSED:
        return REFUSED[case.node.op_type].of()
    weight = next(t for t in case.model.graph.initializer if t.name == case.node.input[1])
    if case.node.op_type == "MatMul" and len(weight.dims) != 2:
        rank = len(weight.dims)
        return Refusal.VECTOR.of() if rank == 1 else Refusal.BATCHED.of(rank)
    return None


ACCEPTED_CASES = [c for c in CASES if _refusal(c) is None]
REFUSED_CASES = [c for c in CASES if _refusal(c) is not None]
FLOAT_CASES = [
    c
    for c in ACCEPTED_CASES
    if re.match("test_(conv_|basic_conv|convtranspose|gemm|matmul)", c.name)
]


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda c: c.name.removeprefix("test_"))


def run(path: str | Path, feeds: dict[str, Array], *, native: bool) -> dict[str, Array]:
    session = runtime.make_session(path, native=native)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def converted(folder: Path, model: onnx.ModelProto) -> tuple[Path, onnx.ModelProto]:
    onnx.save(model, folder / "model.onnx")
    convert(folder / "model.onnx", config=DRIFT_0)
    path = folder / "model.rimc.onnx"
    return path, onnx.load(path)


def expect_outputs(case: Case, outputs: dict[str, Array]) -> None:
    for value, expected in zip(case.model.graph.output, case.outputs, strict=True):
        got = outputs[value.name]
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=case.rtol, atol=case.atol)


def test_the_package_ships_the_cases_that_are_meant() -> None:
    # A loader that finds nothing makes every test below vanish, not fail.
    kinds = {c.node.op_type for c in ACCEPTED_CASES}
    assert kinds == set(MAPPED)
    assert len(ACCEPTED_CASES) >= 40
    assert {c.node.op_type for c in REFUSED_CASES} >= {
        "ConvInteger", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    }  # fmt: skip


@by_name(ACCEPTED_CASES)
def test_case_agrees_in_both_forms(tmp_path: Path, case: Case) -> None:
    # Attributes (auto_pad, asymmetric pads, dilations, transA, alpha, beta, a matrix as bias) that
    # conversion drops, or that the native library reads in another way than ONNX.
    path, model = converted(tmp_path, case.model)
    assert MAPPED[case.node.op_type] in {n.op_type for n in model.graph.node}
    left = {
        n.op_type for n in model.graph.node if n.domain == "" and not n.name.endswith("/overlap")
    }
    assert case.node.op_type not in left
    for native in (True, False):
        expect_outputs(case, run(path, case.feeds, native=native))


@by_name(REFUSED_CASES)
def test_case_that_can_not_be_mapped_is_refused_with_a_reason(tmp_path: Path, case: Case) -> None:
    # A file without a crossbar that claims to be converted, or an error that doesn't say why.
    onnx.save(case.model, tmp_path / "model.onnx")
    with pytest.raises(NodeMappingError) as error:
        convert(tmp_path / "model.onnx", config=DRIFT_0)
    assert "'case_node'" in str(error.value)
    assert str(_refusal(case)) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def with_mappable_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a second, independent branch: a MatMul of whole numbers, exact in fp32."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph, kind = model.graph, TensorProto.FLOAT
    graph.initializer.append(numpy_helper.from_array(EXACT_W, "extra_w"))
    graph.node.append(helper.make_node("MatMul", ["extra_x", "extra_w"], ["extra_y"], name="extra"))
    graph.input.append(helper.make_tensor_value_info("extra_x", kind, [2, 3]))
    graph.output.append(helper.make_tensor_value_info("extra_y", kind, [2, 4]))
    return model


EXACT_X = np.arange(6, dtype=np.float32).reshape(2, 3)
EXACT_W = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def stock_runtime_can_run(case: Case) -> bool:
    try:
        model = case.model.SerializeToString()
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        session.run(None, case.feeds)
    except Exception:  # the bindings have no common base class
        return False
    return True


def expect_digital_beside_a_crossbar(folder: Path, case: Case) -> None:
    path, model = converted(folder, with_mappable_matmul(case.model))
    rimc = [n.op_type for n in model.graph.node if n.domain == schema.DOMAIN]
    assert rimc == ["RramMatMul", "DoraMatMul"]
    (kept,) = [n for n in model.graph.node if n.name == "case_node"]
    # Attributes may be written out (auto_pad as pads); the operator and its weight are the case's.
    assert (kept.op_type, kept.domain) == (case.node.op_type, case.node.domain)
    assert (kept.input, kept.output) == (case.node.input, case.node.output)
    weight = next(t for t in case.model.graph.initializer if t.name == case.node.input[1])
    assert numpy_helper.to_array(weight).tobytes() == next(
        numpy_helper.to_array(t).tobytes() for t in model.graph.initializer if t.name == weight.name
    )
    if not stock_runtime_can_run(case):
        return  # a type, an opset or a zero point that ONNX Runtime's CPU provider does not know
    for native in (True, False):
        outputs = run(path, {**case.feeds, "extra_x": EXACT_X}, native=native)
        assert np.array_equal(outputs["extra_y"], EXACT_X @ EXACT_W)
        expect_outputs(case, outputs)


@by_name([c for c in REFUSED_CASES if len(c.node.input) > 1])
def test_case_that_can_not_be_mapped_stays_digital_beside_a_crossbar(
    tmp_path: Path, case: Case
) -> None:
    # A refused node that is changed all the same: its type, its weight, its name.
    expect_digital_beside_a_crossbar(tmp_path, case)


def retyped(case: Case, dtype: int) -> Case:
    """The case with all floats in another type; expected outputs follow from the rounded inputs."""
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = dtype
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(numpy_type)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return Case(
        name=case.name,
        model=model,
        feeds={n: a.astype(numpy_type) for n, a in case.feeds.items()},
        outputs=[o.astype(numpy_type) for o in case.outputs],
        rtol=case.rtol,
        atol=case.atol,
    )


@by_name(FLOAT_CASES)
def test_float16_case_is_mapped_through_casts(tmp_path: Path, case: Case) -> None:
    # A float16 model whose outputs become float32, or that no longer loads.
    half = retyped(case, TensorProto.FLOAT16)
    path, model = converted(tmp_path, half.model)
    assert MAPPED[case.node.op_type] in {n.op_type for n in model.graph.node}
    for native in (True, False):
        outputs = run(path, half.feeds, native=native)
        for value, expected in zip(half.model.graph.output, case.outputs, strict=True):
            got = outputs[value.name]
            assert got.dtype == np.float16
            # Each of x, w and y is rounded to 11 bits: 2^-11 of the largest products and sums.
            bound = 4 * 2.0**-11 * float(np.abs(expected).max())
            np.testing.assert_allclose(got.astype(np.float32), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.BFLOAT16], ids=["f64", "bf16"])
@by_name([c for c in FLOAT_CASES if re.search("autopad|asymmetric|all_attr|matmul_2d", c.name)])
def test_case_of_another_float_type_stays_digital(tmp_path: Path, case: Case, dtype: int) -> None:
    # Doubles cut to float32 without a word; a bfloat16 array that numpy takes for bytes.
    other = retyped(case, dtype)
    onnx.save(other.model, tmp_path / "model.onnx")
    name = {TensorProto.DOUBLE: "dtype double", TensorProto.BFLOAT16: "dtype bfloat16"}[dtype]
    with pytest.raises(NodeMappingError, match=name):
        convert(tmp_path / "model.onnx", config=DRIFT_0)
    expect_digital_beside_a_crossbar(tmp_path, other)


# -------------------------------------------------------------------------- the light_* models


LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))
LIGHT_NODES = {
    "light_bvlc_alexnet": 8,
    "light_densenet121": 121,
    "light_inception_v1": 58,
    "light_inception_v2": 70,
    "light_resnet50": 54,
    "light_shufflenet": 50,
    "light_squeezenet": 26,
    "light_vgg19": 19,
    "light_zfnet512": 8,
}
"""Convolutions and Gemms, all with a constant weight."""

RUN = ("light_inception_v1", "light_shufflenet", "light_squeezenet")
"""Those of a few million weights: convolutions of all kinds, groups, batch norms, a Gemm."""

by_model = pytest.mark.parametrize("name", sorted(LIGHT_NODES))


def light(name: str) -> Path:
    return next(p for p in LIGHT if p.stem == name)


def test_the_light_models_are_shipped() -> None:
    # As above: no file, no test.
    assert [p.stem for p in LIGHT] == sorted(LIGHT_NODES)


@by_model
def test_light_model_is_mapped_whole(name: str) -> None:
    # Weights that a ConstantOfShape makes are constants too. Nothing is written: the largest of
    # these files would have half a gigabyte.
    report = convert(light(name), config=DRIFT_0, dry_run=True)
    assert [n.name for n in report.nodes if not n.mapped] == []
    assert report.mapped == LIGHT_NODES[name]


def agrees_with_teacher(folder: Path, model: onnx.ModelProto) -> None:
    """Convert at drift 0 and compare the logits, that is the input of the last Softmax."""
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    model.graph.output.append(onnx.ValueInfoProto(name=softmax.input[0]))
    onnx.save(model, folder / "model.onnx")
    convert(folder / "model.onnx", config=DRIFT_0)
    known = {t.name for t in model.graph.initializer}
    (data,) = [i for i in model.graph.input if i.name not in known]
    shape = [d.dim_value for d in data.type.tensor_type.shape.dim]
    feeds = {data.name: np.random.default_rng(1).random(shape, dtype=np.float32)}
    expected = run(folder / "model.onnx", feeds, native=False)[softmax.input[0]]
    for native in (True, False):
        got = run(folder / "model.rimc.onnx", feeds, native=native)[softmax.input[0]]
        # Batch norms move into weights, so every sum rounds anew: up to 60 layers of 2^-24 each
        # in units of the largest value, times the square root of up to 5000 terms.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", RUN)
def test_light_model_agrees_as_it_is(tmp_path: Path, name: str) -> None:
    # A constant that is found but not written to the file, or of the wrong shape.
    agrees_with_teacher(tmp_path, onnx.load(light(name)))


@pytest.mark.parametrize("name", RUN)
def test_light_model_agrees_with_random_weights(tmp_path: Path, name: str) -> None:
    # All weights of a light model are alike, so a swapped axis or group would go unnoticed.
    model = onnx.load(light(name))
    random = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "ConstantOfShape"]:
        shape = [int(d) for d in shapes[node.input[0]]]
        # He et al. 2015 for weights; scales, means and variances of batch norms are near 1.
        weight = (
            random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            if len(shape) > 1
            else random.uniform(0.5, 1.5, shape)
        )
        tensor = numpy_helper.from_array(weight.astype(np.float32), node.output[0])
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    model.ir_version = 8  # before 4, an initializer must be an input as well
    for value in [i for i in model.graph.input if i.name in shapes]:
        model.graph.input.remove(value)
    agrees_with_teacher(tmp_path, model)


def with_constant_bias(case: Case) -> Case:
    """The case with the bias of its Gemm as an initializer."""
    feeds, model = dict(case.feeds), onnx.ModelProto.FromString(case.model.SerializeToString())
    name = case.node.input[2]
    model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
    model.graph.input.remove(next(i for i in model.graph.input if i.name == name))
    return replace(case, model=model, feeds=feeds)


COMPARED_CASES = [c for c in CASES if c.node.op_type in MAPPED]


def _adds_a_row(case: Case) -> bool:
    bias = case.feeds.get(case.node.input[2]) if len(case.node.input) > 2 else None
    is_gemm = case.node.op_type == "Gemm"
    return is_gemm and bias is not None and bias.shape != case.outputs[0].shape


ROWS = [with_constant_bias(c) for c in COMPARED_CASES if _adds_a_row(c)]


@needs_providers
@by_name([*COMPARED_CASES, *ROWS])
def test_provider_maps_what_a_conversion_maps(case: Case) -> None:
    # A node on an array in one of them and digital in the other, which nobody hears of.
    model = case.model.SerializeToString()
    try:
        provider_session(model, provider_options={"preset": "gaussian-relative"})
    except NodeMappingError:
        pass
    except Exception:
        if stock_runtime_can_run(case):
            raise
        pytest.skip("ONNX Runtime does not know the type or the opset")
    shown = {m.name: m.reason for m in last_mapping()}
    # What ONNX Runtime computes when it loads the model is not shown.
    assert shown in ({"case_node": _refusal(case)}, {}) if _refusal(case) else True
    assert ("case_node" in shown and shown["case_node"] is None) == (_refusal(case) is None)
